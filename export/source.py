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
from export.gguf.write import DecoderShape, GgufTokenizer, SpecialTokens, check_decoder, check_values
from export.to_onnx import Part, device_parts, use_eager_attention
from vaemotion.contract.bundle import sha256_of
from vaemotion.contract.prompts import PromptTemplate
from vaemotion.model.chat_template import find_chat
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
        """Collect the decoder's weights under their own names."""
        return {name: tensor.numpy() for name, tensor in self.model.backbone.decoder_tensors().items()}

    @property
    def decoder_shape(self) -> DecoderShape:
        """The decoder's sizes as GGUF records them. Raises ValueError for one that it cannot express."""
        backbone = self.model.backbone
        return DecoderShape.from_config(backbone.text_config, tied=backbone.tied)

    @property
    def gguf_tokenizer(self) -> GgufTokenizer:
        """The tokenizer as GGUF records it, with a chat template for llama.cpp's own programs."""
        text_config = self.model.backbone.text_config
        first, *more = self.model.stop_ids
        special = SpecialTokens(text_config.bos_token_id, first, text_config.pad_token_id, tuple(more))
        return GgufTokenizer(self.tokenizer, special, self._chat_template())

    def _chat_template(self) -> str:
        """Return the base's own chat template, or one that asks a question as this model was trained."""
        base = self.model.base_folder
        chat = find_chat(base) if base is not None else None
        return chat.template if chat is not None else _asking(self.model.template)


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
        check_decoder(tensors, source.decoder_shape, source.gguf_tokenizer)
        for name, tensor in tensors.items():
            check_values(name, tensor, "F16" if tensor.ndim > 1 else "F32")
    except ValueError as error:
        raise ExportError(f"this checkpoint cannot be exported: {error}") from error
    return source


def _asking(prompt: PromptTemplate) -> str:
    """Write a prompt without media as a Jinja template; every question of a conversation is asked alike."""
    mark = "\0"
    before, behind = prompt.question_text(mark).split(mark)
    lead, trail = prompt.answer_text(mark).split(mark)
    said = {
        "user": (prompt.prefix + before, behind),
        "assistant": (lead, trail + prompt.stop),
    }
    cases = (
        f"{{% if message['role'] == '{role}' %}}"
        f"{{{{ {json.dumps(head)} + message['content'] + {json.dumps(tail)} }}}}{{% endif %}}"
        for role, (head, tail) in said.items()
    )
    return f"{{% for message in messages %}}{''.join(cases)}{{% endfor %}}"


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
