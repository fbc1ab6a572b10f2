import csv
import io
from collections import Counter
from pathlib import Path

import pytest

from tests.media import tone, write_wav
from vaemotion.cli.main import main
from vaemotion.contract.emotions import EMOTIONS
from vaemotion.contract.errors import UserError
from vaemotion.data.manifest.loader import load_clip
from vaemotion.data.manifest.manifest import read_manifest, validate
from vaemotion.data.published.art_sets import ARTEMIS_TABLE, VGMIDI_TABLE, artemis, vgmidi
from vaemotion.data.published.build import build

PAINTINGS = {
    ("Impressionism", "ann-a_a-river-1870"): ["awe", "awe", "contentment", "something else"],
    ("Impressionism", "ann-a_a-bridge-1871"): ["sadness"],
    ("Realism", "ann-a_a-river-1870"): ["awe"],
    ("Realism", "bob-b_a-storm"): ["fear", "anger"],
    ("Cubism", "carl-c_still-life"): ["amusement"],
    ("Cubism", "dora-d_a-guitar"): ["excitement"],
    ("Baroque", "eve-e_a-saint"): ["disgust"],
}


def write_table(path: Path, columns: str, rows: list[list[str]]) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([columns.split(","), *rows])
    path.write_text(text.getvalue(), encoding="utf-8")


@pytest.fixture
def artemis_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "artemis"
    for style, painting in PAINTINGS:
        (folder / style).mkdir(parents=True, exist_ok=True)
        (folder / style / f"{painting}.jpg").write_bytes(f"{style} {painting}".encode())
    rows = [
        [style, painting, emotion, f'It feels "{emotion}",\nto me', str(len(emotions))]
        for (style, painting), emotions in PAINTINGS.items()
        for emotion in emotions
    ]
    # The annotations of one painting need not be adjacent.
    write_table(
        folder / ARTEMIS_TABLE, "art_style,painting,emotion,utterance,repetition", rows[::2] + rows[1::2]
    )
    return folder


PIECES = [
    ("8001", "Banjo", "Banjo 1", "A Wood", ["1,1"]),
    ("8002", "Banjo", "Banjo 2", "A Castle", ["-1,1", "1,-1"]),
    ("8003", "Other", "Tetris", "Vol. 1", ["1,1"]),
    ("8004", "Other", "The Sims", "Theme", ["1,-1"]),
    ("8005", "Chrono", "Chrono", "Sea's Song", ["-1,-1"]),
    ("8006", "Xeno", "Xeno", "Valley", ["1,-1"]),
]


@pytest.fixture
def vgmidi_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "vgmidi"
    phrases = folder / "labelled" / "phrases"
    phrases.mkdir(parents=True)
    rows: list[list[str]] = []
    for identifier, series, game, piece, labels in PIECES:
        for number, label in enumerate(labels):
            name = f"{series}_NES_{game}_{piece}_{number}"
            midi = f"labelled/phrases/{name}.mid"
            rows.append([identifier, series, "NES", game, piece, midi, *label.split(",")])
            (phrases / f"{name}.mid").write_bytes(b"MThd")
            write_wav(phrases / f"{name}.wav", tone(0.3, hertz=200 + 30 * len(rows)), 16000)
    write_table(folder / VGMIDI_TABLE, "id,series,console,game,piece,midi,valence,arousal", rows)
    return folder


def test_artemis_gives_how_the_annotators_emotions_were_distributed(artemis_folder, tmp_path):
    build(artemis, artemis_folder, tmp_path / "m.jsonl")
    validate([tmp_path / "m.jsonl"], artemis_folder)
    items = {item.id: item for item in read_manifest(tmp_path / "m.jsonl", artemis_folder)}
    assert len(items) == len(PAINTINGS)
    river = items["artemis-Impressionism/ann-a_a-river-1870"]
    given = dict(zip(EMOTIONS, river.emotion_distribution, strict=True))
    assert (given["awe"], given["contentment"], given["something else"], given["fear"]) == (
        0.5,
        0.25,
        0.25,
        0,
    )
    assert (river.n_raters, river.construct, river.image) == (
        4,
        "induced",
        "Impressionism/ann-a_a-river-1870.jpg",
    )
    assert (river.valence, river.arousal, river.question) == (None, None, None)
    assert sorted(river.utterances) == sorted(
        f'It feels "{emotion}",\nto me' for emotion in ("awe", "awe", "contentment", "something else")
    )
    assert river.creator_id == "wikiart:ann-a"
    assert river.work_id == items["artemis-Realism/ann-a_a-river-1870"].work_id


def test_an_artist_is_in_one_fold(artemis_folder, tmp_path):
    splits: dict[str, list[str]] = {}
    for fold in range(1, 6):
        out = tmp_path / f"{fold}.jsonl"
        build(artemis, artemis_folder, out, test_fold=fold)
        for item in read_manifest(out, artemis_folder):
            splits.setdefault(item.id, []).append(item.split)
    assert all(sorted(found) == ["test", *["train"] * 4] for found in splits.values())
    assert len({tuple(found) for name, found in splits.items() if "ann-a" in name}) == 1


def test_the_same_image_under_two_artists_stays_in_the_held_out_split(artemis_folder, tmp_path, capsys):
    copies = ["Cubism/carl-c_still-life.jpg", "Cubism/dora-d_a-guitar.jpg"]
    for name in copies:
        (artemis_folder / name).write_bytes(b"the same image")
    kept: list[str] = []
    for fold in range(1, 6):
        build(artemis, artemis_folder, tmp_path / f"{fold}.jsonl", test_fold=fold)
        items = read_manifest(tmp_path / f"{fold}.jsonl", artemis_folder)
        here = [item for item in items if item.image in copies]
        assert len({item.split for item in here}) == 1
        kept += [item.image for item in here if item.split == "test"]
    assert Counter(kept) == Counter(copies)
    assert capsys.readouterr().out.count("left out: 1 of train") == 2


def test_vgmidi_gives_valence_and_arousal_of_rendered_phrases(vgmidi_folder, tmp_path):
    build(vgmidi, vgmidi_folder, tmp_path / "m.jsonl", media_root=tmp_path)
    validate([tmp_path / "m.jsonl"], tmp_path)
    items = {item.id: item for item in read_manifest(tmp_path / "m.jsonl", tmp_path)}
    assert len(items) == 7
    first, second = (items[f"vgmidi-Banjo_NES_Banjo 2_A Castle_{number}"] for number in (0, 1))
    assert (first.valence, first.arousal, second.valence, second.arousal) == (-1, 1, 1, -1)
    assert first.work_id == second.work_id == "vgmidi-8002"
    assert (first.construct, first.modality, first.audible) == ("expressed", "audio", True)
    assert first.audio == "vgmidi/labelled/phrases/Banjo_NES_Banjo 2_A Castle_0.wav"
    assert load_clip(first, tmp_path).duration_s == pytest.approx(0.3)
    creators = {item.work_id: item.creator_id for item in items.values()}
    assert creators["vgmidi-8001"] == creators["vgmidi-8002"] == "vgmidi:Banjo"
    # "Other" is not a series.
    assert (creators["vgmidi-8003"], creators["vgmidi-8004"]) == ("vgmidi:Tetris", "vgmidi:The Sims")


def test_any_common_sound_format_is_found_beside_the_midi(vgmidi_folder, tmp_path):
    wav = vgmidi_folder / "labelled/phrases/Other_NES_Tetris_Vol. 1_0.wav"
    wav.rename(wav.with_suffix(".flac"))
    build(vgmidi, vgmidi_folder, tmp_path / "m.jsonl")
    assert '"labelled/phrases/Other_NES_Tetris_Vol. 1_0.flac"' in (tmp_path / "m.jsonl").read_text()
    wav.with_suffix(".flac").unlink()
    with pytest.raises(
        UserError, match=r"Vol\. 1_0\.mid has no sound file beside it; render it to .*Vol\. 1_0\.wav"
    ):
        build(vgmidi, vgmidi_folder, tmp_path / "n.jsonl")


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("awe", "bliss", r"line \d+: emotion must be one of amusement, .*, something else, got 'bliss'"),
        ("bob-b_a-storm", "bob", r"names Realism/bob\.jpg, which is not in"),
        ("painting", "image", "lacks the columns painting: expected art_style, painting, emotion"),
    ],
)
def test_an_invalid_artemis_gives_one_sentence(artemis_folder, tmp_path, before, after, sentence):
    table = artemis_folder / ARTEMIS_TABLE
    table.write_text(table.read_text().replace(before, after, 1))
    with pytest.raises(UserError, match=sentence):
        build(artemis, artemis_folder, tmp_path / "m.jsonl")


def test_a_painting_without_an_artist_gives_one_sentence(artemis_folder, tmp_path):
    table = artemis_folder / ARTEMIS_TABLE
    table.write_text(table.read_text().replace("bob-b_a-storm", "storm"))
    (artemis_folder / "Realism/storm.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match="painting must be artist_title, got 'storm'"):
        build(artemis, artemis_folder, tmp_path / "m.jsonl")


def test_vgmidi_labels_of_its_older_table_are_refused(vgmidi_folder, tmp_path):
    table = vgmidi_folder / VGMIDI_TABLE  # there, low was 0
    table.write_text(table.read_text().replace("-1,1", "0,1"))
    with pytest.raises(UserError, match=r"line 3: valence must be one of -1, 1, got '0'"):
        build(vgmidi, vgmidi_folder, tmp_path / "m.jsonl")


@pytest.mark.parametrize("name", ["artemis", "vgmidi"])
def test_the_commands_write_manifests_that_validate(name, artemis_folder, vgmidi_folder, tmp_path, capsys):
    out = str(tmp_path / "m.jsonl")
    root = ["--media-root", str(tmp_path)]
    folder = str(tmp_path / name)
    held_out = ["--test-fold", "1", "--validation-fold", "2"]
    assert main(["data", "build", name, "--from", folder, "--out", out, *root, *held_out]) == 0
    assert main(["data", "validate", out, *root]) == 0
    assert main(["data", "stats", out, *root]) == 0
    assert "NOASSERTION" in (printed := capsys.readouterr().out) or "LicenseRef-ArtEmis" in printed
    assert main(["data", "build", name, "--from", str(tmp_path), "--out", f"{out}2"]) == 1
    assert "does not exist; --from takes the folder" in capsys.readouterr().err
