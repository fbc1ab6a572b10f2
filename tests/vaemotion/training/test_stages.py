"""The three stages end to end at a test's size: base, align, emotion, each interrupted and resumed."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny import CONFIG_FILE, SMALL, tiny_clip, tiny_config, tiny_model
from vaemotion.contract.bundle import sha256_of
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.front_end import SILENT_PADDING, ZERO_PADDING
from vaemotion.contract.image import prepare_frame
from vaemotion.model.checkpoint import load_checkpoint, read_config
from vaemotion.training import base_vlm, emotion, vg_align
from vaemotion.training.config import read_training_config
from vaemotion.training.loop import STATE_FILE

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
        "align.clips=['art:6']",
        # A base of four steps has no opinions.
        "align.empty_bits=-1.0",
        "align.incoherent_bits=1.0",
        "align.repeat_share=1.0",
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
        data = emotion.prepare(model, config, hashes(runs / "align")["base"])
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


def test_stage_1_pads_with_silence_whatever_its_base_was_made_with() -> None:
    base = tiny_model(audio=False, adapter=False)
    base.config = replace(base.config, front_end=replace(base.config.front_end, version=ZERO_PADDING))
    aligned = vg_align.with_audio_pathway(base, tiny_config())
    assert aligned.config.front_end.version == SILENT_PADDING


@pytest.mark.parametrize(
    ("setting", "difference"),
    [
        ("windows.language_frames=1", "windows.language_frames = 2 (here 1)"),
        ("log_mel.low_hz=30", "log_mel.low_hz = 20.0 (here 30.0)"),
    ],
)
def test_stage_1_refuses_a_base_of_another_front_end(setting: str, difference: str) -> None:
    base = tiny_model(audio=False, adapter=False)
    with pytest.raises(UsageError, match=f"the base was made with {re.escape(difference)}; make it again"):
        vg_align.with_audio_pathway(base, tiny_config(setting))
    assert base.audio is None


def test_stage_1_starts_at_the_scale_of_the_visual_tokens(runs: Runs) -> None:
    model = vg_align.with_audio_pathway(load_checkpoint(runs.whole / "base"), tiny_config()).eval()
    frames = [prepare_frame(frame, model.config.front_end.image) for frame in tiny_clip().frames[::5]]
    with torch.no_grad():
        audio_norm = model.audio_pathway(torch.randn(4, 50, 32)).norm(dim=-1).mean().item()
        visual_norm = model.vision(torch.from_numpy(np.stack(frames))).norm(dim=-1).mean().item()
    assert audio_norm == pytest.approx(visual_norm, rel=0.5)
    assert not any(p.requires_grad for p in model.base.parameters())


def test_an_unknown_pairing_is_refused() -> None:
    with pytest.raises(UserError, match="pairing must be synchronised, shifted or shuffled"):
        tiny_config('align.pairing="swapped"')
