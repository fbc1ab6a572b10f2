"""Golden vectors: inputs from held-out clips, and the outputs that they must give on every machine.

In: a checkpoint's model and clips. Out: arrays named ``what/tensor``, computed in torch and by the front end.
The front end's are always of procedural art: its arithmetic is the same whatever it is given.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from export.clips import ComparedClips, engine_inputs, language_prompts
from export.predictors import checkpoint_predictor, full_logits
from vaemotion.contract.audio import log_mel
from vaemotion.contract.bundle import ENGINE_ROLES
from vaemotion.contract.image import prepare_frame
from vaemotion.data.art.art import draw_frame, sample_work, synthesize, work_seed
from vaemotion.model.vaemotion_llm import VAEmotionLLM


def golden_vectors(model: VAEmotionLLM, clips: ComparedClips) -> dict[str, npt.NDArray[Any]]:
    """Compute the golden vectors of the front end, of each engine and of the language model."""
    work = sample_work(work_seed("validation", 0))
    front_end = model.config.front_end
    samples, frame = synthesize(work, 1.0), draw_frame(work, 1.0)
    golden: dict[str, npt.NDArray[Any]] = {
        "log_mel/samples": samples,
        "log_mel/output": log_mel(samples, front_end.log_mel),
        "pixels/picture": frame,
        "pixels/output": prepare_frame(frame, front_end.image),
    }
    predictor = checkpoint_predictor(model)
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
