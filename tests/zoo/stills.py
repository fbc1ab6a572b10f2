"""Stills of the zoo: every format that Pillow, pillow-heif, OpenCV or ffmpeg writes."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tests.zoo.card import card
from tests.zoo.heic import heic_grid
from tests.zoo.workshop import Truth, ZooFile, run_ffmpeg

NUMBER = 77  # the card that every still shows
# EXIF's orientations 1 to 8: how a viewer turns the stored picture, (quarter turns clockwise, then mirrored).
ORIENTATIONS = ((0, False), (0, True), (2, False), (2, True), (1, True), (1, False), (3, True), (3, False))


def stills() -> Iterator[ZooFile]:
    """Yield every still of the zoo."""
    yield from formats()
    yield from modes()
    yield from orientations()
    yield from several()
    yield from damaged()


def still(name: str, exercises: str, save: Callable[[Path], None], **judged: Any) -> ZooFile:
    """Describe a still that a function writes."""
    truth = judged.pop("truth", Truth(size_px=(96, 64)))
    return ZooFile(name, "stills", exercises, finish=lambda path, _between: save(path), truth=truth, **judged)


def _pillow(mode: str = "RGB", *, alpha: bool = False, **options: Any) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        from PIL import Image

        picture = Image.fromarray(card(NUMBER, alpha=alpha))
        if alpha and mode == "P":
            picture = picture.quantize(64)
        picture.convert(mode).save(path, **options)

    return save


def _heif(**options: Any) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        import pillow_heif
        from PIL import Image

        pillow_heif.register_heif_opener()
        alpha = options.get("alpha", False)
        rest = {key: value for key, value in options.items() if key != "alpha"}
        Image.fromarray(card(NUMBER, alpha=alpha)).save(path, quality=95, **rest)

    return save


def _cv(
    make: Callable[[np.ndarray], np.ndarray] = lambda bgr: bgr, *, alpha: bool = False
) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        code = cv2.COLOR_RGBA2BGRA if alpha else cv2.COLOR_RGB2BGR
        done, data = cv2.imencode(path.suffix, make(cv2.cvtColor(card(NUMBER, alpha=alpha), code)))
        assert done
        path.write_bytes(data.tobytes())

    return save


def _ffmpeg(options: str) -> tuple[str, ...]:
    return (f"{{card 1 1 {NUMBER}}} -frames:v 1 -update 1 {options} {{out}}",)


def formats() -> Iterator[ZooFile]:
    """Yield one still of every format."""
    for suffix in (
        "jpg",
        "png",
        "bmp",
        "tga",
        "ppm",
        "tif",
        "webp",
        "gif",
        "ico",
        "jp2",
        "pcx",
        "dds",
        "sgi",
        "avif",
        "jfif",
        "dib",
        "qoi",
        "im",
    ):
        options: dict[str, Any] = {"quality": 95} if suffix in ("jpg", "jfif", "webp", "avif") else {}
        if suffix == "ico":
            options = {"sizes": [(96, 64)]}
        yield still(f"still.{suffix}", suffix.upper(), _pillow(**options))
    yield still("still.heic", "HEIC", _heif())
    yield still("alpha.heic", "HEIC with alpha", _heif(alpha=True), alpha=True)
    yield still("still.exr", "OpenEXR, float", _exr, color_tolerance=None)
    yield still(
        "still.hdr",
        "Radiance",
        _cv(lambda bgr: ((bgr / 255.0) ** 2.2).astype(np.float32)),
        color_tolerance=None,
    )
    for suffix, encoder in (
        ("jxl", "-c:v libjxl -q:v 90"),
        ("jls", "-c:v jpegls -pix_fmt rgb24"),
        ("j2k", "-c:v libopenjpeg -pix_fmt rgb24"),
        ("dpx", "-c:v dpx -pix_fmt rgb24"),
        ("pam", "-c:v pam"),
        ("pfm", "-c:v pfm"),
        ("sun", "-c:v sunrast"),
        ("ljpg", "-c:v ljpeg -pix_fmt bgr24"),
        ("xwd", "-c:v xwd -pix_fmt rgb24"),
        ("pbm", "-c:v pbm"),
    ):
        yield ZooFile(
            f"ffmpeg.{suffix}",
            "stills",
            f"{suffix.upper()} by ffmpeg",
            _ffmpeg(encoder),
            truth=Truth(size_px=(96, 64)),
            color_tolerance=None if suffix == "pbm" else 14.0,
            gray=suffix == "pbm",
        )
    yield still("jpeg.png", "a JPEG that is called .png", _pillow(format="JPEG", quality=95))
    yield still("no-suffix-jpeg", "a JPEG without a suffix", _pillow(format="JPEG", quality=95))
    yield still("%03d.png", "a name that is a pattern elsewhere", _pillow())
    yield still("12:30 *[1].jpg", "a name that is a pattern elsewhere", _pillow(quality=95))


def modes() -> Iterator[ZooFile]:
    """Yield depths, palettes, alpha and compressions."""
    yield still("progressive.jpg", "progressive", _pillow(progressive=True, quality=95))
    yield still(
        "cmyk.jpg", "CMYK as Pillow and Photoshop write it", _pillow("CMYK", quality=95), color_tolerance=30.0
    )
    yield still("gray.jpg", "gray", _pillow("L", quality=95), gray=True)
    yield still("422.jpg", "4:2:2", _pillow(quality=95, subsampling="4:2:2"))
    yield still("444.jpg", "4:4:4", _pillow(quality=95, subsampling="4:4:4"))
    yield still("arithmetic-restart.jpg", "restart markers", _pillow(quality=95, restart_marker_blocks=2))
    yield still("rgba.png", "alpha", _pillow("RGBA", alpha=True), alpha=True)
    yield still("palette.png", "palette", _pillow("P"), color_tolerance=40.0)
    yield still(
        "palette-alpha.png", "palette with alpha", _pillow("P", alpha=True), alpha=True, color_tolerance=40.0
    )
    yield still("gray.png", "gray", _pillow("L"), gray=True)
    yield still("la.png", "gray with alpha", _pillow("LA", alpha=True), gray=True, alpha=True)
    yield still("1bit.png", "1 bit", _pillow("1"), gray=True, color_tolerance=None)
    yield still("16bit.png", "16 bits a color", _cv(lambda bgr: bgr.astype(np.uint16) * 257))
    yield still(
        "16bit-alpha.png",
        "16 bits a color, alpha",
        _cv(lambda bgra: bgra.astype(np.uint16) * 257, alpha=True),
        alpha=True,
    )
    yield still(
        "gray16.png",
        "gray, 16 bits",
        _cv(lambda bgr: cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY).astype(np.uint16) * 257),
        gray=True,
    )
    yield still("interlaced.png", "Adam7", _interlaced)
    yield still(
        "transparent-color.png",
        "one color is transparent (tRNS)",
        _pillow("RGB", transparency=(128, 128, 128)),
        alpha=True,
    )
    for compression in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
        yield still(f"{compression}.tif", f"TIFF, {compression}", _pillow(compression=compression))
    yield still("cmyk.tif", "TIFF, CMYK", _pillow("CMYK"), color_tolerance=30.0)
    yield still("rgba.tif", "TIFF with alpha", _pillow("RGBA", alpha=True), alpha=True)
    yield still("gray.tif", "TIFF, gray", _pillow("L"), gray=True)
    yield still("1bit.tif", "TIFF, fax", _pillow("1", compression="group4"), gray=True, color_tolerance=None)
    yield still("lab.tif", "TIFF, Lab", _lab, color_tolerance=30.0)
    yield still("16bit.tif", "TIFF, 16 bits a color", _cv(lambda bgr: bgr.astype(np.uint16) * 257))
    yield still("float.tif", "TIFF, float in 0 to 1", _cv(lambda bgr: (bgr / 255).astype(np.float32)))
    yield still(
        "float-alpha.tif",
        "TIFF, float in 0 to 1, alpha",
        _cv(lambda bgra: (bgra / 255).astype(np.float32), alpha=True),
        alpha=True,
    )
    yield still(
        "float-gray.tif",
        "TIFF, gray float in 0 to 1",
        _cv(lambda bgr: (cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY) / 255).astype(np.float32)),
        gray=True,
    )
    yield still("float-255.tif", "TIFF, float in 0 to 255", _pillow("F"), gray=True)
    yield still("int32.tif", "TIFF, 32-bit integers in 0 to 255", _pillow("I"), gray=True)
    yield still("lossless.webp", "WebP, lossless", _pillow(lossless=True))
    yield still("rgba.webp", "WebP with alpha", _pillow("RGBA", alpha=True, lossless=True), alpha=True)
    yield still("rgba.tga", "Targa with alpha", _pillow("RGBA", alpha=True), alpha=True)
    yield still("rle.tga", "Targa, packed", _pillow(compression="tga_rle"))
    yield still("rgba.ico", "icon with alpha", _pillow("RGBA", alpha=True, sizes=[(96, 64)]), alpha=True)
    yield still("rgba.jp2", "JPEG 2000 with alpha", _pillow("RGBA", alpha=True), alpha=True)
    yield still("gray.pgm", "PGM", _pillow("L"), gray=True)
    yield still("1bit.bmp", "BMP, 1 bit", _pillow("1"), gray=True, color_tolerance=None)
    yield still("palette.bmp", "BMP, palette", _pillow("P"), color_tolerance=40.0)
    yield still("rgba.avif", "AVIF with alpha", _pillow("RGBA", alpha=True, quality=95), alpha=True)
    yield still(
        "transparent.gif",
        "GIF with a transparent part",
        _pillow("RGBA", alpha=True),
        alpha=True,
        color_tolerance=40.0,
    )
    yield still("icc.jpg", "a wide color profile (not applied)", _pillow(quality=95, icc_profile=_srgb()))


def orientations() -> Iterator[ZooFile]:
    """Yield EXIF's eight orientations of every format that has EXIF, and HEIC's own turn and grid."""
    for k, (turns, mirrored) in enumerate(ORIENTATIONS, start=1):
        size = (64, 96) if turns % 2 else (96, 64)
        judged: dict[str, Any] = {"turns": turns, "mirrored": mirrored, "truth": Truth(size_px=size)}
        yield still(f"exif-{k}.jpg", f"EXIF orientation {k}", _exif(k, quality=95), **judged)
        if k in (2, 3, 6, 7, 8):
            yield still(f"exif-{k}.png", f"eXIf orientation {k}", _exif(k), **judged)
            yield still(f"exif-{k}.webp", f"EXIF orientation {k}", _exif(k, lossless=True), **judged)
            yield still(f"exif-{k}.tif", f"TIFF orientation {k}", _exif(k), **judged)
            yield still(
                f"exif-{k}.avif", f"AVIF, orientation {k} (irot, imir)", _exif(k, quality=95), **judged
            )
        if k in (3, 6):
            yield still(
                f"exif-{k}-alpha.png",
                f"eXIf orientation {k} with alpha",
                _exif(k, alpha=True),
                alpha=True,
                **judged,
            )
            yield still(
                f"exif-{k}-alpha.tif",
                f"TIFF orientation {k} with alpha",
                _exif(k, alpha=True),
                alpha=True,
                **judged,
            )
            yield still(
                f"exif-{k}-alpha.webp",
                f"EXIF orientation {k} with alpha",
                _exif(k, alpha=True, lossless=True),
                alpha=True,
                **judged,
            )
    # HEIF turns by its own properties; EXIF's orientation is a remark there (ISO/IEC 23008-12, annex A).
    yield still("exif-6.heic", "HEIC with an orientation in EXIF alone", _exif(6, heif=True, quality=95))
    for turns, mirrored in ((0, False), (1, False), (2, False), (3, False), (0, True), (1, True)):
        size = (128, 192) if turns % 2 else (192, 128)
        name = f"grid-{90 * turns}{'-mirrored' * mirrored}.heic"
        yield ZooFile(
            name,
            "stills",
            "HEIC of six tiles with irot and imir, as telephones write it",
            finish=heic_grid(NUMBER, turns, mirrored),
            turns=turns,
            mirrored=mirrored,
            truth=Truth(size_px=size),
        )


def several() -> Iterator[ZooFile]:
    """Yield files that hold several pictures, of which the first counts."""
    yield still("pages.tif", "TIFF of three pages", _pages(format="TIFF"))
    yield still("stereo.mpo", "two pictures in a JPEG", _pages(format="MPO", quality=95))
    yield still(
        "sizes.ico", "icon of four sizes", _pillow(sizes=[(24, 16), (48, 32), (96, 64)]), truth=Truth()
    )
    yield still("pages.heic", "HEIC of three pictures", _pages(format="HEIF", quality=95))
    yield still("single.gif", "GIF of one picture", _pillow())
    yield still("thumbnail.jpg", "a thumbnail in EXIF", _thumbnail)


def damaged() -> Iterator[ZooFile]:
    """Yield stills whose end is missing."""
    for suffix in ("jpg", "png", "webp", "tif", "bmp", "gif", "heic", "avif", "jp2"):

        def save(path: Path, suffix: str = suffix) -> None:
            (
                _heif()
                if suffix == "heic"
                else _pillow(**({"quality": 95} if suffix in ("jpg", "webp", "avif") else {}))
            )(path)
            data = path.read_bytes()
            path.write_bytes(data[: len(data) * 2 // 3])

        yield replace(
            still(
                f"truncated.{suffix}",
                "the end is missing",
                save,
                device_may_refuse=True,
                loader_may_refuse=True,
            ),
            color_tolerance=None,
            truth=Truth(),
        )


def _exif(
    orientation: int, *, alpha: bool = False, heif: bool = False, **options: Any
) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        from PIL import Image

        if heif:
            import pillow_heif

            pillow_heif.register_heif_opener()
        exif = Image.Exif()
        exif[0x0112] = orientation
        if path.suffix == ".tif":
            options["tiffinfo"] = {0x0112: orientation}
        else:
            options["exif"] = exif
        Image.fromarray(card(NUMBER, alpha=alpha)).save(path, **options)

    return save


def _pages(**options: Any) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        import pillow_heif
        from PIL import Image

        pillow_heif.register_heif_opener()
        first, *others = (Image.fromarray(card(NUMBER + 50 * k)) for k in range(3))
        first.save(path, save_all=True, append_images=others, **options)

    return save


def _thumbnail(path: Path) -> None:
    from PIL import Image

    inner = path.with_name("thumbnail.inner.jpg")
    Image.fromarray(card(3, 48, 32)).save(inner)
    thumbnail = inner.read_bytes()
    inner.unlink()
    tiff = b"II*\0" + struct.pack("<IH", 8, 0) + struct.pack("<I", 14)
    tiff += (
        struct.pack("<H", 2)
        + struct.pack("<HHII", 0x0201, 4, 1, 44)
        + struct.pack("<HHII", 0x0202, 4, 1, len(thumbnail))
        + struct.pack("<I", 0)
    )
    Image.fromarray(card(NUMBER)).save(path, quality=95, exif=b"Exif\0\0" + tiff + thumbnail)


def _interlaced(path: Path) -> None:
    """Write a PNG in Adam7's seven passes (first row, first column, step down, step right)."""
    passes = (
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    )
    rows = b"".join(
        b"\0" + row.tobytes()
        for top, left, down, right in passes
        for row in card(NUMBER)[top::down, left::right]
    )
    head = struct.pack(">IIBBBBB", 96, 64, 8, 2, 0, 0, 1)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
            for kind, body in chunks
        )
    )


def _lab(path: Path) -> None:
    from PIL import Image, ImageCms

    rgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    ImageCms.profileToProfile(Image.fromarray(card(NUMBER)), rgb, lab, outputMode="LAB").save(path)


def _srgb() -> bytes:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _exr(path: Path) -> None:
    """Write an OpenEXR by ffmpeg."""
    raw = path.with_suffix(".raw")
    raw.write_bytes(card(NUMBER).tobytes())
    cards = f"-f rawvideo -pix_fmt rgb24 -s 96x64 -i {raw}"
    run_ffmpeg(f"{cards} -pix_fmt gbrpf32le -c:v exr -update 1 -frames:v 1 {path}".split())
    raw.unlink()
