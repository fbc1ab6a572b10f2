import csv
from dataclasses import replace

import cv2
import numpy as np
import pytest

from tests.media import tone, write_wav
from vaemotion.cli.main import main
from vaemotion.contract.front_end import PATHS
from vaemotion.data.art.art import sample_work, work_seed
from vaemotion.data.artemo_open import build_artemo_open, perceptible_arousal
from vaemotion.data.manifest.item import content_sha256
from vaemotion.data.manifest.loader import Media, load_clip
from vaemotion.data.manifest.manifest import read_manifest, validate

WORKS = 4


def make_sievers(folder):
    """Write a set in the published layout with 140 generated shapes and sounds, each with its own label."""
    rows = []
    for kind, n in (("image", 140), ("sound", 140)):
        for k in range(n):
            name = f"shapes/s{k}.png" if kind == "image" else f"sounds/t{k}.wav"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if kind == "image":
                image = np.full((16, 16, 3), 255, np.uint8)
                image[k // 16, k % 16] = 0
                cv2.imwrite(str(folder / name), image)
            else:
                write_wav(folder / name, tone(0.1, 200 + 3 * k), 16_000)
            rows.append({"file": name, "stimType": kind, "arousal01": k / (n - 1), "n_neg": 7, "n_pos": 6})
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    data = tmp_path_factory.mktemp("data")
    (data / "sievers").mkdir()
    make_sievers(data / "sievers")
    out = tmp_path_factory.mktemp("bench")
    build_artemo_open(out, data, "test", WORKS, seed=1)
    return out, data


def test_both_manifests_are_valid_with_their_media_and_hashes(built, capsys):
    out, data = built
    validate([out / "manifest.jsonl"], out)
    validate([out / "human.jsonl"], data)
    assert "are valid (test" in capsys.readouterr().out


def test_questions_labels_and_pairs_are_all_there(built):
    out, data = built
    items = [*read_manifest(out / "manifest.jsonl", out), *read_manifest(out / "human.jsonl", data)]
    found = {(item.source, item.modality, item.task) for item in items}
    pairs = [f"{name}-{kind}" for name in ("procedural", "sievers") for kind in ("agree", "calmer")]
    assert found == {
        *(("procedural-art", path, task) for path in PATHS for task in ("content", "emotion")),
        *((source, "audio-visual", "emotion") for source in pairs),
        ("sievers-shapes", "visual", "emotion"),
        ("sievers-sounds", "audio", "emotion"),
    }
    assert sum(item.source == "procedural-art" for item in items) == WORKS * 6


def test_a_pair_has_no_label_of_its_own(built):
    out, data = built
    for file, root in (("manifest.jsonl", out), ("human.jsonl", data)):
        pairs = [i for i in read_manifest(out / file, root) if i.source.endswith(("-agree", "-calmer"))]
        assert pairs
        for item in pairs:
            labels = (item.valence, item.arousal, item.emotion_distribution, item.construct, item.n_raters)
            assert labels == (None,) * 5
            assert len(item.media) == 2


def test_a_procedural_pairs_answer_follows_from_the_perceptible_factors(built):
    out, _ = built
    for item in read_manifest(out / "manifest.jsonl", out):
        if item.source not in ("procedural-agree", "procedural-calmer"):
            continue
        numbers = [int(path.split("-")[1]) for path in (item.video, item.audio)]
        visual, sound = (
            perceptible_arousal(sample_work(work_seed("test", number)), path)
            for number, path in zip(numbers, ("visual", "audio"), strict=True)
        )
        if item.source == "procedural-agree":
            assert item.answer == ("yes" if (visual > 0) == (sound > 0) else "no")
        else:
            assert item.answer == ("picture" if visual < sound else "sound")
        assert numbers[0] != numbers[1]
        # One class in both modalities, so that the content carries no information about the answer.
        assert item.video.split("-", 2)[2] == item.audio.split("-", 2)[2]


def test_a_pairs_clip_has_the_frames_of_one_work_and_the_sound_of_the_other(built):
    out, _ = built
    pair = next(i for i in read_manifest(out / "manifest.jsonl", out) if i.source == "procedural-agree")
    clip = load_clip(pair, out)
    shown, heard = load_clip(Media(video=pair.video), out), load_clip(Media(video=pair.audio), out)
    assert np.array_equal(np.stack(clip.frames), np.stack(shown.frames))
    assert np.array_equal(clip.samples, heard.samples)
    assert not np.array_equal(clip.samples, shown.samples)
    assert pair.sha256 == content_sha256([out / pair.video, out / pair.audio])


def test_a_build_is_reproducible_and_is_not_overwritten(built, tmp_path, capsys):
    out, data = built
    command = ["data", "build", "artemo-open", "--count", str(WORKS), "--seed", "1", "--from", str(data)]
    assert main([*command, "--out", str(tmp_path)]) == 0
    for name, roots in (("manifest.jsonl", (tmp_path, out)), ("human.jsonl", (data, data))):
        again, first = (
            [replace(item, sha256="") for item in read_manifest(folder / name, root)]
            for folder, root in zip((tmp_path, out), roots, strict=True)
        )
        assert again == first
    printed = " ".join(capsys.readouterr().out.split())
    assert "procedural: accuracy with one modality's true arousal alone" in printed
    assert f"evaluate benchmark {tmp_path / 'human.jsonl'} --media-root {data}" in printed
    assert f"without the human-rated set 'bass': there is no {data / 'bass'}" in printed
    assert main([*command, "--out", str(tmp_path)]) == 1
    assert "exists already; give another folder" in capsys.readouterr().err


def test_without_a_folder_of_published_sets_only_the_procedural_part_is_written(tmp_path, capsys):
    build_artemo_open(tmp_path / "one", None, "validation", 1)
    assert "without the human-rated set 'sievers': give its parent folder" in capsys.readouterr().out
    build_artemo_open(tmp_path / "two", tmp_path / "nowhere", "validation", 1)
    assert "there is no" in capsys.readouterr().out
    assert not (tmp_path / "one" / "human.jsonl").exists()
    assert {i.split for i in read_manifest(tmp_path / "one/manifest.jsonl", tmp_path / "one")} == {
        "validation"
    }


@pytest.mark.parametrize(
    "wrong", [["--split", "holdout"], ["--count", "5001"], ["--fold", "6"]], ids=" ".join
)
def test_wrong_usage_is_refused_before_anything_is_written(tmp_path, wrong, capsys):
    assert main(["data", "build", "artemo-open", "--out", str(tmp_path / "out"), *wrong]) == 2
    assert wrong[1] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
