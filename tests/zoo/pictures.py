"""Films whose pictures are turned, mirrored, cropped, interlaced, or in odd colors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.zoo import edits
from tests.zoo.film import H264, MPEG2, film
from tests.zoo.workshop import Truth, ZooFile


def geometry() -> Iterator[ZooFile]:
    """Yield rotations, mirror images, shapes of pixels, odd sizes, interlaced pictures."""
    for turns in range(4):
        for mirrored in (False, True):
            name = f"turned-{90 * turns}{'-mirrored' * mirrored}.mp4"
            size = (64, 96) if turns % 2 else (96, 64)
            yield film(
                name,
                "geometry",
                "a display matrix",
                f"{H264} -an",
                "{card 25 1}",
                finish=edits.turned(turns, mirrored),
                turns=turns,
                mirrored=mirrored,
                truth=Truth(size_px=size),
            )
    for name, what, options, size in (
        ("sar-2.mkv", "pixels of 2:1", f"{H264} -vf setsar=2 -an", (192, 64)),
        ("sar-pal.ts", "pixels of 16:11", f"{MPEG2} -aspect 16:9 -an", (114, 64)),
        ("sar-half.mp4", "pixels of 1:2", f"{H264} -vf setsar=1/2 -an", (48, 64)),
        ("sar-mov.mov", "pixels of 4:3", f"{H264} -vf setsar=4/3 -an", (128, 64)),
        ("sar-0.mkv", "pixels of no shape", f"{H264} -vf setsar=0 -an", (96, 64)),
    ):
        yield film(name, "geometry", what, options, "{card 25 1}", truth=Truth(size_px=size))
    yield film(
        "turned-sar.mp4",
        "geometry",
        "pixels of 2:1, turned",
        f"{H264} -vf setsar=2 -an",
        "{card 25 1}",
        finish=edits.turned(1, False),
        turns=1,
        truth=Truth(size_px=(64, 192)),
    )
    yield film(
        "odd-size.mkv",
        "geometry",
        "97 × 65",
        "-c:v ffv1 -pix_fmt yuv420p",
        "{card 25 1 97x65}",
        truth=Truth(size_px=(97, 65)),
    )
    yield film(
        "cropped.h264.mkv",
        "geometry",
        "98 × 66 cut from 112 × 80",
        f"{H264} -an",
        "{card 25 1 98x66}",
        truth=Truth(size_px=(98, 66)),
    )
    yield film(
        "tall.mp4",
        "geometry",
        "an upright film",
        f"{H264} -an",
        "{card 25 1 64x160}",
        truth=Truth(size_px=(64, 160)),
    )
    fields = "{card 50 2}"
    bwdif = {"reference_filter": "bwdif=mode=send_frame:deint=interlaced"}
    for name, what, options in (
        (
            "tff.ts",
            "interlaced MPEG-2, top field first",
            f"-vf tinterlace=interleave_top,setfield=tff {MPEG2} -flags +ildct+ilme -top 1 -an",
        ),
        (
            "bff.ts",
            "interlaced MPEG-2, bottom field first",
            f"-vf tinterlace=interleave_bottom,setfield=bff {MPEG2} -flags +ildct+ilme -top 0 -an",
        ),
        (
            "tff-h264.mkv",
            "interlaced H.264",
            "-vf tinterlace=interleave_top,setfield=tff -c:v libx264 -crf 12 -pix_fmt yuv420p "
            "-x264-params tff=1 -an",
        ),
        (
            "bff-h264.mp4",
            "interlaced H.264",
            "-vf tinterlace=interleave_bottom,setfield=bff -c:v libx264 -crf 12 -pix_fmt yuv420p "
            "-x264-params bff=1 -an",
        ),
        (
            "tff-prores.mov",
            "interlaced ProRes",
            "-vf tinterlace=interleave_top,setfield=tff -c:v prores_ks -flags +ildct -an",
        ),
        ("telecined.ts", "film at 24 with repeated fields", f"{MPEG2} -an"),
    ):
        yield film(
            name,
            "geometry",
            what,
            options,
            fields if name != "telecined.ts" else "{card 24000/1001 2}",
            **(bwdif if name != "telecined.ts" else {}),
        )


def color() -> Iterator[ZooFile]:
    """Yield color matrices, ranges, gray, and high dynamic range."""
    tight = {"color_tolerance": 8.0}
    x264 = "-c:v libx264 -crf 8 -preset veryfast -an"
    tags = {
        "bt709": "-colorspace bt709 -color_primaries bt709 -color_trc bt709",
        "bt601": "-colorspace smpte170m -color_primaries smpte170m -color_trc smpte170m",
        "bt470bg": "-colorspace bt470bg -color_primaries bt470bg -color_trc gamma28",
        "bt2020": "-colorspace bt2020nc -color_primaries bt709 -color_trc bt709",
    }
    matrix = {"bt709": "bt709", "bt601": "smpte170m", "bt470bg": "bt470bg", "bt2020": "bt2020nc"}
    for space, tag in tags.items():
        for limits in ("tv", "pc"):
            scale = (
                f"scale=out_color_matrix={matrix[space].replace('nc', '')}:out_range={limits},format=yuv444p"
            )
            yield film(
                f"{space}-{limits}.mkv",
                "color",
                f"{space}, {'full' if limits == 'pc' else 'limited'} range",
                f"-vf {scale} {x264} {tag} -color_range {limits}",
                "{card 25 1}",
                **tight,
            )
    for name, what, size, space in (
        ("unspecified-sd.mkv", "no matrix, SD: BT.601", "96x64", "smpte170m"),
        ("unspecified-hd.mkv", "no matrix, HD: BT.709", "1280x720", "bt709"),
        ("unspecified-pal.mkv", "no matrix, PAL: BT.601", "720x576", "smpte170m"),
    ):
        yield film(
            name,
            "color",
            what,
            f"-vf scale=out_color_matrix={space},format=yuv420p {x264}",
            f"{{card 10 1 {size}}}",
            **tight,
        )
    yield film(
        "ycgco.mkv", "color", "YCgCo", "-c:v libx264rgb -crf 4 -pix_fmt rgb24 -an", "{card 25 1}", **tight
    )
    for name, what, options in (
        ("gray.mkv", "gray, 8 bits", "-c:v ffv1 -pix_fmt gray"),
        ("gray-h264.mkv", "H.264, gray", "-c:v libx264 -pix_fmt gray -crf 12"),
        ("gray16.mkv", "gray, 16 bits", "-c:v ffv1 -pix_fmt gray16le"),
        ("gray10.mkv", "gray, 10 bits", "-c:v ffv1 -pix_fmt gray10le"),
        ("mono.avi", "1 bit", "-c:v rawvideo -pix_fmt monow -f nut"),
    ):
        yield film(
            name,
            "color",
            what,
            options + " -an",
            "{card 25 1}",
            gray=True,
            color_tolerance=None if name == "mono.avi" else 14.0,
        )
    for name, what, options in (
        ("palette.avi", "256 colors", "-c:v rawvideo -pix_fmt pal8 -f nut"),
        ("rgb555.avi", "15 bits", "-c:v rawvideo -pix_fmt rgb555le"),
        ("yuv410.avi", "4:1:0", "-c:v rawvideo -pix_fmt yuv410p -f nut"),
        ("nv12.nut", "NV12", "-c:v rawvideo -pix_fmt nv12"),
        ("yuyv.avi", "YUYV, as webcams give it", "-c:v rawvideo -pix_fmt yuyv422"),
    ):
        yield film(
            name,
            "color",
            what,
            options + " -an",
            "{card 25 1}",
            color_tolerance=40.0 if name == "palette.avi" else 14.0,
        )
    hdr: dict[str, Any] = {
        "color_tolerance": 30.0,
        "truth": Truth(size_px=(96, 64), numbers=tuple(range(10))),
    }
    for curve, transfer in (("pq", "smpte2084"), ("hlg", "arib-std-b67")):
        tag = f"-colorspace bt2020nc -color_primaries bt2020 -color_trc {transfer} -color_range tv"
        for name, codec in (
            (
                f"{curve}-h265.mp4",
                "-c:v libx265 -preset ultrafast -crf 8 -tag:v hvc1 -x265-params log-level=0",
            ),
            (
                f"{curve}-vp9.webm",
                "-c:v libvpx-vp9 -profile:v 2 -crf 6 -b:v 0 -deadline realtime -cpu-used 8",
            ),
            (f"{curve}-ffv1.mkv", "-c:v ffv1"),
        ):
            yield ZooFile(
                name,
                "color",
                f"{curve.upper()}, BT.2020, 10 bits",
                finish=edits.hdr(curve, f"{codec} {tag}"),
                **hdr,
            )
