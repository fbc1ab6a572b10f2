"""Public form of a camera's address: no secret, wherever it stands in the address."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from urllib.parse import quote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vaemotion.contract.address import Address, message_without_secrets, without_secrets

# A secret is marked, so that any piece of it is found in what is told; the signs between the marks are those
# that separate the parts of an address.
SECRETS = st.lists(st.sampled_from("@/?#&=:!,;% \"'\\.|[]ä"), max_size=4).map(
    lambda signs: "s3c" + "s3c".join(signs) + "s3c"
)
SCHEMES = st.sampled_from(["rtsp", "rtsps", "http", "https", "RTSP", "rtmp", "srt", "udp"])
HOSTS = st.sampled_from(["192.0.2.1", "camera.local", "[2001:db8::1]"])
PORTS = st.sampled_from(["", ":554", ":8080"])
PLACES = {
    "password": "{scheme}://admin:{secret}@{host}{port}/stream",
    "user": "{scheme}://{secret}@{host}{port}",
    "both": "{scheme}://{secret}:{secret}@{host}{port}/",
    "path": "{scheme}://{host}{port}/live/{secret}/1",
    "XMeye path": "{scheme}://{host}{port}/user=admin_password={secret}_channel=1_stream=0.sdp?real_stream",
    "user and query": "{scheme}://{secret}@{host}{port}/live?profile=1&auth={secret}#t={secret}",
    "pipeline's second element": "gst:uridecodebin uri={scheme}://{host}/?{secret} ! decodebin",
    "XMeye": "{scheme}://{host}{port}/user=admin&password={secret}&channel=1&stream=0.sdp",
    "query": "{scheme}://{host}{port}/video?token={secret}",
    "query with a mail address": "{scheme}://{host}{port}/video?user=anna@example.org&key={secret}",
    "fragment": "{scheme}://{host}{port}/#{secret}",
    "query without a path": "{scheme}://{host}{port}?{secret}",
    "pipeline": "gst:rtspsrc location={scheme}://{host} user-id=admin user-pw={secret} ! decodebin",
    "pipeline's address": "gst:rtspsrc location={scheme}://admin:{secret}@{host}/ ! decodebin",
    "pipeline, quoted": 'gst: rtspsrc user-pw="{secret}" location={scheme}://{host}',
    "pipeline without its name": "rtspsrc user-pw={secret} location={scheme}://{host} ! decodebin",
    "behind a key": "camera.device = {scheme}://admin:{secret}@{host}{port}/stream",
    "no scheme": "admin:{secret}@{host}/stream",
    "one slash": "{scheme}:/admin:{secret}@{host}/stream",
    "XMeye without a scheme": "{host}/user=admin&password={secret}&channel=1",
}


@given(SCHEMES, HOSTS, PORTS, SECRETS, st.sampled_from(sorted(PLACES)), st.booleans())
def test_no_piece_of_a_secret_is_told(scheme, host, port, secret, place, encoded):
    secret = quote(secret, safe="") if encoded else secret
    address = PLACES[place].format(scheme=scheme, host=host, port=port, secret=secret)
    told = Address(address)
    texts = (without_secrets(address), str(told), repr(told), f"{told}", json.dumps([told], default=str))
    for text in (*texts, str({"device": told}), str(asdict(Holder(told)))):
        assert "s3c" not in text
    assert told.reveal() == address


@dataclass(frozen=True)
class Holder:
    """A configuration that holds an address."""

    device: Address


@given(SCHEMES, HOSTS, PORTS, SECRETS, st.sampled_from(sorted(PLACES)))
def test_no_message_of_a_library_tells_a_secret(scheme, host, port, secret, place):
    assume("\\" not in secret or not place.startswith("pipeline"))  # how a shell reads it differs
    address = PLACES[place].format(scheme=scheme, host=host, port=port, secret=secret)
    for message in (
        f"cannot open {address}: Connection refused",
        f'could not set property "user-pw" in element "rtspsrc0" to "{secret}"',
        f"401 Unauthorized for {secret} at {host}",
    ):
        assert "s3c" not in message_without_secrets(message, address)
        assert "s3c" not in Address(address).hide_in(message)


def test_another_address_in_a_message_is_hidden_too():
    message = "moved to http://anna:s3cret@192.0.2.7/x?key=s3cret"
    assert message_without_secrets(message, "/dev/video0") == "moved to http://192.0.2.7/…"


@pytest.mark.parametrize(
    ("address", "holds"),
    [
        ("rtsp://anna:s3cret@10.0.0.2/live", True),
        ("http://10.0.0.2/video?token=s3cret", True),
        ("rtsp://10.0.0.2/user=admin_password=s3cret_channel=1", True),
        ("gst:rtspsrc location=rtsp://10.0.0.2 user-pw=s3cret ! decodebin", True),
        ("rtsp://anna@10.0.0.2/live", False),
        ("rtsp://anna:@10.0.0.2/live", False),  # as where its place was
        ("rtsp://10.0.0.2/user=admin_password=_channel=1", False),
        ("rtsp://10.0.0.2:554/cam/realmonitor?channel=1&subtype=0", False),
        ("gst:rtspsrc user-pw= location=rtsp://10.0.0.2 ! decodebin", False),
        ("/dev/video0", False),
    ],
)
def test_an_address_with_a_password_is_known(address, holds):
    assert Address(address).holds_password() is holds


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("rtsp://anna:secret@10.0.0.2:554/live", "rtsp://10.0.0.2:554/…"),
        ("http://camera.local/", "http://camera.local"),
        ("rtsp://[2001:db8::1]:554", "rtsp://[2001:db8::1]:554"),
        ("rtsp://admin:12/34@10.0.0.2/live", "rtsp://…"),
        ("gst:rtspsrc location=rtsp://a:b@c ! decodebin", "gst:rtspsrc …"),
        ("camera.device rtsp://a:b@c", "camera.device rtsp://c"),
        ("csi:0", "csi:0"),
        ("/dev/v4l/by-id/usb-046d_C920-video-index0", "/dev/v4l/by-id/usb-046d_C920-video-index0"),
        ("12:30.mp4", "12:30.mp4"),
        ("anna@home.mp4", "anna@home.mp4"),
    ],
)
def test_what_is_harmless_is_told(address, told):
    assert without_secrets(address) == told


def test_a_library_s_message_keeps_what_is_no_secret():
    address = "gst:rtspsrc location=rtsp://a:b@cam/live user-pw=pw1 ! nosuchelement"
    message = 'WARNING: erroneous pipeline: no element "nosuchelement" after rtspsrc'
    assert message_without_secrets(message, address) == message
