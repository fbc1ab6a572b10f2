"""Verification of a bundle against its checkpoint, on real inputs.

In: a bundle and the predictor that it must match, the checkpoint's in torch. Out: an `Edge` for each
comparison: torch → ONNX Runtime for each engine, torch → GGUF logits where answers are spoken, with
embeddings as input, tokenizers → llama.cpp, and the whole chain from video frames and sound to answers and
affect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from rich.progress import track
from tokenizers import Tokenizer

from export.answers import AnsweredPrompt, with_answer
from export.clips import CLIPS, ComparedClip, ComparedClips, engine_inputs, language_prompts
from export.gguf.quality import kl_and_top1
from export.predictors import checkpoint_constants, checkpoint_predictor, full_logits
from runtime.commands.verify import Edge, VerificationError, golden_edges, report
from runtime.engines.golden import (
    ENGINE_TOLERANCE,
    SMALLEST_LOGIT_TOLERANCE,
    SMALLEST_TOLERANCE,
    WIDE,
    component_key,
    is_quantized,
    logit_error,
    logit_key,
    logit_tolerance,
    relative_difference,
)
from runtime.engines.language_model import open_language_model
from runtime.engines.llama import tokenize
from runtime.engines.open import OnnxRuntimeEngine
from runtime.perception.predictor import Constants, Predictor, open_predictor
from vaemotion.contract import prompts
from vaemotion.contract.bundle import (
    ENGINE_ROLES,
    Component,
    Manifest,
    component_path,
    read_manifest,
    sha256_of,
    verify_files,
)
from vaemotion.contract.prediction import Prediction
from vaemotion.contract.terminal import Terminal
from vaemotion.data.clips.held_out import open_held_out

if TYPE_CHECKING:
    from vaemotion.model.vaemotion_llm import VAEmotionLLM

Array = npt.NDArray[Any]
LOGIT_CLIPS = 10  # of the clips, those on which language models answer
ANSWER_TOKENS = 16  # of each answer, at most
AGREEMENT = 0.99  # share of questions with the same answer
AFFECT_TOLERANCE = 1e-3
# For the precisions that the machine prefers. The export judges them on many more windows: these limits only
# tell a broken engine from a coarse one.
COARSE_AGREEMENT, COARSE_AFFECT_TOLERANCE = 0.5, 0.25
# Of GGUF files where answers are spoken: share of positions with the same likeliest token, and KL in nats per
# token. First of files in floating point, then of quantized ones (measured: docs/verification.md).
SAME_TOKEN, COARSE_SAME_TOKEN = 0.98, 0.5
LARGEST_KL_NATS, COARSE_LARGEST_KL_NATS = 1e-3, 0.05
PROFILE_BATCHES = (1, 8)  # least and most of TensorRT's profile; it is tuned for the least
TOKENIZER_CORPUS = (
    "<|im_start|>User: What is this?<end_of_utterance>\nAssistant: a dog bark, very stirring",
    "Crème brûlée à la façon de Zoë — naïve, 3,14 € (½) …",
    "日本語 中文 한국어 العربية हिन्दी",
    "🎨🎻👩🏽‍🎤 emoji, tabs\tand\r\nlines   with   spaces  ",
    "It's we're they'll I'd DON'T x2y 1234567890 a_b-c/d\\e",
)


def verify(
    bundle: Path,
    against: Path,
    clips: int = CLIPS,
    manifest: Path | None = None,
    media_root: Path = Path(),
) -> None:
    """Compare a bundle with a checkpoint on ``clips`` clips, golden vectors included, and print a table.

    The clips are windows of held-out media of ``manifest``; None for procedural art. Raises BundleError for a
    damaged bundle, VerificationError for a difference that is too large, UserError for a manifest without
    media that can be compared on.
    """
    from vaemotion.model.checkpoint import load_checkpoint

    listed = read_manifest(bundle)
    verify_files(bundle, listed)
    model = load_checkpoint(against)
    front_end = model.config.front_end
    media = None if manifest is None else open_held_out(str(manifest), media_root, front_end)
    if sha256_of(against / "config.json") != listed.lineage.get("checkpoint_config_sha256"):
        Terminal(stderr=True).print(
            f"{bundle} was not exported from {against}; they are compared nevertheless", style="yellow"
        )
    report(bundle, verify_against(bundle, model, ComparedClips(front_end, clips, media)))


def verify_against(bundle: Path, model: VAEmotionLLM, clips: ComparedClips) -> list[Edge]:
    """Compare a bundle with the model it was exported from; golden vectors first.

    Raises VerificationError for a model with other constants.
    """
    manifest = read_manifest(bundle)
    if Constants.of(manifest) != checkpoint_constants(model, manifest.speech):
        raise VerificationError(
            "the bundle and the checkpoint have different constants: they are of different models"
        )
    edges = golden_edges(bundle, manifest)
    listed = checks(bundle, manifest, partial(checkpoint_predictor, model, manifest.speech), clips)
    return edges + [edge for check in listed for edge in check.run()]


def measured_tolerances(edges: Sequence[Edge]) -> dict[str, float]:
    """Return the tolerances for a manifest: twice the differences from golden vectors that were measured."""
    tolerances: dict[str, float] = {}
    for edge in edges:
        if edge.component.startswith("language_model/"):
            tolerances[logit_key(edge.component)] = max(SMALLEST_LOGIT_TOLERANCE, 2 * edge.measured)
        else:
            tolerances[edge.component] = max(SMALLEST_TOLERANCE, 2 * edge.measured)
    return tolerances


@dataclass(frozen=True)
class Check:
    """One group of comparisons.

    ``components``: the files that it opens; ``clips``: how many it runs on. ``question``: of narrations,
    where it asks it.
    """

    name: str
    components: tuple[Component, ...]
    clips: int
    run: Callable[[], list[Edge]]
    question: str = ""


def checks(
    bundle: Path, manifest: Manifest, predictor: Callable[[], Predictor[Any]], clips: ComparedClips
) -> list[Check]:
    """List the comparisons of a bundle with the predictor that it was made of. Nothing runs yet."""
    reference, count = _Reference(predictor, clips), clips.count
    tables = tuple(c for c in manifest.components if c.precision == "none")
    engines = [c for c in manifest.components if c.role in ENGINE_ROLES]
    language_models = [c for c in manifest.components if c.role == "language_model"]
    listed = [
        Check(f"engine {c.label}", (c,), count, partial(_engine_edges, bundle, c, reference)) for c in engines
    ]
    for component in language_models:
        compare = partial(_logit_edges, bundle, manifest, component, reference)
        opened, question = (component, *tables), Constants.of(manifest).narrator_question
        listed.append(Check(f"logits {component.label}", opened, min(count, LOGIT_CLIPS), compare, question))
    first = manifest.component("language_model")
    compare = partial(_tokenizer_edges, component_path(bundle, first), reference)
    listed.append(Check(f"tokenizer {first.label}", (first,), 0, compare))
    fp32 = [manifest.component(role, "fp32") for role in ENGINE_ROLES]
    if exact := [c for c in language_models if c.precision == "F16"]:  # an assembled bundle may have none
        compare = partial(_fp32_chain_edges, bundle, reference)
        listed.append(Check("chain FP32", (*fp32, *exact, *tables), count, compare))
    if len({c.precision for c in engines}) > 1:
        compare = partial(_preferred_chain_edges, bundle, reference)
        listed.append(Check("chain as preferred", (*engines, *language_models, *tables), count, compare))
    return listed


class _Reference:
    """The predictor that a bundle must match, and held-out clips, made when a comparison needs them."""

    def __init__(self, predictor: Callable[[], Predictor[Any]], clips: ComparedClips) -> None:
        self._predictor, self._clips = predictor, clips

    @cached_property
    def predictor(self) -> Predictor[Any]:
        return self._predictor()

    @property
    def clips(self) -> list[ComparedClip]:
        return self._clips()

    @cached_property
    def inputs(self) -> dict[str, dict[str, Array]]:
        """Inputs of each engine by role, one row for each clip that has them."""
        return engine_inputs(self.predictor, self.clips)

    @cached_property
    def prompts(self) -> list[AnsweredPrompt]:
        """Prompts with the checkpoint's own answers."""
        prefix_tokens = len(self.predictor.token_ids(self.predictor.constants.prompt.prefix))
        return [
            with_answer(self.predictor, prompt, prefix_tokens, ANSWER_TOKENS)
            for prompt in language_prompts(self.predictor, self.clips[:LOGIT_CLIPS])
        ]

    @cached_property
    def logits(self) -> Array:
        """Logits of every position where the answers are spoken, (n, vocab)."""
        return np.concatenate(
            [
                full_logits(self.predictor, prompt.rows)[prompt.spoken - len(prompt.rows) :]
                for prompt in self.prompts
            ]
        )


def _engine_edges(bundle: Path, component: Component, reference: _Reference) -> list[Edge]:
    """Compare an engine file with torch, at the batches of TensorRT's profile and at that of all clips."""
    engine = OnnxRuntimeEngine(component_path(bundle, component), component)
    inputs = reference.inputs[component.role]
    edges: list[Edge] = []
    rows = len(next(iter(inputs.values())))
    for batch in sorted({min(size, rows) for size in (*PROFILE_BATCHES, rows)}):
        arrays = {name: array[:batch] for name, array in inputs.items()}
        expected, got = reference.predictor.engines[component.role].run(arrays), engine.run(arrays)
        edges.append(engine_edge(component, batch, expected, got))
    return edges


def engine_edge(
    component: Component, batch: int, expected: Mapping[str, Array], got: Mapping[str, Array]
) -> Edge:
    """Compare all outputs of one engine, by name.

    A bundle of a version before the induced outputs lacks them; the outputs that it has are compared.
    """
    pairs = [relative_difference(expected[name], value) for name, value in got.items()]
    rows = [(expected[n].reshape(batch, -1), v.reshape(batch, -1)) for n, v in got.items()]
    cosines = np.concatenate([row_cosines(a, b) for a, b in rows if a.shape[1] >= WIDE])
    return Edge(
        "engine",
        f"{component.role}/{component.precision}",
        f"engine, batch {batch}",
        max(pair[0] for pair in pairs),
        ENGINE_TOLERANCE[component.precision],
        max(pair[1] for pair in pairs),
        cosine_min=float(cosines.min()),
        cosine_p1=float(np.quantile(cosines, 0.01)),
        sqnr_db=min(sqnr_db(a, b) for a, b in rows),
    )


def row_cosines(expected: Array, got: Array) -> Array:
    """Compute the cosine of each pair of rows, (n,)."""
    norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(got, axis=1)
    return (expected * got).sum(1) / np.maximum(norms, 1e-12)


def sqnr_db(expected: Array, got: Array) -> float:
    """Compute the ratio of signal to quantization noise in dB; 200 where there is no noise."""
    noise = float(np.square(expected - got, dtype=np.float64).sum())
    return 200.0 if noise == 0 else float(10 * np.log10(np.square(expected, dtype=np.float64).sum() / noise))


def _logit_edges(bundle: Path, manifest: Manifest, component: Component, reference: _Reference) -> list[Edge]:
    """Compare a GGUF file's logits with torch's where the checkpoint's answers are spoken."""
    with open_language_model(bundle, manifest, component, f32_kv=True) as language_model:
        rows: list[Array] = []
        for prompt in reference.prompts:
            language_model.set_prefix(prompt.rows[: prompt.spoken])
            rows.append(language_model.logits(prompt.rows[prompt.spoken :], all_positions=True))
    return logit_edges(component, reference.logits, np.concatenate(rows))


def logit_edges(component: Component, expected: Array, got: Array) -> list[Edge]:
    """Compare a language model's logits (n, vocab) with the expected ones.

    They are judged by the error relative to their spread, by the likeliest token and by divergence.
    """
    found, worst = kl_and_top1(expected, got), float(logit_error(expected, got).max())
    rounded = is_quantized(component.precision)
    same = COARSE_SAME_TOKEN if rounded else SAME_TOKEN
    edge = partial(Edge, "logits", component_key(component))
    return [
        edge(
            "error of logits / their spread", worst, logit_tolerance(component.precision), found.logit_error
        ),
        edge(
            f"share of {found.positions} likeliest tokens alike",
            found.same_top1_share,
            _one_may_differ(same, found.positions),
            found.same_top1_share,
            at_least=True,
        ),
        edge(
            "KL in nats, mean (p99)",
            found.mean_kl_nats,
            COARSE_LARGEST_KL_NATS if rounded else LARGEST_KL_NATS,
            found.p99_kl_nats,
        ),
    ]


def _one_may_differ(share: float, count: int) -> float:
    """Return the least share of ``count`` choices alike: one may differ, two can be equally likely."""
    return min(share, 1 - 1 / count)


def _tokenizer_edges(gguf: Path, reference: _Reference) -> list[Edge]:
    """Compare llama.cpp's tokenizer, from the GGUF's metadata, with ``tokenizers``: share of equal texts."""
    corpus = [
        *TOKENIZER_CORPUS,
        *(prompts.PromptTemplate().question_text(q.text) for q in prompts.STANDARD_QUESTIONS),
    ]
    tokenizer: Tokenizer = reference.predictor.tokenizer
    normalize = tokenizer.normalizer.normalize_str if tokenizer.normalizer else str
    theirs = tokenize(gguf, [normalize(text) for text in corpus])
    ours = [tokenizer.encode(text, add_special_tokens=False).ids for text in corpus]
    share = float(np.mean([a == b for a, b in zip(ours, theirs, strict=True)]))
    what = "share of texts llama.cpp tokenises alike"
    return [Edge("tokenizer", "language_model", what, share, 1.0, share, at_least=True)]


def _fp32_chain_edges(bundle: Path, reference: _Reference) -> list[Edge]:
    with open_predictor(bundle, precision="fp32", language_type="F16", warn=False) as predictor:
        return _chain_edges("fp32", predictor, reference, AGREEMENT, AFFECT_TOLERANCE)


def _preferred_chain_edges(bundle: Path, reference: _Reference) -> list[Edge]:
    """Compare the chain in the precisions that this machine would run."""
    with open_predictor(bundle, warn=False) as predictor:
        return _chain_edges("preferred", predictor, reference, COARSE_AGREEMENT, COARSE_AFFECT_TOLERANCE)


def _chain_edges(
    name: str, predictor: Predictor[Any], reference: _Reference, agreement: float, tolerance: float
) -> list[Edge]:
    """Compare answers and affect of two predictors on every clip and path."""
    same: list[bool] = []
    affect: list[list[float]] = []
    console = Terminal(stderr=True)
    for compared in track(reference.clips, f"whole chain, {name}", console=console, transient=True):
        for path in compared.paths:
            questions = compared.questions(path)
            expected, got = (p(compared.clip, path, questions) for p in (reference.predictor, predictor))
            same += [
                int(a.argmax()) == int(b.argmax()) for a, b in zip(expected.answers, got.answers, strict=True)
            ]
            affect.append(affect_difference(expected, got))
    differences = np.array(affect)  # (clips * paths, 2, or 4 with the induced emotion)
    alike = float(np.mean(same))
    what = f"share of {len(same)} answers alike"
    least = _one_may_differ(agreement, len(same))
    edges = [Edge("chain", f"chain/{name}", what, alike, least, alike, at_least=True)]
    names = ("valence", "arousal", "induced valence", "induced arousal")[: differences.shape[1]]
    for column, dimension in enumerate(names):
        worst, mean = float(differences[:, column].max()), float(differences[:, column].mean())
        edges.append(Edge("chain", f"chain/{name}", f"|Δ {dimension}|", worst, tolerance, mean))
    return edges


def affect_difference(expected: Prediction, got: Prediction) -> list[float]:
    """Compute the absolute differences of valence and arousal: expressed, then induced where both have it."""
    pairs: Sequence[tuple[Any, Any]] = [(expected.affect, got.affect)]
    if expected.induced is not None and got.induced is not None:
        pairs = [*pairs, (expected.induced, got.induced)]
    return [abs(getattr(a, name) - getattr(b, name)) for a, b in pairs for name in ("valence", "arousal")]
