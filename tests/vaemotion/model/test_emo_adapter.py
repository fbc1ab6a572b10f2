"""The EmoAdapter: identity at the start, masked tokens without effect, ages with effect."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny import randomize
from vaemotion.model.emo_adapter import (
    CONSTRUCTS,
    SPREAD_FLOOR,
    AdapterOutput,
    EmoAdapter,
    EmoAdapterConfig,
    Whitening,
)

B, N_A, N_V, D = 3, 5, 8, 64


def adapter(*, trained: bool = True) -> EmoAdapter:
    torch.manual_seed(0)
    module = EmoAdapter(EmoAdapterConfig(), D)
    if trained:
        randomize(module)
    return module.eval()


def inputs(audio: bool = True, visual: bool = True, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "audio_tokens": torch.randn(B, N_A, D, generator=generator),
        "audio_mask": torch.full((B, N_A), audio),
        "audio_age_s": torch.rand(B, N_A, generator=generator) * 3,
        "visual_tokens": torch.randn(B, N_V, D, generator=generator),
        "visual_mask": torch.full((B, N_V), visual),
        "visual_age_s": torch.rand(B, N_V, generator=generator) * 3,
    }


def readings(out: AdapterOutput) -> tuple[Tensor, ...]:
    return out.valence_arousal, out.spread, out.emotion_logits


def test_step_0_of_the_enhancer_is_exactly_the_identity() -> None:
    given = inputs()
    out = adapter(trained=False)(**given)
    assert torch.equal(out.audio_tokens, given["audio_tokens"])
    assert torch.equal(out.visual_tokens, given["visual_tokens"])


def test_step_0_still_gets_gradients_and_after_one_step_the_whole_enhancer_does() -> None:
    module = adapter(trained=False)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        out = module(**inputs())
        ((out.audio_tokens - 1) ** 2).mean().add(((out.visual_tokens - 1) ** 2).mean()).backward()
        for enhancer in (module.audio_enhancer, module.visual_enhancer):
            assert enhancer.up.weight.grad is not None
            assert enhancer.up.weight.grad.abs().max() > 0
            if step == 1:
                assert enhancer.down.weight.grad is not None
                assert enhancer.down.weight.grad.abs().max() > 0
        optimizer.step()
    assert not torch.equal(module(**inputs()).audio_tokens, inputs()["audio_tokens"])


@pytest.mark.parametrize("garbage", [1e30, float("inf"), float("nan")])
@pytest.mark.parametrize("masked", ["audio", "visual"])
def test_a_masked_modality_changes_nothing_at_all(masked: str, garbage: float) -> None:
    module, other = adapter(), "visual" if masked == "audio" else "audio"
    clean = inputs(audio=masked != "audio", visual=masked != "visual")
    dirty = {**clean, f"{masked}_tokens": torch.full_like(clean[f"{masked}_tokens"], garbage)}
    dirty[f"{masked}_age_s"] = torch.full_like(clean[f"{masked}_age_s"], garbage)
    expected, got = module(**clean), module(**dirty)
    for reading, reference in zip(readings(got), readings(expected), strict=True):
        assert torch.equal(reading, reference)
    assert torch.equal(getattr(got, f"{other}_tokens"), getattr(expected, f"{other}_tokens"))


def test_single_masked_tokens_change_nothing_either() -> None:
    module, clean = adapter(), inputs()
    clean["visual_mask"][:, :5] = False
    dirty = {k: v.clone() for k, v in clean.items()}
    dirty["visual_tokens"][:, :5] = float("nan")
    expected, got = module(**clean), module(**dirty)
    for reading, reference in zip(readings(got), readings(expected), strict=True):
        assert torch.equal(reading, reference)
    assert torch.equal(got.visual_tokens[:, 5:], expected.visual_tokens[:, 5:])
    assert torch.equal(got.audio_tokens, expected.audio_tokens)


@pytest.mark.parametrize("modality", ["audio", "visual"])
def test_an_unmasked_modality_does_change_the_reading(modality: str) -> None:
    given = inputs()
    absent = inputs(audio=modality != "audio", visual=modality != "visual")
    assert (adapter()(**given).valence_arousal - adapter()(**absent).valence_arousal).abs().max() > 1e-3


def test_with_everything_masked_all_stays_finite_and_is_the_same_for_every_row() -> None:
    out = adapter()(**inputs(audio=False, visual=False))
    for value in out:
        assert torch.isfinite(value).all()
    for reading in readings(out):
        torch.testing.assert_close(reading, reading[:1].expand_as(reading))


def test_nan_under_a_mask_leaves_gradients_finite() -> None:
    module = adapter()
    given = inputs(audio=False)
    given["audio_tokens"].fill_(float("nan"))
    out = module(**given)
    (
        out.valence_arousal.sum() + out.spread.sum() + out.emotion_logits.sum() + out.visual_tokens.sum()
    ).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("ages", ["audio_age_s", "visual_age_s"])
def test_ages_change_the_reading(ages: str) -> None:
    given = inputs()
    older = {**given, ages: given[ages] + 0.4}
    swapped = {**given, ages: given[ages].flip(1)}
    reading = adapter()(**given).valence_arousal
    assert (adapter()(**older).valence_arousal - reading).abs().max() > 1e-5
    assert (adapter()(**swapped).valence_arousal - reading).abs().max() > 1e-5


def test_ages_are_distinguishable_at_every_distance_below_the_slowest_period() -> None:
    module = adapter()
    ages = torch.arange(0, 16, 0.1)[None]
    encoded = module.encode_age(ages)[0]
    distances = torch.cdist(encoded, encoded) + 1e9 * torch.eye(len(encoded))
    assert distances.min() > 1e-2


def test_the_order_of_the_tokens_does_not_matter_only_their_ages_do() -> None:
    given, order = inputs(), torch.randperm(N_V, generator=torch.Generator().manual_seed(5))
    given["visual_mask"][:, 2] = False
    permuted = {
        **given,
        **{f"visual_{k}": given[f"visual_{k}"][:, order] for k in ("tokens", "mask", "age_s")},
    }
    expected, got = adapter()(**given), adapter()(**permuted)
    for reading, reference in zip(readings(got), readings(expected), strict=True):
        torch.testing.assert_close(reading, reference, atol=1e-5, rtol=0)
    torch.testing.assert_close(got.visual_tokens, expected.visual_tokens[:, order], atol=1e-5, rtol=1e-5)


def test_a_row_does_not_depend_on_the_others_in_the_batch() -> None:
    given = inputs()
    given["audio_mask"][1] = False
    given["visual_mask"][2] = False
    together = adapter()(**given)
    for row in range(B):
        alone = adapter()(**{k: v[row : row + 1] for k, v in given.items()})
        for value, reference in zip(alone, together, strict=True):
            torch.testing.assert_close(value[0], reference[row], atol=1e-5, rtol=1e-5)


def test_valence_and_arousal_stay_in_their_square_and_the_spread_above_its_floor() -> None:
    module = adapter()
    with torch.no_grad():
        module.heads[-1].weight.mul_(1e3)
    out = module(**inputs())
    assert out.valence_arousal.shape == out.spread.shape == (B, len(CONSTRUCTS), 2)
    assert out.emotion_logits.shape == (B, len(CONSTRUCTS), 9)
    assert out.valence_arousal.abs().max() <= 1
    assert out.valence_arousal.abs().max() > 0.99  # the heads were driven to their ends
    assert out.spread.min() >= SPREAD_FLOOR == 0.02


def correlated(n: int, seed: int, offset: float = 0.0) -> Tensor:
    """Draw tokens whose directions have standard deviations from 0.01 to 10."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(
        torch.randn(D, D, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    ).Q
    scale = torch.logspace(-2, 1, D, dtype=torch.float64)
    return (torch.randn(n, D, generator=generator, dtype=torch.float64) * scale @ basis.T + offset).float()


def test_whitening_gives_the_identity_covariance_and_a_mean_of_0() -> None:
    tokens, whitening = correlated(20_000, 0, offset=3.0), Whitening(D)
    whitening.fit([tokens], shrinkage=0.0)
    white = whitening(tokens).double()
    assert white.mean(0).abs().max() < 0.02
    assert (torch.cov(white.T) - torch.eye(D)).abs().max() < 0.02


def test_shrinkage_keeps_the_smallest_directions_from_blowing_up() -> None:
    tokens, whitening = correlated(20_000, 0), Whitening(D)
    whitening.fit([tokens], shrinkage=0.05)
    gains = torch.linalg.svdvals(whitening.matrix.double())
    mean_variance = torch.cov(tokens.double().T).diagonal().mean()
    assert gains.max() == pytest.approx(1 / math.sqrt(0.05 * mean_variance), rel=0.02)


def test_what_differs_between_domains_is_not_whitened_away() -> None:
    """The covariance is averaged *within* domains, so that their offset from each other remains."""
    tokens = [correlated(20_000, 1, offset=2.0), correlated(20_000, 2, offset=-2.0)]
    within, mixed = Whitening(D), Whitening(D)
    within.fit(tokens, shrinkage=0.0)
    mixed.fit([torch.cat(tokens)], shrinkage=0.0)
    white = torch.cat([within(t) - within(t).mean(0) for t in tokens]).double()
    assert (torch.cov(white.T) - torch.eye(D)).abs().max() < 0.03
    apart = [(w(tokens[0]).mean(0) - w(tokens[1]).mean(0)).norm() for w in (within, mixed)]
    assert apart[0] > 3 * apart[1]
    torch.testing.assert_close(within.mean, (tokens[0].mean(0) + tokens[1].mean(0)) / 2, atol=1e-4, rtol=1e-4)


def test_whitening_is_frozen_and_part_of_what_is_stored() -> None:
    module = adapter()
    trained: dict[str, Any] = dict(module.named_parameters())
    assert not any("whitening" in name for name in trained)
    assert {"audio_whitening.mean", "audio_whitening.matrix", "visual_whitening.matrix"} <= set(
        module.state_dict()
    )


def test_the_residual_is_added_to_the_original_tokens_not_to_the_whitened_ones() -> None:
    module, given = adapter(), inputs()
    with torch.no_grad():
        module.audio_enhancer.gain.zero_()
    out = module(**given)
    assert torch.equal(out.audio_tokens, given["audio_tokens"])
    assert not torch.equal(out.visual_tokens, given["visual_tokens"])
