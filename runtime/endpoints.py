"""Host and port of a network peer: parsed from text and resolved to an address."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from vaemotion.contract.errors import UsageError, UserError

LOOPBACK = "127.0.0.1"


def is_endpoint(text: str, default_host: str) -> bool:
    """Return True when ``text`` names a host and a port; see ``parse_endpoint``."""
    try:
        parse_endpoint(text, "", default_host)
    except UsageError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Return True when only this machine can reach ``host``."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def parse_networks(texts: Sequence[str]) -> list[IPv4Network | IPv6Network]:
    """Return addresses and networks such as 192.168.1.30 and 10.0.0.0/24. Raises ValueError for another."""
    return [ip_network(text, strict=False) for text in texts]


def is_within(host: str, networks: Sequence[IPv4Network | IPv6Network]) -> bool:
    """Return True for a numeric address within one of the networks; an IPv4 peer may come by IPv6."""
    address = ip_address(host.partition("%")[0])  # without the scope of a link-local address
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return any((mapped or address) in network for network in networks)


def parse_endpoint(text: str, option: str, default_host: str = "") -> tuple[str, int]:
    """Return host and port of HOST:PORT, or of PORT where there is a default host.

    ``option`` names the text in errors. Raises UsageError.
    """
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise UsageError(f"{option} takes an IPv6 address in brackets, for example [::1]:9000, got {text!r}")
    host = host or default_host
    if not host or not (port.isascii() and port.isdecimal() and len(port) <= 5 and 1 <= int(port) <= 65_535):
        form = "PORT or HOST:PORT" if default_host else "HOST:PORT"
        raise UsageError(f"{option} takes {form} with a port from 1 to 65535, got {text!r}")
    return host, int(port)


def resolve(host: str, port: int, option: str) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """Return an endpoint's family and address: IPv4 where the host has both.

    Raises UserError when the host cannot be found.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError) as error:
        raise UserError(f"{option}: the host {host!r} cannot be found; give its IP address") from error
    # In many hosts files "localhost" is ::1 first, while most programs listen on 127.0.0.1 alone.
    family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return family, (str(address[0]), port)


def authority(host: str, port: int) -> str:
    """Return host and port as a URL holds them, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
