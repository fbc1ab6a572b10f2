"""``vaemotion ask``: questions about files, free and multiple choice, and wrong arguments."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from export.predictors import load_predictor
from runtime.commands.ask import answer, evidence_at
from runtime.messages import Reading
from runtime.narration.speaking import Utterance
from runtime.perception.perception import Evidence
from runtime.perception.predictor import Tokens, open_predictor
from runtime.sources.file import FileSource
from tests.media import tone, write_wav, write_work
from tests.paths import ROOT
from vaemotion.cli.main import main
from vaemotion.contract.prediction import Question
from vaemotion.data.manifest.loader import Media, load_clip

READY = ROOT / "models" / "vaemotion-tiny-bundle"
OPTIONS = "rooster,sea waves,bell"


def asked(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    assert main(["ask", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_multiple_choice_agrees_with_the_benchmark(
    small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = write_work(tmp_path / "clip.mkv", 2.0)
    answer = asked(capsys, small_bundle, clip, "What is this?", "--options", OPTIONS, "--at", 1.5)
    with load_predictor(small_bundle) as predict:
        whole = load_clip(Media(video="clip.mkv", t0=0, t1=1.5), tmp_path)
        question = Question("What is this?", tuple(OPTIONS.split(",")), "content")
        prediction = predict(whole, "audio-visual", [question])
    scores = dict(zip(OPTIONS.split(","), prediction.answers[0], strict=True))
    assert sorted(answer["probabilities"], key=answer["probabilities"].get) == sorted(scores, key=scores.get)
    assert sum(answer["probabilities"].values()) == pytest.approx(1)
    assert answer["answer"] == max(scores, key=scores.get)
    assert answer["reading"]["time_s"] == 1.5


def test_json_holds_nothing_that_turns_a_terminals_letters_around(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_wav(tmp_path / "tone.wav", tone(1.0), 16_000)
    words = ["ask", str(READY), str(tmp_path / "tone.wav"), "Läuft\u202e da was?", "--json"]
    assert main([*words, "--options", "ja\u2066,nein"]) == 0
    out = capsys.readouterr().out
    assert out.isascii()
    assert json.loads(out)["question"] == "Läuft\u202e da was?"
    assert set(json.loads(out)["probabilities"]) == {"ja\u2066", "nein"}


def test_a_window_is_encoded_frame_by_frame(small_bundle: Path, tmp_path: Path) -> None:
    # Memory is that of one frame, whatever the number of frames in a window.
    clip, batches = FileSource(write_work(tmp_path / "clip.mkv", 2.0)), list[int]()
    with open_predictor(small_bundle) as predictor:
        vision = predictor.engines["vision_encoder"]

        class Counting:
            def run(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
                batches.append(len(arrays["pixels"]))
                return vision.run(arrays)

        counted = predictor.with_engines({"vision_encoder": Counting()})
        evidence = evidence_at(counted, clip, 1.5, "visual")
        frames = predictor.constants.front_end.windows.frames
        assert batches == [1] * frames
        assert len(evidence.plain.visual) == frames


def test_free_text_about_sound_and_video(
    small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_wav(tmp_path / "tone.wav", tone(1.0), 16_000)
    write_work(tmp_path / "clip.mkv", 1.0)
    assert asked(capsys, small_bundle, tmp_path / "tone.wav", "Describe it.")["reading"]["path"] == "audio"
    assert (
        asked(capsys, small_bundle, tmp_path / "clip.mkv", "Describe it.")["reading"]["path"]
        == "audio-visual"
    )
    only = asked(capsys, small_bundle, tmp_path / "clip.mkv", "Describe it.", "--path", "visual")
    assert only["reading"]["path"] == "visual"
    assert only["probabilities"] == {}


def test_an_answer_that_is_cut_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip, question = write_work(tmp_path / "clip.mkv", 1.0), "Describe it."
    whole = asked(capsys, READY, clip, question)
    assert not whole["cut"]
    cut = asked(capsys, READY, clip, question, "--tokens", 3)
    assert cut["cut"]
    assert whole["answer"].startswith(cut["answer"])
    assert len(cut["answer"]) < len(whole["answer"])
    assert main(["ask", str(READY), str(clip), question, "--tokens", "3"]) == 0
    assert "cut at its limit; --tokens gives it more" in capsys.readouterr().out
    assert not asked(capsys, READY, clip, question, "--options", OPTIONS, "--tokens", 1)["cut"]


def test_a_cut_answer_is_given_as_far_as_its_last_whole_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    said = Utterance("The sea is calm.\n\nIt is **wide**. The sk", ended=False, aborted=False)
    monkeypatch.setattr("runtime.commands.ask.speak", lambda *_: said)
    with open_predictor(READY) as predictor:
        reading = Reading(1.0, 0.0, 0.0, 0.1, 0.1, {}, "visual", 0.0, None)
        width = predictor.constants.token_width
        none = Tokens(np.zeros((0, 1, width)), np.zeros(0), np.zeros((0, width)), 0.0)
        result = answer(predictor, Evidence(reading, none, none), "What is it?", [], None)
    assert (result.answer, result.cut) == ("The sea is calm. It is wide.", True)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["tone.wav", "What is this?", "--options", "bell"], "takes two or more answers"),
        (["tone.wav", "What is this?", "--options", ""], "takes two or more answers"),
        (["tone.wav", "What is this?", "--options", "bell,,rain"], "takes two or more answers"),
        (["tone.wav", "What is this?", "--options", "bell,rain, "], "takes two or more answers"),
        (["tone.wav", "What is this?", "--options", "rain,bell,rain"], "names 'rain' twice"),
        (["tone.wav", "What is this?", "--options", "r,b,r"], "names 'r' twice"),
        (["tone.wav", "What?", "--options", "rain,bell, Rain "], "'rain' and 'Rain', which are the same"),
        (["tone.wav", "What?", "--options", "sea  waves,bell,sea waves"], "names 'sea waves' twice"),
        (["tone.wav", "What?", "--options", "caf\u00e9,cafe\u0301"], "which are the same answer"),
        (["tone.wav", " "], "the question is empty"),
        (["tone.wav", "\u001b[31mWhat?"], "holds control characters"),
        (["tone.wav", os.fsdecode(b"\xffWhat?")], "is not UTF-8"),
        (["rtsp://admin:s3cret@192.0.2.1/x", "What?"], "rtsp://192.0.2.1/… is an address"),
        (["tone.wav", "What?", "--path", "visual"], "--path visual needs video frames, and"),
        (["tone.wav", "What?", "--path", "smell"], "'smell' is not one of 'audio', 'visual', 'audio-visual'"),
        (["tone.wav", "What?", "--task", "smell"], "'smell' is not one of 'content', 'emotion'"),
        (["tone.wav", "What?", "--at", "3600", "--path", "audio-visual"], "--path audio-visual needs video"),
        (["none.wav", "What?"], "does not exist"),
    ],
)
def test_a_wrong_question_is_refused_with_one_sentence(
    small_bundle: Path,
    tmp_path: Path,
    arguments: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_wav(tmp_path / "tone.wav", tone(1.0), 16_000)
    source = arguments[0] if "://" in arguments[0] else str(tmp_path / arguments[0])
    assert main(["ask", str(small_bundle), source, *arguments[1:]]) == (
        1 if source.endswith("none.wav") else 2
    )
    error = capsys.readouterr().err
    assert "s3cret" not in error
    assert sentence in error
    assert error.count("\n") == 1


def test_special_tokens_in_a_question_and_its_answers_are_text(
    small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_wav(tmp_path / "tone.wav", tone(1.0), 16_000)
    stop = "<end_of_utterance>"
    plain = asked(capsys, small_bundle, tmp_path / "tone.wav", "What is this?", "--options", "bell,rain")
    asked_again = asked(
        capsys, small_bundle, tmp_path / "tone.wav", f"What is{stop} this?", "--options", f"bell,{stop}"
    )
    assert asked_again["probabilities"].keys() == {"bell", stop}
    assert sum(asked_again["probabilities"].values()) == pytest.approx(1)
    assert asked_again["probabilities"]["bell"] != plain["probabilities"]["bell"]
