"""A small vision-language model from scratch on procedural art: ``vaemotion train base``.

It stands where a pretrained SmolVLM2 would: it sees, answers and is frozen from here on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaemotion.contract import prompts
from vaemotion.contract.front_end import FrontEnd
from vaemotion.contract.image import prepare_frame
from vaemotion.data.instructions import choose_question, tokenizer_corpus, true_answer
from vaemotion.data.procedural_art import CONTENT_CLASSES, Work, draw_frame, sample_work, work_seed
from vaemotion.model.checkpoint import COMPONENT_DTYPE, round_in_place, save_checkpoint
from vaemotion.model.checkpoint_config import ModelConfig
from vaemotion.model.tokenizer import END_OF_TEXT_ID, SPECIAL_TOKENS, train_tokenizer
from vaemotion.model.vaemotion_llm import VAEmotionLLM
from vaemotion.training.config import BaseStage, TrainingConfig, VlmSize, read_training_config
from vaemotion.training.loop import fit

QUESTION_SHARES = {
    prompts.CONTENT: 0.4,
    prompts.CAPTION: 0.15,
    prompts.AROUSAL: 0.12,
    prompts.VALENCE: 0.13,
    prompts.EMOTION: 0.1,
    prompts.PALETTE: 0.1,
}
LATEST_S = 4.0  # windows end somewhere in the first seconds of a work


def train(config_file: Path, overrides: list[str], out: Path | None, resume: bool) -> None:
    """Run the stage; the checkpoint is written to ``out`` (default ``<runs>/base``), the training state beside it."""
    config = read_training_config(config_file, overrides)
    out = out or Path(config.runs) / "base"
    model = new_model(config)
    if run(model, config, out.with_name(out.name + ".training"), resume):
        round_in_place(model.base, COMPONENT_DTYPE["base"])
        save_checkpoint(model, out, {"name": config.name, "base": config.to_dict()}, config.licence)


def new_model(config: TrainingConfig) -> VAEmotionLLM:
    """A base of the configured size with random weights, and its tokenizer."""
    torch.manual_seed(config.seed)
    front_end = FrontEnd(config.log_mel, config.image, config.windows)
    tokenizer = train_tokenizer(tokenizer_corpus(), config.vlm.vocabulary)
    model_config = ModelConfig(vlm=vlm_config(config.vlm, config.image.side_px), front_end=front_end)
    model = VAEmotionLLM(model_config, tokenizer)
    initialise_tower(model)
    return model


def initialise_tower(model: VAEmotionLLM) -> None:
    """Scale the vision tower's initial weights to its small width. SmolVLM's 0.02 suits wide pretrained towers; in a narrow
    one it drowns the positions and the attention learns nothing for hundreds of steps (docs/log.md)."""
    vlm = model.base.model
    nn.init.normal_(vlm.vision_model.embeddings.position_embedding.weight, std=0.3)
    projection = vlm.connector.modality_projection.proj.weight  # (D, width * scale²)
    nn.init.normal_(projection, std=projection.shape[1] ** -0.5)


def vlm_config(size: VlmSize, side_px: int) -> dict[str, Any]:
    """The dictionary of a ``SmolVLMConfig``."""
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
            "initializer_range": 0.06,  # see initialise_tower
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


def frames_at(work: Work, now_s: float, count: int, front_end: FrontEnd) -> Tensor:
    """The newest ``count`` pictures of the window at ``now_s``, (count, 3, side, side)."""
    times = [now_s - k * front_end.windows.frame_spacing_s for k in reversed(range(count))]
    return torch.from_numpy(np.stack([prepare_frame(draw_frame(work, t), front_end.image) for t in times]))


def draw_batch(config: TrainingConfig, stage: BaseStage, step: int) -> dict[str, Any]:
    """Batch number ``step``: one frame count for all samples, so that nothing is padded but text."""
    rng = np.random.default_rng([config.seed, 1, step])
    weights = np.array(stage.frame_count_weights)
    count = int(rng.choice(np.array(stage.frame_counts), p=weights / weights.sum()))
    samples = min(stage.optimisation.batch, max(1, stage.frames_per_batch // count))
    front_end = FrontEnd(config.log_mel, config.image, config.windows)
    first = step * stage.optimisation.batch
    works = [sample_work(work_seed("train", first + i)) for i in range(samples)]
    earliest = (count - 1) * config.windows.frame_spacing_s
    pixels = [
        frames_at(work, float(rng.uniform(earliest, max(earliest, LATEST_S))), count, front_end)
        for work in works
    ]
    questions = [choose_question(rng, QUESTION_SHARES) for _ in works]
    return {
        "pixels": torch.stack(pixels),  # (B, count, 3, side, side)
        "questions": [q.text for q in questions],
        "answers": [true_answer(w, q) for w, q in zip(works, questions, strict=True)],
        "content": torch.tensor([CONTENT_CLASSES.index(w.content) for w in works]),
        "affect": torch.tensor([[w.valence, w.arousal] for w in works]),
    }


class AuxiliaryHead(nn.Module):
    """Disposable: content class and valence/arousal from mean and maximum of the visual tokens, (B, N_v, D) → (B, classes + 2).
    It nearly doubles early learning."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * width)
        self.out = nn.Linear(2 * width, len(CONTENT_CLASSES) + 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.norm(torch.cat([tokens.mean(1), tokens.amax(1)], dim=1)))


def run(
    model: VAEmotionLLM, config: TrainingConfig, out: Path, resume: bool, stop_after: int | None = None
) -> bool:
    """Train the base in place; True when complete (see ``loop.fit``)."""
    stage = config.base
    torch.manual_seed(config.seed + 1)
    auxiliary = AuxiliaryHead(model.width)

    def loss(batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        batch_size = len(batch["questions"])
        tokens = (
            model.vision(batch["pixels"].flatten(0, 1)).unflatten(0, (batch_size, -1)).flatten(1, 2)
        )  # (B, N_v, D)
        text = model.text_batch(batch["questions"], batch["answers"])
        logits = model.answer_logits(model.media_embeddings(tokens, None, batch_size), text)
        answer = F.cross_entropy(logits.float(), text.ids[text.answer])
        readout = auxiliary(tokens)
        content = F.cross_entropy(readout[:, :-2], batch["content"])
        affect = F.mse_loss(readout[:, -2:], batch["affect"].float())
        total = answer + stage.auxiliary_weight * (content + affect)
        return total, {"answer": answer.item(), "content": content.item(), "affect": affect.item()}

    return fit(
        "base", [model.base, auxiliary], lambda step: draw_batch(config, stage, step), loss, stage.optimisation, out,
        seed=config.seed, resume=resume, identity=config.identity("base"), stop_after=stop_after,
    )  # fmt: skip
