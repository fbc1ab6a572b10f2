"""The answers of the frozen base to visual tokens: the only teacher of stage 1.

In: blocks of encoded windows. Out: `Lessons`: questions with the teacher's own answers, in its own words,
and what it thinks of each window. They are kept in a file for each block, which several processes write
together, under a hash of the settings that they depend on. The filters are applied when they are read.

Four kinds of answers teach nothing, and are left out and counted: *cut* ones (no stop token came, and they
would teach to stop in the middle of a sentence), *incoherent* ones (from the fewest and from the most frames
the teacher says different things), *empty* ones (it answers as it does without a picture), and too many
repeats of one answer. Where one of these leaves nearly nothing, the run ends.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from vaemotion.contract import prompts
from vaemotion.contract.errors import UserError
from vaemotion.contract.prompts import folded
from vaemotion.contract.words import counted
from vaemotion.data.clips.source import ClipStream
from vaemotion.data.question_bank import QuestionBank
from vaemotion.model.checkpoint import write_tensors
from vaemotion.model.vaemotion_llm import ANSWER_TOKENS, Answer, Media, VAEmotionLLM
from vaemotion.training.block_files import block_file
from vaemotion.training.config import AlignStage
from vaemotion.training.encoded import (
    Block,
    EncodedWindows,
    WindowStore,
    encoded_blocks,
    encoded_stream,
    own_share,
)
from vaemotion.training.loop import process_state, seeded

QUESTIONS_PER_CLIP = 3
SAMPLING_TEMPERATURE = 0.7
MOST_LEFT_OUT = 0.95  # share of answers or clips beyond which a filter has found a fault
# A bound on repeats is meaningless for a handful of answers.
FEWEST_FOR_REPEATS = 20
_CHUNK = 64  # windows in one batch
_MOST_LOGITS = 1 << 24  # of answers that are compared at once

Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Lessons:
    """All answers that teach, m of them, about n windows."""

    window: Int32  # (m,) number of the window
    frame_count: Int32  # (m,) newest frames of the window that the teacher was given
    question: Int32  # (m,) index into the bank's audible questions
    answer: Int32  # (m,) index into ``answers``
    answers: tuple[str, ...]  # distinct
    name: Int32  # (n,) index into ``answers``: the answer to the bank's content question, from all frames
    hidden: Tensor  # (n, D) float16, the teacher's last state before that answer
    affect: Tensor  # (n, 2) mean level of valence and arousal by their probability, in [-1, 1]
    incoherent: int  # windows
    cut: int  # answers
    empty: int  # answers
    repeated: int  # answers

    def __len__(self) -> int:
        return len(self.window)

    def summary(self) -> dict[str, Any]:
        """Return the figures for the log and the lineage."""
        windows = max(1, len(self.name))
        return {
            "clips": len(self.name),
            "clips_filtered_as_incoherent": round(self.incoherent / windows, 4),
            "answers_filtered_as_cut": self.cut,
            "answers_filtered_as_empty": self.empty,
            "answers_filtered_as_repeats": self.repeated,
            "lessons": len(self),
            "distinct_answers": len(np.unique(self.answer)),
        }


class LessonStore:
    """Place of the lessons of a window store."""

    def __init__(
        self,
        windows: WindowStore,
        bank: QuestionBank,
        stage: AlignStage,
        data_seed: int,
        folder: Path,
        template: Any,
    ) -> None:
        self.windows, self.bank, self.stage, self.data_seed = windows, bank, stage, data_seed
        settings = {
            "windows": windows.digest,
            "bank": bank.sha256,
            "seed": data_seed,
            "frame_counts": list(stage.frame_counts),
            "sampled_share": stage.sampled_share,
            "sampling_temperature": SAMPLING_TEMPERATURE,
            "questions_per_clip": QUESTIONS_PER_CLIP,
            "answer_tokens": ANSWER_TOKENS,
            "whole_answers": True,  # is told of each answer
            "prompt": asdict(template),
        }
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        self.folder = folder / f"lessons-{digest}"

    def file(self, number: int) -> Path:
        """Return the file of a block."""
        return block_file(self.folder, number)


def teach(model: VAEmotionLLM, store: LessonStore, workers: int) -> tuple[EncodedWindows, Lessons]:
    """Encode and ask about the blocks that are missing, this process's share, and read all of them.

    Raises UserError when the teacher gives no answer that teaches.
    """
    processes = process_state()
    source = store.windows.windows.source
    if isinstance(source, ClipStream):
        if processes.is_main_process:
            for block in encoded_stream(model, store.windows, "teacher"):
                if not store.file(block.number).exists():
                    _ask_about(model, block, store)
    else:
        mine = [
            number
            for number in own_share(store.windows.numbers())
            if not (store.file(number).exists() and store.windows.file(number).exists())
        ]
        for block in encoded_blocks(model, store.windows, mine, workers, "teacher"):
            _ask_about(model, block, store)
    processes.wait_for_everyone()
    windows = EncodedWindows(store.windows)
    lessons = _read(store, windows)
    refuse_useless(lessons)
    return windows, lessons


def refuse_useless(lessons: Lessons) -> None:
    """Raise UserError when a filter leaves nearly nothing, or when the teacher gives all clips one name."""
    clips, heard = len(lessons.name), len(lessons) + lessons.empty + lessons.repeated
    cut, said = lessons.cut, lessons.cut + heard
    reasons = (
        (
            cut,
            said,
            f"answers did not end within {ANSWER_TOKENS} tokens",
            "ask for shorter ones in a question bank of your own, align.questions",
        ),
        (
            lessons.incoherent,
            clips,
            "clips look like something else from fewer frames",
            "give other clips, or raise align.incoherent_bits",
        ),
        (
            lessons.empty,
            heard,
            "answers are the same without a picture",
            "check the base and its questions, or lower align.empty_bits",
        ),
    )
    for left_out, whole, fault, way_out in reasons:
        if left_out > MOST_LEFT_OUT * whole:
            raise UserError(f"the teacher teaches nearly nothing: {left_out} of {whole} {fault}; {way_out}")
    if not len(lessons):
        raise UserError(
            f"the teacher teaches nothing: of {counted(clips, 'clip')} {lessons.incoherent} incoherent; of "
            f"the answers about the others {cut} cut, {lessons.empty} empty, {lessons.repeated} repeats"
        )
    if clips >= FEWEST_FOR_REPEATS and len(set(lessons.name.tolist())) < 2:
        raise UserError(
            f"the teacher calls all {clips} clips {lessons.answers[lessons.name[0]]!r}: no content can be "
            "learned from it; ask another first question in align.questions, or give other clips"
        )


def _ask_about(model: VAEmotionLLM, block: Block, store: LessonStore) -> None:
    """Ask the teacher about the windows of a block, and write its lessons whole."""
    stage, bank = store.stage, store.bank
    views: list[tuple[Tensor, Tensor, Tensor]] = []  # each (B,), (B, D), (B, 2)
    names: list[Answer] = []
    for start in range(0, len(block.items), _CHUNK):
        chunk = range(start, min(start + _CHUNK, len(block.items)))
        view, said = _views(model, block, chunk, bank.content.text, stage)
        views.append(view)
        names += said
    asked = _ask(model, block, store)
    incoherent_bits, hidden, affect = (
        (torch.cat(each) for each in zip(*views, strict=True))
        if views
        else (torch.zeros(0), torch.zeros(0, model.width), torch.zeros(0, 2))
    )
    rows = np.array([row[:3] for row in asked], np.int32).reshape(-1, 3)
    tensors = {
        "incoherent_bits": incoherent_bits,
        "hidden": hidden.half(),
        "affect": affect,
        "asked": torch.from_numpy(rows),  # (m, 3) row of the window, frames, question
        "whole": torch.tensor([row[3].whole for row in asked], dtype=torch.bool),
        "empty_bits": torch.tensor([row[4] for row in asked], dtype=torch.float32),
    }
    header = {"answers": [row[3].text for row in asked], "names": [name.text for name in names]}
    write_tensors(store.file(block.number), tensors, {"lessons": json.dumps(header)})


def _views(
    model: VAEmotionLLM, block: Block, chunk: Sequence[int], question: str, stage: AlignStage
) -> tuple[tuple[Tensor, Tensor, Tensor], list[Answer]]:
    """Return bits between views (B,), last state (B, D) and affect (B, 2) of windows, and their names."""
    few, many, newest = (
        model.media_embeddings(block.tokens(chunk, count).to(model.device), None, len(chunk))
        for count in (
            min(stage.frame_counts),
            max(stage.frame_counts),
            model.config.front_end.windows.language_frames,
        )
    )
    names = model.generate(many, question)
    bits = answer_divergence(model, few, many, [question] * len(chunk), [name.text for name in names])
    scales = ((prompts.VALENCE, prompts.VALENCE_WORDS), (prompts.AROUSAL, prompts.AROUSAL_WORDS))
    levels = [mean_level(model, newest, asked.text, words) for asked, words in scales]
    return (bits, model.last_state(many, question).cpu(), torch.stack(levels, dim=1).cpu()), names


def _ask(model: VAEmotionLLM, block: Block, store: LessonStore) -> list[tuple[int, int, int, Answer, float]]:
    """Return rows (window, frames, question, answer, bits): some answers greedy, the others sampled."""
    questions = store.bank.audible
    shares = np.array([question.share for question in questions])
    groups: dict[tuple[int, int, bool], list[int]] = {}
    for row, index in enumerate(block.indexes):
        rng = np.random.default_rng([store.data_seed, 4, index])
        for _ in range(QUESTIONS_PER_CLIP):
            count = int(rng.choice(np.array(store.stage.frame_counts)))
            question = int(rng.choice(len(questions), p=shares / shares.sum()))
            sampled = bool(rng.random() < store.stage.sampled_share)
            groups.setdefault((count, question, sampled), []).append(row)
    asked: list[tuple[int, int, int, Answer, float]] = []
    for number, ((count, question, sampled), rows) in enumerate(sorted(groups.items())):
        text = questions[question].text
        seed = seeded(store.data_seed, 5, block.number, number)
        torch.manual_seed(int(seed.initial_seed()))
        media = model.media_embeddings(block.tokens(rows, count).to(model.device), None, len(rows))
        blind = model.media_embeddings(None, None, len(rows))
        temperature = SAMPLING_TEMPERATURE if sampled else 0.0
        answers = model.generate(media, text, temperature=temperature)
        said = [answer.text for answer in answers]
        bits = answer_divergence(model, media, blind, [text] * len(rows), said).tolist()
        asked += [
            (row, count, question, answer, bit)
            for row, answer, bit in zip(rows, answers, bits, strict=True)
            if answer.text
        ]
    return asked


@torch.no_grad()
def answer_divergence(
    model: VAEmotionLLM, media: Media, other: Media, questions: Sequence[str], answers: Sequence[str]
) -> Tensor:
    """Return how far two views part along an answer: the largest divergence at any of its tokens, (B,) bits.

    Jensen-Shannon divergence of the next-token distributions from media and from other media, at every token
    of the answer and at the stop token.
    """
    bits = torch.zeros(len(answers))
    longest = max(len(model.option_ids(answer)) for answer in answers)
    step = max(1, _MOST_LOGITS // (longest * model.vocabulary))  # rows at a time
    for start in range(0, len(answers), step):
        part = slice(start, start + step)
        text = model.text_batch(questions[part], answers[part])
        first, second = (
            model.answer_logits(each[part], text).float().log_softmax(-1) for each in (media, other)
        )  # (M, vocab) each
        owner = text.answer.nonzero()[:, 0].cpu()  # (M,) row of each answer token
        bits[part] = bits[part].scatter_reduce(0, owner, divergence_bits(first, second).cpu(), "amax")
    return bits


def divergence_bits(first: Tensor, second: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence of log-probabilities (M, vocab), (M,) bits in [0, 1]."""
    middle = torch.logaddexp(first, second) - math.log(2)
    sides = [F.kl_div(middle, side, reduction="none", log_target=True).sum(-1) for side in (first, second)]
    return (sides[0] + sides[1]).clamp_min(0) / (2 * math.log(2))


@torch.no_grad()
def mean_level(model: VAEmotionLLM, media: Media, question: str, words: Sequence[str]) -> Tensor:
    """Ask for one of the level words and average the levels by their probability, (B,) in [-1, 1].

    words: from the lowest level to the highest.
    """
    return level_from_scores(model, model.option_scores(media, question, words), words)


def level_from_scores(model: VAEmotionLLM, scores: Tensor, words: Sequence[str]) -> Tensor:
    """Average the middles of the levels by the probability of their words, (B,) in [-1, 1].

    scores: (B, words) from ``VAEmotionLLM.option_scores``, which are means over each word's tokens.
    """
    lengths = torch.tensor([len(model.option_ids(word)) for word in words], device=scores.device)  # (words,)
    log_probabilities = scores * lengths  # (B, words)
    middles = (2 * torch.arange(len(words)) + 1) / len(words) - 1  # (words,)
    return log_probabilities.softmax(1) @ middles.to(scores.device)


def _read(store: LessonStore, windows: EncodedWindows) -> Lessons:
    """Read the lessons of all blocks, and leave out those that teach nothing."""
    stage, begin = store.stage, 0
    ids: dict[str, int] = {}
    rows: list[Int32] = []  # each (m, 4): window, frames, question, answer
    names: list[int] = []
    hidden, affect = [torch.zeros(0, 0, dtype=torch.float16)], [torch.zeros(0, 2)]
    incoherent = cut = empty = 0
    for number in store.windows.numbers():
        with safe_open(store.file(number), framework="pt") as opened:
            header = json.loads(opened.metadata()["lessons"])
            asked, empty_bits = opened.get_tensor("asked").numpy(), opened.get_tensor("empty_bits").numpy()
            bits, is_whole = opened.get_tensor("incoherent_bits").numpy(), opened.get_tensor("whole").numpy()
            hidden.append(opened.get_tensor("hidden"))
            affect.append(opened.get_tensor("affect"))
        said = np.array([ids.setdefault(answer, len(ids)) for answer in header["answers"]], np.int32)
        names += [ids.setdefault(answer, len(ids)) for answer in header["names"]]
        is_coherent = bits <= stage.incoherent_bits  # (n of the block,)
        tells = empty_bits > stage.empty_bits  # (m,)
        in_coherent = is_coherent[asked[:, 0]]  # (m,)
        incoherent += int((~is_coherent).sum())
        cut += int((in_coherent & ~is_whole).sum())
        empty += int((in_coherent & is_whole & ~tells).sum())
        table = np.column_stack([asked[:, 0] + begin, asked[:, 1], asked[:, 2], said])
        rows.append(table[in_coherent & is_whole & tells].astype(np.int32))
        begin += len(bits)
    assert begin == len(windows), "lessons and windows are of the same blocks"
    table = np.concatenate(rows) if rows else np.zeros((0, 4), np.int32)
    kept = kept_repeats(table[:, 2], table[:, 3], stage.repeat_share, store.data_seed)
    window, frame_count, question, answer = (np.ascontiguousarray(column) for column in table[kept].T)
    return Lessons(
        window,
        frame_count,
        question,
        answer,
        tuple(ids),
        np.array(names, np.int32),
        torch.cat([part for part in hidden if part.shape[1]]) if begin else hidden[0],
        torch.cat(affect),
        incoherent,
        cut,
        empty,
        int((~kept).sum()),
    )


def kept_repeats(question: Int32, answer: Int32, most: float, seed: int) -> npt.NDArray[np.bool_]:
    """Choose lessons so that no answer is more than the share ``most`` of its question's answers, (m,) bool.

    question: (m,), answer: (m,). Which repeats stay is drawn by the seed. Questions with few answers are left
    as they are.
    """
    kept = np.ones(len(question), bool)
    for asked in np.unique(question):
        mine = np.flatnonzero(question == asked)
        if len(mine) < FEWEST_FOR_REPEATS:
            continue
        values, counts = np.unique(answer[mine], return_counts=True)
        top = int(counts.argmax())
        allowed = math.floor(most / max(1e-9, 1 - most) * (len(mine) - counts[top]))
        if counts[top] > allowed:
            same = mine[answer[mine] == values[top]]
            rng = np.random.default_rng([seed, 17, int(asked)])
            kept[rng.permutation(same)[allowed:]] = False
    return kept


def is_named(label: str, answer: str) -> bool:
    """Return True where an answer names a label: its words stand in the answer, together and in order."""
    wanted, said = folded(label).split(), folded(answer).replace(",", " ").replace(".", " ").split()
    return any(said[k : k + len(wanted)] == wanted for k in range(len(said) - len(wanted) + 1))
