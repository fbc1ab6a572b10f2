import csv
import shutil
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.media import tone, write_wav
from tests.paths import SHARED
from vaemotion.cli.main import main
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.data.art.contents import CONTENT_CLASSES
from vaemotion.data.manifest.item import Item
from vaemotion.data.manifest.loader import load_clip
from vaemotion.data.manifest.manifest import read_manifest, validate
from vaemotion.data.published.adapter import N_FOLDS, assign_folds
from vaemotion.data.published.build import HeldOut, build
from vaemotion.data.published.human_labels import ESC10_CLASSES, bass, esc10, sievers

DATA = SHARED / "data"
needs_shared = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"the real sets are not beside the project ({DATA} is missing)"
)


def write_csv(path: Path, *rows: dict[str, object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def sievers_row(file: str, kind: str, arousal: object) -> dict[str, object]:
    return {"file": file, "stimType": kind, "arousal01": arousal, "n_neg": 12, "n_pos": 1}


@pytest.fixture
def sievers_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "sievers"
    rows = [
        sievers_row("shapes/b00_LC9.png", "image", "0.25"),
        sievers_row("sounds/b00_SAW1.wav", "sound", 1),
    ]
    write_csv(folder / "labels.csv", *rows)
    for name in ("shapes", "sounds"):
        (folder / name).mkdir()
    (folder / "shapes/b00_LC9.png").write_bytes(b"an image")
    write_wav(folder / "sounds/b00_SAW1.wav", tone(0.02), 16000)
    return folder


def bass_row(file: str, concept: str) -> dict[str, object]:
    return {
        "file": file,
        "concept": concept,
        "valence": -0.8,
        "arousal": 0.4,
        "valence_sd_1to9": 1,
        "arousal_sd_1to9": 2.5,
        "n_raters": 96,
        "source": "Pixabay",
    }


@pytest.fixture
def bass_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "bass"
    names = ["abuse", "abuse2", "bear", "bell", "boat", "bus", "cake"]
    write_csv(folder / "labels.csv", *[bass_row(f"images/{name}.png", name.rstrip("2")) for name in names])
    (folder / "images").mkdir()
    for name in names:
        (folder / f"images/{name}.png").write_bytes(name.encode())
    return folder


def credit(file: str, author: str, license: str = "CC0") -> str:
    url = f"http://www.freesound.org/people/{author}/sounds/{file.split('-')[1]}/"
    return f"- [{file}]:  clip derived from a title (part 1) by the sea.wav ({url}) by somebody [{license}]\n"


@pytest.fixture
def esc10_folder(tmp_path: Path) -> Path:
    """Write two recordings of each class, in folds 1 and 2.

    Ann has recordings in both folds, and one recording has two takes.
    """
    folder = tmp_path / "esc10"
    lines = ["001 - Dog bark:\n"]
    for number, name in enumerate(ESC10_CLASSES):
        (folder / name).mkdir(parents=True)
        for fold in (1, 2):
            file = f"{fold}-{fold}{number}-A.ogg"
            (folder / name / file).write_bytes(file.encode())
            author = "Ann%20B" if (fold, number) in ((1, 0), (2, 1), (2, 2)) else f"author{fold}{number}"
            lines.append(credit(file, author, "CC-BY" if number == 3 else "CC0"))
    (folder / "rain/1-17-B.ogg").write_bytes(b"another take")
    lines.append(credit("1-17-B.ogg", "author17", "CC-Sampling+"))
    (folder / "README.txt").write_text("# ESC-10\n\n" + "".join(lines), encoding="utf-8")
    return folder


def items_of(out: Path, media_root: Path) -> dict[str, Item]:
    return {item.id: item for item in read_manifest(out, media_root, check_hashes=True)}


def test_sievers_gives_arousal_that_shapes_and_sounds_express(sievers_folder, tmp_path):
    build(sievers, sievers_folder, tmp_path / "m.jsonl", media_root=tmp_path)
    items = items_of(tmp_path / "m.jsonl", tmp_path)
    shape, sound = items["sievers-shapes-b00_LC9"], items["sievers-sounds-b00_SAW1"]
    assert (shape.image, shape.modality, shape.audible) == ("sievers/shapes/b00_LC9.png", "visual", False)
    assert (shape.arousal, shape.valence, shape.n_raters) == (-0.5, None, 13)
    assert (sound.audio, sound.modality, sound.audible) == ("sievers/sounds/b00_SAW1.wav", "audio", True)
    assert (sound.arousal, sound.construct, sound.license) == (1.0, "expressed", "BSD-3-Clause")
    assert (shape.question, shape.source, sound.source) == (None, "sievers-shapes", "sievers-sounds")
    assert shape.split == sound.split == "train"
    assert len(load_clip(sound, tmp_path).samples) == 320  # shorter than any window, and still a clip


def test_bass_gives_both_labels_on_our_scale_and_keeps_a_concept_together(bass_folder, tmp_path):
    build(bass, bass_folder, tmp_path / "m.jsonl", test_fold=1, validation_fold=2)
    items = items_of(tmp_path / "m.jsonl", bass_folder)
    item = items["bass-abuse"]
    assert (item.image, item.valence, item.arousal) == ("images/abuse.png", -0.8, 0.4)
    assert (item.valence_sd, item.arousal_sd, item.n_raters) == (0.25, 0.625, 96)
    assert (item.construct, item.license, item.audible) == ("induced", "CC-BY-4.0", False)
    assert item.label == items["bass-abuse2"].label == "abuse"
    assert item.split == items["bass-abuse2"].split
    assert len(items) == 7
    assert {item.split for item in items.values()} == {"train", "validation", "test"}


def test_esc10_asks_for_the_class_by_this_projects_names(esc10_folder, tmp_path):
    build(esc10, esc10_folder, tmp_path / "m.jsonl")
    items = items_of(tmp_path / "m.jsonl", esc10_folder)
    assert len(items) == 21
    sneeze = items["esc10-1-16-A"]
    assert (sneeze.audio, sneeze.answer, sneeze.label) == ("person_sneeze/1-16-A.ogg", "sneeze", "sneeze")
    assert (sneeze.question, sneeze.task, sneeze.audible) == ("What is this?", "content", True)
    assert (sneeze.pairing, sneeze.modality, sneeze.split) == ("matched", "audio", "train")
    for item in items.values():
        assert item.options[item.answer_index] == item.answer
        assert sorted(item.options) == sorted(ESC10_CLASSES.values())
    assert len({item.options for item in items.values()}) > 15
    assert set(ESC10_CLASSES.values()) <= set(CONTENT_CLASSES)
    assert items["esc10-1-17-A"].work_id == items["esc10-1-17-B"].work_id == "esc10-17"
    assert items["esc10-1-10-A"].creator_id == "freesound:Ann B"
    licenses = [items[f"esc10-1-{name}"].license for name in ("10-A", "13-A", "17-B")]
    assert licenses == ["CC0-1.0", "CC-BY-3.0", "LicenseRef-CC-Sampling-Plus-1.0"]
    build(esc10, esc10_folder, tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "m.jsonl").read_bytes()


@pytest.mark.parametrize(("fold", "left_out"), [(1, 2), (2, 1)])
def test_a_held_out_creators_training_recordings_are_left_out_and_counted(
    esc10_folder, tmp_path, capsys, fold, left_out
):
    out = tmp_path / "m.jsonl"
    build(esc10, esc10_folder, out, test_fold=fold)
    items = items_of(out, esc10_folder).values()
    n_test = 11 if fold == 1 else 10
    assert Counter(item.split for item in items) == {"test": n_test, "train": 21 - n_test - left_out}
    assert all(item.id.startswith(f"esc10-{fold}") == (item.split == "test") for item in items)
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].startswith(f"left out: {left_out} of train")


def test_the_split_test_has_precedence_over_validation(esc10_folder, tmp_path, capsys):
    build(esc10, esc10_folder, tmp_path / "m.jsonl", test_fold=1, validation_fold=2)
    items = items_of(tmp_path / "m.jsonl", esc10_folder).values()
    assert Counter(item.split for item in items) == {"test": 11, "validation": 8}
    assert "left out: 2 of validation" in capsys.readouterr().out


@given(st.lists(st.text(max_size=4), min_size=1, max_size=60))
def test_folds_are_balanced_keep_groups_together_and_ignore_the_order(groups):
    folds = assign_folds(groups)
    fold_of = dict(zip(groups, folds, strict=True))
    assert [fold_of[group] for group in groups] == folds
    sizes = Counter(fold_of.values())
    assert max(sizes.values()) - min(sizes.get(fold, 0) for fold in range(1, N_FOLDS + 1)) <= 1
    assert assign_folds(groups[::-1]) == folds[::-1]


def test_invalid_folds_are_refused(bass_folder, esc10_folder, tmp_path):
    out = tmp_path / "m.jsonl"
    with pytest.raises(UsageError, match="--test-fold must be 1 to 5, got 0"):
        build(bass, bass_folder, out, test_fold=0)
    with pytest.raises(UsageError, match="must differ, got 3 for both"):
        HeldOut(3, 3)
    with pytest.raises(UserError, match=r"fold 5 of .*esc10 has no items; choose one of 1, 2$"):
        build(esc10, esc10_folder, out, test_fold=5)
    assert not out.exists()


def test_manifests_are_not_overwritten_and_media_stay_below_the_root(bass_folder, tmp_path):
    out = tmp_path / "m.jsonl"
    build(bass, bass_folder, out)
    with pytest.raises(UserError, match="exists already"):
        build(bass, bass_folder, out)
    with pytest.raises(UsageError, match="must lie below --media-root"):
        build(bass, bass_folder, tmp_path / "n.jsonl", media_root=tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is not a folder"):
        build(bass, tmp_path / "none", tmp_path / "n.jsonl")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"arousal": "1.5"}, r"labels\.csv, line 2: arousal must be a number in \[-1, 1\], got '1\.5'"),
        ({"arousal": "nan"}, r"line 2: arousal must be a number"),
        ({"valence": "high"}, r"line 2: valence must be a number in \[-1, 1\], got 'high'"),
        ({"n_raters": "9.5"}, r"line 2: n_raters must be a whole number, at least 0, got '9\.5'"),
        ({"concept": " "}, r"line 2: concept is empty"),
        ({"file": "images/zebra.png"}, r"line 2 names images/zebra\.png, which is not in .*bass"),
        ({"file": "../secret.png"}, r"line 2 must name a file inside .*bass, got '\.\./secret\.png'"),
        ({"file": "images/abuse2.png"}, r"has duplicate item ids \(1\), the first is bass-abuse2"),
    ],
)
def test_an_invalid_row_gives_one_sentence(bass_folder, tmp_path, change, sentence):
    with (bass_folder / "labels.csv").open(newline="") as file:
        first, *others = csv.DictReader(file)
    write_csv(bass_folder / "labels.csv", {**first, **change}, *others)
    with pytest.raises(UserError, match=sentence) as caught:
        build(bass, bass_folder, tmp_path / "m.jsonl")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "m.jsonl").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"file,concept\na,b\n", "lacks the columns valence, arousal, valence_sd_1to9"),
        (b"", "lacks the columns"),
        (b"file,\xff\n", "byte 5 is not UTF-8 text"),
        (b"HEADER\n", "has no rows; --from takes the bass folder"),
        (b"HEADER\nimages/abuse.png,abuse\n", "line 2: expected 7 cells"),
        (b'HEADER\n"images,abuse\n', "cannot be read as CSV"),
        (None, "does not exist; --from takes the bass folder with labels.csv and images/"),
    ],
)
def test_a_file_that_is_no_table_gives_one_sentence(bass_folder, tmp_path, content, sentence):
    header = b"file,concept,valence,arousal,valence_sd_1to9,arousal_sd_1to9,n_raters"
    (bass_folder / "labels.csv").unlink()
    if content is not None:
        (bass_folder / "labels.csv").write_bytes(content.replace(b"HEADER", header))
    with pytest.raises(UserError, match=sentence):
        build(bass, bass_folder, tmp_path / "m.jsonl")


def test_an_esc10_in_another_layout_gives_one_sentence(esc10_folder, tmp_path):
    def refused(sentence: str) -> None:
        with pytest.raises(UserError, match=sentence):
            build(esc10, esc10_folder, tmp_path / "m.jsonl")

    (esc10_folder / "cow").mkdir()
    refused(r"esc10/cow is not a class of esc10; expected baby_cry")
    (esc10_folder / "cow").rmdir()
    (esc10_folder / "rain/notes.ogg").write_bytes(b"")
    refused(r"rain/notes\.ogg must be named fold-number-take\.ogg")
    (esc10_folder / "rain/notes.ogg").rename(esc10_folder / "rain/3-99-A.ogg")
    refused(r"README\.txt must credit 3-99-A\.ogg")
    (esc10_folder / "rain/3-99-A.ogg").unlink()
    shutil.rmtree(esc10_folder / "rooster")
    refused(r"lacks the class folder rooster")
    (esc10_folder / "README.txt").unlink()
    refused(r"README\.txt does not exist; --from takes the esc10 folder")


def test_a_folder_of_another_set_gives_one_sentence_on_the_command_line(bass_folder, tmp_path, capsys):
    out = str(tmp_path / "m.jsonl")
    assert main(["data", "build", "sievers", "--from", str(bass_folder), "--out", out]) == 1
    error = capsys.readouterr().err
    assert "lacks the columns stimType, arousal01" in error
    assert "Traceback" not in error
    assert main(["data", "build", "bass", "--from", str(bass_folder), "--out", out, "--test-fold", "9"]) == 2


@needs_shared
@pytest.mark.parametrize(
    ("name", "adapter", "n_items", "n_test"), [("sievers", sievers, 544, 109), ("bass", bass, 393, 81)]
)
def test_the_real_rated_sets_are_valid_and_complete(tmp_path, name, adapter, n_items, n_test):
    out = tmp_path / "m.jsonl"
    build(adapter, DATA / name, out, DATA, test_fold=1, validation_fold=2)
    validate([out], DATA)
    items = read_manifest(out, DATA)
    assert (len(items), sum(item.split == "test" for item in items)) == (n_items, n_test)
    labels = [item.arousal for item in items]
    assert min(labels) < -0.5 < 0.5 < max(labels)
    sounds = [item for item in items if item.audio]
    if sounds:
        shortest = min(sounds, key=lambda item: (DATA / item.audio).stat().st_size)
        assert 0 < load_clip(shortest, DATA).duration_s < 1


@needs_shared
@pytest.mark.parametrize(("fold", "left_out"), [(1, 13), (2, 23), (3, 22), (4, 5)])
def test_each_real_esc10_fold_can_be_held_out(tmp_path, fold, left_out):
    out = tmp_path / "m.jsonl"
    build(esc10, DATA / "esc10", out, DATA, test_fold=fold)
    items = read_manifest(out, DATA)
    assert Counter(item.split for item in items) == {"test": 80, "train": 240 - left_out}
    test = [item for item in items if item.split == "test"]
    assert set(Counter(item.answer for item in test).values()) == {8}
    assert load_clip(test[0], DATA).duration_s == pytest.approx(5, abs=0.1)
