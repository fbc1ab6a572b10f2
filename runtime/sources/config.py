"""Configuration of the camera and the microphone, and the secrets that complete a camera's address."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from urllib.parse import quote

from vaemotion.contract.address import Address
from vaemotion.contract.settings import Impossible, demand, within

NONE = "none"  # a device that is not configured
FIRST_CAMERA = Address("0")
CAMERAS = (
    'a path such as "/dev/v4l/by-id/...", an index, "rtsp://...", "http://...", "csi:0", '
    '"gst:PIPELINE" or "none"'
)
_CAMERA = re.compile(r"none|[0-9]{1,3}|/.+|rtsps?://.+|https?://.+|csi:[0-9]{1,2}|gst:.+")
# ${NAME} stands for a variable of the environment, ${password} for the password in its file, $${ for ${.
_PLACE = re.compile(r"\$(\$?)\{(\w+)\}")
_PASSWORD = "password"


@dataclass(frozen=True)
class CameraConfig:
    """Settings of the camera.

    ``device``: its address, in which ${NAME} stands for a variable of the environment and ${password} for the
    first line of ``password_file`` (``with_secrets``). ``offset_ms``: time from a frame's exposure to its
    arrival, subtracted from its stamp. ``freeze_s``: a camera without a new frame for longer is frozen,
    unless it is slower by itself; 0: equal frames are allowed, as from a captured screen. ``open_s``: time
    for a network camera to answer and to begin; after tries that were too short it is doubled, up to
    eightfold.
    """

    device: Address = FIRST_CAMERA
    password_file: str = ""
    width_px: int = 1280
    height_px: int = 720
    frame_rate_hz: float = 30.0
    rotate_degrees: int = 0
    offset_ms: float = 0.0
    freeze_s: float = 0.8
    open_s: float = 5.0

    def __post_init__(self) -> None:
        demand(
            self,
            ("device", _is_camera(self.device.reveal()), CAMERAS),
            ("rotate_degrees", self.rotate_degrees in (0, 90, 180, 270), "0, 90, 180 or 270"),
            *within(
                self,
                width_px=(16, 7680),
                height_px=(16, 4320),
                frame_rate_hz=(0.1, 240),
                offset_ms=(-2000, 2000),
                freeze_s=(0.2, 30) if self.freeze_s else (0, 0),
                open_s=(0.1, 60),
            ),
        )

    @property
    def used(self) -> bool:
        """False where the work is only heard."""
        return self.device != Address(NONE)

    @property
    def through_gstreamer(self) -> bool:
        return self.device.reveal().startswith(("csi:", "gst:"))


def _is_camera(address: str) -> bool:
    """Return True for an address, and for one that is known only when its places are filled."""
    return _PLACE.search(address) is not None or _CAMERA.fullmatch(address) is not None


def without_places(address: Address) -> Address:
    """Return an address as it stands in the configuration, with nothing in its places for secrets."""
    return Address(_PLACE.sub("", address.reveal()))


def with_secrets(camera: CameraConfig, password: str | None, environment: Mapping[str, str]) -> CameraConfig:
    """Return the camera with the secrets in its address. Raises Impossible, which names no value.

    ``password``: None where there is none. It and the variables stand as they are, without percent-encoding:
    a URL gets them encoded, except its host, and a pipeline quoted. A URL with a user and no place for the
    password has it after the user.
    """
    address = camera.device.reveal()
    if password is not None:
        address = _with_place(address)

    def value(name: str) -> str:
        if name != _PASSWORD:
            found = environment.get(name)
        elif password is None:
            raise Impossible({"device": "names ${password}; name the file that holds it as password_file"})
        else:
            found = password
        if not found:
            raise Impossible({"device": f"names the variable {name}, which is not set in the environment"})
        return found

    if not _PLACE.search(address):
        return camera
    filled = _filled(address, value)
    if not _CAMERA.fullmatch(filled):  # the error names no value: it may be nothing but the secret
        raise Impossible({"device": f"must be, with its secrets, {CAMERAS}"})
    return replace(camera, device=Address(filled))


def _with_place(address: str) -> str:
    """Return an address with a place for the password, after the user where it has none yet."""
    if any(place[2] == _PASSWORD for place in _PLACE.finditer(address)):
        return address
    scheme, separator, rest = address.partition("://")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, at, _ = authority.rpartition("@")
    if not (separator and at and user) or ":" in user:
        raise Impossible({"password_file": "has no place in camera.device; write ${password} there"})
    return f"{scheme}://{user}:${{{_PASSWORD}}}{rest[len(user) :]}"


def _filled(address: str, value: Callable[[str], str]) -> str:
    """Return an address with its places filled, so that no value ends or divides the part it stands in."""

    def fill(text: str, encode: Callable[[str], str] = str) -> str:
        return _PLACE.sub(lambda place: f"${{{place[2]}}}" if place[1] else encode(value(place[2])), text)

    if address.startswith("gst:"):
        try:
            words = shlex.split(address.removeprefix("gst:"))
        except ValueError as error:
            raise Impossible({"device": f"cannot be read as a pipeline: {error}"}) from None
        return f"gst:{shlex.join(map(fill, words))}"
    scheme, separator, rest = address.partition("://")
    if not separator:
        return fill(address)
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, at, host = authority.rpartition("@")
    return f"{scheme}://{fill(user, _quoted)}{at}{fill(host)}{fill(rest[len(authority) :], _quoted)}"


def _quoted(value: str) -> str:
    return quote(value, safe="")


@dataclass(frozen=True)
class MicrophoneConfig:
    """Settings of the microphone.

    ``offset_ms``: as the camera's; ``noise_floor_dbfs``: level of the silent room, above which sound
    counts as activity.
    """

    device: str = "default"
    offset_ms: float = 0.0
    noise_floor_dbfs: float = -60.0

    def __post_init__(self) -> None:
        demand(
            self,
            ("device", bool(self.device.strip()), 'a name, a part of one, an index, "default" or "none"'),
            *within(self, offset_ms=(-2000, 2000), noise_floor_dbfs=(-120, 0)),
        )
