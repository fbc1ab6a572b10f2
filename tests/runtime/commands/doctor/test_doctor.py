"""``vaemotion doctor`` on this machine's real packages and engines, and on substituted ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.commands.doctor.checks import Check, cameras, microphones, onnxruntime_wheels, packages
from runtime.commands.doctor.doctor import doctor, examine
from runtime.commands.doctor.probes import measure_camera
from runtime.machine.child_process import ProbeError
from tests.live_peers import sound_server, tone
from tests.paths import ROOT
from vaemotion.data.manifest.writer import write_clip

MACHINE = ("vaemotion", "system", "device", "processor", "gpu", "memory", "temperature", "disk")
CORE = ("numpy", "opencv", "av", "soxr", "tokenizers", "sounddevice", "onnxruntime", "llama-cpp-python")
ENGINES = ("TensorRT", "ONNX Runtime CUDA", "ONNX Runtime CPU", "llama.cpp")
OF_A_BUNDLE = ("bundle", "room in memory", "front end", "engines", "readings", "language model")


def report_of(text: str) -> dict[str, dict[str, Any]]:
    """Return a JSON report's checks by name; no name occurs twice."""
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
    """Let the doctor's child processes import ``code`` as the package ``name``."""
    (folder / f"{name}.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_an_intact_bundle_works_and_the_json_is_complete(
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
    assert "readings/s possible (target 10): vision_encoder" in checks["readings"]["value"]  # a tick of 0.1 s
    assert checks["front end"]["value"].startswith("matches the exporting machine (max difference: log_mel")
    assert checks["language model"]["value"].startswith("40 prompt tokens in ")
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


def test_a_folder_without_a_bundle_is_a_fault_and_the_machine_is_described_all_the_same(
    tmp_path: Path,
) -> None:
    checks = {check.name: check for check in examine(tmp_path / "nowhere")}
    assert checks["bundle"].ok is False
    assert "no bundle at" in checks["bundle"].value
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
        "from runtime.commands.doctor.checks import packages;"
        f"found = [c for needed in (False, True) for c in packages(needed) if c.name == {name!r}];"
        "print(*[(c.ok, c.value, c.advice) for c in found], sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str((ok, "not installed", way_out)) for ok in (None, False)]


def test_a_missing_extra_does_not_stop_the_report() -> None:
    code = (
        "import sys;"
        "sys.modules['onnxruntime'] = sys.modules['llama_cpp'] = sys.modules['matplotlib'] = None;"
        "from runtime.commands.doctor.doctor import doctor; sys.exit(doctor(None, as_json=True))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
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
def test_a_package_that_breaks_on_import_is_a_fault_and_the_others_are_still_checked(
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


CV2 = """
import itertools, time
import numpy as np
CAP_V4L2 = 200

class VideoCapture:
    def __init__(self, path, backend):
        self.frames = itertools.count()
    def isOpened(self):
        return True
    def read(self):
        time.sleep(0.05 * (next(self.frames) > 0))
        return True, np.full((480, 640, 3), VALUE, np.uint8)
"""


@pytest.mark.parametrize(
    ("value", "brightness", "advice"),
    [(3, "brightness 1%", "dark: "), (120, "brightness 47%", ""), (255, "brightness 100%", "overexposed: ")],
)
def test_a_camera_is_described_by_size_rate_and_light(
    value: int, brightness: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package_before_all_others(monkeypatch, tmp_path, "cv2", CV2.replace("VALUE", str(value)))
    (tmp_path / "video0").touch()
    [check] = cameras(tmp_path, tmp_path)
    assert check.ok is True
    size, rate, light = check.value.split(", ")
    assert (size, light) == ("video0: 640 x 480", brightness)
    assert 1 <= float(rate.removesuffix(" frames/s")) <= 20  # one in 50 ms, or fewer on a busy machine
    assert check.advice.startswith(advice)
    assert bool(check.advice) == bool(advice)


def test_a_video_through_opencv_is_measured(tmp_path: Path) -> None:
    import cv2

    frames = np.zeros((20, 48, 64, 3), np.uint8)
    frames[-1, :36] = 255  # three quarters of the newest frame are blown out
    write_clip(tmp_path / "clip.mkv", frames, 10, None)
    measured = measure_camera(cv2.VideoCapture(str(tmp_path / "clip.mkv")))
    assert (measured["width_px"], measured["height_px"]) == (64, 48)
    assert measured["brightness"] == pytest.approx(0.75, abs=0.02)
    assert measured["blown_out"] == pytest.approx(0.75, abs=0.05)
    assert measured["rate_hz"] > 0
    with pytest.raises(ProbeError, match="delivers no frame"):
        measure_camera(cv2.VideoCapture(str(tmp_path / "nothing.mkv")))


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

def query_devices(index=None):
    return DEVICES if index is None else DEVICES[index]

class InputStream:
    def __init__(self, device, samplerate, channels, dtype):
        assert (device, samplerate) in ((1, 48000), (2, 8000))
        assert (channels, dtype) == (1, "float32")
        self.device = device
    def __enter__(self):
        return self
    def __exit__(self, *_):
        pass
    def read(self, frames):
        signs = np.where(np.arange(frames) % 2, 1, -1).astype(np.float32)[:, None]
        if self.device == 2:
            return 0.01 * signs, False
        READ
"""


@pytest.mark.parametrize(
    ("read", "value", "advice"),
    [
        ("return 0.1 * signs + 0.3, False", "-17 dBFS", ""),  # a square wave is 3 dB louder than a sine
        ("return 0 * signs, False", "-120 dBFS", "nearly silent"),
        ("return signs, False", "3 dBFS", "clips: turn its gain down"),
        ("time.sleep(600)", "gave nothing within 3 s", "close other programs that use it"),
        (
            "raise RuntimeError('Invalid sample rate')",
            "RuntimeError: Invalid sample rate",
            "close other programs",
        ),
    ],
)
def test_every_microphone_is_measured_or_reported_with_advice(
    read: str, value: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package_before_all_others(monkeypatch, tmp_path, "sounddevice", SOUNDDEVICE.replace("READ", read))
    monkeypatch.chdir(tmp_path)
    before = sorted(os.listdir(tmp_path))
    mic, line = microphones()
    assert line == Check("microphone 2", True, "line, 8000 Hz, 1 channels: -37 dBFS")
    assert mic.name == "microphone 1"
    assert mic.value == f"USB Mic, 48000 Hz, 2 channels, default: {value}"
    assert mic.ok is (True if "dBFS" in value else None)
    assert mic.advice.startswith(advice)
    assert bool(mic.advice) == bool(advice)
    assert sorted(set(os.listdir(tmp_path)) - {"__pycache__"}) == before


def test_a_real_microphone_is_measured_through_portaudio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sound_server(tmp_path, monkeypatch) as server:
        silent = [check for check in microphones() if "default:" in check.value]
        with server.playing(tone(440, 0.1, 60.0)):
            heard = [check for check in microphones() if "default:" in check.value]
    assert [check.ok for check in silent + heard] == [True, True]
    assert silent[0].advice.startswith("nearly silent")
    level_dbfs = float(heard[0].value.rpartition(": ")[2].removesuffix(" dBFS"))
    # a sine of a tenth of full scale; a busy machine leaves gaps
    assert level_dbfs == pytest.approx(-20, abs=3)
    assert heard[0].advice == ""


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
