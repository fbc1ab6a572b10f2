"""``vaemotion gguf --adapter``: the file is that of the merged model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.published_folders import write_vlm
from vaemotion.cli.main import main

MODULE = "model.text_model.layers.0.self_attn.q_proj"


def test_the_file_is_that_of_the_merged_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_vlm(tmp_path / "base" / "model", torch_dtype="float32")
    tensors = load_file(base / "model.safetensors")
    a, b = (
        torch.randn(2, tensors[f"{MODULE}.weight"].shape[1]),
        torch.randn(len(tensors[f"{MODULE}.weight"]), 2),
    )
    adapter, merged = tmp_path / "adapter", tmp_path / "merged" / "model"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 4}))
    factors = {f"base_model.model.{MODULE}.lora_{part}.weight": value for part, value in (("A", a), ("B", b))}
    save_file(factors, adapter / "adapter_model.safetensors")
    shutil.copytree(base, merged)
    tensors[f"{MODULE}.weight"] += 2 * (b @ a)
    save_file(tensors, merged / "model.safetensors")

    def written(folder: Path, name: str, *words: str) -> bytes:
        out = tmp_path / name
        assert main(["gguf", str(folder), "--out", str(out), "--type", "F16", "--text", "none", *words]) == 0
        return out.read_bytes()

    plain = written(base, "plain.gguf")
    assert written(base, "adapted.gguf", "--adapter", str(adapter)) == written(merged, "merged.gguf") != plain

    shutil.copy(adapter / "adapter_model.safetensors", base)
    capsys.readouterr()
    assert (
        main(["gguf", str(base), "--out", str(tmp_path / "no.gguf"), "--type", "F16", "--text", "none"]) == 2
    )
    assert "holds an adapter beside its weights" in capsys.readouterr().err
    assert not (tmp_path / "no.gguf").exists()
