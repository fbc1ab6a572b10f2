"""Checkpoints: exact round trips, and one helpful sentence for every defect of a folder."""

from __future__ import annotations

import json
import resource
import signal
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import tiny_model
from vaemotion.contract.bundle import sha256_of
from vaemotion.contract.emotions import EMOTIONS
from vaemotion.contract.files import WriteError
from vaemotion.model.checkpoint import (
    COMPONENT_DTYPE,
    CheckpointError,
    components,
    load_checkpoint,
    read_config,
    round_in_place,
    save_checkpoint,
    write_tensors,
)
from vaemotion.model.emo_adapter import EmoAdapter, EmoAdapterConfig
from vaemotion.model.vaemotion_llm import VAEmotionLLM

FILES = ["base.safetensors", "audio.safetensors", "adapter.safetensors", "tokenizer.json"]


def rounded(model: VAEmotionLLM) -> VAEmotionLLM:
    for name, part in components(model).items():
        round_in_place(part, COMPONENT_DTYPE[name])
    return model


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_checkpoint(rounded(tiny_model()), tmp_path / "checkpoint", {"name": "tiny"}, "Apache-2.0")
    return tmp_path / "checkpoint"


def edit(checkpoint: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = checkpoint / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


def replace_tensors(checkpoint: Path, name: str, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the tensors in a component's file, and its hash with them."""
    file = checkpoint / f"{name}.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    edit(checkpoint, lambda c: c["components"][name].update(sha256=sha256_of(file)))


def test_what_is_saved_is_loaded_exactly(checkpoint: Path) -> None:
    saved, loaded = rounded(tiny_model()), load_checkpoint(checkpoint)
    assert not loaded.training
    assert loaded.config == saved.config
    assert loaded.tokenizer.to_str() == saved.tokenizer.to_str()
    states = saved.state_dict(), loaded.state_dict()
    assert states[0].keys() == states[1].keys()
    for key, tensor in states[0].items():
        assert states[1][key].dtype == torch.float32
        assert torch.equal(states[1][key], tensor), key


def test_a_loaded_model_computes_bit_for_bit_what_the_saved_one_did(checkpoint: Path) -> None:
    results = []
    for model in (rounded(tiny_model()), load_checkpoint(checkpoint)):
        with torch.no_grad():
            audio = model.audio_pathway(torch.ones(1, 50, 32))
            visual = model.vision(torch.ones(1, 3, 24, 24))
            text = model.text_batch(["What is this?"], ["rooster"])
            results.append(model.answer_logits(model.media_embeddings(visual, audio, 1), text))
    assert torch.equal(*results)


def test_saving_what_was_loaded_writes_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    save_checkpoint(load_checkpoint(checkpoint), tmp_path / "again", {"name": "tiny"}, "Apache-2.0")
    for name in [*FILES, "config.json"]:
        assert (tmp_path / "again" / name).read_bytes() == (checkpoint / name).read_bytes(), name


@pytest.mark.parametrize(("audio", "adapter"), [(False, False), (True, False)])
def test_a_checkpoint_of_an_earlier_stage_has_only_its_parts(
    audio: bool, adapter: bool, tmp_path: Path
) -> None:
    save_checkpoint(tiny_model(audio=audio, adapter=adapter), tmp_path / "c", {}, "Apache-2.0")
    loaded = load_checkpoint(tmp_path / "c")
    assert (loaded.audio is not None, loaded.adapter is not None) == (audio, adapter)


def test_the_config_names_license_lineage_and_each_files_hash(checkpoint: Path) -> None:
    config = read_config(checkpoint)
    assert config["licence"] == "Apache-2.0"
    assert config["lineage"] == {"name": "tiny"}
    assert sorted(entry["file"] for entry in config["components"].values()) == sorted(FILES)
    for entry in config["components"].values():
        assert sha256_of(checkpoint / entry["file"]) == entry["sha256"]


def test_no_file_in_the_folder_is_a_pickle_and_everybody_may_read_it(checkpoint: Path) -> None:
    assert sorted(p.name for p in checkpoint.iterdir()) == sorted([*FILES, "config.json"])
    for file in checkpoint.iterdir():
        assert file.stat().st_mode & 0o044 == 0o044
        assert file.read_bytes()[:2] not in (b"PK", b"\x80\x02", b"\x80\x04")


def test_the_tied_lm_head_is_stored_once_and_tied_again(checkpoint: Path) -> None:
    stored = load_file(checkpoint / "base.safetensors")
    assert sum(tensor.shape == (384, 64) for tensor in stored.values()) == 1
    loaded = load_checkpoint(checkpoint).base
    assert loaded.lm_head.weight.data_ptr() == loaded.model.get_input_embeddings().weight.data_ptr()


def test_a_checkpoint_that_is_older_than_the_names_of_emotions_has_the_nine(checkpoint: Path) -> None:
    def as_before(config: dict[str, Any]) -> None:
        adapter = config["model"]["adapter"]
        assert adapter.pop("emotions") == list(EMOTIONS)
        del adapter["shared_enhancer"]
        adapter["n_emotions"] = 9

    edit(checkpoint, as_before)
    assert load_checkpoint(checkpoint).emo_adapter.config == EmoAdapterConfig()
    edit(checkpoint, lambda config: config["model"]["adapter"].update(n_emotions=8))
    with pytest.raises(CheckpointError, match=r"adapter\.n_emotions must be 9, got 8"):
        load_checkpoint(checkpoint)


def test_a_shared_enhancer_is_stored_once_and_shared_again(tmp_path: Path) -> None:
    model = tiny_model(adapter=False)
    config = EmoAdapterConfig(emotions=("awe", "saudade"), shared_enhancer=True)
    model.config = replace(model.config, adapter=config)
    model.adapter = EmoAdapter(config, model.width)
    save_checkpoint(rounded(model), tmp_path / "c", {}, "MIT")
    names = load_file(tmp_path / "c" / "adapter.safetensors")
    assert not [name for name in names if name.startswith("visual_enhancer")]
    loaded = load_checkpoint(tmp_path / "c").emo_adapter
    assert loaded.visual_enhancer is loaded.audio_enhancer
    assert torch.equal(loaded.audio_enhancer.down.weight, model.adapter.audio_enhancer.down.weight)
    assert loaded.heads[-1].out_features == 2 * (4 + 2)


def test_saving_twice_replaces_the_first_and_keeps_what_is_no_part_of_it(checkpoint: Path) -> None:
    (checkpoint / "README.md").write_text("the card")
    (checkpoint / "notes.txt").write_text("mine")
    save_checkpoint(rounded(tiny_model(adapter=False, seed=1)), checkpoint, {"name": "second"}, "MIT")
    assert sorted(p.name for p in checkpoint.iterdir()) == [
        "README.md",
        "audio.safetensors",
        "base.safetensors",
        "config.json",
        "notes.txt",
        "tokenizer.json",
    ]
    assert (checkpoint / "README.md").read_text() == "the card"
    assert (checkpoint / "notes.txt").read_text() == "mine"
    assert read_config(checkpoint)["licence"] == "MIT"
    assert load_checkpoint(checkpoint).adapter is None
    assert [p.name for p in checkpoint.parent.iterdir()] == ["checkpoint"]


def test_an_interrupted_save_leaves_the_old_checkpoint_whole(checkpoint: Path) -> None:
    """Interrupted at the last moment: by a lineage that cannot be written."""
    before = {p.name: p.read_bytes() for p in checkpoint.iterdir()}
    with pytest.raises(TypeError):
        save_checkpoint(tiny_model(seed=1), checkpoint, {"bad": object()}, "MIT")
    assert {p.name: p.read_bytes() for p in checkpoint.iterdir()} == before
    save_checkpoint(tiny_model(seed=1), checkpoint, {}, "MIT")  # remains of the interruption are no obstacle
    assert [p.name for p in checkpoint.parent.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_byte_is_found_and_its_file_named(checkpoint: Path, name: str) -> None:
    content = bytearray((checkpoint / name).read_bytes())
    content[-3] ^= 1
    (checkpoint / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name} is damaged.*copy the checkpoint again"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_named(checkpoint: Path, name: str) -> None:
    (checkpoint / name).write_bytes((checkpoint / name).read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=f"{name} is damaged"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        load_checkpoint(checkpoint)


def test_a_file_that_is_not_safetensors_is_refused_even_with_the_right_hash(checkpoint: Path) -> None:
    file = checkpoint / "adapter.safetensors"
    file.write_bytes(b"\x80\x04 a pickle, say")
    edit(checkpoint, lambda c: c["components"]["adapter"].update(sha256=sha256_of(file)))
    with pytest.raises(CheckpointError, match=r"adapter.safetensors cannot be read as safetensors"):
        load_checkpoint(checkpoint)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(checkpoint: Path) -> None:
    replace_tensors(checkpoint, "adapter", lambda t: t.update(queries=torch.zeros(8, 32)))
    with pytest.raises(CheckpointError, match=r"'queries' has shape \(8, 32\), the config says \(8, 64\)"):
        load_checkpoint(checkpoint)


def test_an_unknown_tensor_is_named(checkpoint: Path) -> None:
    replace_tensors(checkpoint, "audio", lambda t: t.update(extra=torch.zeros(3)))
    with pytest.raises(CheckpointError, match=r"'extra'.*no such tensor"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize("name", ["base", "audio", "adapter"])
def test_a_missing_tensor_is_named(checkpoint: Path, name: str) -> None:
    gone: list[str] = []
    replace_tensors(checkpoint, name, lambda t: gone.append(sorted(t)[0]) or t.pop(gone[0]))  # type: ignore[func-returns-value]
    with pytest.raises(CheckpointError, match=f"lacks 1 tensors, the first is '{gone[0]}'"):
        load_checkpoint(checkpoint)


def test_another_models_weights_are_refused(checkpoint: Path) -> None:
    edit(checkpoint, lambda c: c["model"]["vlm"]["text_config"].update(intermediate_size=128))
    with pytest.raises(CheckpointError, match=r"config\.json and weights are of different models"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize("version", [0, 2, None, "1"])
def test_another_schema_version_is_refused_with_the_way_out(checkpoint: Path, version: object) -> None:
    edit(checkpoint, lambda c: c.update(schema_version=version))
    with pytest.raises(CheckpointError, match=rf"schema version {version}.*reads 1; train again"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize("path", ["../outside.safetensors", "/etc/passwd", "sub/base.safetensors", "..", ""])
def test_a_file_outside_the_folder_is_never_read(checkpoint: Path, path: str) -> None:
    outside = checkpoint.parent / "outside.safetensors"
    outside.write_bytes((checkpoint / "base.safetensors").read_bytes())
    edit(checkpoint, lambda c: c["components"]["base"].update(file=path))
    with pytest.raises(CheckpointError):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["components"].pop("adapter"),
        lambda c: c["components"].pop("tokenizer"),
        lambda c: c.pop("components"),
        lambda c: c.update(components=[]),
        lambda c: c["components"]["audio"].pop("file"),
        lambda c: c["components"]["audio"].pop("sha256"),
        lambda c: c.pop("model"),
        lambda c: c["model"].pop("front_end"),
        lambda c: c["model"]["front_end"]["log_mel"].update(dither=1),
        lambda c: c["model"]["adapter"].update(color="red"),
        lambda c: c["model"]["audio"]["encoder"].update(kind="wav2vec2"),
        lambda c: c["model"].update(prompt=None),
        lambda c: c["model"].update(vlm=None),
    ],
    ids=lambda _: "",
)
def test_a_config_that_lacks_or_garbles_something_is_a_checkpoint_error(
    checkpoint: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    edit(checkpoint, change)
    with pytest.raises(CheckpointError, match=r"\w+ \w+"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}"])
def test_a_file_that_is_not_a_config_is_refused(checkpoint: Path, content: str) -> None:
    (checkpoint / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match="is not a checkpoint of this project"):
        load_checkpoint(checkpoint)


def test_a_folder_that_is_not_there_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere is not a checkpoint.*vaemotion train"):
        load_checkpoint(tmp_path / "nowhere")


def test_tensors_are_written_readable_for_others_and_a_full_disk_is_said(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    write_tensors(file, {"x": torch.zeros(10)}, {"a": "b"})
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(WriteError, match=rf"cannot write {file}: .*File too large"):
            write_tensors(file, {"x": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert load_file(file)["x"].shape == (10,)
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
