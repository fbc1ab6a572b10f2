"""Ratings that confidence is fitted on: whose they are, of what, and for which paths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calibration.confidence import fit_confidence
from calibration.rated import RatedMedia, RatedWindow
from export.predictors import checkpoint_predictor
from tests.own_media import film_items
from tests.tiny import tiny_config, tiny_model
from vaemotion.contract.emotions import EMOTIONS
from vaemotion.contract.errors import UserError
from vaemotion.contract.front_end import PATHS, FrontEnd
from vaemotion.data.clips.held_out import open_held_out
from vaemotion.data.clips.source import DamagedClip
from vaemotion.data.manifest.item import Item
from vaemotion.data.manifest.manifest import write_manifest

CONFIG = tiny_config()
FRONT_END = FrontEnd(CONFIG.log_mel, CONFIG.image, CONFIG.windows)


def rated(
    folder: Path,
    films: int,
    change: Callable[[Item], Item] = lambda item: item,
    emotions: tuple[str, ...] = EMOTIONS,
    duration_s: float = 1.6,
) -> RatedMedia:
    items: list[Item] = []
    for index in range(films):
        items += [
            change(i) for i in film_items(folder, index, "validation", duration_s) if i.task == "emotion"
        ]
    write_manifest(folder / "own.jsonl", items)
    media = open_held_out(str(folder / "own.jsonl"), folder, FRONT_END, ("validation",))
    return RatedMedia(media, FRONT_END, emotions)


def window(material: RatedMedia, index: int = 0) -> RatedWindow:
    found = material.window(index)
    assert isinstance(found, RatedWindow)
    return found


def test_every_path_has_the_ratings_of_its_own_item(tmp_path: Path) -> None:
    material = rated(tmp_path, 1, lambda i: replace(i, valence=0.1 * PATHS.index(i.modality)))
    found = window(material)
    assert {path: label.valence for path, label in found.labels.items()} == {
        path: pytest.approx(0.1 * k) for k, path in enumerate(PATHS)
    }
    assert found.work == "validation-0"


@pytest.mark.parametrize(
    "change",
    [
        lambda i: replace(i, machine_made=True),
        lambda i: replace(i, construct="induced"),
        lambda i: replace(i, arousal=None),
    ],
    ids=["a model's", "induced", "no arousal"],
)
def test_what_is_no_rating_of_the_expressed_emotion_does_not_count(
    tmp_path: Path, change: Callable[[Item], Item]
) -> None:
    assert len(rated(tmp_path, 2, change)) == 0


def test_ratings_of_other_emotions_count_for_valence_and_arousal(tmp_path: Path) -> None:
    material = rated(tmp_path, 1, lambda i: replace(i, emotion_names=tuple("abcdefghi")))
    window = material.window(0)
    assert isinstance(window, RatedWindow)
    assert {label.emotions is None for label in window.labels.values()} == {True}


def test_the_models_own_emotions_are_found_in_any_order(tmp_path: Path) -> None:
    names = tuple(f"feeling {k}" for k in range(9))
    shares = tuple(k / 36 for k in range(9))
    material = rated(
        tmp_path, 1, lambda i: replace(i, emotion_names=names, emotion_distribution=shares), names[::-1]
    )
    np.testing.assert_allclose(window(material).labels["audio"].emotions, shares[::-1])


def test_a_sound_that_does_not_fill_a_window_is_rated_on_sight_alone(tmp_path: Path) -> None:
    material = rated(tmp_path, 1, duration_s=0.8)
    assert set(window(material).labels) == {"visual"}


def test_a_series_is_read_at_the_windows_end(tmp_path: Path) -> None:
    def course(item: Item) -> Item:
        series = {"valence_series": (0.0, 1.0), "arousal_series": (1.0, 0.0), "series_rate_hz": 0.25}
        return replace(item, valence=None, arousal=None, **series)  # type: ignore[arg-type]

    for duration_s in (1.6, 3.6):
        material = rated(tmp_path, 1, course, duration_s=duration_s)
        found = window(material)
        label = found.labels["visual"]
        assert label.valence == pytest.approx(1 - label.arousal)
        assert found.now_s / 4 - 1e-6 <= label.valence <= duration_s / 4


def test_a_film_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    from vaemotion.data.manifest.item import content_sha256

    def broken(item: Item) -> Item:
        file = tmp_path / str(item.video)
        file.write_bytes(b"no film")
        return replace(item, sha256=content_sha256([file]))

    found = rated(tmp_path, 1, broken).window(0)
    assert isinstance(found, DamagedClip)
    assert found.name == "validation-0-audio"


def test_confidence_is_fitted_on_the_paths_that_enough_works_are_rated_on(tmp_path: Path) -> None:
    def only_sight_for_some(item: Item) -> Item:
        heard_by_raters = int(item.work_id.split("-")[1]) < 19
        return item if heard_by_raters else replace(item, modality="visual")

    material = rated(tmp_path, 22, only_sight_for_some)
    predictor = checkpoint_predictor(tiny_model())
    found = fit_confidence(predictor, material, most_s=600)
    assert list(found.paths) == ["visual"]
    assert (found.fitted_on, found.judged_on) == (11, 11)
    with pytest.raises(
        UserError, match=r"confidence is not calibrated on own\.jsonl, split validation: .* 20 works"
    ):
        fit_confidence(predictor, rated(tmp_path, 5), most_s=600)
