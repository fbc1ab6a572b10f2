"""From a decoded frame to the picture that a player shows: (H, W, 3) uint8 RGB, SDR, upright.

The frame's own tags decide: color matrix, range, transfer function, alpha, interlacing, shape of its samples
and display matrix. A frame of more than ``MAX_PX`` is halved, which bounds memory: no encoder sees so much.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc, Interpolation, VideoReformatter

from vaemotion.contract.image import Picture
from vaemotion.contract.media.color import Transfer, to_sdr

# A frame of 2560 x 1440 pixels is kept whole; 4K is halved, 8K halved twice.
MAX_PX = 2560 * 1440
# HDR is converted in floating point, which a whole 4K frame is too large for.
MAX_HDR_PX = 1920 * 1080
# Without a tag, players take larger frames as high definition, and so as BT.709.
SD_WIDTH_PX, SD_HEIGHT_PX = 1279, 576
# Samples wider or higher than this are a damaged tag.
MAX_SAMPLE_ASPECT = 16
_UNSPECIFIED = 2  # ITU-T H.273
_LOWER_FIRST = (3, 5)  # of FFmpeg's AVFieldOrder, as its encoders write it
_HDR: dict[int, Transfer] = {ColorTrc.SMPTE2084: "PQ", ColorTrc.ARIB_STD_B67: "HLG"}


@dataclass(frozen=True)
class Shape:
    """Shape in which a stream's frames are shown.

    ``sample_aspect``: width of a sample by its height, None for square ones. ``matrix``: (a, b, c, d) of
    FFmpeg's display matrix, which moves a picture's x axis to (a, b) and its y axis to (c, d).
    ``lower_first``: of an interlaced frame, the lower field is the earlier one.
    """

    sample_aspect: Fraction | None = None
    matrix: tuple[int, int, int, int] | None = None
    lower_first: bool = False


SQUARE = Shape()


def frame_bytes(frame: av.VideoFrame) -> int:
    """Return the bytes of memory that a decoded frame holds."""
    return sum(plane.buffer_size for plane in frame.planes)


def shape_of(stream: Any, frame: av.VideoFrame) -> Shape:
    """Return the shape of a stream by one of its frames."""
    # Of a tiny copy, because a frame and PyAV's list of its side data hold each other, and are freed late.
    side_data: Any = frame.reformat(2, 2, "rgb24").side_data  # PyAV's stubs take its items for text
    data = next((bytes(each) for each in side_data if each.type.name == "DISPLAYMATRIX"), b"")
    aspect, lower_first = stream.sample_aspect_ratio, stream.codec_context.field_order in _LOWER_FIRST
    if len(data) < 36:
        return Shape(aspect, None, lower_first)
    a, b, _, c, d = np.frombuffer(data, np.int32)[:5].tolist()
    return Shape(aspect, (a, b, c, d), lower_first)


def to_picture(frame: av.VideoFrame, converter: VideoReformatter, shape: Shape = SQUARE) -> Picture:
    """Convert a frame to (H, W, 3) uint8 RGB, as a player shows it.

    ``converter``: one that the stream keeps, so that it is set up once and not for each frame; one thread at
    a time may use it.
    """
    transfer = _transfer(frame)
    if transfer is not None:
        rgb = to_sdr(_convert(frame, converter, "rgb48le", MAX_HDR_PX), transfer)
    elif _has_alpha(frame):
        rgb = on_white(_convert(frame, converter, "rgba", MAX_PX))
    else:
        rgb = _convert(frame, converter, "rgb24", MAX_PX)
    if frame.interlaced_frame and len(rgb) > 1:
        # Two instants in one frame; the earlier one is shown.
        rgb = _resized(rgb[int(shape.lower_first) :: 2], rgb.shape[1], rgb.shape[0])
    return _turn(_square_samples(rgb, shape.sample_aspect), shape.matrix)


def on_white(rgba: npt.NDArray[np.uint8]) -> Picture:
    """Composite (H, W, 4) on white, (H, W, 3). An alpha of 0 everywhere is none, as in raw captures."""
    alpha = rgba[..., 3:]
    if not alpha.any() or (alpha == 255).all():
        return np.ascontiguousarray(rgba[..., :3])
    share = alpha.astype(np.float32) / 255
    return np.round(rgba[..., :3] * share + 255 * (1 - share)).astype(np.uint8)


def _transfer(frame: av.VideoFrame) -> Transfer | None:
    """Return the transfer function to convert from; None for ordinary SDR."""
    if frame.color_trc in _HDR:
        return _HDR[frame.color_trc]
    return "SDR" if frame.color_primaries == ColorPrimaries.BT2020 else None


def _has_alpha(frame: av.VideoFrame) -> bool:
    return not frame.format.has_palette and any(part.is_alpha for part in frame.format.components)


def _convert(frame: av.VideoFrame, converter: VideoReformatter, name: str, max_px: int) -> npt.NDArray[Any]:
    """Convert a frame to packed RGB (H, W, channels), halved until it has at most ``max_px``."""
    width, height = frame.width, frame.height
    while width * height > max_px and min(width, height) > 1:
        width, height = width // 2, height // 2
    scaled = (width, height) != (frame.width, frame.height)
    large = frame.width > SD_WIDTH_PX or frame.height > SD_HEIGHT_PX
    assumed = large and frame.colorspace == _UNSPECIFIED and not frame.format.is_rgb
    converted = converter.reformat(
        frame,
        width,
        height,
        name,
        src_colorspace=Colorspace.ITU709 if assumed else None,
        interpolation=Interpolation.AREA if scaled else None,
    )
    return converted.to_ndarray()


def _square_samples(rgb: Picture, sample_aspect: Fraction | None) -> Picture:
    if not sample_aspect or sample_aspect == 1:
        return rgb
    if not 1 / MAX_SAMPLE_ASPECT <= sample_aspect <= MAX_SAMPLE_ASPECT:
        return rgb
    height, width = rgb.shape[:2]
    return _resized(rgb, max(1, round(width * sample_aspect)), height)


def _resized(rgb: Picture, width: int, height: int) -> Picture:
    shrinks = width < rgb.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(rgb, (width, height), interpolation=how), np.uint8)


def _turn(rgb: Picture, matrix: tuple[int, int, int, int] | None) -> Picture:
    """Turn and mirror a picture by a display matrix, to the nearest quarter turn."""
    if matrix is None:
        return rgb
    a, b, c, d = matrix
    across, down = a, d
    if abs(b) + abs(c) > abs(a) + abs(d):
        rgb, across, down = rgb.transpose(1, 0, 2), c, b
    rgb = rgb[:, ::-1] if across < 0 else rgb
    rgb = rgb[::-1] if down < 0 else rgb
    return np.ascontiguousarray(rgb)
