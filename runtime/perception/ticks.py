"""Ticks: take in what a feed delivers until something is due, encode it, and read it.

At each tick the newest frame and the newest window of sound become tokens, and the window of tokens becomes a
reading. A live run has one tick at a time. At full pace several ticks of a file are encoded and read in one
batch, which uses cores and GPUs better; on a processor the engines give the same bits whatever the batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from runtime.clock import Clock
from runtime.engines.cache import BatchProfile
from runtime.machine.stop import Stop
from runtime.messages import Frame, Message, Notice, Picture
from runtime.perception.perception import Evidence, Perception, SoundWindow, Window
from runtime.perception.schedule import Due, Schedule
from runtime.show.controls import ControlState
from runtime.show.status import Progress
from runtime.sinks.publisher import Publisher
from runtime.sources.feed import Arrived, Feed
from vaemotion.contract.bundle import Component
from vaemotion.contract.windows import WindowConfig

Float32 = npt.NDArray[np.float32]

# Ticks in one batch at full pace: a TensorRT engine takes no more.
BATCH_TICKS = BatchProfile().maximum
# Share of the available memory that the intermediate results of a batch may take.
BATCH_MEMORY_SHARE = 0.5
# Memory of intermediate results over what a bundle states; measured: 1.0 to 1.06 (export.engine_memory).
ACTIVATION_COPIES = 1.05
# Between two notices of skipped ticks.
COMPLAINT_S = 5.0


@dataclass
class Tick:
    """One time at which something may be due, the input that came until then, and what became of it."""

    time_s: float
    arrived: Arrived
    # A reading is due.
    due: bool
    # Grid point of the newest frame; None when no frame is due.
    index: int | None = None
    # (3, S, S) for the vision encoder; None where the newest frame is encoded already.
    pixels: Float32 | None = None
    # Time at which a camera took the frame; None in a file.
    taken_s: float | None = None
    # The newest window of sound; None when no sound is due, or when there is too little of it.
    sound: SoundWindow | None = None
    # Tokens of the frame, (T, D), and of the sound, (N, D); None where they are not finite.
    visual: Float32 | None = None
    audio: Float32 | None = None
    # None where nothing was due, or where nothing was seen or heard lately.
    evidence: Evidence | None = None
    # Time of the newest evidence of a live device.
    newest_s: float = 0.0


@dataclass(frozen=True)
class Presented:
    """The messages of a tick, and what the narrator is asked for."""

    # Time of the newest evidence; the tick's own before there is any.
    newest_s: float
    # Notices, then the reading if there is one to publish.
    messages: tuple[Message, ...]
    # The evidence that a narration is requested for: one or none.
    narrate: tuple[Evidence, ...] = ()
    # Nobody is there for the narration that is being made.
    cancel_narration: bool = False


class Presenter(Protocol):
    """The part of a run that knows what kind of run it is; the intake asks it before it takes evidence in."""

    # Frames carry the time at which a camera took them.
    stamps_frames: bool
    # While it ignores audio, silence is perceived instead of the show's own sound.
    controls: ControlState

    def attend(self, now_s: float, progress: Progress) -> Sequence[Message]:
        """Apply controls at ``now_s`` and return the notices and the status that are due."""
        ...

    def cuts(self, picture: Picture) -> bool:
        """Return True when ``picture``, (H, W, 3) uint8 RGB, shows another scene than the one before it."""
        ...


@dataclass(frozen=True)
class IntakeOptions:
    """The streams of a source, and how its ticks are computed."""

    has_frames: bool = True
    has_sound: bool = True
    # The grid of ticks; None: the bundle's own. A soak wants fewer ticks.
    schedule: WindowConfig | None = None
    # Ticks computed in one batch. More than one only on a simulated clock, where nothing waits for the first.
    batch_ticks: int = 1


WHOLE_SOURCE = IntakeOptions()


class Tap(Protocol):
    """A reader of everything that arrives, such as the recorder of media or the preview."""

    def take(self, arrived: Arrived) -> Sequence[str]:
        """Look at the input of a tick without waiting, and return sentences for the technician."""
        ...


class Intake:
    """Turn a feed into ticks with evidence. ``read`` is the loop."""

    def __init__(
        self,
        perception: Perception,
        feed: Feed,
        clock: Clock,
        stop: Stop,
        presenter: Presenter,
        publisher: Publisher,
        options: IntakeOptions = WHOLE_SOURCE,
        taps: Sequence[Tap] = (),
    ) -> None:
        """Take the parts of a run. Notices and statuses are published as they come, before their tick."""
        self.perception = perception
        self._feed, self._clock, self._stop = feed, clock, stop
        self._presenter, self._publisher = presenter, publisher
        self._batch_ticks, self._taps = options.batch_ticks, taps
        own = perception.predictor.constants.front_end.windows
        windows = options.schedule or own
        self._schedule = Schedule(windows, has_frames=options.has_frames, has_sound=options.has_sound)
        # A tick this late is skipped.
        self._late_s = 2 * windows.frame_hop_s
        # Grid points of the bundle for each tick of the schedule.
        self._grid_points = round(windows.frame_hop_s / own.frame_hop_s)
        self._frame: Frame | None = None
        self._encoded: Frame | None = None
        self._unheard = False
        self._next_complaint_s = 0.0
        self.ticks = 0
        self.skipped = 0

    @property
    def progress(self) -> Progress:
        """Counts since the run began."""
        return Progress(self._publisher.readings, self.ticks, self.skipped, self.perception.lost)

    @property
    def dropped(self) -> dict[str, int]:
        """Counts by kind of what was dropped before it was perceived."""
        return {**self._feed.dropped, "moments": self.skipped, **self.perception.lost}

    @property
    def encodes(self) -> dict[str, int]:
        """Runs of each encoder."""
        return self.perception.encodes

    @property
    def stages_ms(self) -> dict[str, dict[str, float]]:
        """Times from decoding to reading, as in ``End.stages_ms``."""
        return self._feed.times.summary() | self.perception.times.summary()

    def read(self) -> Iterator[Tick]:
        """Yield every tick with its evidence, until the source is over or a signal comes."""
        while ticks := self._next_ticks():
            encode(self.perception, ticks)
            read(self.perception, ticks)
            if self.perception.lacks_newest_frame:
                self._encoded = None  # it is tried again
            now_s = ticks[-1].time_s
            for sentence in self.perception.step(now_s):
                self._publisher.publish(Notice(round(now_s, 3), sentence))
            yield from ticks

    def _next_ticks(self) -> list[Tick]:
        """Wait for the next ticks of one batch, and prepare what is due at them; none when all is over."""
        ticks: list[Tick] = []
        while len(ticks) < self._batch_ticks and (tick_s := self._schedule.next_s()) is not None:
            if self._clock.now_s() - tick_s > self._late_s:
                self._skip()
                tick_s = self._schedule.next_s() or tick_s
            arrived = self._feed.until(tick_s, self._stop)
            if self._stop.is_set():
                return []
            self.ticks += 1
            ticks.append(self._take_in(tick_s, arrived))
        return ticks

    def _skip(self) -> None:
        """Leave out the ticks that this machine is too slow for, with a notice every few seconds."""
        now_s = self._clock.now_s()
        self.skipped += self._schedule.skip_to(now_s)
        if now_s >= self._next_complaint_s:
            self._next_complaint_s = now_s + COMPLAINT_S
            self._publisher.publish(Notice(round(now_s, 3), f"too slow: {self.skipped} ticks dropped so far"))

    def _take_in(self, tick_s: float, arrived: Arrived) -> Tick:
        """Take the input of a tick in, and prepare for the encoders what is due."""
        for sentence in [text for tap in self._taps for text in tap.take(arrived)]:
            self._publisher.publish(Notice(round(tick_s, 3), sentence))
        for message in self._presenter.attend(tick_s, self.progress):
            self._publisher.publish(message)
        self._forget_lost(arrived)
        self._listen(arrived)
        self._frame = arrived.frame or self._frame
        due = self._schedule.due(tick_s, arrived.frames_end_s, arrived.sound_end_s)
        tick = Tick(tick_s, arrived, due.frame is not None or due.sound)
        self._prepare(tick, due)
        if self._batch_ticks > 1:
            # Ticks that wait for their batch keep no decoded frame, which may be large.
            arrived.frame = None
        return tick

    def _forget_lost(self, arrived: Arrived) -> None:
        """Forget what a device gave before it was lost or froze: it is not seen or heard now."""
        if "camera" in arrived.lost:
            self.perception.forget_frames()
            self._frame = None
        if "microphone" in arrived.lost:
            self.perception.forget_sound()

    def _listen(self, arrived: Arrived) -> None:
        """Take the tick's sound in; silence where the show asked that its own sound be ignored."""
        if (sound := arrived.joined_sound()) is not None:
            self._unheard = True
            ignored = self._presenter.controls.ignoring_audio
            self.perception.push_sound(
                replace(sound, samples=np.zeros_like(sound.samples)) if ignored else sound
            )

    def _prepare(self, tick: Tick, due: Due) -> None:
        """Prepare the newest frame for its grid point, and the newest window of sound."""
        if due.frame is not None and self._frame is not None:
            tick.index = due.frame * self._grid_points
            self._look_if_possible(self._frame, tick)
        if due.sound and self._unheard and not self._presenter.controls.ignoring_audio:
            window = self.perception.newest_sound_window(tick.arrived.sound_end_s)
            if window is not None:
                # The ticks after this one change the view before their batch is encoded.
                is_alone = self._batch_ticks == 1
                tick.sound = window if is_alone else replace(window, log_mel=window.log_mel.copy())
                self._unheard = False

    def _look_if_possible(self, frame: Frame, tick: Tick) -> None:
        """Prepare a frame; a live one that cannot be converted is dropped, counted and told.

        The grid point stays empty then, as if the camera had given nothing. A file's error passes through.
        """
        try:
            self._look(frame, tick)
        except Exception as error:
            if not self._presenter.stamps_frames:
                raise
            self._frame, tick.index = None, None
            self.perception.lose_frame(error)

    def _look(self, frame: Frame, tick: Tick) -> None:
        """Prepare a frame for the vision encoder, unless it was encoded already."""
        if frame is self._encoded:
            return
        self._encoded = frame
        with self.perception.times.measure("convert picture"):
            picture = frame.picture()  # (H, W, 3) uint8 RGB
        if self._presenter.stamps_frames:
            tick.taken_s = frame.time_s
        if self._presenter.cuts(picture):
            self.perception.forget_frames()  # the frames before a cut tell nothing of this scene
        tick.pixels = self.perception.prepare(picture)  # (3, S, S)


def batch_bytes(components: Iterable[Component], ticks: int) -> float:
    """Return the memory in which engines compute one batch; they run in turn and give theirs back."""
    return ACTIVATION_COPIES * ticks * max((c.activation_bytes for c in components), default=0)


def batch_ticks(components: Sequence[Component], available_bytes: int) -> int:
    """Return the ticks of one batch at full pace: the most that a share of the available memory holds.

    ``components``: of the bundle. One that does not state the memory of its engines has full batches.
    """
    per_tick = batch_bytes(components, 1)
    if per_tick == 0:
        return BATCH_TICKS
    return max(1, min(BATCH_TICKS, int(BATCH_MEMORY_SHARE * available_bytes / per_tick)))


def encode(perception: Perception, ticks: Sequence[Tick]) -> None:
    """Encode the frames and sounds of several ticks into tokens, each kind in one batch."""
    seen = [(tick, tick.pixels) for tick in ticks if tick.pixels is not None]
    heard = [(tick, tick.sound.log_mel) for tick in ticks if tick.sound is not None]
    visual = perception.encode("vision_encoder", [pixels for _, pixels in seen])  # each (T, D)
    audio = perception.encode("audio_encoder", [log_mel for _, log_mel in heard])  # each (N, D)
    for (tick, _), tokens in zip(seen, visual, strict=True):
        tick.visual = tokens
    for (tick, _), tokens in zip(heard, audio, strict=True):
        tick.audio = tokens


def read(perception: Perception, ticks: Sequence[Tick]) -> None:
    """Put each tick's tokens into perception, in order, and read the windows that are due in one batch."""
    asked = [(tick, window) for tick in ticks if (window := _window(perception, tick)) is not None]
    evidence = perception.read_all([window for _, window in asked])
    for (tick, _), found in zip(asked, evidence, strict=True):
        tick.evidence = found


def _window(perception: Perception, tick: Tick) -> Window | None:
    """Return the window of tokens at a tick; None where no reading is due."""
    if tick.index is not None and tick.pixels is not None:
        perception.add_frame_tokens(tick.index, tick.visual, tick.taken_s)
    elif tick.index is not None:
        perception.repeat_frame(tick.index)
    if tick.audio is not None and tick.sound is not None:
        perception.add_audio_tokens(tick.sound.end_s, tick.audio, tick.sound.sound_s)
    tick.newest_s = perception.newest_s
    return perception.window(tick.arrived.now_s(tick.time_s)) if tick.due else None
