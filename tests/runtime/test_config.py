"""The live configuration: all mistakes at once, each by its key, and no crash whatever the file holds."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.config import LiveConfig, exposed_password, read_live_config
from runtime.show.show import ShowConfig
from runtime.sources.gstreamer import pipeline_command
from tests.paths import ROOT
from vaemotion.contract.address import Address
from vaemotion.contract.errors import UsageError
from vaemotion.contract.settings import SettingsError

TOKEN = "0123456789abcdef"
EXAMPLE = ROOT / "configs" / "live.toml"


@pytest.fixture
def live(tmp_path: Path) -> Path:
    (tmp_path / "live.toml").write_text("")
    return tmp_path / "live.toml"


def problems(file: Path, text: str, *overrides: str) -> tuple[str, ...]:
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        read_live_config(file, overrides)
    return caught.value.problems


def test_the_example_shows_every_key_with_its_default() -> None:
    assert read_live_config(EXAMPLE) == LiveConfig()
    text = EXAMPLE.read_text()
    for section in fields(LiveConfig):
        part = text.split(f"\n[{section.name}]")[1].split("\n[")[0]
        for key in fields(getattr(LiveConfig(), section.name)):
            assert f"\n{key.name} = " in part, f"{section.name}.{key.name}"


def test_what_the_example_shows_behind_a_sign_is_possible_too(
    live: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAMERA_KEY", "k3y")
    lines = [line.partition("# ")[2] for line in EXAMPLE.read_text().splitlines()]
    sections = {"device": "camera", "sinks": "out", "opening_hours": "show", "question": "narrator"}
    examples = [line for line in lines if line.startswith(tuple(f"{key} = " for key in sections))]
    assert len(examples) == 9
    for example in examples:
        live.write_text(f"[{sections[example.split(' ')[0]]}]\n{example}")
        assert read_live_config(live) != LiveConfig()


def test_a_file_changes_what_it_names_and_an_override_beats_it(live: Path) -> None:
    live.write_text(
        '[camera]\ndevice = "/dev/v4l/by-id/usb-Cam"\nrotate_degrees = 90\n[show]\nsmoothing_s = 2\n'
        '[out]\nsinks = ["osc:10.0.0.2:9000", "web:8080"]\n'
    )
    config = read_live_config(live, ["camera.rotate_degrees=270", "microphone.device=USB Mic"])
    assert (config.camera.device.reveal(), config.camera.rotate_degrees) == ("/dev/v4l/by-id/usb-Cam", 270)
    assert (config.microphone.device, config.show.smoothing_s) == ("USB Mic", 2.0)
    assert config.out.sinks == ("osc:10.0.0.2:9000", "web:8080")
    assert config.show == ShowConfig(smoothing_s=2.0)
    assert config.camera.width_px == LiveConfig().camera.width_px


@pytest.mark.parametrize("rate_hz", [0.2, 120.0])
def test_slow_and_fast_cameras_can_be_configured(rate_hz: float, live: Path) -> None:
    live.write_text(f"[camera]\nframe_rate_hz = {rate_hz}\nopen_s = 20\n")
    camera = read_live_config(live).camera
    assert (camera.frame_rate_hz, camera.open_s) == (rate_hz, 20.0)


def test_an_index_and_a_port_may_be_numbers(live: Path) -> None:
    live.write_text("[camera]\ndevice = 2\n[controls]\nosc_in = 9001\n")
    config = read_live_config(live, ["microphone.device=5"])
    assert (config.camera.device, config.microphone.device) == (Address("2"), "5")
    assert config.controls.osc_in == "9001"


@pytest.mark.parametrize(
    "device",
    [
        "none", "0", "12", "/dev/video0", "/dev/v4l/by-id/usb-1", "rtsp://10.0.0.9:554/live", "http://cam/video",
        "https://cam/video", "csi:1", "gst:videotestsrc ! videoconvert",
    ],
)  # fmt: skip
def test_every_kind_of_camera_can_be_named(device: str, live: Path) -> None:
    assert read_live_config(live, [f"camera.device='{device}'"]).camera.device.reveal() == device


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ('[camera]\ndevise = "0"', ["there is no key camera.devise; did you mean camera.device?"]),
        ("[camera]\noffset_s = 0.1", ["there is no key camera.offset_s; did you mean camera.offset_ms?"]),
        ("[micro]\n", ["there is no key micro; did you mean microphone?"]),
        ("[show]\nsmoothing = 1", ["there is no key show.smoothing; did you mean show.smoothing_s?"]),
        ('[camera]\ndevice = "webcam"', ["camera.device must be a path such as"]),
        ('[camera]\ndevice = ""', ["camera.device must be a path such as"]),
        ("[camera]\nwidth_px = 1280.0", ["camera.width_px must be a whole number, got 1280.0"]),
        ("[camera]\nwidth_px = true", ["camera.width_px must be a whole number, got true"]),
        ("[camera]\nrotate_degrees = 45", ["camera.rotate_degrees must be 0, 90, 180 or 270, got 45"]),
        (
            "[camera]\nfreeze_s = 800",
            ["camera.freeze_s must be from 0.2 to 30 seconds, got 800"],
        ),
        ("[camera]\nfreeze_s = 0.1", ["camera.freeze_s must be from 0.2 to 30 seconds, got 0.1"]),
        ("[camera]\nfreeze_s = nan", ["camera.freeze_s must be from 0.2 to 30 seconds, got nan"]),
        ("[camera]\nfreeze_s = inf", ["camera.freeze_s"]),
        ("[camera]\nopen_s = 0", ["camera.open_s must be from 0.1 to 60 seconds, got 0"]),
        ("[camera]\nframe_rate_hz = 0", ["camera.frame_rate_hz must be from 0.1 to 240 Hz, got 0"]),
        ('[microphone]\ndevice = " "', ["microphone.device must be a name"]),
        ("[microphone]\nnoise_floor_dbfs = 3", ["from -120 to 0 dBFS, got 3"]),
        ("[narrator]\nevery_s = -1", ["narrator.every_s must be from 0 to 3600 seconds"]),
        ("[narrator]\nsentences = 11", ["narrator.sentences must be from 0 to 10, got 11"]),
        ("[narrator]\nmax_tokens = -1", ["narrator.max_tokens must be from 0 to 500, got -1"]),
        ('[narrator]\nquestion = "a\\nb"', ["narrator.question must be a text of at most 500 characters"]),
        ('[narrator]\nlanguage = ["German"]', ["narrator.language must be a text in quotes"]),
        ('[out]\nsinks = "console"', ["out.sinks must be a list in brackets, got 'console'"]),
        ("[out]\nsinks = [1]", ["out.sinks must be a text in quotes, got 1"]),
        ("[out]\nsinks = []", ["out.sinks must be a list of sinks, each named once"]),
        ('[out]\nsinks = ["console", "console"]', ["each named once"]),
        ('[out]\nsinks = ["osc:9000"]', ["out.sinks must be a list of"]),
        ('[out]\nsinks = ["web:99999"]', ["out.sinks must be a list of"]),
        ('[out]\nsinks = ["jsonl"]', ["out.sinks must be a list of"]),
        ('[out]\nsinks = ["console:x"]', ["out.sinks must be a list of"]),
        ('[out]\nsinks = ["midi:1"]', ["out.sinks must be a list of"]),
        ("[controls]\nosc_in = 0", ["controls.osc_in must be PORT or HOST:PORT"]),
        ('[controls]\nosc_in = "0.0.0.0:9001"', ["controls.allow must name who may control"]),
        ('[controls]\nallow = ["show.local"]', ["controls.allow must be a list of addresses or networks"]),
        ('[web]\npreview = "yes"', ["web.preview must be true or false, got 'yes'"]),
        ("[log]\nkeep = 0", ["log.keep must be from 1 to 1000, got 0"]),
        ('[runtime]\nengine = "gpu"', ["runtime.engine must be tensorrt, cuda, cpu or empty"]),
        ("[runtime]\nthreads = -1", ["runtime.threads must be from 0 to 256"]),
        (f"[camera]\nwidth_px = 0x1{'0' * 5000}", ["camera.width_px", "a number of thousands of digits"]),
        ('[camera]\ndevice = "none"\n[microphone]\ndevice = "none"', ["there is nothing to perceive"]),
        ("camera = 3", ["camera is a section, got 3"]),
        ("[[camera]]\n", ["camera is a section"]),
        ('[show]\nopening_hours = ["noon"]', ["show.opening_hours", "invalid opening hours 'noon'"]),
    ],
)
def test_a_mistake_is_one_sentence_with_file_key_and_way_out(
    text: str, sentences: list[str], live: Path
) -> None:
    [problem] = problems(live, text)
    assert problem.startswith(f"{live}: ")
    assert len(problem) < 400
    for sentence in sentences:
        assert sentence in problem


def test_every_mistake_is_reported_at_once_and_nothing_applies(live: Path) -> None:
    text = "[camera]\nwidht_px = 640\nrotate_degrees = 12\nfreeze_s = 'long'\n"
    text += "[log]\nkeep = 0\nmax_mb = -1\n[sound]\n"
    found = problems(live, text, "runtime.threads=999", "narrator", "web.preveiw=true")
    keys = ["camera.width_px", "camera.rotate_degrees", "camera.freeze_s", "log.keep", "log.max_mb", "sound"]
    assert len(found) == len(keys) + 3
    for key in keys:
        assert sum(key in problem and problem.startswith(str(live)) for problem in found) == 1, key
    assert "--set: runtime.threads must be from 0 to 256, got 999" in found
    assert "--set takes key=value, got 'narrator'" in found
    assert "--set: there is no key web.preveiw; did you mean web.preview?" in found
    with pytest.raises(UsageError, match=r"^9 problems:\n"):
        read_live_config(live, ["runtime.threads=999", "narrator", "web.preveiw=true"])


def test_a_token_must_be_there_and_be_nobody_elses(live: Path) -> None:
    token = live.with_name("token")
    text = '[web]\ntoken_file = "token"\n'
    assert "must be a text file that this user can read" in problems(live, text)[0]
    assert "must be a text file" in problems(live, f"[web]\ntoken_file = '{live.parent}'\n")[0]
    token.touch(mode=0o600)
    assert "cannot be used: a token is 16 to 256 of" in problems(live, text)[0]
    token.write_text(f"{TOKEN}\n")
    token.chmod(0o644)
    assert f"can be read by everybody; run: chmod o-r {token}" in problems(live, text)[0]
    token.chmod(0o640)
    assert read_live_config(live).web.token_file == str(token)  # found from the file's folder


SECRET = "s3c/r@t:p?w d#&%'\""


@pytest.mark.parametrize(
    ("device", "whole"),
    [
        ("rtsp://anna@cam:554/live", "rtsp://anna:{url}@cam:554/live"),
        ("rtsp://anna:${password}@cam/live?channel=1", "rtsp://anna:{url}@cam/live?channel=1"),
        ("http://cam/video?user=anna&key=${password}", "http://cam/video?user=anna&key={url}"),
        (
            "rtsp://cam/user=anna_password=${password}_channel=1",
            "rtsp://cam/user=anna_password={url}_channel=1",
        ),
        ("rtsp://anna:$${x}${password}@cam/", "rtsp://anna:${x}{url}@cam/"),
        ("rtsp://anna:${CAMERA_KEY}@${CAMERA_HOST}/${CAMERA_KEY}", "rtsp://anna:{url}@[::1]:554/{url}"),
        ("${CAMERA_URL}", "rtsp://anna:s3cret@cam/"),
    ],
)
def test_a_password_stands_where_the_address_has_a_place_for_it(
    device: str, whole: str, live: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAMERA_KEY", SECRET)
    monkeypatch.setenv("CAMERA_HOST", "[::1]:554")
    monkeypatch.setenv("CAMERA_URL", "rtsp://anna:s3cret@cam/")
    with_file = "CAMERA" not in device
    file = live.with_name("password")
    file.write_text(f"{SECRET}\n")
    file.chmod(0o600)
    live.write_text(f"[camera]\ndevice = '{device}'\n" + 'password_file = "password"\n' * with_file)
    config = read_live_config(live)
    assert config.camera.device.reveal() == whole.replace("{url}", quote(SECRET, safe=""))
    assert not re.search("s3c|p.w", repr(config) + json.dumps(asdict(config), default=str))


def test_a_pipeline_gets_a_password_as_one_word(live: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMERA_KEY", SECRET)
    monkeypatch.setenv("QUOTED", "no")
    live.write_text(
        "[camera]\ndevice = 'gst:rtspsrc user-pw=${CAMERA_KEY} location=\"rtsp://cam/a b\" ! decodebin'"
    )
    words = pipeline_command(read_live_config(live).camera, 7)
    assert words[2:7] == ["rtspsrc", f"user-pw={SECRET}", "location=rtsp://cam/a b", "!", "decodebin"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "device = 'rtsp://a:${NO_KEY}@cam/s3cret'",
            "camera.device names the variable NO_KEY, which is not set",
        ),
        ("device = 'rtsp://a:${password}@cam/s3cret'", "camera.device names ${password}; name the file"),
        ("device = '0'\npassword_file = 'secret'", "camera.password_file has no place in camera.device"),
        ("device = 'rtsp://a:s3cret@cam/'\npassword_file = 'secret'", "password_file has no place"),
        ("device = 'gst:rtspsrc \"s3cret'\npassword_file = 'secret'", "password_file has no place"),
        (
            "device = 'gst:rtspsrc \"${password}'\npassword_file = 'secret'",
            "camera.device cannot be read as a pipeline",
        ),
        ("device = 'rtsp://a@cam'\npassword_file = 'nowhere'", "camera.password_file must be a text file"),
        ("device = 'rtsp://a@cam'\npassword_file = 'empty'", "/empty' is empty"),
        ("device = 'rtsp://a@cam'\npassword_file = 'open'", "can be read by everybody; run: chmod o-r"),
        (
            "device = '${password}'\npassword_file = 'secret'",
            "camera.device must be, with its secrets, a path",
        ),
    ],
)
def test_a_secret_that_is_missing_is_one_sentence_that_names_the_key(
    text: str, sentence: str, live: Path
) -> None:
    for name, content, mode in (
        ("secret", "s3cret", 0o600),
        ("empty", "\n", 0o600),
        ("open", "s3cret", 0o644),
    ):
        live.with_name(name).write_text(content)
        live.with_name(name).chmod(mode)
    (problem,) = problems(live, f"[camera]\n{text}\n")
    assert sentence in problem
    assert "\n" not in problem
    assert "s3cret" not in problem


@pytest.mark.parametrize(
    ("device", "mode", "warned"),
    [
        ("rtsp://anna:s3cret@cam/", 0o644, True),
        ("rtsp://anna:s3cret@cam/", 0o640, True),
        ("rtsp://anna:s3cret@cam/", 0o600, False),
        ("rtsp://anna:${CAMERA_KEY}@cam/", 0o644, False),
        ("rtsp://cam/live", 0o644, False),
    ],
)
def test_a_configuration_with_a_password_that_others_may_read_is_warned_of(
    device: str, mode: int, warned: bool, live: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAMERA_KEY", "s3cret")
    live.write_text(f"[camera]\ndevice = '{device}'\n")
    live.chmod(mode)
    warning = exposed_password(live)
    assert (warning is not None) == warned
    if warning:
        assert "chmod 600" in warning
        assert "s3cret" not in warning


def test_controls_from_a_network_are_of_those_who_are_named(live: Path) -> None:
    live.write_text('[controls]\nosc_in = "0.0.0.0:9001"\nallow = ["192.168.1.30", "10.0.0.0/24"]\n')
    assert read_live_config(live).controls.allow == ("192.168.1.30", "10.0.0.0/24")


REACHABLE = (("0.0.0.0:", True), ("10.0.0.4:", True), ("[::]:", True))
LOCAL = (("", False), ("localhost:", False), ("[::1]:", False))


@pytest.mark.parametrize(("host", "refused"), [*REACHABLE, *LOCAL])
def test_a_page_that_others_can_reach_needs_a_token(host: str, refused: bool, live: Path) -> None:
    live.write_text(f'[out]\nsinks = ["web:{host}8080"]\n')
    expected: Any = pytest.raises(UsageError, match="token_file must be given") if refused else None
    with expected or contextlib.nullcontext():
        read_live_config(live)
    token = live.with_name("token")
    token.write_text(TOKEN)
    token.chmod(0o600)
    assert read_live_config(live, [f"web.token_file={token}"]).out.sinks == (f"web:{host}8080",)


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    for name, content in (("nowhere.toml", None), ("broken.toml", b"[camera\n"), ("latin.toml", b"# \xe9")):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=f"cannot read the configuration .*{name}"):
            read_live_config(tmp_path / name)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_in_the_file_it_is_read_or_refused(data: st.DataObject, live: Path) -> None:
    text = EXAMPLE.read_text()
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 20)))
    noise = data.draw(
        st.one_of(
            st.binary(max_size=30),
            st.text(max_size=30).map(lambda t: t.encode(errors="replace")),
            st.sampled_from([b"[" * 3000, b"a." * 3000, b"9" * 5000, b"{a={" * 500, b"\0", b'"\\ud800"']),
        )
    )
    live.write_bytes(text[:start].encode() + noise + text[end:].encode())
    overrides = data.draw(st.lists(st.text(max_size=30), max_size=2))
    with contextlib.suppress(UsageError):
        assert isinstance(read_live_config(live, overrides), LiveConfig)
