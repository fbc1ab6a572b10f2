"""Tokens of rated works, in block files beside the run that several processes write together.

In: rated works with their media. Out: a `TokenReader` of their windows. A block is whole or absent, so that a
killed run goes on with the block that it was at. Works that cannot be decoded are left out and named.

Sizes in the shapes: w windows, F frames, T tokens of a frame, N_a audio tokens, D the language model's width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vaemotion.contract.front_end import FrontEnd
from vaemotion.contract.media.files import MediaError
from vaemotion.data.clips.source import DamagedClip
from vaemotion.model.checkpoint import write_tensors
from vaemotion.model.vaemotion_llm import VAEmotionLLM
from vaemotion.training.block_files import OpenBlocks, block_file
from vaemotion.training.rated_sets import WindowTokens
from vaemotion.training.rated_windows import MOST_VIEWS, STILL, VIEWS, RatedWork, View, views_of

BLOCK = 16  # works in one file
_CHUNK = 32  # frames in one batch


class RatedTokens:
    """A `TokenReader` of rated works: block files that are written once."""

    def __init__(
        self, works: Sequence[RatedWork], model: VAEmotionLLM, weights: str, seed: int, folder: Path
    ) -> None:
        """Nothing is read or written yet. ``weights``: hash of those that tokens depend on.

        ``folder``: where the folder of the blocks lies.
        """
        self.works, self.seed = list(works), seed
        self.front_end, self.n_audio = model.config.front_end, model.audio_pathway.n_tokens
        self.per_frame, self.width = model.tokens_per_frame, model.width
        described = [(work.item.to_json(), work.clips and work.clips.identity, work.index) for work in works]
        settings = [weights, asdict(self.front_end), seed, BLOCK, VIEWS, MOST_VIEWS, described]
        self.digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]
        self.folder = folder / f"rated-{self.digest}"
        self._blocks = OpenBlocks(self.folder)
        self._places = np.zeros((0, 2), np.int64)  # (w, 2) block and row of each window

    @property
    def numbers(self) -> range:
        """Numbers of all blocks."""
        return range(-(-len(self.works) // BLOCK))

    def file(self, number: int) -> Path:
        """Return the file of a block."""
        return block_file(self.folder, number)

    def encode(self, model: VAEmotionLLM, media_root: Path, numbers: Iterable[int], workers: int) -> None:
        """Encode those of these blocks that are not there; ``workers`` processes decode the media."""
        missing = [number for number in numbers if not self.file(number).exists()]
        places = [place for number in missing for place in self._places_of(number)]
        decoded = iter(_loader(_Decoded(self.works, media_root, self.front_end, self.seed, places), workers))
        for number in track(missing, f"{self.works[0].item.source}, blocks of {BLOCK}"):
            self._write(model, number, decoded)

    def _places_of(self, number: int) -> range:
        return range(number * BLOCK, min((number + 1) * BLOCK, len(self.works)))

    def _write(self, model: VAEmotionLLM, number: int, decoded: Iterator[list[View] | DamagedClip]) -> None:
        parts: list[dict[str, Tensor]] = []
        ends_s: list[list[float]] = []
        damaged: list[tuple[str, str]] = []
        for place in self._places_of(number):
            views = next(decoded)
            if isinstance(views, DamagedClip):
                damaged.append((views.name, views.reason))
                views = []
            ends_s.append([view.end_s for view in views])
            if views:
                parts.append(encoded_views(model, views, self.works[place].kind))
        tensors = {name: torch.cat([part[name] for part in parts]) for name in (parts[0] if parts else ())}
        header = json.dumps({"ends_s": ends_s, "damaged": damaged})
        write_tensors(self.file(number), tensors, {"block": header})

    def open(self) -> tuple[list[RatedWork], list[list[float]], list[DamagedClip], list[str]]:
        """Read which windows the blocks hold.

        Returns the works that have windows and the windows' ends, the damaged works, and the ids of works
        that have no window with a label.
        """
        ends_s: list[list[float]] = []
        damaged: list[DamagedClip] = []
        places: list[tuple[int, int]] = []
        for number in self.numbers:
            header = json.loads(self._blocks[number].metadata()["block"])
            ends_s += header["ends_s"]
            damaged += [DamagedClip(*each) for each in header["damaged"]]
            places += [(number, row) for row in range(sum(map(len, header["ends_s"])))]
        self._places = np.array(places, np.int64).reshape(-1, 2)
        names = {clip.name for clip in damaged}
        unlabeled = [
            work.item.id
            for work, ends in zip(self.works, ends_s, strict=True)
            if not ends and work.item.id not in names
        ]
        kept = [(work, ends) for work, ends in zip(self.works, ends_s, strict=True) if ends]
        return [work for work, _ in kept], [ends for _, ends in kept], damaged, unlabeled

    def read(self, windows: Sequence[int]) -> WindowTokens:
        """Read the tokens of these windows."""
        frames, count = self.front_end.windows.frames, len(windows)
        audio = torch.zeros(count, self.n_audio, self.width)
        visual = torch.zeros(count, frames, self.per_frame, self.width)
        age_s = ((frames - 1 - torch.arange(frames)) * self.front_end.windows.frame_spacing_s).repeat(
            count, 1
        )
        held, audio_age_s = torch.zeros(count, dtype=torch.long), torch.zeros(count)
        for place, window in enumerate(windows):
            number, row = self._places[window].tolist()
            block = self._blocks[number]
            names = block.keys()
            if "audio" in names:
                audio[place] = block.get_slice("audio")[row].float()
                audio_age_s[place] = block.get_slice("audio_age_s")[row]
            if "visual" in names:  # (F, T, D), or (1, T, D) for a still, which is in every frame
                visual[place] = block.get_slice("visual")[row].float()
                held[place] = block.get_slice("frames")[row]
            if "frame_age_s" in names:
                age_s[place] = block.get_slice("frame_age_s")[row]
        return WindowTokens(audio, audio_age_s, visual, held, age_s)


class _Decoded(Dataset[Any]):
    """The views of works, decoded in worker processes."""

    def __init__(
        self,
        works: Sequence[RatedWork],
        media_root: Path,
        front_end: FrontEnd,
        seed: int,
        places: Sequence[int],
    ) -> None:
        self.works, self.media_root, self.front_end = works, media_root, front_end
        self.seed, self.places = seed, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> list[View] | DamagedClip:
        place = self.places[number]
        try:
            return views_of(self.works[place], self.media_root, self.front_end, [self.seed, 12, place])
        except MediaError as error:
            return DamagedClip(self.works[place].item.id, str(error))


def _loader(decoded: _Decoded, workers: int) -> DataLoader[Any]:
    if workers:
        # Before they start: a fork inherits OpenCV's pool without its threads, and would wait for them.
        cv2.setNumThreads(1)
    return DataLoader(decoded, batch_size=None, num_workers=workers, prefetch_factor=2 if workers else None)


@torch.no_grad()
def encoded_views(model: VAEmotionLLM, views: Sequence[View], kind: str) -> dict[str, Tensor]:
    """Encode the w views of a work, as a block holds them.

    ``audio`` (w, N_a, D) float16 and ``audio_age_s`` (w,) where they have sound; ``visual`` (w, F, T, D)
    float16, ``frames`` (w,) and ``frame_age_s`` (w, F) where they have pictures; of a still (w, 1, T, D)
    without ages.
    """
    encoded: dict[str, Tensor] = {}
    if len(views[0].log_mel):
        log_mel = torch.from_numpy(np.concatenate([view.log_mel for view in views]))
        encoded["audio"] = model.audio_pathway(log_mel.to(model.device)).half().cpu()
        encoded["audio_age_s"] = torch.tensor([view.audio_age_s for view in views])
    if not len(views[0].pixels):
        return encoded
    pixels = torch.from_numpy(np.concatenate([view.pixels for view in views]))
    tokens = torch.cat([model.vision(chunk.to(model.device)) for chunk in pixels.split(_CHUNK)]).half().cpu()
    counts = [len(view.pixels) for view in views]
    frames = model.config.front_end.windows.frames
    encoded["frames"] = torch.tensor([frames] * len(views) if kind == STILL else counts)
    if kind == STILL:
        encoded["visual"] = tokens[:, None]
        return encoded
    # The oldest frame stands for those before it, which the mask leaves out.
    padded = [torch.cat([t[:1].expand(frames - len(t), -1, -1), t]) for t in tokens.split(counts)]
    encoded["visual"] = torch.stack(padded)
    ages_s = [np.pad(view.frame_ages_s, (frames - len(view.frame_ages_s), 0), mode="edge") for view in views]
    encoded["frame_age_s"] = torch.from_numpy(np.stack(ages_s))
    return encoded
