"""INT8 judged on a user's own films, sounds and pictures: the windows, the figures, and what is missing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration.samples import content_hash
from export.int8.judge import Budget, _label, judge
from export.int8.material import MOST_PER_MEDIUM, JudgedWindow, MediaMaterial
from runtime.perception.predictor import Predictor, open_predictor
from tests.own_media import film_items, write_own_manifest
from tests.tiny import tiny_config
from vaemotion.contract.errors import UserError
from vaemotion.contract.front_end import PATHS, Clip, FrontEnd
from vaemotion.data.clips.held_out import open_held_out
from vaemotion.data.manifest.item import Item
from vaemotion.data.manifest.manifest import write_manifest

CONFIG = tiny_config()
FRONT_END = FrontEnd(CONFIG.log_mel, CONFIG.image, CONFIG.windows)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_own_manifest(tmp_path_factory.mktemp("own"), 6)


def material(manifest: Path, count: int) -> MediaMaterial:
    return MediaMaterial(open_held_out(str(manifest), manifest.parent, FRONT_END), FRONT_END, count)


def test_every_medium_is_judged_before_one_is_judged_again_and_no_window_twice(own: Path) -> None:
    windows = list(material(own, 1000).windows())
    hashes = [content_hash(window.clip) for window in windows]
    assert len(set(hashes)) == len(hashes)
    counts = Counter(window.work for window in windows)
    assert set(counts.values()) == {MOST_PER_MEDIUM, 1}
    assert len({window.work for window in windows[:8]}) == 8
    # The picture is the same whenever it is seen, and so it comes once.
    assert sum(window.paths == ("visual",) for window in windows) == 1
    assert [content_hash(w.clip) for w in material(own, 10).windows()] == hashes[:10]


def test_what_cannot_be_decoded_is_named_and_too_much_of_it_ends_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items: list[Item] = []
    for index in range(16):
        items += film_items(tmp_path, index, "validation")
    for broken, ends in ((1, False), (3, True)):
        for index in range(broken):
            (tmp_path / f"validation-{index}.mkv").write_bytes(b"no film")
        changed = [
            replace(item, sha256=_sha256(tmp_path / item.video)) if item.video else item for item in items
        ]
        for k, item in enumerate(changed):  # equal bytes would be one medium
            if (number := int(item.work_id.split("-")[1])) < broken:
                (tmp_path / str(item.video)).write_bytes(b"no film" + bytes([number]))
                changed[k] = replace(item, sha256=_sha256(tmp_path / str(item.video)))
        write_manifest(tmp_path / "own.jsonl", changed)
        found = material(tmp_path / "own.jsonl", 16)
        if ends:
            with pytest.raises(UserError, match=r"3 of 16 media of own\.jsonl cannot be used .*repair them"):
                list(found.windows())
        else:
            assert len({window.work for window in found.windows()}) == 15
            assert "1 of 16 media of own.jsonl cannot be used (validation-0-content: " in " ".join(
                capsys.readouterr().err.split()
            )


def _sha256(path: Path) -> str:
    from vaemotion.data.manifest.item import content_sha256

    return content_sha256([path])


def test_a_film_that_was_exchanged_ends_the_run_by_its_name(own: Path, tmp_path: Path) -> None:
    write_own_manifest(tmp_path, 16)
    (tmp_path / "validation-3.mkv").write_bytes((tmp_path / "validation-4.mkv").read_bytes())
    with pytest.raises(UserError, match=r"validation-3\.mkv is not the file that own\.jsonl describes"):
        list(material(tmp_path / "own.jsonl", 18).windows())


class Shaken:
    """The EmoAdapter with noise on what it reads."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.rng = engine, np.random.default_rng(0)

    def run(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        out = dict(self.engine.run(arrays))
        for name in ("valence_arousal", "induced_valence_arousal"):
            out[name] = out[name] + self.rng.normal(0, 0.1, out[name].shape).astype(np.float32)
        return out


def test_own_films_judge_affect_content_narration_and_jitter(small_bundle: Path, tmp_path: Path) -> None:
    items: list[Item] = []
    for index in range(16):
        items += film_items(tmp_path, index, "validation", duration_s=3.2 if index < 3 else 1.6)
    write_manifest(tmp_path / "own.jsonl", items)
    with open_predictor(small_bundle) as reference:
        engines = {"emo_adapter": Shaken(reference.engines["emo_adapter"])}
        candidates: dict[str, Predictor[Any]] = {"same": reference, "shaken": reference.with_engines(engines)}
        found = judge(reference, candidates, material(tmp_path / "own.jsonl", 16), Budget())
    assert found.not_judged == []
    same, shaken = found.losses["same"], found.losses["shaken"]
    pairs = [f"{name}/{path}" for path in PATHS for name in ("valence", "arousal")]
    assert set(same) == {
        *(f"{kind}_{pair}" for kind in ("ccc", "agreement") for pair in pairs),
        "content_accuracy",
        "kl_nats",
        *(f"jitter/{path}" for path in PATHS),
    }
    assert all(loss.holds for loss in same.values())
    assert {loss.delta for metric, loss in same.items() if not metric.startswith("jitter")} == {0.0}
    assert not any(
        shaken[f"agreement_{pair}"].holds or shaken[f"jitter/{pair[pair.index('/') + 1 :]}"].holds
        for pair in pairs
    )
    assert shaken["kl_nats"].delta == 0.0


def test_what_the_media_do_not_tell_is_said_in_a_sentence_each(small_bundle: Path, tmp_path: Path) -> None:
    items: list[Item] = []
    for index in range(16):
        content, *_ = film_items(tmp_path, index, "validation")
        bare: dict[str, Any] = {"options": None, "answer_index": None, "question": None, "task": "clip"}
        items.append(replace(content, **bare))
    write_manifest(tmp_path / "own.jsonl", items)
    with open_predictor(small_bundle) as reference:
        found = judge(reference, {"same": reference}, material(tmp_path / "own.jsonl", 16), Budget())
    kinds = [text.split(":")[0] for text in found.not_judged]
    assert kinds == ["loss of CCC with people's ratings", "loss of content accuracy", "jitter"]
    assert "0 works of own.jsonl, split validation are rated, 16 are needed" in found.not_judged[0]
    assert {metric.split("_")[0] for metric in found.losses["same"]} == {"agreement", "kl"}


def test_parts_of_one_film_are_judged_with_a_word_about_it(small_bundle: Path, tmp_path: Path) -> None:
    parts: list[Item] = []
    for index in range(16):
        parts += [replace(item, work_id="one film") for item in film_items(tmp_path, index, "validation")]
    write_manifest(tmp_path / "own.jsonl", parts)
    with open_predictor(small_bundle) as reference:
        found = judge(reference, {"same": reference}, material(tmp_path / "own.jsonl", 16), Budget())
    assert found.not_judged[-1].startswith("losses on other works: the media of own.jsonl")
    assert "are parts of 1 work, 16 are needed; the bounds are over media" in found.not_judged[-1]
    assert "ccc_valence/audio" in found.losses["same"]


def test_material_of_too_few_works_judges_nothing(small_bundle: Path, tmp_path: Path) -> None:
    write_own_manifest(tmp_path, 4)
    with (
        open_predictor(small_bundle) as reference,
        pytest.raises(UserError, match=r"has 6 media that can be used, INT8 is judged on at least 16"),
    ):
        judge(reference, {"same": reference}, material(tmp_path / "own.jsonl", 50), Budget())


def test_a_window_gets_the_rating_of_its_time_and_never_a_machines(tmp_path: Path) -> None:
    rated = film_items(tmp_path, 0, "validation")[1]
    assert rated.modality == "audio"
    series = replace(
        rated,
        valence=None,
        valence_series=(0.0, 1.0),
        arousal_series=(1.0, 0.0),
        series_rate_hz=0.1,
        reaction_lag_s=2.0,
    )
    clip = Clip(samples=np.zeros(16_000, np.float32))

    def label(item: Item, time_s: float) -> list[float]:
        return list(_label(JudgedWindow(clip, 1.0, time_s, (item,)), "expressed", "audio"))

    assert label(series, 3.0) == pytest.approx([0.5, 0.5])
    assert np.isnan(label(series, 9.0)).all()
    assert label(rated, 3.0) == [rated.valence, rated.arousal]
    assert np.isnan(label(replace(rated, machine_made=True), 3.0)).all()
    assert np.isnan(_label(JudgedWindow(clip, 1.0, 3.0, (rated,)), "induced", "audio")).all()
    assert json.loads(series.to_json())["reaction_lag_s"] == 2.0
