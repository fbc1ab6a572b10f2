"""Perception: new pictures and sound become tokens, once, and the cached tokens become a reading.

A pure step, without threads and without a clock: what comes in is stamped, what goes out depends on nothing else. Pictures lie on the
grid of ``frame_hop_s`` and are encoded when they enter it; log-mel is computed incrementally; the audio encoder runs once per
``audio_stride_s`` on the newest window. Of a whole clip this gives what ``Predictor.encode(window_at(...))`` gives. ``see``, ``hear`` and ``read`` compute
at once; who can wait prepares several, has them encoded in one batch, puts the tokens in with ``restore_picture`` and ``restore_sound``, and has the windows read in one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from runtime.messages import Picture, Reading, Sound
from runtime.predictor import DevicePredictor, Tokens
from runtime.recording import FeatureRecorder
from runtime.stage_times import StageTimes
from vaemotion.contract.audio import StreamingWindow
from vaemotion.contract.confidence import Confidence, apply
from vaemotion.contract.emotions import EMOTIONS
from vaemotion.contract.image import prepare_frame
from vaemotion.contract.prediction import Affect
from vaemotion.contract.windows import window_frame_indices

Float32 = npt.NDArray[np.float32]

_INPUTS = {"vision_encoder": "pixels", "audio_encoder": "log_mel"}
STALE_S = 1.0  # evidence that is older does not count as seen or heard now


@dataclass(frozen=True)
class Evidence:
    """A reading with the tokens behind it: ``enhanced`` for narration and emotion questions, ``plain`` for content."""

    reading: Reading
    plain: Tokens
    enhanced: Tokens


@dataclass(frozen=True)
class Window:
    """What is seen and heard at ``now_s``, and how old the newest of it is; None where the path lacks it."""

    now_s: float
    path: str
    tokens: Tokens
    visual_age_s: float | None
    audio_age_s: float | None

    def reading(self, affect: Affect) -> Reading:
        return Reading(
            time_s=round(self.now_s, 6),
            valence=round(affect.valence, 6),
            arousal=round(affect.arousal, 6),
            valence_sd=round(affect.valence_sd, 6),
            arousal_sd=round(affect.arousal_sd, 6),
            emotions=_by_name(affect.emotions),
            path=self.path,
            visual_age_s=None if self.visual_age_s is None else round(self.visual_age_s, 3),
            audio_age_s=None if self.audio_age_s is None else round(self.audio_age_s, 3),
        )


class Perception:
    """The encoders' and the EmoAdapter's state over one stream. Times are seconds since its start, ascending."""

    def __init__(self, predictor: DevicePredictor, recorder: FeatureRecorder | None = None) -> None:
        """``recorder``: is told all that a reading depends on."""
        self.predictor = predictor
        self._recorder = recorder
        self.times = StageTimes()
        self.encodes = {"vision_encoder": 0, "audio_encoder": 0}
        self._front_end = predictor.constants.front_end
        self._sound = self._empty_window()
        self._listened_s = 0.0  # end of the sound that was taken in
        self._audio: Float32 = np.zeros((0, predictor.constants.token_width), np.float32)
        self._heard_s = 0.0  # end of the sound in the audio tokens
        self._pictures: dict[int, Float32] = {}  # grid point → tokens (T, D)
        self._taken_s: float | None = None  # when the newest picture was taken, where a camera told

    def listen(self, sound: Sound) -> None:
        """Take a block of sound in; nothing is encoded yet. A hole before it is not filled: ``forget_sound`` then."""
        self._listened_s = sound.time_s
        with self.times.measure("log-mel"):
            self._sound.push(sound.samples)

    def hear(self) -> None:
        """Encode the newest window of sound."""
        heard_s, log_mel = self.newest_window()
        self.restore_sound(heard_s, self.encode("audio_encoder", [log_mel])[0])

    def newest_window(self) -> tuple[float, Float32]:
        """The newest window of sound, (frames, mels) as the audio encoder reads it, and when it ends. A view: the next ``listen`` changes it."""
        return self._listened_s, self._sound.newest

    def restore_sound(self, heard_s: float, tokens: Float32) -> None:
        """Take the tokens (N, D) of a window of sound that ended at ``heard_s``."""
        self._audio, self._heard_s = tokens, heard_s
        if self._recorder is not None:
            self._recorder.sound(heard_s, tokens)

    def forget_sound(self) -> None:
        """The microphone was reopened: what comes now does not go on from what was there."""
        if self._recorder is not None and len(self._audio):
            self._recorder.forget("sound")
        self._sound, self._audio = self._empty_window(), self._audio[:0]

    def _empty_window(self) -> StreamingWindow:
        return StreamingWindow(self._front_end.audio_window_frames, self._front_end.log_mel)

    @property
    def newest_s(self) -> float:
        """Time of the newest evidence that a live device gave."""
        return max(self._taken_s or 0.0, self._heard_s)

    def see(self, picture: Picture, index: int, taken_s: float | None = None) -> None:
        """Encode the picture of grid point ``index``: (H, W, 3) uint8 RGB. ``taken_s``: when a camera took it."""
        self.restore_picture(index, self.encode("vision_encoder", [self.prepare(picture)])[0], taken_s)

    def prepare(self, picture: Picture) -> Float32:
        """(H, W, 3) uint8 RGB → (3, S, S) as the vision encoder reads it."""
        with self.times.measure("prepare picture"):
            return prepare_frame(picture, self._front_end.image)

    def encode(self, role: str, inputs: Sequence[Float32]) -> list[Float32]:
        """Pictures or windows of sound → the tokens of each, all in one batch. ``role``: "vision_encoder" or "audio_encoder"."""
        if not inputs:
            return []
        with self.times.measure(role, len(inputs)):
            batch = inputs[0][None] if len(inputs) == 1 else np.stack(inputs)
            tokens = self.predictor.engines[role].run({_INPUTS[role]: batch})["tokens"]
        self.encodes[role] += len(inputs)
        return list(tokens)

    def restore_picture(self, index: int, tokens: Float32, taken_s: float | None = None) -> None:
        """Take the tokens (T, D) of the picture of grid point ``index``."""
        self._pictures[index] = tokens
        self._taken_s = taken_s
        self._keep_window(index)
        if self._recorder is not None:
            self._recorder.picture(index, tokens, taken_s)

    def still(self, index: int) -> None:
        """At grid point ``index`` the newest picture is still the newest: its tokens are not computed again."""
        if self._pictures:
            self._pictures[index] = self._pictures[max(self._pictures)]
            self._keep_window(index)
            if self._recorder is not None:
                self._recorder.still(index)

    def forget_pictures(self) -> None:
        """The camera was lost or froze: what it gave is not seen now."""
        if self._recorder is not None and self._pictures:
            self._recorder.forget("pictures")
        self._pictures.clear()

    def _keep_window(self, index: int) -> None:
        windows = self._front_end.windows
        oldest = index - (windows.frames - 1) * windows.hops_per_spacing
        self._pictures = {i: tokens for i, tokens in self._pictures.items() if i >= oldest}

    def read(self, now_s: float) -> Evidence | None:
        """What the newest tokens express at ``now_s``; None when nothing was seen or heard lately."""
        window = self.window(now_s)
        return None if window is None else self.read_all([window])[0]

    def window(self, now_s: float) -> Window | None:
        """What ``read`` reads; ``read_all`` reads several windows in one batch."""
        if self._recorder is not None:
            self._recorder.read(now_s)
        tokens, path = self._tokens(now_s)
        if path is None:
            return None
        visual_age_s = None
        if len(tokens.visual):
            visual_age_s = (
                float(tokens.frame_ages_s[-1]) if self._taken_s is None else max(0.0, now_s - self._taken_s)
            )
        return Window(now_s, path, tokens, visual_age_s, tokens.audio_age_s if len(tokens.audio) else None)

    def read_all(self, windows: Sequence[Window]) -> list[Evidence]:
        """What each window expresses."""
        if not windows:
            return []
        with self.times.measure("emo_adapter", len(windows)):
            adapted = self.predictor.adapt_all([window.tokens for window in windows])
        return [
            Evidence(
                with_confidence(window.reading(affect), affect, self.predictor.confidence),
                window.tokens,
                enhanced,
            )
            for window, (affect, enhanced) in zip(windows, adapted, strict=True)
        ]

    def _tokens(self, now_s: float) -> tuple[Tokens, str | None]:
        constants, windows = self.predictor.constants, self._front_end.windows
        visual = np.zeros((0, constants.tokens_per_frame, constants.token_width), np.float32)
        ages_s, audio, audio_age_s = np.zeros(0, np.float32), self._audio[:0], 0.0
        newest = max(self._pictures, default=None)
        if newest is not None and now_s - newest * windows.frame_hop_s <= STALE_S:
            # a grid point that was missed is left out, as those before the stream's start are
            shown = [i for i in window_frame_indices(newest, windows) if i in self._pictures]
            visual = np.stack([self._pictures[i] for i in shown])
            ages_s = np.array([max(0.0, now_s - i * windows.frame_hop_s) for i in shown], np.float32)
        if len(self._audio) and now_s - self._heard_s <= STALE_S:
            audio, audio_age_s = self._audio, max(0.0, now_s - self._heard_s)
        path = {(True, True): "audio-visual", (True, False): "visual", (False, True): "audio"}.get(
            (len(visual) > 0, len(audio) > 0)
        )
        return Tokens(visual, ages_s, audio, audio_age_s), path


def with_confidence(reading: Reading, affect: Affect, confidence: Confidence | None) -> Reading:
    """The reading of ``affect`` with calibrated emotions and its intervals; as it is where the bundle has no calibration for its path."""
    calibrated = None if confidence is None else apply(confidence, reading.path, affect)
    if calibrated is None:
        return reading
    return replace(
        reading,
        emotions=_by_name(calibrated.emotions),
        confidence=round(calibrated.confidence, 4),
        valence_interval=round(calibrated.valence_interval, 6),
        arousal_interval=round(calibrated.arousal_interval, 6),
    )


def _by_name(emotions: Float32) -> dict[str, float]:
    return {name: round(float(share), 4) for name, share in zip(EMOTIONS, emotions, strict=True)}
