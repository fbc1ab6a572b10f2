"""Prompts with the model's own answer behind them: its rows are those at which the answer is spoken."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from export.answers import greedy_answer, with_answer
from export.clips import prefix_of
from export.predictors import checkpoint_predictor, full_logits
from runtime.perception.predictor import Predictor
from tests.tiny import tiny_clip
from vaemotion.contract.front_end import window_at
from vaemotion.model.checkpoint import load_checkpoint


def test_the_rows_that_speak_say_the_answer_and_nothing_behind_its_end(small_checkpoint: Path) -> None:
    predictor = checkpoint_predictor(load_checkpoint(small_checkpoint))
    clip = tiny_clip(3)
    inputs = window_at(clip, clip.duration_s, "audio-visual", predictor.constants.front_end)
    asked, prefix = predictor.prompt(predictor.encode(inputs), "Describe it."), prefix_of(predictor)
    prompt = np.concatenate([prefix, asked])
    cut = greedy_answer(predictor, asked, 6)
    assert len(cut) == 6
    stops = (cut[-1], predictor.constants.stop_token_ids[0])
    first_stop = cut.index(cut[-1]) + 1  # random weights may repeat a token
    ending = Predictor(
        replace(predictor.constants, stop_token_ids=stops),
        predictor.engines,
        predictor.language_model,
        predictor.tokenizer,
        predictor.delimiters,
    )
    for speaker, ids in ((predictor, cut), (ending, cut[:first_stop])):
        answered = with_answer(speaker, prompt, len(prefix), 6)
        assert len(answered.rows) == len(prompt) + len(ids) - 1
        assert answered.spoken == len(prompt) - 1
        spoken = full_logits(speaker, answered.rows)[answered.spoken - len(prefix) :]
        assert spoken.argmax(axis=1).tolist() == ids
