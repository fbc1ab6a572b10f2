"""The doctor on this very machine: real packages and engines, and what cannot be had here made of small real things."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runtime.doctor import doctor, examine
from runtime.doctor_checks import Check, cameras, microphones, onnxruntime_wheels, packages

MACHINE = ("vaemotion", "system", "device", "processor", "gpu", "memory", "temperature", "disk")
CORE = ("numpy", "opencv", "av", "soxr", "tokenizers", "sounddevice", "onnxruntime", "llama-cpp-python")
ENGINES = ("TensorRT", "ONNX Runtime CUDA", "ONNX Runtime CPU", "llama.cpp")
OF_A_BUNDLE = ("bundle", "room in memory", "front end", "engines", "readings", "language model")


def report_of(text: str) -> dict[str, dict[str, Any]]:
    """A JSON report's checks by name; none is there twice."""
    checks = json.loads(text)["checks"]
    assert len({check["name"] for check in checks}) == len(checks)
    return {check["name"]: check for check in checks}


def spoil(bundle: Path, role: str) -> None:
    """Change one byte in the middle of a component's file."""
    components = json.loads((bundle / "manifest.json").read_text())["components"]
    entry = next(component for component in components if component["role"] == role)
    content = bytearray((bundle / entry["path"]).read_bytes())
    content[len(content) // 2] ^= 0xFF
    (bundle / entry["path"]).write_bytes(content)


def package_before_all_others(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, code: str) -> None:
    """What the doctor's processes get when they import ``name``."""
    (folder / f"{name}.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_a_whole_bundle_works_and_the_json_is_complete(
    small_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert doctor(small_bundle, as_json=True) == 0
    out, err = capfd.readouterr()
    assert err == ""
    report = json.loads(out)  # so there is one object and nothing else
    assert (report["bundle"], report["ok"]) == (str(small_bundle), True)
    checks = report_of(out)
    assert set(checks) >= {*MACHINE, *CORE, *ENGINES, *OF_A_BUNDLE}
    assert all(
        set(check) == {"name", "ok", "value", "advice"} and check["value"] for check in checks.values()
    )
    assert {checks[name]["ok"] for name in CORE if name != "sounddevice"} == {True}
    assert "audio_encoder (fp32): ONNX Runtime" in checks["engines"]["value"]
    assert "10 asked for" in checks["readings"]["value"]  # the constants' 0.1 s
    assert "40 tokens of prompt" in checks["language model"]["value"]
    assert any(name.startswith("microphone") for name in checks)
    assert any(name.startswith(("cameras", "video")) for name in checks)
    assert list(tmp_path.iterdir()) == []


def test_the_terminal_shows_every_check_in_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    assert doctor(None, as_json=False) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert max(len(line) for line in lines) <= 80
    assert {*MACHINE, *CORE, *ENGINES} <= {line[2:19].strip() for line in lines}
    assert "'vaemotion[plot" in text  # brackets are text here, not rich's markup
    assert lines[-1] == "no fault found"


@pytest.mark.parametrize("role", ["audio_encoder", "language_model"])
def test_a_damaged_component_is_named_with_code_one(
    role: str, small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = shutil.copytree(small_bundle, tmp_path / "bundle")
    spoil(bundle, role)
    assert doctor(bundle, as_json=True) == 1
    out = capsys.readouterr().out
    checks = report_of(out)
    assert not json.loads(out)["ok"]
    assert checks["bundle"]["ok"] is False
    assert role in checks["bundle"]["value"]
    assert "damaged" in checks["bundle"]["value"]
    assert checks["bundle"]["advice"] == "copy or export the bundle again"
    assert "readings" not in checks  # a damaged engine is not run


def test_a_folder_that_is_no_bundle_is_a_fault_and_the_machine_is_described_all_the_same(
    tmp_path: Path,
) -> None:
    checks = {check.name: check for check in examine(tmp_path / "nowhere")}
    assert checks["bundle"].ok is False
    assert "is not a bundle" in checks["bundle"].value
    assert checks["onnxruntime"].ok is True
    assert "free in this folder" in checks["disk"].value


@pytest.mark.parametrize(
    ("module", "name", "way_out"),
    [
        ("onnxruntime", "onnxruntime", "pip install 'vaemotion[cpu]'"),
        ("llama_cpp", "llama-cpp-python", "pip install 'vaemotion[llm]'"),
    ],
)
def test_a_missing_engine_is_named_with_its_extra_and_a_fault_only_for_a_bundle(
    module: str, name: str, way_out: str
) -> None:
    code = (
        f"import sys; sys.modules[{module!r}] = None;"  # as if it were not installed
        "from runtime.doctor_checks import packages;"
        f"print(*[(c.ok, c.value, c.advice) for n in (False, True) for c in packages(n) if c.name == {name!r}], sep='\\n')"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str((None, "absent", way_out)), str((False, "absent", way_out))]


def test_a_missing_extra_does_not_stop_the_report() -> None:
    code = (
        "import sys; sys.modules['onnxruntime'] = sys.modules['llama_cpp'] = sys.modules['matplotlib'] = None;"
        "from runtime.doctor import doctor; sys.exit(doctor(None, as_json=True))"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    checks = report_of(done.stdout)
    assert "plot" in checks["extras"]["value"]
    assert "vaemotion[plot" in checks["extras"]["advice"]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGILL)",
            "uses instructions that this processor lacks",
        ),
        ("raise ImportError('libgomp.so.1: cannot open shared object file')", "libgomp.so.1"),
        ("import os; print('noise'); os._exit(3)", "ended with code 3"),
    ],
)
def test_a_package_that_breaks_on_import_is_a_fault_and_the_others_are_still_looked_at(
    code: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package_before_all_others(monkeypatch, tmp_path, "soxr", code)
    checks = {check.name: check for check in packages(needed=False)}
    assert checks["soxr"].ok is False
    assert reason in checks["soxr"].value
    assert checks["soxr"].advice
    assert all(checks[name].ok for name in ("numpy", "av", "tokenizers"))


def test_both_wheels_of_onnxruntime_are_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(onnxruntime_wheels()) == []
    metadata = tmp_path / "onnxruntime_gpu-1.24.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.24.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    [check] = onnxruntime_wheels()
    assert check.ok is False
    assert "onnxruntime-gpu 1.24.0" in check.value
    assert check.advice.startswith("pip uninstall -y onnxruntime onnxruntime-gpu && pip install")


def test_no_camera_is_no_fault(tmp_path: Path) -> None:
    [check] = cameras(tmp_path, tmp_path)
    assert (check.name, check.ok, check.value) == ("cameras", None, "none")
    assert check.advice


def test_a_camera_that_opencv_cannot_open_is_named_and_no_fault(tmp_path: Path) -> None:
    (tmp_path / "video2").touch()
    (tmp_path / "video10").touch()
    (tmp_path / "names" / "video2").mkdir(parents=True)
    (tmp_path / "names" / "video2" / "name").write_text("Gallery Cam\n")
    checks = list(cameras(tmp_path, tmp_path / "names"))
    assert [(check.name, check.ok) for check in checks] == [("video2", None), ("video10", None)]
    assert checks[0].value == "Gallery Cam: cannot be opened"
    assert all(check.advice for check in checks)


def test_a_camera_whose_driver_hangs_does_not_hang_the_doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import time\nCAP_V4L2 = 200\ndef VideoCapture(path, backend): time.sleep(600)\n"
    package_before_all_others(monkeypatch, tmp_path, "cv2", code)
    (tmp_path / "video0").touch()
    [check] = cameras(tmp_path, tmp_path)
    assert (check.ok, check.value) == (None, "video0: gave nothing within 3 s")


SOUNDDEVICE = """
import time
import numpy as np

class default:
    device = (1, -1)

DEVICES = [
    {"name": "speaker", "max_input_channels": 0, "default_samplerate": 44100.0},
    {"name": "USB Mic", "max_input_channels": 2, "default_samplerate": 48000.0},
    {"name": "line", "max_input_channels": 1, "default_samplerate": 8000.0},
]

def query_devices(kind=None):
    return DEVICES if kind is None else DEVICES[1]

class InputStream:
    def __init__(self, samplerate, channels, dtype):
        assert (samplerate, channels, dtype) == (48000, 1, "float32")
    def __enter__(self):
        return self
    def __exit__(self, *_):
        pass
    def read(self, frames):
        READ
"""


@pytest.mark.parametrize(
    ("read", "value", "advice"),
    [
        ("return np.full((frames, 1), -0.1, np.float32), False", "-20 dBFS RMS", ""),
        ("return np.zeros((frames, 1), np.float32), False", "-120 dBFS RMS", "nearly silent"),
        ("time.sleep(600)", "gave nothing within 3 s", "close what else uses it"),
        ("raise RuntimeError('Invalid sample rate')", "RuntimeError: Invalid sample rate", "close what else"),
    ],
)
def test_microphones_are_listed_and_the_default_one_is_heard_or_given_up(
    read: str, value: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package_before_all_others(monkeypatch, tmp_path, "sounddevice", SOUNDDEVICE.replace("READ", read))
    monkeypatch.chdir(tmp_path)
    before = sorted(os.listdir(tmp_path))
    mic, line = microphones()
    assert (line.name, line.ok, line.value) == ("microphone 2", None, "line, 8000 Hz, 1 channels")
    assert mic.name == "microphone 1"
    assert mic.value == f"USB Mic, 48000 Hz, 2 channels, default: {value}"
    assert mic.ok is (True if "dBFS" in value else None)
    assert mic.advice.startswith(advice)
    assert bool(mic.advice) == bool(advice)
    assert sorted(set(os.listdir(tmp_path)) - {"__pycache__"}) == before


def test_no_portaudio_is_no_fault_and_its_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package_before_all_others(
        monkeypatch, tmp_path, "sounddevice", "raise OSError('PortAudio library not found')"
    )
    [check] = [check for check in packages(needed=True) if check.name == "sounddevice"]
    assert check == Check(
        "sounddevice",
        None,
        "OSError: PortAudio library not found",
        "for microphones: sudo apt install libportaudio2",
    )
