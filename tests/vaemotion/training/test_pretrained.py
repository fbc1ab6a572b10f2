"""SmolVLM2 and AST from local folders: the real classes at a small size, through stage 1."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.published_folders import write_ast, write_vlm
from tests.tiny import CONFIG_FILE, SMALL, tiny_config
from vaemotion.cli.main import main
from vaemotion.contract.bundle import sha256_of
from vaemotion.contract.front_end import FrontEnd
from vaemotion.model.audio_encoders import AstEncoder
from vaemotion.model.checkpoint import CheckpointError, load_checkpoint, read_config, save_checkpoint
from vaemotion.model.pretrained import pretrained_audio_encoder, pretrained_base

SIDE = "image.side_px=48"


def front_end(*overrides: str) -> FrontEnd:
    config = tiny_config(SIDE, *overrides)
    return FrontEnd(config.log_mel, config.image, config.windows)


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vlm(tmp_path_factory.mktemp("published") / "SmolVLM2-256M")


@pytest.fixture(scope="module")
def ast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ast(tmp_path_factory.mktemp("published") / "ast")


def align(vlm: Path, ast: Path, settings: list[str], *words: str) -> int:
    """Run ``vaemotion train align`` from both folders and return the exit code."""
    changes = [word for setting in settings for word in ("--set", setting)]
    folders = ["--vlm", str(vlm), "--audio-encoder", str(ast)]
    return main(["train", "align", "--config", str(CONFIG_FILE), *changes, *folders, *words])


def short_run(runs: Path) -> list[str]:
    """Return the settings of a training of one step."""
    return [
        *SMALL,
        SIDE,
        "windows.audio_window_s=2.0",
        f"runs={runs}",
        "align.clips=['art:4']",
        *("align.empty_bits=-1.0", "align.incoherent_bits=1.0"),  # a random teacher has no opinions
        "align.optimisation.steps=1",
        "align.optimisation.batch=2",
        "align.optimisation.workers=0",
    ]


def test_stage_1_starts_from_both_and_leaves_the_base_as_it_was(vlm: Path, ast: Path, tmp_path: Path) -> None:
    assert align(vlm, ast, [*short_run(tmp_path), "align.optimisation.learning_rate=1e-6"]) == 0
    model = load_checkpoint(tmp_path / "align")
    source = load_file(vlm / "model.safetensors")
    # The base is stored in float16 and otherwise unchanged.
    for name, tensor in model.base.state_dict().items():
        assert torch.equal(tensor, source[name].half().float()), name
    assert isinstance(model.audio_pathway.encoder, AstEncoder)
    original = pretrained_audio_encoder(ast, front_end("windows.audio_window_s=2.0"))[1]
    for name, tensor in model.audio_pathway.encoder.state_dict().items():
        assert torch.allclose(tensor, original[name], atol=2e-3), name  # one tiny step, and float16
    assert model.audio_pathway(torch.zeros(1, 100, 32)).shape[2] == model.width


def test_a_checkpoint_names_its_base_and_holds_only_trained_parts(
    vlm: Path, ast: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The named base is verified whenever it is loaded."""
    moved = tmp_path / "SmolVLM2"
    shutil.copytree(vlm, moved)
    assert align(moved, ast, short_run(tmp_path / "runs")) == 0
    checkpoint = tmp_path / "runs" / "align"
    assert sorted(f.name for f in checkpoint.iterdir()) == [
        "audio.safetensors",
        "config.json",
        "tokenizer.json",
    ]
    entry = read_config(checkpoint)["components"]["base"]
    assert entry["files"] == {f: sha256_of(vlm / f) for f in ("config.json", "model.safetensors")}
    before = load_checkpoint(checkpoint)
    save_checkpoint(before, tmp_path / "again", {}, "Apache-2.0")  # as the next stage does
    assert read_config(tmp_path / "again")["components"]["base"]["sha256"] == entry["sha256"]
    assert not (tmp_path / "again" / "base.safetensors").exists()

    moved.rename(tmp_path / "elsewhere")
    with pytest.raises(
        CheckpointError, match=r"trained on the base SmolVLM2, and .* is missing; set VAEMOTION_BASE"
    ):
        load_checkpoint(checkpoint)
    monkeypatch.setenv("VAEMOTION_BASE", str(tmp_path / "elsewhere"))
    found = load_checkpoint(checkpoint)
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), before.parameters(), strict=True))
    weights = tmp_path / "elsewhere" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match=r"is not the base that .* was trained on"):
        load_checkpoint(checkpoint)


def test_a_merged_base_is_stored_with_the_checkpoint(vlm: Path, ast: Path, tmp_path: Path) -> None:
    """No folder holds it, so the checkpoint must; it is loaded again bit for bit."""
    module = "model.text_model.layers.0.self_attn.o_proj"
    stored = load_file(vlm / "model.safetensors")[module + ".weight"].float()
    torch.manual_seed(1)
    a, b = torch.randn(2, stored.shape[1]), torch.randn(stored.shape[0], 2)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 4}))
    prefix = f"base_model.model.{module}.lora_"
    save_file({f"{prefix}A.weight": a, f"{prefix}B.weight": b}, adapter / "adapter_model.safetensors")

    assert align(vlm, ast, short_run(tmp_path), "--adapter", str(adapter)) == 0
    checkpoint = tmp_path / "align"
    assert (checkpoint / "base.safetensors").is_file()
    assert read_config(checkpoint)["lineage"]["base"] == {"pretrained": vlm.name, "adapter": "adapter"}
    loaded, merged = load_checkpoint(checkpoint), pretrained_base(vlm, front_end(), adapter)
    assert all(
        torch.equal(tensor, merged.base.state_dict()[name])
        for name, tensor in loaded.base.state_dict().items()
    )
    expected = (stored + 2 * b @ a).half().float()
    torch.testing.assert_close(loaded.base.state_dict()[module + ".weight"], expected, atol=1e-2, rtol=1e-3)


def test_an_adapter_without_a_base_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "align", "--config", str(CONFIG_FILE), "--adapter", str(tmp_path)]
    assert main(words) == 2
    assert "--adapter goes with --vlm FOLDER" in capsys.readouterr().err


def test_a_folder_that_does_not_fit_is_told_in_one_sentence(
    vlm: Path, ast: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert align(vlm, ast, [*SMALL, SIDE, f"runs={tmp_path}"]) == 2
    assert "takes 100 frames of 32 mels, the configuration gives 50 of 32" in capsys.readouterr().err
    assert align(ast, ast, [*SMALL, SIDE, f"runs={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert "has model type 'audio-spectrogram-transformer'" in error
    assert "LOAD REPORT" not in error


def test_frames_stand_between_the_special_tokens_of_smolvlm2(vlm: Path) -> None:
    """The order is that of SmolVLM's own processor: fake, global, one place for each visual token, fake."""
    model = pretrained_base(vlm, front_end()).eval()
    visual = torch.randn(1, 8, model.width)  # two frames of four tokens
    image = "<image>" * 4
    text = "<|im_start|>User:" + 2 * f"<fake_token_around_image><global-img>{image}<fake_token_around_image>"
    expected = model.embed(torch.tensor([model.token_ids(text)]))
    places = torch.tensor([model.token_ids(text)]) == model.token_ids("<image>")[0]
    assert places.sum() == 8
    expected = expected.masked_scatter(places[..., None], visual)
    assert torch.equal(model.media_embeddings(visual, None, 1).embeddings, expected)
