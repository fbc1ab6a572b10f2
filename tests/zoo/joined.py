"""Recordings that were joined byte by byte, jumps of the clock, and changes in the middle."""

from __future__ import annotations

from collections.abc import Iterator

from tests.zoo import edits
from tests.zoo.film import BASE, H264, MPEG2
from tests.zoo.workshop import ZooFile


def joined() -> Iterator[ZooFile]:
    """Yield recordings that were joined byte by byte, jumps of the clock, and changes in the middle."""
    second = "{card 25 2 50} {tone 1 48000 2 2}"
    ts, ps = f"{MPEG2} -c:a mp2 -f mpegts", f"{MPEG2} -c:a mp2 -f vob"
    flv = f"{H264} -c:a aac -ar 44100 -f flv"
    both = {"notices": True}
    for name, what, first_options, second_options, judged in (
        ("joined.ts", "two transport streams, each from its own 0", ts, ts, {}),
        (
            "joined-bframes.ts",
            "two transport streams of H.264",
            f"{H264} -c:a aac -f mpegts",
            f"{H264} -c:a aac -f mpegts",
            {},
        ),
        ("jump-forward.ts", "the clock jumps ahead by 1000 s", ts, f"{ts} -output_ts_offset 1000", {}),
        ("jump-forward-7s.ts", "the clock jumps ahead by 7 s", ts, f"{ts} -output_ts_offset 9", {}),
        ("jump-back.ts", "the clock jumps back by 1000 s", f"{ts} -output_ts_offset 1000", ts, {}),
        ("joined.vob", "two program streams", ps, ps, {}),
        ("joined.flv", "two Flash videos", flv, flv, {}),
    ):
        yield ZooFile(
            name,
            "joined",
            what,
            (f"{BASE} {first_options} {{tmp 1}}", f"{second} {second_options} {{tmp 2}}"),
            edits.joined("1", "2"),
            **both,
            **judged,
        )
    yield ZooFile(
        "joined-size.ts",
        "joined",
        "the size of the pictures changes",
        (
            f"{BASE} {ts} {{tmp 1}}",
            f"{{card 25 2 128x96 50}} {{tone 1 48000 2 2}} {ts} -output_ts_offset 2.1 {{tmp 2}}",
        ),
        edits.joined("1", "2"),
        **both,
    )
    yield ZooFile(
        "joined-rate.ts",
        "joined",
        "the sample rate changes from 48 to 44.1 kHz",
        (
            f"{BASE} {ts} {{tmp 1}}",
            f"{{card 25 2 50}} {{tone 1 44100 2 2}} {ts} -output_ts_offset 2.03 {{tmp 2}}",
        ),
        edits.joined("1", "2"),
        reference_resample="anull",
        **both,
    )
    yield ZooFile(
        "joined-codec.ts",
        "joined",
        "the codec changes from MPEG-2 to H.264",
        (f"{BASE} {ts} {{tmp 1}}", f"{second} {H264} -c:a mp2 -f mpegts -output_ts_offset 2.1 {{tmp 2}}"),
        edits.joined("1", "2"),
        **both,
    )
    yield ZooFile(
        "joined-channels.ts",
        "joined",
        "mono becomes stereo",
        (
            f"{BASE} {H264} -c:a aac -f mpegts {{tmp 1}}",
            f"{{card 25 2 50}} {{tone 2 48000 2 2}} {H264} -c:a aac -f mpegts -output_ts_offset "
            f"2.1 {{tmp 2}}",
        ),
        edits.joined("1", "2"),
        reference_resample="anull",
        **both,
    )
    yield ZooFile(
        "size.h264",
        "joined",
        "raw H.264 whose size changes",
        (f"{{card 25 1}} {H264} {{tmp 1.h264}}", f"{{card 25 1 128x96 25}} {H264} {{tmp 2.h264}}"),
        edits.joined("1.h264", "2.h264"),
    )
    vp8 = "-c:v libvpx -crf 6 -b:v 1M -deadline realtime -an"
    yield ZooFile(
        "size.webm",
        "joined",
        "the size of the pictures changes, as in a call",
        (f"{{card 25 1}} {vp8} {{tmp 1.webm}}", f"{{card 25 1 128x96 25}} {vp8} {{tmp 2.webm}}"),
        edits.concatenated("1.webm", "2.webm"),
    )
    for suffix, first_options, second_options in (
        ("mp3", "-c:a libmp3lame", "-c:a libmp3lame"),
        ("aac", "-c:a aac", "-c:a aac"),
        ("ogg", "-c:a libvorbis", "-c:a libvorbis"),
        ("opus", "-c:a libopus", "-c:a libopus"),
        ("ac3", "-c:a ac3", "-c:a ac3"),
        ("mp2", "-c:a mp2", "-c:a mp2"),
        ("flac.ogg", "-c:a flac", "-c:a flac"),
    ):
        yield ZooFile(
            f"joined.{suffix}",
            "joined",
            "two sound files, one behind the other",
            (
                f"{{tone 1 48000 2}} {first_options} {{tmp 1.{suffix}}}",
                f"{{tone 1 48000 2 2}} {second_options} {{tmp 2.{suffix}}}",
            ),
            edits.joined(f"1.{suffix}", f"2.{suffix}"),
            cards=False,
            reference_resample="anull",
            **both,
        )
    for suffix, codec in (("mp3", "libmp3lame"), ("aac", "aac"), ("ogg", "libvorbis")):
        yield ZooFile(
            f"joined-rate.{suffix}",
            "joined",
            "44.1 kHz, then 22.05 kHz",
            (
                f"{{tone 1 44100 2}} -c:a {codec} {{tmp 1.{suffix}}}",
                f"{{tone 1 22050 2 2}} -c:a {codec} {{tmp 2.{suffix}}}",
            ),
            edits.joined(f"1.{suffix}", f"2.{suffix}"),
            cards=False,
            reference_resample="anull",
            sound_difference_db=-15.0,
            **both,
        )
