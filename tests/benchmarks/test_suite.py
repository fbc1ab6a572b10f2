"""The benchmark suite's parts: interleaved timing, ratios, targets, the document and the clips."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from benchmarks.figures import Curve, Figure, Section, times_as_fast, write
from benchmarks.material import clip
from benchmarks.report import DOCUMENT, FOLDER, read_sections, write_document
from benchmarks.timing import Times, interleaved, ratio
from runtime.messages import Frame, Notice, Sound
from runtime.sources.file import FileSource


def test_every_call_is_made_once_a_round_and_the_rounds_orders_differ() -> None:
    made: list[str] = []
    calls = {name: lambda name=name: made.append(name) for name in "abc"}
    times = interleaved(calls, 6, least_s=0.0)
    warm, rounds = made[:6], made[6:]
    assert Counter(warm) == {"a": 2, "b": 2, "c": 2}
    turns = ["".join(rounds[k : k + 3]) for k in range(0, len(rounds), 3)]
    assert {"".join(sorted(turn)) for turn in turns} == {"abc"}
    assert len(set(turns)) > 2
    assert [len(t.wall_ms) for t in times.values()] == [len(t.cpu_ms) for t in times.values()] == [6] * 3


def test_a_ratio_pairs_what_ran_in_the_same_round() -> None:
    found = ratio([1.0, 10.0, 100.0], [1.0, 5.0, 200.0])  # of the medians it would be 2
    assert (found.median, found.least, found.most) == (1.0, 0.5, 2.0)
    times = {"ours": Times([1.0, 5.0, 200.0]), "peer": Times([1.0, 10.0, 100.0])}
    figure = times_as_fast("work", times, "ours", "peer", at_least=1.0)
    assert (figure.value, figure.least, figure.most, figure.met) == (1.0, 0.5, 2.0, True)
    with pytest.raises(ValueError, match="longer"):
        ratio([1.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("value", "at_least", "at_most", "met"),
    [
        (2.0, 2.0, None, True),
        (1.99, 2.0, None, False),
        (0.35, None, 0.35, True),
        (0.36, None, 0.35, False),
        (7.0, None, None, None),
        (0.0, 0.0, None, True),
        (0.1, None, 0.0, False),
    ],
)
def test_a_target_is_met_in_its_own_direction(
    value: float, at_least: float | None, at_most: float | None, met: bool | None
) -> None:
    assert Figure("what", value, value, value, at_least=at_least, at_most=at_most).met is met


def test_the_report_is_made_of_the_files_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    figures = [
        Figure("a slow thing", 1.5, 1.25, 1.75, ours="ours: 3 ms", peer="peer: 4.5 ms", at_least=2.0),
        Figure("a small thing", 200.0, 200.0, 200.0, "MB", at_most=300.0),
        Figure("a thing", 4.0, 3.0, 5.0),
    ]
    curve = Curve("window", "ours", "s", "ms", [1.0, 2.0], [3.0, 3.0])
    section = Section("Growth", "How it was measured.", figures, [curve])
    write(section, FOLDER / "growth.json", seconds=12.3, load_before=0.25)
    (read,) = read_sections()
    assert read.section == section
    write_document([read])
    text = DOCUMENT.read_text(encoding="utf-8")
    targets, _, section_text = text.partition("\n## Growth\n")
    for part in (targets, section_text):
        assert "| a slow thing | 1.5× [1.25, 1.75] | ≥ 2× | **missed** | ours: 3 ms | peer: 4.5 ms |" in part
        assert "| a small thing | 200 MB | ≤ 300 MB | met |  |  |" in part
    assert "| a thing | 4× [3, 5] |  |  |  |  |" in section_text
    assert "a thing | 4×" not in targets  # it has no target
    assert "How it was measured." in section_text
    assert "12 s on" in section_text
    assert "load before it 0.25" in section_text
    for file in ("targets.png", "growth-window.png"):
        assert f"({FOLDER.name}/{file})" in text
        assert (FOLDER / file).read_bytes().startswith(b"\x89PNG")


def test_a_clip_has_every_frame_and_all_of_its_sound_also_after_a_minute(tmp_path: Path) -> None:
    path = clip(tmp_path, 63, fps=2, width=64, height=48)
    source = FileSource(path)
    events = list(source.events())
    assert not [event.text for event in events if isinstance(event, Notice)]
    frames = [event for event in events if isinstance(event, Frame)]
    assert [frame.time_s for frame in frames] == pytest.approx([k / 2 for k in range(126)], abs=2e-3)
    assert frames[125].picture().shape == (48, 64, 3)
    sound_s = sum(len(event.samples) for event in events if isinstance(event, Sound)) / 16_000
    assert 63 <= sound_s < 63.2  # whole packets
    changed_at = path.stat().st_mtime_ns
    assert clip(tmp_path, 63, fps=2, width=64, height=48).stat().st_mtime_ns == changed_at
    assert not [file for file in tmp_path.iterdir() if file.suffix != ".mkv"]
