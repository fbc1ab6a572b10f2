"""The three stages end to end at a test's size: base, align, emotion, each interrupted and resumed."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import CONFIG_FILE, SMALL, tiny_clip, tiny_config, tiny_model
from vaemotion.contract import prompts
from vaemotion.contract.audio import AST_LOG_MEL
from vaemotion.contract.bundle import sha256_of
from vaemotion.contract.errors import UserError
from vaemotion.contract.front_end import PATHS
from vaemotion.contract.image import prepare_frame
from vaemotion.data.procedural_art import CONTENT_CLASSES, sample_work, work_seed
from vaemotion.model.checkpoint import load_checkpoint, read_config
from vaemotion.training import base_vlm, emotion, vg_align
from vaemotion.training.config import read_training_config
from vaemotion.training.loop import STATE_FILE
from vaemotion.training.windows_cache import WindowCache, cached_windows

STAGES = {"base": base_vlm.train, "align": vg_align.train, "emotion": emotion.train}


def overrides(runs: Path) -> list[str]:
    every = [
        f"{stage}.optimisation.{key}"
        for stage in STAGES
        for key in ("steps=4", "save_every=2", "log_every=1", "batch=4")
    ]
    return [
        *SMALL, *every, f"runs={runs}", "align.works=6", "emotion.works=6", "base.optimisation.workers=0",
        "align.optimisation.workers=0", "emotion.language_batch=2",
    ]  # fmt: skip


@dataclass(frozen=True)
class Runs:
    """A run without interruption, and one whose stages were interrupted in the middle and taken up again."""

    whole: Path
    resumed: Path


def cut_short(stage: str, runs: Path) -> None:
    """A stage's first half: the same configuration, stopped as by an interruption after the first save."""
    config, working = read_training_config(CONFIG_FILE, overrides(runs)), runs / f"{stage}.training"
    if stage == "base":
        complete = base_vlm.run(base_vlm.new_model(config), config, working, resume=False, stop_after=2)
    elif stage == "align":
        base_hash = hashes(runs / "base")["base"]
        model = vg_align.with_audio_pathway(load_checkpoint(runs / "base"), config)
        cache = cached_windows(model, base_hash, "train", config.align.works, config.seed, runs)
        lessons = vg_align.teacher_lessons(model, cache, config, base_hash, working)
        views = vg_align.teacher_views(model, cache, base_hash, working)
        complete = vg_align.run(model, cache, lessons, views, config, working, resume=False, stop_after=2)
    else:
        model = load_checkpoint(runs / "align")
        cache = cached_windows(
            model, hashes(runs / "align")["base"], "train", config.emotion.works, config.seed, runs
        )
        audio = emotion.hear(model, cache)
        model = emotion.with_adapter(model, cache, audio, config)
        complete = emotion.run(model, cache, audio, config, working, resume=False, stop_after=2)
    assert not complete


def hashes(folder: Path) -> dict[str, str]:
    return {name: entry["sha256"] for name, entry in read_config(folder)["components"].items()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    made = Runs(tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("resumed"))
    for stage, train in STAGES.items():
        train(CONFIG_FILE, overrides(made.whole), None, False)
        cut_short(stage, made.resumed)
        train(CONFIG_FILE, overrides(made.resumed), None, True)
    return made


@pytest.mark.parametrize(
    ("stage", "parts"), [("base", "base"), ("align", "base audio"), ("emotion", "base audio adapter")]
)
def test_each_stage_leaves_a_checkpoint_with_its_parts(runs: Runs, stage: str, parts: str) -> None:
    model = load_checkpoint(runs.whole / stage)
    assert sorted(hashes(runs.whole / stage)) == sorted([*parts.split(), "tokenizer"])
    assert (model.audio is not None, model.adapter is not None) == ("audio" in parts, "adapter" in parts)
    assert model.config.front_end.log_mel.n_mels == 32


@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupted_stage_taken_up_again_ends_in_the_same_bytes(runs: Runs, stage: str) -> None:
    assert hashes(runs.resumed / stage) == hashes(runs.whole / stage)
    for folder in (runs.whole, runs.resumed):
        log = (folder / f"{stage}.training" / "log.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in log] == [1, 2, 3, 4]


def test_align_leaves_the_bases_weights_as_they_are(runs: Runs) -> None:
    assert sha256_of(runs.whole / "align" / "base.safetensors") == sha256_of(
        runs.whole / "base" / "base.safetensors"
    )


@pytest.mark.parametrize("part", ["base.safetensors", "audio.safetensors", "tokenizer.json"])
def test_emotion_leaves_base_and_ear_as_they_are(runs: Runs, part: str) -> None:
    assert sha256_of(runs.whole / "emotion" / part) == sha256_of(runs.whole / "align" / part)


def test_every_stage_did_learn_something(runs: Runs) -> None:
    config = tiny_config()
    fresh = base_vlm.new_model(config)
    trained = load_checkpoint(runs.whole / "emotion")
    assert trained.audio is not None
    assert trained.adapter is not None
    key = "model.vision_model.encoder.layers.0.mlp.fc1.weight"
    assert (trained.base.state_dict()[key] - fresh.base.state_dict()[key]).abs().max() > 1e-4
    ear = vg_align.with_audio_pathway(load_checkpoint(runs.whole / "base"), config).audio
    assert ear is not None
    assert (trained.audio.delimiters - ear.delimiters).abs().max() > 1e-5
    assert trained.adapter.audio_enhancer.up.weight.abs().max() > 0
    assert not torch.equal(trained.adapter.audio_whitening.matrix, torch.eye(64))


def test_the_lineage_grows_with_every_stage(runs: Runs) -> None:
    for count, stage in enumerate(STAGES, 1):
        lineage = read_config(runs.whole / stage)["lineage"]
        assert [s for s in STAGES if s in lineage] == list(STAGES)[:count]
        assert lineage[stage][stage]["optimisation"]["steps"] == 4


def test_a_loaded_model_computes_what_the_next_stage_trained_on(runs: Runs) -> None:
    """Weights are rounded in the model when a stage ends: saving and loading round nothing more."""
    model = load_checkpoint(runs.whole / "align")
    for part in (model.base, model.audio):
        assert part is not None
        assert all(torch.equal(p, p.half().float()) for p in part.parameters())


def test_nothing_in_the_runs_is_a_pickle_or_left_half_written(runs: Runs) -> None:
    files = [p for p in runs.resumed.rglob("*") if p.is_file()]
    assert {p.suffix for p in files} == {".safetensors", ".json", ".jsonl"}
    assert len([p for p in files if p.name == STATE_FILE]) == 3
    assert not [p for p in runs.resumed.rglob("*") if p.name.endswith((".tmp", ".old"))]


def test_another_out_folder_takes_its_training_state_along(runs: Runs, tmp_path: Path) -> None:
    """Two runs of a stage side by side never share a state."""
    for stage, train in STAGES.items():
        before = sha256_of(runs.whole / f"{stage}.training" / STATE_FILE)
        train(CONFIG_FILE, [*overrides(runs.whole), "seed=5"], tmp_path / f"my-{stage}", False)
        assert (tmp_path / f"my-{stage}.training" / STATE_FILE).is_file(), stage
        assert sha256_of(runs.whole / f"{stage}.training" / STATE_FILE) == before, stage


def test_a_resumed_stage_is_not_another_configurations(runs: Runs, tmp_path: Path) -> None:
    """What was trained with one configuration is not taken for the result of another."""
    one = [*overrides(tmp_path), "base.optimisation.steps=2"]
    base_vlm.train(CONFIG_FILE, one, None, False)
    first = hashes(tmp_path / "base")["base"]
    try:
        base_vlm.train(CONFIG_FILE, [*one, "seed=9", "base.optimisation.learning_rate=0.01"], None, True)
    except UserError as refusal:
        assert "configuration" in str(refusal)  # noqa: PT017
    else:
        assert hashes(tmp_path / "base")["base"] != first


def test_the_teachers_answers_are_asked_once_and_are_the_teachers(runs: Runs) -> None:
    files = list((runs.whole / "align.training").glob("lessons-*.jsonl"))
    assert len(files) == 1
    lessons = [vg_align.Lesson(**json.loads(line)) for line in files[0].read_text().splitlines()]
    model = load_checkpoint(runs.whole / "align")
    cache = cached_windows(model, hashes(runs.whole / "base")["base"], "train", 6, 0, runs.whole)
    audible = {question.text for question in vg_align.QUESTION_SHARES}
    assert {lesson.question for lesson in lessons} <= audible
    assert "Which colors does it have?" not in audible
    greedy = 0
    for lesson in lessons:
        media = model.media_embeddings(
            vg_align.visual_tokens(cache, [lesson.window], lesson.frame_count), None, 1
        )
        greedy += model.generate(media, lesson.question) == [lesson.answer]
    assert len(lessons) // 4 <= greedy < len(lessons)  # the rest is sampled


def small_cache() -> WindowCache:
    works = tuple(sample_work(work_seed("train", i)) for i in range(5))
    generator = torch.Generator().manual_seed(0)
    return WindowCache(
        works,
        torch.randn(5, 4, 4, 64, generator=generator).half(),
        torch.randn(5, 50, 32, generator=generator).half(),
    )


def test_the_three_paths_are_one_batch_and_a_path_is_a_mask() -> None:
    model, cache = tiny_model(), small_cache()
    assert model.adapter is not None
    audio = emotion.hear(model, cache)
    batch = emotion.adapter_batch(model, cache, audio, np.arange(5), np.random.default_rng(1))
    with torch.no_grad():
        together = emotion.all_paths(model.adapter, batch)
        for place, path in enumerate(PATHS):
            hears, sees = torch.tensor(path != "visual"), torch.tensor(path != "audio")
            alone = model.adapter(
                batch.audio,
                hears.expand(5, 5),
                batch.audio_age_s,
                batch.visual,
                batch.visual_mask & sees,
                batch.visual_age_s,
            )
            rows = slice(5 * place, 5 * place + 5)
            torch.testing.assert_close(
                together.valence_arousal[rows], alone.valence_arousal, atol=1e-5, rtol=1e-5
            )
            torch.testing.assert_close(
                together.visual_tokens[rows], alone.visual_tokens, atol=1e-4, rtol=1e-4
            )


def test_windows_with_fewer_pictures_keep_the_newest_and_the_ages_fall_towards_now() -> None:
    model, cache = tiny_model(), small_cache()
    audio = emotion.hear(model, cache)
    rng, fewer = np.random.default_rng(0), 0
    for _ in range(10):
        batch = emotion.adapter_batch(model, cache, audio, np.arange(5), rng)
        mask, age = batch.visual_mask.unflatten(1, (4, 4)), batch.visual_age_s.unflatten(1, (4, 4))
        assert (mask == mask[..., :1]).all()  # a picture is there with all its tokens
        assert (age == age[..., :1]).all()
        assert mask[:, -1].all()
        assert (mask[:, 1:, 0] >= mask[:, :-1, 0]).all()
        torch.testing.assert_close(age[:, :-1, 0] - age[:, 1:, 0], torch.full((5, 3), 0.4))
        assert ((age[:, -1] >= 0) & (age[:, -1] < 0.1)).all()
        fewer += int((~mask).any())
        for row in range(5):
            work = cache.works[row]
            torch.testing.assert_close(batch.affect[row], torch.tensor([work.valence, work.arousal]).float())
    assert fewer > 0


def test_an_audio_tokens_age_is_that_of_its_end() -> None:
    ages = emotion.audio_token_ages_s(tiny_model())
    torch.testing.assert_close(ages, torch.tensor([0.8, 0.6, 0.4, 0.2, 0.0]), atol=1e-6, rtol=0)


def test_the_window_cache_is_made_once_and_anew_for_another_base(tmp_path: Path) -> None:
    model = tiny_model(audio=False, adapter=False)
    first = cached_windows(model, "a", "train", 2, 0, tmp_path)
    assert first.visual.shape == (2, 4, 4, 64)
    assert first.log_mel.shape == (2, 50, 32)
    again = cached_windows(tiny_model(audio=False, adapter=False, seed=9), "a", "train", 2, 0, tmp_path)
    assert torch.equal(first.visual, again.visual)  # read, not computed
    other = cached_windows(tiny_model(audio=False, adapter=False, seed=9), "b", "train", 2, 0, tmp_path)
    assert not torch.equal(first.visual, other.visual)
    assert torch.equal(first.log_mel, other.log_mel)
    assert len(list(tmp_path.iterdir())) == 2


def test_stage_1_starts_at_the_scale_of_the_visual_tokens(runs: Runs) -> None:
    model = vg_align.with_audio_pathway(load_checkpoint(runs.whole / "base"), tiny_config()).eval()
    assert model.audio is not None
    clip = tiny_clip()
    with torch.no_grad():
        heard = model.audio(torch.randn(4, 50, 32)).norm(dim=-1).mean().item()
        pictures = np.stack(
            [prepare_frame(frame, model.config.front_end.image) for frame in clip.frames[::5]]
        )
        seen = model.vision(torch.from_numpy(pictures)).norm(dim=-1).mean().item()
    assert heard == pytest.approx(seen, rel=0.5)
    assert not any(p.requires_grad for p in model.base.parameters())


def test_augmentation_leaves_its_input_alone_and_stays_weak() -> None:
    mel = torch.randn(6, 50, AST_LOG_MEL.n_mels)
    before = mel.clone()
    changed = vg_align.augmented(mel, np.random.default_rng(0))
    assert torch.equal(mel, before)
    shift = (changed - mel).flatten(1).median(dim=1).values
    assert (shift.abs() <= 0.05 + 1e-6).all()
    assert len(set(shift.tolist())) == 6
    masked = ((changed - mel - shift[:, None, None]).abs() > 1e-5).float().mean()
    assert 0 < masked < 9 / 50 + 3 / 128


def test_the_disposable_head_is_taught_only_what_the_teacher_named() -> None:
    readout = torch.zeros(3, len(CONTENT_CLASSES) + 2)
    nothing = vg_align.Views(torch.tensor([-1, -1, -1]), torch.full((3, 2), torch.nan))
    assert vg_align.view_loss(readout, nothing, [0, 1, 2]).item() == 0.0
    one = vg_align.Views(
        torch.tensor([-1, 4, -1]), torch.tensor([[torch.nan, torch.nan], [0.8, torch.nan], [0.4, 0.4]])
    )
    expected = 0.3 * math.log(len(CONTENT_CLASSES)) + 2 * 0.8**2
    assert vg_align.view_loss(readout[:2], one, [0, 1]).item() == pytest.approx(expected, rel=1e-5)


def test_the_teachers_views_are_its_own_answers(runs: Runs) -> None:
    [file] = (runs.whole / "align.training").glob("views-*.safetensors")
    index = load_file(file)["index"]
    assert index.shape[0] == 3
    assert index.min() >= -1
    assert index[0].max() < len(CONTENT_CLASSES)
    assert index[1:].max() < len(prompts.VALENCE_WORDS)
