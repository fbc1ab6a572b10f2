"""``vaemotion bench`` on the small bundle, in real processes; no test depends on the machine's speed."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from onnxruntime.quantization import QuantType, quantize_dynamic

from runtime.commands.bench.bench import bench, measure, write_bench
from runtime.commands.bench.plot import pareto
from runtime.commands.bench.report import Bench, BenchRow, bench_table, comparison, markdown, sentences
from runtime.machine.facts import peak_memory_bytes
from vaemotion.cli.main import main
from vaemotion.contract.bundle import BundleError, sha256_of
from vaemotion.contract.terminal import Terminal

ROUNDS, RUNS = 2, 3
ACCURACY = {
    "vision_encoder/int8-cpu": {
        "ccc_valence_visual": {"delta": -0.0031, "bound": -0.005},
        "jitter_ratio": {"delta": 1.02, "bound": 1.05},
    },
    "language_model/Q8_0": {"kl_nats": {"delta": 0.0021, "bound": 0.02}},
}


def listed(entry: dict[str, Any], precision: str, file: Path) -> dict[str, Any]:
    """Return a manifest's entry for another precision of a component, in a file of the same folder."""
    changed = {"precision": precision, "path": f"components/{file.name}"}
    return {**entry, **changed, "sha256": sha256_of(file), "bytes": file.stat().st_size}


@pytest.fixture(scope="module")
def quantized_bundle(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the small bundle with three more vision encoders.

    ONNX Runtime's INT8, one made for TensorRT, and a file that nothing can open.
    """
    bundle = shutil.copytree(small_bundle, tmp_path_factory.mktemp("bench") / "bundle")
    manifest = json.loads((bundle / "manifest.json").read_text())
    entry = next(c for c in manifest["components"] if c["role"] == "vision_encoder")
    files = {p: bundle / f"components/vision_encoder.{p}.onnx" for p in ("int8-cpu", "int8", "fp16")}
    quantize_dynamic(bundle / entry["path"], files["int8-cpu"], weight_type=QuantType.QInt8)
    shutil.copy(files["int8-cpu"], files["int8"])
    files["fp16"].write_bytes(b"\x3a\x00")  # a model with an empty graph
    manifest["components"] += [listed(entry, precision, file) for precision, file in files.items()]
    manifest["verification"]["components"] = ACCURACY
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    return bundle


@pytest.fixture(scope="module")
def measured(quantized_bundle: Path) -> Bench:
    return measure(quantized_bundle, rounds=ROUNDS, runs=RUNS)


def row_of(measured: Bench, key: str) -> BenchRow:
    return next(row for row in measured.rows if row.key == key)


def test_every_engine_and_language_model_is_measured_and_one_of_each_role_is_marked(
    measured: Bench, quantized_bundle: Path
) -> None:
    components = json.loads((quantized_bundle / "manifest.json").read_text())["components"]
    sizes = {f"{c['role']}/{c['precision']}": c["bytes"] for c in components if "_" in c["role"]}
    del sizes["token_embeddings/none"]
    assert {row.key: row.size_bytes for row in measured.rows} == sizes
    for row in measured.rows:
        if not row.failure:
            assert row.runs == ROUNDS * RUNS
            assert len(row.round_p50_ms) == ROUNDS
            assert row.load_s is not None
            assert row.p50_ms is not None
            assert row.p95_ms is not None
            assert row.load_s > 0
            assert 0 <= row.p50_ms <= row.p95_ms
            assert (row.prompt_tokens_per_s is not None) == (row.role == "language_model")
    taken = [row.role for row in measured.rows if row.taken]
    assert sorted(taken) == ["audio_encoder", "emo_adapter", "language_model", "vision_encoder"]


def test_memory_is_that_of_the_component_and_not_of_the_calling_process(measured: Bench) -> None:
    import torch  # makes the calling process large

    assert torch.__version__
    for row in [*measured.rows, measured.whole]:
        if not row.failure:
            assert row.peak_bytes is not None
            assert row.added_bytes is not None
            assert 0 < row.added_bytes < row.peak_bytes < peak_memory_bytes()


def test_in_all_covers_the_files_that_a_run_opens(measured: Bench, quantized_bundle: Path) -> None:
    components = json.loads((quantized_bundle / "manifest.json").read_text())["components"]
    taken = {row.key for row in measured.rows if row.taken}
    tables = ("token_embeddings", "delimiters", "tokenizer")
    opened = [c for c in components if f"{c['role']}/{c['precision']}" in taken or c["role"] in tables]
    assert measured.whole.size_bytes == sum(c["bytes"] for c in opened)
    assert len(opened) == 7
    assert measured.whole.p50_ms is not None
    assert measured.readings_per_s == pytest.approx(1000 / measured.whole.p50_ms)
    assert measured.asked_hz == pytest.approx(10)


def test_a_precision_for_another_machine_is_marked_and_one_that_cannot_be_opened_says_why(
    measured: Bench,
) -> None:
    assert [row.key for row in measured.rows if row.foreign] == ["vision_encoder/int8"]
    broken = row_of(measured, "vision_encoder/fp16")
    assert "vision_encoder (fp16)" in broken.failure
    assert broken.p50_ms is None
    text = "\n".join(sentences(measured))
    assert "for TensorRT or CUDA; measured here on the CPU: vision_encoder/int8" in text
    assert "vision_encoder/fp16 cannot be opened here" in text


def test_accuracy_comes_from_the_manifest_and_a_dash_means_not_measured(measured: Bench) -> None:
    lines = markdown(measured).splitlines()
    table = {line.split("|")[2].strip(): line for line in lines if line.count("|") == 9}
    assert table["vision_encoder int8-cpu"].endswith("| −0.0031 ccc valence visual |")  # no ratio
    assert table["language_model Q8_0"].endswith("| +0.0021 kl nats |")
    assert table["audio_encoder fp32"].endswith("| – |")
    assert "| vision_encoder/int8-cpu | jitter_ratio | +1.0200 | +1.0500 |" in lines
    bare = replace(measured, rows=tuple(replace(row, accuracy=()) for row in measured.rows))
    assert "the manifest holds no accuracy per component" in markdown(bare)


@pytest.mark.parametrize(
    ("rounds_ms", "verdict"),
    [((2.0, 3.0), "slower"), ((0.5, 3.0), "not clearly faster"), ((0.5, 0.6), "")],
)
def test_the_report_says_where_int8_is_not_faster(
    rounds_ms: tuple[float, float], verdict: str, measured: Bench
) -> None:
    times = {"vision_encoder/fp32": (1.0, 1.0), "vision_encoder/int8-cpu": rounds_ms}
    rows = tuple(
        replace(row, round_p50_ms=times[row.key], p50_ms=sum(times[row.key]) / 2) if row.key in times else row
        for row in measured.rows
    )
    changed = replace(measured, rows=rows)
    assert comparison(changed, row_of(changed, "vision_encoder/int8-cpu")) == verdict
    assert comparison(changed, row_of(changed, "vision_encoder/fp32")) == ""
    found = [line for line in sentences(changed) if line.startswith("int8-cpu of vision_encoder is ")]
    assert len(found) == bool(verdict)
    assert all(f"is {verdict} than fp32 here" in line and line in markdown(changed) for line in found)


def test_a_busy_machine_is_reported(measured: Bench) -> None:
    busy = replace(measured, load_average=(9.0, 8.0))
    calm = replace(measured, load_average=(0.1, 1.0))
    assert any("busy (load 9.0 before, 8.0 after" in line for line in sentences(busy))
    assert not any("busy" in line for line in sentences(calm))


def test_the_pareto_front_holds_points_that_no_other_beats() -> None:
    assert pareto([(1, 3), (2, 3), (2, 2), (3, 1), (4, 1), (1, 3)]) == [(1, 3), (2, 2), (3, 1)]


def test_the_table_marks_the_files_of_a_run_and_fits_80_columns(measured: Bench) -> None:
    console = Terminal(width=80)
    with console.capture() as captured:
        console.print(bench_table(measured))
    lines = captured.get().splitlines()
    marked = [line for line in lines if line.startswith("●  ") or line.startswith(" ●")]
    assert len(marked) == 4
    assert max(map(len, lines)) <= 80
    assert any("vision_encoder int8*" in line for line in lines)
    assert not any("…" in line for line in lines)


def test_without_matplotlib_json_and_markdown_are_written_and_the_reason_is_given(
    measured: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, nothing = write_bench(measured, tmp_path / "with")
    assert (tmp_path / "with" / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert (len(files), nothing) == (3, [])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # as if it were not installed
    files, reason = write_bench(measured, tmp_path / "without")
    assert sorted(file.name for file in (tmp_path / "without").iterdir()) == ["bench.json", "bench.md"]
    assert "pip install 'vaemotion[plot]'" in reason[0]


def test_the_command_prints_the_json_that_it_writes(
    small_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", str(small_bundle), "--out", str(tmp_path / "out"), "--json", "--rounds", "1"]
    assert main(words) == 0
    out = capfd.readouterr().out
    assert out == (tmp_path / "out" / "bench.json").read_text()
    report = json.loads(out)
    assert report["whole"]["role"] == "in all"
    assert len(report["rows"]) == 5
    assert len(report["load_average"]) == 2
    assert report["readings_per_s"] > 0


def test_a_damaged_bundle_is_refused_before_anything_is_measured(small_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(small_bundle, tmp_path / "bundle")
    file = bundle / "components" / "audio_encoder.fp32.onnx"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(BundleError, match="audio_encoder"):
        bench(bundle, tmp_path / "out", as_json=False)
    assert list((tmp_path / "out").iterdir()) == []
