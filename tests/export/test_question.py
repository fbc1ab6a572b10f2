"""A bundle's own question of narrations is the one that its export prompts and judges with."""

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.clips import ComparedClips, language_prompts, narrator_prompt, prefix_of
from export.int8.judge import Budget, judge
from export.int8.material import ArtMaterial
from export.predictors import checkpoint_predictor
from runtime.perception.predictor import Predictor, open_predictor
from tests.tiny import tiny_clip
from vaemotion.contract.front_end import window_at
from vaemotion.contract.prompts import CAPTION, CONTENT
from vaemotion.contract.speech import Speech
from vaemotion.model.checkpoint import load_checkpoint

OWN = Speech(question="How does it feel?", language="German")
ASKED = "How does it feel? Answer in German."


@pytest.fixture(scope="module")
def predictor(small_checkpoint: Path) -> Predictor[Any]:
    return checkpoint_predictor(load_checkpoint(small_checkpoint), OWN)


def test_prompts_ask_the_bundles_own_question_and_the_standard_one_where_it_has_none(
    predictor: Predictor[Any], small_checkpoint: Path
) -> None:
    clip = tiny_clip(3)
    inputs = window_at(clip, clip.duration_s, "audio-visual", predictor.constants.front_end)
    plain = predictor.encode(inputs)
    for speaker, question in (
        (predictor, ASKED),
        (checkpoint_predictor(load_checkpoint(small_checkpoint)), CAPTION.text),
    ):
        expected = speaker.prompt(speaker.adapt(plain)[1], question)
        asked = narrator_prompt(speaker, inputs)
        np.testing.assert_array_equal(asked, np.concatenate([prefix_of(speaker), expected]))
    clips = ComparedClips(predictor.constants.front_end, 2)()
    of_content, of_narration = asking(predictor, lambda: language_prompts(predictor, clips))
    assert (of_content, of_narration) == (CONTENT.text, ASKED)


def asking(predictor: Predictor[Any], run: Callable[[], object]) -> list[str]:
    """Run, and return the questions that were asked."""
    asked: list[str] = []
    prompt = predictor.prompt
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictor, "prompt", lambda tokens, text: asked.append(text) or prompt(tokens, text))
        run()
    return asked


def test_int8_is_judged_on_narrations_that_answer_the_bundles_own_question(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.int8.judge.JITTER_CLIPS", 2)
    with open_predictor(small_bundle) as opened:
        front_end = opened.constants.front_end
        material = ArtMaterial(front_end, 16, ASKED)
        opened.constants = replace(opened.constants, speech=OWN)
        asked = asking(opened, lambda: judge(opened, {"same": opened}, material, Budget()))
    assert asked.count(ASKED) == 16 * 3  # the reference narrates, then the logits of both are compared
    assert CAPTION.text not in asked
    standard = ArtMaterial(front_end, 16)
    assert material.reads != standard.reads
    # A work has a true answer to the standard question, and none to another one.
    assert [window.narration is None for window in islice(material.windows(), 2)] == [True, True]
    assert [window.narration is None for window in islice(standard.windows(), 2)] == [False, False]
