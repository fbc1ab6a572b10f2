"""Search for the configured microphone, in a process of its own.

PortAudio lists devices once, when it starts, and each restart leaks some kilobytes, which a process that
waits for a microphone for weeks cannot afford. So a short-lived process searches (``in_child``) and tries
whether the device can be opened. What the sound libraries print stays in it.

In: a name, a part of one, an index or "default". Out: a ``Found``, or ``ProbeError`` with the reason.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from runtime.machine.child_process import in_child
from vaemotion.contract.errors import UserError

LOOK_S = 10.0  # a sound server may be slow to answer, or stopped
CHANNELS = 2  # at most; a sound server offers 32, most of them empty


@dataclass(frozen=True)
class Found:
    """An input device that could be opened. ``names``: of all devices, in PortAudio's order."""

    index: int
    rate_hz: int
    channels: int
    names: list[str]


def find_microphone(device: str) -> Found:
    """Search for a microphone. Raises ProbeError when there is none, or it cannot be opened."""
    return Found(**in_child(probe_microphone, device, limit_s=LOOK_S))


def probe_microphone(device: str) -> dict[str, Any]:
    """Search within the child process; return a ``Found`` as a dictionary. Raises UserError."""
    try:
        sounddevice: Any = importlib.import_module("sounddevice")
    except OSError:
        raise UserError("PortAudio is missing: install libportaudio2") from None
    wanted = None if device == "default" else int(device) if device.isdecimal() else device
    try:
        about = sounddevice.query_devices(wanted, "input")
    except ValueError as error:  # none of that name, or several
        raise UserError(str(error).partition("\n")[0].rstrip(":")) from None
    except sounddevice.PortAudioError:
        which = "no microphone" if wanted is None else f"no microphone has the index {device}"
        raise UserError(f"there is {which}" if wanted is None else which) from None
    rate_hz, channels = round(about["default_samplerate"]), min(about["max_input_channels"], CHANNELS)
    try:
        sounddevice.RawInputStream(rate_hz, device=about["index"], channels=channels, dtype="float32").close()
    except sounddevice.PortAudioError as error:
        raise UserError(f"{about['name']} cannot be opened: {error.args[0]}") from None
    names = [each["name"] for each in sounddevice.query_devices()]
    return {"index": about["index"], "rate_hz": rate_hz, "channels": channels, "names": names}
