"""Films of every codec, films with alpha, and animated pictures."""

from __future__ import annotations

from collections.abc import Iterator

from tests.zoo import edits
from tests.zoo.film import film
from tests.zoo.workshop import Truth, ZooFile


def codecs() -> Iterator[ZooFile]:
    """Yield codecs of video, most of them in Matroska or QuickTime."""
    for name, what, options in (
        (
            "h264-open-gop.mp4",
            "H.264, open GOP, 3 B-frames as references",
            "-c:v libx264 -crf 16 -pix_fmt yuv420p -bf 3 -g 10 -x264-params open-gop=1:b-pyramid=normal",
        ),
        (
            "h264-intra-refresh.mkv",
            "H.264 without key frames",
            "-c:v libx264 -crf 16 -pix_fmt yuv420p -x264-params intra-refresh=1:keyint=20",
        ),
        ("h264-10bit.mkv", "H.264, 10 bits", "-c:v libx264 -crf 16 -pix_fmt yuv420p10le -bf 2"),
        ("h264-422.mkv", "H.264, 4:2:2", "-c:v libx264 -crf 16 -pix_fmt yuv422p"),
        ("h264-444.mkv", "H.264, 4:4:4", "-c:v libx264 -crf 16 -pix_fmt yuv444p"),
        ("h264-rgb.mkv", "H.264, RGB", "-c:v libx264rgb -crf 10 -pix_fmt rgb24"),
        (
            "h265.mp4",
            "H.265",
            "-c:v libx265 -preset ultrafast -crf 14 -pix_fmt yuv420p -tag:v hvc1 -x265-params log-level=0",
        ),
        (
            "h265-10bit.mkv",
            "H.265, 10 bits, open GOP",
            "-c:v libx265 -preset ultrafast -crf 14 -pix_fmt yuv420p10le -x265-params "
            "log-level=0:open-gop=1:bframes=3:keyint=12",
        ),
        ("mpeg2-422.mkv", "MPEG-2, 4:2:2", "-c:v mpeg2video -q:v 2 -pix_fmt yuv422p"),
        ("xvid-bframes.avi", "MPEG-4 with B-frames in AVI", "-c:v mpeg4 -q:v 2 -bf 2 -vtag xvid"),
        ("msmpeg4v2.avi", "MS MPEG-4", "-c:v msmpeg4v2 -q:v 2"),
        ("mjpeg-420-full.mkv", "JPEGs, full range", "-c:v mjpeg -q:v 2 -pix_fmt yuvj420p"),
        ("mjpeg-422.mkv", "JPEGs, 4:2:2", "-c:v mjpeg -q:v 2 -pix_fmt yuvj422p"),
        ("prores.mov", "ProRes", "-c:v prores_ks -profile:v 2"),
        ("ffv1.mkv", "FFV1, RGB", "-c:v ffv1 -pix_fmt bgr0"),
        ("ffv1-16bit.mkv", "FFV1, 16 bits a color", "-c:v ffv1 -pix_fmt gbrp16le"),
        ("huffyuv.avi", "HuffYUV", "-c:v huffyuv -pix_fmt yuv422p"),
        ("utvideo.avi", "Ut Video", "-c:v utvideo -pix_fmt yuv420p"),
        ("magicyuv.mkv", "MagicYUV, planar RGB", "-c:v magicyuv -pix_fmt gbrp"),
        ("v210.mov", "10 bits, uncompressed", "-c:v v210 -pix_fmt yuv422p10le"),
        ("r210.mov", "10 bits RGB, uncompressed", "-c:v r210 -pix_fmt gbrp10le"),
        ("png.mov", "PNGs", "-c:v png -pix_fmt rgb24"),
        ("jpeg2000.mkv", "JPEG 2000", "-c:v jpeg2000 -pix_fmt rgb24 -q:v 2"),
        ("cinepak.avi", "Cinepak", "-c:v cinepak -pix_fmt rgb24"),
        ("snow.avi", "Snow", "-c:v snow -q:v 2 -strict -2"),
        ("svq1.mov", "Sorenson 1", "-c:v svq1 -q:v 2"),
        ("dirac.mkv", "VC-2", "-vf scale=out_color_matrix=bt709 -c:v vc2 -pix_fmt yuv422p -b:v 30M"),
        ("zmbv.avi", "screen recorder", "-c:v zmbv"),
        ("qtrle.mov", "QuickTime animation", "-c:v qtrle -pix_fmt rgb24"),
        ("speedhq.nut", "SpeedHQ", "-c:v speedhq -q:v 2 -pix_fmt yuv422p"),
    ):
        yield film(name, "codecs", what, options + " -an", "{card 25 1}")
    yield film(
        "dnxhr.mov",
        "codecs",
        "DNxHR",
        "-vf scale=out_color_matrix=bt709 -c:v dnxhd -profile:v dnxhr_sq -pix_fmt yuv422p -an",
        "{card 10 1 256x128}",
    )
    yield film(
        "av1.mkv",
        "codecs",
        "AV1",
        "-c:v libaom-av1 -cpu-used 8 -usage realtime -crf 20 -b:v 0 -an",
        "{card 10 1}",
    )
    yield film(
        "av1.mp4",
        "codecs",
        "AV1 in MP4",
        "-c:v libsvtav1 -preset 12 -crf 20 -pix_fmt yuv420p -an",
        "{card 10 1}",
    )
    yield film(
        "vp9-444.webm",
        "codecs",
        "VP9, 4:4:4",
        "-c:v libvpx-vp9 -crf 14 -b:v 0 -pix_fmt yuv444p -deadline realtime -cpu-used 8 -an",
        "{card 25 1}",
    )
    yield film(
        "vp8-altref.webm",
        "codecs",
        "VP8 with hidden frames",
        "-c:v libvpx -crf 6 -b:v 1M -auto-alt-ref 1 -lag-in-frames 10 -an",
        "{card 25 1}",
    )
    yield film(
        "vp9-altref.webm",
        "codecs",
        "VP9 with hidden frames",
        "-c:v libvpx-vp9 -crf 14 -b:v 0 -auto-alt-ref 1 -lag-in-frames 12 -cpu-used 5 -an",
        "{card 25 1}",
    )
    yield ZooFile(
        "packed-bframes.avi",
        "codecs",
        "MPEG-4 with packed B-frames in AVI (DivX 5)",
        finish=edits.packed_b_frames,
        notices=True,
    )
    for name, what, options in (
        ("alpha-qtrle.mov", "QuickTime animation with alpha", "-c:v qtrle -pix_fmt argb"),
        ("alpha-png.mov", "PNGs with alpha", "-c:v png -pix_fmt rgba"),
        (
            "alpha-prores.mov",
            "ProRes 4444 with alpha",
            "-c:v prores_ks -profile:v 4 -pix_fmt yuva444p10le -alpha_bits 16",
        ),
        ("alpha-ffv1.mkv", "FFV1 with alpha", "-c:v ffv1 -pix_fmt bgra"),
        ("alpha-utvideo.avi", "Ut Video with alpha", "-c:v utvideo -pix_fmt gbrap"),
        ("alpha-huffyuv.avi", "HuffYUV with alpha", "-c:v huffyuv -pix_fmt rgb32"),
        (
            "alpha-vp9.webm",
            "VP9 with alpha beside the picture",
            "-c:v libvpx-vp9 -crf 10 -b:v 0 -pix_fmt yuva420p -deadline realtime -cpu-used 8",
        ),
        (
            "alpha-vp8.webm",
            "VP8 with alpha beside the picture",
            "-c:v libvpx -crf 6 -b:v 1M -pix_fmt yuva420p -auto-alt-ref 0 -deadline realtime",
        ),
        ("alpha.apng", "animated PNG with alpha", "-c:v apng -pix_fmt rgba -f apng -plays 0"),
    ):
        yield film(name, "alpha", what, options, "{card 10 1 alpha}", alpha=True)
    yield film(
        "animated.gif",
        "animations",
        "GIF, 8 colors that move",
        "-filter_complex [0:v]split[a][b];[a]palettegen[p];[b][p]paletteuse=dither=none",
        "{card 10 2}",
    )
    yield film(
        "animated.apng",
        "animations",
        "animated PNG",
        "-c:v apng -pix_fmt rgb24 -f apng -plays 0",
        "{card 10 2}",
    )
    yield film(
        "animated-once.apng.png",
        "animations",
        "animated PNG that is called .png",
        "-c:v apng -pix_fmt rgb24 -f apng -plays 1",
        "{card 10 2}",
    )
    yield ZooFile(
        "alpha.gif", "alpha", "GIF with a transparent part", finish=edits.transparent_gif, alpha=True
    )
    yield ZooFile(
        "animated.webp",
        "animations",
        "animated WebP",
        finish=edits.animated_webp,
        truth=Truth(times_s=tuple(k / 10 for k in range(20)), numbers=tuple(range(20)), size_px=(96, 64)),
    )
    yield ZooFile(
        "alpha.webp",
        "alpha",
        "animated WebP with alpha",
        finish=edits.transparent_webp,
        alpha=True,
        truth=Truth(times_s=tuple(k / 10 for k in range(10)), numbers=tuple(range(10)), size_px=(96, 64)),
    )
    yield ZooFile(
        "uneven.gif",
        "animations",
        "GIF whose frames last 0.02 to 0.5 s",
        finish=edits.uneven_gif,
    )
