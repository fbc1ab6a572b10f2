from pathlib import Path

import pytest

from tests.paths import SHARED
from tests.tables import write_media, write_table
from vaemotion.contract.errors import UserError
from vaemotion.data.manifest.manifest import read_manifest, validate
from vaemotion.data.published.build import build
from vaemotion.data.published.oasis import OASIS_TABLE, oasis

COLUMNS = (
    "",
    "Theme",
    "Category",
    "Source",
    "Valence_mean",
    "Valence_SD",
    "Valence_N",
    "Arousal_mean",
    "Arousal_SD",
    "Arousal_N",
)
TITLES = ("Acorns 1", "Acorns 2", "Beach 1", "Fire 1", "Lake 1", "Wall 1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "OASIS"
    rows = [
        (f"I{n}", f"{title} ", "Object", "Pixabay", 4.6, 1.5, 101, "1.0", 0.9, 103)
        for n, title in enumerate(TITLES)
    ]
    write_table(root / OASIS_TABLE, COLUMNS, rows)  # the published table has a space after some themes
    write_media(root, *(f"Images/{title}.jpg" for title in TITLES))
    return root


def test_oasis_gives_what_photographs_induced(folder, tmp_path):
    build(oasis, folder, tmp_path / "m.jsonl", test_fold=1)
    validate([tmp_path / "m.jsonl"], folder)
    items = {item.id: item for item in read_manifest(tmp_path / "m.jsonl", folder)}
    acorns = items["oasis-Acorns 1"]
    assert (acorns.valence, acorns.arousal, acorns.valence_sd, acorns.arousal_sd) == (0.2, -1, 0.5, 0.3)
    assert (acorns.construct, acorns.n_raters, acorns.label, acorns.modality) == (
        "induced",
        101,
        "Acorns",
        "visual",
    )
    assert acorns.split == items["oasis-Acorns 2"].split  # they may show one scene
    assert {item.split for item in items.values()} == {"train", "test"}


def test_a_table_in_the_form_of_the_silhouettes_is_read_too(tmp_path):
    columns = ("file", "title", "valence", "arousal", "valence_sd", "arousal_sd", "n_raters")
    write_table(
        tmp_path / "labels.csv", columns, [("pictures/I1.jpg", "Acorns 1", 0.25, -0.5, 0.3, 0.5, 101)]
    )
    write_media(tmp_path, "pictures/I1.jpg")
    build(oasis, tmp_path, tmp_path / "m.jsonl")
    [item] = read_manifest(tmp_path / "m.jsonl", tmp_path)
    assert (item.image, item.valence, item.arousal_sd) == ("pictures/I1.jpg", 0.25, 0.5)


def test_a_rating_beyond_the_scale_and_a_missing_photograph_are_refused(folder, tmp_path):
    (folder / "Images/Fire 1.jpg").unlink()
    with pytest.raises(UserError, match=r"line 5 names Images/Fire 1.jpg, which is not in"):
        build(oasis, folder, tmp_path / "m.jsonl")
    table = folder / OASIS_TABLE
    table.write_text(table.read_text().replace("4.6", "46", 1))
    with pytest.raises(UserError, match=r"line 2: Valence_mean must be a number in \[1, 7\], got '46'"):
        build(oasis, folder, tmp_path / "m.jsonl")
    table.unlink()
    with pytest.raises(UserError, match="does not exist; --from takes the folder of OASIS"):
        build(oasis, folder, tmp_path / "m.jsonl")


@pytest.mark.skipif(not (SHARED / "data/oasis").is_dir(), reason="the real set is not beside the project")
def test_the_real_set_is_valid_and_complete(tmp_path):
    root = SHARED / "data/oasis"
    build(oasis, root, tmp_path / "m.jsonl", test_fold=1)
    items = read_manifest(tmp_path / "m.jsonl", root)
    assert (len(items), len({item.label for item in items})) == (641, 191)
    assert min(item.valence for item in items) < -0.5 < 0.5 < max(item.valence for item in items)
