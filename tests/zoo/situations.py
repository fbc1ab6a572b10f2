"""Films with several tracks or covers, damaged films, and names that mean something else elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from tests.zoo import edits
from tests.zoo.film import BASE, H264, MPEG2, MPEG4, film
from tests.zoo.workshop import ZooFile


def tracks() -> Iterator[ZooFile]:
    """Yield files with several tracks, covers, subtitles and data."""
    two = "{card 25 2} {card 25 2 100} {tone 1 48000 2} {tone 1 48000 2 3}"
    both = f"-map 0:v -map 1:v -map 2:a -map 3:a {H264} -c:a aac"
    named: dict[str, Any] = {"notices": True}
    for suffix in ("mkv", "mp4"):
        yield film(
            f"tracks.{suffix}",
            "tracks",
            "two of each, the first is the default",
            f"{both} -disposition:v:1 0 -disposition:a:1 0",
            two,
            **named,
        )
        yield film(
            f"default-second.{suffix}",
            "tracks",
            "two of each, the second is the default",
            f"{both} -disposition:v:0 0 -disposition:v:1 default -disposition:a:0 0 -disposition:a:1 default",
            two,
            video_map="0:v:1",
            sound_map="0:a:1",
            **named,
        )
    yield film(
        "commentary.mkv",
        "tracks",
        "the first sound is for the visually impaired",
        f"-map 0:v -map 1:a -map 2:a {H264} -c:a aac -disposition:a:0 visual_impaired "
        "-disposition:a:1 default -metadata:s:a:0 language=eng -metadata:s:a:1 language=deu",
        "{card 25 2} {tone 1 48000 2 3} {tone 1 48000 2}",
        sound_map="0:a:1",
        **named,
    )
    yield film(
        "languages.ts",
        "tracks",
        "two languages",
        f"-map 0:v -map 1:a -map 2:a {MPEG2} -c:a mp2 -metadata:s:a:0 language=eng "
        "-metadata:s:a:1 language=deu",
        "{card 25 2} {tone 1 48000 2} {tone 1 48000 2 3}",
        **named,
    )
    yield ZooFile(
        "programs.ts",
        "tracks",
        "two programs",
        (
            f"{{card 25 2}} {{tone 1 48000 2}} {{card 25 2 100}} {{tone 1 48000 2 3}} -map 0:v "
            f"-map 1:a -map 2:v -map 3:a {MPEG2} -c:a mp2 -program st=0:st=1 -program st=2:st=3 "
            f"{{out}}",
        ),
        **named,
    )
    for name, codec in (("cover.mp3", "libmp3lame"), ("cover.m4a", "aac"), ("cover.flac", "flac")):
        yield ZooFile(
            name,
            "tracks",
            "a song with a cover",
            (
                "{card 1 1} -frames:v 1 -update 1 {tmp cover.jpg}",
                f"{{tone 2 44100 2}} -i {{tmp cover.jpg}} -map 0:a -map 1:v -c:a {codec} -c:v "
                f"copy -disposition:v:0 attached_pic {{out}}",
            ),
            cards=False,
        )
    yield ZooFile(
        "cover.ogg",
        "tracks",
        "a song with a cover in its comment",
        (
            "{card 1 1} -frames:v 1 -update 1 {tmp cover.jpg}",
            "{tone 2 44100 2} -c:a libvorbis {tmp song.ogg}",
        ),
        edits.ogg_cover,
        cards=False,
    )
    yield ZooFile(
        "cover.mkv",
        "tracks",
        "a film with a cover as an attachment",
        (
            "{card 1 1 7} -frames:v 1 -update 1 {tmp cover.jpg}",
            f"{BASE} {H264} -c:a aac -attach {{tmp cover.jpg}} -metadata:s:t mimetype=image/jpeg "
            f"-metadata:s:t filename=cover.jpg {{out}}",
        ),
    )
    yield ZooFile(
        "cover-first.mp4",
        "tracks",
        "a film whose cover is the first track",
        (
            "{card 1 1 7} -frames:v 1 -update 1 {tmp cover.jpg}",
            f"-i {{tmp cover.jpg}} {BASE} -map 0:v -map 1:v -map 2:a {H264} -c:v:0 copy -c:a aac "
            f"-disposition:v:0 attached_pic {{out}}",
        ),
    )
    yield ZooFile("subtitles.mkv", "tracks", "subtitles longer than the film", finish=edits.subtitled)
    yield film("chapters-data.mov", "tracks", "a time code track", f"{H264} -c:a aac -timecode 10:00:00:00")
    yield film("sound-only.mp4", "tracks", "MP4 without pictures", "-map 1:a -c:a aac", cards=False)
    yield film("picture-only.mp4", "tracks", "MP4 without sound", f"-map 0:v {H264}")
    yield film("sound-only.webm", "tracks", "WebM without pictures", "-map 1:a -c:a libopus", cards=False)


def damage() -> Iterator[ZooFile]:
    """Yield files that end early or hold damaged bytes."""
    damaged: dict[str, Any] = {"notices": True, "loader_may_refuse": True}
    for suffix, codec in (
        ("mkv", f"{H264} -c:a aac"),
        ("ts", f"{MPEG2} -c:a mp2"),
        ("flv", f"{H264} -c:a aac -ar 44100"),
        ("avi", f"{MPEG4} -c:a libmp3lame"),
        ("mpg", f"{MPEG2} -c:a mp2 -f mpeg"),
        ("webm", "-c:v libvpx -deadline realtime -b:v 1M -c:a libvorbis"),
    ):
        yield film(
            f"truncated.{suffix}",
            "damage",
            "the last third is missing",
            codec,
            finish=edits.truncated(0.66),
            **damaged,
        )
    yield film(
        "truncated-fragmented.mp4",
        "damage",
        "the last third is missing",
        f"{H264} -c:a aac -movflags frag_keyframe+empty_moov",
        finish=edits.truncated(0.66),
        **damaged,
    )
    yield film(
        "truncated-faststart.mp4",
        "damage",
        "the last third is missing",
        f"{H264} -c:a aac -movflags +faststart",
        finish=edits.truncated(0.66),
        **damaged,
    )
    yield film(
        "truncated-index.mp4",
        "damage",
        "the index at the end is missing",
        f"{H264} -c:a aac",
        finish=edits.truncated(0.66),
        device_may_refuse=True,
        **damaged,
    )
    yield film(
        "no-index.avi",
        "damage",
        "AVI whose recorder was killed: no index, sizes of 0",
        f"{MPEG4} -c:a libmp3lame",
        finish=edits.killed_avi,
        **damaged,
    )
    yield film(
        "live.mkv", "damage", "Matroska whose recorder was killed: sizes unknown", f"{H264} -c:a aac -live 1"
    )
    yield film(
        "live.webm",
        "damage",
        "WebM of a browser: no duration",
        "-c:v libvpx -deadline realtime -b:v 1M -c:a libopus -live 1",
    )
    yield film(
        "leading-garbage.ts",
        "damage",
        "garbage before the first packet",
        f"{MPEG2} -c:a mp2",
        finish=edits.garbage_in_front(500),
        **damaged,
    )
    yield film(
        "hole.ts",
        "damage",
        "garbage in the middle",
        f"{MPEG2} -c:a mp2",
        finish=edits.garbage_inside(0.5, 0.55),
        **damaged,
    )
    yield film(
        "hole.mkv",
        "damage",
        "zeros in the middle",
        f"{H264} -c:a aac",
        finish=edits.garbage_inside(0.5, 0.53, zeros=True),
        **damaged,
    )
    yield film(
        "starts-inside-gop.ts",
        "damage",
        "the recording begins within a group of pictures",
        f"{H264} -c:a aac",
        finish=edits.start_missing(0.3),
        **damaged,
    )


def names() -> Iterator[ZooFile]:
    """Yield names that programs take for something else."""
    odd = (
        "12:30.mp4",
        "http:x.mp4",
        "-dash.mp4",
        "100%.mp4",
        "%03d.mp4",
        "two  spaces.mp4",
        "star*.mp4",
        "[a].mp4",
        "concat:a.mp4",
        "pipe:0.mp4",
        "quote'.mp4",
        'double".mp4',
        "новый.mp4",
        "line\nbreak.mp4",
        os.fsdecode(b"latin\xe9.mp4"),
        "#hash?.mp4",
        "back\\slash.mp4",
        "a,b;c.mp4",
        "no suffix",
        "wrong-suffix.wav",
        "wrong-suffix.png",
    )
    for name in odd:
        yield film(
            name,
            "names",
            "a name that means something else elsewhere",
            f"{H264} -c:a aac -f mp4",
            "{card 25 1} {tone 1 48000 1}",
        )
    for name in ("http:x.wav", "a|b.wav", os.fsdecode(b"\xff\xfe.wav")):
        yield film(
            name,
            "names",
            "a name that means something else elsewhere",
            "-c:a pcm_s16le -f wav",
            "{tone 1 48000 1}",
            cards=False,
        )
