"""Pictures in image files, still or animated, of every kind that Pillow, libheif or OpenCV reads.

In: a path, or a part of a file. Out: (H, W, 3) uint8 sRGB: upright by the file's orientation tag, alpha on
white, a color profile applied. An animated picture is played once.
"""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Generator
from typing import Any

import av
import cv2
import numpy as np
import pi_heif  # pyright: ignore[reportMissingTypeStubs]
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter
from PIL import Image, ImageCms, ImageOps

from vaemotion.contract.image import Picture
from vaemotion.contract.media.files import MediaError, MediaFile, ffmpeg_name, open_medium, refuse_unusable
from vaemotion.contract.media.picture import on_white, shape_of, to_picture

# 805 MB as RGB.
MAX_IMAGE_PX = 1 << 28
# Browsers show a frame of an animation that asks for less for 0.1 s.
SHORTEST_S, HURRIED_S = 0.011, 0.1

# Formats of Pillow's that are no pictures, start other programs, or take other files for theirs.
_NOT_READ = {"BUFR", "EPS", "FLI", "GRIB", "HDF5", "IPTC", "MCIDAS", "MPEG", "WMF"}

_CMS: Any = ImageCms  # partly untyped
pi_heif.register_heif_opener()  # pyright: ignore[reportUnknownMemberType]
Image.init()
Image.MAX_IMAGE_PIXELS = None  # sizes are refused in a sentence of our own
# What Pillow raises for damage of one kind or another.
_FAULTS = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    MemoryError,
    SyntaxError,
    EOFError,
    struct.error,
)
# Several pictures that are no animation: pages, sizes, views, tiles.
_PAGES = ("HEIF", "ICO", "MPO", "PSD", "TIFF")
_READ = tuple(name for name in Image.OPEN if name not in _NOT_READ)


def read_image(path: MediaFile) -> Picture:
    """Read the first picture of an image file.

    Raises MediaError for a file that is missing, truncated, too large or no image.
    """
    _, _, picture = next(read_pictures(path))
    return picture


def read_pictures(path: MediaFile) -> Generator[tuple[float, float, Picture]]:
    """Yield the pictures of an image file, each with its begin and end in seconds; a still ends at 0.

    Raises MediaError as ``read_image`` does.
    """
    refuse_unusable(path)
    # Opened as a file, because Pillow maps a path into memory, and turns a mapped TIFF twice.
    with open_medium(path) as file:
        try:
            image = Image.open(file, formats=_READ)
        except _FAULTS:
            yield 0.0, 0.0, _read_otherwise(path)
            return
        if image.width * image.height > MAX_IMAGE_PX:
            raise MediaError(
                f"{path} has {image.width} x {image.height} pixels, more than {MAX_IMAGE_PX}: shrink it first"
            )
        count, time_s = _count(image, path), 0.0
        for number in range(count):
            picture, duration_s = _decode(image, number, path)
            yield time_s, time_s + duration_s if count > 1 else 0.0, picture
            time_s += duration_s


def _count(image: Image.Image, path: MediaFile) -> int:
    """Return the number of pictures of an animation, 1 for any other image."""
    if image.format in _PAGES:
        return 1
    try:
        return getattr(image, "n_frames", 1)
    except _FAULTS as error:
        raise MediaError(f"{path} cannot be decoded as an image: {_line(error)}") from error


def _decode(image: Image.Image, number: int, path: MediaFile) -> tuple[Picture, float]:
    """Return a picture of an open image and the seconds for which it is shown."""
    try:
        if number:
            image.seek(number)
        image.load()
        duration_s = float(image.info.get("duration") or 0) / 1000
        picture = _to_rgb(ImageOps.exif_transpose(image))
    except (OSError, EOFError, SyntaxError) as error:
        truncated = "truncated" in str(error) or isinstance(error, EOFError)
        what = (
            "is truncated: the image's end is missing" if truncated else f"cannot be decoded: {_line(error)}"
        )
        raise MediaError(f"{path} {what}") from error
    except _FAULTS as error:
        raise MediaError(f"{path} cannot be decoded as an image: {_line(error)}") from error
    return picture, duration_s if duration_s >= SHORTEST_S else HURRIED_S


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _to_rgb(image: Image.Image) -> Picture:
    """Convert a loaded image of any mode to (H, W, 3) uint8 sRGB."""
    if image.mode == "F" or image.mode.startswith("I"):
        return _from_numbers(np.asarray(image))
    if image.mode == "LAB":
        lab = _CMS.ImageCmsProfile(_CMS.createProfile("LAB"))
        return np.asarray(_profiled(image, lab), np.uint8)
    if image.has_transparency_data:
        return on_white(np.asarray(_profiled(image, _profile(image), "RGBA"), np.uint8))
    return np.asarray(_profiled(image, _profile(image)), np.uint8)


def _profile(image: Image.Image) -> Any:
    """Return an image's color profile; None where it has none that says more than sRGB."""
    data = image.info.get("icc_profile")
    if not data:
        return None
    with contextlib.suppress(ImageCms.PyCMSError, OSError, ValueError):
        profile = _CMS.ImageCmsProfile(io.BytesIO(data))
        return None if "sRGB" in _CMS.getProfileDescription(profile) else profile
    return None


def _profiled(image: Image.Image, profile: Any, mode: str = "RGB") -> Image.Image:
    """Convert an image to sRGB by its profile; without one, or with one of another kind, by its mode."""
    if profile is not None:
        source = image if image.mode in ("RGB", "RGBA", "CMYK", "L", "LAB") else image.convert(mode)
        with contextlib.suppress(ImageCms.PyCMSError, OSError, ValueError):
            srgb = _CMS.createProfile("sRGB")
            converted = _CMS.profileToProfile(source, profile, srgb, outputMode=mode)
            if converted is not None:
                return converted
    return image.convert(mode)


def _read_otherwise(path: MediaFile) -> Picture:
    """Read what Pillow does not know: TIFF in floating point by OpenCV, other formats by FFmpeg."""
    with open_medium(path) as file:
        is_tiff = file.read(4) in (b"II*\0", b"MM\0*")
    try:
        if is_tiff:
            return _read_with_opencv(path)
        with av.open(ffmpeg_name(path), metadata_errors="replace") as container:
            stream = container.streams.video[0]
            frame = next(container.decode(stream))
            return to_picture(frame, VideoReformatter(), shape_of(stream, frame))
    except (FFmpegError, StopIteration, IndexError, ValueError, cv2.error) as error:
        raise MediaError(f"{path} cannot be decoded as an image") from error


def _read_with_opencv(path: MediaFile) -> Picture:
    with open_medium(path) as file:
        raw = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    if raw is None or raw.size == 0:
        raise ValueError("not decoded")
    bgr = _from_numbers(np.asarray(raw))
    if bgr.shape[2] == 4:
        return on_white(np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGRA2RGBA), np.uint8))
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def _from_numbers(values: Any) -> Any:
    """Return 8-bit values (H, W, 3 or 4) of an image of integers or floats, (H, W) or (H, W, channels).

    Full scale is 65535 for 16 bits, else the smallest of 1, 255 and 65535 that no value exceeds.
    """
    if values.ndim == 2:
        values = np.repeat(values[..., None], 3, axis=2)
    if values.dtype == np.uint8:
        return values
    finite = np.nan_to_num(np.asarray(values, np.float64), posinf=0.0, neginf=0.0)
    largest = float(finite.max(initial=0.0))
    scales = (65535.0,) if values.dtype == np.uint16 else (1.0, 255.0, 65535.0)
    full = next((scale for scale in scales if largest <= scale), largest)
    return np.round(255 * np.clip(finite / full, 0, 1)).astype(np.uint8)
