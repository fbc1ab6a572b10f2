"""optimum's export, run by the Python of optimum's own environment.

In: a checkpoint's folder. Out: ``model.onnx`` in a folder, and a record. It imports none of this project's
packages, because that environment has other versions. ``optimum-cli export onnx`` calls the same function.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.against_optimum.record import record

PACKAGES = ("optimum-onnx", "optimum", "transformers", "torch", "onnx", "onnxruntime")


def main() -> None:
    checkpoint, folder, record_file = (Path(word) for word in sys.argv[1:4])
    from optimum.exporters.onnx import main_export  # pyright: ignore[reportMissingImports]

    def export() -> None:
        # Without optimum's own validation: all files are compared with torch afterwards.
        main_export(
            str(checkpoint), folder, task="feature-extraction", do_validation=False, local_files_only=True
        )

    record(export, record_file, PACKAGES)


if __name__ == "__main__":
    main()
