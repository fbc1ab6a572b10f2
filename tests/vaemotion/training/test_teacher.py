"""The teacher's answers in its own words: kept once, taken up after a kill, and filtered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from tests.tiny import tiny_config, tiny_model
from vaemotion.contract import prompts
from vaemotion.contract.errors import UserError
from vaemotion.data.clips.of_art import ArtClips
from vaemotion.data.question_bank import read_question_bank
from vaemotion.model.vaemotion_llm import VAEmotionLLM
from vaemotion.training import encoded, teacher
from vaemotion.training.config import AlignStage
from vaemotion.training.encoded import Windows, WindowStore
from vaemotion.training.teacher import (
    Lessons,
    LessonStore,
    answer_divergence,
    is_named,
    kept_repeats,
    mean_level,
    teach,
)

BANK = read_question_bank()
OPEN = AlignStage(frame_counts=(1, 2), incoherent_bits=1.0, empty_bits=-1.0, repeat_share=1.0)


def store(folder: Path, model: VAEmotionLLM, clips: int = 6, stage: AlignStage = OPEN) -> LessonStore:
    front_end = model.config.front_end
    windows = Windows(ArtClips(clips, "train", front_end.windows), front_end, 0)
    return LessonStore(WindowStore(windows, "base", folder), BANK, stage, 0, folder, model.template)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded, "BLOCK", 4)


@pytest.fixture(scope="module")
def model() -> VAEmotionLLM:
    return tiny_model(audio=False, adapter=False)


def test_the_answers_are_the_teachers_own_and_some_are_sampled(model: VAEmotionLLM, tmp_path: Path) -> None:
    windows, lessons = teach(model, store(tmp_path, model), 0)
    assert len(windows) == 6
    greedy = 0
    for lesson in range(len(lessons)):
        window, count = int(lessons.window[lesson]), int(lessons.frame_count[lesson])
        media = model.media_embeddings(windows.visual_tokens([window], count), None, 1)
        question = BANK.audible[lessons.question[lesson]].text
        [said] = model.generate(media, question)
        greedy += said.text == lessons.answers[lessons.answer[lesson]]
    assert len(lessons) // 4 <= greedy < len(lessons)
    assert {q.text for q in BANK.questions} - {q.text for q in BANK.audible} == {prompts.PALETTE.text}


def test_what_it_thinks_of_a_clip_is_read_from_its_frames(model: VAEmotionLLM, tmp_path: Path) -> None:
    windows, lessons = teach(model, store(tmp_path, model), 0)
    media = model.media_embeddings(windows.visual_tokens(range(6), 2), None, 6)
    expected = mean_level(model, media, prompts.VALENCE.text, prompts.VALENCE_WORDS)
    torch.testing.assert_close(lessons.affect[:, 0], expected)
    assert (lessons.affect.abs() <= 0.8).all()  # between the lowest level's middle and the highest's
    torch.testing.assert_close(
        lessons.hidden.float(), model.last_state(media, BANK.content.text), atol=2e-2, rtol=1e-2
    )
    names = model.generate(media, BANK.content.text)
    assert [lessons.answers[name] for name in lessons.name] == [name.text for name in names]


def test_a_killed_run_goes_on_where_it_was_and_asks_nothing_twice(
    model: VAEmotionLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole = teach(model, store(tmp_path / "whole", model), 0)
    asked: list[int] = []
    ask_about = teacher._ask_about

    def killed(model: VAEmotionLLM, block: encoded.Block, store: LessonStore) -> None:
        if block.number == 1 and not asked:
            raise KeyboardInterrupt
        ask_about(model, block, store)

    monkeypatch.setattr(teacher, "_ask_about", killed)
    with pytest.raises(KeyboardInterrupt):
        teach(model, store(tmp_path / "killed", model), 0)

    def counting(model: VAEmotionLLM, block: encoded.Block, store: LessonStore) -> None:
        asked.append(block.number)
        ask_about(model, block, store)

    monkeypatch.setattr(teacher, "_ask_about", counting)
    _, resumed = teach(model, store(tmp_path / "killed", model), 0)
    assert asked == [1]
    assert same(whole, resumed)
    teach(model, store(tmp_path / "killed", model), 0)
    assert asked == [1]


def same(one: Lessons, other: Lessons) -> bool:
    told = [[lessons.answers[k] for k in lessons.answer] for lessons in (one, other)]
    return (
        told[0] == told[1]
        and np.array_equal(one.window, other.window)
        and torch.equal(one.hidden, other.hidden)
    )


def test_several_processes_share_the_blocks(
    model: VAEmotionLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, alone = teach(model, store(tmp_path / "alone", model), 0)
    shared = store(tmp_path / "shared", model)
    numbers = shared.windows.numbers()
    for rank in (1, 0):  # the second process is done first
        monkeypatch.setattr(teacher, "own_share", lambda n, rank=rank: list(n)[rank::2])
        if rank:
            with pytest.raises(FileNotFoundError):  # the other's block is not there yet
                teach(model, shared, 0)
            assert [n for n in numbers if shared.file(n).exists()] == [1]
    _, together = teach(model, shared, 0)
    assert same(alone, together)


def test_other_bounds_read_the_same_answers_and_count_what_they_leave_out(
    model: VAEmotionLLM, tmp_path: Path
) -> None:
    _, everything = teach(model, store(tmp_path, model), 0)
    assert everything.incoherent == everything.empty == everything.repeated == 0
    files = sorted(p.name for p in tmp_path.rglob("*") if p.is_file())
    with pytest.raises(UserError, match=r"(\d+) of \1 answers are the same without a picture; .*empty_bits"):
        teach(model, store(tmp_path, model, stage=replace(OPEN, empty_bits=1.0)), 0)
    with pytest.raises(UserError, match=r"6 of 6 clips look like something else .*incoherent_bits"):
        teach(model, store(tmp_path, model, stage=replace(OPEN, incoherent_bits=-1.0)), 0)
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == files


def test_answers_without_their_end_are_counted_and_teach_nothing(
    model: VAEmotionLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rare = property(lambda model: tuple(range(0, model.vocabulary, 60)))
    monkeypatch.setattr(VAEmotionLLM, "stop_ids", rare)
    _, lessons = teach(model, store(tmp_path, model), 0)
    assert lessons.cut > 0 < len(lessons)
    assert lessons.summary()["answers_filtered_as_cut"] == lessons.cut
    monkeypatch.setattr(VAEmotionLLM, "stop_ids", property(lambda model: (model.vocabulary - 1,)))
    with pytest.raises(UserError, match=r"18 of 18 answers did not end within 48 tokens; .*align\.questions"):
        teach(model, store(tmp_path / "never", model), 0)


def test_a_teacher_that_gives_all_clips_one_name_ends_the_run(model: VAEmotionLLM, tmp_path: Path) -> None:
    _, lessons = teach(model, store(tmp_path, model), 0)
    alike = replace(lessons, name=np.zeros(30, np.int32))
    with pytest.raises(UserError, match=r"calls all 30 clips .* no content can be learned"):
        teacher.refuse_useless(alike)
    teacher.refuse_useless(replace(lessons, name=np.arange(30, dtype=np.int32) % 2))


def test_a_pretrained_teacher_is_asked_for_short_answers() -> None:
    bank = read_question_bank(pretrained=True)
    assert bank.name == "questions.pretrained.toml"
    assert sum(question.share for question in bank.audible) == pytest.approx(1)
    assert all("one" in question.text for question in bank.questions)


def test_divergence_is_the_largest_along_the_answer(model: VAEmotionLLM) -> None:
    one, other = (torch.randn(2, 4, 64, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    media = [model.media_embeddings(visual, None, 2) for visual in (one, other)]
    questions, answers = ["What is this?"] * 2, ["bell", "a drum and a bell"]
    bits = answer_divergence(model, *media, questions, answers)
    for row in range(2):
        text = model.text_batch(questions[row : row + 1], answers[row : row + 1])
        with torch.no_grad():
            p, q = (model.answer_logits(m[row : row + 1], text).softmax(-1).double().numpy() for m in media)
        expected = max(jensenshannon(a, b, base=2) ** 2 for a, b in zip(p, q, strict=True))
        assert bits[row].item() == pytest.approx(expected, rel=1e-3, abs=1e-6)
    same_view = answer_divergence(model, media[0], media[0], questions, answers)
    torch.testing.assert_close(same_view, torch.zeros(2), atol=1e-6, rtol=0)


def test_a_clip_about_which_the_teacher_says_what_it_says_blindly_is_empty(model: VAEmotionLLM) -> None:
    blind = model.media_embeddings(None, None, 1)
    assert answer_divergence(model, blind, blind, ["What is this?"], ["bell"]).item() < 1e-6


def test_one_answer_is_at_most_its_share_of_a_questions_answers() -> None:
    question = np.repeat(np.array([0, 1, 2], np.int32), (100, 100, 10))
    answer = np.concatenate(
        [np.where(np.arange(100) < 80, 7, np.arange(100)), np.arange(100) % 2, np.zeros(10)]
    )
    kept = kept_repeats(question, answer.astype(np.int32), 0.5, 0)
    first = answer[:100][kept[:100]]
    assert (first == 7).sum() == 20 == (first != 7).sum()
    assert kept[100:].all()  # half and half; and too few answers to judge
    assert np.array_equal(kept, kept_repeats(question, answer.astype(np.int32), 0.5, 0))
    assert kept_repeats(question, answer.astype(np.int32), 1.0, 0).all()


@pytest.mark.parametrize(
    ("label", "answer", "named"),
    [
        ("dog", "A dog is barking.", True),
        ("Dog Bark", "dog bark", True),
        ("dog bark", "a bark, and a dog", False),
        ("rain", "a train", False),
        ("church bells", "It shows church  bells.", True),
    ],
)
def test_an_answer_names_a_label_by_its_words(label: str, answer: str, named: bool) -> None:
    assert is_named(label, answer) == named


def test_the_shipped_bank_asks_the_standard_questions() -> None:
    assert [q.text for q in BANK.questions if q.audible] == [
        q.text for q in (prompts.CONTENT, prompts.AROUSAL, prompts.VALENCE, prompts.CAPTION, prompts.EMOTION)
    ]
    standard = {q.text: q for q in prompts.STANDARD_QUESTIONS}
    assert all(
        standard[q.text].audible == q.audible and standard[q.text].task == q.task for q in BANK.questions
    )
    assert tiny_config().align.questions == ""
