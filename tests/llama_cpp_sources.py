"""Real vocabularies and chat templates for tests: llama.cpp's, in the source archive of llama-cpp-python.

The archive is downloaded once by pip and checked by its sha256; what tests read of it is kept in a cache of
the user (16 MB). Without network and cache, tests with it are skipped.
"""

import functools
import struct
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from runtime.engines.cache import cache_folder
from vaemotion.contract.files import whole_folder

VERSION = "0.3.36"
ARCHIVE_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
_VOCABULARIES = ("llama-spm", "llama-bpe", "qwen2")
_BETWEEN_TEXTS = "\n__ggml_vocab_test__\n"


@functools.cache
def llama_cpp_models() -> Path:
    """Return a copy of llama.cpp's folder `models`: `ggml-vocab-*` of a few families, and `templates`.

    Tests do not change it. Skips the test that asks where the archive can neither be found nor downloaded.
    """
    home = cache_folder()
    if home is None:
        pytest.skip("this user has no cache folder for llama.cpp's sources; set VAEMOTION_CACHE")
    kept = home / "tests" / f"llama-cpp-python-{VERSION}-models"
    if not kept.is_dir():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as work, whole_folder(kept) as folder:
            _extract(_download(Path(work)), folder)
    return kept


def known_texts(name: str) -> list[tuple[str, list[int]]]:
    """Return the texts of llama.cpp's own test of a vocabulary, each with the token ids of transformers."""
    file = llama_cpp_models() / f"ggml-vocab-{name}.gguf"
    texts = Path(f"{file}.inp").read_bytes().decode().split(_BETWEEN_TEXTS)
    ids = [[int(i) for i in line.split()] for line in Path(f"{file}.out").read_text().split("\n")]
    return list(zip(texts, ids, strict=False))


def metadata(name: str) -> dict[str, Any]:
    """Return the fields of a vocabulary's GGUF file, in a second; `gguf.GGUFReader` takes half a minute."""
    return _Metadata((llama_cpp_models() / f"ggml-vocab-{name}.gguf").read_bytes()).fields()


# By the number of a field's type: integers of 8 to 64 bits, float32, bool, float64.
_NUMBERS: dict[int, str] = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_TEXT, _LIST = 8, 9


class _Metadata:
    """Reader of the fields at the beginning of a GGUF file of version 2 or 3."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 8  # behind the magic and the version

    def fields(self) -> dict[str, Any]:
        _, count = self._numbers("Q", 2)
        found: dict[str, Any] = {}
        for _ in range(count):
            (key,) = self._texts(1)
            (kind,) = self._numbers("I")
            (found[key],) = self._values(kind, 1)
        return found

    def _values(self, kind: int, count: int) -> list[Any]:
        if kind == _TEXT:
            return self._texts(count)
        if kind == _LIST:
            return [self._list() for _ in range(count)]
        return list(self._numbers(_NUMBERS[kind], count))

    def _list(self) -> list[Any]:
        (kind,), (count,) = self._numbers("I"), self._numbers("Q")
        return self._values(kind, count)

    def _texts(self, count: int) -> list[str]:
        texts: list[str] = []
        for _ in range(count):
            start = self._at + 8
            self._at = start + int.from_bytes(self._data[self._at : start], "little")
            texts.append(self._data[start : self._at].decode())
        return texts

    def _numbers(self, kind: str, count: int = 1) -> tuple[Any, ...]:
        packed = struct.Struct(f"<{count}{kind}")
        self._at += packed.size
        return packed.unpack_from(self._data, self._at - packed.size)


def _download(work: Path) -> Path:
    wanted = work / "wanted.txt"
    wanted.write_text(f"llama-cpp-python=={VERSION} --hash=sha256:{ARCHIVE_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python"]
    done = subprocess.run(
        [*command, "--disable-pip-version-check", "--dest", str(work), "--requirement", str(wanted)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        assert "DO NOT MATCH THE HASHES" not in done.stderr, done.stderr
        reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
        pytest.skip(f"the sources of llama-cpp-python {VERSION} could not be downloaded: {reason}")
    (archive,) = work.glob("*.tar.gz")
    return archive


def _extract(archive: Path, folder: Path) -> None:
    """Copy vocabularies and chat templates out of the archive."""
    wanted = tuple(f"ggml-vocab-{name}.gguf" for name in _VOCABULARIES)
    with tarfile.open(archive) as members:
        for member in members:
            path = PurePosixPath(member.name)
            content = members.extractfile(member) if member.isfile() else None
            if content is None or "models" not in path.parts[:-1]:
                continue
            if path.parent.name == "models" and path.name.startswith(wanted):
                (folder / path.name).write_bytes(content.read())
            elif path.parent.name == "templates":
                (folder / "templates").mkdir(exist_ok=True)
                (folder / "templates" / path.name).write_bytes(content.read())
