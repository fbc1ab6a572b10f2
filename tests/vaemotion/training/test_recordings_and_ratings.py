"""Real material in both stages: recordings with windows of their class, ratings with their modality."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

from tests.tiny import tiny_model
from vaemotion.contract.audio import SAMPLE_RATE_HZ, LogMelConfig
from vaemotion.contract.errors import UsageError
from vaemotion.contract.front_end import FrontEnd
from vaemotion.data.art.art import CONTENT_CLASSES
from vaemotion.data.manifest.item import Item, content_sha256
from vaemotion.data.manifest.manifest import write_manifest
from vaemotion.model.emo_adapter import CONSTRUCTS
from vaemotion.training.ratings import IMAGE_VIEWS, SOUND_VIEWS, read_rated
from vaemotion.training.recordings import read_recordings, strong_augmentation

FRONT_END = FrontEnd(log_mel=LogMelConfig(n_mels=32))


def write_sound(path: Path, samples: np.ndarray) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=SAMPLE_RATE_HZ, layout="mono", format="s16")
        frame = av.AudioFrame.from_ndarray(
            (samples * 32767).astype(np.int16)[None], format="s16", layout="mono"
        )
        frame.sample_rate = SAMPLE_RATE_HZ
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recordings, the first a bang with silence behind it; a rated sound and a rated image."""
    folder = tmp_path_factory.mktemp("media")
    rng = np.random.default_rng(0)
    bang = np.concatenate([rng.uniform(-0.5, 0.5, 8000), np.zeros(72000)])
    write_sound(folder / "bang.flac", bang)
    write_sound(folder / "hum.flac", 0.3 * np.sin(np.arange(20000) * 0.2))
    image = np.full((60, 40, 3), 255, np.uint8)
    cv2.circle(image, (20, 30), 10, (0, 0, 0), 2)
    cv2.imwrite(str(folder / "circle.png"), image)
    common = {
        "pairing": "none",
        "split": "train",
        "license": "CC0-1.0",
        "task": "emotion",
        "construct": "expressed",
    }
    recording = {
        **common,
        "pairing": "matched",
        "task": "content",
        "question": "What is this?",
        "modality": "audio",
        "construct": None,
        "source": "r",
    }
    bang_item = item(folder, "bang", audio="bang.flac", answer="dog bark", **recording)
    hum_item = item(folder, "hum", audio="hum.flac", answer="rain", **{**recording, "split": "test"})
    write_manifest(folder / "recordings.jsonl", [bang_item, hum_item])
    sound = {**common, "modality": "audio", "source": "sounds"}
    shape = {**common, "modality": "visual", "source": "shapes", "construct": "induced"}
    rated = [
        item(folder, "sound", audio="hum.flac", arousal=0.5, **sound),
        item(folder, "shape", image="circle.png", valence=-0.25, arousal=0.75, **shape),
    ]
    write_manifest(folder / "rated.jsonl", rated)
    return folder


def item(folder: Path, name: str, **values: object) -> Item:
    media = [folder / str(values[kind]) for kind in ("image", "audio") if kind in values]
    return Item(id=name, work_id=name, creator_id=name, sha256=content_sha256(media), **values)  # type: ignore[arg-type]


def test_only_the_training_split_is_read(root: Path) -> None:
    [bang] = read_recordings(root / "recordings.jsonl", root, FRONT_END)
    assert CONTENT_CLASSES[bang.content] == "dog bark"
    assert bang.log_mel.shape[1] == 32
    [hum] = read_recordings(root / "recordings.jsonl", root, FRONT_END, "test")
    assert len(hum.log_mel) == FRONT_END.audio_window_frames  # shorter than a window: silence behind it
    with pytest.raises(UsageError, match="no item of split 'validation'"):
        read_recordings(root / "recordings.jsonl", root, FRONT_END, "validation")


def test_a_recording_of_no_known_class_is_refused(root: Path, tmp_path: Path) -> None:
    line = json.loads((root / "recordings.jsonl").read_text().splitlines()[0])
    (tmp_path / "m.jsonl").write_text(json.dumps({**line, "answer": "theremin"}) + "\n")
    with pytest.raises(UsageError, match="names 'theremin', for which there is no procedural art"):
        read_recordings(tmp_path / "m.jsonl", root, FRONT_END)


def test_strong_augmentation_makes_audible_windows_at_any_position(root: Path) -> None:
    [bang] = read_recordings(root / "recordings.jsonl", root, FRONT_END)
    background = np.full((FRONT_END.audio_window_frames, 32), -12.0, np.float32)
    rng = np.random.default_rng(3)
    windows = np.stack([strong_augmentation(bang, background, rng, FRONT_END) for _ in range(30)])
    assert windows.shape == (30, 150, 32)
    assert windows.dtype == np.float32
    assert np.isfinite(windows).all()
    loudest = windows.mean(axis=2).max(axis=1)
    audible = loudest > 0.2  # the bang: silence would be -1.3
    assert audible.mean() > 0.9  # in each, unless the masks hide it
    places = windows[audible].mean(axis=2).argmax(axis=1)
    assert np.ptp(places) > 40  # and anywhere
    again = strong_augmentation(bang, background, np.random.default_rng(3), FRONT_END)
    assert np.array_equal(again, windows[0])


def test_ratings_stay_with_their_path_construct_and_dimension(root: Path) -> None:
    model = tiny_model()
    sounds, shapes = sorted(read_rated([str(root / "rated.jsonl")], root, model, 0), key=lambda r: r.path)
    assert (sounds.source, sounds.path, CONSTRUCTS[sounds.construct]) == ("sounds", "audio", "expressed")
    assert (shapes.source, shapes.path, CONSTRUCTS[shapes.construct]) == ("shapes", "visual", "induced")
    assert sounds.tokens.shape == (1, SOUND_VIEWS, 5, 64)
    assert shapes.tokens.shape == (1, IMAGE_VIEWS, 4, 64)
    assert torch.isnan(sounds.affect[0, 0])  # nobody rated valence
    assert sounds.affect[0, 1] == 0.5
    assert shapes.affect[0].tolist() == [-0.25, 0.75]
    assert torch.isnan(sounds.emotions).all()
    assert shapes.tokens[0].float().std(0).mean() > 1e-4  # the views differ
    with pytest.raises(UsageError, match="no rated item of split 'test'"):
        read_rated([str(root / "rated.jsonl")], root, model, 0, "test")


def test_the_first_view_has_the_tokens_of_the_device(root: Path) -> None:
    from export.predictors import checkpoint_predictor
    from vaemotion.contract.front_end import window_at
    from vaemotion.data.manifest.loader import Media, load_clip

    model = tiny_model()
    sounds, shapes = sorted(read_rated([str(root / "rated.jsonl")], root, model, 0), key=lambda r: r.path)
    predictor = checkpoint_predictor(model)
    picture, sound = load_clip(Media(image="circle.png"), root), load_clip(Media(audio="hum.flac"), root)
    visual = predictor.encode(window_at(picture, 0.0, "visual", model.config.front_end))
    audio = predictor.encode(window_at(sound, sound.duration_s, "audio", model.config.front_end))
    np.testing.assert_allclose(shapes.tokens[0, 0].float(), visual.visual[0], atol=2e-3)
    np.testing.assert_allclose(sounds.tokens[0, 0].float(), audio.audio, atol=5e-3)


def test_recordings_may_be_any_length(root: Path) -> None:
    [bang] = read_recordings(root / "recordings.jsonl", root, FRONT_END)
    short = replace(bang, log_mel=bang.log_mel[:150])
    window = strong_augmentation(short, bang.log_mel[:150], np.random.default_rng(0), FRONT_END)
    assert window.shape == (150, 32)
