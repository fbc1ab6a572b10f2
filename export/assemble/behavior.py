"""Behavior of a recipe's engines on real clips: what files cannot say of themselves.

In: an engine and inputs of several windows. Out: sentences on what is wrong. An engine must give finite
values, the same for the same input whatever else is in the batch, and others for other inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from export.tensors import EXPRESSED_OUTPUTS
from runtime.engines.golden import ENGINE_TOLERANCE, relative_difference

Arrays = Mapping[str, npt.NDArray[Any]]
Run = Callable[[Arrays], dict[str, npt.NDArray[Any]]]
SAME = 1e-6  # largest relative difference of two runs on the same input
_SUM_TOLERANCE = 1e-3  # of a distribution


def behavior_problems(
    label: str, run: Run, inputs: Arrays, windows: Sequence[str], varying: Sequence[str]
) -> Iterator[str]:
    """Run an engine on a batch, on it again, and on each row alone. Say what is wrong with the outputs.

    ``inputs``: one row for each window; ``windows``: what each row shows, such as "sound alone"; ``varying``:
    outputs that differ between windows which show the same kind of thing.
    """
    outputs = run(inputs)
    n = len(windows)
    for name, values in outputs.items():
        if len(values) != n:
            yield f"{label}: output {name!r} has {len(values)} rows for a batch of {n}; export it anew"
            return
        finite = np.isfinite(values.reshape(n, -1)).all(axis=1)
        if not finite.all():
            yield f"{label}: output {name!r} is not finite on a window of {windows[int(finite.argmin())]}"
            return
    again = run(inputs)
    alone = [run({name: array[k : k + 1] for name, array in inputs.items()}) for k in range(n)]
    for name, values in outputs.items():
        difference = relative_difference(values, again[name])[0]
        if difference > SAME:
            yield (
                f"{label}: output {name!r} differs by {difference:.2g} between two runs on the same input; "
                "export it in evaluation mode, without dropout"
            )
            continue
        single = np.concatenate([row[name] for row in alone])
        if single.shape != values.shape:
            shapes = f"{single.shape[1:]} alone and {values.shape[1:]} in a batch"
            yield f"{label}: output {name!r} has the shape {shapes}; only the batch may change"
        elif (difference := relative_difference(values, single)[0]) > ENGINE_TOLERANCE["fp32"]:
            yield (
                f"{label}: output {name!r} of a window differs by {difference:.2g} when others are in its "
                "batch; rows must not be mixed, as batch normalization in training mode does"
            )
    for window in dict.fromkeys(windows):
        rows = [k for k, other in enumerate(windows) if other == window]
        if len(rows) > 1 and all(_all_equal(outputs[name][rows]) for name in varying):
            yield f"{label} gives one {varying[0]!r} for all windows of {window}; it does not read its input"


def _all_equal(rows: npt.NDArray[Any]) -> bool:
    return bool((rows == rows[:1]).all())


def affect_problems(label: str, outputs: Arrays, prefix: str = "") -> Iterator[str]:
    """Say which of the EmoAdapter's readings are outside their range. ``prefix``: "" or "induced_"."""
    point, spread, emotions = (outputs[f"{prefix}{name}"] for name in EXPRESSED_OUTPUTS)
    if np.abs(point).max() > 1:
        yield (
            f"{label}: '{prefix}valence_arousal' reaches {np.abs(point).max():.3g}; valence and arousal are "
            "in [-1, 1], scale them in the model"
        )
    if spread.min() <= 0:
        yield f"{label}: '{prefix}spread' reaches {spread.min():.3g}; it is a standard deviation, above 0"
    if emotions.min() < 0 or np.abs(emotions.sum(axis=-1) - 1).max() > _SUM_TOLERANCE:
        yield f"{label}: '{prefix}emotions' is no distribution; end the model with a softmax"
