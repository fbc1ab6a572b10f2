"""A tiny random Llama with a byte-level BPE tokenizer, as GGUF and in torch, for several test folders."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from export.gguf.write import DecoderShape, GgufTokenizer, SpecialTokens, write_decoder_gguf

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
SPECIAL = SpecialTokens(bos_id=1, eos_id=2, pad_id=0)
CORPUS = [
    "The painting feels calm and warm, like rain on a summer evening in 1874.",
    "A dog barks; the drum answers with anger!",
    "Où est la lumière? Elle danse, légère et triste.",
    "awe, amusement, contentment, excitement, sadness, fear, disgust and anger",
    "What do you hear?\nA rooster, a clock and the sea waves.\n\n    indented code\tand tabs",
]


@dataclass(frozen=True)
class TinyLlama:
    """One random model, in torch and as arrays for GGUF."""

    model: LlamaForCausalLM
    tokenizer: Tokenizer
    tensors: dict[str, np.ndarray]
    shape: DecoderShape

    @property
    def token_embeddings(self) -> np.ndarray:
        """(vocab, D) float32."""
        return self.tensors["embed_tokens.weight"]

    def write(self, path: Path, file_type: str = "F32") -> dict[str, str]:
        """Write this model as GGUF and return the tensor types."""
        return write_decoder_gguf(
            path,
            self.tensors,
            self.shape,
            GgufTokenizer(self.tokenizer.to_str(), SPECIAL),
            file_type=file_type,
            name="tiny",
            license="Apache-2.0",
        )

    @torch.no_grad()
    def logits(self, embeddings: np.ndarray) -> np.ndarray:
        """Compute logits (n, vocab) of embeddings (n, D), both float32, by torch's `inputs_embeds`."""
        return self.model(inputs_embeds=torch.from_numpy(embeddings)[None]).logits[0].numpy()


def train_tokenizer(vocab_size: int = 400, *, split_digits: bool = True) -> Tokenizer:
    """Train a tokenizer of SmolLM's kind on a few sentences."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
        if split_digits
        else byte_level
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def make_tiny_llama(
    *, tied: bool = True, hidden_size: int = 256, intermediate_size: int = 768, layers: int = 2, seed: int = 0
) -> TinyLlama:
    """Make a seeded random Llama: 4 heads, 2 KV heads, a vocabulary a little larger than its tokenizer's."""
    tokenizer = train_tokenizer()
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size() + 16,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        rope_parameters={"rope_theta": 100_000.0, "rope_type": "default"},
        initializer_range=0.05,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        bos_token_id=SPECIAL.bos_id,
        eos_token_id=SPECIAL.eos_id,
        pad_token_id=SPECIAL.pad_id,
    )
    random_state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).eval()
    torch.set_rng_state(random_state)
    tensors = {name.removeprefix("model."): value.numpy() for name, value in model.state_dict().items()}
    return TinyLlama(model, tokenizer, tensors, DecoderShape.from_config(config))
