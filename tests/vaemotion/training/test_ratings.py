"""Rated works of stage 2: windows of films, sounds and images, each with the labels that hold for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from export.predictors import checkpoint_predictor
from tests.rated import item, write_film, write_image, write_sound
from tests.tiny import tiny_config, tiny_model
from vaemotion.contract.audio import SAMPLE_RATE_HZ
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.front_end import PATHS, window_at
from vaemotion.data.clips.source import ClipWindow, window_span_s
from vaemotion.data.emotion_vocabularies import vocabularies
from vaemotion.data.manifest.item import Item, label_at
from vaemotion.data.manifest.loader import Media, load_clip
from vaemotion.data.manifest.manifest import write_manifest
from vaemotion.data.shard import ShardOptions, write_shards
from vaemotion.model.emo_adapter import CONSTRUCTS
from vaemotion.training import ratings
from vaemotion.training.config import TrainingConfig
from vaemotion.training.rated_sets import RatedSet
from vaemotion.training.rated_windows import FILM, VIEWS, RatedWork, views_of
from vaemotion.training.ratings import Ratings, counts_table, encoded_ratings, read_ratings

MODEL = tiny_model()
FRONT_END = MODEL.config.front_end
SPAN_S = window_span_s(FRONT_END)
SERIES = tuple(float(v) for v in np.linspace(-0.9, 0.9, 13))  # of 6 s, two a second


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    write_film(folder / "film.mkv", 6.0)
    write_film(folder / "muted.mkv", 3.0, seed=2, sound=False)
    write_sound(folder / "hum.flac", 0.3 * np.sin(np.arange(15_000) * 0.2))
    write_sound(folder / "long.flac", 0.3 * np.sin(np.arange(6 * SAMPLE_RATE_HZ) ** 1.5 * 0.001))
    write_image(folder / "circle.png")
    return folder


def config_for(root: Path, runs: Path, items: Sequence[Item], *more: str) -> TrainingConfig:
    runs.mkdir(exist_ok=True)
    write_manifest(runs / "rated.jsonl", list(items))
    paths = [f"media_root={root}", f"runs={runs}", f"emotion.ratings=['{runs / 'rated.jsonl'}']"]
    return tiny_config(*paths, *more)


def encoded(root: Path, runs: Path, items: Sequence[Item], *more: str) -> tuple[list[RatedSet], Ratings]:
    config = config_for(root, runs, items, *more)
    found = read_ratings(config, FRONT_END)
    return encoded_ratings(found, MODEL, config), found


def film(root: Path, name: str = "film", **values: object) -> Item:
    return item(root, name, **{"video": "film.mkv", "source": "films", "modality": "audio-visual", **values})


# --- paths and labels ---------------------------------------------------------------------------------------


def test_ratings_stay_with_their_path_construct_and_dimension(root: Path, tmp_path: Path) -> None:
    sound = item(root, "sound", audio="hum.flac", arousal=0.5, source="sounds", modality="audio")
    shape = item(
        root,
        "shape",
        image="circle.png",
        valence=-0.25,
        arousal=0.75,
        source="shapes",
        modality="visual",
        construct="induced",
    )
    [sounds, shapes], _ = encoded(root, tmp_path, [sound, shape])
    assert (sounds.source, sounds.paths, CONSTRUCTS[sounds.construct]) == ("sounds", ("audio",), "expressed")
    assert (shapes.source, shapes.paths, CONSTRUCTS[shapes.construct]) == ("shapes", ("visual",), "induced")
    assert (sounds.windows, shapes.windows) == (VIEWS["sound"], VIEWS["still"])
    assert torch.isnan(sounds.affect[:, 0]).all()  # nobody rated valence
    assert (sounds.affect[:, 1] == 0.5).all()
    assert shapes.affect[0].tolist() == [-0.25, 0.75]
    assert torch.isnan(sounds.emotions).all()
    heard, seen = sounds.tokens.read(range(8)), shapes.tokens.read(range(24))
    assert not heard.visual.any()
    assert not seen.audio.any()
    for tokens in (heard.audio, seen.visual[:, -1]):
        assert tokens.std(0).mean() > 1e-4  # the views differ
    with pytest.raises(UsageError, match="no item of split 'test' with valence, arousal"):
        read_ratings(config_for(root, tmp_path, [sound]), FRONT_END, "test")


def test_a_film_that_was_rated_gives_all_three_paths_from_one_item(root: Path, tmp_path: Path) -> None:
    [films], _ = encoded(root, tmp_path, [film(root, valence=0.5)])
    assert (films.paths, films.kind) == (PATHS, FILM)
    tokens = films.tokens.read(range(films.windows))
    assert tokens.audio.abs().amax((1, 2)).min() > 0
    assert tokens.visual.abs().amax((1, 2, 3)).min() > 0


def test_a_path_on_which_a_work_was_rated_alone_has_that_rating(root: Path, tmp_path: Path) -> None:
    """As in sets of three conditions: the music alone, the muted film, the film."""
    whole = film(root, valence=0.5)
    muted = replace(film(root, "m", valence=-0.5, modality="visual"), work_id=whole.work_id)
    other = replace(film(root, "o", valence=0.25), sha256=whole.sha256)
    sets, _ = encoded(root, tmp_path, [whole, muted, other])
    by_paths = {each.paths: each.affect[0, 0].item() for each in sets}
    assert by_paths == {("audio", "audio-visual"): 0.5, ("visual",): -0.5, PATHS: 0.25}


def test_single_paths_of_films_read_that_path_alone(root: Path, tmp_path: Path) -> None:
    muted = item(root, "muted", video="muted.mkv", valence=0.5, source="seen", modality="visual")
    heard = film(root, "heard", valence=0.5, source="heard", modality="audio")
    [seen, sounds], _ = encoded(root, tmp_path, [muted, heard])
    assert (seen.kind, sounds.kind) == (FILM, "sound")
    assert not seen.tokens.read([0]).audio.any()
    assert sounds.windows > VIEWS["sound"]  # six seconds hold more windows than one second
    assert sounds.tokens.read(range(sounds.windows)).audio.std(0).mean() > 1e-3


def test_a_window_of_changing_labels_has_the_label_of_its_time_minus_the_lag(
    root: Path, tmp_path: Path
) -> None:
    rated = {"arousal_series": SERIES, "series_rate_hz": 2.0}
    at_once = film(root, "a", **rated)
    late = replace(film(root, "b", source="late", **rated), reaction_lag_s=2.0)
    sets, _ = encoded(root, tmp_path, [at_once, late])
    for each, lag_s, begin_s, end_s in zip(sets, (0.0, 2.0), (SPAN_S, SPAN_S), (6.0, 4.0), strict=True):
        arousal = each.affect[:, 1].numpy()
        assert torch.isnan(each.affect[:, 0]).all()
        # the series rises by 0.3 a second from -0.9 at 0 s on
        ends_s = (arousal + 0.9) / 0.3 - lag_s
        assert begin_s - 1e-4 <= ends_s.min()
        assert ends_s.max() <= end_s + 1e-4
        assert len(set(np.round(ends_s, 3))) == each.windows
        assert np.ptp(ends_s) > 0.6 * (end_s - begin_s)
    item_at = [label_at(late, t)[1] for t in (0.0, 4.0, 4.5)]
    assert item_at == [pytest.approx(-0.3), pytest.approx(0.9), None]


def test_windows_outside_the_rated_time_give_no_row(root: Path, tmp_path: Path) -> None:
    begun = {"arousal_series": SERIES[:4], "series_rate_hz": 2.0}
    middle = film(root, "middle", **begun, series_start_s=3.0)
    before = film(root, "before", **begun, series_start_s=-3.0)
    [films], found = encoded(root, tmp_path, [middle, before])
    assert len(films) == 1
    assert films.unlabeled == ("before",)
    assert films.affect[:, 1].isfinite().all()
    row = next(line for line in counts_table(None, [films], found).splitlines() if "films" in line)
    assert [cell.strip() for cell in row.split("|")[4:7]] == ["1", "4", "1"]  # items, windows, without label


def test_a_label_of_the_whole_work_holds_where_the_series_ends(root: Path, tmp_path: Path) -> None:
    rated = film(root, valence=0.5, arousal_series=SERIES[:2], series_rate_hz=1.0)
    [films], _ = encoded(root, tmp_path, [rated])
    assert (films.affect[:, 0] == 0.5).all()
    assert films.affect[:, 1].isnan().any()


def test_signs_stand_apart_from_labels_with_a_size(root: Path, tmp_path: Path) -> None:
    quadrant = film(root, "q", valence_sign=1, arousal_sign=-1)
    both = film(root, "both", valence=0.25, arousal_sign=1)
    [films], _ = encoded(root, tmp_path, [quadrant, both])
    first, second = int(films.first[0]), int(films.first[1])
    assert films.affect[first].isnan().all()
    assert films.signs[first].tolist() == [1, -1]
    assert films.affect[second, 0] == 0.25
    assert films.signs[second].isnan().tolist() == [True, False]


def test_emotions_of_other_names_are_joined_or_left_out(root: Path, tmp_path: Path) -> None:
    gems = vocabularies()["gems-9"].names
    shares = (0.5, 0, 0, 0, 0, 0, 0, 0, 0.5)
    known = film(root, "known", emotion_names=gems, emotion_distribution=shares)
    unknown = film(root, "unknown", emotion_names=("saudade", "hygge"), emotion_distribution=(0.5, 0.5))
    [films], found = encoded(root, tmp_path, [known, unknown])
    assert len(films) == 1
    assert found.unlabeled == {("films", "audio-visual", "expressed"): 1}
    assert films.emotions[0].tolist() == [0, 0.5, 0, 0, 0, 0, 0, 0.5, 0]  # awe and sadness among ArtEmis's
    own = "emotion.emotions=['hygge','saudade','awe']"
    sets, _ = encoded(root, tmp_path, [known, unknown], own)
    # in the order of the model's names; half of the votes of the first are for awe
    assert [each.emotions.tolist() for each in sets] == [[[0, 0, 1], [0.5, 0.5, 0]]]


def test_labels_that_a_model_gave_are_left_out_unless_they_have_a_weight(root: Path, tmp_path: Path) -> None:
    human, made = film(root, "human", valence=0.5), film(root, "made", valence=0.25, machine_made=True)
    [films], found = encoded(root, tmp_path, [human, made])
    assert (len(films), films.machine_made) == (1, False)
    assert "| films | audio + visual + audio-visual | expressed | 1 | 8 | 0 | 0 | 0 (1 left out) |" in (
        counts_table(None, [films], found)
    )
    sets, found = encoded(root, tmp_path, [human, made], "emotion.machine_made_weight=0.5")
    assert [(len(each), each.machine_made) for each in sets] == [(1, False), (1, True)]
    assert "| 1 | 8 | 0 | 0 | 1 |" in counts_table(None, sets, found)


def test_items_without_any_label_are_counted(root: Path, tmp_path: Path) -> None:
    asked = film(root, "asked", question="What is this?", answer="a light", construct=None, task="content")
    sets, found = encoded(root, tmp_path, [film(root, valence=0.5), asked])
    assert "| films | audio-visual | – | 0 | 0 | 1 | 0 | 0 |" in counts_table(None, sets, found)


def test_a_path_that_nothing_teaches_is_named(root: Path, tmp_path: Path) -> None:
    sound = item(root, "sound", audio="hum.flac", arousal=0.5, source="sounds", modality="audio")
    sets, found = encoded(root, tmp_path, [sound])
    table = counts_table(None, sets, found)
    assert "no work on the visual path" in table
    assert "no work on the audio path" not in table


# --- windows ------------------------------------------------------------------------------------------------


def test_the_first_view_has_the_tokens_of_the_device(root: Path, tmp_path: Path) -> None:
    items = [
        item(root, "sound", audio="hum.flac", arousal=0.5, source="sounds", modality="audio"),
        item(root, "shape", image="circle.png", arousal=0.5, source="shapes", modality="visual"),
    ]
    [sounds, shapes], _ = encoded(root, tmp_path, items)
    predictor = checkpoint_predictor(MODEL)
    picture, sound = load_clip(Media(image="circle.png"), root), load_clip(Media(audio="hum.flac"), root)
    visual = predictor.encode(window_at(picture, 0.0, "visual", FRONT_END))
    audio = predictor.encode(window_at(sound, sound.duration_s, "audio", FRONT_END))
    np.testing.assert_allclose(shapes.tokens.read([0]).visual[0, -1], visual.visual[0], atol=2e-3)
    np.testing.assert_allclose(sounds.tokens.read([0]).audio[0], audio.audio, atol=5e-3)


def test_a_window_of_a_film_is_what_a_device_sees_and_hears_that_began_then(root: Path) -> None:
    rated = film(root, valence=0.5, t0=1.0, t1=5.5)
    views = views_of(RatedWork(rated), root, FRONT_END, [0])
    assert len(views) >= VIEWS[FILM]
    assert SPAN_S <= views[0].end_s < views[-1].end_s <= 4.5
    first, changed = views[0], views[1]
    begin_s = 1.0 + first.end_s - SPAN_S
    clip = load_clip(Media(video="film.mkv", t0=begin_s, t1=begin_s + SPAN_S + 1e-6), root)
    expected = window_at(clip, SPAN_S, "audio-visual", FRONT_END)
    np.testing.assert_allclose(first.pixels, expected.pixels, atol=1e-5)
    np.testing.assert_allclose(first.log_mel, expected.log_mel, atol=1e-5)
    np.testing.assert_allclose(first.frame_ages_s, [1.2, 0.8, 0.4, 0.0], atol=0.1 + 1e-6)
    again = views_of(RatedWork(rated), root, FRONT_END, [0])
    assert np.array_equal(again[1].pixels, changed.pixels)
    other = views_of(RatedWork(rated), root, FRONT_END, [1])
    assert other[0].end_s != first.end_s


def test_a_film_shorter_than_a_window_repeats_its_oldest_frame(root: Path, tmp_path: Path) -> None:
    write_film(root / "short.mkv", 0.7)
    short = item(root, "short", video="short.mkv", valence=0.5, source="films", modality="audio-visual")
    [films], _ = encoded(root, tmp_path, [short])
    tokens = films.tokens.read(range(films.windows))
    assert films.windows == VIEWS[FILM]
    assert tokens.frames.tolist() == [2] * 4  # 0.4 s apart
    for oldest in range(2):
        torch.testing.assert_close(tokens.visual[:, oldest], tokens.visual[:, 2])
    assert (tokens.frame_age_s[:, 2:].diff() < 0).all()


def test_clips_of_another_source_are_labeled_by_the_time_of_their_window(root: Path) -> None:
    rated = film(root, arousal_series=SERIES[:5], series_rate_hz=1.0)

    class Clips:
        """A source that draws its windows itself."""

        name, identity, procedural = "clips", "c", False

        def __len__(self) -> int:
            return 1

        def item(self, index: int) -> Item:
            return rated

        def window(self, index: int, seed: int, span_s: float) -> ClipWindow:
            start_s = float(np.random.default_rng(seed).uniform(0, 6 - span_s))
            clip = load_clip(Media(video="film.mkv", t0=start_s, t1=start_s + span_s), root)
            return ClipWindow(rated, clip, span_s, start_s)

    ends_s = [
        view.end_s
        for seed in range(8)
        for view in views_of(RatedWork(rated, Clips(), 0), root, FRONT_END, [seed])
    ]
    assert 0 < len(ends_s) < 8 * VIEWS[FILM]  # the others end after the last rating
    assert max(ends_s) <= 4.0


def test_shards_are_rated_as_the_manifest_that_they_were_written_from(root: Path, tmp_path: Path) -> None:
    rated = film(
        root, arousal_series=SERIES, series_rate_hz=2.0, pairing="synchronised", utterances=("slow",)
    )
    write_manifest(tmp_path / "films.jsonl", [rated])
    write_shards(tmp_path / "films.jsonl", tmp_path / "shards", root, ShardOptions())
    config = tiny_config(f"runs={tmp_path}", f"emotion.ratings=['{tmp_path / 'shards'}']")
    [films] = encoded_ratings(read_ratings(config, FRONT_END), MODEL, config)
    assert (films.source, films.paths, films.windows) == ("films", PATHS, VIEWS[FILM])
    assert films.known[0].utterances == ("slow",)
    ends_s = (films.affect[:, 1] + 0.9) / 0.3
    assert ends_s.min() >= SPAN_S - 1e-3
    assert films.tokens.read([0]).audio.any()
    with pytest.raises(UsageError, match="is a stream"):
        read_ratings(tiny_config("emotion.ratings=['pipe:cat x.tar']"), FRONT_END)


# --- files --------------------------------------------------------------------------------------------------


def test_a_killed_run_encodes_only_the_blocks_that_are_missing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [film(root, f"film {k}", valence=0.1 * k) for k in range(3)]
    monkeypatch.setattr("vaemotion.training.rated_tokens.BLOCK", 1)
    [first], _ = encoded(root, tmp_path, items)
    before = first.tokens.read(range(first.windows))
    files = sorted(tmp_path.glob("rated-*/block-*.safetensors"))
    assert len(files) == 3
    kept = {file.name: file.stat().st_mtime_ns for file in files}
    files[1].unlink()
    [again], _ = encoded(root, tmp_path, items)
    now = {
        file.name: file.stat().st_mtime_ns for file in sorted(tmp_path.glob("rated-*/block-*.safetensors"))
    }
    assert [name for name in kept if now[name] != kept[name]] == [files[1].name]
    after = again.tokens.read(range(again.windows))
    torch.testing.assert_close(after.visual, before.visual)
    torch.testing.assert_close(after.audio, before.audio)
    [in_worker], _ = encoded(root, tmp_path / "other", items, "emotion.optimisation.workers=1")
    assert torch.equal(in_worker.tokens.read(range(in_worker.windows)).visual, before.visual)


def test_other_media_labels_or_weights_have_blocks_of_their_own(root: Path, tmp_path: Path) -> None:
    rated = film(root, valence=0.5)
    digests = {encoded(root, tmp_path, [each])[0][0].digest for each in (rated, replace(rated, t0=0.5))}
    digests.add(encoded(root, tmp_path, [rated], "data_seed=1")[0][0].digest)
    digests.add(encoded(root, tmp_path, [rated])[0][0].digest)
    assert len(digests) == 3


def test_damaged_items_are_left_out_and_named_and_many_end_the_run(root: Path, tmp_path: Path) -> None:
    (root / "broken.flac").write_bytes(b"no sound")
    sounds = {"arousal": 0.5, "source": "sounds", "modality": "audio"}
    good = [item(root, f"s{k}", audio="hum.flac", **sounds) for k in range(24)]
    broken = [item(root, f"broken {k}", audio="broken.flac", **sounds) for k in range(2)]
    [made], found = encoded(root, tmp_path, [*good, broken[0]])
    assert (len(made), [clip.name for clip in made.damaged]) == (24, ["broken 0"])
    table = counts_table(None, [made], found)
    assert "| sounds | audio | expressed | 24 | 192 | 0 | 1 | 0 |" in table
    assert "broken 0 was left out: " in table
    with pytest.raises(UserError, match="2 of 26 clips cannot be used, more than 5%"):
        encoded(root, tmp_path, [*good, *broken])


def test_every_process_encodes_its_own_blocks(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [film(root, f"film {k}", valence=0.1 * k) for k in range(5)]
    monkeypatch.setattr("vaemotion.training.rated_tokens.BLOCK", 1)
    monkeypatch.setattr(ratings, "own_share", lambda numbers: list(numbers)[1::2])
    config = config_for(root, tmp_path, items)
    with pytest.raises(FileNotFoundError):  # the other process has not written its blocks
        encoded_ratings(read_ratings(config, FRONT_END), MODEL, config)
    written = sorted(file.name for file in tmp_path.glob("rated-*/block-*.safetensors"))
    assert written == ["block-000001.safetensors", "block-000003.safetensors"]
