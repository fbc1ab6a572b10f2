"""A sample of the zoo: device and loader read generated files as ffmpeg and Pillow do, and alike.

The whole zoo is ``scripts/media-zoo``.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.zoo.card import card, fits, read_card, seconds_of, tone
from tests.zoo.children import each
from tests.zoo.compare import examine
from tests.zoo.wanted import WANTED, unwanted
from tests.zoo.workshop import Workshop, ZooFile, missing_tools
from tests.zoo.zoo import sample, zoo

pytest.importorskip("PIL", reason="Pillow is the reference of stills")
pytest.importorskip("pillow_heif", reason="pillow-heif is the reference of HEIC")
needs_ffmpeg = pytest.mark.skipif(bool(missing_tools()), reason=f"{missing_tools()} not found")

FILES, SEED, LIMIT_S = 30, 28, 60.0


@needs_ffmpeg
def test_device_and_loader_read_a_sample_of_the_zoo_as_the_reference_does(tmp_path: Path):
    """No difference from the reference and none between device and loader, but those of the table."""
    made = dict(Workshop(tmp_path).make_all(sample(zoo(), FILES, SEED)))
    paths = [path for path in made.values() if isinstance(path, Path)]
    # An encoder that this ffmpeg lacks may cost some files, no more.
    assert len(paths) > 0.8 * FILES, [str(path) for path in made.values() if not isinstance(path, Path)]
    found = []
    for outcome in each(examine, paths, LIMIT_S):
        assert outcome.value is not None, f"{outcome.argument.name}: {outcome.failure}"
        found += [f"{outcome.value.name}: {f.check}: {f.text}" for f in unwanted(outcome.value)]
    assert not found, "\n".join(found)


@needs_ffmpeg
def test_comparison_names_what_differs(tmp_path: Path):
    """A file in another's place is found by its picture, its sound and its times."""
    by_name = {file.name: file for file in zoo()}
    Workshop(tmp_path).make(by_name["turned-90.mp4"])
    shutil.move(tmp_path / "turned-90.mp4", tmp_path / "turned-180.mp4")
    checks = {finding.check for finding in examine(tmp_path / "turned-180.mp4").findings}
    assert {"device.size", "loader.size", "device.colors", "loader.colors"} <= checks


def test_card_is_read_back():
    numbers = [read_card(card(number, 120, 80)).number for number in range(256)]
    assert numbers == list(range(256))
    woven = card(20)
    woven[1::2] = card(35)[1::2]
    assert read_card(woven).combed
    assert not read_card(card(20)).combed


def test_tone_tells_a_shift_a_pitch_and_a_level():
    sound = tone(1, 16_000, 3)[:, 0]
    late = np.concatenate([sound[:16_000], np.zeros(480, np.float32), sound[16_000:]])
    assert [fit.lag_s for fit in fits(late, sound)] == pytest.approx([0, 0.03, 0.03])
    assert max(fit.difference_db for fit in fits(late, sound)) < -60
    assert [fit.lag_s for fit in fits(sound[800:], sound)][1:] == pytest.approx([-0.05, -0.05])
    mixed = tone(2, 16_000, 3)
    assert min(fit.difference_db for fit in fits(mixed[:, 0], mixed.mean(axis=1))) > -6
    seconds = seconds_of(sound)
    assert [round(second.pitch_hz or 0) for second in seconds] == [443, 587, 751]
    assert seconds_of(sound / 2)[1].level_db == pytest.approx(seconds[1].level_db - 6.02, abs=0.01)


def test_wanted_differences_name_files_of_the_zoo():
    assert {wanted.name for wanted in WANTED} <= {file.name for file in zoo()}


def test_sample_takes_from_every_family():
    files = zoo()
    chosen = sample(files, FILES, SEED)
    assert len({file.name for file in chosen}) == FILES
    assert {file.family for file in chosen} == {file.family for file in files}
    assert chosen != sample(files, FILES, SEED + 1)


def test_unmakeable_file_is_told_and_stops_no_other(tmp_path: Path):
    def fail(_path: Path, _between: Path) -> None:
        raise ValueError("no")

    good = ZooFile("good", "x", "", finish=lambda path, _between: path.write_bytes(b"x") and None)
    made = dict(Workshop(tmp_path).make_all([ZooFile("bad", "x", "", finish=fail), good]))
    assert [str(value) for value in made.values()] == ["no", str(tmp_path / "good")]
