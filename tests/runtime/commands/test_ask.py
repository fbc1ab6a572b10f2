"""``vaemotion ask``: questions about files, free and multiple choice, and wrong arguments."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from export.predictors import load_predictor
from tests.media import tone, write_wav, write_work
from vaemotion.cli.main import main
from vaemotion.contract.prediction import Question
from vaemotion.data.manifest.loader import Media, load_clip

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


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["tone.wav", "What is this?", "--options", "bell"], "at least two different answers"),
        (["tone.wav", " "], "the question is empty"),
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
    assert main(["ask", str(small_bundle), str(tmp_path / arguments[0]), *arguments[1:]]) in (1, 2)
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
