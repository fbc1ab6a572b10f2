"""The predictor over a small checkpoint's torch modules, against the model and its training code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from export.predictors import checkpoint_constants, checkpoint_predictor
from runtime.engines.language_model import Generation
from runtime.perception.predictor import SENTENCE_TOKENS, SLACK_TOKENS, Predictor, Tokens, adapter_inputs
from tests.tiny import tiny_clip, tiny_model
from vaemotion.contract.errors import UserError
from vaemotion.contract.front_end import PATHS, Clip, window_at, window_ends_s
from vaemotion.contract.prediction import Question, rotated_options
from vaemotion.contract.prompts import listed_question
from vaemotion.data.art.contents import CONTENT_CLASSES
from vaemotion.evaluation.benchmark.choices import matched_option
from vaemotion.model.emo_adapter import CONSTRUCTS, AdapterOutput
from vaemotion.model.vaemotion_llm import VAEmotionLLM
from vaemotion.training.rows import audio_token_ages_s

CONTENT = Question("What is this?", ("rooster", "sea waves", "bell"), "content")
EMOTION = Question("Which emotion does it express?", ("awe", "fear"), "emotion")
ONE_WINDOW_S = 1.2  # all four frames, and a little more than the second of sound in the small model's window


@pytest.fixture(scope="module")
def model() -> VAEmotionLLM:
    return tiny_model()


@pytest.fixture(scope="module")
def predictor(model: VAEmotionLLM) -> Predictor:
    return checkpoint_predictor(model)


def tokens(frames: int, *, sound: bool = True, audio_age_s: float = 0.0) -> Tokens:
    rng = np.random.default_rng(frames)
    ages = 0.05 + 0.4 * np.arange(frames, dtype=np.float32)[::-1]
    visual = rng.standard_normal((frames, 4, 64)).astype(np.float32)
    audio = rng.standard_normal((5 if sound else 0, 64)).astype(np.float32)
    return Tokens(visual, ages, audio, audio_age_s)


@pytest.mark.parametrize("frames", [0, 1, 3, 4])
def test_frames_are_right_aligned_and_only_they_are_unmasked(model: VAEmotionLLM, frames: int) -> None:
    given = tokens(frames)
    made = adapter_inputs(given, checkpoint_constants(model))
    assert made["visual_tokens"].shape == (1, 16, 64)
    assert made["visual_mask"][0].tolist() == [False] * (16 - 4 * frames) + [True] * (4 * frames)
    assert np.array_equal(made["visual_tokens"][0, 16 - 4 * frames :], given.visual.reshape(-1, 64))
    assert np.array_equal(made["visual_age_s"][0, 16 - 4 * frames :], given.frame_ages_s.repeat(4))


@pytest.mark.parametrize("audio_age_s", [0.0, 0.07])
def test_sounds_ages_are_those_of_the_training(model: VAEmotionLLM, audio_age_s: float) -> None:
    made = adapter_inputs(tokens(2, audio_age_s=audio_age_s), checkpoint_constants(model))
    np.testing.assert_allclose(made["audio_age_s"][0], audio_token_ages_s(model) + audio_age_s, atol=1e-6)
    assert made["audio_mask"].all()
    assert not adapter_inputs(tokens(2, sound=False), checkpoint_constants(model))["audio_mask"].any()


def test_names_and_types_are_those_of_the_exported_adapter(model: VAEmotionLLM, predictor: Predictor) -> None:
    from export.to_onnx import device_parts

    made, part = adapter_inputs(tokens(3), predictor.constants), device_parts(model)["emo_adapter"]
    assert list(made) == list(part.inputs)
    for name, example in part.inputs.items():
        assert made[name].shape == (1, *example.shape[1:])
        assert made[name].dtype == example.numpy().dtype


def by_hand(model: VAEmotionLLM, clip: Clip, path: str) -> tuple[Tensor | None, Tensor | None, AdapterOutput]:
    """Compute plain tokens and the adapter's output of the clip's last window without the predictor.

    The clip must fill the window.
    """
    inputs = window_at(clip, clip.duration_s, path, model.config.front_end)
    has_audio, has_visual = path != "visual", path != "audio"
    with torch.no_grad():
        visual = model.vision(torch.from_numpy(inputs.pixels)).reshape(1, 16, 64) if has_visual else None
        audio = model.audio_pathway(torch.from_numpy(inputs.log_mel)) if has_audio else None
        out = model.emo_adapter(
            torch.zeros(1, 5, 64) if audio is None else audio,
            torch.full((1, 5), has_audio),
            audio_token_ages_s(model)[None],
            torch.zeros(1, 16, 64) if visual is None else visual,
            torch.full((1, 16), has_visual),
            torch.tensor([[1.2, 0.8, 0.4, 0.0]]).repeat_interleave(4, dim=1),
        )
    return visual, audio, out


@pytest.mark.parametrize("path", PATHS)
def test_affect_is_the_adapters_for_each_construct(
    model: VAEmotionLLM, predictor: Predictor, path: str
) -> None:
    clip = tiny_clip(0, ONE_WINDOW_S)
    prediction, out = predictor(clip, path, []), by_hand(model, clip, path)[2]
    assert prediction.induced is not None
    for affect, k in (
        (prediction.affect, CONSTRUCTS.index("expressed")),
        (prediction.induced, CONSTRUCTS.index("induced")),
    ):
        np.testing.assert_allclose((affect.valence, affect.arousal), out.valence_arousal[0, k], atol=1e-5)
        np.testing.assert_allclose((affect.valence_sd, affect.arousal_sd), out.spread[0, k], atol=1e-5)
        np.testing.assert_allclose(affect.emotions, out.emotion_logits[0, k].softmax(-1), atol=1e-5)
    assert abs(prediction.induced.valence - prediction.affect.valence) > 1e-3


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("question", [CONTENT, EMOTION], ids=lambda question: question.task)
def test_emotion_questions_read_enhanced_tokens_and_content_questions_plain_ones(
    model: VAEmotionLLM, predictor: Predictor, path: str, question: Question
) -> None:
    clip = tiny_clip(1, ONE_WINDOW_S)
    visual, audio, out = by_hand(model, clip, path)
    enhanced = (
        out.visual_tokens if visual is not None else None,
        out.audio_tokens if audio is not None else None,
    )
    expected: dict[str, list[float]] = {"content": [], "emotion": []}
    for task, (seen, heard) in (("content", (visual, audio)), ("emotion", enhanced)):
        newest = None if seen is None else seen[:, -2 * 4 :]  # the language model reads the newest two frames
        for option in question.options:
            text = model.text_batch([question.text], [option])
            with torch.no_grad():
                logits = (
                    model.answer_logits(model.media_embeddings(newest, heard, 1), text)
                    .double()
                    .log_softmax(-1)
                )
            expected[task].append(logits.gather(1, text.ids[text.answer][:, None]).mean().item())
    (answers,) = predictor(clip, path, [question]).answers
    np.testing.assert_allclose(answers, expected[question.task], atol=1e-4)
    assert np.abs(np.subtract(expected["content"], expected["emotion"])).max() > 5e-3


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("question", [CONTENT, EMOTION], ids=lambda question: question.task)
def test_written_answers_are_the_trainings_greedy_ones_to_each_rotation(
    model: VAEmotionLLM, predictor: Predictor, path: str, question: Question
) -> None:
    clip = tiny_clip(1, ONE_WINDOW_S)
    visual, audio, out = by_hand(model, clip, path)
    if question.task == "emotion":
        visual = None if visual is None else out.visual_tokens
        audio = None if audio is None else out.audio_tokens
    media = model.media_embeddings(None if visual is None else visual[:, -2 * 4 :], audio, 1)
    longest = max(len(predictor.option_ids(option)) for option in question.options)
    expected = [
        model.generate(media, listed_question(question.text, options), max_tokens=longest + SENTENCE_TOKENS)[
            0
        ].text
        for options in rotated_options(question.options, 2)
    ]
    prediction = predictor(clip, path, [replace(question, rotations=2), question])
    assert prediction.written == (tuple(expected), ())
    assert any(expected)


SENTENCE = "The sound in the clip is a bell."


class Sentences:
    """A language model that answers everything in one sentence, where it has the tokens."""

    def __init__(self, predictor: Predictor) -> None:
        self._model, self._predictor = predictor.language_model, predictor
        self.context_tokens = self._model.context_tokens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def generate(self, prompt: np.ndarray, *, max_tokens: int, stop_ids: Sequence[int]) -> Generation:
        ids = self._predictor.token_ids(SENTENCE)
        return Generation(tuple(ids[:max_tokens]), complete=len(ids) < max_tokens, aborted=False)


def test_an_answer_in_a_sentence_is_whole_where_the_context_has_room(model: VAEmotionLLM) -> None:
    plain, clip = checkpoint_predictor(model), tiny_clip()
    question = replace(CONTENT, rotations=2)
    longest = max(len(plain.option_ids(option)) for option in question.options)
    assert len(plain.token_ids(SENTENCE)) > longest + SLACK_TOKENS
    sentences = Sentences(plain)
    speaker = plain.with_engines({}, sentences)
    (texts,) = speaker(clip, "audio", [question]).written
    assert texts == (SENTENCE, SENTENCE)
    assert [matched_option(text, question.options) for text in texts] == [2, 2]
    tokens = plain.encode(window_at(clip, clip.duration_s, "audio", model.config.front_end))
    listed = plain.prompt(tokens, listed_question(question.text, question.options))
    prefix = len(plain.token_ids(plain.constants.prompt.prefix))
    sentences.context_tokens = prefix + len(listed) + longest + SLACK_TOKENS
    (short,) = speaker(clip, "audio", [replace(question, rotations=1)]).written[0]
    assert SENTENCE.startswith(short)
    assert len(short) < len(SENTENCE)


def test_listed_options_that_do_not_fit_the_context_are_refused_with_the_way_out(
    model: VAEmotionLLM,
) -> None:
    predictor, clip = checkpoint_predictor(model), tiny_clip()
    fifteen = replace(CONTENT, options=CONTENT_CLASSES, rotations=1)
    listed = listed_question(CONTENT.text, CONTENT_CLASSES)
    tokens = predictor.encode(window_at(clip, clip.duration_s, "audio-visual", model.config.front_end))
    prefix = len(predictor.token_ids(predictor.constants.prompt.prefix))
    longest = max(len(predictor.option_ids(option)) for option in CONTENT_CLASSES)
    needed = prefix + len(predictor.prompt(tokens, listed)) + longest + SLACK_TOKENS
    assert needed < model.context_tokens()  # fifteen options fit a bundle's context
    predictor.language_model.context_tokens = needed
    assert len(predictor(clip, "audio-visual", [fifteen]).written[0]) == 1
    predictor.language_model.context_tokens = needed - 1
    with pytest.raises(UserError, match=rf"15 options listed needs {needed} tokens.*--rotations 0"):
        predictor(clip, "audio-visual", [fifteen])
    assert predictor(clip, "audio-visual", [replace(fifteen, rotations=0)]).written == ((),)


@pytest.mark.parametrize("path", PATHS)
def test_a_long_clip_is_the_mean_of_its_windows(predictor: Predictor, path: str) -> None:
    clip, front_end = tiny_clip(2, 2.0), predictor.constants.front_end
    ends_s = window_ends_s(clip, path, front_end)
    assert ends_s == pytest.approx([1.005, 1.5025, 2.0])
    parts = []
    for end_s in ends_s:  # the device would have come so far
        plain = predictor.encode(window_at(clip, end_s, path, front_end))
        affect, enhanced = predictor.adapt(plain)
        ids = [predictor.option_ids(option) for option in EMOTION.options]
        scores = predictor.language_model.score(predictor.prompt(enhanced, EMOTION.text), ids)
        parts.append(([affect.valence, affect.arousal], [affect.valence_sd, affect.arousal_sd], scores))
    values, spreads, scores = (np.array(part) for part in zip(*parts, strict=True))
    whole = predictor(clip, path, [EMOTION])
    np.testing.assert_allclose((whole.affect.valence, whole.affect.arousal), values.mean(0), atol=1e-6)
    spread = (whole.affect.valence_sd, whole.affect.arousal_sd)
    np.testing.assert_allclose(spread, np.sqrt((spreads**2).mean(0)), atol=1e-6)
    np.testing.assert_allclose(whole.answers[0], scores.mean(0), atol=1e-6)


def test_a_path_ignores_the_other_modality_altogether(predictor: Predictor) -> None:
    clip, other = tiny_clip(1), tiny_clip(2)
    for path, mixed in (
        ("audio", Clip(other.frames, other.frame_times_s, clip.samples)),
        ("visual", Clip(clip.frames, clip.frame_times_s, other.samples)),
    ):
        first, second = (predictor(c, path, [CONTENT, EMOTION]) for c in (clip, mixed))
        assert first.affect.valence == second.affect.valence
        assert np.array_equal(first.affect.emotions, second.affect.emotions)
        for a, b in zip(first.answers, second.answers, strict=True):
            assert np.array_equal(a, b)
    assert predictor(clip, "audio", []).affect.valence != predictor(other, "audio", []).affect.valence
    assert predictor(clip, "visual", []).affect.valence != predictor(other, "visual", []).affect.valence


def test_a_single_image_is_read(predictor: Predictor) -> None:
    image = Clip(tiny_clip().frames[:1], (0.0,))
    prediction = predictor(image, "visual", [CONTENT])
    assert np.isfinite(prediction.answers[0]).all()
    assert prediction.answers[0].shape == (3,)
    assert -1 <= prediction.affect.valence <= 1
    assert prediction.affect.emotions.sum() == pytest.approx(1, abs=1e-5)


def test_a_clip_that_has_just_begun_fills_only_the_windows_end(predictor: Predictor) -> None:
    inputs = window_at(tiny_clip(), 0.5, "audio-visual", predictor.constants.front_end)
    encoded = predictor.encode(inputs)
    assert encoded.visual.shape == (2, 4, 64)
    affect, enhanced = predictor.adapt(encoded)
    assert enhanced.visual.shape == (2, 4, 64)
    assert enhanced.audio.shape == (5, 64)
    assert not np.array_equal(enhanced.visual, encoded.visual)
    assert -1 <= affect.arousal <= 1


def test_sound_that_ended_before_the_moment_is_as_old_as_it_is(predictor: Predictor) -> None:
    clip = tiny_clip(duration_s=3.0)
    assert clip.samples is not None
    shorter = Clip(clip.frames, clip.frame_times_s, clip.samples[:24_000])  # 1.5 s of sound, 3 s of frames
    encoded = predictor.encode(window_at(shorter, 3.0, "audio-visual", predictor.constants.front_end))
    assert encoded.audio_age_s == pytest.approx(1.5, abs=0.02)


def test_prompt_and_options_are_the_trainings(model: VAEmotionLLM, predictor: Predictor) -> None:
    text = model.text_batch([CONTENT.text], ["rooster"])
    assert predictor.option_ids("rooster") == text.ids[text.answer].tolist()
    question = text.ids[0, ~text.answer[0]]
    empty = Tokens(
        np.zeros((0, 4, 64), np.float32), np.zeros(0, np.float32), np.zeros((0, 64), np.float32), 0.0
    )
    np.testing.assert_array_equal(
        predictor.prompt(empty, CONTENT.text), model.embed(question).detach().numpy()
    )


@pytest.mark.parametrize(
    ("clip", "path", "missing"), [("silent", "audio", "sound"), ("audio only", "visual", "frames")]
)
def test_a_missing_modality_is_named(predictor: Predictor, clip: str, path: str, missing: str) -> None:
    whole = tiny_clip()
    lacking = Clip(whole.frames, whole.frame_times_s) if clip == "silent" else Clip(samples=whole.samples)
    for wanted in (path, "audio-visual"):
        with pytest.raises(ValueError, match=f"'{wanted}' needs {missing}"):
            predictor(lacking, wanted, [])
