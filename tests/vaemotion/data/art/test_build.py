import numpy as np
import pytest

from vaemotion.contract.emotions import EMOTIONS
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.front_end import PATHS
from vaemotion.data.art.art import draw_frame, sample_work, synthesize, work_seed
from vaemotion.data.art.build import build_procedural
from vaemotion.data.art.contents import CONTENT_CLASSES
from vaemotion.data.manifest.loader import load_clip
from vaemotion.data.manifest.manifest import read_manifest, validate


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("built")
    build_procedural(out, "test", 3)
    return out


def test_each_work_is_asked_for_content_and_emotion_on_every_path(built):
    items = read_manifest(built / "manifest.jsonl", built, check_hashes=True)
    assert len(items) == 3 * 6
    assert {(item.modality, item.task) for item in items} == {
        (p, t) for p in PATHS for t in ("content", "emotion")
    }
    for item in items:
        assert item.options[item.answer_index] == item.answer
        assert sorted(item.options) == sorted(CONTENT_CLASSES if item.task == "content" else EMOTIONS)
    content = [item for item in items if item.task == "content"]
    assert len({item.options for item in content}) == 3  # shuffled per work, the same on its three paths


def test_labels_and_media_are_the_works_own(built):
    items = read_manifest(built / "manifest.jsonl", built)
    for index in range(3):
        work = sample_work(work_seed("test", index))
        mine = [item for item in items if item.work_id == f"procedural-{work.seed:012x}"]
        assert len(mine) == 6
        assert mine[0].answer == work.content
        assert mine[0].valence == pytest.approx(work.valence, abs=1e-6)
        assert mine[1].answer == EMOTIONS[int(np.argmax(work.emotion_distribution))]
        clip = load_clip(mine[0], built)
        assert np.abs(clip.samples - synthesize(work, 3.2)).max() < 1e-4
        drawn = np.stack([draw_frame(work, number / 10) for number in range(32)]).astype(int)
        assert np.abs(np.stack(clip.frames) - drawn).mean() < 8  # yuv420p halves the color's resolution


def test_a_build_is_reproducible_and_seeds_share_no_work(built, tmp_path):
    build_procedural(tmp_path / "again", "test", 3)
    assert (tmp_path / "again/manifest.jsonl").read_text() == (built / "manifest.jsonl").read_text()
    build_procedural(tmp_path / "other", "test", 3, seed=1)
    works = [
        {item.work_id for item in read_manifest(root / "manifest.jsonl", root)}
        for root in (built, tmp_path / "other")
    ]
    assert not works[0] & works[1]


def test_built_manifests_are_valid_and_not_overwritten(built):
    validate([built / "manifest.jsonl"], built)
    with pytest.raises(UserError, match="exists already"):
        build_procedural(built, "test", 1)


def test_wrong_usage_is_refused(tmp_path):
    with pytest.raises(UsageError, match="split must be one of"):
        build_procedural(tmp_path, "holdout", 1)
    with pytest.raises(UsageError, match="count"):
        build_procedural(tmp_path, "test", 0)
