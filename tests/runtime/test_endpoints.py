"""Hosts that have several addresses."""

from __future__ import annotations

import socket

import pytest

from runtime.endpoints import authority, resolve
from vaemotion.contract.errors import UserError

IPV4 = (socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("127.0.0.1", 9000))
IPV6 = (socket.AF_INET6, socket.SOCK_DGRAM, 17, "", ("::1", 9000, 0, 0))


@pytest.mark.parametrize(
    ("found", "address"),
    [([IPV6, IPV4], "127.0.0.1"), ([IPV4, IPV6], "127.0.0.1"), ([IPV6], "::1"), ([IPV6, IPV6], "::1")],
)
def test_a_host_with_both_is_reached_by_ipv4(
    monkeypatch: pytest.MonkeyPatch, found: list[tuple[object, ...]], address: str
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)  # as /etc/hosts with ::1 first
    family = socket.AF_INET if "." in address else socket.AF_INET6
    assert resolve("localhost", 9000, "--out osc") == (family, (address, 9000))


def test_localhost_is_where_most_programs_listen() -> None:
    assert resolve("localhost", 9000, "--out osc") == (socket.AF_INET, ("127.0.0.1", 9000))
    assert resolve("::1", 9000, "--out osc") == (socket.AF_INET6, ("::1", 9000))


def test_a_host_that_is_nowhere_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"--out osc: the host .x{70}. cannot be found; give its IP address"):
        resolve("x" * 70, 9000, "--out osc")


def test_an_ipv6_address_in_a_url_stands_in_brackets() -> None:
    assert authority("::1", 80) == "[::1]:80"
    assert authority("localhost", 80) == "localhost:80"
