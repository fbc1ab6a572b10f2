"""Basic Pitch's published file: its tensors, and a note that it finds."""

import numpy as np
import onnxruntime

from vaemotion.model.towers import basic_pitch
from vaemotion.model.towers.base import NOTES_FILE, Base


def test_a_note_is_found_where_it_sounds(base: Base) -> None:
    session = onnxruntime.InferenceSession(base.checked(NOTES_FILE), providers=["CPUExecutionProvider"])
    assert {o.name: o.shape[1:] for o in session.get_outputs()} == {
        name: [basic_pitch.FRAMES, basic_pitch.CONTOURS if kind == "contours" else basic_pitch.NOTES]
        for name, kind in basic_pitch.OUTPUTS.items()
    }
    time_s = np.arange(basic_pitch.WINDOW_SAMPLES) / basic_pitch.SAMPLE_RATE_HZ
    since = time_s - 0.5
    decaying = np.where(since >= 0, np.exp(-2 * np.maximum(since, 0)), 0)
    # A4 with its harmonics, as a plucked string has them, from 0.5 s on.
    tone = sum(0.3 / k * np.sin(2 * np.pi * 440 * k * time_s) for k in range(1, 6)) * decaying
    found = session.run(
        list(basic_pitch.OUTPUTS), {basic_pitch.INPUT: tone.astype(np.float32)[None, :, None]}
    )
    notes, onsets, _ = (output[0] for output in found)
    assert basic_pitch.FIRST_NOTE_MIDI + notes.mean(0).argmax() == 69
    onset_s = onsets[:, 69 - basic_pitch.FIRST_NOTE_MIDI].argmax() / basic_pitch.FRAMES_PER_S
    assert abs(onset_s - 0.5) <= 0.05
