"""A checkpoint or a bundle as a predictor.

In: a model in torch, whose modules stand behind the engines' methods, or a folder. Out: a `Predictor`.
torch is imported only where a checkpoint is used, so that a bundle is evaluated without it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from runtime.engines.language_model import Generation
from runtime.perception.predictor import Constants, Predictor, open_predictor
from vaemotion.contract.bundle import MANIFEST_FILE
from vaemotion.contract.errors import UsageError
from vaemotion.contract.positions import text_places
from vaemotion.contract.speech import UNSET, Speech

if TYPE_CHECKING:
    from export.to_onnx import Part
    from vaemotion.model.vaemotion_llm import Media, VAEmotionLLM

Float32 = npt.NDArray[np.float32]


class TorchEngine:
    """A part of the checkpoint behind an engine's ``run``."""

    def __init__(self, part: Part) -> None:
        self.part = part
        part.module.eval()

    def run(self, arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run the module on arrays by input name. Returns arrays by output name."""
        import torch

        with torch.no_grad():
            out = self.part.module(*(torch.from_numpy(arrays[name]) for name in self.part.inputs))
        values = out if isinstance(out, tuple) else (out,)
        return {name: value.numpy() for name, value in zip(self.part.outputs, values, strict=True)}


class TorchLanguageModel:
    """The checkpoint's own language model, the reference: each option is scored over the full sequence."""

    available = True

    def __init__(self, model: VAEmotionLLM) -> None:
        self.model = model
        self.context_tokens = int(model.backbone.longest_context)
        self._prefix = self.embed([])

    def embed(self, token_ids: Sequence[int]) -> Float32:
        """Look up the embeddings of token ids, (n, D), with places as ``LanguageModel.embed``."""
        import torch

        with torch.no_grad():
            rows = self.model.embed(torch.tensor(list(token_ids), dtype=torch.long)).numpy()
        return rows if self.model.backbone.grid is None else np.hstack([rows, text_places(len(rows))])

    def set_prefix(self, embeddings: Float32) -> None:
        """Keep the embeddings (n, D) that stand before every prompt."""
        self._prefix = embeddings

    def logits(self, embeddings: Float32) -> Float32:
        """Compute the logits of all n positions behind the prefix, (n, vocab), of embeddings (n, D)."""
        import torch

        with torch.no_grad():
            media = self._behind_prefix(embeddings)
            hidden = self.model.states(media, media.embeddings[:, :0]).last_hidden_state[0]
            return self.model.backbone.head(hidden[len(self._prefix) :]).float().numpy()

    def score(self, prompt: Float32, options: Sequence[Sequence[int]]) -> npt.NDArray[np.float64]:
        """Compute the mean token log-probability of each option after prefix and prompt, (options,)."""
        import torch

        longest = max(len(option) for option in options)
        with torch.no_grad():
            # Padded on the right: a causal model's earlier positions do not see the padding.
            padded = torch.tensor(
                [[*option, *[0] * (longest - len(option))] for option in options]
            )  # (n, longest)
            media = self._behind_prefix(prompt, len(options))
            hidden = self.model.states(media, self.model.embed(padded)).last_hidden_state
            rows = self.model.backbone.head(hidden[:, -longest - 1 : -1]).double().log_softmax(-1)
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
        """Continue prefix and prompt (n, D) greedily."""
        import torch

        tokens: list[int] = []
        media, cache = self._behind_prefix(prompt), None
        step = media.embeddings[:, :0]
        with torch.no_grad():
            while len(tokens) < max_tokens:
                if should_abort is not None and should_abort():
                    return Generation(tuple(tokens), complete=False, aborted=True)
                out = self.model.states(media, step, cache=cache, use_cache=True)
                cache = out.past_key_values
                token = int(self.model.backbone.head(out.last_hidden_state[0, -1]).argmax())
                if token in stop_ids:
                    return Generation(tuple(tokens), complete=True, aborted=False)
                tokens.append(token)
                step = self.model.embed(torch.tensor([[token]]))
        return Generation(tuple(tokens), complete=False, aborted=False)

    def _behind_prefix(self, rows: Float32, batch: int = 1) -> Media:
        """Return prefix and rows as the start of ``batch`` equal sequences."""
        import torch

        from vaemotion.model.vaemotion_llm import Media

        whole, width = np.concatenate([self._prefix, rows]), self.model.width
        places = None if self.model.backbone.grid is None else whole[:, width:]
        return Media(torch.from_numpy(whole[:, :width]).expand(batch, -1, -1), places)


def full_logits(predictor: Predictor[Any], prompt: Float32) -> Float32:
    """Compute a predictor's logits behind the prefix, (n, vocab), for a prompt that holds its prefix."""
    language_model = predictor.language_model
    behind = prompt[len(predictor.token_ids(predictor.constants.prompt.prefix)) :]
    if isinstance(language_model, TorchLanguageModel):
        return language_model.logits(behind)
    return language_model.logits(behind, all_positions=True)


def checkpoint_constants(model: VAEmotionLLM, speech: Speech = UNSET) -> Constants:
    """Collect the constants that a predictor needs of a checkpoint.

    ``speech``: of its bundle, because a checkpoint sets none.
    """
    return Constants(
        model.config.front_end,
        model.config.prompt,
        model.tokens_per_frame,
        model.audio_pathway.n_tokens,
        model.width,
        model.stop_ids,
        model.emo_adapter.config.emotions,
        speech,
        picture_grid=model.backbone.grid,
    )


def checkpoint_predictor(model: VAEmotionLLM, speech: Speech = UNSET) -> Predictor[Any]:
    """Make the predictor of a complete checkpoint, in torch. ``speech``: of its bundle."""
    from export.to_onnx import device_parts

    engines = {role: TorchEngine(part) for role, part in device_parts(model).items()}
    delimiters = model.audio_pathway.delimiters.detach().numpy()
    constants = checkpoint_constants(model, speech)
    return Predictor(constants, engines, TorchLanguageModel(model), model.tokenizer, delimiters)


@contextmanager
def load_predictor(model: Path) -> Generator[Predictor[Any]]:
    """Open a bundle (a folder with ``manifest.json``) or a checkpoint (``config.json``) as a predictor."""
    if (model / MANIFEST_FILE).is_file():
        with open_predictor(model) as predictor:
            yield predictor
    elif (model / "config.json").is_file():
        from vaemotion.model.checkpoint import load_checkpoint

        yield checkpoint_predictor(load_checkpoint(model))
    else:
        raise UsageError(f"{model} is neither a bundle ({MANIFEST_FILE}) nor a checkpoint (config.json)")
