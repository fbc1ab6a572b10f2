"""Verification: every edge of an export, and the whole chain, on real inputs.

Edges: torch → ONNX Runtime for each engine, torch → GGUF logits with embeddings as input, tokenizers → llama.cpp, and
picture and sound → answers and affect through everything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track
from tokenizers import Tokenizer

from export.gguf_quality import kl_and_top1
from export.predictors import TorchLanguageModel, checkpoint_constants, checkpoint_predictor
from runtime.engines import OnnxRuntimeEngine
from runtime.llama import tokenise
from runtime.predictor import Constants, Predictor, adapter_inputs, open_predictor
from runtime.self_test import (
    ENGINE_TOLERANCE,
    LOGIT_TOLERANCE,
    Edge,
    VerificationError,
    golden_edges,
    open_language_model,
    relative_difference,
    report,
)
from vaemotion.contract import prompts
from vaemotion.contract.audio import log_mel
from vaemotion.contract.bundle import (
    ENGINE_ROLES,
    Component,
    Manifest,
    component_path,
    read_manifest,
    sha256_of,
    verify_files,
)
from vaemotion.contract.front_end import PATHS, Clip, EncoderInputs, window_at
from vaemotion.contract.image import prepare_frame
from vaemotion.contract.prediction import Prediction, Question
from vaemotion.data.instructions import procedural_clip
from vaemotion.data.procedural_art import CONTENT_CLASSES, draw_frame, sample_work, synthesise, work_seed
from vaemotion.model.checkpoint import load_checkpoint
from vaemotion.model.vaemotion_llm import VAEmotionLLM

Array = npt.NDArray[Any]
CLIPS = 40  # held-out works on which an export is compared with its checkpoint
CLIP_S = 3.2
AGREEMENT = 0.99  # share of questions with the same answer
AFFECT_TOLERANCE = 1e-3
# Of the precisions that the machine prefers, which the export has judged on many more windows: this tells broken from coarse.
COARSE_AGREEMENT, COARSE_AFFECT_TOLERANCE = 0.5, 0.25
LARGEST_KL_NATS = 0.05
PROFILE_BATCHES = (1, 8)  # least and most of TensorRT's profile; the least is also what it is tuned for
LEAST_COSINE_WIDTH = 16  # two numbers have no angle worth measuring
QUESTIONS = (
    Question(prompts.CONTENT.text, CONTENT_CLASSES, "content"),
    Question(prompts.AROUSAL.text, prompts.AROUSAL_WORDS, "emotion"),
    Question(prompts.VALENCE.text, prompts.VALENCE_WORDS, "emotion"),
)
TOKENIZER_CORPUS = (
    "<|im_start|>User: What is this?<end_of_utterance>\nAssistant: a dog bark, very stirring",
    "Crème brûlée à la façon de Zoë — naïve, 3,14 € (½) …",
    "日本語 中文 한국어 العربية हिन्दी",
    "🎨🎻👩🏽‍🎤 emoji, tabs\tand\r\nlines   with   spaces  ",
    "It's we're they'll I'd DON'T x2y 1234567890 a_b-c/d\\e",
)


def verify(bundle: Path, against: Path) -> None:
    """``vaemotion verify --against``: every edge between the bundle and a checkpoint, golden vectors included.

    Raises BundleError or VerificationError; prints the table of what was compared.
    """
    manifest = read_manifest(bundle)
    verify_files(bundle, manifest)
    model = load_checkpoint(against)
    if sha256_of(against / "config.json") != manifest.lineage["checkpoint_config_sha256"]:
        Console(stderr=True).print(
            f"[yellow]{bundle} was not exported from {against}[/]; comparing all the same"
        )
    report(bundle, verify_against(bundle, model))


# --- golden vectors ---------------------------------------------------------------------------------------------------


def golden_vectors(model: VAEmotionLLM) -> dict[str, Array]:
    """Inputs and the outputs they must give, computed in torch from one held-out work; names are ``what/tensor``."""
    work = sample_work(work_seed("validation", 0))
    front_end = model.config.front_end
    samples, picture = synthesise(work, 1.0), draw_frame(work, 1.0)
    golden: dict[str, Array] = {
        "log_mel/samples": samples,
        "log_mel/output": log_mel(samples, front_end.log_mel),
        "pixels/picture": picture,
        "pixels/output": prepare_frame(picture, front_end.image),
    }
    predictor = checkpoint_predictor(model)
    inputs = engine_inputs(predictor, held_out_clips(model, 1))
    for role in ENGINE_ROLES:
        outputs = predictor.engines[role].run(inputs[role])
        golden |= {f"{role}/in/{name}": array for name, array in inputs[role].items()}
        golden |= {f"{role}/out/{name}": array for name, array in outputs.items()}
    prompt = language_prompts(predictor, held_out_clips(model, 1))[0]
    golden["language_model/in/embeddings"] = prompt
    golden["language_model/out/logits"] = full_logits(predictor.language_model, predictor, prompt)[-1:]
    return golden


# --- edges to the checkpoint -------------------------------------------------------------------------------------------


def verify_against(bundle: Path, model: VAEmotionLLM, count: int = CLIPS) -> list[Edge]:
    """Every edge between a bundle and the checkpoint it came from on ``count`` clips, golden vectors first."""
    manifest = read_manifest(bundle)
    reference = checkpoint_predictor(model)
    if checkpoint_constants(model) != Constants.of(manifest):
        raise VerificationError(
            "the bundle's constants are not the checkpoint's: they are of different models"
        )
    clips = held_out_clips(model, count)
    edges = golden_edges(bundle, manifest)
    edges += engine_edges(bundle, manifest, reference, clips)
    edges += logit_edges(bundle, manifest, reference, clips[:10])
    edges += tokenizer_edges(bundle, manifest, model.tokenizer)
    return edges + chain_edges(bundle, manifest, reference, clips)


def held_out_clips(model: VAEmotionLLM, count: int) -> list[Clip]:
    """Clips of procedural works that no training and no calibration sees."""
    hop_s = model.config.front_end.windows.frame_hop_s
    return [procedural_clip(sample_work(work_seed("validation", i)), CLIP_S, hop_s) for i in range(count)]


def engine_inputs(predictor: Predictor, clips: Sequence[Clip]) -> dict[str, dict[str, Array]]:
    """Real inputs of each engine, one row per clip (the paths in turn for the adapter)."""
    front_end = predictor.constants.front_end
    windows = [window_at(clip, clip.duration_s, "audio-visual", front_end) for clip in clips]
    rows: list[dict[str, Array]] = []
    for index, clip in enumerate(clips):
        inputs = window_at(clip, clip.duration_s, PATHS[index % len(PATHS)], front_end)
        rows.append(dict(adapter_inputs(predictor.encode(inputs), predictor.constants)))
    return {
        "vision_encoder": {"pixels": np.concatenate([w.pixels[-1:] for w in windows])},
        "audio_encoder": {"log_mel": np.concatenate([w.log_mel for w in windows])},
        "emo_adapter": {name: np.concatenate([row[name] for row in rows]) for name in rows[0]},
    }


def engine_edges(bundle: Path, manifest: Manifest, reference: Predictor, clips: Sequence[Clip]) -> list[Edge]:
    """torch → ONNX Runtime for every engine file, at the batches that TensorRT's profile names and at that of all clips."""
    inputs = engine_inputs(reference, clips)
    edges: list[Edge] = []
    for component in (c for c in manifest.components if c.role in ENGINE_ROLES):
        engine = OnnxRuntimeEngine(component_path(bundle, component), component)
        for batch in sorted({min(size, len(clips)) for size in (*PROFILE_BATCHES, len(clips))}):
            arrays = {name: array[:batch] for name, array in inputs[component.role].items()}
            expected, got = reference.engines[component.role].run(arrays), engine.run(arrays)
            edges.append(engine_edge(component, batch, expected, got))
    return edges


def engine_edge(
    component: Component, batch: int, expected: Mapping[str, Array], got: Mapping[str, Array]
) -> Edge:
    """All outputs of one engine. A bundle from before the induced outputs lacks them; what it has is compared."""
    pairs = [relative_difference(expected[name], value) for name, value in got.items()]
    rows = [(expected[n].reshape(batch, -1), v.reshape(batch, -1)) for n, v in got.items()]
    cosines = np.concatenate([row_cosines(a, b) for a, b in rows if a.shape[1] >= LEAST_COSINE_WIDTH])
    return Edge(
        "engine", f"{component.role}/{component.precision}", f"engine, batch {batch}", max(p[0] for p in pairs),
        ENGINE_TOLERANCE[component.precision], max(p[1] for p in pairs), cosine_min=float(cosines.min()),
        cosine_p1=float(np.quantile(cosines, 0.01)), sqnr_db=min(sqnr_db(a, b) for a, b in rows),
    )  # fmt: skip


def row_cosines(expected: Array, got: Array) -> Array:
    """Cosine of each pair of rows, (n,)."""
    norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(got, axis=1)
    return (expected * got).sum(1) / np.maximum(norms, 1e-12)


def sqnr_db(expected: Array, got: Array) -> float:
    """Signal to quantisation noise, in dB; 200 where there is no noise."""
    noise = float(np.square(expected - got, dtype=np.float64).sum())
    return 200.0 if noise == 0 else float(10 * np.log10(np.square(expected, dtype=np.float64).sum() / noise))


def language_prompts(predictor: Predictor, clips: Sequence[Clip]) -> list[npt.NDArray[np.float32]]:
    """Prompts with real audio and visual embeddings, prefix included, (n, D) each."""
    prefix = predictor.language_model.embed(predictor.token_ids(predictor.constants.prompt.prefix))
    prompted: list[npt.NDArray[np.float32]] = []
    for clip in clips:
        plain = predictor.encode(
            window_at(clip, clip.duration_s, "audio-visual", predictor.constants.front_end)
        )
        prompted.append(np.concatenate([prefix, predictor.prompt(plain, prompts.CONTENT.text)]))
    return prompted


def narrator_prompt(predictor: Predictor[Any], inputs: EncoderInputs) -> npt.NDArray[np.float32]:
    """What the narrator's language model is given for a window, prefix and emotion-enhanced tokens included, (n, D)."""
    prefix = predictor.language_model.embed(predictor.token_ids(predictor.constants.prompt.prefix))
    _, enhanced = predictor.adapt(predictor.encode(inputs))
    return np.concatenate([prefix, predictor.prompt(enhanced, prompts.CAPTION.text)])


def full_logits(language_model: Any, predictor: Predictor, prompt: npt.NDArray[np.float32]) -> Array:
    """The reference's logits of every position of a prompt that holds its own prefix, (n, vocab)."""
    assert isinstance(language_model, TorchLanguageModel)
    kept = predictor.language_model.embed(predictor.token_ids(predictor.constants.prompt.prefix))
    return language_model.logits(prompt[len(kept) :])


def logit_edges(bundle: Path, manifest: Manifest, reference: Predictor, clips: Sequence[Clip]) -> list[Edge]:
    """torch → GGUF: logits of every position behind the prefix, embeddings as input."""
    edges: list[Edge] = []
    prompted = language_prompts(reference, clips)
    prefix_length = len(reference.token_ids(reference.constants.prompt.prefix))
    expected = np.concatenate([full_logits(reference.language_model, reference, p) for p in prompted])
    for component in (c for c in manifest.components if c.role == "language_model"):
        with open_language_model(bundle, manifest, component) as language_model:
            rows = [language_model.logits(p, all_positions=True)[prefix_length:] for p in prompted]
        got = np.concatenate(rows)
        difference = np.abs(expected - got)
        same = float((expected.argmax(-1) == got.argmax(-1)).mean())
        key, allowed = f"language_model/{component.precision}", LOGIT_TOLERANCE[component.precision]
        worst = float(difference.max()) if np.isfinite(difference).all() else float("inf")
        edges.append(
            Edge("logits", key, f"logits, top-1 {same:.1%}", worst, allowed, float(difference.mean()))
        )
        kl = kl_and_top1(expected, got)
        edges.append(
            Edge("logits", key, "KL in nats, mean (p99)", kl.mean_kl_nats, LARGEST_KL_NATS, kl.p99_kl_nats)
        )
    return edges


def tokenizer_edges(bundle: Path, manifest: Manifest, tokenizer: Tokenizer) -> list[Edge]:
    """llama.cpp's own tokenizer, from the GGUF's metadata, against ``tokenizers``: share of equal texts."""
    component = manifest.component("language_model")
    corpus = [
        *TOKENIZER_CORPUS,
        *(prompts.PromptTemplate().question_text(q.text) for q in prompts.STANDARD_QUESTIONS),
    ]
    normalise = tokenizer.normalizer.normalize_str if tokenizer.normalizer else str
    theirs = tokenise(component_path(bundle, component), [normalise(text) for text in corpus])
    ours = [tokenizer.encode(text, add_special_tokens=False).ids for text in corpus]
    share = float(np.mean([a == b for a, b in zip(ours, theirs, strict=True)]))
    return [
        Edge(
            "tokenizer",
            "language_model",
            "share of texts llama.cpp tokenises alike",
            share,
            1.0,
            share,
            at_least=True,
        )
    ]


def chain_edges(bundle: Path, manifest: Manifest, reference: Predictor, clips: Sequence[Clip]) -> list[Edge]:
    """Picture and sound → answers and affect, on every path: the bundle in FP32 against the checkpoint, and as this machine would run it."""
    with open_predictor(bundle, precision="fp32", language_type="F16", warn=False) as predictor:
        edges = _chain_edges("fp32", predictor, reference, clips, AGREEMENT, AFFECT_TOLERANCE)
    if len({c.precision for c in manifest.components if c.role in ENGINE_ROLES}) > 1:
        with open_predictor(bundle, warn=False) as predictor:
            edges += _chain_edges(
                "preferred", predictor, reference, clips, COARSE_AGREEMENT, COARSE_AFFECT_TOLERANCE
            )
    return edges


def _chain_edges(
    name: str, predictor: Predictor, reference: Predictor, clips: Sequence[Clip], agreement: float, tolerance: float
) -> list[Edge]:  # fmt: skip
    same: list[bool] = []
    affect: list[list[float]] = []
    for clip in track(clips, f"whole chain, {name}", console=Console(stderr=True), transient=True):
        for path in PATHS:
            expected, got = reference(clip, path, QUESTIONS), predictor(clip, path, QUESTIONS)
            same += [
                int(a.argmax()) == int(b.argmax()) for a, b in zip(expected.answers, got.answers, strict=True)
            ]
            affect.append(affect_difference(expected, got))
    differences = np.array(affect)  # (clips * paths, 2, or 4 with what is induced)
    alike = float(np.mean(same))
    what = f"share of {len(same)} answers alike"
    edges = [Edge("chain", f"chain/{name}", what, alike, agreement, alike, at_least=True)]
    names = ("valence", "arousal", "induced valence", "induced arousal")[: differences.shape[1]]
    for column, dimension in enumerate(names):
        worst, mean = float(differences[:, column].max()), float(differences[:, column].mean())
        edges.append(Edge("chain", f"chain/{name}", f"|Δ {dimension}|", worst, tolerance, mean))
    return edges


def affect_difference(expected: Prediction, got: Prediction) -> list[float]:
    """Absolute differences of valence and arousal, expressed and then induced where both have it."""
    pairs = [(expected.affect, got.affect)]
    if expected.induced is not None and got.induced is not None:
        pairs.append((expected.induced, got.induced))
    return [abs(getattr(a, name) - getattr(b, name)) for a, b in pairs for name in ("valence", "arousal")]
