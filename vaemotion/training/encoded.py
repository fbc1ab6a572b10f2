"""Windows of clips with their visual tokens, in block files that several processes write together.

The base is frozen from here on, so the visual tokens of a window never change. In: a source of clips. Out:
for each window its visual tokens, its log-mel and its item, in blocks of ``BLOCK`` clips. A block is whole or
absent, so that a killed run goes on with the block that it was at. Clips that cannot be decoded are left out
and named; too many of them end the run.

Without ``keep_tokens`` only the items are kept, and windows are decoded and encoded whenever they are needed.

From version 2 of the front end on, a quarter of the windows holds less sound than fits, as a device gives
them after a start and of short files. A model of version 1 was trained without such windows.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vaemotion.contract.audio import SAMPLE_RATE_HZ
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.front_end import ZERO_PADDING, FrontEnd, audio_window
from vaemotion.contract.media.files import MediaError
from vaemotion.contract.terminal import Terminal, tell
from vaemotion.data.clips.source import ClipSource, ClipStream, ClipWindow, DamagedClip, window_span_s
from vaemotion.data.manifest.item import Item
from vaemotion.model.checkpoint import write_tensors
from vaemotion.model.vaemotion_llm import VAEmotionLLM
from vaemotion.training.block_files import OpenBlocks, block_file
from vaemotion.training.loop import process_state

BLOCK = 128  # clips in one file
FILLING_SHARE = 0.25  # of the windows, those of a stream that has just begun to hear
MOST_DAMAGED = 0.05  # share of the clips
_FEW = 100  # clips before which nothing is said about their share
_KEPT_ITEMS = 256  # blocks whose items are held

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Prepared:
    """One window as the encoders take it."""

    index: int  # of the clip in its source
    item: Item
    pixels: Float32  # (frames, 3, side, side), oldest first
    log_mel: Float32  # (frames, mels), normalized


@dataclass(frozen=True)
class Block:
    """The windows of ``BLOCK`` successive clips, n of them; damaged clips have none."""

    number: int
    indexes: tuple[int, ...]  # of the clips in their source
    items: tuple[Item, ...]
    visual: Tensor  # (n, frames, T, D) float16, oldest frame first
    log_mel: Tensor  # (n, frames, mels) float16
    damaged: tuple[DamagedClip, ...]

    def tokens(self, windows: Sequence[int], frame_count: int) -> Tensor:
        """Return the tokens of the newest frames of these windows, (B, frame_count · T, D) float32."""
        return self.visual[list(windows), -frame_count:].flatten(1, 2).float()


@dataclass(frozen=True)
class Windows:
    """Everything that the windows of a source depend on, small enough for worker processes."""

    source: ClipSource | ClipStream
    front_end: FrontEnd
    seed: int

    def prepared(self, index: int) -> Prepared | DamagedClip:
        """Decode the window of clip ``index``."""
        assert not isinstance(self.source, ClipStream)
        try:
            window = self.source.window(index, self.seed, window_span_s(self.front_end))
        except MediaError as error:
            return DamagedClip(self.source.item(index).id, str(error))
        return self.prepare(window, index)

    def streamed(self) -> Iterator[Prepared | DamagedClip]:
        """Decode the windows of a stream."""
        assert isinstance(self.source, ClipStream)
        windows = self.source.windows(self.seed, window_span_s(self.front_end))
        for index, window in enumerate(windows):
            yield window if isinstance(window, DamagedClip) else self.prepare(window, index)

    def prepare(self, window: ClipWindow, index: int) -> Prepared | DamagedClip:
        """Build the encoders' inputs of a window."""
        inputs = window.inputs("visual", self.front_end)
        missing = self.front_end.windows.frames - len(inputs.pixels)
        if missing > 0:
            return DamagedClip(window.item.id, f"its pictures begin {missing} frames late")
        assert window.clip.samples is not None, "the promise of every source"
        sound = window.clip.samples[: round(window.now_s * SAMPLE_RATE_HZ)]
        held_s = heard_s(index, self.front_end, self.seed)
        if math.isfinite(held_s):
            sound = sound[-round(held_s * SAMPLE_RATE_HZ) :]
        log_mel = audio_window(sound, len(sound) / SAMPLE_RATE_HZ, self.front_end)
        return Prepared(index, window.item, inputs.pixels, log_mel)


def heard_s(index: int, front_end: FrontEnd, seed: int) -> float:
    """Draw the seconds of sound that a window holds: all that fits for most windows."""
    rng = np.random.default_rng([seed, 15, index])
    if front_end.version == ZERO_PADDING or rng.random() >= FILLING_SHARE:
        return math.inf
    windows = front_end.windows
    return float(rng.uniform(min(windows.audio_stride_s, windows.audio_window_s), windows.audio_window_s))


class WindowStore:
    """Place of a source's blocks. Their names hold a hash of everything that they depend on."""

    def __init__(self, windows: Windows, base_hash: str, folder: Path, keep_tokens: bool = True) -> None:
        """``base_hash`` identifies the base's weights. Raises UsageError for a stream without kept tokens."""
        self.windows, self.keep_tokens = windows, keep_tokens
        source = windows.source
        if isinstance(source, ClipStream) and not keep_tokens:
            raise UsageError(f"{source.name} can be read once only; set align.keep_tokens=true")
        settings = [base_hash, source.identity, asdict(windows.front_end), windows.seed, FILLING_SHARE, BLOCK]
        self.digest = hashlib.sha256(json.dumps([*settings, keep_tokens]).encode()).hexdigest()[:12]
        self.folder = folder / f"windows-{self.digest}"

    def file(self, number: int) -> Path:
        """Return the file of a block."""
        return block_file(self.folder, number)

    def numbers(self) -> range:
        """Return the numbers of all blocks; of a stream, of those that were read."""
        source = self.windows.source
        if isinstance(source, ClipStream):
            return range(len(list(self.folder.glob("block-*.safetensors"))))
        return range(-(-len(source) // BLOCK))

    def indexes(self, number: int) -> range:
        """Return the clips of a block."""
        assert not isinstance(self.windows.source, ClipStream)
        return range(number * BLOCK, min((number + 1) * BLOCK, len(self.windows.source)))

    def write(self, block: Block) -> None:
        """Write a block, whole or not at all."""
        tensors = {"visual": block.visual, "log_mel": block.log_mel} if self.keep_tokens else {}
        header = {
            "indexes": block.indexes,
            "items": [item.to_json() for item in block.items],
            "damaged": [[clip.name, clip.reason] for clip in block.damaged],
        }
        write_tensors(self.file(block.number), tensors, {"block": json.dumps(header)})

    def read(self, number: int) -> Block:
        """Read a block whose tokens are kept."""
        with safe_open(self.file(number), framework="pt") as opened:
            header = json.loads(opened.metadata()["block"])
            visual, log_mel = opened.get_tensor("visual"), opened.get_tensor("log_mel")
        return Block(
            number,
            tuple(header["indexes"]),
            tuple(_item(line) for line in header["items"]),
            visual,
            log_mel,
            tuple(DamagedClip(*each) for each in header["damaged"]),
        )


def encoded_blocks(
    model: VAEmotionLLM, store: WindowStore, numbers: Sequence[int], workers: int, title: str
) -> Iterator[Block]:
    """Yield these blocks of a source in order: from disk where their tokens are kept, else encoded now.

    Raises UserError when more than ``MOST_DAMAGED`` of the clips cannot be decoded.
    """
    kept = [number for number in numbers if store.keep_tokens and store.file(number).exists()]
    missing = [number for number in numbers if number not in set(kept)]
    indexes = [index for number in missing for index in store.indexes(number)]
    prepared = iter(_loader(store.windows.prepared, indexes, workers))
    with _Tally(title, len(numbers), workers) as tally:
        for number in numbers:
            if number in missing:
                taken = [tally.waited(prepared) for _ in store.indexes(number)]
                block = _encode(model, number, taken)
                store.write(block)
            else:
                block = store.read(number)
            tally.add(block)
            yield block


def encoded_stream(model: VAEmotionLLM, store: WindowStore, title: str) -> Iterator[Block]:
    """Yield the blocks of a stream as it comes; those that an earlier run kept are read past."""
    prepared = store.windows.streamed()
    with _Tally(title, None, 0) as tally:
        for number in itertools.count():
            taken = [each for _ in range(BLOCK) if (each := tally.waited(prepared)) is not None]
            if not taken:
                return
            if store.file(number).exists():
                block = store.read(number)
            else:
                block = _encode(model, number, taken)
                store.write(block)
            tally.add(block)
            yield block


@torch.no_grad()
def _encode(model: VAEmotionLLM, number: int, taken: Sequence[Prepared | DamagedClip]) -> Block:
    """Encode the pictures of decoded windows, one window at a time."""
    model.eval()
    whole = [each for each in taken if isinstance(each, Prepared)]
    front_end = model.config.front_end
    empty = torch.zeros(0, front_end.windows.frames, model.tokens_per_frame, model.width)
    visual = [model.vision(torch.from_numpy(each.pixels).to(model.device)).cpu() for each in whole]
    mels = [torch.from_numpy(each.log_mel) for each in whole]
    shape = (0, front_end.audio_window_frames, front_end.log_mel.n_mels)
    return Block(
        number,
        tuple(each.index for each in whole),
        tuple(each.item for each in whole),
        (torch.stack(visual) if visual else empty).half(),
        (torch.stack(mels) if mels else torch.zeros(shape)).half(),
        tuple(each for each in taken if isinstance(each, DamagedClip)),
    )


def _loader(
    prepared: Callable[[int], Prepared | DamagedClip], indexes: Sequence[int], workers: int
) -> DataLoader[Any]:
    if (
        workers
    ):  # before they start: a fork inherits OpenCV's pool without its threads, and would wait for them
        cv2.setNumThreads(1)
    return DataLoader(
        _Mapped(prepared, indexes),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
    )


class _Mapped(Dataset[Any]):
    def __init__(self, prepared: Callable[[int], Prepared | DamagedClip], indexes: Sequence[int]) -> None:
        self.prepared, self.indexes = prepared, indexes

    def __len__(self) -> int:
        return len(self.indexes)

    def __getitem__(self, place: int) -> Prepared | DamagedClip:
        torch.set_num_threads(1)
        return self.prepared(self.indexes[place])


class _Tally:
    """Progress, clips a second, the share of the time that data was waited for, and the damaged clips."""

    def __init__(self, title: str, blocks: int | None, workers: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        figures = TextColumn("{task.fields[figures]}")
        self.progress = Progress(*columns, TimeRemainingColumn(), figures, console=Terminal(stderr=True))
        self.task = self.progress.add_task(f"{title}, blocks of {BLOCK}", total=blocks, figures="")
        self.began, self.waited_s, self.clips, self.damaged = time.monotonic(), 0.0, 0, 0
        self.workers = workers

    def __enter__(self) -> _Tally:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
        if self.clips:
            tell(f"{self.progress.tasks[0].description}: {self._figures()}", stderr=True)

    def waited(self, prepared: Iterator[Prepared | DamagedClip]) -> Any:
        """Take the next window, None at the end of a stream, and count the time."""
        before = time.monotonic()
        taken = next(prepared, None)
        self.waited_s += time.monotonic() - before
        return taken

    def add(self, block: Block) -> None:
        """Count a block. Raises UserError when too many clips are damaged."""
        self.clips += len(block.indexes) + len(block.damaged)
        self.damaged += len(block.damaged)
        self.progress.update(self.task, advance=1, figures=self._figures())
        if self.clips >= _FEW:
            refuse_damaged(self.clips, self.damaged, block.damaged)

    def _figures(self) -> str:
        passed_s = max(time.monotonic() - self.began, 1e-9)
        rate = f"{self.clips / passed_s:.1f} clips/s, {self.waited_s / passed_s:.0%} waiting for data"
        return f"{rate}, {self.damaged} damaged" if self.damaged else rate


def refuse_damaged(clips: int, damaged: int, examples: Sequence[DamagedClip]) -> None:
    """Raise UserError when more than ``MOST_DAMAGED`` of the clips are damaged."""
    if damaged > MOST_DAMAGED * clips:
        named = "; ".join(f"{clip.name}: {clip.reason}" for clip in examples[:3])
        raise UserError(
            f"{damaged} of {clips} clips cannot be used, more than {MOST_DAMAGED:.0%}; leave them out of the "
            f"manifest or mend them ({named})"
        )


class EncodedWindows:
    """All windows of a store, n of them, read from disk when they are asked for."""

    def __init__(self, store: WindowStore) -> None:
        """Read which windows the blocks hold. Raises UserError when too many clips are damaged."""
        self.store = store
        self.damaged: list[DamagedClip] = []
        self._blocks = OpenBlocks(store.folder)
        self._items: OrderedDict[int, list[Item]] = OrderedDict()
        places = [np.zeros((0, 3), np.int64)]  # each (windows, 3): block, row in it, clip in the source
        for number in store.numbers():
            header = self._header(number)
            indexes = header["indexes"]
            self.damaged += [DamagedClip(*each) for each in header["damaged"]]
            if indexes:
                places.append(np.array([[number, row, i] for row, i in enumerate(indexes)], np.int64))
        self._places = np.concatenate(places)
        refuse_damaged(len(self) + len(self.damaged), len(self.damaged), self.damaged)

    def __len__(self) -> int:
        return len(self._places)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a worker process needs: no items that were read."""
        return {**self.__dict__, "_items": OrderedDict()}

    def item(self, window: int) -> Item:
        """Return the item of a window."""
        number, row, _ = self._places[window].tolist()
        if number not in self._items:
            self._items[number] = [_item(line) for line in self._header(number)["items"]]
            if len(self._items) > _KEPT_ITEMS:
                self._items.popitem(last=False)
        return self._items[number][row]

    def place(self, number: int, row: int) -> int:
        """Return the window in a row of a block."""
        return int(np.searchsorted(self._places[:, 0], number)) + row

    def log_mel(self, window: int) -> Float32:
        """Return the normalized log-mel of a window, (frames, mels)."""
        number, row, index = self._places[window].tolist()
        if not self.store.keep_tokens:
            return self._decoded(index).log_mel
        return self._blocks[number].get_slice("log_mel")[row].float().numpy()

    def pictures(self, window: int, frame_count: int) -> Tensor:
        """Return the newest frames of a window: tokens (frame_count, T, D) float16.

        Where no tokens are kept, pixels (frame_count, 3, side, side) float32.
        """
        number, row, index = self._places[window].tolist()
        if not self.store.keep_tokens:
            return torch.from_numpy(self._decoded(index).pixels[-frame_count:])
        return self._blocks[number].get_slice("visual")[row, -frame_count:]

    def visual_tokens(self, windows: Iterable[int], frame_count: int) -> Tensor:
        """Return the tokens of the newest frames of windows, (B, frame_count · T, D) float32."""
        return torch.stack([self.pictures(window, frame_count) for window in windows]).flatten(1, 2).float()

    def log_mels(self, windows: Iterable[int]) -> Tensor:
        """Return the log-mel of windows, (B, frames, mels) float32."""
        return torch.from_numpy(np.stack([self.log_mel(window) for window in windows]))

    def _decoded(self, index: int) -> Prepared:
        prepared = self.store.windows.prepared(index)
        if isinstance(prepared, DamagedClip):
            raise UserError(f"{prepared.name} could be decoded before, and cannot now: {prepared.reason}")
        return prepared

    def _header(self, number: int) -> dict[str, Any]:
        return json.loads(self._blocks[number].metadata()["block"])


def encode_all(model: VAEmotionLLM, store: WindowStore, workers: int) -> EncodedWindows:
    """Encode the blocks that are missing, this process's share of them, and open all."""
    processes = process_state()
    if isinstance(store.windows.source, ClipStream):
        if processes.is_main_process:
            for _ in encoded_stream(model, store, "windows"):
                pass
    else:
        mine = [n for n in own_share(store.numbers()) if not store.file(n).exists()]
        for _ in encoded_blocks(model, store, mine, workers, "windows"):
            pass
    processes.wait_for_everyone()
    return EncodedWindows(store)


def own_share(numbers: Sequence[int]) -> list[int]:
    """Return the blocks that this process encodes; every process knows the others' without asking."""
    processes = process_state()
    return list(numbers)[processes.process_index :: processes.num_processes]


def _item(line: str) -> Item:
    values: dict[str, Any] = json.loads(line)
    values |= {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return Item(**values)
