"""The hearing report: its measures on constructed cases, and all of it on an untrained model."""

from __future__ import annotations

import json
import wave
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.predictors import TorchLanguageModel
from tests.tiny import tiny_model
from tests.vaemotion.evaluation.benchmark.rows import item
from vaemotion.cli.main import main
from vaemotion.contract import prompts
from vaemotion.contract.audio import SAMPLE_RATE_HZ
from vaemotion.contract.emotions import EMOTIONS
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.data.art.art import sample_work, synthesize, work_seed
from vaemotion.data.art.contents import CONTENT_CLASSES
from vaemotion.data.manifest.item import content_sha256
from vaemotion.data.manifest.manifest import write_manifest
from vaemotion.evaluation.benchmark.rows import Bootstrap, Estimate
from vaemotion.evaluation.hearing import alignment, conditions
from vaemotion.evaluation.hearing import verdict as verdicts
from vaemotion.evaluation.hearing.listening import encode_audio
from vaemotion.evaluation.hearing.material import other_clips, procedural_material
from vaemotion.evaluation.hearing.run import HearingOptions, run_hearing
from vaemotion.model.checkpoint import save_checkpoint

BOOTSTRAP = Bootstrap(50, 0)
WORKS = 30
OPTIONS = ("rain", "dog bark", "bell")


def save(folder: Path, *, audio: bool = True, seed: int = 0, **stage: object) -> Path:
    """Save a checkpoint after stage 1 whose lineage records ``stage``. All of them have the same base."""
    model = tiny_model(adapter=False, audio=audio)
    if audio:
        model.audio = tiny_model(adapter=False, seed=seed).audio
    lineage = {"name": "small", "align": {"seed": 0, "align": stage, "recordings": 0}}
    save_checkpoint(model, folder, lineage, "Apache-2.0")
    return folder


def save_recordings(folder: Path) -> Path:
    """Save sounds of 1.7 s in three classes: per class four for the test split, four for the train split."""
    items = []
    for index in range(len(OPTIONS) * 8):
        name, split = OPTIONS[index % 3], "train" if index >= 12 else "test"
        work = sample_work(work_seed("validation", index))
        samples = synthesize(replace(work, content=name), 1.7)
        file = folder / f"{index}.wav"
        with wave.open(str(file), "wb") as out:
            out.setparams((1, 2, SAMPLE_RATE_HZ, 0, "NONE", ""))
            out.writeframes((samples * 32767).astype("<i2").tobytes())
        # As in real manifests, each item has its own order of options.
        rotated = OPTIONS[index % 3 :] + OPTIONS[: index % 3]
        items.append(
            item(
                index,
                audio=file.name,
                video=None,
                pairing="none",
                modality="audio",
                question=prompts.CONTENT.text,
                answer=name,
                options=rotated,
                answer_index=0,
                audible=True,
                split=split,
                source="<b>kitchen</b>",
                creator_id=f"someone-{index}",
                sha256=content_sha256([file]),
            )
        )
    write_manifest(folder / "recordings.jsonl", items)
    return folder / "recordings.jsonl"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the report of an untrained model, with one control and recordings."""
    root = tmp_path_factory.mktemp("hearing")
    options = HearingOptions(
        shuffled=save(root / "shuffled", seed=1, pairing="shuffled", works=5),
        manifest=save_recordings(root),
        media_root=root,
        works=WORKS,
        bootstrap=BOOTSTRAP,
    )
    run_hearing(save(root / "model", pairing="synchronised", works=6), root / "out", options)
    return root / "out"


@pytest.fixture(scope="module")
def report(written: Path) -> dict[str, Any]:
    return json.loads((written / "hearing.json").read_text())


def accuracy(found: dict[str, Any], name: str) -> dict[str, float] | None:
    return next(c["accuracy"] for c in found["conditions"] if c["name"] == name)


def test_a_model_that_learnt_nothing_does_not_hear(report: dict[str, Any]) -> None:
    assert report["verdict"].startswith("The model does not hear")
    for found in report["recognised"]:
        rule = next(
            rule for rule in report["rules"] if rule["text"].startswith(f"{found['material']}: the model")
        )
        assert rule["outcome"] == "failed"
        own = accuracy(found, "the model")
        assert own is not None
        assert own["low"] <= 2 * found["chance"]


def test_works_and_recordings_are_heard_apart(report: dict[str, Any]) -> None:
    procedural, recordings = report["recognised"]
    assert (procedural["clips"], procedural["windows"], len(procedural["options"])) == (WORKS, WORKS, 15)
    assert (recordings["clips"], recordings["windows"]) == (12, 24)  # of 1.7 s, windows of 1 s
    assert recordings["options"] == ["bell", "dog bark", "rain"]
    assert sum(map(sum, recordings["confusion"])) == 12
    assert [sum(row) for row in recordings["confusion"]] == [4, 4, 4]


def test_a_missing_baseline_is_reported_with_its_command(report: dict[str, Any]) -> None:
    for found in report["recognised"]:
        row = next(c for c in found["conditions"] if c["name"] == "CE only")
        assert row["accuracy"] is None
        assert "vaemotion train align --config CONFIG --set align.kd_weight=0" in row["note"]
        shuffled = next(c for c in found["conditions"] if c["name"] == "stage 1 on shuffled pairs")
        assert shuffled["accuracy"] is not None
        assert "it also differs from the model in works" in shuffled["note"]


def test_a_probe_with_labels_finds_what_the_untrained_model_does_not(report: dict[str, Any]) -> None:
    probe = accuracy(report["recognised"][0], "probe on log-mel statistics")
    assert probe is not None
    assert probe["low"] > 0.3


def test_the_page_needs_nothing_else(written: Path) -> None:
    html = (written / "hearing.html").read_text()
    assert "http:" not in html.replace("http-equiv", "")
    assert "https:" not in html
    assert "<script" not in html
    assert html.count("data:image/png;base64,") == len(list(written.glob("*.png"))) == 4
    assert "<b>kitchen" not in html
    assert "&lt;b&gt;kitchen" in html


def test_page_and_markdown_say_that_a_label_chose_the_frames(written: Path) -> None:
    for file in ("hearing.html", "hearing.md"):
        assert "class chose the teacher's frames" in (written / file).read_text().replace("&#x27;", "'")


def test_plots_are_png_files(written: Path) -> None:
    for file in written.glob("*.png"):
        assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"split": "train"}, "nothing was trained on"),
        ({"works": 5}, "at least 20"),
        ({"manifest": Path("x.jsonl")}, "x.jsonl does not exist"),
        ({"shuffled": "aligned"}, "trained with --set align.pairing=shuffled"),
        ({"model": "without audio"}, "no audio pathway"),
        ({"ce_only": "elsewhere"}, "base and the front end"),
    ],
)
def test_unusable_options_and_checkpoints_are_refused(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    folders = {
        "aligned": save(tmp_path / "aligned", pairing="synchronised"),
        "without audio": save(tmp_path / "without-audio", audio=False),
    }
    other = tiny_model(adapter=False, seed=3)
    folders["elsewhere"] = tmp_path / "elsewhere"
    save_checkpoint(other, folders["elsewhere"], {"align": {"align": {"kd_weight": 0.0}}}, "Apache-2.0")
    given: dict[str, Any] = {"model": "aligned", **changes}
    given = {
        key: folders.get(value, value) if isinstance(value, str) else value for key, value in given.items()
    }
    with pytest.raises(UserError, match=sentence):
        run_hearing(given.pop("model"), tmp_path / "out", HearingOptions(**given))
    assert not (tmp_path / "out").exists()


def test_the_command_refuses_a_training_split(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["evaluate", "hearing", "--model", str(tmp_path), "--out", str(tmp_path), "--split", "train"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "Invalid value for '--split': 'train' is not one of 'test', 'validation'" in error
    with pytest.raises(UserError, match="nothing was trained on"):
        HearingOptions(split="train")


@pytest.mark.parametrize("seed", range(5))
def test_another_clip_is_always_of_another_class(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = np.concatenate([np.zeros(20, np.int64), rng.integers(1, 6, 20)])  # one class has half of them
    others = other_clips(truth, seed)
    assert sorted(others) == list(range(40))
    assert (truth[others] != truth).all()
    assert (others == other_clips(truth, seed)).all()


def test_too_many_of_one_class_are_refused() -> None:
    with pytest.raises(UsageError, match="3 of 4 clips"):
        other_clips(np.array([0, 0, 0, 1]), 0)


def test_scores_are_averaged_over_a_clips_windows() -> None:
    model = tiny_model()
    material = procedural_material(model, "test", 20, 0, with_visual=False)
    material = replace(material, truth=np.arange(3), clip_of=np.array([0, 0, 1, 2, 2, 2]))
    scores = np.array([[1.0], [3.0], [5.0], [0.0], [3.0], [9.0]])
    assert material.per_clip(scores).tolist() == [[2.0], [5.0], [4.0]]
    assert material.first_windows.tolist() == [0, 2, 3]


def test_another_seed_and_split_give_other_works() -> None:
    model = tiny_model()
    sounds = [
        procedural_material(model, split, 3, seed, with_visual=False).log_mel
        for split, seed in (("test", 0), ("test", 1), ("validation", 0), ("test", 0))
    ]
    assert torch.equal(sounds[0], sounds[3])
    assert not torch.equal(sounds[0], sounds[1])
    assert not torch.equal(sounds[0], sounds[2])


def test_retrieval_of_what_answers_alike_is_perfect() -> None:
    answers = [np.random.default_rng(k).dirichlet(np.ones(5), size=12) for k in range(3)]
    found = alignment.ranking_recall(
        "clips", "made", alignment.divergences(answers, answers), list("abcdefghijkl"), BOOTSTRAP
    )
    assert [found.recall[k].value for k in (1, 5)] == [1.0, 1.0]
    assert found.chance(1) == pytest.approx(1 / 12)


def test_retrieval_of_what_always_answers_the_same_is_at_chance() -> None:
    same = [np.full((12, 5), 0.2)]
    found = alignment.ranking_recall(
        "clips", "made", alignment.divergences(same, same), list("abcdefghijkl"), BOOTSTRAP
    )
    assert [found.recall[k].value for k in (1, 5)] == pytest.approx([1 / 12, 5 / 12])


def test_retrieval_finds_the_right_one_second() -> None:
    distance = np.array([[0.2, 0.1, 0.9], [0.9, 0.0, 0.9], [0.9, 0.9, 0.0]])
    found = alignment.ranking_recall("clips", "made", distance, list("abc"), BOOTSTRAP)
    assert [found.recall[k].value for k in (1, 5)] == pytest.approx([2 / 3, 1.0])


def test_swapped_sound_hits() -> None:
    sight, sound, neither = alignment.swapped_sound_hits(
        np.array([0, 1, 2, 3]), np.array([0, 0, 0, 0]), np.array([1, 1, 2, 2])
    )
    assert (sight.tolist(), sound.tolist(), neither.tolist()) == ([1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1])


def test_words_for_what_only_frames_show() -> None:
    for warmth in (-1, 1):
        for brightness in (-1, 1):
            assert len(alignment.visual_words(prompts.palette(warmth, brightness))) == 3
    assert alignment.visual_words("A Red, spiky star.") == ["red", "spiky", "star"]
    names = ("rain", "abstract shape")
    assert alignment.visual_words("An abstract shape, calm and pleasant", names) == []
    assert alignment.visual_words("a round abstract shape", names) == ["round"]
    assert alignment.visual_words("an abstract shape") == ["shape"]


def test_no_answer_that_sound_can_give_counts_as_a_leak() -> None:
    answers = [*CONTENT_CLASSES, *EMOTIONS, *prompts.VALENCE_WORDS, *prompts.AROUSAL_WORDS]
    answers += [prompts.caption(name, 0.5, 0.5) for name in CONTENT_CLASSES]
    assert [answer for answer in answers if alignment.visual_words(answer, CONTENT_CLASSES)] == []


def test_a_random_projector_keeps_the_encoder_and_changes_the_tokens() -> None:
    model = tiny_model()
    pathway = conditions.random_projector(model, 3.0, 0)
    for name, weights in model.audio_pathway.encoder.state_dict().items():
        assert torch.equal(pathway.encoder.state_dict()[name], weights)
    sound = procedural_material(model, "test", 2, 0, with_visual=False).log_mel
    own = encode_audio(model, sound)
    with conditions.hearing_with(model, pathway):
        other = encode_audio(model, sound)
    assert other.norm(dim=-1).mean().item() == pytest.approx(3.0, rel=0.01)
    assert not torch.allclose(own, other)
    assert torch.equal(encode_audio(model, sound), own)  # the model's own pathway is restored


def test_a_probe_that_never_met_a_class_never_names_it() -> None:
    rng = np.random.default_rng(0)
    classes = np.repeat([0, 2], 20)
    scores = conditions.probe_scores(
        rng.normal(size=(40, 3)) + classes[:, None], classes, np.zeros((4, 3)), 3
    )
    assert np.isneginf(scores[:, 1]).all()
    assert np.isfinite(scores[:, [0, 2]]).all()


def test_options_are_scored_as_the_device_scores_them() -> None:
    model = tiny_model()
    audio = encode_audio(model, procedural_material(model, "test", 2, 0, with_visual=False).log_mel)
    media = model.media_embeddings(None, audio, 2)
    got = model.option_scores(media, prompts.CONTENT.text, CONTENT_CLASSES).numpy()
    reference = TorchLanguageModel(model)
    ids = [
        [*model.token_ids(model.template.answer_text(option)), model.stop_id] for option in CONTENT_CLASSES
    ]
    question = reference.embed(model.token_ids(model.template.question_text(prompts.CONTENT.text)))
    for row in range(2):
        reference.set_prefix(media.embeddings[row].detach().numpy())
        expected = reference.score(question, ids)
        difference = np.abs(got[row] - expected)
        print(f"maximum {difference.max():.2e}, mean {difference.mean():.2e}")
        assert difference.max() < 1e-4


def recognised(
    own: float, control: float, shuffled: float | None, kind: str = "procedural"
) -> conditions.Recognition:
    def row(name: str, kind: str, value: float | None) -> conditions.Condition:
        estimate = None if value is None else Estimate(value, value - 0.05, value + 0.05)
        return conditions.Condition(name, kind, estimate, "")

    rows = (
        row("the model", conditions.MODEL, own),
        row("blind text", conditions.CONTROL, control),
        row("stage 1 on shuffled pairs", conditions.CONTROL, shuffled),
        row("CE only", conditions.COMPARISON, 0.99),
    )
    return conditions.Recognition("works", kind, "What?", ("a", "b"), 0.1, 2, 2, rows, ((1, 0), (0, 1)))


@pytest.mark.parametrize(
    ("own", "control", "shuffled", "expected"),
    [
        (0.9, 0.1, 0.1, "hears, as far as it was tested"),  # without recordings
        (0.9, 0.1, None, "hears, as far as it was tested"),
        (0.9, 0.82, 0.1, "does not hear"),  # the intervals overlap
        (0.9, 0.1, 0.21, "does not hear"),  # training on pairs without information was enough
    ],
)
def test_the_verdict_follows_the_rules(
    own: float, control: float, shuffled: float | None, expected: str
) -> None:
    found = alignment.ranking_recall("clips", "made", 1 - np.eye(12), list("abcdefghijkl"), BOOTSTRAP)
    rules = verdicts.verdict_rules([recognised(own, control, shuffled)], [found])
    assert expected in verdicts.verdict(rules)
    pair = [recognised(0.9, 0.1, 0.1, kind) for kind in ("procedural", "manifest")]
    assert (
        verdicts.verdict(verdicts.verdict_rules(pair, [found])) == "The model hears: it passed all 5 rules."
    )
    alone = verdicts.verdict_rules(pair[1:], [found])
    assert verdicts.verdict(alone) == "The model hears: it passed all 3 rules."


@pytest.mark.parametrize(("own", "outcome"), [(0.80, "passed"), (0.79, "failed")])
def test_the_target_for_recordings(own: float, outcome: str) -> None:
    pair = [recognised(0.9, 0.1, 0.1), recognised(own, 0.1, 0.1, "manifest")]
    assert [target.outcome for target in verdicts.targets(pair)] == [outcome]
    assert [target.outcome for target in verdicts.targets(pair[:1])] == ["not tested"]
