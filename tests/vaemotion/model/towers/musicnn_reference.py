"""Inputs for musicnn, and the outputs of the published code on them: ``musicnn_reference.npz``.

TensorFlow is no dependency of ours. With Python 3.11, tensorflow-cpu 2.15.1, NumPy 1.26 and librosa 0.9.2 in
an environment of their own, the file is made by

    python -m tests.vaemotion.model.towers.musicnn_reference FOLDER

where FOLDER is the unpacked wheel musicnn 0.1.0.
"""

import sys
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("musicnn_reference.npz")
EACH = 17  # of the log-mel, every 17th frame is kept


def patch() -> np.ndarray:
    """Return an input of the published network that no sound has, (187, 96)."""
    frame, mel = np.arange(187)[:, None], np.arange(96)[None]
    waves = 2.5 + 1.5 * np.sin(frame / 7) * np.cos(mel / 5) + np.sin(frame * mel / 311)
    return waves.astype(np.float32)


def sound() -> np.ndarray:
    """Return 3 s of a trembling tone, a sweep and noise at 16 kHz, (48000,)."""
    t = np.arange(48_000) / 16_000
    tone = 0.3 * np.sin(2 * np.pi * 220 * t) * (1 + np.sin(2 * np.pi * 4 * t)) / 2
    return (tone + 0.1 * np.sin(2 * np.pi * (400 + 300 * t) * t) + 0.02 * np.sin(12345 * t * t)).astype(
        np.float32
    )


def main(folder: str) -> None:
    """Run the published code and write its outputs: of ``patch``, then of ``sound``."""
    import librosa
    import tensorflow as tf

    sys.path.insert(0, folder)
    from musicnn import models

    tf.compat.v1.disable_eager_execution()
    given = tf.compat.v1.placeholder(tf.float32, [None, 187, 96])
    training = tf.compat.v1.placeholder(tf.bool)
    with tf.name_scope("model"):
        logits, *features = models.define_model(given, training, "MSD_musicnn", 50)
    session = tf.compat.v1.Session()
    session.run(tf.compat.v1.global_variables_initializer())
    tf.compat.v1.train.Saver().restore(session, f"{folder}/musicnn/MSD_musicnn/")
    # As the published extractor computes it, without its rounding to float16. In the versions of librosa
    # that it was made with, the ends of a sound were reflected.
    power = librosa.feature.melspectrogram(
        y=sound(), sr=16_000, hop_length=256, n_fft=512, n_mels=96, pad_mode="reflect"
    ).T
    log_mel = np.log10(10_000 * power[:187] + 1)
    mean, most, penultimate = features[5:]
    outputs = session.run(
        [tf.nn.sigmoid(logits), mean, most, penultimate],
        {given: np.stack([patch(), log_mel]), training: False},
    )
    names = ("tags", "mean", "max", "penultimate")
    np.savez_compressed(FILE, log_mel=log_mel[::EACH], **dict(zip(names, outputs, strict=True)))


if __name__ == "__main__":
    main(sys.argv[1])
