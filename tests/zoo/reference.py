"""Reading of a file by independent programs: ffmpeg of pictures and sound, Pillow and pillow-heif of stills.

The ffmpeg command shifts a file's start to 0 and its discontinuities away; ffprobe does neither, so times
come from ffmpeg. Channels are averaged and rates converted here, because ffmpeg weighs the channels.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tests.zoo.decoders import Seen
from tests.zoo.workshop import LIMIT_S, ZooFile
from vaemotion.contract.audio import downmix, resample

_SHOWN = re.compile(rb"n:\s*(\d+) pts:\s*\S+ pts_time:(\S+)")
_SIZE = re.compile(rb"Stream #0:\d+.*Video: rawvideo.* (\d+)x(\d+)")


def of(file: ZooFile, path: Path) -> Seen:
    """Return what the reference reads."""
    if file.is_still:
        return by_pillow(path)
    seen = Seen()
    if file.cards:
        _add_pictures(seen, file, path)
    _add_sound(seen, file, path)
    return seen


def _ffmpeg(file: ZooFile, path: Path, options: str) -> tuple[bytes, bytes]:
    command = ["ffmpeg", "-hide_banner", "-nostdin", "-nostats", "-y", *shlex.split(file.reference_input)]
    # Every stream is read along: ffmpeg counts a transport stream's time from the first stream that is read.
    along = shlex.split("-map 0:v? -map 0:a? -c copy -f null /dev/null")
    done = subprocess.run(
        [*command, "-i", f"file:{path}", *shlex.split(options), "pipe:1", *along],
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
    )
    return done.stdout, done.stderr


def _add_pictures(seen: Seen, file: ZooFile, path: Path) -> None:
    chain = ",".join(part for part in (file.reference_filter, "showinfo", "format=rgb24") if part)
    options = f"-map {file.video_map} -fps_mode passthrough -vf {chain} -f rawvideo"
    pictures, said = _ffmpeg(file, path, options)
    seen.times_s = [float(match[2]) for match in _SHOWN.finditer(said)]
    size = _SIZE.search(said)
    if size is None:
        return
    width, height = int(size[1]), int(size[2])
    shown = np.frombuffer(pictures, np.uint8)
    n = shown.size // (width * height * 3)
    for picture in shown[: n * width * height * 3].reshape(n, height, width, 3):
        seen.add(picture, file.turns, file.mirrored)


def _add_sound(seen: Seen, file: ZooFile, path: Path) -> None:
    data, _ = _ffmpeg(
        file, path, f"-map {file.sound_map} -af {file.reference_resample} -c:a pcm_f32le -f wav -bitexact"
    )
    at = data.find(b"data")
    if at < 0:
        return
    channels, rate = int.from_bytes(data[22:24], "little"), int.from_bytes(data[24:28], "little")
    samples = np.frombuffer(data[at + 8 :][: (len(data) - at - 8) // (4 * channels) * 4 * channels], "<f4")
    samples = np.nan_to_num(samples.reshape(-1, channels), posinf=0.0, neginf=0.0)
    seen.samples = resample(downmix(samples), rate)


def by_pillow(path: Path) -> Seen:
    """Read a still with Pillow: EXIF's orientation applied, alpha on white."""
    import pillow_heif
    from PIL import Image, ImageOps

    pillow_heif.register_heif_opener()
    seen = Seen()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as opened:
                picture = _on_white(ImageOps.exif_transpose(opened))
    except Exception as error:
        seen.error = f"{type(error).__name__}: {error}"
        return seen
    seen.picture, seen.size_px = picture, (picture.shape[1], picture.shape[0])
    seen.times_s = [0.0]
    return seen


def _on_white(image: object) -> npt.NDArray[np.uint8]:
    from PIL import Image

    assert isinstance(image, Image.Image)
    if image.mode.startswith("I;16"):
        return np.repeat((np.asarray(image) / 257).round().astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("F", "I"):
        values = np.asarray(image, np.float64)
        values = values * (255 if values.max() <= 1 else 1 if values.max() <= 255 else 1 / 257)
        return np.repeat(values.round().astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "LAB":
        from PIL import ImageCms

        image = ImageCms.profileToProfile(
            image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
        assert image is not None
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))
    return np.asarray(image.convert("RGB"))
