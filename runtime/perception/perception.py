"""Perception: new frames and sound are encoded once, and the cached tokens give a reading.

A pure step, without threads and without a clock: inputs are stamped, and the output depends on nothing
else. Frames lie on the grid of ``frame_hop_s`` and are encoded when they enter it. Log-mel is computed
incrementally, and the audio encoder runs once per ``audio_stride_s`` on the newest window. Over a whole
clip this gives what ``Predictor.encode(window_at(...))`` gives. A window that holds less sound than
``Predictor.least_sound_s`` is mostly padding. It is not heard, unless the sound has ended.

What is not finite is no evidence: samples become silence, tokens are dropped as if nothing had been encoded,
and a reading is left out. All of it is counted (``lost``) and told (``step``).

``encode_frame``, ``encode_sound`` and ``read`` compute at once. A caller that can wait prepares several
ticks, encodes them in one batch with ``encode``, adds the tokens with ``add_frame_tokens`` and
``add_audio_tokens``, and reads the windows in one batch with ``read_all``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from runtime.losses import Losses, reason_of
from runtime.messages import NotFinite, Picture, Reading, Sound
from runtime.perception.encoder_memory import ENCODER_INPUTS
from runtime.perception.finite import NOT_FINITE, FiniteResults
from runtime.perception.predictor import DevicePredictor, Tokens
from runtime.perception.recorder import FeatureRecorder, as_recorded
from runtime.stage_times import StageTimes
from vaemotion.contract.address import without_secrets
from vaemotion.contract.audio import StreamingWindow
from vaemotion.contract.confidence import Confidence, apply
from vaemotion.contract.image import prepare_frame
from vaemotion.contract.prediction import Affect
from vaemotion.contract.windows import EPSILON_S, window_frame_indices

Float32 = npt.NDArray[np.float32]

STALE_S = 1.0  # evidence that is older is left out of a reading


@dataclass(frozen=True)
class Evidence:
    """A reading with the tokens behind it.

    ``plain`` answers questions about content; ``enhanced`` gives narrations and answers about emotion.
    """

    reading: Reading
    plain: Tokens
    enhanced: Tokens


@dataclass(frozen=True)
class SoundWindow:
    """The newest window of sound: its end, the seconds of sound in it, and its log-mel (frames, mels).

    The rest of the log-mel is padding. It is normalized for the audio encoder.
    """

    end_s: float
    sound_s: float
    log_mel: Float32


@dataclass(frozen=True)
class Window:
    """The tokens in the window that ends at ``now_s``.

    ``path``: "audio", "visual" or "audio-visual". ``visual_age_s``, ``audio_age_s``: age of the newest
    evidence, None where the path lacks that modality.
    """

    now_s: float
    path: str
    tokens: Tokens
    visual_age_s: float | None
    audio_age_s: float | None

    def reading(self, affect: Affect, emotions: Sequence[str]) -> Reading:
        """Return the reading of this window with ``affect``, rounded as timelines hold it.

        ``emotions``: the names of its shares.
        """
        return Reading(
            time_s=round(self.now_s, 6),
            valence=round(affect.valence, 6),
            arousal=round(affect.arousal, 6),
            valence_sd=round(affect.valence_sd, 6),
            arousal_sd=round(affect.arousal_sd, 6),
            emotions=_by_name(affect.emotions, emotions),
            path=self.path,
            visual_age_s=None if self.visual_age_s is None else round(self.visual_age_s, 3),
            audio_age_s=None if self.audio_age_s is None else round(self.audio_age_s, 3),
        )


class Perception:
    """State of the encoders and the EmoAdapter over one stream.

    Times are seconds since the stream's start and must ascend.
    """

    def __init__(self, predictor: DevicePredictor, recorder: FeatureRecorder | None = None) -> None:
        """Start with nothing encoded.

        ``recorder`` receives everything that a reading depends on. Readings then rest on the tokens as it
        rounds them (``as_recorded``), so that a replay gives the same ones.
        """
        self.predictor = predictor
        self._recorder = recorder
        self.times = StageTimes()
        self.encodes = {"vision_encoder": 0, "audio_encoder": 0}
        self._front_end = predictor.constants.front_end
        self._log_mel = self._empty_log_mel()
        self._log_mel_end_s = 0.0  # end of the sound that was pushed
        self._audio: Float32 = np.zeros((0, predictor.constants.token_width), np.float32)
        self._audio_end_s = self._audio_sound_s = 0.0  # end and seconds of the sound in the audio tokens
        self._frames: dict[int, Float32] = {}  # grid point → tokens (T, D)
        self._taken_s: float | None = None  # time at which a camera took the newest frame, if one did
        self.lacks_newest_frame = False  # the newest frame's tokens were not finite
        self._results = FiniteResults(predictor.engines)
        self._samples = Losses("samples of sound")
        self._unusable = Losses("camera frames")

    def push_sound(self, sound: Sound) -> None:
        """Add a block of sound to the log-mel window, without encoding it.

        A gap before the block is not filled: call ``forget_sound`` first.
        """
        self._log_mel_end_s = sound.time_s
        samples = sound.samples
        is_finite = np.isfinite(samples)
        broken = sound.broken + int(np.count_nonzero(~is_finite))
        if broken:
            self._samples.add(NOT_FINITE, broken)
            samples = np.where(is_finite, samples, np.float32(0))
        else:
            self._samples.end()
        with self.times.measure("log-mel"):
            self._log_mel.push(samples)

    def encode_sound(self, sound_end_s: float | None = None) -> None:
        """Encode the newest window of sound, if there is enough of it (see ``newest_sound_window``)."""
        window = self.newest_sound_window(sound_end_s)
        if window is not None:
            [tokens] = self.encode("audio_encoder", [window.log_mel])
            if tokens is not None:
                self.add_audio_tokens(window.end_s, tokens, window.sound_s)

    def newest_sound_window(self, sound_end_s: float | None = None) -> SoundWindow | None:
        """Return the newest window of sound, None where it holds too little sound to be heard.

        ``sound_end_s``: end of a file's sound, None while it goes on or where it is not known. A sound that
        was pushed to its end is heard however short it is. The log-mel is a view that the next
        ``push_sound`` changes.
        """
        n_samples, config = self._log_mel.n_samples, self._front_end.log_mel
        sound_s = self._front_end.held_sound_s(n_samples)
        is_whole = sound_end_s is not None and self._log_mel_end_s >= sound_end_s - EPSILON_S
        is_enough = sound_s >= self.predictor.least_sound_s - EPSILON_S
        if not is_enough and not (is_whole and config.frames_in(n_samples)):
            return None
        return SoundWindow(self._log_mel_end_s, sound_s, self._log_mel.newest)

    def add_audio_tokens(self, end_s: float, tokens: Float32, sound_s: float) -> None:
        """Replace the audio tokens by those (N, D) of a window of sound that ended at ``end_s``.

        ``sound_s``: seconds of sound in that window.
        """
        if self._recorder is not None:
            tokens = as_recorded(tokens)
        self._audio, self._audio_end_s, self._audio_sound_s = tokens, end_s, sound_s
        if self._recorder is not None:
            self._recorder.add_audio_tokens(end_s, tokens, sound_s)

    def forget_sound(self) -> None:
        """Drop all sound and its tokens, after the microphone was lost or reopened."""
        if self._recorder is not None and len(self._audio):
            self._recorder.forget("sound")
        self._log_mel, self._audio = self._empty_log_mel(), self._audio[:0]

    def _empty_log_mel(self) -> StreamingWindow:
        front_end = self._front_end
        return StreamingWindow(front_end.audio_window_frames, front_end.log_mel, front_end.sound_padding)

    @property
    def newest_s(self) -> float:
        """Time of the newest evidence that a live device gave."""
        return max(self._taken_s or 0.0, self._audio_end_s)

    def encode_frame(self, rgb: Picture, index: int, taken_s: float | None = None) -> None:
        """Encode the frame of grid point ``index``, (H, W, 3) uint8 RGB.

        ``taken_s``: time at which a camera took it, None for a file.
        """
        [tokens] = self.encode("vision_encoder", [self.prepare(rgb)])
        self.add_frame_tokens(index, tokens, taken_s)

    def prepare(self, rgb: Picture) -> Float32:
        """Convert a frame (H, W, 3) uint8 RGB to the vision encoder's input (3, S, S)."""
        with self.times.measure("prepare picture"):
            prepared = prepare_frame(rgb, self._front_end.image)
        self._unusable.end()
        return prepared

    def lose_frame(self, error: Exception) -> None:
        """Count a live frame that could not be converted or prepared."""
        self._unusable.add(reason_of(error, without_secrets))

    def encode(self, role: str, inputs: Sequence[Float32]) -> list[Float32 | None]:
        """Encode frames (3, S, S) or windows of log-mel (frames, mels) in one batch.

        ``role``: "vision_encoder" or "audio_encoder". Returns the tokens of each input, (T, D) or (N, D);
        None for tokens that are not finite.
        """
        if not inputs:
            return []
        with self.times.measure(role, len(inputs)):
            batch = inputs[0][None] if len(inputs) == 1 else np.stack(inputs)
            tokens = self.predictor.engines[role].run({ENCODER_INPUTS[role]: batch})["tokens"]
        self.encodes[role] += len(inputs)
        return [each if self._results.are_finite(role, each) else None for each in tokens]

    def add_frame_tokens(self, index: int, tokens: Float32 | None, taken_s: float | None = None) -> None:
        """Add the tokens (T, D) of the frame of grid point ``index``. ``taken_s``: see ``encode_frame``.

        ``tokens``: as ``encode`` returns them. With None the grid point stays empty, and so does every one at
        which this frame is repeated.
        """
        self.lacks_newest_frame = tokens is None
        if tokens is None:
            return
        if self._recorder is not None:
            tokens = as_recorded(tokens)
        self._frames[index] = tokens
        self._taken_s = taken_s
        self._trim_frames(index)
        if self._recorder is not None:
            self._recorder.add_frame_tokens(index, tokens, taken_s)

    def repeat_frame(self, index: int) -> None:
        """Use the newest frame's tokens at grid point ``index``, because no newer frame came."""
        if self._frames and not self.lacks_newest_frame:
            self._frames[index] = self._frames[max(self._frames)]
            self._trim_frames(index)
            if self._recorder is not None:
                self._recorder.repeat_frame(index)

    def forget_frames(self) -> None:
        """Drop all frames' tokens, after the camera was lost or froze."""
        if self._recorder is not None and self._frames:
            self._recorder.forget("pictures")
        self._frames.clear()

    def _trim_frames(self, index: int) -> None:
        """Drop frames that no window from grid point ``index`` on contains."""
        windows = self._front_end.windows
        oldest = index - (windows.frames - 1) * windows.hops_per_spacing
        self._frames = {i: tokens for i, tokens in self._frames.items() if i >= oldest}

    def read(self, now_s: float) -> Evidence | None:
        """Read the newest tokens at ``now_s``.

        Returns None without evidence of the last ``STALE_S`` seconds, and for a reading that is not finite.
        """
        window = self.window(now_s)
        return None if window is None else self.read_all([window])[0]

    def window(self, now_s: float) -> Window | None:
        """Return the window that ``read`` reads at ``now_s``, or None without recent evidence."""
        if self._recorder is not None:
            if self._recorder.needs_state():
                audio = (self._audio_end_s, self._audio, self._audio_sound_s)
                self._recorder.begin(self._frames, self._taken_s, audio if len(self._audio) else None)
            self._recorder.read(now_s)
        tokens = self._tokens(now_s)
        path = tokens.path
        if path is None:
            return None
        visual_age_s = None
        if len(tokens.visual):
            visual_age_s = (
                float(tokens.frame_ages_s[-1]) if self._taken_s is None else max(0.0, now_s - self._taken_s)
            )
        return Window(now_s, path, tokens, visual_age_s, tokens.audio_age_s if len(tokens.audio) else None)

    def read_all(self, windows: Sequence[Window]) -> list[Evidence | None]:
        """Run the EmoAdapter on all windows in one batch.

        Returns the evidence of each window, None where the result is not finite.
        """
        if not windows:
            return []
        with self.times.measure("emo_adapter", len(windows)):
            adapted = self.predictor.adapt_all([window.tokens for window in windows])
        return [
            self._evidence(window, affect, enhanced)
            for window, (affect, enhanced) in zip(windows, adapted, strict=True)
        ]

    def _evidence(self, window: Window, affect: Affect, enhanced: Tokens) -> Evidence | None:
        predictor = self.predictor
        try:
            reading = with_confidence(
                window.reading(affect, predictor.constants.emotions),
                affect,
                predictor.confidence,
                window.tokens.sound_s,
            )
        except NotFinite:
            self._results.lose("emo_adapter")
            return None
        if not self._results.are_finite("emo_adapter", enhanced.visual, enhanced.audio):
            return None
        return Evidence(reading, window.tokens, enhanced)

    @property
    def lost(self) -> dict[str, int]:
        """Counts by kind of lost input, of results not finite and of readings not recorded, without zeros."""
        counts = {
            "samples of sound": self._samples.count,
            "camera frames": self._unusable.count,
            **self._results.lost,
        }
        if self._recorder is not None:
            counts["recorded readings"] = self._recorder.losses.count
        return {kind: count for kind, count in counts.items() if count}

    def step(self, now_s: float) -> list[str]:
        """Try other engines where nothing is finite; return what is due to be told. Call it once a tick."""
        sentences = [self._samples.sentence(now_s), self._unusable.sentence(now_s)]
        if self._recorder is not None:
            sentences.append(self._recorder.losses.sentence(now_s))
        return [sentence for sentence in sentences if sentence] + self._results.step(now_s)

    def _tokens(self, now_s: float) -> Tokens:
        """Return the window's tokens, without those that are not recent."""
        constants, windows = self.predictor.constants, self._front_end.windows
        visual = np.zeros((0, constants.tokens_per_frame, constants.token_width), np.float32)
        ages_s, audio = np.zeros(0, np.float32), self._audio[:0]
        audio_age_s, sound_s = 0.0, math.inf
        newest = max(self._frames, default=None)
        if newest is not None and now_s - newest * windows.frame_hop_s <= STALE_S:
            # a grid point that was missed is left out, as those before the stream's start are
            shown = [i for i in window_frame_indices(newest, windows) if i in self._frames]
            visual = np.stack([self._frames[i] for i in shown])  # (n, T, D)
            ages_s = np.array([max(0.0, now_s - i * windows.frame_hop_s) for i in shown], np.float32)
        if len(self._audio) and now_s - self._audio_end_s <= STALE_S:
            audio, audio_age_s = self._audio, max(0.0, now_s - self._audio_end_s)
            sound_s = self._audio_sound_s
        return Tokens(visual, ages_s, audio, audio_age_s, sound_s)


def with_confidence(
    reading: Reading, affect: Affect, confidence: Confidence | None, sound_s: float
) -> Reading:
    """Add calibrated emotions, confidence and intervals to the reading of ``affect``.

    ``sound_s``: seconds of sound in its window. Returns the reading unchanged where the bundle has no
    calibration for its path.
    """
    calibrated = None if confidence is None else apply(confidence, reading.path, affect, sound_s)
    if calibrated is None:
        return reading
    return replace(
        reading,
        emotions=_by_name(calibrated.emotions, tuple(reading.emotions)),
        confidence=round(calibrated.confidence, 4),
        valence_interval=round(calibrated.valence_interval, 6),
        arousal_interval=round(calibrated.arousal_interval, 6),
    )


def _by_name(shares: Float32, names: Sequence[str]) -> dict[str, float]:
    return {name: round(float(share), 4) for name, share in zip(names, shares, strict=True)}
