"""The importance matrix against torch, its file, and its refusals."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from calibration.importance import collect_importance, read_importance, write_importance
from runtime.engines.llama import LanguageModelError
from tests.llama_fixture import TinyLlama, make_tiny_llama

pytest.importorskip("llama_cpp", reason="needs the extra `llm`")


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def tiny(request: pytest.FixtureRequest) -> TinyLlama:
    return make_tiny_llama(tied=request.param, hidden_size=96, intermediate_size=160)


@pytest.fixture(scope="module")
def path(tiny: TinyLlama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("importance") / "m.gguf"
    tiny.write(path)
    return path


def prompts(tiny: TinyLlama) -> list[np.ndarray]:
    """Return prompts of token embeddings with other vectors between them; the last needs two batches."""
    generator = np.random.default_rng(0)
    tokens = [tiny.token_embeddings[generator.integers(0, 400, n)] for n in (9, 5, 30)]
    others = [generator.normal(size=(n, 96)).astype(np.float32) * 3 for n in (4, 1, 520)]
    return [np.concatenate([a[:3], b, a[3:]]) for a, b in zip(tokens, others, strict=True)]


def squares_seen_by_torch(tiny: TinyLlama, rows: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Sum the squared inputs of each linear layer, by forward hooks, under GGUF names."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, tiny.shape.n_layers)
    sums: dict[str, np.ndarray] = {}
    hooks = []
    for module_name, module in tiny.model.named_modules():
        if not isinstance(module, torch.nn.Linear):
            continue

        def add(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...], key: str = module_name) -> None:
            squares = inputs[0][0].double().square().sum(0).numpy()
            sums[key] = sums.get(key, np.zeros_like(squares)) + squares

        hooks.append(module.register_forward_pre_hook(add))
    for prompt in rows:
        tiny.logits(prompt)
    for hook in hooks:
        hook.remove()
    head = "token_embd.weight" if tiny.shape.tied else "output.weight"
    return {
        head if key == "lm_head" else f"{names.get_name(key)}.weight": value for key, value in sums.items()
    }


def test_mean_squares_are_those_that_torch_sees(tiny: TinyLlama, path: Path) -> None:
    rows = prompts(tiny)
    importance = collect_importance(path, rows)
    expected = squares_seen_by_torch(tiny, rows)
    assert importance.keys() == expected.keys()
    positions = sum(len(prompt) for prompt in rows)
    for name, channels in importance.items():
        assert channels.rows == positions
        assert channels.mean_squares.dtype == np.float32
        np.testing.assert_allclose(channels.mean_squares, expected[name] / positions, rtol=1e-4, err_msg=name)


def test_a_file_of_it_comes_back_and_is_of_llama_cpps_own_format(
    tiny: TinyLlama, path: Path, tmp_path: Path
) -> None:
    importance = collect_importance(path, prompts(tiny)[:1])
    write_importance(tmp_path / "importance.gguf", importance, "one prompt of tokens and noise")
    assert [p.name for p in tmp_path.iterdir()] == ["importance.gguf"]
    again = read_importance(tmp_path / "importance.gguf")
    assert again.keys() == importance.keys()
    for name, channels in again.items():
        assert channels.rows == importance[name].rows
        np.testing.assert_allclose(channels.mean_squares, importance[name].mean_squares, rtol=1e-6)
    reader = gguf.GGUFReader(tmp_path / "importance.gguf")
    kind, sets = reader.get_field("general.type"), reader.get_field("imatrix.datasets")
    assert kind is not None
    assert sets is not None
    assert (kind.contents(), sets.contents()) == ("imatrix", ["one prompt of tokens and noise"])
    sums = next(t for t in reader.tensors if t.name == "blk.1.ffn_down.weight.in_sum2")
    assert tuple(sums.shape) == (160, 1)  # llama.cpp's order: channels, then matrices


def test_what_is_no_importance_matrix_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no importance matrix at"):
        read_importance(tmp_path / "absent.gguf")
    with pytest.raises(ValueError, match="holds no sums of squares with counts"):
        read_importance(path)  # a GGUF, but a model
    (tmp_path / "noise.gguf").write_bytes(b"noise" * 100)
    with pytest.raises(ValueError, match=r"noise\.gguf is not an importance matrix"):
        read_importance(tmp_path / "noise.gguf")


def test_prompts_that_say_nothing_are_refused(path: Path) -> None:
    with pytest.raises(LanguageModelError, match="expected at least one prompt"):
        collect_importance(path, [])
    with pytest.raises(LanguageModelError, match=r"prompts\[0\]: expected \(n, 96\)"):
        collect_importance(path, [np.zeros((4, 90), np.float32)])
    damaged = np.ones((4, 96), np.float32)
    damaged[2, 5] = np.nan
    with pytest.raises(LanguageModelError, match=r"prompts\[1\]: expected finite"):
        collect_importance(path, [np.ones((4, 96), np.float32), damaged])
    with pytest.raises(LanguageModelError, match="trained for at most 2048 positions"):
        collect_importance(path, [np.ones((2049, 96), np.float32)])
