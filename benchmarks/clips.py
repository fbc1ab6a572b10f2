"""Sources of clips: memory that grows with the number of clips, and windows decoded in a second.

The peers read the same shards by `webdataset`: one decodes each whole clip with PyAV, the other seeks to the
frames of the window with decord.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from torch.utils.data import DataLoader, Dataset

from benchmarks.figures import Figure, Section, times_as_fast
from benchmarks.material import clip
from benchmarks.timing import interleaved
from vaemotion.contract.audio import SAMPLE_RATE_HZ
from vaemotion.contract.files import whole_folder
from vaemotion.contract.front_end import Clip, EncoderInputs, FrontEnd, window_at
from vaemotion.data.build_clips import ClipsOptions, build_clips
from vaemotion.data.clips.of_manifest import ManifestClips
from vaemotion.data.clips.of_shards import ShardClips
from vaemotion.data.clips.source import ClipSource, window_span_s, window_start_s
from vaemotion.data.shard import ShardOptions, write_shards

CLIPS = 1_000_000
LIMIT_MB = 2048.0
SAMPLES_PER_SHARD = 10_000
WORKERS = (0, 1, 2)
REPETITIONS = 3
CLIP_S, DECODED_CLIPS, DECODED_CLIPS_FULL = 10, 8, 96
FRONT_END = FrontEnd()
SPAN_S = window_span_s(FRONT_END)
SAME_PIXELS = 1e-3
METHOD = """*Memory*: peak of a whole process that opens {clips:,} clips, checks them, and reads one item: a
data manifest of as many lines, and WebDataset shards of {per_shard:,} samples with tiny members, once
without a stored index and once with it.

*Decoding*: {decoded} clips of {seconds} s at 854×480, 30 frames a second, H.264 (x264's own keyframes) and
AAC at 48 kHz, from files of a manifest and from shards of the same packets. One window of {span:.1f} s at a
random place of each clip becomes the encoders' inputs, in `DataLoader` processes or in the main one (0
workers); a pass makes its processes anew. The peers read the shards with `webdataset`: *PyAV, whole clip*
decodes each clip from its beginning to its end, as plain code does; *decord* seeks to the window's frames and
decodes all sound. Their inputs are compared with ours (asserted for PyAV: mean difference of pixels at most
{same:g})."""


def measure(work: Path, full: bool) -> Section:
    """Measure the section; ``full`` decodes more clips."""
    count = DECODED_CLIPS_FULL if full else DECODED_CLIPS
    figures = [*_memory(), *_decoding(work, count)]
    method = METHOD.format(
        clips=CLIPS,
        per_shard=SAMPLES_PER_SHARD,
        decoded=count,
        seconds=CLIP_S,
        span=SPAN_S,
        same=SAME_PIXELS,
    )
    return Section("Clips", method, figures)


# --- memory -------------------------------------------------------------------------------------------------

_OPEN_MANIFEST = """
from vaemotion.data.clips.of_manifest import ManifestClips
clips = ManifestClips(Path(sys.argv[1]), Path(), "train", 0.1)
"""
_OPEN_SHARDS = """
from vaemotion.data.clips.of_shards import ShardClips
clips = ShardClips.open(sys.argv[1], "train")
"""
# The process tells its own peak: what its parent held before it counts in what the parent is told.
_READ_ONE = """
assert len(clips) == int(sys.argv[2]) and clips.item(len(clips) - 1).id
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def _memory() -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = folder / "manifest.jsonl"
        with manifest.open("w", encoding="utf-8") as file:
            file.writelines(_line(number) for number in range(CLIPS))
        yield _opened("a manifest", _OPEN_MANIFEST, manifest)
        manifest.unlink()
        shards = folder / "shards"
        _write_tiny_shards(shards)
        yield _opened("shards, without an index", _OPEN_SHARDS, shards)
        yield _opened("shards, with their index", _OPEN_SHARDS, shards)


def _opened(what: str, program: str, path: Path) -> Figure:
    began_s = time.monotonic()
    code = f"import sys\nfrom pathlib import Path\n{program}{_READ_ONE}"
    command = [sys.executable, "-c", code, str(path), str(CLIPS)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    most_mb = int(told) / 1024
    ours = f"{time.monotonic() - began_s:.0f} s"
    return Figure(
        f"peak memory, {CLIPS:,} clips of {what}", most_mb, most_mb, most_mb, "MB", ours, at_most=LIMIT_MB
    )


def _line(number: int) -> str:
    """Return a line as `vaemotion data build clips` writes it."""
    values = {
        "id": f"videos/{number:07d}.mp4#0",
        "video": f"videos/{number:07d}.mp4",
        "t0": 0.0,
        "t1": 10.0,
        "pairing": "synchronised",
        "task": "clip",
        "label": f"thing {number % 309}",
        "modality": "audio-visual",
        "split": "train",
        "work_id": f"{number:07d}",
        "creator_id": f"{number:07d}",
        "source": "benchmark",
        "license": "CC0-1.0",
        "sha256": f"{number:064x}",
    }
    return json.dumps(values) + "\n"


def _write_tiny_shards(folder: Path) -> None:
    """Write one shard, and name it as often as it takes."""
    folder.mkdir()
    first = folder / "00000.tar"
    with tarfile.open(first, "w") as archive:
        for number in range(SAMPLES_PER_SHARD):
            caption = json.dumps({"caption": f"thing {number}"}).encode()
            for suffix, data in (("mp4", b"no film"), ("json", caption)):
                member = tarfile.TarInfo(f"{number:09d}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    for number in range(1, CLIPS // SAMPLES_PER_SHARD):
        os.link(first, folder / f"{number:05d}.tar")


# --- decoding -----------------------------------------------------------------------------------------------


def _decoding(work: Path, count: int) -> Iterator[Figure]:
    files, shards = _material(work, count)
    grid_s = FRONT_END.windows.frame_hop_s
    sources: dict[str, ClipSource] = {
        "files": ManifestClips(files / "clips.jsonl", files, "train", grid_s),
        "shards": ShardClips.open(str(shards), "train", grid_s),
    }
    peers = {"PyAV, whole clip": _whole_clip, "decord": _with_decord}
    _assert_same(sources["shards"], shards, peers)
    calls: dict[str, Callable[[], object]] = {}
    for workers in WORKERS:
        for name, source in sources.items():
            calls[_named(name, workers)] = partial(_pass, Windows(source), workers, count)
        for name, decode in peers.items():
            calls[_named(name, workers)] = partial(_pass, _piped(shards, decode), workers, count)
    times = interleaved(calls, REPETITIONS, 0.0, partial(print, flush=True))
    for workers in WORKERS:
        for name in sources:
            measured = times[_named(name, workers)].wall_ms
            rates = sorted(1e3 * count / wall_ms for wall_ms in measured)
            yield Figure(f"{name}, {_words(workers)}", rates[len(rates) // 2], rates[0], rates[-1], "clips/s")
        for name in peers:
            yield times_as_fast(
                f"shards against {name}, {_words(workers)}",
                times,
                _named("shards", workers),
                _named(name, workers),
                at_least=1.0,
            )


def _named(name: str, workers: int) -> str:
    return f"{name}, {_words(workers)}"


def _words(workers: int) -> str:
    return f"{workers} worker{'' if workers == 1 else 's'}"


def _material(work: Path, count: int) -> tuple[Path, Path]:
    """Make ``count`` clips as files with a manifest, and shards of them."""
    files, shards = work / f"clips-{count}", work / f"clips-{count}-shards"
    if not files.is_dir():
        film = clip(work, 60)
        with whole_folder(files) as temporary:
            for number in range(count):
                place = ["-ss", f"{number * (60 - CLIP_S) / count:.3f}", "-t", str(CLIP_S), "-i", str(film)]
                coded = ["-c:v", "libx264", "-preset", "veryfast", "-c:a", "aac", "-ar", "48000"]
                command = ["ffmpeg", "-v", "error", "-y", *place, *coded, str(temporary / f"{number}.mp4")]
                subprocess.run(command, check=True)
            options = ClipsOptions(license="CC0-1.0", validation=0.0, test=0.0)
            build_clips(temporary, temporary / "clips.jsonl", None, options)
    shutil.rmtree(shards, ignore_errors=True)
    write_shards(files / "clips.jsonl", shards, files, ShardOptions(samples_per_shard=count // 8))
    return files, shards


class Windows(Dataset[tuple[str, EncoderInputs]]):
    """One window of each clip of a source as the encoders' inputs."""

    def __init__(self, source: ClipSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[str, EncoderInputs]:
        window = self.source.window(index, 0, SPAN_S)
        return window.item.id, window.inputs("audio-visual", FRONT_END)


def _pass(dataset: Any, workers: int, count: int) -> None:
    seen = sum(1 for _ in DataLoader(dataset, batch_size=None, num_workers=workers))
    assert seen == count, f"{seen} of {count} clips"


Decode = Callable[[bytes, float], Clip]


def _piped(shards: Path, decode: Decode) -> Any:
    import webdataset

    urls = sorted(str(file) for file in shards.glob("*.tar"))
    return webdataset.WebDataset(urls, shardshuffle=False).map(partial(_inputs_of, decode=decode))


def _inputs_of(sample: dict[str, Any], decode: Decode) -> tuple[str, EncoderInputs]:
    item = json.loads(sample["json"])
    number = int(sample["__key__"].rpartition("-")[2])
    start_s = item["t0"] + window_start_s(item["t1"] - item["t0"], SPAN_S, 0, number)
    window = decode(sample["mp4"], start_s)
    return item["id"], window_at(window, SPAN_S, "audio-visual", FRONT_END)


def _whole_clip(data: bytes, start_s: float) -> Clip:
    """Decode all frames and all sound, and keep the window's."""
    frames, blocks = [], []
    with av.open(io.BytesIO(data)) as container:
        origin_s = (container.start_time or 0) / av.time_base
        resampler = av.AudioResampler("flt", "mono", SAMPLE_RATE_HZ)
        container.streams.video[0].thread_type = "AUTO"
        for frame in container.decode(video=0, audio=0):
            if isinstance(frame, av.VideoFrame):
                frames.append(
                    (float(frame.pts * frame.time_base) - origin_s, frame.to_ndarray(format="rgb24"))
                )
            else:
                blocks += [block.to_ndarray()[0] for block in resampler.resample(frame)]
    return _part([f for _, f in frames], [t for t, _ in frames], np.concatenate(blocks), start_s)


def _with_decord(data: bytes, start_s: float) -> Clip:
    """Decode the frames that the window shows, and all sound."""
    import decord

    video = decord.VideoReader(io.BytesIO(data))
    ends = video.get_frame_timestamp(range(len(video)))
    begins = ends[:, 0] - ends[0, 0]
    shown_s = start_s + np.arange(0.0, SPAN_S + 1e-6, FRONT_END.windows.frame_hop_s)
    indices = np.unique(np.maximum(np.searchsorted(begins, shown_s + 1e-6, side="right") - 1, 0))
    frames = video.get_batch(indices).asnumpy()
    sound = decord.AudioReader(io.BytesIO(data), sample_rate=SAMPLE_RATE_HZ, mono=True)[:].asnumpy()[0]
    return _part(list(frames), begins[indices].tolist(), sound, start_s)


def _part(frames: list[Any], times_s: list[float], samples: Any, start_s: float) -> Clip:
    """Return what is shown and heard from ``start_s`` on, for a window."""
    kept = [k for k, time_s in enumerate(times_s) if k + 1 == len(times_s) or times_s[k + 1] > start_s + 1e-6]
    kept = [k for k in kept if times_s[k] < start_s + SPAN_S]
    first = round(start_s * SAMPLE_RATE_HZ)
    heard = samples[first : first + round(SPAN_S * SAMPLE_RATE_HZ)].astype(np.float32)
    return Clip(tuple(frames[k] for k in kept), tuple(max(0.0, times_s[k] - start_s) for k in kept), heard)


def _assert_same(source: ClipSource, shards: Path, peers: dict[str, Decode]) -> None:
    """Compare the peers' inputs with ours."""
    ours = dict(Windows(source)[index] for index in range(len(source)))
    for name, decode in peers.items():
        theirs = dict(iter(_piped(shards, decode)))
        assert ours.keys() == theirs.keys(), name
        pixels = [np.abs(theirs[key].pixels - ours[key].pixels).mean() for key in ours]
        sound = [np.abs(theirs[key].log_mel - ours[key].log_mel).mean() for key in ours]
        print(f"{name}: pixels differ by {np.mean(pixels):.2g}, log-mel by {np.mean(sound):.2g}", flush=True)
        if name != "decord":  # its colors and times are its own
            assert max(pixels) <= SAME_PIXELS, pixels
