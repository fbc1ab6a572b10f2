"""Text as a language model's own material: importance of its channels, and the loss of a smaller file.

In: a GGUF file in F32 or F16 and a text in UTF-8. Out: windows of token ids, of which some weigh the rounding
errors and others, held out, judge the result as stock llama.cpp runs it: token ids in, the embedding table of
the judged file itself.
"""

import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from calibration.importance import ChannelImportance, collect_importance
from export.gguf.quality import KlReport, kl_and_top1
from runtime.engines.llama import LlamaSession, tokenize
from vaemotion.contract.errors import UsageError

SHIPPED_TEXT = Path(__file__).with_name("plain_english.txt")
"""About 4,000 words: descriptions of pictures and sounds, answers, stories, facts, a little code."""

WINDOW_TOKENS = 256
HELD_OUT_EVERY = 4  # every fourth window judges
MOST_WINDOWS = 64
LARGEST_TEXT_BYTES = 64 * 2**20

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TextWindows:
    """Windows of token ids, at most `WINDOW_TOKENS` each."""

    calibration: list[list[int]]
    """They weigh the rounding errors."""
    held_out: list[list[int]]
    """They judge the result."""


def text_windows(model: Path, text: Path, context_tokens: int) -> TextWindows:
    """Cut a text file into windows of tokens; at most `MOST_WINDOWS`, spread evenly over the file.

    `context_tokens`: the length that the model was trained for. Raises UsageError for a file that is no text,
    or too short to judge anything.
    """
    start = tokenize(model, [""])[0]  # what the vocabulary puts before every text
    ids = tokenize(model, [_read(text)])[0][len(start) :]
    length = min(WINDOW_TOKENS, context_tokens) - len(start)
    windows = [start + ids[first : first + length] for first in range(0, len(ids), length)]
    if len(windows) > 1 and len(windows[-1]) < len(windows[0]):
        del windows[-1]
    if len(windows) < HELD_OUT_EVERY:
        raise UsageError(
            f"--text {text}: {len(ids)} tokens are too few to weigh and to judge, {HELD_OUT_EVERY * length} "
            "are needed; give a longer text, or leave the option out"
        )
    spread = np.linspace(0, len(windows) - 1, min(len(windows), MOST_WINDOWS)).astype(int)
    chosen = [windows[i] for i in spread]
    held_out = chosen[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    return TextWindows([window for window in chosen if window not in held_out], held_out)


def text_importance(
    model: Path, windows: Sequence[Sequence[int]], *, threads: int = 2
) -> dict[str, ChannelImportance]:
    """Run windows of token ids through an F32 or F16 file; see `calibration.importance`."""
    return collect_importance(model, [token_rows(model, ids) for ids in windows], threads=threads)


class TextJudge:
    """Divergence of files of one model from its reference file, on windows of token ids.

    The reference is run once. Its logits lie in a file without a name, (n, vocab) float32.
    """

    def __init__(self, reference: Path, windows: Sequence[Sequence[int]], *, threads: int = 2) -> None:
        """Run the reference; raises LanguageModelError for a window that does not fit the model."""
        self._windows, self._threads = windows, threads
        self._reference = self._logits(reference)

    def __call__(self, path: Path) -> KlReport:
        """Compare every next-token distribution of `path` with the reference's."""
        return kl_and_top1(self._reference, self._logits(path))

    def _logits(self, path: Path) -> Floats:
        session = LlamaSession(
            path,
            context_tokens=max(map(len, self._windows)),
            batch_tokens=WINDOW_TOKENS,
            threads=self._threads,
            max_branches=1,
            f32_kv=True,
        )
        with contextlib.closing(session), tempfile.TemporaryFile() as file:
            shape = (sum(map(len, self._windows)), session.vocab_size)
            logits = np.memmap(file, np.float32, "w+", shape=shape)
            position = 0
            for ids in self._windows:
                session.start()
                session.append(token_rows(path, ids), "all")
                for row in range(len(ids)):
                    logits[position] = session.logits_row(row)
                    position += 1
                session.trim(0)
            return logits


def token_rows(path: Path, ids: Sequence[int]) -> Floats:
    """Look token ids up in a GGUF file's own embedding table: (n,) to (n, D)."""
    table: Any = next(t for t in gguf.GGUFReader(path).tensors if t.name == "token_embd.weight")
    return gguf.quants.dequantize(table.data[list(ids)], table.tensor_type).astype(np.float32, copy=False)


def _read(text: Path) -> str:
    try:
        if (size := text.stat().st_size) > LARGEST_TEXT_BYTES:
            raise UsageError(
                f"--text {text}: {size / 1e6:,.0f} MB of text; at most {LARGEST_TEXT_BYTES / 1e6:.0f} MB are "
                "read, give a part of it"
            )
        return text.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"--text {text}: not a text in UTF-8 ({error}); give a plain text file") from error
    except OSError as error:
        raise UsageError(
            f"--text {text}: cannot be read ({error.strerror}); give a plain text file"
        ) from error
