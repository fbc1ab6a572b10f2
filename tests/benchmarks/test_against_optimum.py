"""The comparison with optimum: tables, document, error messages; without export or network."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.against_optimum.__main__ import DOCUMENT, EXPORTS, run
from benchmarks.against_optimum.environment import COMMAND, REQUIREMENTS, ready_python
from benchmarks.against_optimum.record import record
from benchmarks.against_optimum.report import (
    AST,
    BEGIN,
    END,
    VISION,
    markdown,
    replace_measured,
    rows,
    vision_rows,
)
from vaemotion.contract.errors import UserError

EXPORT = {
    "runs": [
        {"export_s": s, "process_s": s + 5, "cpu_s": s + 3, "peak_memory_mib": 1000.0}
        for s in (12.0, 10.0, 11.0)
    ],
    "error": None,
    "versions": {"torch": "2.13.0"},
}
REFUSED = {"runs": [], "error": "ValueError: no | such architecture", "versions": {}}


def file_of(key: str, times_ms: list[float]) -> dict[str, Any]:
    clocks = {name: {"median": 0.0, "all": times_ms} for name in ("wall_ms", "cpu_ms")}
    return {
        "nodes": 518,
        "nodes_in_onnx_runtime": 493,
        "opset": 20,
        "bytes": 345_500_000,
        "shapes": {"log_mel": ["batch", 1024, 128], key: ["batch", 1214, 768]},
        "check": "passed",
        "parity": {"1": {"max_abs": 4e-6, "mean_abs": 6e-7}, "2": {"max_abs": 5e-6, "mean_abs": 7e-7}},
        "latency": clocks,
    }


RESULT: dict[str, Any] = {
    "command": COMMAND,
    "machine": {"cpu": "a processor", "cores": 2, "load_before": 1.25, "load_after": 2.0},
    "threads": 1,
    "rounds": 3,
    "repetitions": 3,
    "versions": {"ours": {"torch": "2.13.0"}, "optimum's": {"optimum-onnx": "0.1.0"}},
    "exports": {key: REFUSED if key.startswith("optimum-") else EXPORT for key in (*AST, *VISION)},
    "files": {
        **{key: file_of(key, [100.0, 200.0, 400.0]) for key in AST},
        "ours": file_of("ours", [110.0, 180.0, 400.0]),
        "ours-vision": file_of("tokens", []),
        "eager": {"latency": {name: {"median": 0.0, "all": [300.0] * 3} for name in ("wall_ms", "cpu_ms")}},
    },
    "float32_against_float64": {"max_abs": 3e-6, "mean_abs": 4e-7},
    "batches": [1, 2],
}


def cell(result: dict[str, Any], name: str, column: str) -> str:
    lines = rows(result)
    [line] = [line for line in lines if line[0] == name]
    return line[lines[0].index(column)]


def test_the_table_names_each_figure_once_for_every_tool() -> None:
    lines = rows(RESULT)
    assert {len(line) for line in lines} == {len(AST) + 2}
    assert len({line[0] for line in lines}) == len(lines)
    assert cell(RESULT, "export: load the checkpoint, write the file, s", "ours") == "11.0 (10.0–12.0)"
    assert cell(RESULT, "largest / mean difference to eager, batch 2", "optimum") == "5.0e-06 / 7.0e-07"
    assert cell(RESULT, "batch is free", "optimum") == "yes"


def test_a_ratio_is_taken_within_each_repetition() -> None:
    assert cell(RESULT, "latency / optimum's", "ours") == "1.00 (0.90–1.10)"
    assert cell(RESULT, "latency / optimum's", "torch eager") == "1.50 (0.75–3.00)"


def test_a_failed_tool_has_its_error_and_no_figures() -> None:
    result = copy.deepcopy(RESULT)
    result["exports"]["optimum"] = REFUSED
    del result["files"]["optimum"]
    assert cell(result, "export", "optimum") == "failed (1)"
    assert {line[1] for line in rows(result)[2:]} == {"–"}
    assert cell(result, "latency / optimum's", "ours") == "–"
    assert "- optimum: `` ValueError: no | such architecture ``" in markdown(result)


def test_an_unsupported_batch_size_is_not_free() -> None:
    result = copy.deepcopy(RESULT)
    result["files"]["optimum"]["parity"]["1"] = {"error": "InvalidArgument: got 1, expected 2"}
    assert cell(result, "batch is free", "optimum") == "named, but refused"
    assert cell(result, "largest / mean difference to eager, batch 1", "optimum") == "refused (2)"
    assert "- optimum, batch 1: `` InvalidArgument: got 1, expected 2 ``" in markdown(result)
    result["files"]["optimum"]["shapes"]["log_mel"][0] = 2
    assert cell(result, "batch is free", "optimum") == "no"


def test_every_way_to_smolvlm_is_in_the_second_table() -> None:
    result = copy.deepcopy(RESULT)
    result["files"]["transformers-smolvlm"] = file_of("logits", [])
    result["files"]["transformers-smolvlm"]["parity"]["1"] = {"error": "got 1, expected 2"}
    lines = {line[0]: line[1:] for line in vision_rows(result)[1:]}
    assert lines[VISION["optimum-smolvlm"]] == lines[VISION["optimum-vision"]] == ["failed (1)", "–"]
    assert lines[VISION["ours-vision"]] == ["done", "1: 4.0e-06, 2: 5.0e-06"]
    assert lines[VISION["transformers-smolvlm"]] == ["done", "1: refused (2), 2: 5.0e-06"]


def test_the_document_keeps_its_text_around_the_measured_section() -> None:
    once = replace_measured(f"# Title\n\n{BEGIN}\nold\n{END}\n\nOur words.\n", "new \\1")
    assert once == f"# Title\n\n{BEGIN}\n\nnew \\1\n\n{END}\n\nOur words.\n"
    assert replace_measured(once, "new \\1") == once
    with pytest.raises(UserError, match="needs one line '<!-- measured: begin -->'"):
        replace_measured("# Title\n", "new")


def test_the_decision_names_the_command_and_carries_a_measured_section() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert f"`{COMMAND}`" in text
    measured = text[text.index(BEGIN) : text.index(END)]
    assert all(title in measured for title in (AST["optimum"], AST["ours"], VISION["ours-vision"]))
    assert set(EXPORTS) == {*AST, *VISION}


def test_a_missing_environment_is_reported_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=f"environment is missing or out of date in .*; make it with `{COMMAND}`"
    ):
        ready_python(tmp_path / "venv", create=False)


def test_an_environment_of_other_requirements_is_out_of_date(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    (tmp_path / ".ready").write_text("optimum-onnx==0.0.1\n")
    with pytest.raises(UserError, match="out of date"):
        ready_python(tmp_path, create=False)
    (tmp_path / ".ready").write_text(REQUIREMENTS.read_text())
    assert ready_python(tmp_path, create=False) == tmp_path / "bin" / "python"


def test_a_failed_export_is_recorded_as_one_line(tmp_path: Path) -> None:
    def fail() -> None:
        raise ValueError("first line\nsecond line")

    record(fail, tmp_path / "record.json", ["pytest", "no-such-package"])
    values = json.loads((tmp_path / "record.json").read_text())
    assert values["error"] == "ValueError: first line second line"
    assert list(values["versions"]) == ["pytest"]
    assert values["peak_memory_mib"] > 1


def test_a_failed_process_returns_its_last_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert run([sys.executable, "-c", "pass"], log, threads=1) is None
    assert run([sys.executable, "-c", "import no_such_module"], log, threads=1) == (
        "ModuleNotFoundError: No module named 'no_such_module'"
    )
    assert run([sys.executable, "-c", "raise SystemExit(3)"], log, threads=1) == "exit code 3"
