"""No output of a run tells a secret of its camera's address, wherever the secret stands in it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from runtime.commands.timeline.report import heading, notices
from runtime.config import LiveConfig, exposed_password, read_live_config
from runtime.messages import End, Notice, Start, to_json
from runtime.run import _public_name
from runtime.sinks.console import LiveConsole, PlainConsole
from runtime.sinks.osc import bundle, start_values
from runtime.sources.config import CameraConfig
from runtime.sources.supervision import DeviceError, DeviceLoss, DeviceMonitor, _reason
from tests.runtime.commands.timeline.test_read import END, reading, timeline_of
from tests.vaemotion.contract.test_address import HOSTS, PLACES, PORTS, SCHEMES, SECRETS
from vaemotion.contract.address import Address
from vaemotion.contract.settings import Impossible, SettingsError
from vaemotion.contract.terminal import Terminal


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SCHEMES, HOSTS, PORTS, SECRETS, st.sampled_from(sorted(PLACES)))
def test_no_output_of_a_run_tells_a_secret(tmp_path: Path, scheme, host, port, secret, place) -> None:
    assume("\\" not in secret or not place.startswith("pipeline"))  # how a shell reads it differs
    address = PLACES[place].format(scheme=scheme, host=host, port=port, secret=secret)
    told = [complaint(tmp_path / "live.toml", address)]
    try:
        config = LiveConfig(camera=CameraConfig(device=Address(address)))
    except Impossible as error:  # of a scheme that is no camera's
        told.append(str(error))
    else:
        told += [repr(config), *outputs(config, address, secret)]
    assert not [text for text in told if "s3c" in text]


def complaint(file: Path, address: str) -> str:
    """Return what is said of a configuration that is wrong in everything, and of one that others may read."""
    quoted = address.replace("\\", "\\\\").replace('"', '\\"')
    file.write_text(f'[camera]\ndevice = ["{quoted}"]\n[microphone]\ndevice = "none"\n"{quoted}" = 1\n')
    with pytest.raises(SettingsError) as wrong:
        read_live_config(file, [f"camera.devise={address}", f"camera.width_px={address}", address])
    file.write_text(f'[camera]\ndevice = "{quoted}"\n')
    try:
        return f"{wrong.value} {exposed_password(file)}"
    except SettingsError as error:
        return f"{wrong.value} {error}"


def outputs(config: LiveConfig, address: str, secret: str) -> list[str]:
    """Return what each output tells of a run whose camera fails with errors of libraries."""
    camera, monitor = config.camera.device, DeviceMonitor("camera")
    reasons = [
        _reason(OSError(f"cannot open {address}: 401 for {secret}"), camera),
        _reason(DeviceError(f"moved to {address}"), camera),
        _reason(ValueError(repr(config)), camera),
    ]
    messages = [Start("b", "0" * 64, _public_name(config, None), "real", ("CPU",), {}, "1")]
    messages += [notice for reason in reasons for notice in monitor.step(1.0, DeviceLoss(1.0, reason))]
    messages += [reading(1.0), End(1.0, f"failed: {reasons[0]}", "", 1.0, 1, 0, {})]
    plain, live = io.StringIO(), io.StringIO()
    for sink in (PlainConsole(Terminal(file=plain)), LiveConsole(Terminal(file=live))):
        for message in messages:
            sink.publish(message)
    start, told = messages[0], tuple(message for message in messages if isinstance(message, Notice))
    timeline = timeline_of(1.0, start=start, notices=told, end=END)
    return [
        plain.getvalue(),
        live.getvalue(),
        *map(to_json, messages),
        bundle(start_values(start)).decode("latin-1"),
        heading(timeline) + notices(timeline),
    ]
