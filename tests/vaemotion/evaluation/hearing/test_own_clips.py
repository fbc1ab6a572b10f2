"""The hearing report on a user's own clips, of a model that never learned on procedural art."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.own_media import LABELS, QUESTION, write_own_manifest
from tests.tiny import tiny_config, tiny_model
from vaemotion.cli.main import main
from vaemotion.contract.errors import UsageError
from vaemotion.contract.front_end import FrontEnd
from vaemotion.data.clips.held_out import open_held_out
from vaemotion.data.manifest.item import Item
from vaemotion.data.manifest.manifest import read_manifest, write_manifest
from vaemotion.evaluation.benchmark.rows import Bootstrap
from vaemotion.evaluation.hearing.material import manifest_material
from vaemotion.evaluation.hearing.run import HearingOptions, run_hearing
from vaemotion.model.checkpoint import save_checkpoint

FILMS = 12
CONFIG = tiny_config()
FRONT_END = FrontEnd(CONFIG.log_mel, CONFIG.image, CONFIG.windows)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stranger")
    lineage = {"name": "small", "align": {"source": "films", "procedural": False, "align": {}, "seed": 0}}
    save_checkpoint(tiny_model(adapter=False), folder, lineage, "Apache-2.0")
    return folder


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_own_manifest(tmp_path_factory.mktemp("own"), FILMS, ("train", "test"))


@pytest.fixture(scope="module")
def report(stranger: Path, own: Path) -> dict[str, Any]:
    command = ["evaluate", "hearing", "--model", str(stranger), "--out", str(own.parent / "out")]
    given = ["--manifest", str(own), "--media-root", str(own.parent), "--bootstrap", "50"]
    assert main([*command, *given]) == 0
    return json.loads((own.parent / "out" / "hearing.json").read_text())


def changed(own: Path, to: Path, **fields: object) -> Path:
    """Write the items about content with other fields."""
    items = [replace(i, **fields) for i in read_manifest(own, own.parent) if i.task == "content"]
    write_manifest(to, items)
    return to


def test_the_items_own_options_and_question_are_asked(report: dict[str, Any]) -> None:
    (found,) = report["recognised"]  # nothing is measured on drawings
    assert found["kind"] == "manifest"
    assert found["question"] == QUESTION
    assert found["options"] == sorted(LABELS)
    assert (found["clips"], found["windows"]) == (FILMS, FILMS)
    assert sum(map(sum, found["confusion"])) == FILMS
    assert found["chance"] == 1 / len(LABELS)


def test_every_control_is_of_the_items(report: dict[str, Any]) -> None:
    (found,) = report["recognised"]
    measured = {c["name"]: c["accuracy"] for c in found["conditions"]}
    for name in ("blind text", "silence", "noise", "another clip's sound", "random projector"):
        assert 0 <= measured[name]["value"] <= 1, name
    # The train split of the manifest fits the probes; tones of four heights are easy to tell apart.
    assert measured["probe on log-mel statistics"]["value"] == 1.0
    assert report["rules"][0]["outcome"] == "failed"  # random weights do not hear


def test_clips_with_frames_are_found_by_their_sound_and_swapped(report: dict[str, Any]) -> None:
    assert {way["clips"] for way in report["retrieved"]} == {FILMS}
    named = next(way for way in report["retrieved"] if way["name"].startswith("the class alone"))
    assert named["recall"]["1"]["value"] == pytest.approx(len(LABELS) / FILMS)
    (followed,) = report["followed"]
    assert sum(followed[part]["value"] for part in ("sight", "sound", "neither")) == pytest.approx(1)
    assert report["not_measured"] == []


def test_the_name_of_a_class_is_no_leak(report: dict[str, Any]) -> None:
    assert [each["name"] for each in report["visual_classes"]] == ["green frog"]


def test_labels_are_the_options_where_items_have_none(own: Path) -> None:
    bare: dict[str, Any] = {"question": None, "options": None, "answer_index": None, "task": "clip"}
    manifest = changed(own, own.parent / "labels.jsonl", **bare)
    media = open_held_out(str(manifest), own.parent, FRONT_END, ("test",))
    found = manifest_material(tiny_model(), media)
    assert found.options == tuple(sorted(LABELS))
    assert found.question == "What is this?"
    assert [found.options[k] for k in found.truth] == [LABELS[index % len(LABELS)] for index in range(FILMS)]


def test_without_frames_recognition_alone_is_measured(stranger: Path, own: Path, tmp_path: Path) -> None:
    """Cut the sounds out of the films: no retrieval, no swapped sound, and a sentence about it."""
    from tests.media import write_wav
    from vaemotion.data.manifest.item import content_sha256
    from vaemotion.data.manifest.loader import load_clip

    items: list[Item] = []
    for item in read_manifest(own, own.parent):
        if item.task == "content" and item.split == "test":
            samples = load_clip(item, own.parent).samples
            assert samples is not None
            file = write_wav(tmp_path / f"{item.work_id}.wav", samples, 16_000)
            sound = {"video": None, "audio": file.name, "pairing": "none", "sha256": content_sha256([file])}
            items.append(replace(item, **sound))
    write_manifest(tmp_path / "sounds.jsonl", items)
    options = HearingOptions(
        manifest=tmp_path / "sounds.jsonl", media_root=tmp_path, bootstrap=Bootstrap(20, 0)
    )
    run_hearing(stranger, tmp_path / "out", options)
    found = json.loads((tmp_path / "out" / "hearing.json").read_text())
    assert found["recognised"][0]["clips"] == FILMS
    assert found["recognised"][0]["windows"] == 2 * FILMS  # of 1.6 s, windows of 1 s
    assert found["retrieved"] == found["followed"] == []
    assert found["not_measured"] == [
        "recordings of own films: 0 clips have frames; retrieval and swapped sound need 10"
    ]
    probe = next(
        c for c in found["recognised"][0]["conditions"] if c["name"].startswith("probe on the model")
    )
    assert probe["accuracy"] is None  # there is no split 'train'


def test_a_model_that_never_saw_procedural_art_is_not_measured_on_it(stranger: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"did not learn on procedural art.*give --manifest"):
        run_hearing(stranger, tmp_path / "out", HearingOptions())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"split": "validation"}, r"has no item of split test; its splits: validation"),
        (
            {"question": None, "options": None, "answer_index": None, "label": None, "task": "clip"},
            r"asks for its content with options .* or names it by a label",
        ),
        ({"options": ("siren", "bell"), "answer_index": 0}, r"has sounds of 1 classes"),
    ],
)
def test_a_manifest_that_tells_no_content_is_refused(
    stranger: Path, own: Path, tmp_path: Path, fields: dict[str, Any], sentence: str
) -> None:
    manifest = changed(own, tmp_path / "changed.jsonl", **fields)
    options = HearingOptions(manifest=manifest, media_root=own.parent)
    with pytest.raises(UsageError, match=sentence):
        run_hearing(stranger, tmp_path / "out", options)


def test_items_that_differ_in_their_options_are_refused(own: Path, tmp_path: Path) -> None:
    items = [i for i in read_manifest(own, own.parent) if i.task == "content" and i.split == "test"]
    items[0] = replace(items[0], options=(*(items[0].options or ()), "bell"))
    write_manifest(tmp_path / "changed.jsonl", items)
    media = open_held_out(str(tmp_path / "changed.jsonl"), own.parent, FRONT_END, ("test",))
    with pytest.raises(UsageError, match=r"must all offer the same options, got 2 different sets"):
        manifest_material(tiny_model(), media)


def test_the_help_teaches_what_a_manifest_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "hearing", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "which of their items' options, or else of their labels, does the sound name?" in text
