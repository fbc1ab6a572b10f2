"""Golden vectors: inputs from held-out clips, and the outputs that they must give on every machine.

In: a predictor, such as a checkpoint's in torch, and clips. Out: arrays named ``what/tensor``.
The front end's are always of procedural art: its arithmetic is the same whatever it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from export.clips import ComparedClips, engine_inputs, language_prompts
from export.predictors import full_logits
from export.step_store import MadeFile
from export.workshop import Made, Step
from runtime.perception.predictor import Predictor
from vaemotion.contract.audio import log_mel
from vaemotion.contract.bundle import ENGINE_ROLES
from vaemotion.contract.image import prepare_frame
from vaemotion.data.art.art import draw_frame, sample_work, synthesize, work_seed

GOLDEN = "golden.npz"


def golden_step(
    predictor: Callable[[], Predictor[Any]],
    clips: ComparedClips,
    reads: Mapping[str, Any],
    files: tuple[str, ...] = (),
) -> Step:
    """Compute the golden vectors of a predictor. The notes name the items that they hold inputs of.

    ``reads`` and ``files``: everything that the predictor depends on, as in `Step`.
    """

    def make(folder: Path) -> Made:
        vectors: dict[str, Any] = golden_vectors(predictor(), clips)
        np.savez_compressed(folder / GOLDEN, **vectors)
        first = [clip.items[0] for clip in clips.first()]
        notes = {"items": [item.id for item in first], "licenses": sorted({item.license for item in first})}
        return [MadeFile(GOLDEN, "golden")], {"golden": {"source": clips.name, **notes}}

    code = ("export.golden", "vaemotion.model.checkpoint")
    return Step("golden vectors", make, code, {**reads, "clips": clips.reads}, files)


def golden_vectors(predictor: Predictor[Any], clips: ComparedClips) -> dict[str, npt.NDArray[Any]]:
    """Compute the golden vectors of the front end, of each engine and of the language model."""
    work = sample_work(work_seed("validation", 0))
    front_end = predictor.constants.front_end
    samples, frame = synthesize(work, 1.0), draw_frame(work, 1.0)
    golden: dict[str, npt.NDArray[Any]] = {
        "log_mel/samples": samples,
        "log_mel/output": log_mel(samples, front_end.log_mel),
        "pixels/picture": frame,
        "pixels/output": prepare_frame(frame, front_end.image),
    }
    first = clips.first()
    inputs = engine_inputs(predictor, first)
    for role in ENGINE_ROLES:
        one = {name: array[:1] for name, array in inputs[role].items()}
        outputs = predictor.engines[role].run(one)
        golden |= {f"{role}/in/{name}": array for name, array in one.items()}
        golden |= {f"{role}/out/{name}": np.asarray(array) for name, array in outputs.items()}
    prompt = language_prompts(predictor, first)[0]
    golden["language_model/in/embeddings"] = prompt
    golden["language_model/out/logits"] = full_logits(predictor, prompt)[-1:]
    return golden
