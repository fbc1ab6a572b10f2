"""The whole model: positions of its predictions, and a base that the audio pathway leaves unchanged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.tiny import tiny_config, tiny_model
from vaemotion.model.checkpoint import read_config, save_checkpoint
from vaemotion.model.vaemotion_llm import Media, MissingPartError, VAEmotionLLM
from vaemotion.training.vg_align import with_audio_pathway

QUESTIONS = ["What is this?", "Which emotion does it express?", "Describe it."]
ANSWERS = ["rooster", "awe", "a sea waves, very calm and unpleasant"]


def media(model: VAEmotionLLM, batch: int = 3, *, audio: bool = True) -> Media:
    generator = torch.Generator().manual_seed(0)
    visual = torch.randn(batch, 8, model.width, generator=generator)
    tokens = torch.randn(batch, 5, model.width, generator=generator) if audio else None
    return model.media_embeddings(visual, tokens, batch)


def plain_logits(model: VAEmotionLLM, embeddings: Tensor) -> Tensor:
    """Run HF's own whole-model forward on one unpadded sequence, (P + L, D) → (P + L, vocab)."""
    with torch.no_grad():
        return model.base(inputs_embeds=embeddings[None]).logits[0]


def test_text_is_question_answer_and_stop_and_only_answer_and_stop_are_to_be_predicted() -> None:
    model = tiny_model()
    text = model.text_batch(QUESTIONS, ANSWERS)
    for row, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)):
        ids = text.ids[row, text.mask[row]].tolist()
        head = model.tokenizer.encode(
            f" {question}<end_of_utterance>\nAssistant:", add_special_tokens=False
        ).ids
        assert ids[: len(head)] == head
        assert ids[-1] == model.tokenizer.token_to_id("<end_of_utterance>")
        assert text.ids[row, text.answer[row]].tolist() == ids[len(head) :]
        assert model.tokenizer.decode(ids[len(head) : -1]) == f" {answer}"
    assert not (text.answer & ~text.mask).any()  # padding is never a target
    assert (~text.mask).any()  # and there is some


def test_answer_logits_are_those_of_the_position_before_each_answer_token() -> None:
    model = tiny_model()
    text, before = model.text_batch(QUESTIONS, ANSWERS), media(model)
    with torch.no_grad():
        logits = model.answer_logits(before, text)
    assert logits.shape == (int(text.answer.sum()), 384)
    start = 0
    for row in range(3):
        ids = text.ids[row, text.mask[row]]
        full = plain_logits(model, torch.cat([before.embeddings[row], model.embed(ids)]))
        n_answer = int(text.answer[row].sum())
        first = before.embeddings.shape[1] + len(ids) - n_answer  # where the first answer token stands
        by_hand = torch.stack([full[first + k - 1] for k in range(n_answer)])
        torch.testing.assert_close(logits[start : start + n_answer], by_hand, atol=1e-4, rtol=1e-4)
        unshifted = full[first : first + n_answer]
        assert (by_hand - unshifted).abs().max() > 0.01  # the test could tell them apart
        start += n_answer
    assert start == len(logits)


def test_padding_does_not_change_a_rows_logits() -> None:
    model = tiny_model()
    before = media(model)
    with torch.no_grad():
        together = model.answer_logits(before, model.text_batch(QUESTIONS, ANSWERS))
        alone = [
            model.answer_logits(before[r : r + 1], model.text_batch([QUESTIONS[r]], [ANSWERS[r]]))
            for r in range(3)
        ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)


def test_ids_under_the_padding_do_not_matter() -> None:
    model = tiny_model()
    text = model.text_batch(QUESTIONS, ANSWERS)
    other = replace(text, ids=torch.where(text.mask, text.ids, 77))
    with torch.no_grad():
        assert torch.equal(model.answer_logits(media(model), text), model.answer_logits(media(model), other))


def test_an_answer_without_a_question_is_predicted_from_the_media() -> None:
    model = tiny_model()
    text = model.text_batch(QUESTIONS[:1], ANSWERS[:1])
    only = text.answer[0]
    bare = replace(text, ids=text.ids[:, only], mask=text.mask[:, only], answer=text.answer[:, only])
    before = media(model, 1)
    with torch.no_grad():
        logits = model.answer_logits(before, bare)
    full = plain_logits(model, torch.cat([before.embeddings[0], model.embed(bare.ids[0])]))
    torch.testing.assert_close(logits, full[before.embeddings.shape[1] - 1 : -1], atol=1e-4, rtol=1e-4)


def test_media_stand_in_order_prefix_visual_delimiter_audio_delimiter() -> None:
    model = tiny_model()
    visual, audio = torch.full((2, 3, model.width), 5.0), torch.full((2, 4, model.width), 7.0)
    delimiters = model.audio_pathway.delimiters
    prefix = model.embed(torch.tensor(model.token_ids("<|im_start|>User:")))
    n = len(prefix)
    whole = model.media_embeddings(visual, audio, 2).embeddings
    assert whole.shape == (2, n + 3 + 1 + 4 + 1, model.width)
    assert torch.equal(whole[1, :n], prefix)
    assert (whole[1, n : n + 3] == 5).all()
    assert torch.equal(whole[1, n + 3], delimiters[0])
    assert (whole[1, n + 4 : n + 8] == 7).all()
    assert torch.equal(whole[1, n + 8], delimiters[1])
    assert torch.equal(model.media_embeddings(None, audio, 2).embeddings[:, n:], whole[:, n + 3 :])
    assert torch.equal(model.media_embeddings(visual, None, 2).embeddings, whole[:, : n + 3])


def greedily(model: VAEmotionLLM, before: Tensor, question: str, max_tokens: int) -> str:
    """Generate token by token, each time from the whole sequence."""
    ids = model.token_ids(model.template.question_text(question))
    answer: list[int] = []
    for _ in range(max_tokens):
        logits = plain_logits(model, torch.cat([before, model.embed(torch.tensor(ids + answer))]))
        answer.append(int(logits[-1].argmax()))
        if answer[-1] == model.stop_id:
            return model.tokenizer.decode(answer[:-1]).strip()
    return model.tokenizer.decode(answer).strip()


def test_greedy_generation_equals_a_full_evaluation_at_every_step() -> None:
    model = tiny_model()
    before = media(model)
    generated = [answer.text for answer in model.generate(before, QUESTIONS[0], max_tokens=12)]
    assert generated == [greedily(model, row, QUESTIONS[0], 12) for row in before.embeddings]
    assert len(set(generated)) > 1  # the media matter, or the test could not fail


def test_each_row_stops_at_its_own_stop_token() -> None:
    model = tiny_model()
    before = media(model, 6)
    with torch.no_grad():  # make "stop" likely enough for rows to end at different lengths
        for seed in range(200):
            torch.manual_seed(seed)
            model.backbone.embedding.weight[model.stop_id] = torch.randn(model.width) * 0.4
            expected = [greedily(model, row, QUESTIONS[0], 10) for row in before.embeddings]
            if len({len(model.token_ids(text)) for text in expected}) > 2 and "" in expected:
                break
    assert len(set(expected)) > 2
    assert "" in expected
    answers = model.generate(before, QUESTIONS[0], max_tokens=10)
    assert [answer.text for answer in answers] == expected
    assert {answer.whole for answer in answers} == {True, False}  # some are cut


def test_sampling_follows_the_seed_and_is_not_greedy() -> None:
    model = tiny_model()
    before = media(model)
    answers = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        answers.append(model.generate(before, QUESTIONS[0], max_tokens=8, temperature=5.0))
    assert answers[0] == answers[1] != answers[2]


def base_logits(model: VAEmotionLLM) -> tuple[Tensor, Tensor]:
    """Compute logits from text alone, and from frames."""
    pixels = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(3)) * 2 - 1
    with torch.no_grad():
        text = model.text_batch(QUESTIONS[:2], ANSWERS[:2])
        visual = model.vision(pixels)
        return (
            model.answer_logits(model.media_embeddings(None, None, 2), text),
            model.answer_logits(model.media_embeddings(visual, None, 2), text),
        )


def test_an_audio_pathway_changes_no_logits_without_audio(tmp_path: Path) -> None:
    """Logits of text and of frames keep their bits when the audio pathway is added and trained."""
    model = tiny_model(audio=False, adapter=False)
    before = base_logits(model)
    save_checkpoint(model, tmp_path / "base", {}, "Apache-2.0")
    model = with_audio_pathway(model, tiny_config()).train()
    pathway = model.audio_pathway
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1
    )
    text = model.text_batch(QUESTIONS[:2], ANSWERS[:2])
    delimiters = pathway.delimiters.detach().clone()
    for _ in range(2):
        audio = pathway(torch.randn(2, 50, 32))
        logits = model.answer_logits(model.media_embeddings(None, audio, 2), text)
        F.cross_entropy(logits, text.ids[text.answer]).backward()
        optimizer.step()
    assert not torch.equal(pathway.delimiters, delimiters)  # something was learned
    for trained, reference in zip(base_logits(model.eval()), before, strict=True):
        assert (trained - reference).abs().max().item() == 0.0
    save_checkpoint(model, tmp_path / "align", {}, "Apache-2.0")
    hashes = [read_config(tmp_path / stage)["components"]["base"]["sha256"] for stage in ("base", "align")]
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize(
    ("part", "accessor", "message"),
    [
        ("audio", "audio_pathway", "no audio pathway; run `vaemotion train align` first"),
        ("adapter", "emo_adapter", "no EmoAdapter; run `vaemotion train emotion` first"),
    ],
)
def test_a_stages_part_is_absent_before_it(part: str, accessor: str, message: str) -> None:
    model = tiny_model(audio=part == "adapter", adapter=False)
    assert getattr(model, part) is None
    with pytest.raises(MissingPartError, match=message):
        getattr(model, accessor)
    complete = tiny_model()
    assert getattr(complete, accessor) is getattr(complete, part)
