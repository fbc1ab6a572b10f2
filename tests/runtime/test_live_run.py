"""``vaemotion run`` on live devices, in its own process: none at the start, all lost and brought back."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.live_peers import free_port, mjpeg_server, sound_server, tone, until
from tests.paths import ROOT
from tests.web_peers import page

READY = ROOT / "models" / "vaemotion-tiny-bundle"  # it narrates, which a random model does not
Record = dict[str, Any]
GRACE_S = 3.0  # age of evidence from which on its device must have been found frozen, also on a busy machine


class Live:
    """A running installation, its timeline, and what it has open."""

    def __init__(
        self,
        bundle: Path,
        folder: Path,
        camera: str,
        *words: str,
        microphone: str = "default",
        terminal: str = "",
    ) -> None:
        """Start it; ``terminal``: a name of a terminal, for one of its own."""
        self.folder, self.timeline = folder, folder / "timeline.jsonl"
        self.config = folder / "live.toml"
        self.config.write_text(
            f'[camera]\ndevice = "{camera}"\n[microphone]\ndevice = "{microphone}"\n'
            "[narrator]\nevery_s = 1.0\n"
        )
        words = ("run", str(bundle), "--config", str(self.config), "--threads", "1", *words)
        # The leader of a new session gets the first terminal that it opens.
        shell = ("sh", "-c", 'exec <>"$0" >&0; exec "$@"', terminal) if terminal else ()
        self.process = subprocess.Popen(
            [*shell, sys.executable, "-m", "vaemotion", *words, "--out", f"jsonl:{self.timeline}"],
            start_new_session=bool(terminal),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(folder)},
        )
        self._taken = 0
        self.printed = ""
        self.records: list[Record] = []

    def read(self) -> list[Record]:
        """Every record so far."""
        if self.timeline.exists():
            lines = self.timeline.read_bytes().split(b"\n")[:-1]
            self.records += [json.loads(line) for line in lines[len(self.records) :]]
        return self.records

    def newest(self, kind: str) -> Record | None:
        return next((record for record in reversed(self.read()) if record["type"] == kind), None)

    def wait_for(self, what: str, holds: Callable[[], bool]) -> None:
        until(lambda: self.process.poll() is not None or holds(), what)
        assert self.process.poll() is None, self.process.communicate()[1]

    def wait_for_path(self, path: str) -> None:
        self.wait_for(path, lambda: (self.newest("reading") or {}).get("path") == path)

    def wait_for_devices(self, **states: str) -> None:
        def hold() -> bool:
            status = self.newest("status") or {}
            return all(status.get(name, {}).get("state") == state for name, state in states.items())

        self.wait_for(f"{states}", hold)

    def written_files(self) -> set[str]:
        """Regular files that the process has open for writing, and those that came to lie in its folders."""
        found: set[str] = set()
        for link in Path(f"/proc/{self.process.pid}/fd").iterdir():
            try:
                is_file, flags = (
                    stat.S_ISREG(link.stat().st_mode),
                    (link.parents[1] / "fdinfo" / link.name).read_text(),
                )
            except OSError:
                continue
            if is_file and int(flags.split("flags:")[1].split()[0], 8) & (os.O_WRONLY | os.O_RDWR):
                found.add(os.path.realpath(link))
        return found

    def end(self) -> Record:
        self.process.send_signal(signal.SIGTERM)
        self.printed = "".join(self.process.communicate(timeout=120))
        assert self.process.returncode == 128 + signal.SIGTERM
        end = self.read()[-1]
        assert (end["type"], end["reason"]) == ("end", "interrupted")
        return end

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def lives() -> Iterator[list[Live]]:
    started: list[Live] = []
    yield started
    for live in started:
        live.kill()


def test_devices_come_go_freeze_and_come_back(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lives: list[Live]
) -> None:
    port = free_port()
    with sound_server(tmp_path, monkeypatch, running=False) as room:
        live = Live(small_bundle, tmp_path, f"http://127.0.0.1:{port}/camera")
        lives.append(live)
        live.wait_for_devices(camera="absent", microphone="absent")
        assert live.newest("reading") is None

        with mjpeg_server(port) as camera:
            live.wait_for_path("visual")
            room.start()
            live.wait_for_path("audio-visual")
            room.kill()
            live.wait_for_path("visual")
            room.start()
            live.wait_for_path("audio-visual")
            camera.mode = "silent"
            live.wait_for_path("audio")
            camera.mode = "same"  # a still scene
            live.wait_for_path("audio-visual")
        live.wait_for_path("audio")
        with mjpeg_server(port):
            live.wait_for_path("audio-visual")
            live.end()
    assert_nothing_stale_was_published(live.records)


def assert_nothing_stale_was_published(records: list[Record]) -> None:
    """Assert that every reading rests on live and young evidence, and on no device that was gone."""
    gone: dict[str, float] = {}
    readings = 0
    for record in records:
        changes = re.findall(r"^(camera|microphone) (\w+)", record.get("text", ""))
        for role, state in changes if record["type"] == "notice" else ():
            gone.pop(role, None)
            if state in ("frozen", "lost"):
                gone[role] = record["time_s"]
        if record["type"] == "reading":
            readings += 1
            ages_s = {"camera": record["visual_age_s"], "microphone": record["audio_age_s"]}
            for role, age_s in ages_s.items():
                assert age_s is None or 0 <= age_s <= GRACE_S, record
                assert age_s is None or role not in gone, (role, record)
            rests_on = {
                "audio": {"microphone"},
                "visual": {"camera"},
                "audio-visual": {"camera", "microphone"},
            }
            assert {role for role, age_s in ages_s.items() if age_s is not None} == rests_on[record["path"]]
    assert readings > 20


def test_what_a_show_asks_for_what_it_is_told_and_what_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lives: list[Live]
) -> None:
    port = free_port()
    room_folder = tmp_path / "room"
    room_folder.mkdir()
    with sound_server(room_folder, monkeypatch) as room, mjpeg_server(port), room.playing(tone(440, 0.3, 60)):
        live = Live(READY, tmp_path, f"http://127.0.0.1:{port}/camera")
        lives.append(live)
        live.wait_for_path("audio-visual")
        live.wait_for("engaged", lambda: (live.newest("reading") or {})["state"] == "engaged")
        live.wait_for("a narration", lambda: live.newest("narration") is not None)
        assert ", " in live.newest("narration")["text"]  # type: ignore[index] - content, arousal and valence
        status = live.newest("status")
        assert status is not None
        assert status["camera"]["state"] == status["microphone"]["state"] == "live"
        assert abs(status["skew_ms"]) < 1000
        assert status["latency_p99_ms"] is not None
        assert live.written_files() == {str(live.timeline)}

        live.config.write_text("[show]\nsmoothing = 1.0\n")
        live.process.send_signal(signal.SIGHUP)
        live.wait_for("a refusal", lambda: "not reloaded" in (live.newest("notice") or {"text": ""})["text"])
        assert "smoothing_s" in live.newest("notice")["text"]  # type: ignore[index] - the nearest key
        live.config.write_text('[narrator]\nevery_s = 1.0\nquestion = "What is this?"\n')
        live.process.send_signal(signal.SIGHUP)
        live.wait_for("a name alone", lambda: ", " not in live.newest("narration")["text"])  # type: ignore[index]
        live.config.write_text('[show]\nopening_hours = ["00:00-00:01"]\nempty_after_s = 60.0\n')
        live.process.send_signal(signal.SIGHUP)
        live.wait_for(
            "closed",
            lambda: (live.newest("status") or {})["state"] == "muted" or time.localtime()[3:5] == (0, 0),
        )
        live.end()
    made = {path.name for path in tmp_path.rglob("*") if path.is_file() and room_folder not in path.parents}
    assert made == {"live.toml", "timeline.jsonl"}


SECRETS = ("s3cret", "p%4055", "p@55")  # p@55 as its URL spells it, and as it is


def test_a_camera_s_password_is_told_by_nothing_that_a_run_gives(tmp_path: Path, lives: list[Live]) -> None:
    from vaemotion.cli.main import main

    port, page_port = free_port(), free_port()
    address = f"127.0.0.1:{port}/user=admin_password=s3cret_channel=1?key=s3cret&token=p%4055#s3cret"
    camera = f"http://anna-s3cret:p%4055@{address}"
    told: list[bytes] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as show:
        show.bind(("127.0.0.1", 0))
        show.settimeout(0.0)
        outs = ("--out", "console", "--out", f"osc:127.0.0.1:{show.getsockname()[1]}")
        outs += ("--out", f"web:{page_port}", "--keep-media", str(tmp_path / "kept"))
        live = Live(READY, tmp_path, camera, *outs, microphone="none")
        lives.append(live)

        def listen() -> None:
            with contextlib.suppress(BlockingIOError):
                while True:
                    told.append(show.recv(65536))

        live.wait_for_devices(camera="absent")
        with page(SimpleNamespace(port=page_port)) as viewer, mjpeg_server(port) as server:  # type: ignore[arg-type]
            server.mode = "refuses"
            live.wait_for("a refusal", lambda: "401" in (live.newest("notice") or {"text": ""})["text"])
            server.mode = "moves"
            live.wait_for_path("visual")
            live.config.write_text(f'[camera]\ndevice = "rtmp://anna:s3cret@{address}"\nwidth_px = 0\n')
            live.process.send_signal(signal.SIGHUP)
            live.wait_for(
                "a refusal", lambda: "not reloaded" in (live.newest("notice") or {"text": ""})["text"]
            )
            listen()
            shown = [viewer.recv(timeout=60)]
            while '"reading"' not in str(shown[-1]):
                viewer.send(str(len(shown)))
                shown.append(viewer.recv(timeout=60))
            told += [str(message).encode() for message in shown]
            live.end()
        listen()
    assert main(["report", str(live.timeline)]) == 0
    assert any(b"/vaemotion/1/status/source" in packet for packet in told)
    assert f"http://127.0.0.1:{port}/…" in live.printed
    assert "password" in live.printed  # the warning that others may read the configuration
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path != live.config]
    assert {path.name for path in files} == {"timeline.jsonl", "timeline.html", "pictures.mkv"}
    for secret in SECRETS:
        assert secret not in live.printed
        assert not [packet for packet in told if secret.encode() in packet]
        assert not [path for path in files if secret.encode() in path.read_bytes()]


def test_faces_and_voices_are_written_only_when_asked_for(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lives: list[Live]
) -> None:
    port, room_folder = free_port(), tmp_path / "room"
    room_folder.mkdir()
    with sound_server(room_folder, monkeypatch), mjpeg_server(port):
        live = Live(
            small_bundle, tmp_path, f"http://127.0.0.1:{port}/camera", "--keep-media", str(tmp_path / "kept")
        )
        lives.append(live)
        live.wait_for_path("audio-visual")
        kept = {str(tmp_path / "kept" / name) for name in ("pictures.mkv", "sound.mkv")}
        live.wait_for("files", lambda: live.written_files() == {str(live.timeline), *kept})
        live.end()


def test_a_slow_camera_is_held_from_frame_to_frame_and_a_closed_terminal_ends_the_run(
    small_bundle: Path, tmp_path: Path, lives: list[Live]
) -> None:
    port, (terminal, end) = free_port(), os.openpty()
    with mjpeg_server(port, rate_hz=0.5):
        camera, words = f"http://127.0.0.1:{port}/camera", ("--out", "console")
        live = Live(small_bundle, tmp_path, camera, *words, microphone="none", terminal=os.ttyname(end))
        lives.append(live)
        live.wait_for("readings", lambda: sum(each["type"] == "reading" for each in live.read()) >= 40)
        os.close(end)
        os.close(terminal)
        live.process.communicate(timeout=120)
    assert live.process.returncode == 128 + signal.SIGHUP
    assert live.read()[-1]["reason"] == "interrupted"
    readings = [each for each in live.records if each["type"] == "reading"]
    assert {each["path"] for each in readings} == {"visual"}
    assert max(each["visual_age_s"] for each in readings) > 1.0
    told = [each["text"] for each in live.records if each["type"] == "notice"]
    assert "camera live" in told
    assert not [text for text in told if "frozen" in text or "latency" in text]


def test_a_recording_of_features_gives_the_readings_again(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runtime.commands.timeline.read import read_timeline
    from tests.media import write_work
    from vaemotion.cli.main import main

    clip, features = write_work(tmp_path / "clip.mkv", 2.0), tmp_path / "features"
    first, again = tmp_path / "first.jsonl", tmp_path / "again.jsonl"
    words = ["record", str(small_bundle), str(clip), "--pace", "max", "--to", str(features)]
    assert main([*words, "--out", f"jsonl:{first}"]) == 0
    assert main(["run", str(small_bundle), "--replay", str(features), "--out", f"jsonl:{again}"]) == 0
    assert read_timeline(first).readings == read_timeline(again).readings
    assert main(["run", str(small_bundle), "--replay", str(clip), "--out", f"jsonl:{again}"]) == 1


def test_a_service_is_told_of_progress(
    small_bundle: Path, tmp_path: Path, lives: list[Live], monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(manager))
        receiver.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", str(manager))
        monkeypatch.setenv("WATCHDOG_USEC", "500000")
        monkeypatch.setenv("PULSE_SERVER", f"unix:{tmp_path}/nobody")
        live = Live(small_bundle, tmp_path, f"http://127.0.0.1:{free_port()}/camera")
        lives.append(live)
        told = [receiver.recv(4096).decode() for _ in range(4)]
        live.end()
        while not told[-1].startswith("STOPPING=1"):
            told.append(receiver.recv(4096).decode())
    assert told[0].startswith("READY=1")
    assert told.count("WATCHDOG=1") >= 3  # without any device: to wait for one is no hang


def test_what_makes_no_sense_is_said(
    small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vaemotion.cli.main import main

    config = tmp_path / "live.toml"
    config.write_text('[camera]\ndevise = "0"\n')
    for words, exit_code, told in [
        (["--pace", "max"], 2, "--pace max is for files"),
        (["--config", str(config)], 2, "device"),
        (["--config", str(tmp_path / "none.toml")], 2, "none.toml"),
        (["--set", "camera.device=0"], 2, "--config"),
    ]:
        assert main(["run", str(small_bundle), *words]) == exit_code, words
        assert told in capsys.readouterr().err
