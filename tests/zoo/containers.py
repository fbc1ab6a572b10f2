"""Films in every container, and raw streams."""

from __future__ import annotations

from collections.abc import Iterator

from tests.zoo.film import H264, MPEG2, MPEG4, film
from tests.zoo.workshop import Truth, ZooFile


def containers() -> Iterator[ZooFile]:
    """Yield one film in every container."""
    h264_aac = f"{H264} -c:a aac"
    for name, what, options in (
        ("h264-aac.mkv", "Matroska", h264_aac),
        ("h264-aac.mp4", "MP4", h264_aac),
        ("h264-aac.mov", "QuickTime", h264_aac),
        ("h264-aac.flv", "Flash video", h264_aac + " -ar 44100"),
        ("h264-aac.ts", "MPEG transport stream", h264_aac),
        ("h264-aac.m2ts", "Blu-ray transport stream", h264_aac + " -f mpegts -mpegts_m2ts_mode 1"),
        ("h264-aac.nut", "NUT", h264_aac),
        ("h264-aac.3gp", "3GPP", h264_aac),
        ("h264-aac.f4v", "Flash MP4", h264_aac),
        (
            "fragmented.mp4",
            "fragmented MP4",
            h264_aac + " -movflags frag_keyframe+empty_moov+default_base_moof",
        ),
        (
            "fragmented-one.mp4",
            "MP4 in fragments of one frame",
            h264_aac + " -movflags frag_every_frame+empty_moov",
        ),
        ("faststart.mp4", "MP4 with its index in front", h264_aac + " -movflags +faststart"),
        ("mpeg4-mp3.avi", "AVI", f"{MPEG4} -c:a libmp3lame"),
        (
            "mjpeg-pcm.avi",
            "AVI of JPEGs, as cameras write it",
            "-c:v mjpeg -q:v 2 -pix_fmt yuvj420p -c:a pcm_s16le",
        ),
        ("raw-rgb.avi", "AVI of raw pictures, bottom up", "-c:v rawvideo -pix_fmt bgr24 -c:a pcm_u8"),
        ("mpeg2-mp2.mpg", "MPEG program stream", f"{MPEG2} -c:a mp2 -f mpeg"),
        ("mpeg2-ac3.vob", "DVD", f"{MPEG2} -bf 2 -c:a ac3 -f vob"),
        ("mpeg1-mp2.mpg", "MPEG-1 system stream", "-c:v mpeg1video -q:v 2 -c:a mp2 -f mpeg"),
        ("mpeg2-mp2.ts", "transport stream, MPEG-2", f"{MPEG2} -bf 2 -c:a mp2"),
        ("vp8-vorbis.webm", "WebM", "-c:v libvpx -crf 6 -b:v 1M -deadline realtime -c:a libvorbis"),
        (
            "vp9-opus.webm",
            "WebM",
            "-c:v libvpx-vp9 -crf 20 -b:v 0 -deadline realtime -cpu-used 8 -c:a libopus",
        ),
        ("theora-vorbis.ogv", "Ogg", "-c:v libtheora -q:v 9 -c:a libvorbis"),
        ("wmv2-wmav2.wmv", "ASF", "-c:v wmv2 -q:v 2 -c:a wmav2 -f asf"),
        ("msmpeg4-wmav1.asf", "ASF", "-c:v msmpeg4 -q:v 2 -c:a wmav1"),
        ("mpeg2-pcm.mxf", "MXF", f"{MPEG2} -c:a pcm_s16le"),
        ("mpeg4-aac.m4v.mp4", "MP4, MPEG-4 part 2 with B-frames", f"{MPEG4} -bf 2 -c:a aac"),
        (
            "vp9-flac.mkv",
            "Matroska",
            "-c:v libvpx-vp9 -crf 20 -b:v 0 -deadline realtime -cpu-used 8 -c:a flac",
        ),
        ("rv20-ac3.rm", "RealMedia", "-c:v rv20 -q:v 2 -c:a ac3"),
        ("mjpeg-adpcm.mov", "QuickTime", "-c:v mjpeg -q:v 2 -pix_fmt yuvj420p -c:a adpcm_ima_qt"),
    ):
        yield film(name, "containers", what, options)
    yield film(
        "h264-mp3.avi",
        "containers",
        "AVI, H.264 with B-frames: no times of display",
        f"{H264} -c:a libmp3lame",
        notices=True,
    )
    yield film(
        "flv1-mp3.flv", "containers", "Flash video, Sorenson", "-c:v flv -q:v 2 -c:a libmp3lame -ar 44100"
    )
    yield film(
        "h263.3gp",
        "containers",
        "3GPP of an old telephone",
        "-c:v h263 -q:v 3 -c:a aac",
        "{card 25 2 128x96} {tone 1 48000 2}",
        truth=Truth(size_px=(140, 96)),
    )
    yield film(
        "dv.dv",
        "containers",
        "DV tape",
        "-c:v dvvideo -pix_fmt yuv420p -c:a pcm_s16le -ac 2 -f dv",
        "{card 25 1 720x576} {tone 2 48000 1}",
        reference_filter="bwdif=mode=send_frame:deint=interlaced",
        truth=Truth(size_px=(768, 576)),
    )
    yield film("rawvideo.y4m", "containers", "YUV4MPEG", "-pix_fmt yuv420p -an")
    for name, what, options in (
        ("raw-30.h264", "raw H.264 with its own rate", f"{H264} -bf 0"),
        ("raw-30-bframes.h264", "raw H.264 with B-frames", H264),
        (
            "raw-30.h265",
            "raw H.265",
            "-c:v libx265 -preset ultrafast -crf 14 -pix_fmt yuv420p -x265-params log-level=0",
        ),
        ("raw-30.m2v", "raw MPEG-2", f"{MPEG2} -bf 2 -f mpeg2video"),
        ("raw-30.m1v", "raw MPEG-1", "-c:v mpeg1video -q:v 2 -f mpeg1video"),
        ("raw-30.m4v", "raw MPEG-4", f"{MPEG4} -f m4v"),
        ("raw-30.ivf", "IVF", "-c:v libvpx -crf 6 -b:v 1M -deadline realtime"),
    ):
        yield film(
            name,
            "raw streams",
            what,
            options + " -an",
            "{card 30 2}",
            truth=Truth(times_s=tuple(k / 30 for k in range(60))),
        )
    yield film(
        "raw.mjpeg",
        "raw streams",
        "raw JPEGs, without any rate",
        "-c:v mjpeg -q:v 2 -f mjpeg",
        "{card 25 2}",
        notices=True,
    )
    yield film("raw-60.h264", "raw streams", "raw H.264 at 60", f"{H264} -bf 0", "{card 60 1}")
    yield film(
        "raw-23.976.h264", "raw streams", "raw H.264 at 23.976", f"{H264} -bf 0", "{card 24000/1001 2}"
    )
