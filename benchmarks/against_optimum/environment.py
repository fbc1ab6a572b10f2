"""optimum's own environment, created in ``build/optimum/venv`` when ``requirements.txt`` changes.

optimum needs other versions than this project (transformers < 4.58), so its exports run in its own Python and
nothing of it is imported here.
"""

from __future__ import annotations

import subprocess
import venv
from pathlib import Path

from vaemotion.contract.errors import UserError

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
COMMAND = "make bench-optimum"


def ready_python(folder: Path, *, create: bool = True) -> Path:
    """Return the environment's Python, creating the environment if needed and allowed by ``create``.

    Raises UserError if it is missing and cannot be created.
    """
    python, marker, wanted = folder / "bin" / "python", folder / ".ready", REQUIREMENTS.read_text()
    if python.exists() and marker.exists() and marker.read_text() == wanted:
        return python
    if not create:
        raise UserError(
            f"optimum's environment is missing or out of date in {folder}; make it with `{COMMAND}` (1.2 GB)"
        )
    marker.unlink(missing_ok=True)
    try:
        venv.create(folder, with_pip=True, clear=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"cannot create the environment {folder}: {error}; install python3-venv") from error
    [torch] = [line for line in wanted.splitlines() if line.startswith("torch==")]
    for words in ([torch], ["-r", str(REQUIREMENTS)]):
        log = folder.with_name("install.log")
        with log.open("w", encoding="utf-8") as file:
            command = [str(python), "-m", "pip", "install", *words]
            if subprocess.run(command, stdout=file, stderr=file, check=False).returncode != 0:
                raise UserError(
                    f"cannot install optimum's environment (see {log}); check the connection to pip's index"
                )
    marker.write_text(wanted)
    return python
