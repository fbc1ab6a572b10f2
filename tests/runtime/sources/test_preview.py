"""The camera preview: the newest frame as JPEG, none once the camera is lost, no conversion unasked."""

from __future__ import annotations

import cv2
import numpy as np

from runtime.messages import Frame, Sound
from runtime.sources.feed import Arrived
from runtime.sources.preview import WIDTH_PX, Preview


def frame(red: int, width: int = 1280, height: int = 720) -> Frame:
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[..., 0] = red
    return Frame(0.0, lambda: rgb)


def test_the_newest_frame_is_shown_small_and_in_its_colors() -> None:
    preview = Preview()
    assert preview() is None
    assert preview.take(Arrived(frame=frame(40))) == []
    preview.take(Arrived(frame=frame(200)))
    preview.take(Arrived(sound=[Sound(0.1, np.zeros(160, np.float32))]))  # a tick without a new frame
    jpeg = preview()
    assert jpeg is not None
    shown = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)  # (H, W, 3) BGR
    assert shown.shape == (round(720 * WIDTH_PX / 1280), WIDTH_PX, 3)
    assert abs(int(shown[..., 2].mean()) - 200) < 5
    assert shown[..., 0].mean() < 5


def test_a_lost_camera_has_no_preview_until_it_is_back() -> None:
    preview = Preview()
    preview.take(Arrived(frame=frame(200)))
    preview.take(Arrived(lost={"microphone"}))
    assert preview() is not None
    preview.take(Arrived(lost={"camera"}))
    assert preview() is None
    preview.take(Arrived(frame=frame(10), lost={"camera"}))  # lost and back within one tick
    assert preview() is not None


def test_a_frame_that_cannot_be_converted_is_not_shown_and_the_next_one_is() -> None:
    def convert() -> np.ndarray:
        raise MemoryError

    preview = Preview()
    preview.take(Arrived(frame=Frame(0.0, convert)))
    assert preview() is None
    preview.take(Arrived(frame=frame(10)))
    assert preview() is not None


def test_nobody_looks_so_nothing_is_converted() -> None:
    def convert() -> np.ndarray:
        raise AssertionError("converted")

    Preview().take(Arrived(frame=Frame(0.0, convert)))
