"""Sounds of the zoo: codecs, layouts, rates, and headers that lie."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.zoo import edits
from tests.zoo.workshop import Truth, ZooFile, raw_tone


def sound(
    name: str, family: str, exercises: str, options: str, source: str = "{tone 2 44100 2}", **judged: Any
) -> ZooFile:
    """Describe a sound file that one ffmpeg command makes from tones."""
    return ZooFile(name, family, exercises, (f"{source} {options} {{out}}",), cards=False, **judged)


def sounds() -> Iterator[ZooFile]:
    """Yield every sound file of the zoo."""
    yield from codecs()
    yield from layouts()
    yield from headers()


def codecs() -> Iterator[ZooFile]:
    """Yield one file for every codec and container of sound."""
    for codec in ("u8", "s16le", "s24le", "s32le", "f32le", "f64le", "alaw", "mulaw"):
        yield sound(f"pcm-{codec}.wav", "sounds", f"WAV of {codec}", f"-c:a pcm_{codec}")
    for codec in ("s16be", "s24be", "s32be", "f32be", "f64be", "s8"):
        yield sound(
            f"pcm-{codec}.{'au' if codec.startswith('f') else 'aiff'}",
            "sounds",
            f"big-endian {codec}",
            f"-c:a pcm_{codec}",
        )
    for name, what, options in (
        ("rf64.wav", "RF64", "-c:a pcm_s16le -rf64 always"),
        ("sony.w64", "Wave64", "-c:a pcm_s16le"),
        ("apple.caf", "Core Audio, little-endian float", "-c:a pcm_f32le"),
        ("alac.caf", "ALAC in Core Audio", "-c:a alac"),
        ("sun.au", "Sun, mu-law", "-c:a pcm_mulaw"),
        ("adpcm-ms.wav", "ADPCM of Microsoft", "-c:a adpcm_ms"),
        ("adpcm-ima.wav", "IMA ADPCM", "-c:a adpcm_ima_wav"),
        ("adpcm-yamaha.wav", "Yamaha ADPCM", "-c:a adpcm_yamaha"),
        ("g726.wav", "G.726", "-c:a g726 -ar 8000 -ac 1"),
        ("g722.wav", "G.722", "-c:a g722 -ar 16000 -ac 1"),
        ("gsm.wav", "GSM in WAV", "-c:a libgsm_ms -ar 8000 -ac 1"),
        ("flac.flac", "FLAC", "-c:a flac"),
        ("flac-24bit.flac", "FLAC, 24 bits", "-c:a flac -sample_fmt s32"),
        ("flac.oga", "FLAC in Ogg", "-c:a flac"),
        ("mp3-cbr.mp3", "MP3, constant bit rate", "-c:a libmp3lame -b:a 128k"),
        ("mp3-vbr.mp3", "MP3, variable bit rate", "-c:a libmp3lame -q:a 4"),
        (
            "mp3-no-header.mp3",
            "MP3 without Xing or ID3",
            "-c:a libmp3lame -q:a 4 -write_xing 0 -id3v2_version 0",
        ),
        ("mp3-id3v1.mp3", "MP3 with ID3v1 behind it", "-c:a libmp3lame -write_id3v1 1 -metadata title=x"),
        ("mp3-22k.mp3", "MPEG-2 layer 3", "-c:a libmp3lame -ar 22050"),
        ("mp3-8k.mp3", "MPEG-2.5 layer 3", "-c:a libmp3lame -ar 8000"),
        ("mp3.wav", "MP3 in WAV", "-c:a libmp3lame"),
        ("mp2.mp2", "layer 2", "-c:a mp2"),
        ("aac.aac", "ADTS", "-c:a aac"),
        ("aac.m4a", "AAC in MP4", "-c:a aac"),
        ("aac.m4b", "audio book", "-c:a aac -f ipod"),
        ("alac.m4a", "ALAC", "-c:a alac"),
        ("aac-fragmented.m4a", "AAC in fragments", "-c:a aac -movflags frag_every_frame+empty_moov -f mp4"),
        ("aac.latm", "LATM", "-c:a aac"),
        ("aac-loas.ts", "LATM in a transport stream", "-c:a aac -mpegts_flags latm"),
        ("vorbis.ogg", "Vorbis", "-c:a libvorbis"),
        ("opus.opus", "Opus", "-c:a libopus"),
        ("opus.ogg", "Opus in Ogg", "-c:a libopus"),
        ("opus.mka", "Opus in Matroska", "-c:a libopus"),
        ("opus.mp4", "Opus in MP4", "-c:a libopus"),
        ("opus.caf", "Opus in Core Audio", "-c:a libopus -frame_duration 20"),
        ("ac3.ac3", "AC-3", "-c:a ac3"),
        ("eac3.eac3", "E-AC-3", "-c:a eac3"),
        ("dts.dts", "DTS", "-c:a dca -strict -2"),
        ("truehd.thd", "TrueHD", "-c:a truehd -strict -2 -f truehd"),
        ("mlp.mlp", "MLP", "-c:a mlp -strict -2"),
        ("wavpack.wv", "WavPack", "-c:a wavpack"),
        ("tta.tta", "True Audio", "-c:a tta"),
        ("wma.wma", "WMA 2", "-c:a wmav2 -f asf"),
        ("speex.spx", "Speex", "-c:a libspeex -ar 16000 -ac 1"),
        ("aptx.aptx", "aptX", "-c:a aptx"),
        ("sbc.sbc", "SBC of Bluetooth", "-c:a sbc"),
        ("voc.voc", "Creative", "-c:a pcm_u8"),
        ("amr-none.gsm", "raw GSM", "-c:a libgsm -ar 8000 -ac 1"),
        ("adx.adx", "ADX", "-c:a adpcm_adx"),
        ("ast.ast", "AST", "-c:a pcm_s16be_planar"),
        ("sox.sox", "SoX", "-c:a pcm_s32le"),
        ("ircam.sf", "IRCAM", "-c:a pcm_s16le -f ircam"),
        ("pcm.mov", "QuickTime, 16 bits big-endian", "-c:a pcm_s16be"),
        ("pcm.mkv", "Matroska, 24 bits", "-c:a pcm_s24le"),
        ("pcm.mka", "Matroska, float", "-c:a pcm_f32le"),
        ("dvd.vob", "LPCM of a DVD", "-c:a pcm_dvd -ar 48000 -f vob"),
        ("bluray.m2ts", "LPCM of a Blu-ray", "-c:a pcm_bluray -ar 48000 -f mpegts -mpegts_m2ts_mode 1"),
    ):
        yield sound(name, "sounds", what, options)


def layouts() -> Iterator[ZooFile]:
    """Yield numbers of channels with and without a layout, and rates from 8 to 384 kHz."""
    for channels in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 16, 24, 32, 64):
        yield sound(
            f"channels-{channels}.wav",
            "layouts",
            f"{channels} channels",
            "-c:a pcm_s16le",
            f"{{tone {channels} 48000 2}}",
        )
    for layout in ("2.1", "5.1", "5.1(side)", "7.1", "hexadecagonal", "22.2"):
        channels = {"2.1": 3, "5.1": 6, "5.1(side)": 6, "7.1": 8, "hexadecagonal": 16, "22.2": 24}[layout]
        yield sound(
            f"layout-{layout}.wav",
            "layouts",
            f"float, {layout}",
            f"-channel_layout {layout} -c:a pcm_f32le".replace(
                "-channel_layout", "-af aformat=channel_layouts="
            ).replace("= ", "="),
            f"{{tone {channels} 48000 2}}",
        )
    for name, channels, options in (
        ("flac-8.flac", 8, "-c:a flac"),
        ("flac-8.mkv", 8, "-c:a flac"),
        ("aac-6.m4a", 6, "-c:a aac"),
        ("aac-8.mkv", 8, "-c:a aac -b:a 512k"),
        ("aac-3.m4a", 3, "-c:a aac"),
        ("ac3-6.mkv", 6, "-c:a ac3"),
        ("eac3-6.mp4", 6, "-c:a eac3"),
        ("opus-6.opus", 6, "-c:a libopus -mapping_family 1"),
        ("opus-8.mka", 8, "-c:a libopus -mapping_family 1"),
        ("opus-16.mka", 16, "-c:a libopus -mapping_family 255"),
        ("vorbis-6.ogg", 6, "-c:a libvorbis"),
        ("vorbis-8.ogg", 8, "-c:a libvorbis"),
        ("alac-8.m4a", 8, "-c:a alac"),
        ("wavpack-8.wv", 8, "-c:a wavpack"),
        ("pcm-16.caf", 16, "-c:a pcm_s24le"),
        ("pcm-16.mka", 16, "-c:a pcm_s16le"),
        ("pcm-8.mov", 8, "-c:a pcm_s16le"),
        ("pcm-24.w64", 24, "-c:a pcm_f64le"),
        ("pcm-planar-8.nut", 8, "-c:a pcm_s16le_planar"),
        ("dts-6.mkv", 6, "-c:a dca -strict -2"),
        ("truehd-6.mkv", 6, "-c:a truehd -strict -2"),
    ):
        yield sound(name, "layouts", f"{channels} channels", options, f"{{tone {channels} 48000 2}}")
    for rate in (4000, 8000, 11025, 16000, 22050, 32000, 44100, 48000, 88200, 96000, 176400, 192000, 384000):
        yield sound(f"rate-{rate}.wav", "layouts", f"{rate} Hz", "-c:a pcm_s16le", f"{{tone 1 {rate} 2}}")
    for name, rate, options in (
        ("rate-7350.aac", 7350, "-c:a aac"),
        ("rate-96000.flac", 96000, "-c:a flac"),
        ("rate-96000.m4a", 96000, "-c:a aac"),
        ("rate-12345.wav", 12345, "-c:a pcm_s16le"),
        ("rate-192000.mka", 192000, "-c:a pcm_s24le"),
    ):
        yield sound(name, "layouts", f"{rate} Hz", options, f"{{tone 1 {rate} 2}}")
    yield ZooFile(
        "channels-128.wav",
        "layouts",
        "128 channels, more than FFmpeg's resampler takes",
        finish=_many_channels(128),
        cards=False,
        truth=Truth(sound_s=1.0),
    )
    yield sound("short.wav", "layouts", "3 ms", "-c:a pcm_s16le", "{tone 1 48000 0.003}")
    yield sound("short.mp3", "layouts", "50 ms", "-c:a libmp3lame", "{tone 1 44100 0.05}")
    yield sound(
        "silence.wav", "layouts", "digital silence", "-af volume=0 -c:a pcm_s16le", "{tone 1 48000 2}"
    )


def headers() -> Iterator[ZooFile]:
    """Yield WAV files whose header does not tell the truth; the samples are all there."""
    n = 2 * 44100 * 2
    lying: dict[str, Any] = {"cards": False, "notices": True, "truth": Truth(sound_s=2.0)}
    for name, what, riff, data in (
        ("killed.wav", "recorder killed: lengths of the header alone", 36, 0),
        ("zero.wav", "lengths of 0", 0, 0),
        ("pipe.wav", "written into a pipe: 0xFFFFFFFF", 0xFFFFFFFF, 0xFFFFFFFF),
        ("pipe-sox.wav", "written into a pipe by SoX: 0x7FFFFFFF", 0x7FFFF024, 0x7FFFF000),
        ("int32max.wav", "Oboe's header: 0x7FFFFFFF", 0x7FFFFFFF, 0x7FFFFFFF),
        ("too-long.wav", "the header promises more", 36 + 2 * n, 2 * n),
        ("arecord.wav", "arecord's promise of 2 GB", 0x80000024, 0x80000000),
    ):
        yield ZooFile(
            name, "headers", what, finish=_wav(riff, data), loader_may_refuse=name == "too-long.wav", **lying
        )
    whole: dict[str, Any] = {"cards": False, "truth": Truth(sound_s=2.0)}
    yield ZooFile(
        "riff-stale.wav", "headers", "RIFF's length is stale, data's is right", finish=_wav(36, n), **whole
    )
    yield ZooFile(
        "stale-size.wav",
        "headers",
        "appended to: the header knows the first half",
        finish=_wav(36 + n // 2, n // 2),
        **lying,
    )
    for name, chunk in (
        ("list-behind.wav", b"LIST" + struct.pack("<I", 4000) + b"INFO" + (bytes(range(256)) * 16)[:3996]),
        ("id3-behind.wav", b"id3 " + struct.pack("<I", 1024) + bytes(range(256)) * 4),
    ):
        yield ZooFile(
            name,
            "headers",
            "a chunk behind the samples is no sound",
            finish=_wav(36 + n + len(chunk), n, behind=chunk),
            **whole,
        )
    yield ZooFile(
        "odd-pad.wav",
        "headers",
        "an odd chunk without its pad byte",
        finish=_wav(36, n, b"LIST" + struct.pack("<I", 5) + b"INFOx"),
        **lying,
    )
    yield ZooFile(
        "list-chunk.wav",
        "headers",
        "a chunk before the samples",
        finish=_wav(36 + 14, n, b"LIST" + struct.pack("<I", 6) + b"INFOxx"),
        **whole,
    )
    yield ZooFile(
        "half-sample.wav", "headers", "ends within a sample", finish=_wav(36 + n, n, cut=1), **lying
    )
    for suffix, codec, kept in (
        ("flac", "flac", 0.6),
        ("mp3", "libmp3lame", 0.6),
        ("m4a", "aac", 0.9),
        ("ogg", "libvorbis", 0.6),
        ("wv", "wavpack", 0.6),
        ("aiff", "pcm_s16be", 0.6),
        ("aac", "aac", 0.6),
        ("opus", "libopus", 0.6),
        ("w64", "pcm_s16le", 0.6),
        ("caf", "pcm_s16le", 0.6),
        ("au", "pcm_s16be", 0.6),
    ):
        yield sound(
            f"truncated.{suffix}",
            "headers",
            "the end is missing",
            f"-c:a {codec}",
            finish=edits.truncated(kept),
            notices=True,
            loader_may_refuse=True,
            device_may_refuse=suffix in ("m4a", "ogg"),
        )
    yield sound(
        "hole.mp3",
        "headers",
        "garbage in the middle",
        "-c:a libmp3lame",
        finish=edits.garbage_inside(0.5, 0.55),
        notices=True,
        loader_may_refuse=True,
        sound_difference_db=None,
    )
    yield sound(
        "hole.flac",
        "headers",
        "garbage in the middle",
        "-c:a flac",
        finish=edits.garbage_inside(0.5, 0.55),
        notices=True,
        loader_may_refuse=True,
        sound_difference_db=None,
    )


def _many_channels(channels: int) -> Callable[[Path, Path], None]:
    """Return the step that writes a second of tones on many channels, 16 bits at 8 kHz."""

    def write(path: Path, _between: Path) -> None:
        samples = raw_tone(channels, 8000, 1)
        form = struct.pack("<IHHIIHH", 16, 1, channels, 8000, 16000 * channels, 2 * channels, 16)
        data = b"data" + struct.pack("<I", len(samples)) + samples
        path.write_bytes(b"RIFF" + struct.pack("<I", 28 + len(data)) + b"WAVEfmt " + form + data)

    return write


def _wav(
    riff: int, data: int, before: bytes = b"", behind: bytes = b"", cut: int = 0
) -> Callable[[Path, Path], None]:
    """Return the step that writes two seconds of mono at 44.1 kHz below a header with the given lengths."""

    def write(path: Path, _between: Path) -> None:
        samples = raw_tone(1, 44100, 2)
        head = (
            b"RIFF"
            + struct.pack("<I", riff)
            + b"WAVEfmt "
            + struct.pack("<IHHIIHH", 16, 1, 1, 44100, 88200, 2, 16)
        )
        path.write_bytes(
            head + before + b"data" + struct.pack("<I", data) + samples[: len(samples) - cut] + behind
        )

    return write
