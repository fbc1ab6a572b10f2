"""Basic Pitch: notes, onsets and pitch contours of any instrument, run as the ONNX file that is published.

In: ``WINDOW_SAMPLES`` samples at 22.05 kHz. Out: 172 frames of probabilities, 86 a second.

Source: Bittner et al. 2022, "A Lightweight Instrument-Agnostic Model for Polyphonic Note Transcription and
Multipitch Estimation".
"""

from __future__ import annotations

SAMPLE_RATE_HZ = 22_050
HOP_SAMPLES = 256
FRAMES_PER_S = SAMPLE_RATE_HZ // HOP_SAMPLES  # as its authors count them; 86.13 in truth
WINDOW_SAMPLES = 2 * SAMPLE_RATE_HZ - HOP_SAMPLES
FRAMES = 2 * FRAMES_PER_S
NOTES = 88  # keys of a piano; the first is A0
FIRST_NOTE_MIDI = 21
CONTOURS = 3 * NOTES  # bins of a third of a semitone
INPUT = "serving_default_input_2:0"  # (B, WINDOW_SAMPLES, 1) float32, full scale ±1
# Published name → ours. (B, FRAMES, NOTES), (B, FRAMES, NOTES) and (B, FRAMES, CONTOURS), probabilities.
OUTPUTS = {
    "StatefulPartitionedCall:1": "notes",
    "StatefulPartitionedCall:2": "onsets",
    "StatefulPartitionedCall:0": "contours",
}
