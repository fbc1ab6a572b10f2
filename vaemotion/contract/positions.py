"""Places of the rows of a sequence, for decoders that put pictures in two dimensions.

Most decoders count rows. M-RoPE gives each row three coordinates (time, height, width): those of text are
equal, the tokens of a picture share its time and differ in height and width, and what follows goes on behind
the larger of its sides. A place says this of one row without its neighbors: offsets in height and width, and
how far the sequence goes on behind the row. Places stand beside the embeddings of rows, so that rows can be
joined in any order. Source: Wang et al. 2024, "Qwen2-VL", arXiv 2409.12191.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

PLACE_COLUMNS = 3  # offset in height, offset in width, advance

Places = npt.NDArray[np.float32]  # (n, PLACE_COLUMNS), whole numbers
Positions = npt.NDArray[np.int64]  # (n, 3): time, height, width


@dataclass(frozen=True)
class PictureGrid:
    """Rows and columns of a picture's tokens, which stand row by row. Raises ValueError without any."""

    rows: int
    columns: int

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1:
            raise ValueError(f"a picture needs rows and columns, got {self.rows} × {self.columns}")

    @property
    def tokens(self) -> int:
        """Number of the picture's tokens."""
        return self.rows * self.columns

    def places(self) -> Places:
        """Return the places of the picture's tokens."""
        places = np.zeros((self.tokens, PLACE_COLUMNS), np.float32)
        places[:, 0], places[:, 1] = np.divmod(np.arange(self.tokens), self.columns)
        places[-1, 2] = max(self.rows, self.columns)
        return places


def text_places(count: int) -> Places:
    """Return the places of text and sound tokens, which follow each other."""
    return np.tile(np.array([0, 0, 1], np.float32), (count, 1))


def positions_of(places: Places, start: int = 0) -> Positions:
    """Place rows one behind the other, (n, 3). ``start``: position of the first row."""
    advances = places[:, 2].astype(np.int64)
    begins = start + np.cumsum(advances) - advances  # (n,)
    offsets = np.column_stack([np.zeros(len(places)), places[:, :2]]).astype(np.int64)
    return begins[:, None] + offsets


def advance_of(places: Places) -> int:
    """Return how far the sequence goes on behind these rows."""
    return int(places[:, 2].sum())
