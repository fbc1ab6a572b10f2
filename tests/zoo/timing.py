"""Films whose times are odd: rates, late and early streams, gaps, edit lists, clocks that wrap."""

from __future__ import annotations

from collections.abc import Iterator

from tests.zoo.film import H264, MPEG2, film
from tests.zoo.workshop import ZooFile


def rates() -> Iterator[ZooFile]:
    """Yield rates of pictures from 0.2 to 120 a second."""
    for name, rate, seconds in (
        ("rate-0.2.mkv", "1/5", "15"),
        ("rate-1.mp4", "1", "4"),
        ("rate-12.5.mkv", "25/2", "2"),
        ("rate-23.976.mp4", "24000/1001", "2"),
        ("rate-29.97.ts", "30000/1001", "2"),
        ("rate-59.94.mkv", "60000/1001", "1"),
        ("rate-120.mp4", "120", "1"),
        ("rate-240.mov", "240", "1"),
    ):
        yield film(name, "rates", f"{rate} pictures a second", f"{H264} -an", f"{{card {rate} {seconds}}}")
    drop = "-fps_mode passthrough"
    yield film(
        "vfr.mkv",
        "rates",
        "uneven times",
        f"-vf select='not(mod(n\\,7))+not(mod(n\\,3))' {drop} {H264} -c:a aac",
    )
    yield film(
        "vfr.mp4",
        "rates",
        "uneven times, sound",
        f"-vf select='not(mod(n\\,7))+not(mod(n\\,3))' {drop} {H264} -c:a aac",
    )
    yield film(
        "vfr-jitter.mkv",
        "rates",
        "times that shake by 15 ms",
        f"-vf settb=1/1000,setpts=N*40+15*sin(N*2) -enc_time_base 1/1000 {drop} {H264} -c:a aac",
    )
    yield film(
        "vfr-90k.mp4",
        "rates",
        "a telephone's times, 90 kHz",
        f"-vf settb=1/90000,setpts=N*3000+700*sin(N*3) -enc_time_base 1/90000 {drop} {H264} -an",
    )
    for suffix in ("mkv", "mp4", "nut"):
        yield film(
            f"gap-75s.{suffix}",
            "rates",
            "a still of 75 s in a screen recording",
            f"-vf 'setpts=PTS+gte(N\\,20)*75/TB' {drop} {H264} -an",
            "{card 25 2}",
        )
    yield film(
        "gap-8s.ts",
        "rates",
        "a still of 8 s in a transport stream",
        f"-vf 'setpts=PTS+gte(N\\,20)*8/TB' {drop} {H264} -an",
        "{card 25 2}",
    )
    yield film(
        "gap-20min.mkv",
        "rates",
        "a still of 20 minutes",
        f"-vf 'setpts=PTS+gte(N\\,20)*1200/TB' {drop} {H264} -an",
        "{card 25 2}",
    )


def timing() -> Iterator[ZooFile]:
    """Yield streams that begin late, end early, or begin at another time than 0."""
    av = f"{H264} -c:a aac"
    for suffix, codec in (
        ("mkv", av),
        ("mp4", av),
        ("mov", f"{H264} -c:a pcm_s16le"),
        ("ts", f"{MPEG2} -c:a mp2"),
        ("webm", "-c:v libvpx -deadline realtime -b:v 1M -c:a libopus"),
    ):
        yield film(
            f"late-sound.{suffix}",
            "timing",
            "sound begins at 1.5 s",
            f"-map 0:v -map 1:a {codec}",
            "{card 25 3} -itsoffset 1.5 {tone 1 48000 2}",
        )
        yield film(
            f"late-picture.{suffix}",
            "timing",
            "pictures begin at 1.5 s",
            f"-map 0:v -map 1:a {codec}",
            "-itsoffset 1.5 {card 25 2} {tone 1 48000 3}",
        )
    yield film(
        "late-sound-70s.mkv",
        "timing",
        "sound begins at 70 s",
        f"-map 0:v -map 1:a {av}",
        "{card 1 74} -itsoffset 70 {tone 1 16000 3}",
    )
    yield film(
        "late-picture-70s.mkv",
        "timing",
        "pictures begin at 70 s",
        f"-map 0:v -map 1:a {av}",
        "-itsoffset 70 {card 25 2} {tone 1 16000 73}",
    )
    yield film("short-sound.mkv", "timing", "sound ends early", av, "{card 25 3} {tone 1 48000 1}")
    yield film("short-picture.mkv", "timing", "pictures end early", av, "{card 25 1} {tone 1 48000 3}")
    yield film("short-sound.mp4", "timing", "sound ends early", av, "{card 25 3} {tone 1 48000 1}")
    yield film("short-picture.ts", "timing", "pictures end early", av, "{card 25 1} {tone 1 48000 3}")
    for suffix in ("mkv", "mp4", "ts", "flv", "nut"):
        more = " -ar 44100" if suffix == "flv" else ""
        yield film(
            f"start-100s.{suffix}",
            "timing",
            "the file's time begins at 100 s",
            f"{av}{more} -output_ts_offset 100",
        )
    yield film(
        "start-negative.mkv",
        "timing",
        "the file's time begins before 0",
        f"{H264} -c:a pcm_s16le -output_ts_offset -0.5 -avoid_negative_ts disabled",
    )
    make = f"{{card 25 4}} {{tone 1 48000 4}} {av} {{tmp whole.mp4}}"
    for name, what, cut in (
        ("cut.mp4", "an edit list: cut without encoding", "-ss 1.3 -i {tmp whole.mp4} -c copy {out}"),
        ("cut.mkv", "cut without encoding", "-ss 1.3 -i {tmp whole.mp4} -c copy {out}"),
        ("cut.mov", "an edit list: cut without encoding", "-ss 1.3 -i {tmp whole.mp4} -c copy {out}"),
        ("cut-ts.ts", "cut without encoding", "-ss 1.3 -i {tmp whole.mp4} -c copy {out}"),
        (
            "cut-sound-first.mp4",
            "sound from before the first picture",
            "-ss 0.7 -i {tmp whole.mp4} -c copy -copyts -avoid_negative_ts make_zero {out}",
        ),
        (
            "delayed-edit.mp4",
            "an edit list that delays the sound",
            "-i {tmp whole.mp4} -itsoffset 0.8 -i {tmp whole.mp4} -map 0:v -map 1:a -c copy {out}",
        ),
        (
            "delayed-edit-picture.mp4",
            "an edit list that delays the pictures",
            "-itsoffset 0.8 -i {tmp whole.mp4} -i {tmp whole.mp4} -map 0:v -map 1:a -c copy {out}",
        ),
    ):
        yield ZooFile(name, "timing", what, (make, cut))
    yield film(
        "wrap.ts",
        "timing",
        "the clock wraps after 1 s",
        f"{MPEG2} -c:a mp2 -output_ts_offset 95441.3",
        "{card 25 3} {tone 1 48000 3}",
    )
    yield film(
        "wrap.mpg",
        "timing",
        "the clock wraps after 1 s",
        f"{MPEG2} -c:a mp2 -f vob -output_ts_offset 95441.8",
        "{card 25 3} {tone 1 48000 3}",
    )
    yield film(
        "sound-gap.mkv",
        "timing",
        "a second of sound is missing",
        f"{H264} -af aselect='not(between(t\\,1\\,2))' -c:a pcm_s16le",
        "{card 25 3} {tone 1 48000 3}",
    )
    yield film(
        "sound-gap.mp4",
        "timing",
        "a second of sound is missing",
        f"{H264} -af aselect='not(between(t\\,1\\,2))' -c:a aac",
        "{card 25 3} {tone 1 48000 3}",
    )
    yield film(
        "interleaved-late.mkv",
        "timing",
        "all sound stands behind all pictures",
        f"{av} -max_interleave_delta 1 -flush_packets 1",
    )
