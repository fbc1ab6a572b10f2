from pathlib import Path

import pytest

from tests.tables import write_media, write_table
from vaemotion.contract.errors import UserError
from vaemotion.data.emotion_vocabularies import vocabularies
from vaemotion.data.manifest.manifest import ManifestError, read_manifest, read_manifests, validate
from vaemotion.data.published.art_sets import ARTEMIS_TABLE, artemis
from vaemotion.data.published.build import build
from vaemotion.data.published.votes import WIKIART_TABLE, emopia, emotify, wikiart_emotions

TWENTY = vocabularies()["wikiart"].names
NINE = vocabularies()["gems-9"].names

# Votes for the picture alone.
ART = {
    "ann-a/a-river-1870": {"happiness": 0.75, "anticipation": 0.25},
    "bob-b/a-storm": {"fear": 0.6, "love": 0.2, "sadness": 0.2},
    "carl-c/nothing": {},
    "dora-d/lost": {"neutral": 1},
}


@pytest.fixture
def wikiart_folder(tmp_path: Path) -> Path:
    root = tmp_path / "wikiart"
    kinds = ("Art (image+title)", "ImageOnly", "TitleOnly")
    columns = ("ID", "Title", "Image URL", *(f"{kind}: {name}" for kind in kinds for name in TWENTY))
    rows = [
        (
            f"5772{n}",
            'A "title',
            f"https://uploads3.wikiart.org/images/{address}.jpg!Large.jpg",
            *(1 if name == "anger" else 0 for name in TWENTY),
            *(votes.get(name, 0) for name in TWENTY),
            *(1 if name == "shame" else 0 for name in TWENTY),
        )
        for n, (address, votes) in enumerate(ART.items())
    ]
    text = "\n".join("\t".join(map(str, row)) for row in (columns, *rows))
    root.mkdir()
    (root / WIKIART_TABLE).write_text(f"{text}\n", encoding="utf-8")
    write_media(root, "Realism/ann-a_a-river-1870.jpg", "Realism/bob-b_a-storm.jpg", "x/carl-c_nothing.jpg")
    return root


def test_wikiart_emotions_gives_valence_from_the_votes_on_the_picture_alone(wikiart_folder, tmp_path, capsys):
    build(wikiart_emotions, wikiart_folder, tmp_path / "m.jsonl")
    validate([tmp_path / "m.jsonl"], wikiart_folder)
    river, storm = read_manifest(tmp_path / "m.jsonl", wikiart_folder)
    assert river.image == "Realism/ann-a_a-river-1870.jpg"
    assert (river.valence, storm.valence) == (0.75, pytest.approx(-0.6))
    assert river.arousal is None
    assert river.emotion_names == TWENTY
    assert dict(zip(TWENTY, river.emotion_distribution, strict=True))["happiness"] == 0.75
    assert (river.work_id, river.creator_id) == ("wikiart-ann-a_a-river-1870", "wikiart:ann-a")
    printed = capsys.readouterr().out
    assert "left out: 1 pieces of art without an image in the folder" in printed
    assert "left out: 1 pieces of art without a vote" in printed


def test_a_painting_of_artemis_in_another_split_is_a_leak(wikiart_folder, tmp_path):
    rows = [("Realism", "ann-a_a-river-1870", "awe", "It flows."), ("Realism", "eve-e_a", "awe", "Quiet.")]
    write_table(wikiart_folder / ARTEMIS_TABLE, ("art_style", "painting", "emotion", "utterance"), rows)
    write_media(wikiart_folder, "Realism/eve-e_a.jpg")
    held_out, trained = tmp_path / "artemis.jsonl", tmp_path / "wikiart.jsonl"
    build(wikiart_emotions, wikiart_folder, trained)
    for fold in (1, 2):
        held_out.unlink(missing_ok=True)
        build(artemis, wikiart_folder, held_out, test_fold=fold)
        if any(
            "ann-a" in item.id and item.split == "test" for item in read_manifest(held_out, wikiart_folder)
        ):
            break
    with pytest.raises(ManifestError, match=r"work_id 'wikiart-ann-a_a-river-1870' is in split"):
        read_manifests([held_out, trained], wikiart_folder)


def test_wikiart_emotions_refuses_an_emotion_that_it_does_not_have(wikiart_folder, tmp_path):
    table = wikiart_folder / WIKIART_TABLE
    table.write_text(table.read_text().replace("Title\t", "ImageOnly: joy\t", 1))
    with pytest.raises(UserError, match="has a column 'ImageOnly: joy', which this set does not have"):
        build(wikiart_emotions, wikiart_folder, tmp_path / "m.jsonl")


def test_wikiart_emotions_without_any_of_its_images_is_refused(wikiart_folder, tmp_path):
    for image in wikiart_folder.rglob("*.jpg"):
        image.unlink()
    with pytest.raises(UserError, match=r"has no image of WikiArt-Emotions-All.tsv; --from takes a folder"):
        build(wikiart_emotions, wikiart_folder, tmp_path / "m.jsonl")


ABOUT = ("mood", "liked", "disliked", "age", "gender", "mother tongue")
ANSWERS = [
    (1, "classical", ["amazement"]),
    (1, "classical", ["calmness", "sadness"]),
    (1, "classical", []),
    (101, "rock", ["power"]),
    (202, "electronic", ["tension"]),
    (303, "pop", ["joyful_activation"]),
    (304, "pop", ["nostalgia"]),
]


@pytest.fixture
def emotify_folder(tmp_path: Path) -> Path:
    root = tmp_path / "emotify"
    rows = [
        (song, genre, *(int(name in chosen) for name in NINE), 3, 1, 0, 21, 1, "Dutch")
        for song, genre, chosen in ANSWERS
    ]
    # The published table has spaces after its commas.
    write_table(root / "data.csv", ("track id", *(f" {name}" for name in ("genre", *NINE, *ABOUT))), rows)
    names = ("classical/1", "rock/1", "electronic/2", "pop/3", "pop/4")
    write_media(root, *(f"emotifymusic/{name}.mp3" for name in names))
    return root


def test_emotify_gives_the_votes_for_nine_felt_emotions(emotify_folder, tmp_path, capsys):
    build(emotify, emotify_folder, tmp_path / "m.jsonl", test_fold=1, validation_fold=2)
    validate([tmp_path / "m.jsonl"], emotify_folder)
    items = {item.id: item for item in read_manifest(tmp_path / "m.jsonl", emotify_folder)}
    assert {item.split for item in items.values()} == {"train", "validation", "test"}
    first = items["emotify-1"]
    shares = dict(zip(first.emotion_names, first.emotion_distribution, strict=True))
    assert (shares["amazement"], shares["calmness"], shares["sadness"]) == (0.5, 0.25, 0.25)
    assert (first.n_raters, first.construct, first.valence) == (2, "induced", None)
    assert items["emotify-303"].audio == "emotifymusic/pop/3.mp3"
    assert "left out: 1 answers without an emotion" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("sadness", "sadness, joy", "expected 18 cells"),
        ("mood", "joy", "has a column 'joy', which this set does not have"),
        ("tension", "stress", "lacks the columns tension"),
        ("classical,1", "classical,7", "amazement must be one of 0, 1, got '7'"),
        ("classical", "jazz", "names emotifymusic/jazz/1.mp3, which is not in"),
    ],
)
def test_emotify_refuses_what_is_not_its_table(emotify_folder, tmp_path, old, new, message):
    table = emotify_folder / "data.csv"
    table.write_text(table.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        build(emotify, emotify_folder, tmp_path / "m.jsonl")


@pytest.fixture
def emopia_folder(tmp_path: Path) -> Path:
    root = tmp_path / "emopia"
    for name in ("Q1_0vLPYiPN7qY_0", "Q3_0vLPYiPN7qY_1", "Q2__BK2o77sTc0_0", "Q4_yC0fAQxGgr0_1"):
        write_media(root, f"midis/{name}.mid", f"midis/{name}.wav")
    return root


def test_emopia_gives_signs_without_sizes_and_keeps_a_song_in_one_split(emopia_folder, tmp_path):
    for fold in (1, 2, 3):
        out = tmp_path / f"{fold}.jsonl"
        build(emopia, emopia_folder, out, test_fold=fold)
        validate([out], emopia_folder)
        items = {item.id.removeprefix("emopia-"): item for item in read_manifest(out, emopia_folder)}
        signs = {name[:2]: (item.valence_sign, item.arousal_sign) for name, item in items.items()}
        assert signs == {"Q1": (1, 1), "Q2": (-1, 1), "Q3": (-1, -1), "Q4": (1, -1)}
        assert items["Q1_0vLPYiPN7qY_0"].split == items["Q3_0vLPYiPN7qY_1"].split
        assert {item.valence for item in items.values()} == {None}


def test_emopia_refuses_a_clip_without_sound_an_unknown_quadrant_and_an_empty_folder(emopia_folder, tmp_path):
    (emopia_folder / "midis/Q4_yC0fAQxGgr0_1.wav").unlink()
    with pytest.raises(UserError, match=r"Q4_yC0fAQxGgr0_1.mid has no sound file beside it; render it"):
        build(emopia, emopia_folder, tmp_path / "m.jsonl")
    write_media(emopia_folder, "midis/Q4_yC0fAQxGgr0_1.wav", "midis/Q5_yC0fAQxGgr0_1.mid")
    with pytest.raises(UserError, match=r"must be named quadrant_song_number.mid"):
        build(emopia, emopia_folder, tmp_path / "m.jsonl")
    with pytest.raises(UserError, match=r"has no .mid files; --from takes the folder of EMOPIA"):
        build(emopia, tmp_path, tmp_path / "m.jsonl")
