"""The folder of an export: each step is made once, and again when anything that it depends on changes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from export.errors import ExportError
from export.step_store import MadeFile
from export.workshop import STEPS_VARIABLE, ExportFolder, Made, Step
from tests.paths import ROOT
from vaemotion.contract.bundle import TensorSpec, sha256_of
from vaemotion.contract.terminal import Terminal

SPECS = (TensorSpec("x", ("batch", 3), "float32"),)


@pytest.fixture(autouse=True)
def own_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the steps beside the bundle, whatever the other tests share."""
    monkeypatch.delenv(STEPS_VARIABLE, raising=False)


def opened(tmp_path: Path, checkpoint: str = "abc") -> ExportFolder:
    return ExportFolder(tmp_path / "bundle", "Apache-2.0", checkpoint, Terminal(stderr=True))


def made(
    calls: list[str],
    name: str = "engine",
    reads: Mapping[str, Any] | None = None,
    files: tuple[str, ...] = (),
) -> Step:
    """Describe a step that writes ``NAME.onnx`` and notes its call."""

    def make(folder: Path) -> Made:
        calls.append(name)
        (folder / f"{name}.onnx").write_text(f"content of {name}")
        return [MadeFile(f"{name}.onnx", "vision_encoder", "fp32", SPECS, SPECS)], {"note": [1, 2]}

    return Step(name, make, (), reads or {}, files)


def test_a_second_export_makes_nothing_again_and_has_the_notes_of_the_first(tmp_path: Path) -> None:
    calls: list[str] = []
    first = opened(tmp_path)
    assert first.step(made(calls)) == {"note": [1, 2]}
    second = opened(tmp_path)
    assert second.step(made(calls)) == {"note": [1, 2]}
    assert calls == ["engine"]
    assert second.components == first.components
    [component] = second.components
    assert component.path == "components/engine.onnx"
    assert component.inputs == component.outputs == SPECS
    assert second.file("engine.onnx").read_text() == "content of engine"


def test_steps_of_other_values_stay_beside_each_other(tmp_path: Path) -> None:
    calls: list[str] = []
    for windows in (16, 17, 16, 17):
        opened(tmp_path).step(made(calls, reads={"windows": windows}))
    assert calls == ["engine", "engine"]


def change_file(folder: ExportFolder) -> None:
    folder.store.path(folder.components[0].sha256).write_text("content of engina")


def remove_file(folder: ExportFolder) -> None:
    folder.store.path(folder.components[0].sha256).unlink()


def edit_notes(folder: ExportFolder) -> None:
    [record] = folder.store.folder.glob("*.json")
    record.write_text(record.read_text().replace("1,", "3,"))


def cut_record(folder: ExportFolder) -> None:
    [record] = folder.store.folder.glob("*.json")
    record.write_bytes(record.read_bytes()[:-40])


def empty_record(folder: ExportFolder) -> None:
    [record] = folder.store.folder.glob("*.json")
    record.write_text("{}")


@pytest.mark.parametrize("damage", [change_file, remove_file, edit_notes, cut_record, empty_record])
def test_a_step_that_was_damaged_or_edited_is_made_again(
    tmp_path: Path, damage: Callable[[ExportFolder], None]
) -> None:
    calls: list[str] = []
    first = opened(tmp_path)
    first.step(made(calls))
    damage(first)
    second = opened(tmp_path)
    assert second.step(made(calls)) == {"note": [1, 2]}
    assert calls == ["engine", "engine"]
    assert second.file("engine.onnx").read_text() == "content of engine"
    opened(tmp_path).step(made(calls))
    assert calls == ["engine", "engine"]


def test_a_record_under_the_name_of_another_step_is_not_used(tmp_path: Path) -> None:
    calls: list[str] = []
    first = opened(tmp_path)
    first.step(made(calls))
    [before] = first.store.folder.glob("*.json")
    content = before.read_bytes()
    first.step(made(calls, "other"))
    [other] = set(first.store.folder.glob("*.json")) - {before}
    other.write_bytes(content)
    again = opened(tmp_path)
    again.step(made(calls, "other"))
    assert calls == ["engine", "other", "other"]


def test_a_step_follows_the_content_of_the_files_that_it_reads(tmp_path: Path) -> None:
    calls: list[str] = []

    def export(content: str) -> None:
        def make(folder: Path) -> Made:
            calls.append("first")
            (folder / "first.bin").write_text(content.strip())
            return [MadeFile("first.bin")], {}

        folder = opened(tmp_path)
        folder.step(Step("first", make, (), {"content": content}))
        folder.step(made(calls, "second", files=("first.bin",)))

    export("a")
    export("b")
    assert calls == ["first", "second"] * 2
    export("b ")  # another input of the first step, which writes the same file
    assert calls == ["first", "second"] * 2 + ["first"]


def test_a_file_that_changes_while_the_export_runs_is_noticed_by_the_step_that_reads_it(
    tmp_path: Path,
) -> None:
    calls: list[str] = []
    folder = opened(tmp_path)
    folder.step(made(calls))
    folder.file("engine.onnx").write_text("edited")
    with pytest.raises(
        ExportError, match=r"engine.onnx was changed while the export ran; run the same command"
    ):
        folder.step(made(calls, "second", files=("engine.onnx",)))
    again = opened(tmp_path)
    again.step(made(calls))
    again.step(made(calls, "second", files=("engine.onnx",)))
    assert calls == ["engine", "engine", "second"]


def test_a_step_that_fails_is_not_kept_and_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(folder: Path) -> Made:
        (folder / "half").write_text("half")
        raise OSError(28, "No space left on device")

    calls: list[str] = []
    folder = opened(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        folder.step(Step("engine", fail, ()))
    again = opened(tmp_path)
    again.step(made(calls))
    assert calls == ["engine"]
    again.finish()
    assert [p.name for p in again.folder.iterdir()] == ["components"]
    assert [p.name for p in again.directory.iterdir()] == ["engine.onnx"]


def test_a_file_that_is_no_component_is_kept_for_later_steps_but_not_in_the_bundle(tmp_path: Path) -> None:
    def make(folder: Path) -> Made:
        (folder / "importance.gguf").write_text("matrix")
        return [MadeFile("importance.gguf")], {}

    folder = opened(tmp_path)
    folder.step(Step("importance", make, ()))
    assert folder.file("importance.gguf").read_text() == "matrix"
    assert folder.components == []
    folder.finish()
    assert list(folder.directory.iterdir()) == []
    [kept] = (folder.store.folder / "files").iterdir()
    assert kept.read_text() == "matrix"


def test_a_forgotten_step_runs_again(tmp_path: Path) -> None:
    calls: list[str] = []
    first = opened(tmp_path)
    first.step(made(calls))
    first.forget("engine")
    opened(tmp_path).step(made(calls))
    assert calls == ["engine", "engine"]


def test_finishing_removes_the_steps_of_another_checkpoint_that_are_not_used_any_more(tmp_path: Path) -> None:
    calls: list[str] = []
    first = opened(tmp_path, "old")
    first.step(made(calls, "shared"))
    first.step(made(calls, "old"))
    first.finish()
    second = opened(tmp_path, "new")
    second.step(made(calls, "shared"))
    second.step(made(calls, "new"))
    second.finish()
    texts = {path.read_text() for path in (second.store.folder / "files").iterdir()}
    assert texts == {"content of shared", "content of new"}
    assert calls == ["shared", "old", "new"]
    assert len(list(second.store.folder.iterdir())) == 3  # two records and the folder of files


def test_what_a_killed_export_left_is_removed_and_what_a_running_one_has_stays(tmp_path: Path) -> None:
    code = f"""
    import os, signal
    from pathlib import Path
    from export.workshop import ExportFolder
    from vaemotion.contract.terminal import Terminal
    with ExportFolder(Path({str(tmp_path / "bundle")!r}), "Apache-2.0", "abc", Terminal()):
        os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False, cwd=ROOT)
    [killed] = tmp_path.iterdir()
    with opened(tmp_path) as running:
        assert not killed.exists()
        with opened(tmp_path) as other:
            assert sorted(tmp_path.iterdir()) == sorted([running.folder, other.folder])
    assert list(tmp_path.iterdir()) == []


def test_a_store_removes_only_what_it_has_written(tmp_path: Path) -> None:
    users = [
        *("bundle.steps/notes.json", "bundle.steps/mine.lock", "bundle.steps/files/letter.txt"),
        *("bundle.steps/inner/notes.txt", ".bundle.mine.export/letter.txt", "bundle.partial/manifest.json"),
    ]
    for name in users:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    for checkpoint in ("old", "new"):
        with opened(tmp_path, checkpoint) as folder:
            folder.step(made([], reads={"checkpoint": checkpoint}))
            folder.finish()
    assert [(tmp_path / name).read_text() for name in users] == ["mine"] * len(users)
    # Of the first checkpoint nothing is left.
    assert len(list((tmp_path / "bundle.steps").iterdir())) == 5
    assert len(list((tmp_path / "bundle.steps" / "files").iterdir())) == 2


def test_two_bundles_share_their_steps_where_the_variable_names_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STEPS_VARIABLE, str(tmp_path / "shared"))
    calls: list[str] = []
    for number, checkpoint in ((1, "old"), (2, "new")):
        folder = opened(tmp_path / str(number), checkpoint)
        folder.step(made(calls))
        folder.finish()
    assert calls == ["engine"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2", "shared"]
    assert list((tmp_path / "2").iterdir()) == [folder.folder]


def test_a_file_system_without_links_gets_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    folder = opened(tmp_path)
    folder.step(made([]))
    [component] = folder.components
    assert sha256_of(folder.file("engine.onnx")) == component.sha256
    assert folder.file("engine.onnx").stat().st_nlink == 1


IN_A_PROCESS = """
import os, signal, time
from pathlib import Path
from export.step_store import MadeFile
from export.workshop import Step
from tests.export.test_workshop import made, opened
"""


def in_a_process(code: str, **variables: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.Popen(
        [sys.executable, "-c", IN_A_PROCESS + textwrap.dedent(code)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_kill_within_a_step_loses_that_step_only(tmp_path: Path) -> None:
    killed = in_a_process(
        f"""
        folder = opened(Path({str(tmp_path)!r}))
        folder.step(made([]))
        def die(making):
            (making / "second.onnx").write_text("hal")
            os.kill(os.getpid(), signal.SIGKILL)
        die.__module__ = made.__module__
        folder.step(Step("second", die, ()))
        """
    )
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "bundle").exists()
    calls: list[str] = []
    folder = opened(tmp_path)
    folder.step(made(calls))
    folder.step(made(calls, "second"))
    assert calls == ["second"]


def test_two_processes_that_share_steps_make_each_of_them_once(tmp_path: Path) -> None:
    code = f"""
        root = Path({str(tmp_path)!r})
        def make(folder):
            time.sleep(0.5)
            with (root / "calls").open("a") as log:
                log.write("made\\n")
            (folder / "engine.onnx").write_text("content")
            return [MadeFile("engine.onnx", "vision_encoder", "fp32")], {{}}
        make.__module__ = made.__module__
        for name in ("one", "two", "three"):
            folder = opened(root / os.environ["NUMBER"])
            folder.step(Step(name, make, ()))
        print(folder.file("engine.onnx").read_text())
        """
    shared = {STEPS_VARIABLE: str(tmp_path / "shared")}
    processes = [in_a_process(code, NUMBER=str(number), **shared) for number in (1, 2)]
    answers = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    assert [out for out, _ in answers] == ["content\n"] * 2
    assert (tmp_path / "calls").read_text() == "made\n" * 3
