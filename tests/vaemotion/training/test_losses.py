"""The losses compared with independent float64 implementations; classic mistakes of distillation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.lessons import align_data, lessons, small_windows
from tests.tiny import tiny_config, tiny_model
from vaemotion.contract.emotions import EMOTIONS
from vaemotion.training.losses import (
    MIN_CCC_LABELS,
    ccc,
    concordance_loss,
    distillation_loss,
    gaussian_nll,
    rater_divergence,
    token_discrepancy,
)
from vaemotion.training.vg_align import AlignData, Alignment

RNG = np.random.default_rng(0)


def log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def numpy_kd(teacher: np.ndarray, student: np.ndarray, tau: float) -> float:
    """Compute τ² / |M| · Σ KL(teacher ‖ student) in float64."""
    p, q = log_softmax(teacher / tau), log_softmax(student / tau)
    return float(tau**2 * (np.exp(p) * (p - q)).sum() / len(teacher))


def logits(rows: int = 7, vocabulary: int = 11) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return 4 * rng.standard_normal((rows, vocabulary)), rng.standard_normal((rows, vocabulary))


@pytest.mark.parametrize("tau", [1.0, 1.5, 2.0])
def test_distillation_is_the_forward_kl_at_its_temperature(tau: float) -> None:
    teacher, student = logits()
    loss = distillation_loss(torch.tensor(teacher), torch.tensor(student), tau).item()
    assert loss == pytest.approx(numpy_kd(teacher, student, tau), rel=1e-5)
    assert abs(loss - numpy_kd(student, teacher, tau)) > 0.1 * loss  # the reverse KL is another number


@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_the_gradient_is_scaled_by_tau_squared(tau: float) -> None:
    teacher, student = logits()
    given = torch.tensor(student, requires_grad=True)
    distillation_loss(torch.tensor(teacher), given, tau).backward()
    difference = np.exp(log_softmax(student / tau)) - np.exp(log_softmax(teacher / tau))
    assert given.grad is not None
    np.testing.assert_allclose(given.grad.numpy(), tau * difference / len(teacher), rtol=1e-3, atol=1e-6)


def test_the_teacher_gets_no_gradient_and_equals_cost_nothing() -> None:
    teacher, student = (torch.tensor(x, requires_grad=True) for x in logits())
    distillation_loss(teacher, student, 1.5).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert distillation_loss(student, student, 1.5).item() == pytest.approx(0, abs=1e-6)


def test_half_precision_logits_are_compared_in_float32() -> None:
    teacher, student = (torch.tensor(x).half() for x in logits())
    loss = distillation_loss(teacher, student, 1.5)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(
        numpy_kd(teacher.double().numpy(), student.double().numpy(), 1.5), rel=1e-5
    )


def alignment(tmp_path: Path, *, both: bool) -> tuple[float, float]:
    """Compute the loss of stage 1 by the project and by hand.

    By hand, each whole sequence goes through HF's own model, and the positions are picked one by one.
    """
    model, config = tiny_model(adapter=False), tiny_config()
    pathway = model.audio_pathway
    generator = torch.Generator().manual_seed(2)
    visual = torch.randn(2, 2, 4, 64, generator=generator).half()  # two samples of two frames
    mel = torch.randn(2, 50, 32, generator=generator)
    questions, answers = ["What is this?", "Describe it."], ["bell", "a rooster, calm and neutral"]
    stage = replace(config.align, temperature=1.7, auxiliary_weight=0.0)
    batch = {
        "windows": [0, 2],
        "pictures": visual,
        "questions": questions,
        "answers": answers,
        "log_mel": mel,
        "both": both,
        "synchronized": torch.ones(2, dtype=torch.bool),
    }
    total, _ = Alignment(model, any_lessons(tmp_path), replace(config, align=stage))(batch)

    teacher_rows: list[Tensor] = []
    student_rows: list[Tensor] = []
    targets: list[int] = []
    with torch.no_grad():
        for row in range(2):
            question = model.token_ids(f" {questions[row]}<end_of_utterance>\nAssistant:")
            answer = [*model.token_ids(f" {answers[row]}"), model.token_ids("<end_of_utterance>")[0]]
            prefix = model.embed(torch.tensor(model.token_ids("<|im_start|>User:")))
            seen = visual[row].float().reshape(-1, 64)
            audio = pathway(mel[row : row + 1])[0]
            delimited = torch.cat([pathway.delimiters[:1], audio, pathway.delimiters[1:]])
            media = {"teacher": [seen], "student": [seen, delimited] if both else [delimited]}
            for who, rows in (("teacher", teacher_rows), ("student", student_rows)):
                sequence = torch.cat([prefix, *media[who], model.embed(torch.tensor(question + answer))])
                predicted = model.base(inputs_embeds=sequence[None]).logits[0]
                first = len(sequence) - len(answer)
                rows.append(predicted[first - 1 : -1])  # the token at t is predicted at t - 1
            targets += answer
    teacher, student = (torch.cat(rows).double().numpy() for rows in (teacher_rows, student_rows))
    cross_entropy = -log_softmax(student)[np.arange(len(targets)), targets].mean()
    return total.item(), numpy_kd(teacher, student, 1.7) + 0.5 * float(cross_entropy)


def any_lessons(folder: Path) -> AlignData:
    names = ["x"] * 5
    return align_data(small_windows(folder), lessons([(0, 1, 0, "x")], names))


def test_the_discrepancy_of_tokens_is_the_biased_mmd_of_each_pair() -> None:
    rng = np.random.default_rng(3)
    audio, visual = rng.standard_normal((2, 3, 4)), rng.standard_normal((2, 5, 4)) + 1
    by_hand: list[float] = []
    for a, v in zip(audio, visual, strict=True):
        tokens = np.concatenate([a, v])
        squares = ((tokens[:, None] - tokens[None]) ** 2).sum(-1)
        kernel = sum(np.exp(-squares / (squares.mean() * scale)) for scale in (0.25, 0.5, 1, 2, 4))
        sign = np.array([1 / 3] * 3 + [-1 / 5] * 5)
        by_hand.append(float(sign @ kernel @ sign))
    given = torch.tensor(audio, requires_grad=True)
    both = token_discrepancy(given, torch.tensor(visual), torch.tensor([True, True]))
    assert both.item() == pytest.approx(np.mean(by_hand), rel=1e-4)
    one = token_discrepancy(given, torch.tensor(visual), torch.tensor([True, False]))
    assert one.item() == pytest.approx(by_hand[0], rel=1e-4)
    same = token_discrepancy(given, given.detach(), torch.tensor([True, True]))
    assert same.item() == pytest.approx(0, abs=1e-5)
    both.backward()
    assert given.grad is not None
    assert given.grad.abs().sum() > 0


@pytest.mark.parametrize("both", [False, True])
def test_stage_1_distils_exactly_the_answers_tokens_shifted_by_one(both: bool, tmp_path: Path) -> None:
    ours, by_hand = alignment(tmp_path, both=both)
    assert ours == pytest.approx(by_hand, rel=1e-4)


def test_only_the_audio_pathway_learns_in_stage_1(tmp_path: Path) -> None:
    model = tiny_model(adapter=False)
    model.base.requires_grad_(False)
    batch = {
        "windows": [0],
        "pictures": torch.randn(1, 1, 4, 64).half(),
        "questions": ["What is this?"],
        "answers": ["bell"],
        "log_mel": torch.randn(1, 50, 32),
        "synchronized": torch.ones(1, dtype=torch.bool),
        "both": False,
    }
    config = tiny_config("align.token_weight=1.0")
    Alignment(model, any_lessons(tmp_path), config)(batch)[0].backward()
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None} == {"audio"}
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0
        for p in (model.audio_pathway.delimiters, model.audio_pathway.projector[0].weight)
    )


def numpy_ccc(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x.astype(np.float64), y.astype(np.float64)
    return float(2 * np.cov(x, y, bias=True)[0, 1] / (x.var() + y.var() + (x.mean() - y.mean()) ** 2))


def labels(n: int, seed: int = 0, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    wanted = rng.uniform(-1, 1, (n, 2)) * 0.5 + shift
    return (0.6 * wanted + 0.2 * rng.standard_normal((n, 2)) + 0.1).astype(np.float32), wanted.astype(
        np.float32
    )


def test_ccc_is_lins() -> None:
    predicted, wanted = (x[:, 0] for x in labels(200))
    predicted = predicted + np.float32(0.2)
    ours = ccc(torch.tensor(predicted), torch.tensor(wanted)).item()
    assert ours == pytest.approx(numpy_ccc(predicted, wanted), abs=1e-6)
    assert abs(ours - np.corrcoef(predicted, wanted)[0, 1]) > 0.05  # it is not Pearson's
    assert ccc(torch.tensor(wanted), torch.tensor(wanted)).item() == pytest.approx(1, abs=1e-6)
    assert ccc(torch.tensor(-wanted), torch.tensor(wanted)).item() < -0.9


def test_a_constant_prediction_has_no_concordance_and_a_finite_gradient() -> None:
    predicted = torch.full((40,), 0.3, requires_grad=True)
    value = ccc(predicted, torch.tensor(labels(40)[1][:, 0]))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-5)
    assert predicted.grad is not None
    assert torch.isfinite(predicted.grad).all()
    constant = torch.full((40,), 0.3, requires_grad=True)
    ccc(constant, torch.full((40,), 0.3)).backward()
    assert constant.grad is not None
    assert torch.isfinite(constant.grad).all()


def test_concordance_is_the_mean_of_one_minus_ccc_over_both_dimensions() -> None:
    predicted, wanted = labels(64)
    loss = concordance_loss(
        torch.tensor(predicted), torch.tensor(wanted), torch.zeros(64, dtype=torch.long)
    ).item()
    expected = sum(1 - numpy_ccc(predicted[:, d], wanted[:, d]) for d in range(2)) / 2
    assert loss == pytest.approx(expected, abs=1e-5)


def test_sources_are_compared_each_with_itself_never_mixed() -> None:
    (p0, w0), (p1, w1) = labels(40, 0, shift=0.8), labels(60, 1, shift=-0.8)
    predicted, wanted = np.concatenate([p0, p1]), np.concatenate([w0, w1])
    order = RNG.permutation(100)
    source = torch.tensor([0] * 40 + [5] * 60)[order]
    loss = concordance_loss(torch.tensor(predicted[order]), torch.tensor(wanted[order]), source).item()
    each = [sum(1 - numpy_ccc(p[:, d], w[:, d]) for d in range(2)) / 2 for p, w in ((p0, w0), (p1, w1))]
    assert loss == pytest.approx(np.mean(each), abs=1e-5)
    mixed = sum(1 - numpy_ccc(predicted[:, d], wanted[:, d]) for d in range(2)) / 2
    assert abs(loss - mixed) > 0.1  # mixed, the difference between the sources counts as agreement


@pytest.mark.parametrize(("valid", "huber"), [(MIN_CCC_LABELS - 1, True), (MIN_CCC_LABELS, False)])
def test_below_32_valid_labels_hubers_loss_takes_over_per_dimension(valid: int, huber: bool) -> None:
    predicted, wanted = labels(64)
    wanted[valid:, 1] = np.nan
    loss = concordance_loss(
        torch.tensor(predicted), torch.tensor(wanted), torch.zeros(64, dtype=torch.long)
    ).item()
    p, w = predicted[:valid, 1], wanted[:valid, 1]
    error = np.abs(p - w)
    second = float(np.where(error < 1, error**2 / 2, error - 0.5).mean()) if huber else 1 - numpy_ccc(p, w)
    assert loss == pytest.approx((1 - numpy_ccc(predicted[:, 0], wanted[:, 0]) + second) / 2, abs=1e-5)


def test_without_labels_the_loss_is_0_and_still_a_function_of_the_prediction() -> None:
    predicted = torch.zeros(4, 2, requires_grad=True)
    loss = concordance_loss(predicted, torch.full((4, 2), float("nan")), torch.zeros(4, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0
    assert predicted.grad is not None
    assert (predicted.grad == 0).all()


def test_masked_labels_give_no_gradient_and_no_nan() -> None:
    predicted, wanted = (torch.tensor(x) for x in labels(80))
    spread = torch.full((80, 2), 0.3, requires_grad=True)
    predicted.requires_grad_()
    wanted[40:] = float("nan")
    loss = concordance_loss(predicted, wanted, torch.zeros(80, dtype=torch.long)) + gaussian_nll(
        predicted, spread, wanted
    )
    loss.backward()
    for grad in (predicted.grad, spread.grad):
        assert grad is not None
        assert (grad[40:] == 0).all()
        assert (grad[:40] != 0).all()


def test_the_nll_is_torchs_without_the_constant() -> None:
    predicted, wanted = (torch.tensor(x) for x in labels(50))
    spread = torch.rand(50, 2) + 0.05
    expected = torch.nn.GaussianNLLLoss(eps=1e-12)(predicted, wanted, spread**2)
    assert gaussian_nll(predicted, spread, wanted).item() == pytest.approx(expected.item(), abs=1e-5)


def test_the_nll_averages_over_valid_labels_only() -> None:
    predicted, wanted = (torch.tensor(x) for x in labels(50))
    spread = torch.rand(50, 2) + 0.05
    holes = wanted.clone()
    holes[::3, 0] = holes[::2, 1] = float("nan")
    valid = torch.isfinite(holes)
    expected = torch.nn.GaussianNLLLoss(eps=1e-12)(predicted[valid], wanted[valid], spread[valid] ** 2)
    assert gaussian_nll(predicted, spread, holes).item() == pytest.approx(expected.item(), abs=1e-5)
    assert gaussian_nll(predicted, spread, torch.full_like(wanted, float("nan"))).item() == 0


def test_the_raters_divergence_is_kl_from_the_raters_to_the_model() -> None:
    given = RNG.standard_normal((6, len(EMOTIONS)))
    raters = RNG.dirichlet(np.full(9, 0.3), 6)
    raters[2] = np.eye(9)[4]  # all raters agree: zeros elsewhere
    q = log_softmax(given)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.nansum(raters * (np.log(raters) - q), axis=-1)
    ours = rater_divergence(torch.tensor(given), torch.tensor(raters)).item()
    assert ours == pytest.approx(expected.mean(), rel=1e-4)
    raters[3] = np.nan
    kept = np.delete(expected, 3).mean()
    assert rater_divergence(torch.tensor(given), torch.tensor(raters)).item() == pytest.approx(kept, rel=1e-4)


def test_without_raters_there_is_no_divergence_and_a_finite_gradient() -> None:
    given = torch.randn(3, 9, requires_grad=True)
    rater_divergence(given, torch.full((3, 9), float("nan"))).backward()
    assert given.grad is not None
    assert (given.grad == 0).all()
    certain = torch.randn(1, 9, requires_grad=True)
    rater_divergence(certain, F.one_hot(torch.tensor([2]), 9).float()).backward()
    assert certain.grad is not None
    assert torch.isfinite(certain.grad).all()
