"""A checkpoint as a ``predict`` callable: its torch modules stand behind the engines' methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from export.to_onnx import Part, device_parts
from runtime.language_model import Generation
from runtime.predictor import Constants, Predictor
from vaemotion.model.vaemotion_llm import VAEmotionLLM

Float32 = npt.NDArray[np.float32]


class TorchEngine:
    """A part of the checkpoint behind an engine's ``run``."""

    def __init__(self, part: Part) -> None:
        self.part = part
        part.module.eval()

    @torch.no_grad()
    def run(self, arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        out = self.part.module(*(torch.from_numpy(arrays[name]) for name in self.part.inputs))
        values = out if isinstance(out, tuple) else (out,)
        return {name: value.numpy() for name, value in zip(self.part.outputs, values, strict=True)}


class TorchLanguageModel:
    """The checkpoint's own language model without any cache, every option over the full sequence: the reference."""

    def __init__(self, model: VAEmotionLLM) -> None:
        self.model = model
        self.context_tokens = int(model.base.config.text_config.max_position_embeddings)
        self._prefix = np.zeros((0, model.width), np.float32)

    @torch.no_grad()
    def embed(self, token_ids: Sequence[int]) -> Float32:
        return self.model.embed(torch.tensor(list(token_ids), dtype=torch.long)).numpy()

    def set_prefix(self, embeddings: Float32) -> None:
        self._prefix = embeddings

    @torch.no_grad()
    def logits(self, embeddings: Float32) -> Float32:
        """After prefix + embeddings (n, D): all n positions, (n, vocab)."""
        sequence = torch.from_numpy(np.concatenate([self._prefix, embeddings]))[None]
        hidden = self.model.base.model.text_model(inputs_embeds=sequence).last_hidden_state[0]
        return self.model.base.lm_head(hidden[len(self._prefix) :]).float().numpy()

    @torch.no_grad()
    def score(self, prompt: Float32, options: Sequence[Sequence[int]]) -> npt.NDArray[np.float64]:
        longest = max(len(option) for option in options)
        # Padded on the right: a causal model's earlier positions do not see it.
        padded = torch.tensor(
            [[*option, *[0] * (longest - len(option))] for option in options]
        )  # (n, longest)
        head = torch.from_numpy(np.concatenate([self._prefix, prompt])).expand(len(options), -1, -1)
        sequences = torch.cat([head, self.model.embed(padded)], dim=1)  # (n, prefix + prompt + longest, D)
        hidden = self.model.base.model.text_model(inputs_embeds=sequences).last_hidden_state
        rows = self.model.base.lm_head(hidden[:, -longest - 1 : -1]).double().log_softmax(-1)
        taken = rows.gather(2, padded[:, :, None])[..., 0]  # (n, longest)
        return np.array([taken[i, : len(option)].mean().item() for i, option in enumerate(options)])

    def generate(
        self,
        prompt: Float32,
        *,
        max_tokens: int,
        stop_ids: Sequence[int],
        should_abort: Callable[[], bool] | None = None,
    ) -> Generation:
        """Continue prefix + prompt (n, D) greedily, the whole sequence anew for every token."""
        tokens: list[int] = []
        while len(tokens) < max_tokens:
            if should_abort is not None and should_abort():
                return Generation(tuple(tokens), complete=False, aborted=True)
            token = int(self.logits(np.concatenate([prompt, self.embed(tokens)]))[-1].argmax())
            if token in stop_ids:
                return Generation(tuple(tokens), complete=True, aborted=False)
            tokens.append(token)
        return Generation(tuple(tokens), complete=False, aborted=False)


def checkpoint_constants(model: VAEmotionLLM) -> Constants:
    """What the predictor must know of a checkpoint."""
    assert model.audio is not None
    return Constants(
        model.config.front_end,
        model.config.prompt,
        model.tokens_per_picture,
        model.audio.n_tokens,
        model.width,
        model.stop_id,
    )


def checkpoint_predictor(model: VAEmotionLLM) -> Predictor:
    """A complete checkpoint's predictor, in torch."""
    engines = {role: TorchEngine(part) for role, part in device_parts(model).items()}
    assert model.audio is not None
    delimiters = model.audio.delimiters.detach().numpy()
    return Predictor(
        checkpoint_constants(model), engines, TorchLanguageModel(model), model.tokenizer, delimiters
    )
