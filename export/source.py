"""The checkpoint that is exported: its model in memory, and the hashes of everything that was read.

In: a checkpoint folder. Out: `Source`, checked before the first step: complete, finite, expressible as GGUF.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.errors import ExportError
from export.gguf.write import GgufTokenizer, LlamaShape, SpecialTokens, check_llama, check_values
from export.to_onnx import Part, device_parts, use_eager_attention
from vaemotion.contract.bundle import sha256_of
from vaemotion.model.checkpoint import load_checkpoint, read_config
from vaemotion.model.vaemotion_llm import VAEmotionLLM

COMPONENTS = ("base", "audio", "adapter", "tokenizer")


@dataclass(frozen=True)
class Source:
    """A checkpoint in memory.

    ``stored``: its ``config.json``. ``parts``: the modules that become engines, by role. ``tokenizer``: the
    text of its ``tokenizer.json``.
    """

    model: VAEmotionLLM
    parts: Mapping[str, Part]
    stored: Mapping[str, Any]
    config_sha256: str
    tokenizer: str

    @property
    def name(self) -> str:
        return self.stored["lineage"]["name"]

    @property
    def license(self) -> str:
        """SPDX expression."""
        return self.stored["licence"]

    @property
    def knows_procedural_art(self) -> bool:
        """True for a checkpoint that was trained on procedural art, so that works of it calibrate."""
        stage = self.stored["lineage"].get("align")
        # Checkpoints that are older than the field were trained on nothing else.
        return stage is not None and stage.get("procedural", True)

    @property
    def config(self) -> dict[str, Any]:
        """Sizes and constants of the model, in JSON's types."""
        return self.model.config.to_dict()

    def hashes(self, *names: str) -> dict[str, str]:
        """Return the SHA-256 of components; of a base in another folder, a hash over its files."""
        return {name: _hash_of(self.stored["components"][name]) for name in names or COMPONENTS}

    def language_model_tensors(self) -> dict[str, np.ndarray[Any, Any]]:
        """Collect the decoder's weights under Llama's own names."""
        base = self.model.base
        tensors = {name: tensor.numpy() for name, tensor in base.model.text_model.state_dict().items()}
        if not base.config.text_config.tie_word_embeddings:
            tensors["lm_head.weight"] = base.lm_head.weight.detach().numpy()
        return tensors

    @property
    def gguf_tokenizer(self) -> GgufTokenizer:
        """The tokenizer as GGUF records it."""
        text_config = self.model.base.config.text_config
        special = SpecialTokens(text_config.bos_token_id, self.model.stop_id, text_config.pad_token_id)
        return GgufTokenizer(self.tokenizer, special)


def open_source(folder: Path) -> Source:
    """Load a checkpoint and check that it can be exported.

    Raises CheckpointError for a damaged one, MissingPartError for an unfinished one, and ExportError for a
    weight that is not finite or a language model that GGUF cannot express.
    """
    stored, config_sha256 = read_config(folder), sha256_of(folder / "config.json")
    model = load_checkpoint(folder)
    _refuse_not_finite(model)
    # The weights do not change, but the plain attention's results differ in the last bits. Set here, so that
    # no step depends on whether the one that traces the module ran before it.
    parts = device_parts(model)
    for part in parts.values():
        use_eager_attention(part.module)
    source = Source(model, parts, stored, config_sha256, _tokenizer_text(folder, stored))
    try:
        tensors = source.language_model_tensors()
        check_llama(tensors, LlamaShape.from_config(model.base.config.text_config), source.gguf_tokenizer)
        for name, tensor in tensors.items():
            check_values(name, tensor, "F16" if tensor.ndim > 1 else "F32")
    except ValueError as error:
        raise ExportError(f"this checkpoint cannot be exported: {error}") from error
    return source


def _tokenizer_text(folder: Path, stored: Mapping[str, Any]) -> str:
    entry = stored["components"]["tokenizer"]
    content = (folder / entry["file"]).read_bytes()
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise ExportError(f"{folder / entry['file']} was changed just now; run the same command again")
    return content.decode()


def _hash_of(entry: Mapping[str, Any]) -> str:
    if "reference" not in entry:
        return entry["sha256"]
    return hashlib.sha256(json.dumps(entry["files"], sort_keys=True).encode()).hexdigest()


def _refuse_not_finite(model: VAEmotionLLM) -> None:
    """Raise ExportError for a weight with NaN or infinity, because its engine would give nothing else."""
    for name, tensor in model.named_parameters():
        if not tensor.isfinite().all():
            raise ExportError(
                f"weight {name!r} of the checkpoint is not finite; use an earlier checkpoint of this training"
            )
