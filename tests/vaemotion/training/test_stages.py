"""The three stages end to end at a test's size: base, align, emotion, each interrupted and resumed."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.spatial.distance import jensenshannon

from tests.tiny import CONFIG_FILE, SMALL, tiny_clip, tiny_config, tiny_model
from vaemotion.contract import prompts
from vaemotion.contract.audio import AST_LOG_MEL, SAMPLE_RATE_HZ, StreamingWindow
from vaemotion.contract.bundle import sha256_of
from vaemotion.contract.errors import UserError
from vaemotion.contract.front_end import PATHS, SILENT_PADDING, ZERO_PADDING
from vaemotion.contract.image import prepare_frame
from vaemotion.data.art.art import CONTENT_CLASSES, sample_work, synthesize, work_seed
from vaemotion.data.art.windows import window_log_mel
from vaemotion.evaluation.metrics import jensen_shannon
from vaemotion.model.checkpoint import load_checkpoint, read_config
from vaemotion.model.vaemotion_llm import VAEmotionLLM
from vaemotion.training import base_vlm, emotion, vg_align
from vaemotion.training.config import read_training_config
from vaemotion.training.loop import STATE_FILE
from vaemotion.training.ratings import RatedSet
from vaemotion.training.recordings import Recording
from vaemotion.training.teacher import (
    AUDIBLE_SHARES,
    DistillationSample,
    TeacherTargets,
    first_token_distribution,
    mean_level,
    visual_tokens,
)
from vaemotion.training.windows_cache import WindowCache, cached_windows, heard_s

STAGES = {"base": base_vlm.train, "align": vg_align.train, "emotion": emotion.train}


def overrides(runs: Path) -> list[str]:
    every = [
        f"{stage}.optimisation.{key}"
        for stage in STAGES
        for key in ("steps=4", "save_every=2", "log_every=1", "batch=4", "workers=0")
    ]
    return [
        *SMALL,
        *every,
        f"runs={runs}",
        "align.works=6",
        "emotion.works=6",
        "emotion.language_batch=2",
    ]


@dataclass(frozen=True)
class Runs:
    """A run without interruption, and one whose stages were interrupted in the middle and resumed."""

    whole: Path
    resumed: Path


def cut_short(stage: str, runs: Path) -> None:
    """Run the first half of a stage: the same configuration, interrupted after the first save."""
    config, working = read_training_config(CONFIG_FILE, overrides(runs)), runs / f"{stage}.training"
    if stage == "base":
        complete = base_vlm.run(base_vlm.new_model(config), config, working, resume=False, stop_after=2)
    elif stage == "align":
        base_hash = hashes(runs / "base")["base"]
        model = vg_align.with_audio_pathway(load_checkpoint(runs / "base"), config)
        align_data = vg_align.prepare(model, config, base_hash, working)
        complete = vg_align.run(model, align_data, config, working, resume=False, stop_after=2)
    else:
        model = load_checkpoint(runs / "align")
        cache = cached_windows(
            model, hashes(runs / "align")["base"], "train", config.emotion.works, config.seed, runs
        )
        data = emotion.EmotionData(cache, emotion.cached_audio_tokens(model, cache), [])
        model = emotion.with_adapter(model, data, config)
        complete = emotion.run(model, data, config, working, resume=False, stop_after=2)
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
def test_an_interrupted_stage_that_is_resumed_ends_in_the_same_bytes(runs: Runs, stage: str) -> None:
    assert hashes(runs.resumed / stage) == hashes(runs.whole / stage)
    for folder in (runs.whole, runs.resumed):
        log = (folder / f"{stage}.training" / "log.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in log] == [1, 2, 3, 4]


def test_align_leaves_the_bases_weights_as_they_are(runs: Runs) -> None:
    assert sha256_of(runs.whole / "align" / "base.safetensors") == sha256_of(
        runs.whole / "base" / "base.safetensors"
    )


@pytest.mark.parametrize("part", ["base.safetensors", "audio.safetensors", "tokenizer.json"])
def test_emotion_leaves_base_and_audio_pathway_as_they_are(runs: Runs, part: str) -> None:
    assert sha256_of(runs.whole / "emotion" / part) == sha256_of(runs.whole / "align" / part)


def test_every_stage_changes_its_weights(runs: Runs) -> None:
    config = tiny_config()
    fresh = base_vlm.new_model(config)
    trained = load_checkpoint(runs.whole / "emotion")
    key = "model.vision_model.encoder.layers.0.mlp.fc1.weight"
    assert (trained.base.state_dict()[key] - fresh.base.state_dict()[key]).abs().max() > 1e-4
    untrained = vg_align.with_audio_pathway(load_checkpoint(runs.whole / "base"), config).audio_pathway
    assert (trained.audio_pathway.delimiters - untrained.delimiters).abs().max() > 1e-5
    assert trained.emo_adapter.audio_enhancer.up.weight.abs().max() > 0
    assert not torch.equal(trained.emo_adapter.audio_whitening.matrix, torch.eye(64))


def test_the_lineage_grows_with_every_stage(runs: Runs) -> None:
    for count, stage in enumerate(STAGES, 1):
        lineage = read_config(runs.whole / stage)["lineage"]
        assert [s for s in STAGES if s in lineage] == list(STAGES)[:count]
        assert lineage[stage][stage]["optimisation"]["steps"] == 4


def test_a_loaded_model_has_the_weights_that_the_next_stage_trained_on(runs: Runs) -> None:
    """A stage rounds the model's weights when it ends, so that saving and loading round nothing more."""
    model = load_checkpoint(runs.whole / "align")
    for part in (model.base, model.audio_pathway):
        assert all(torch.equal(p, p.half().float()) for p in part.parameters())


def test_no_file_of_the_runs_is_a_pickle_or_half_written(runs: Runs) -> None:
    files = [p for p in runs.resumed.rglob("*") if p.is_file()]
    suffixes = {p.suffix for p in files if "tfevents" not in p.name}
    assert suffixes == {".safetensors", ".json", ".jsonl"}
    assert len([p for p in files if p.name == STATE_FILE]) == 3
    assert not [p for p in runs.resumed.rglob("*") if p.name.endswith((".tmp", ".old"))]


def test_another_out_folder_takes_its_training_state_along(runs: Runs, tmp_path: Path) -> None:
    """Two runs of a stage side by side never share a state."""
    for stage, train in STAGES.items():
        before = sha256_of(runs.whole / f"{stage}.training" / STATE_FILE)
        train(CONFIG_FILE, [*overrides(runs.whole), "seed=5"], tmp_path / f"my-{stage}", False)
        assert (tmp_path / f"my-{stage}.training" / STATE_FILE).is_file(), stage
        assert sha256_of(runs.whole / f"{stage}.training" / STATE_FILE) == before, stage


def test_a_stage_of_another_configuration_is_not_resumed(runs: Runs, tmp_path: Path) -> None:
    """Weights of one configuration are not taken for the result of another."""
    one = [*overrides(tmp_path), "base.optimisation.steps=2"]
    base_vlm.train(CONFIG_FILE, one, None, False)
    first = hashes(tmp_path / "base")["base"]
    try:
        base_vlm.train(CONFIG_FILE, [*one, "seed=9", "base.optimisation.learning_rate=0.01"], None, True)
    except UserError as refusal:
        assert "configuration" in str(refusal)  # noqa: PT017
    else:
        assert hashes(tmp_path / "base")["base"] != first


def test_the_teachers_answers_are_generated_once_and_are_its_own(runs: Runs) -> None:
    files = list((runs.whole / "align.training").glob("lessons-*.jsonl"))
    assert len(files) == 1
    settings, *rows = map(json.loads, files[0].read_text().splitlines())
    assert settings["settings"]["sampling_temperature"] == 0.7
    samples = [DistillationSample(**row) for row in rows]
    model = load_checkpoint(runs.whole / "align")
    cache = cached_windows(model, hashes(runs.whole / "base")["base"], "train", 6, 0, runs.whole)
    audible = {question.text for question in AUDIBLE_SHARES}
    assert {sample.question for sample in samples} <= audible
    assert "Which colors does it have?" not in audible
    greedy = 0
    for sample in samples:
        media = model.media_embeddings(visual_tokens(cache, [sample.window], sample.frame_count), None, 1)
        greedy += model.generate(media, sample.question) == [sample.answer]
    assert len(samples) // 4 <= greedy < len(samples)  # the others are sampled


def small_cache() -> WindowCache:
    works = tuple(sample_work(work_seed("train", i)) for i in range(5))
    generator = torch.Generator().manual_seed(0)
    return WindowCache(
        works,
        torch.randn(5, 4, 4, 64, generator=generator).half(),
        torch.randn(5, 50, 32, generator=generator).half(),
    )


def small_rows(*sets: RatedSet, **changes: object) -> tuple[VAEmotionLLM, WindowCache, emotion.Rows]:
    model, cache = tiny_model(), small_cache()
    config = tiny_config("emotion.optimisation.batch=5")
    config = replace(config, emotion=replace(config.emotion, **changes))
    data = emotion.EmotionData(cache, emotion.cached_audio_tokens(model, cache), list(sets))
    return model, cache, emotion.Rows(model, data, config)


def rated_set(path: str, construct: int, items: int = 7) -> RatedSet:
    """Make a set of items that are rated by arousal alone."""
    tokens = torch.randn(items, 3, 5 if path == "audio" else 4, 64).half()
    affect = torch.stack([torch.full((items,), torch.nan), torch.linspace(-1, 1, items)], dim=1)
    return RatedSet(f"rated-{path}", path, construct, tokens, affect, torch.full((items, 9), torch.nan))


def test_the_three_paths_are_one_batch_and_a_path_is_a_mask() -> None:
    model, _, rows = small_rows()
    batch = rows.collate(range(5))["rows"]
    assert batch.path.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    for place, path in enumerate(PATHS):
        mine = slice(5 * place, 5 * place + 5)
        assert batch.audio_mask[mine].all().item() == (path != "visual")
        assert batch.visual_mask[mine].any().item() == (path != "audio")
        assert torch.equal(batch.affect[mine], batch.affect[:5])
        assert torch.equal(batch.audio[mine], batch.audio[:5])
    with torch.no_grad():
        together = model.emo_adapter(*batch.inputs())
        alone = model.emo_adapter(*(part[5:10] for part in batch.inputs()))
        torch.testing.assert_close(
            together.valence_arousal[5:10], alone.valence_arousal, atol=1e-5, rtol=1e-5
        )


def test_rated_items_have_their_own_path_and_their_own_construct() -> None:
    _, _, rows = small_rows(rated_set("audio", 0), rated_set("visual", 1))
    batch = rows.collate(range(5))["rows"]
    sounds, images = slice(15, 20), slice(20, 25)
    assert batch.path[sounds].tolist() == [0] * 5
    assert batch.path[images].tolist() == [1] * 5
    assert not batch.visual_mask[sounds].any()
    assert not batch.audio_mask[images].any()
    assert batch.construct.tolist() == [0] * 20 + [1] * 5
    assert batch.source.tolist() == [0] * 15 + [1] * 5 + [2] * 5
    assert torch.isnan(batch.affect[15:, 0]).all()
    assert torch.isfinite(batch.affect[15:, 1]).all()
    newest = batch.visual_mask[images].unflatten(1, (4, 4))[:, -1]
    assert newest.all()  # an image alone is the newest frame of its window


@pytest.mark.parametrize(("construct", "other"), [(0, 1), (1, 0)])
def test_each_construct_has_its_own_head_and_missing_labels_give_no_gradient(
    construct: int, other: int
) -> None:
    model, _, rows = small_rows(rated_set("visual", construct))
    batch = rows.collate(range(5))["rows"]
    only = emotion.AdapterBatch(*(getattr(batch, f.name)[15:] for f in fields(batch)))
    out = model.emo_adapter(*only.inputs())
    emotion.supervisor_loss(out, only, tiny_config().emotion)[0].backward()
    gradient = model.emo_adapter.heads[-1].weight.grad
    assert gradient is not None
    gradient = gradient.unflatten(0, (2, 13))  # construct; valence, arousal, two spreads, nine emotions
    assert not gradient[other].any()
    assert gradient[construct, 1].any()  # arousal
    assert not gradient[construct, 0].any()  # nobody rated valence
    assert not gradient[construct, 4:].any()


def test_windows_with_fewer_frames_keep_the_newest_and_their_ages_fall_towards_0() -> None:
    _, cache, rows = small_rows()
    fewer = 0
    for step in range(10):
        collated = rows.collate(range(5 * step, 5 * step + 5))
        batch = collated["rows"]
        mask = batch.visual_mask[10:].unflatten(1, (4, 4))
        age = batch.visual_age_s[10:].unflatten(1, (4, 4))
        assert (mask == mask[..., :1]).all()  # a frame is present with all its tokens
        assert (age == age[..., :1]).all()
        assert mask[:, -1].all()
        assert (mask[:, 1:, 0] >= mask[:, :-1, 0]).all()
        torch.testing.assert_close(age[:, :-1, 0] - age[:, 1:, 0], torch.full((5, 3), 0.4, dtype=age.dtype))
        assert ((age[:, -1] >= 0) & (age[:, -1] < 0.1)).all()
        fewer += int((~mask).any())
        for row, window in enumerate(collated["windows"]):
            work = cache.works[window]
            torch.testing.assert_close(batch.affect[row], torch.tensor([work.valence, work.arousal]).float())
    assert fewer > 0


def test_without_token_ages_every_token_is_0_s_old() -> None:
    _, _, rows = small_rows(rated_set("visual", 0), token_ages=False)
    batch = rows.collate(range(5))["rows"]
    assert not batch.audio_age_s.any()
    assert not batch.visual_age_s.any()


def test_an_audio_tokens_age_is_that_of_its_end() -> None:
    ages = emotion.audio_token_ages_s(tiny_model())
    torch.testing.assert_close(ages, torch.tensor([0.8, 0.6, 0.4, 0.2, 0.0]), atol=1e-6, rtol=0)


def test_the_window_cache_is_computed_once_for_each_base(tmp_path: Path) -> None:
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


def test_a_quarter_of_the_windows_has_just_begun_to_fill_in_models_that_pad_with_silence() -> None:
    works = [sample_work(work_seed("train", index)) for index in range(400)]
    front_end = tiny_model().config.front_end
    drawn = np.array([heard_s(work, front_end, 0) for work in works])
    filling = drawn[np.isfinite(drawn)]
    assert 0.2 < len(filling) / len(drawn) < 0.3
    windows = front_end.windows
    assert filling.min() >= windows.audio_stride_s
    assert filling.max() <= windows.audio_window_s
    assert (filling < front_end.least_sound_s).any()  # short files, too
    assert all(heard_s(work, replace(front_end, version=ZERO_PADDING), 0) == math.inf for work in works)


@pytest.mark.parametrize("version", [ZERO_PADDING, SILENT_PADDING])
@pytest.mark.parametrize("sound_s", [0.15, 0.6, 1.0, math.inf])
def test_a_training_window_is_what_a_device_hears_that_began_then(version: int, sound_s: float) -> None:
    front_end = replace(tiny_model().config.front_end, version=version)
    work = sample_work(work_seed("train", 3))
    heard = synthesize(work, 2.0)[-round(min(sound_s, 2.0) * SAMPLE_RATE_HZ) :]
    device = StreamingWindow(front_end.audio_window_frames, front_end.log_mel, front_end.sound_padding)
    for block in np.array_split(heard, 7):
        device.push(block)
    window = window_log_mel(work, 2.0, front_end, sound_s)
    np.testing.assert_allclose(window, device.newest, atol=1e-5)


def test_stage_1_pads_with_silence_whatever_its_base_was_made_with() -> None:
    base = tiny_model(audio=False, adapter=False)
    base.config = replace(base.config, front_end=replace(base.config.front_end, version=ZERO_PADDING))
    aligned = vg_align.with_audio_pathway(base, tiny_config())
    assert aligned.config.front_end.version == SILENT_PADDING


def test_stage_1_starts_at_the_scale_of_the_visual_tokens(runs: Runs) -> None:
    model = vg_align.with_audio_pathway(load_checkpoint(runs.whole / "base"), tiny_config()).eval()
    frames = [prepare_frame(frame, model.config.front_end.image) for frame in tiny_clip().frames[::5]]
    with torch.no_grad():
        audio_norm = model.audio_pathway(torch.randn(4, 50, 32)).norm(dim=-1).mean().item()
        visual_norm = model.vision(torch.from_numpy(np.stack(frames))).norm(dim=-1).mean().item()
    assert audio_norm == pytest.approx(visual_norm, rel=0.5)
    assert not any(p.requires_grad for p in model.base.parameters())


def test_weak_augmentation_leaves_its_input_alone_and_changes_little() -> None:
    rng = np.random.default_rng(0)
    mel = rng.standard_normal((6, 50, AST_LOG_MEL.n_mels)).astype(np.float32)
    before = mel.copy()
    changed = np.stack([vg_align.weak_augmentation(row, rng) for row in mel])
    assert np.array_equal(mel, before)
    shift = np.median((changed - mel).reshape(6, -1), axis=1)
    assert (np.abs(shift) <= 0.05 + 1e-6).all()
    assert len(set(shift.tolist())) == 6
    masked = (np.abs(changed - mel - shift[:, None, None]) > 1e-5).mean()
    assert 0 < masked < 9 / 50 + 3 / 128


def test_the_auxiliary_head_learns_from_the_teachers_targets_alone() -> None:
    model, cache = tiny_model(), small_cache()
    targets = TeacherTargets(
        torch.tensor([-1, 4, -1, 4, 4]), torch.ones(5, dtype=torch.bool), torch.full((5, 2), 0.8)
    )
    alignment = vg_align.Alignment(model, vg_align.AlignData(cache, [], targets, []), tiny_config())
    with torch.no_grad():
        alignment.auxiliary.out.weight.zero_()
        alignment.auxiliary.out.bias.zero_()
    audio, matched = torch.randn(2, 5, 64), torch.tensor([False, False])
    # The teacher named no class, and matched pairs have no affect in common.
    assert alignment.auxiliary_loss(audio, [0, 2], matched).item() == 0.0
    content = math.log(len(CONTENT_CLASSES))
    assert alignment.auxiliary_loss(audio, [1, 3], matched).item() == pytest.approx(content, rel=1e-5)
    with_affect = alignment.auxiliary_loss(audio, [1, 3], torch.tensor([True, False])).item()
    assert with_affect == pytest.approx(content + 4 * 0.8**2, rel=1e-5)


def test_the_teachers_targets_are_its_own_answers(runs: Runs) -> None:
    [file] = (runs.whole / "align.training").glob("views-*.safetensors")
    targets = TeacherTargets(**load_file(file))
    model = load_checkpoint(runs.whole / "align")
    cache = cached_windows(model, hashes(runs.whole / "base")["base"], "train", 6, 0, runs.whole)
    assert targets.content.min() >= -1
    assert targets.content.max() < len(CONTENT_CLASSES)
    media = model.media_embeddings(visual_tokens(cache, range(6), 2), None, 6)
    expected = mean_level(model, media, prompts.VALENCE.text, prompts.VALENCE_WORDS)
    torch.testing.assert_close(targets.affect[:, 0], expected)
    assert (targets.affect.abs() <= 0.8).all()  # between the lowest level's middle and the highest's


def test_coherence_compares_the_distributions_of_the_answers_first_token() -> None:
    one, other = torch.tensor([[0.9, 0.1, 0.0]]), torch.tensor([[0.0, 0.1, 0.9]])
    assert jensen_shannon(one, one).item() == pytest.approx(0, abs=1e-7)
    expected = jensenshannon(one[0].numpy(), other[0].numpy(), base=2) ** 2
    assert jensen_shannon(one, other).item() == pytest.approx(expected, rel=1e-5)
    model = tiny_model()
    media = model.media_embeddings(torch.randn(2, 4, 64), None, 2)
    begun = first_token_distribution(model, media, "What is this?")
    question = model.embed(torch.tensor(model.token_ids(model.template.question_text("What is this?"))))
    sequence = torch.cat([media, question.expand(2, -1, -1)], dim=1)
    with torch.no_grad():
        logits = model.base.lm_head(
            model.base.model.text_model(inputs_embeds=sequence).last_hidden_state[:, -1]
        )
    torch.testing.assert_close(begun, logits.softmax(-1), atol=1e-5, rtol=1e-4)


def test_controls_break_the_pairs_and_recordings_get_windows_of_their_class() -> None:
    model, cache = tiny_model(), small_cache()
    targets = TeacherTargets(
        torch.zeros(5, dtype=torch.long), torch.ones(5, dtype=torch.bool), torch.zeros(5, 2)
    )
    samples = [DistillationSample(window, 1, prompts.CONTENT.text, "x") for window in range(5)]
    present = {work.content for work in cache.works}
    recordings = [
        Recording(
            CONTENT_CLASSES.index(name), np.random.default_rng(0).standard_normal((70, 32)).astype(np.float32)
        )
        for name in sorted(present)
    ]
    config = tiny_config("align.optimisation.batch=40", "align.recordings_share=0.5")
    data = vg_align.AlignData(cache, samples, targets, recordings)
    pairs = vg_align.Pairs(data, config, model.config.front_end)
    batch = pairs.collate(range(40))
    matched = ~batch["synchronized"]
    assert 5 < matched.sum() < 35
    original = [cache.log_mel[sample.window].float().numpy() for sample in batch["samples"]]

    def distance(windows: np.ndarray) -> float:
        pairs = zip(windows, original, batch["synchronized"], strict=True)
        return float(np.mean([np.median(np.abs(a - b)) for a, b, synchronized in pairs if synchronized]))

    assert distance(batch["log_mel"].numpy()) < 0.06  # the window's own sound, apart from the gain
    for pairing in ("shuffled", "shifted"):
        config = replace(config, align=replace(config.align, pairing=pairing))
        broken = vg_align.Pairs(data, config, model.config.front_end).collate(range(40))
        assert distance(broken["log_mel"].numpy()) > 0.3


def test_an_unknown_pairing_is_refused() -> None:
    with pytest.raises(UserError, match="pairing must be synchronised, shifted or shuffled"):
        tiny_config('align.pairing="swapped"')
