"""A small vision-language model from scratch on procedural art: ``vaemotion train base``.

It takes the place of a pretrained SmolVLM2: it answers questions about frames, and the later stages freeze
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vaemotion.contract import prompts
from vaemotion.contract.front_end import FrontEnd
from vaemotion.contract.image import prepare_frame
from vaemotion.data.art.art import Work, sample_work, work_seed
from vaemotion.data.art.line_shapes import LineShape, draw_line_shape, sample_line_shape
from vaemotion.data.art.targets import N_CONTENTS, N_VALUES, Targets, targets_of
from vaemotion.data.art.windows import frames_at
from vaemotion.data.instructions import (
    choose_question,
    tokenizer_corpus,
    true_answer,
    with_listed_options,
    worded,
)
from vaemotion.model.checkpoint import COMPONENT_DTYPE, round_in_place, save_checkpoint
from vaemotion.model.checkpoint_config import ModelConfig
from vaemotion.model.tokenizer import END_OF_TEXT_ID, SPECIAL_TOKENS, train_tokenizer
from vaemotion.model.vaemotion_llm import VAEmotionLLM
from vaemotion.training.config import TrainingConfig, VlmSize, read_training_config
from vaemotion.training.loop import LossTerms, Objective, TrainingRun, fit, process_state
from vaemotion.training.losses import answer_loss, masked_squared_error

QUESTION_SHARES = {
    prompts.CONTENT: 0.4,
    prompts.CAPTION: 0.15,
    prompts.AROUSAL: 0.12,
    prompts.VALENCE: 0.13,
    prompts.EMOTION: 0.1,
    prompts.PALETTE: 0.1,
}
LATEST_S = 4.0  # windows end within the first seconds of a work


def train(config_file: Path, overrides: list[str], out: Path | None, resume: bool) -> None:
    """Run the stage and write the checkpoint to ``out`` (default ``<runs>/base``).

    The training state lies beside it, in ``<out>.training``.
    """
    config = read_training_config(config_file, overrides)
    out = out or Path(config.runs) / "base"
    model = new_model(config)
    processes = process_state()
    if run(model, config, out.with_name(out.name + ".training"), resume) and processes.is_main_process:
        round_in_place(model.base, COMPONENT_DTYPE["base"])
        save_checkpoint(model, out, {"name": config.name, "base": config.lineage()}, config.licence)
    processes.wait_for_everyone()


def new_model(config: TrainingConfig) -> VAEmotionLLM:
    """Build a base of the configured size with random weights, and train its tokenizer."""
    torch.manual_seed(config.seed)
    front_end = FrontEnd(config.log_mel, config.image, config.windows)
    tokenizer = train_tokenizer(tokenizer_corpus(), config.vlm.vocabulary)
    model_config = ModelConfig(vlm=vlm_config(config.vlm, config.image.side_px), front_end=front_end)
    model = VAEmotionLLM(model_config, tokenizer)
    initialize_tower(model)
    return model


def initialize_tower(model: VAEmotionLLM) -> None:
    """Scale the vision tower's initial weights to its small width.

    SmolVLM's standard deviation of 0.02 suits wide pretrained towers. In a narrow one the positions are
    lost in the patches, and the attention learns nothing for hundreds of steps (docs/log.md).
    """
    vlm = model.base.model
    nn.init.normal_(vlm.vision_model.embeddings.position_embedding.weight, std=0.3)
    projection = vlm.connector.modality_projection.proj.weight  # (D, width * scale²)
    nn.init.normal_(projection, std=projection.shape[1] ** -0.5)


def vlm_config(size: VlmSize, side_px: int) -> dict[str, Any]:
    """Return the dictionary of a ``SmolVLMConfig``."""
    special = {name: index for index, name in enumerate(SPECIAL_TOKENS)}
    return {
        "scale_factor": size.scale_factor,
        "image_token_id": special["<image>"],
        "tie_word_embeddings": True,
        "pad_token_id": END_OF_TEXT_ID,
        "vision_config": {
            "hidden_size": size.vision_width,
            "intermediate_size": 4 * size.vision_width,
            "num_hidden_layers": size.vision_layers,
            "num_attention_heads": size.vision_heads,
            "image_size": side_px,
            "patch_size": size.patch_px,
            "initializer_range": 0.06,  # see initialize_tower
        },
        "text_config": {
            "model_type": "llama",
            "vocab_size": size.vocabulary,
            "hidden_size": size.text_width,
            "intermediate_size": size.text_mlp,
            "num_hidden_layers": size.text_layers,
            "num_attention_heads": size.text_heads,
            "num_key_value_heads": size.text_kv_heads,
            "max_position_embeddings": size.context_tokens,
            "tie_word_embeddings": True,
            "bos_token_id": END_OF_TEXT_ID,
            "eos_token_id": special["<end_of_utterance>"],
            "pad_token_id": END_OF_TEXT_ID,
        },
    }


def collate(config: TrainingConfig, numbers: Sequence[int]) -> dict[str, Any]:
    """Make the batch of these sample numbers.

    All samples of a step have the same number of frames, and all or none list their options, so that little
    is padded.
    """
    stage = config.base
    step_rng = np.random.default_rng([config.seed, 1, numbers[0] // stage.optimisation.batch])
    weights = np.array(stage.frame_count_weights)
    count = int(step_rng.choice(np.array(stage.frame_counts), p=weights / weights.sum()))
    listed = bool(step_rng.random() < stage.listed_share)
    samples = [_sample(config, number, count, listed) for number in numbers]
    pixels, questions, answers, targets = zip(*samples, strict=True)
    return {
        "pixels": torch.stack(pixels),  # (B, count, 3, side, side)
        "questions": list(questions),
        "answers": list(answers),
        "content": torch.tensor([t.content for t in targets]),  # (B,)
        "values": torch.tensor([t.values for t in targets]),  # (B, values)
    }


def _sample(
    config: TrainingConfig, number: int, count: int, listed: bool
) -> tuple[Tensor, str, str, Targets]:
    """Make one sample: frames (count, 3, side, side), question, answer and targets."""
    rng = np.random.default_rng([config.seed, 9, number])
    front_end = FrontEnd(config.log_mel, config.image, config.windows)
    seed = work_seed("train", number)
    if count == 1 and rng.random() < config.base.line_share:
        work: Work | LineShape = sample_line_shape(seed)
        pixels = torch.from_numpy(prepare_frame(draw_line_shape(work), front_end.image))[None]
        shares = {
            question: share for question, share in QUESTION_SHARES.items() if question != prompts.PALETTE
        }
    else:
        work, shares = sample_work(seed), QUESTION_SHARES
        earliest = (count - 1) * config.windows.frame_spacing_s
        now_s = float(rng.uniform(earliest, max(earliest, LATEST_S)))
        pixels = torch.from_numpy(frames_at(work, now_s, count, front_end))
    question = choose_question(rng, shares)
    text, answer = worded(rng, question), true_answer(work, question)
    if listed:
        text = with_listed_options(rng, question, text, answer)
    return pixels, text, answer, targets_of(work)


class AuxiliaryHead(nn.Module):
    """Content class and values from the mean and the maximum of tokens, discarded after the training.

    It nearly doubles the speed of early learning.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * width)
        self.out = nn.Linear(2 * width, N_CONTENTS + N_VALUES)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Read tokens (B, N, D) out as class logits (B, classes) and values (B, values)."""
        pooled = torch.cat([tokens.mean(1), tokens.amax(1)], dim=1)  # (B, 2 D)
        readout = self.out(self.norm(pooled))  # (B, classes + values)
        return readout[:, :N_CONTENTS], readout[:, N_CONTENTS:]


class BaseObjective(Objective):
    """Cross-entropy of the answers to frames, and the auxiliary head's losses."""

    def __init__(self, model: VAEmotionLLM, config: TrainingConfig) -> None:
        super().__init__()
        self.model, self.stage = model, config.base
        torch.manual_seed(config.seed + 1)
        self.auxiliary = AuxiliaryHead(model.width)

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, LossTerms]:
        """Compute the loss of a batch of ``collate``, a scalar, and its terms."""
        model, size = self.model, len(batch["questions"])
        encoded = model.vision(batch["pixels"].flatten(0, 1))  # (B · count, T, D)
        tokens = encoded.unflatten(0, (size, -1)).flatten(1, 2)  # (B, count · T, D)
        text = model.text_batch(batch["questions"], batch["answers"])  # ids (B, L)
        media = model.media_embeddings(tokens, None, size)
        logits = model.answer_logits(media, text)  # (M, vocab)
        answer = answer_loss(logits, text.ids[text.answer])
        class_logits, values = self.auxiliary(tokens)  # (B, classes), (B, values)
        content = answer_loss(class_logits, batch["content"])
        value = masked_squared_error(values, batch["values"])
        total = answer + self.stage.auxiliary_weight * (content + 2 * value)
        return total, {"answer": answer, "content": content, "values": value}


def run(
    model: VAEmotionLLM, config: TrainingConfig, out: Path, resume: bool, stop_after: int | None = None
) -> bool:
    """Train the base in place; True when complete (see ``loop.fit``)."""
    training_run = TrainingRun(out, config.seed, resume, config.identity("base"), stop_after)
    objective = BaseObjective(model, config)
    return fit("base", objective, partial(collate, config), config.base.optimisation, training_run)
