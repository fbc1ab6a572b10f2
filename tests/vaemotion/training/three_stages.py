"""The three stages one after the other, for ``torchrun``.

python -m tests.vaemotion.training.three_stages RUNS [KEY=VALUE ...]
"""

from __future__ import annotations

import sys

from tests.tiny import CONFIG_FILE, SMALL, with_many_stops
from vaemotion.training import base_vlm, emotion, encoded, vg_align
from vaemotion.training.loop import process_state


def main(runs: str, *settings: str) -> None:
    encoded.BLOCK = 3  # several blocks, the last one smaller than the others
    with_many_stops(setattr)
    print(f"processes: {process_state().num_processes}")
    for stage in (base_vlm, vg_align, emotion):
        stage.train(CONFIG_FILE, [*SMALL, f"runs={runs}", *settings], None, False)


if __name__ == "__main__":
    main(*sys.argv[1:])
