"""A bundle in the making: what is finished is made once, whatever happens in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from rich.console import Console

from export.workshop import JOURNAL, Made, Workshop
from vaemotion.contract.bundle import TensorSpec

IDENTITY = {"config": "abc", "options": {"precision": "int8"}}


def workshop(folder: Path, identity: dict[str, object] = IDENTITY) -> Workshop:
    return Workshop(folder / "bundle", identity, "Apache-2.0", Console(stderr=True))


def made(shop: Workshop, calls: list[str], name: str = "engine") -> Made:
    calls.append(name)
    path = shop.directory / f"{name}.onnx"
    path.write_text(f"content of {name}")
    specs = (TensorSpec("x", ("batch", 3), "float32"),)
    return [shop.component("vision_encoder", "fp32", path, specs, specs)], {"note": [1, 2]}


def test_a_second_call_makes_nothing_again_and_knows_what_the_first_found_out(tmp_path: Path) -> None:
    calls: list[str] = []
    first = workshop(tmp_path)
    assert first.step("one", lambda: made(first, calls)) == {"note": [1, 2]}
    second = workshop(tmp_path)
    assert second.step("one", lambda: made(second, calls)) == {"note": [1, 2]}
    assert calls == ["engine"]
    assert second.components == first.components


@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_file_that_is_not_whole_is_made_again(tmp_path: Path, damage: str) -> None:
    calls: list[str] = []
    first = workshop(tmp_path)
    first.step("one", lambda: made(first, calls))
    file = first.directory / "engine.onnx"
    file.write_text("content of engina") if damage == "changed" else file.unlink()
    second = workshop(tmp_path)
    second.step("one", lambda: made(second, calls))
    assert calls == ["engine", "engine"]
    assert file.read_text() == "content of engine"


def test_another_source_or_other_options_start_anew(tmp_path: Path) -> None:
    calls: list[str] = []
    first = workshop(tmp_path)
    first.step("one", lambda: made(first, calls))
    other = workshop(tmp_path, {**IDENTITY, "config": "def"})
    assert list(other.directory.iterdir()) == []
    other.step("one", lambda: made(other, calls))
    assert calls == ["engine", "engine"]


def test_a_step_that_fails_is_not_taken_for_done(tmp_path: Path) -> None:
    def fail() -> Made:
        (shop.directory / "half").write_text("half")
        raise OSError(28, "No space left on device")

    calls: list[str] = []
    shop = workshop(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        shop.step("one", fail)
    again = workshop(tmp_path)
    again.step("one", lambda: made(again, calls))
    assert calls == ["engine"]
    again.finish()
    assert [p.name for p in again.directory.iterdir()] == ["engine.onnx"]
    assert not (again.folder / JOURNAL).exists()


def test_a_kill_within_a_component_loses_that_component_only(tmp_path: Path) -> None:
    script = textwrap.dedent(
        f"""
        import os, signal, sys
        from pathlib import Path
        from tests.export.test_workshop import workshop, made
        shop = workshop(Path({str(tmp_path)!r}))
        shop.step("one", lambda: made(shop, []))
        def die():
            (shop.directory / "second.onnx").write_text("hal")
            os.kill(os.getpid(), signal.SIGKILL)
        shop.step("two", die)
        """
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    killed = subprocess.run([sys.executable, "-c", script], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "bundle").exists()
    calls: list[str] = []
    shop = workshop(tmp_path)
    shop.step("one", lambda: made(shop, calls))
    shop.step("two", lambda: made(shop, calls, "second"))
    assert calls == ["second"]
    assert set(json.loads((shop.folder / JOURNAL).read_text())["steps"]) == {"one", "two"}
