"""Narrators: what is published, what is withheld and why. The language model says what a test wants."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from tokenizers import Tokenizer

from runtime.clock import ManualClock, MonotonicClock
from runtime.engines.language_model import Generation
from runtime.file_session import FilePresenter
from runtime.machine.stop import Stop
from runtime.messages import End, Message, Narration, Reading, Start, Status
from runtime.narration.narrator import STALE_S, InLoopNarrator, NarrationMaker, Narrator, Withheld, narrate
from runtime.perception.perception import Evidence
from runtime.perception.predictor import Constants, Predictor, Tokens
from runtime.perception.ticks import Presented, Tick
from runtime.session import Session
from runtime.show.controls import ControlState
from runtime.show.status import Progress
from runtime.sinks.outbox import Outbox
from runtime.sinks.publisher import Publisher
from runtime.sources.feed import Arrived
from runtime.stage_times import StageTimes
from tests.live_peers import until
from tests.paths import ROOT
from vaemotion.contract.bundle import read_manifest
from vaemotion.contract.speech import UNSET, Speech

WIDTH = 4
NO_VISUAL, NO_AUDIO = np.zeros((0, 1, WIDTH), np.float32), np.zeros((0, WIDTH), np.float32)
NO_TOKENS = Tokens(NO_VISUAL, np.zeros(0, np.float32), NO_AUDIO, 0.0)
TOKENIZER = Tokenizer.from_file(str(ROOT / "models" / "vaemotion-tiny" / "tokenizer.json"))
STOP = "<end_of_utterance>"


@dataclass
class Scripted:
    """A language model that says each of ``texts`` in turn, the last one for ever; ``STOP`` ends a text."""

    texts: Sequence[str]
    room: int = 100
    available: bool = True
    context_tokens: int = 512
    asked: list[str] = field(default_factory=list)
    repetition_tokens: int = 0
    spoken_tokens: int = 0
    before_token: Callable[[int], None] = lambda number: None

    def embed(self, token_ids: Sequence[int]) -> np.ndarray:
        self.asked.append(TOKENIZER.decode(list(token_ids)))
        return np.zeros((len(token_ids), WIDTH), np.float32)

    def set_prefix(self, embeddings: np.ndarray) -> None: ...

    def abort(self) -> None: ...

    def room_tokens(self, rows: int) -> int:
        return self.room

    def generate(
        self, prompt, *, max_tokens, stop_ids, repetition_tokens, is_enough, should_abort
    ) -> Generation:
        text, *rest = self.texts
        self.texts, self.repetition_tokens = rest or [text], repetition_tokens
        said: list[int] = []
        for number, token in enumerate(TOKENIZER.encode(text, add_special_tokens=False).ids):
            self.before_token(number)
            if should_abort is not None and should_abort():
                return Generation(tuple(said), complete=False, aborted=True)
            if token in stop_ids:
                return Generation(tuple(said), complete=True, aborted=False)
            said.append(token)
            self.spoken_tokens = len(said)
            if len(said) == max_tokens or is_enough(said):
                break
        return Generation(tuple(said), complete=False, aborted=False)


def predictor_of(model: Scripted, speech: Speech = UNSET) -> Predictor:
    constants = Constants.of(read_manifest(ROOT / "models" / "vaemotion-tiny-bundle"))
    constants = replace(constants, token_width=WIDTH, speech=speech)
    return Predictor(constants, {}, model, TOKENIZER, np.zeros((2, WIDTH), np.float32))


def evidence(time_s: float = 1.0) -> Evidence:
    reading = Reading(time_s, 0.0, 0.0, 0.1, 0.1, {}, "visual", 0.0, None)
    return Evidence(reading, NO_TOKENS, NO_TOKENS)


def told(model: Scripted, speech: Speech = UNSET, bundle: Speech = UNSET) -> str | Withheld:
    said = narrate(predictor_of(model, bundle), evidence(), speech, lambda: 1.5, lambda: False)
    return said.text if isinstance(said, Narration) else said


@pytest.mark.parametrize(
    ("text", "published"),
    [
        (f"a rooster, stirring and pleasant{STOP}", "a rooster, stirring and pleasant"),
        (f"The sea\n\nis **calm**.{STOP}", "is calm."),
        ("The sea is calm. It is wi", "The sea is calm."),
        ("The sea is calm and it is wide and it is bl", Withheld("cut")),
        ("a glass of wine, a glass of wine, a glass of wine, a glass", Withheld("cut")),
        (STOP, Withheld("empty")),
        (f"\n \n{STOP}", Withheld("empty")),
        (f"***{STOP}", Withheld("cut")),
    ],
)
def test_only_whole_sentences_are_published(text: str, published: str | Withheld) -> None:
    assert told(Scripted([text])) == published


def test_a_narration_is_complete_and_stamped() -> None:
    said = narrate(
        predictor_of(Scripted(["It is calm. Or"])), evidence(), UNSET, lambda: 1.2345, lambda: False
    )
    assert said == Narration(1.234, 1.0, "It is calm.")


LONG = "The sea is calm. The sky is a very wide sky and it is red. The sand is white. The bird is black. " * 3


def test_the_setting_of_the_bundle_and_of_the_configuration_is_obeyed() -> None:
    model = Scripted([LONG])
    assert told(model, Speech(sentences=1)) == "The sea is calm."
    assert model.spoken_tokens < 12  # it stopped there, one word later
    three = "The sea is calm. The sky is a very wide sky and it is red. The sand is white."
    assert told(model, Speech(sentences=3, enough_tokens=200)) == three
    assert told(model, Speech(sentences=9, enough_tokens=1)) == "The sea is calm."
    assert told(model, Speech(sentences=1), bundle=Speech(sentences=2)) == "The sea is calm."
    two = "The sea is calm. The sky is a very wide sky and it is red."
    assert told(model, bundle=Speech(sentences=2, enough_tokens=200)) == two
    assert told(model) == "The sea is calm."  # more than the standard's 12 tokens
    assert told(model, Speech(max_tokens=5, sentences=2)) == Withheld("cut")
    assert model.spoken_tokens == 5
    told(model, Speech("What is it?", "German", repetition_tokens=33))
    assert model.repetition_tokens == 33
    assert "What is it? Answer in German." in model.asked[-1]


def test_a_question_that_fills_the_context_ends_no_run() -> None:
    assert told(Scripted([LONG], room=0)) == Withheld("no room")
    model = Scripted([LONG], room=7)
    assert told(model, Speech(sentences=1)) == "The sea is calm."
    assert model.spoken_tokens == 7


# --- the thread --------------------------------------------------------------------------------------------


@pytest.fixture
def narrator(request: pytest.FixtureRequest) -> Iterator[Narrator]:
    made = Narrator(predictor_of(request.param), StageTimes(), MonotonicClock())
    yield made
    made.close()


def take(narrator: NarrationMaker) -> list[Narration | Withheld]:
    until(lambda: not narrator.busy, "the narrator goes on")
    return narrator.finished()


@pytest.mark.parametrize("narrator", [Scripted([f"It is calm. It is wide.{STOP}"])], indirect=True)
def test_a_canceled_or_stale_narration_is_not_published_even_where_it_has_whole_sentences(
    narrator: Narrator,
) -> None:
    model = narrator._predictor.language_model
    model.before_token = lambda number: narrator.cancel() if number == 6 else None
    narrator.request(evidence(narrator._clock.now_s()), UNSET, 0.0)
    assert take(narrator) == [Withheld("canceled")]
    model.before_token = lambda number: None
    narrator.request(evidence(narrator._clock.now_s() - STALE_S - 1), UNSET, 0.0)
    assert take(narrator) == [Withheld("stale")]
    narrator.request(evidence(narrator._clock.now_s()), Speech(enough_tokens=99), 0.0)
    [said] = take(narrator)
    assert isinstance(said, Narration)
    assert said.text == "It is calm. It is wide."


# --- the session -------------------------------------------------------------------------------------------


class Collected:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def publish(self, message: Message) -> None:
        self.messages.append(message)

    def close(self) -> None: ...


class Ticks:
    """A tick a second, with evidence."""

    progress, dropped, encodes, stages_ms = Progress(0, 0, 0), {}, {}, {}

    def __init__(self, count: int, publisher: Publisher) -> None:
        self.count, self.publisher = count, publisher

    def read(self) -> Iterator[Tick]:
        for second in range(self.count):
            yield Tick(float(second), Arrived(), True, evidence=evidence(float(second)))
        self.publisher.publish(Status(float(self.count), "running", 0, 0.0, 1.0, 0, False, 0.0, 0, 0, 0))


class NobodyAt(FilePresenter):
    """Presents a file, but nobody is there at one second."""

    absent_s = -1.0

    def present(self, tick: Tick, progress: Progress, narrating: bool) -> Presented:
        return replace(
            super().present(tick, progress, narrating), cancel_narration=tick.time_s == self.absent_s
        )


def run(texts: Sequence[str], absent_s: float = -1.0) -> tuple[list[Narration], End, Status]:
    """Narrate each of ``texts`` a second after the other, as a run does."""
    stop, sink = Stop(), Collected()
    publisher = Publisher([Outbox("list", sink, "wait", stop)], status_to_all=True)
    presenter = NobodyAt(1.0, ControlState(), ManualClock())
    presenter.absent_s = absent_s
    narrator = InLoopNarrator(predictor_of(Scripted([*texts, "never"])), StageTimes(), stop)
    session = Session(Ticks(len(texts) + 1, publisher), presenter, publisher, narrator, stop)
    session.run(Start("b", "0", "s", "max", (), {}, "0"))
    narrations = [message for message in sink.messages if isinstance(message, Narration)]
    end, status = (next(m for m in sink.messages if isinstance(m, kind)) for kind in (End, Status))
    assert isinstance(end, End)
    assert isinstance(status, Status)
    return narrations, end, status


def test_a_run_tells_a_sentence_once_and_counts_what_it_withholds() -> None:
    said = [
        f"It is calm.{STOP}",
        f"it  is CALM.{STOP}",
        STOP,
        f"It is wide.{STOP}",
        "It is",
        f"It is calm.{STOP}",
    ]
    narrations, end, status = run(said)
    assert [n.text for n in narrations] == ["It is calm.", "It is wide.", "It is calm."]
    assert [n.about_s for n in narrations] == [1.0, 4.0, 6.0]
    assert (end.narrations, end.narrations_withheld) == (3, {"repeated": 1, "empty": 1, "cut": 1})
    assert (status.narrations, status.narrations_withheld) == (3, end.narrations_withheld)


def test_who_comes_anew_is_told_the_last_sentence_again() -> None:
    narrations, end, _ = run([f"It is calm.{STOP}"] * 4, absent_s=3.0)
    assert [n.about_s for n in narrations] == [1.0, 3.0]
    assert end.narrations_withheld == {"repeated": 2}
