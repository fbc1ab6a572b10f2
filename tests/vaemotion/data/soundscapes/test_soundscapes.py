import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import nnls

from vaemotion.cli.main import main
from vaemotion.contract.audio import SAMPLE_RATE_HZ
from vaemotion.data.made_sounds import split_of
from vaemotion.data.manifest.item import Item, content_sha256
from vaemotion.data.manifest.loader import load_clip
from vaemotion.data.manifest.manifest import read_manifest, write_manifest
from vaemotion.data.manifest.writer import flac_bytes
from vaemotion.data.soundscapes.build import made_scene
from vaemotion.data.soundscapes.recordings import open_recordings
from vaemotion.data.soundscapes.scene import (
    DURATION_S,
    LOUDEST_DB,
    QUIETEST_DB,
    Scene,
    labels_of,
    level_db,
    sample_scene,
    scene_sound,
    variability_db,
)
from vaemotion.data.soundscapes.sources import KINDS, SOURCES, synthesized

NUMBER = {source.name: number for number, source in enumerate(SOURCES)}


def scene(level=0.0, liveliness=0.2, **shares):
    return Scene({NUMBER[name.replace("_", " ")]: share for name, share in shares.items()}, level, liveliness)


def heard(name, seed=0, seconds=6.0):
    rng = np.random.default_rng([seed, 1])
    return synthesized(SOURCES[NUMBER[name]], rng, round(seconds * SAMPLE_RATE_HZ), 0.5)


def power_between(sound, low_hz, high_hz):
    """Return the share of a sound's power between two frequencies."""
    power = np.abs(np.fft.rfft(sound)) ** 2
    hertz = np.fft.rfftfreq(len(sound), 1 / SAMPLE_RATE_HZ)
    return power[(hertz >= low_hz) & (hertz < high_hz)].sum() / power.sum()


def beat_hz(sound, low_hz, high_hz):
    """Return the rate at which a sound's loudness swings most, between two rates."""
    envelope = np.sqrt((sound[: len(sound) // 80 * 80].reshape(-1, 80) ** 2).mean(axis=1))  # at 200 Hz
    swing = np.abs(np.fft.rfft((envelope - envelope.mean()) * np.hanning(len(envelope)), 8 * len(envelope)))
    hertz = np.fft.rfftfreq(8 * len(envelope), 1 / 200)
    inside = (hertz >= low_hz) & (hertz < high_hz)
    return hertz[inside][np.argmax(swing[inside])]


# --- sources ------------------------------------------------------------------------------------------------


def test_sources_sound_like_what_they_are_named_after():
    assert power_between(heard("birds"), 1500, 8000) > 0.95
    assert power_between(heard("stream"), 300, 5000) > 0.8
    assert power_between(heard("rain"), 1000, 8000) > 0.8
    assert power_between(heard("wind"), 0, 600) > 0.4
    assert power_between(heard("engine"), 0, 700) > 0.7
    assert power_between(heard("traffic"), 0, 2000) > 0.8
    assert power_between(heard("babble of voices"), 80, 3500) > 0.85
    assert 1.5 < beat_hz(heard("footsteps"), 1.0, 3.0) < 2.3
    assert power_between(heard("drill"), 800, 8000) > 0.5


def test_a_fan_is_steady_and_waves_and_people_come_and_go():
    steady = variability_db(heard("fan"))
    assert steady < 1.5
    for name in ("sea waves", "wind", "babble of voices", "drill", "footsteps"):
        assert variability_db(heard(name)) > steady + 3, name


def test_rain_is_noise_and_birds_are_tones():
    def flatness(sound):
        frames = np.abs(np.fft.rfft(sound.reshape(-1, 1000) * np.hanning(1000)))[:, 63:438] ** 2 + 1e-9
        loud = frames.sum(axis=1) > np.median(frames.sum(axis=1))
        return float(np.mean(np.exp(np.log(frames[loud]).mean(axis=1)) / frames[loud].mean(axis=1)))

    assert flatness(heard("rain")) > 0.3
    assert flatness(heard("birds")) < 0.05


# --- scenes -------------------------------------------------------------------------------------------------


def test_a_scene_follows_from_seed_and_index_alone():
    first = [made_scene(3, index) for index in (0, 1)]
    again = [made_scene(3, index) for index in (1, 0)][::-1]
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one.samples, other.samples)
        assert (one.valence, one.arousal, one.cues) == (other.valence, other.arousal, other.cues)
    assert not np.array_equal(first[0].samples, first[1].samples)
    assert sample_scene(4, 0) != sample_scene(3, 0)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_proportions_are_those_of_the_sound(share):
    """Spectra of the sources alone, added up, explain the mixture's in the proportions that it was given."""
    mixed = scene_sound(scene(liveliness=0.0, rain=share, engine=1 - share), 1, 0)

    def bands(sound):
        return np.array([power_between(sound, low, low + 500) for low in range(0, 7500, 500)])

    alone = np.stack([bands(heard("rain", 9)), bands(heard("engine", 9))], axis=1)
    power, _ = nnls(alone, bands(mixed))
    amplitude = np.sqrt(power)
    assert amplitude[0] / amplitude.sum() == pytest.approx(share, abs=0.1)


def test_level_and_variability_are_those_of_the_sound():
    for level in (-1.0, 0.0, 0.6):
        wanted = QUIETEST_DB + (level + 1) / 2 * (LOUDEST_DB - QUIETEST_DB)
        assert level_db(scene_sound(scene(level, 0.0, rain=1.0), 1, 0)) == pytest.approx(wanted, abs=0.1)
    spread = [variability_db(scene_sound(scene(0.0, lively, rain=1.0), 1, 0)) for lively in (0.0, 0.5, 1.0)]
    assert spread[0] + 3 < spread[1] < spread[2] - 3
    loud = scene_sound(scene(1.0, footsteps=1.0), 1, 0)
    assert np.abs(loud).max() < 1


def test_labels_go_where_soundscape_research_says():
    def labels(**what):
        asked = scene(**what)
        return labels_of(asked, scene_sound(asked, 2, 0))

    natural, mixed, mechanical = (labels(rain=share, fan=1 - share) for share in (0.9, 0.5, 0.1))
    assert natural[0] > mixed[0] > mechanical[0]
    assert natural[0] > 0.2 > -0.2 > mechanical[0]
    human, technical = labels(babble_of_voices=1.0), labels(fan=1.0)
    assert human[1] > technical[1] + 0.5
    assert technical[0] < human[0] < labels(rain=1.0)[0]
    quiet, loud = (labels(level=level, rain=1.0) for level in (-0.8, 0.8))
    assert quiet[0] > loud[0]
    assert quiet[1] < loud[1]
    steady, lively = (labels(liveliness=value, rain=1.0) for value in (0.0, 1.0))
    assert steady[1] < lively[1]


def test_scenes_are_of_all_kinds():
    scenes = [sample_scene(0, index) for index in range(400)]
    for each in scenes:
        assert sum(each.shares.values()) == pytest.approx(1)
        assert 1 <= len(each.shares) <= 6
    lead = [max(KINDS, key=each.share_of) for each in scenes]
    assert min(lead.count(kind) for kind in KINDS) > 90
    assert {number for each in scenes for number in each.shares} == set(range(len(SOURCES)))


# --- the command --------------------------------------------------------------------------------------------


def run(*arguments):
    return main(["data", "build", "soundscapes", *map(str, arguments)])


def test_the_command_writes_sounds_and_a_valid_manifest(tmp_path, capsys):
    out = tmp_path / "scenes"
    assert run("--count", 3, "--seed", 3, "--out", out) == 0
    items = read_manifest(out / "manifest.jsonl", out, check_hashes=True)
    assert [split_of(index) for index in range(10)] == ["train"] * 8 + ["validation", "test"]
    assert [item.split for item in items] == ["train"] * 3
    works = [json.loads(line) for line in (out / "works.jsonl").read_text().splitlines()]
    for index, (item, work) in enumerate(zip(items, works, strict=True)):
        asked = sample_scene(3, index)
        assert item.machine_made is True
        assert (item.license, item.modality, item.construct) == ("CC0-1.0", "audio", "expressed")
        assert sum(work[kind] for kind in KINDS) == pytest.approx(1, abs=1e-5)
        assert set(item.label.split(" and ")) == {SOURCES[number].name for number in asked.shares}
    samples = load_clip(items[0], out).samples
    assert len(samples) == DURATION_S * SAMPLE_RATE_HZ
    assert (items[0].valence, items[0].arousal) == pytest.approx(
        labels_of(sample_scene(3, 0), samples), abs=0.01
    )
    assert run("--count", 3, "--out", out) == 1
    assert "exists already" in capsys.readouterr().err


def recorded(folder, name, split, hertz):
    """Write a recording, a pure tone, and return its item."""
    file = folder / f"{split}.flac"
    tone = np.sin(2 * np.pi * hertz * np.arange(32_000) / SAMPLE_RATE_HZ).astype(np.float32) / 2
    file.write_bytes(flac_bytes(tone, SAMPLE_RATE_HZ))
    return Item(
        id=f"own-{split}",
        audio=file.name,
        pairing="none",
        task="clip",
        label=name,
        modality="audio",
        split=split,
        work_id=f"own-{split}",
        creator_id=f"own-{split}",
        source="own",
        license="CC-BY-4.0",
        sha256=content_sha256([file]),
    )


def test_recordings_stand_in_for_sources_in_scenes_of_their_own_split(tmp_path, capsys):
    items = [recorded(tmp_path, "rain", "train", 1234.0), recorded(tmp_path, "Rain", "test", 2345.0)]
    other = replace(items[0], id="other", label="a violin")
    write_manifest(tmp_path / "own.jsonl", [*items, other])
    recordings = open_recordings(tmp_path / "own.jsonl")
    assert "left out: 1 recording" in capsys.readouterr().out
    asked = scene(rain=1.0, liveliness=0.0)
    for split, hertz in (("train", 1234.0), ("test", 2345.0)):
        chosen = [recordings.choose(asked, split, np.random.default_rng(k)) for k in range(40)]
        used = [each for each in chosen if each]
        assert 10 < len(used) < 30
        assert {item.id for each in used for item in each.values()} == {f"own-{split}"}
        played = {number: recordings.sound(item) for number, item in used[0].items()}
        assert power_between(scene_sound(asked, 0, 0, played), hertz - 5, hertz + 5) > 0.9
    assert recordings.choose(asked, "validation", np.random.default_rng(0)) == {}
    with_rain = [
        index for index in range(40) if index % 10 < 8 and NUMBER["rain"] in sample_scene(0, index).shares
    ]
    made = [made_scene(0, index, recordings) for index in with_rain[:5]]
    assert {sound.license for sound in made} == {"CC0-1.0", "CC0-1.0 AND CC-BY-4.0"}
    for sound in made:
        assert bool(sound.cues["recordings"]) == (sound.license != "CC0-1.0")


def test_a_manifest_without_a_recording_of_a_source_is_refused(tmp_path, capsys):
    write_manifest(tmp_path / "own.jsonl", [recorded(tmp_path, "a violin", "train", 440.0)])
    assert run("--recordings", tmp_path / "own.jsonl", "--out", tmp_path / "out") == 1
    assert "no recording of a source; labels that are read: birds" in " ".join(
        capsys.readouterr().err.split()
    )
