import itertools
import json
import struct
import sys
import wave
from dataclasses import replace

import numpy as np
import pytest

from vaemotion.cli.main import main
from vaemotion.contract.audio import SAMPLE_RATE_HZ
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.data.manifest.loader import load_clip
from vaemotion.data.manifest.manifest import read_manifest
from vaemotion.data.music import synthesizer
from vaemotion.data.music.cues import CUE_NAMES, MODES, Cues, labels_of, sample_cues
from vaemotion.data.music.harmony import SCALES
from vaemotion.data.music.midi_file import midi_bytes
from vaemotion.data.music.score import BASS, MELODY, PERCUSSION, TICKS_A_BEAT, compose
from vaemotion.data.music.synthesizer import RATE_HZ, Soundfont, Synthesizer, find_soundfont

NEUTRAL = Cues(1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0)
# Krumhansl & Kessler (1982): how well the twelve pitch classes fit a key, from its tonic on.
FITS_MAJOR = np.array([6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88])
FITS_MINOR = np.array([6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17])


@pytest.fixture(scope="module")
def player():
    try:
        return Synthesizer(find_soundfont())
    except UserError as error:
        pytest.skip(str(error))


def key_of(weights):
    """Return the tonic and the mode whose profile fits the weights (12,) of the pitch classes best."""
    fits = {
        (tonic, mode): np.corrcoef(np.roll(profile, tonic), weights)[0, 1]
        for tonic in range(12)
        for mode, profile in (("major", FITS_MAJOR), ("minor", FITS_MINOR))
    }
    return max(fits, key=fits.__getitem__)


def pitch_classes(score):
    weights = np.zeros(12)
    for note in score.notes:
        if note.channel != PERCUSSION:
            weights[note.pitch % 12] += note.length
    return weights


def excerpt(score, bars=3):
    """Return the first bars of a score."""
    end = bars * score.beats_a_bar * TICKS_A_BEAT
    return replace(score, bars=bars, notes=tuple(note for note in score.notes if note.start < end))


# --- cues and labels ----------------------------------------------------------------------------------------


def test_a_piece_follows_from_seed_and_index_alone():
    first = [(sample_cues(5, k), midi_bytes(compose(sample_cues(5, k), 5, k))) for k in range(4)]
    again = [(sample_cues(5, k), midi_bytes(compose(sample_cues(5, k), 5, k))) for k in (3, 2, 1, 0)][::-1]
    assert first == again
    assert len({midi for _, midi in first}) == 4
    assert sample_cues(6, 0) != sample_cues(5, 0)


@pytest.mark.parametrize(
    ("cue", "valence", "arousal"),
    [
        ("mode", 1, 0),
        ("tempo", 1, 1),
        ("register", 1, 1),
        ("dynamics", 0, 1),
        ("articulation", 1, 1),
        ("timbre", -1, 1),
        ("density", 0, 1),
        ("dissonance", -1, 1),
    ],
)
def test_labels_go_where_the_literature_says(cue, valence, arousal):
    low, high = (np.array(labels_of(replace(NEUTRAL, **{"mode": 0.5, cue: v}))) for v in (-0.5, 0.5))
    assert np.sign(high - low).tolist() == [valence, arousal]


def test_cues_outrank_each_other_as_measured():
    """Mode, tempo, register: the order of Eerola, Friberg & Bresin (2013), over both labels together."""
    effect = {
        cue: np.abs(
            np.subtract(*(labels_of(replace(NEUTRAL, **{"mode": 0.0, cue: v})) for v in (0.4, -0.4)))
        ).max()
        for cue in ("mode", "tempo", "register")
    }
    assert effect["mode"] > effect["tempo"] > effect["register"]


def test_labels_fill_the_square_and_are_independent():
    labels = np.array([labels_of(sample_cues(0, k)) for k in range(2000)])
    assert (labels.std(axis=0) > 0.4).all()
    assert abs(np.corrcoef(labels.T)[0, 1]) < 0.2
    assert (np.abs(labels) == 1).mean() < 0.08
    drawn = [sample_cues(0, k).mode_name for k in range(600)]
    assert min(drawn.count(mode) for mode in MODES) > 50


# --- scores -------------------------------------------------------------------------------------------------


def test_pitch_classes_tell_key_and_mode():
    found = []
    for index, mode in itertools.product(range(15), ("major", "minor")):
        score = compose(replace(NEUTRAL, mode=MODES[mode]), 1, index)
        found.append(key_of(pitch_classes(score)) == (score.tonic, mode))
    assert np.mean(found) >= 0.9


@pytest.mark.parametrize("mode", MODES)
def test_consonant_music_stays_in_its_scale_and_uses_the_tone_that_tells_it_apart(mode):
    tells = {"major": 11, "mixolydian": 10, "lydian": 6, "dorian": 9, "minor": 8, "phrygian": 1}[mode]
    with_it = 0
    for index in range(6):
        score = compose(replace(NEUTRAL, mode=MODES[mode]), 2, index)
        steps = {(note.pitch - score.tonic) % 12 for note in score.notes if note.channel != PERCUSSION}
        assert steps <= {*SCALES[mode], *([11] if mode == "minor" else [])}
        with_it += tells in steps
    assert with_it >= 5


def test_voices_are_led():
    """Parallel fifths and octaves are rare, voices move little and stay above the bass."""
    moves, parallel, pairs = [], 0, 0
    for index in range(20):
        score = compose(replace(NEUTRAL, register=index / 10 - 1), 3, index)
        assert all(chord.bass < min(chord.upper) for chord in score.chords)
        for old, new in itertools.pairwise(score.chords):
            moves += [abs(a - b) for a, b in zip(old.upper, new.upper, strict=True)]
            voices = list(zip((old.bass, *old.upper), (new.bass, *new.upper), strict=True))
            for (a, b), (c, d) in itertools.combinations(voices, 2):
                pairs += 1
                same = (c - a) % 12 == (d - b) % 12 and (c - a) % 12 in (0, 7)
                parallel += same and a != b and (a < b) == (c < d)
    assert np.mean(moves) < 2.5
    assert parallel < 0.01 * pairs


def test_the_melody_moves_by_step_and_ends_on_the_tonic():
    for index in range(10):
        score = compose(NEUTRAL, 4, index)
        melody = [note.pitch for note in score.notes if note.channel == MELODY]
        assert np.median(np.abs(np.diff(melody))) <= 4
        assert melody[-1] % 12 == score.tonic
        assert [n.pitch % 12 for n in score.notes if n.channel == BASS][-1] == score.tonic


def test_cues_are_in_the_notes():
    def pieces(**cues):
        return [compose(replace(NEUTRAL, **cues), 7, index) for index in range(6)]

    def melodies(scores):
        return [[n for n in score.notes if n.channel == MELODY] for score in scores]

    def mean(values):
        return float(np.mean([v for piece in values for v in piece]))

    low, high = melodies(pieces(register=-1.0)), melodies(pieces(register=1.0))
    pitches = [mean([n.pitch for n in m] for m in each) for each in (low, high)]
    assert 18 < pitches[1] - pitches[0] < 30
    sparse, dense = pieces(density=-1.0), pieces(density=1.0)
    rates = [
        np.mean([len(m) / (s.bars * s.beats_a_bar) for m, s in zip(melodies(each), each, strict=True)])
        for each in (sparse, dense)
    ]
    assert rates[0] < 0.7
    assert rates[1] > 2.0
    legato, staccato = melodies(pieces(articulation=-1.0)), melodies(pieces(articulation=1.0))
    lengths = [mean([n.length for n in m[:-1]] for m in each) for each in (legato, staccato)]
    assert lengths[0] > 3 * lengths[1]
    soft, loud = melodies(pieces(dynamics=-1.0)), melodies(pieces(dynamics=1.0))
    assert mean([n.velocity for n in m] for m in soft) + 60 < mean([n.velocity for n in m] for m in loud)


def test_dissonance_is_in_the_chords():
    def clashes(dissonance):
        """Return the share of pairs of tones in a chord that are a second, a seventh or a tritone."""
        chords = [c for k in range(10) for c in compose(replace(NEUTRAL, dissonance=dissonance), 8, k).chords]
        pairs = [(b - a) % 12 for c in chords for a, b in itertools.combinations(c.tones, 2)]
        return np.mean([interval in (1, 2, 6, 10, 11) for interval in pairs])

    levels = [clashes(value) for value in (-1.0, 0.0, 1.0)]
    assert levels[0] < 0.1 < levels[1] < levels[2]


def test_a_midi_file_holds_the_notes_of_its_score():
    score = compose(sample_cues(0, 1), 0, 1)
    notes, programs, tempo = read_midi(midi_bytes(score))
    assert sorted(notes) == sorted((n.start, n.length, n.channel, n.pitch, n.velocity) for n in score.notes)
    assert programs == score.programs
    assert 60e6 / tempo == pytest.approx(score.tempo_bpm, rel=1e-5)


def read_midi(data):
    """Read a MIDI file by the standard's text: notes, programs and microseconds a beat."""
    kind, size, version, tracks, division = struct.unpack(">4sIHHH", data[:14])
    assert (kind, size, version, division) == (b"MThd", 6, 1, TICKS_A_BEAT)
    notes, programs, tempo, place = [], {}, 0, 14
    for _ in range(tracks):
        assert data[place : place + 4] == b"MTrk"
        end = place + 8 + struct.unpack(">I", data[place + 4 : place + 8])[0]
        place, now, sounding = place + 8, 0, {}
        while place < end:
            delta, place = variable(data, place)
            now += delta
            status = data[place]
            if status == 0xFF:
                length, start = variable(data, place + 2)
                if data[place + 1] == 0x51:
                    tempo = int.from_bytes(data[start : start + length], "big")
                place = start + length
            elif status & 0xF0 == 0xC0:
                programs[status & 15], place = data[place + 1], place + 2
            else:
                pitch, velocity = data[place + 1 : place + 3]
                if status & 0xF0 == 0x90:
                    sounding.setdefault(pitch, []).append((now, velocity))
                else:
                    start, loud = sounding[pitch].pop(0)
                    notes.append((start, now - start, status & 15, pitch, loud))
                place += 3
        assert data[end - 3 : end] == b"\xff\x2f\x00"
        assert not any(sounding.values())
    assert place == len(data)
    return notes, programs, tempo


def variable(data, place):
    value = 0
    while True:
        value = value << 7 | data[place] & 0x7F
        place += 1
        if data[place - 1] < 0x80:
            return value, place


# --- sound --------------------------------------------------------------------------------------------------


def spectra(sound):
    """Return short-time magnitudes (frames, bins) at 100 frames a second, and the bins' frequencies."""
    hop, size = RATE_HZ // 100, 4096
    frames = np.lib.stride_tricks.sliding_window_view(sound, size)[::hop]
    return np.abs(np.fft.rfft(frames * np.hanning(size))), np.fft.rfftfreq(size, 1 / RATE_HZ)


def test_beats_of_the_sound_have_the_tempo(player):
    for index, tempo in enumerate((-0.4, 0.1, 0.6)):
        cues = replace(NEUTRAL, tempo=tempo, density=0.3, dynamics=0.5)
        magnitudes, _ = spectra(player.play(excerpt(compose(cues, 9, index), 4)))
        onsets = np.maximum(np.diff(np.log1p(magnitudes), axis=0), 0).sum(axis=1)
        onsets -= onsets.mean()
        strength = np.correlate(onsets, onsets, "full")[len(onsets) - 1 :]
        beat = 100 * 60 / cues.tempo_bpm  # frames
        lags = np.arange(20, 220)
        found = lags[np.argmax(strength[lags])]
        assert min(abs(found / beat - n) for n in (0.5, 1, 2, 3, 4)) < 0.06
        around = strength[round(0.97 * beat) : round(1.03 * beat) + 1].max()
        off = strength[round(1.22 * beat) : round(1.3 * beat) + 1].max()
        assert around > 2 * off


def test_pitch_classes_of_the_sound_tell_major_from_minor(player):
    for mode in ("major", "minor"):
        score = compose(replace(NEUTRAL, mode=MODES[mode], density=-0.5, timbre=0.0), 10, 0)
        magnitudes, hertz = spectra(player.play(score))
        inside = (hertz > 110) & (hertz < 1200)
        chroma = np.zeros(12)
        classes = np.round(69 + 12 * np.log2(hertz[inside] / 440)).astype(int) % 12
        np.add.at(chroma, classes, (magnitudes[:, inside] ** 2).sum(axis=0) ** 0.5)
        profile = {"major": FITS_MAJOR, "minor": FITS_MINOR}
        fits = {name: np.corrcoef(np.roll(fit, score.tonic), chroma)[0, 1] for name, fit in profile.items()}
        assert max(fits, key=fits.__getitem__) == mode


def test_dynamics_and_timbre_are_heard(player):
    def heard(**cues):
        sound = player.play(excerpt(compose(replace(NEUTRAL, tempo=0.6, density=-0.6, **cues), 11, 0)))
        power = np.abs(np.fft.rfft(sound)) ** 2
        return np.sqrt(np.mean(sound**2)), np.average(np.fft.rfftfreq(len(sound), 1 / RATE_HZ), weights=power)

    (soft, _), (loud, _) = heard(dynamics=-1.0), heard(dynamics=1.0)
    assert 20 * np.log10(loud / soft) > 15
    (_, dull), (_, bright) = heard(timbre=-1.0), heard(timbre=1.0)
    assert bright > 1.2 * dull


def test_a_score_sounds_the_same_again_and_as_its_midi_file(player, tmp_path):
    score = excerpt(compose(replace(NEUTRAL, tempo=0.5), 12, 0))
    first = player.play(score)
    player.play(excerpt(compose(NEUTRAL, 12, 1), 1))
    assert np.array_equal(player.play(score), first)
    assert 0.01 < np.abs(first).max() < 1
    # FluidSynth's own player reads the file: the same music, at most a block of 64 samples apart.
    (tmp_path / "piece.mid").write_bytes(midi_bytes(score))
    synth, _ = player._open()
    synth.midi2audio(str(tmp_path / "piece.mid"), str(tmp_path / "piece.wav"))
    synth.delete()
    with wave.open(str(tmp_path / "piece.wav")) as file:
        assert file.getframerate() == RATE_HZ
        other = np.frombuffer(file.readframes(-1), np.int16).reshape(-1, 2).mean(axis=1)
    size = RATE_HZ // 50
    count = min(len(first), len(other)) // size - 10
    ours, theirs = (
        np.sqrt((x[: count * size].reshape(count, size) ** 2).mean(axis=1)) for x in (first, other)
    )
    assert np.corrcoef(ours, theirs)[0, 1] > 0.97


# --- the command --------------------------------------------------------------------------------------------


def run(*arguments):
    return main(["data", "build", "music", *map(str, arguments)])


def test_the_command_writes_sounds_scores_and_a_valid_manifest(player, tmp_path, capsys):
    out = tmp_path / "music"
    assert run("--count", 2, "--seed", 4, "--out", out) == 0
    items = read_manifest(out / "manifest.jsonl", out, check_hashes=True)
    works = [json.loads(line) for line in (out / "works.jsonl").read_text().splitlines()]
    for index, (item, work) in enumerate(zip(items, works, strict=True)):
        cues = sample_cues(4, index)
        assert (item.valence, item.arousal) == pytest.approx(labels_of(cues), abs=1e-6)
        assert item.machine_made is True
        assert item.license == f"CC0-1.0 AND {player.soundfont.license}"
        assert (item.split, item.modality, item.construct) == ("train", "audio", "expressed")
        assert work["work_id"] == item.work_id
        assert [work["cues"][name] for name in CUE_NAMES] == pytest.approx(
            [getattr(cues, name) for name in CUE_NAMES], abs=1e-6
        )
        assert work["soundfont"] == player.soundfont.file.name
        score = compose(cues, 4, index)
        assert (out / "sounds" / f"{item.work_id}.mid").read_bytes() == midi_bytes(score)
        samples = load_clip(item, out).samples
        assert len(samples) / SAMPLE_RATE_HZ == pytest.approx(score.duration_s + 1.5, abs=0.01)
    assert run("--count", 2, "--seed", 4, "--out", out) == 1
    assert "exists already" in capsys.readouterr().err


def test_without_a_synthesizer_nothing_is_made(tmp_path, monkeypatch, capsys):
    font = Soundfont(tmp_path / "font.sf2", "MIT")
    font.file.write_bytes(b"RIFF")
    monkeypatch.setitem(sys.modules, "fluidsynth", None)
    with pytest.raises(UserError, match=r"FluidSynth, which is not here.*apt-get install.*pip install"):
        Synthesizer(font)
    assert run("--soundfont", font.file, "--soundfont-license", "MIT", "--out", tmp_path / "music") == 1
    assert "FluidSynth" in capsys.readouterr().err
    assert not (tmp_path / "music").exists()


def test_a_soundfont_is_found_named_or_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(synthesizer, "_FOLDERS", (str(tmp_path),))
    with pytest.raises(UserError, match=r"no soundfont found .* fluid-soundfont-gm"):
        find_soundfont()
    (tmp_path / "TimGM6mb.sf2").touch()
    assert find_soundfont().license == "GPL-2.0-only"
    (tmp_path / "FluidR3_GM.sf2").touch()
    assert find_soundfont() == Soundfont(tmp_path / "FluidR3_GM.sf2", "MIT")
    (tmp_path / "own.sf2").touch()
    with pytest.raises(UsageError, match=r"license of own\.sf2 is not known"):
        find_soundfont(tmp_path / "own.sf2")
    assert find_soundfont(tmp_path / "own.sf2", "CC-BY-4.0").license == "CC-BY-4.0"
    with pytest.raises(UserError, match="does not exist"):
        find_soundfont(tmp_path / "missing.sf2")


def test_a_file_that_is_no_soundfont_is_refused(player, tmp_path):
    (tmp_path / "own.sf2").write_bytes(b"RIFF and no more")
    with pytest.raises(UserError, match=r"FluidSynth cannot read .*own\.sf2"):
        Synthesizer(Soundfont(tmp_path / "own.sf2", "MIT"))


def test_an_instrument_that_the_soundfont_lacks_is_not_replaced(player):
    score = excerpt(compose(NEUTRAL, 13, 0), 1)
    with pytest.raises(UserError, match="has no program 130 in bank 0; give a --soundfont with all"):
        player.play(replace(score, programs={**score.programs, MELODY: 130}))
