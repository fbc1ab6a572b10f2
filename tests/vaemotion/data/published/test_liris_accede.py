from pathlib import Path

import pytest

from tests.tables import write_media, write_table
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.data.manifest.item import label_at
from vaemotion.data.manifest.manifest import read_manifest, validate
from vaemotion.data.published.build import build
from vaemotion.data.published.liris_accede import liris_accede

PART_OF = {0: "DevSet-Part1", 7: "DevSet-Part1", 14: "DevSet-Part2", 30: "DevSet-Part2", 44: "DevSet-Part3"}
PART_OF |= dict.fromkeys(range(54, 66), "TestSet")
DATA = {part: f"MEDIAEVAL18-{part}-Data/data" for part in PART_OF.values()}


def table_of(root: Path, film: int) -> Path:
    folder = f"MEDIAEVAL18-{PART_OF[film]}-Valence_Arousal-annotations/annotations"
    return root / folder / f"MEDIAEVAL18_{film:02d}_Valence-Arousal.txt"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "liris"
    for film, part in PART_OF.items():
        rows = [(second, second / 10, -second / 10) for second in range(5)]
        write_table(table_of(root, film), ("Time", "Valence", "Arousal"), rows, delimiter="\t")
        write_media(root, f"{DATA[part]}/MEDIAEVAL18_{film:02d}.mp4")
    return root


def test_films_keep_their_course_and_the_official_test_part(folder, tmp_path):
    build(liris_accede, folder, tmp_path / "m.jsonl")
    validate([tmp_path / "m.jsonl"], folder)
    items = {item.id: item for item in read_manifest(tmp_path / "m.jsonl", folder)}
    film = items["liris-accede-07"]
    assert film.video == "MEDIAEVAL18-DevSet-Part1-Data/data/MEDIAEVAL18_07.mp4"
    assert (film.construct, film.modality, film.series_rate_hz) == ("induced", "audio-visual", 1)
    assert label_at(film, 2.5) == (pytest.approx(0.25), pytest.approx(-0.25))
    assert {int(name[-2:]) for name, item in items.items() if item.split == "test"} == set(range(54, 66))


def test_a_fold_of_the_other_films_can_validate_but_not_replace_the_test_part(folder, tmp_path):
    found = set[str]()
    for fold in range(1, 6):
        out = tmp_path / f"{fold}.jsonl"
        build(liris_accede, folder, out, validation_fold=fold)
        items = read_manifest(out, folder)
        assert sum(item.split == "test" for item in items) == 12
        found |= {item.id for item in items if item.split == "validation"}
    assert found == {f"liris-accede-{film:02d}" for film in PART_OF if film < 54}
    with pytest.raises(UsageError, match="has a test part of its publisher; leave out --test-fold"):
        build(liris_accede, folder, tmp_path / "m.jsonl", test_fold=1)


def test_a_missing_part_is_refused(folder, tmp_path):
    table_of(folder, 60).unlink()
    with pytest.raises(UserError, match=r"lacks annotations of the official test part \(films 60\)"):
        build(liris_accede, folder, tmp_path / "m.jsonl")
    with pytest.raises(UserError, match=r"official test part \(films 54, 55,"):
        build(liris_accede, folder / "MEDIAEVAL18-DevSet-Part1-Data", tmp_path / "m.jsonl")
    write_table(table_of(folder, 60), ("Time", "Valence", "Arousal"), [(0, 0, 0), (1, 0, 0)], delimiter="\t")
    for film in (0, 7, 14, 30, 44):
        table_of(folder, film).unlink()
    with pytest.raises(UserError, match="lacks the part for training"):
        build(liris_accede, folder, tmp_path / "m.jsonl")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Arousal", "Fear", "lacks the columns Arousal"),
        ("2\t", "5\t", "must be one second apart"),
        ("0.4", "4.0", r"Valence must be a number in \[-1, 1\], got '4.0'"),
    ],
)
def test_a_damaged_table_is_refused(folder, tmp_path, old, new, message):
    table = table_of(folder, 14)
    table.write_text(table.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        build(liris_accede, folder, tmp_path / "m.jsonl")


def test_a_missing_film_and_an_unknown_one_are_refused(folder, tmp_path):
    (folder / DATA["DevSet-Part2"] / "MEDIAEVAL18_30.mp4").unlink()
    with pytest.raises(UserError, match=r"lacks the film of .*, MEDIAEVAL18_30.mp4"):
        build(liris_accede, folder, tmp_path / "m.jsonl")
    table_of(folder, 30).rename(table_of(folder, 30).with_name("MEDIAEVAL18_70_Valence-Arousal.txt"))
    with pytest.raises(UserError, match="the set has no film 70"):
        build(liris_accede, folder, tmp_path / "m.jsonl")
