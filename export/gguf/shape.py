"""Shape of a decoder: the sizes and constants that GGUF records of it, and its tensors.

In: the decoder's configuration by transformers, or weights under their Hugging Face names. Out:
`DecoderShape`, or one ValueError that names everything which llama.cpp would compute otherwise.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from export.gguf.architectures import BY_NAME, Architecture, architecture_of
from export.gguf.rope import Rope, rope_of


@dataclass(frozen=True)
class DecoderShape:
    """Sizes and constants of a decoder, as GGUF records them beside its weights."""

    architecture: str
    """GGUF's name, a key of `architectures.BY_NAME`."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    rope: Rope
    rms_norm_eps: float
    context_length: int
    """Positions up to which llama.cpp computes what transformers does."""
    tied: bool
    """The output head is the token embedding."""
    biased: tuple[str, ...] = ()
    """Projections of each layer with a bias, such as `self_attn.q_proj`."""
    remarks: tuple[str, ...] = ()
    """Remarks for the user of the file, one sentence each."""

    @classmethod
    def from_config(cls, config: Any, *, tied: bool | None = None) -> "DecoderShape":
        """Read a configuration of transformers 5; ValueError for what llama.cpp computes otherwise.

        tied: whether the output head is the token embedding; None: as the configuration says.
        """
        architecture = architecture_of(config)
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        if problems := list(_problems(config, architecture, head_dim)):
            raise ValueError(f"config: {'; '.join(problems)}")
        window = _attention_window(config)
        context_length = config.max_position_embeddings
        remarks: tuple[str, ...] = ()
        if window is not None and window < context_length:
            remarks = (
                f"each token attends to the last {window}, a limit that llama.cpp does not have: the file's "
                f"context length is {window}, not {context_length}",
            )
            context_length = window
        return cls(
            architecture=architecture.name,
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            n_layers=config.num_hidden_layers,
            n_heads=config.num_attention_heads,
            n_kv_heads=config.num_key_value_heads or config.num_attention_heads,
            head_dim=head_dim,
            rope=rope_of(config, architecture),
            rms_norm_eps=float(config.rms_norm_eps),
            context_length=context_length,
            tied=bool(config.tie_word_embeddings) if tied is None else tied,
            biased=architecture.biases_in(config),
            remarks=remarks,
        )


def _problems(config: Any, architecture: Architecture, head_dim: int) -> Iterator[str]:
    """Yield what llama.cpp would leave out or compute otherwise."""
    name = architecture.name
    if config.hidden_act != "silu":
        yield f"hidden_act is {config.hidden_act!r}, expected 'silu'"
    unread = [part for part in architecture.biases_in(config) if part not in architecture.read_biases]
    if unread:
        yield f"biases of {', '.join(unread)} are nothing that llama.cpp reads for {name}"
    heads_width = config.num_attention_heads * head_dim
    if architecture.heads_span_width and heads_width != config.hidden_size:
        yield (
            f"{config.num_attention_heads} heads of {head_dim} are {heads_width} wide, expected hidden_size "
            f"{config.hidden_size} for {name}"
        )
    if every := architecture.unrotated_every:
        expected = [int(number % every != 0) for number in range(1, config.num_hidden_layers + 1)]
        if list(config.no_rope_layers) != expected:
            yield (
                f"no_rope_layers is {list(config.no_rope_layers)}, expected 0 for each {every}th layer and 1 "
                f"for the others, as llama.cpp has it for {name}"
            )


def _attention_window(config: Any) -> int | None:
    """Return the tokens that each one attends to, itself among them; None where it is all before it."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and "sliding_attention" not in kinds:
        return None
    return getattr(config, "sliding_window", None)


# -- tensors ------------------------------------------------------------------------------------------


def expected_shapes(shape: DecoderShape) -> dict[str, tuple[int, ...]]:
    """List the Hugging Face tensor names of a decoder with shapes `(out, in)`, in file order."""
    d, q, kv = shape.hidden_size, shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
    per_layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (d,),
        "self_attn.q_proj.weight": (q, d),
        "self_attn.k_proj.weight": (kv, d),
        "self_attn.v_proj.weight": (kv, d),
        "self_attn.o_proj.weight": (d, q),
        "post_attention_layernorm.weight": (d,),
        "mlp.gate_proj.weight": (shape.intermediate_size, d),
        "mlp.up_proj.weight": (shape.intermediate_size, d),
        "mlp.down_proj.weight": (d, shape.intermediate_size),
    }
    if BY_NAME[shape.architecture].head_norms:
        per_layer |= {f"self_attn.{part}_norm.weight": (shape.head_dim,) for part in "qk"}
    per_layer |= {f"{part}.bias": per_layer[f"{part}.weight"][:1] for part in shape.biased}
    expected: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (shape.vocab_size, d)}
    for layer in range(shape.n_layers):
        expected |= {f"layers.{layer}.{name}": size for name, size in per_layer.items()}
    return expected | {"norm.weight": (d,), "lm_head.weight": (shape.vocab_size, d)}


def check_tensors(tensors: Mapping[str, np.ndarray], shape: DecoderShape) -> None:
    """Raise one ValueError for all tensors that are missing, extra or of a wrong shape."""
    expected = expected_shapes(shape)
    problems = [
        f"{name}: expected shape {size}, is missing"
        for name, size in expected.items()
        if name not in tensors and not (shape.tied and name == "lm_head.weight")
    ]
    for name, size in _sizes(tensors).items():
        if name not in expected:
            problems.append(
                f"{name}: not a tensor of a {shape.architecture} decoder with {shape.n_layers} layers (names "
                "have no prefix)"
            )
        elif size != expected[name]:
            problems.append(f"{name}: expected shape {expected[name]}, got {size}")
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ValueError("tensors: " + "; ".join(problems[:8]) + more)
    if shape.tied and "lm_head.weight" in tensors:
        head, table = tensors["lm_head.weight"], tensors["embed_tokens.weight"]
        if not np.array_equal(head, table, equal_nan=True):
            raise ValueError(
                "lm_head.weight: differs from embed_tokens.weight although shape.tied is True; pass "
                "tied=False"
            )


def _sizes(tensors: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor, without reading the data of a mapping that knows it."""
    known = getattr(tensors, "shapes", None)
    return known() if known else {name: tuple(tensor.shape) for name, tensor in tensors.items()}
