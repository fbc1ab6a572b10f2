"""``vaemotion plot``: legible for runs of seconds and of hours, with gaps and omissions shown."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from runtime.commands.timeline.plot import (
    DARK,
    MOST_NARRATIONS,
    draw,
    figure_bytes,
    plot,
    shown_narrations,
    spread_out,
    time_ticks,
)
from runtime.commands.timeline.read import Timeline, TimelineError
from runtime.messages import Narration
from tests.runtime.commands.timeline.test_read import (
    START,
    messages_of,
    reading,
    readings,
    timeline_of,
    write,
)
from vaemotion.contract.errors import UsageError


def narrations(
    count: int, duration_s: float, text: str = "a red square, stirring and pleasant"
) -> tuple[Narration, ...]:
    about_s = [(k + 0.5) * duration_s / count for k in range(count)]
    return tuple(Narration(t + 0.3, t, f"{text} {k}") for k, t in enumerate(about_s))


def text_artists(figure: Any) -> list[Any]:
    """Return all texts of a figure: titles, words, numbers of marks, labels of ticks."""
    visible = [axes for axes in figure.axes if axes.axison]
    ticks = [label for axes in visible for label in (*axes.get_xticklabels(), *axes.get_yticklabels())]
    artists = (*figure.texts, *(text for axes in figure.axes for text in axes.texts), *ticks)
    return [artist for artist in artists if artist.get_text()]


def texts(figure: Any) -> list[str]:
    return [artist.get_text() for artist in text_artists(figure)]


def boxes(figure: Any) -> dict[str, tuple[float, float, float, float]]:
    """Return left, bottom, right and top of each text in dots, numbered because texts may be equal."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    artists = enumerate(text_artists(figure))
    return {f"{k}: {a.get_text()}": tuple(a.get_window_extent(renderer).extents) for k, a in artists}


LONG = 4 * (
    "The brush strokes grow restless, a low drone under them holds the picture back before it opens into "
    "red. "
)
RUNS = {
    "3 s": timeline_of(3.0, narrations=narrations(2, 3.0)),
    "30 s": timeline_of(30.0, narrations=narrations(5, 30.0)),
    "59 s": timeline_of(59.0, narrations=narrations(12, 59.0)),
    "20 min": timeline_of(1200.0, hz=2.0, narrations=narrations(40, 1200.0)),
    "2 h": timeline_of(7200.0, hz=1.0, narrations=narrations(700, 7200.0)),
    "3 days": timeline_of(260_000.0, hz=0.02, narrations=narrations(30, 260_000.0)),
    "long sentences": timeline_of(30.0, narrations=narrations(12, 30.0, LONG)),
    "an endless word": timeline_of(30.0, narrations=narrations(3, 30.0, "x" * 400)),
    "long names": timeline_of(
        start=replace(START, source="/art/" + "a-long-name-" * 20, bundle="bundle-" * 30)
    ),
    "all narrations at the end": timeline_of(30.0, narrations=narrations(200, 30.0)[-12:]),
    "all narrations at the start": timeline_of(30.0, narrations=narrations(200, 30.0)[:12]),
    "one reading": timeline_of(0.1, narrations=()),
    "killed, nothing known": timeline_of(30.0, start=None, end=None),
}


@pytest.mark.parametrize("timeline", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("width_in", [10.0, 4.4])
def test_no_text_overlaps_another_or_leaves_the_figure(timeline: Timeline, width_in: float) -> None:
    figure = draw(timeline, width_in=width_in, texts=width_in > 5)
    found = boxes(figure)
    assert len(found) > 20
    width, height = figure.bbox.size
    for name, (left, bottom, right, top) in found.items():
        assert left >= 0 and bottom >= 0 and right <= width and top <= height, name  # noqa: PT018
    for (name, a), (other, b) in combinations(found.items(), 2):
        apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        assert apart, f"{name!r} overlaps {other!r}"


def test_a_png_appears_beside_the_timeline_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "run.jsonl", messages_of(timeline_of()))
    plot(file, None)
    image = cv2.imread(str(tmp_path / "run.png"))
    assert image is not None
    assert image.shape[1] == 1600
    assert image.std() > 5  # something is drawn
    assert capsys.readouterr().out == f"plot: {tmp_path / 'run.png'}\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.jsonl", "run.png"]


def test_a_damaged_timeline_or_another_ending_leaves_no_plot(tmp_path: Path) -> None:
    file = write(tmp_path / "run.jsonl", messages_of(timeline_of()))
    before = file.read_bytes()
    with pytest.raises(UsageError, match=r"ends in \.png, got .*run\.jsonl"):
        plot(file, file)
    assert file.read_bytes() == before
    file.write_text("{oops\n" + file.read_text())
    with pytest.raises(TimelineError, match="line 1: not JSON"):
        plot(file, None)
    assert not (tmp_path / "run.png").exists()


def test_the_title_names_source_bundle_and_duration() -> None:
    shown = texts(draw(timeline_of(125.0, hz=2.0)))
    assert "red square.mp4" in shown
    assert "tiny  ·  2 min 05 s  ·  250 readings  ·  2 narrations" in shown
    assert any("did not end by itself" in text for text in texts(draw(timeline_of(end=None))))


def test_each_narration_is_listed_with_its_time_and_a_cut_one_is_marked() -> None:
    figure = draw(timeline_of())
    assert {"1.0 s", "a red square – stirring", "2.0 s", "a bell"} <= set(texts(figure))
    marks, listed = ([text.get_text() for text in figure.axes[k].texts] for k in (2, 3))
    assert marks == listed == ["1", "2"]


def test_too_many_narrations_are_thinned_out_evenly_and_the_plot_says_so() -> None:
    many = narrations(111, 300.0)
    chosen = shown_narrations(timeline_of(300.0, narrations=many))
    assert chosen == tuple(many[k] for k in range(0, 111, 10))
    assert len(chosen) == MOST_NARRATIONS
    assert any(
        "12 of 111 narrations are shown" in text for text in texts(draw(timeline_of(300.0, narrations=many)))
    )


def test_formula_signs_and_other_scripts_are_plain_text() -> None:
    odd = (
        Narration(1.0, 1.0, r"costs $5^^ or \frac$ more"),
        Narration(2.0, 2.0, "七色の絵 🎨 \x07"),
    )
    figure = draw(timeline_of(narrations=odd))
    assert r"costs $5^^ or \frac$ more" in texts(figure)
    assert figure_bytes(figure, "png").startswith(b"\x89PNG")  # a warning would fail the test


def test_where_nothing_was_published_no_line_is_drawn_and_nothing_is_live() -> None:
    kept = tuple(r for r in readings(30.0) if not 10 < r.time_s < 20)
    valence, _, tracks = draw(timeline_of(30.0, readings=kept), texts=False).axes[:3]
    curve: Any = next(line for line in valence.lines if len(line.get_xdata()) > 100)
    time_s, values = np.asarray(curve.get_xdata()), np.asarray(curve.get_ydata())
    [gap] = np.flatnonzero(np.isnan(values))
    assert time_s[gap - 1] == pytest.approx(10.0)
    assert time_s[gap + 1] == pytest.approx(20.0)
    for live in tracks.collections[:2]:
        ends = [path.get_extents().intervalx for path in live.get_paths()]
        np.testing.assert_allclose(ends, [[0.1, 10.1], [20.0, 30.1]])


def test_the_tracks_show_when_each_modality_was_live() -> None:
    paths = ["visual"] * 30 + ["audio-visual"] * 50 + ["audio"] * 20
    mixed = tuple(reading((k + 1) / 10, path) for k, path in enumerate(paths))
    figure: Any = draw(timeline_of(10.0, readings=mixed), texts=False)
    audio, visual = figure.axes[2].collections[:2]
    np.testing.assert_allclose([p.get_extents().intervalx for p in audio.get_paths()], [[3.1, 10.1]])
    np.testing.assert_allclose([p.get_extents().intervalx for p in visual.get_paths()], [[0.1, 8.1]])
    assert {"70%", "80%"} <= set(texts(figure))


def test_a_single_reading_is_visible() -> None:
    with_one = figure_bytes(
        draw(timeline_of(1.0, readings=(reading(0.5),), narrations=()), texts=False), "png"
    )
    image = cv2.imdecode(np.frombuffer(with_one, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    blue, green, red = (image[..., k].astype(int) for k in range(3))
    panel = slice(image.shape[0] // 8, image.shape[0] // 3), slice(200, 1300)
    assert ((green - red)[panel] > 60).sum() > 20  # the valence's green, inside its panel
    assert (blue[panel] < 255).all()


@pytest.mark.parametrize(
    ("duration_s", "labels", "unit"),
    [
        (3, ["0", "0.5", "1", "1.5", "2", "2.5", "3"], "seconds"),
        (30, ["0", "5", "10", "15", "20", "25", "30"], "seconds"),
        (60, ["0:00", "0:10", "0:20", "0:30", "0:40", "0:50", "1:00"], "min : s"),
        (7200, ["0:00", "0:15", "0:30", "0:45", "1:00", "1:15", "1:30", "1:45", "2:00"], "h : min"),
        (86400 * 20, ["0:00", "72:00", "144:00", "216:00", "288:00", "360:00", "432:00"], "h : min"),
    ],
)
def test_the_time_axis_has_round_times(duration_s: float, labels: list[str], unit: str) -> None:
    assert time_ticks(duration_s, 8)[1:] == (labels, unit)


def test_marks_keep_their_distance_and_stay_on_the_axis() -> None:
    free = np.array([1.0, 4.0, 9.0])
    np.testing.assert_array_equal(spread_out(free, 1.0, 0, 10), free)
    np.testing.assert_allclose(spread_out(np.array([1.0, 1.1, 1.2, 6.0]), 1.0, 0, 10), [1, 2, 3, 6])
    np.testing.assert_allclose(spread_out(np.array([9.5, 9.6, 9.9]), 1.0, 0, 10), [8, 9, 10])
    np.testing.assert_allclose(spread_out(np.array([5.0, 5.0, 5.0]), 9.0, 0, 10), [0, 5, 10])
    assert spread_out(np.array([]), 1.0, 0, 10).size == 0


def test_the_same_timeline_gives_the_same_bytes() -> None:
    first, second = (figure_bytes(draw(timeline_of(), palette=DARK), "svg") for _ in range(2))
    assert first == second


def test_a_missing_matplotlib_is_reported_with_the_extra_to_install(tmp_path: Path) -> None:
    file = write(tmp_path / "run.jsonl", messages_of(timeline_of()))
    code = (
        "import sys; sys.modules['matplotlib'] = None;"  # as if it were not installed
        "from pathlib import Path; from runtime.commands.timeline.plot import plot;"
        "from vaemotion.contract.errors import UserError\n"
        f"try: plot(Path({str(file)!r}), None)\n"
        "except UserError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "plots need matplotlib: install it with `pip install 'vaemotion[plot]'`\n"
    assert not (tmp_path / "run.png").exists()
