"""A byte-level BPE tokenizer for a small model.

It is of the kind that SmolLM2 uses: llama.cpp's pre-tokenizer "smollm".
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<end_of_utterance>")
END_OF_TEXT_ID = 0


def train_tokenizer(corpus: Iterable[str], vocabulary: int) -> Tokenizer:
    """Train a tokenizer of at most ``vocabulary`` tokens: the special ones, all 256 bytes, and merges.

    Text is NFC-normalized; every digit is a token of its own.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer
