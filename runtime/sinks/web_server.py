"""The web page's files, and the check of each request for them.

In: an HTTP request. Out: the answer to it, or None for a WebSocket's opening handshake that may go on. Three
checks come first:

- The request must be addressed to this very server, so that a name which a stranger points at this address is
  refused (DNS rebinding).
- It must hold the token, where there is one. Tokens are compared in constant time.
- A WebSocket must come from our own page, so that other pages in the same browser are refused (cross-site
  WebSocket hijacking).

``runtime.sinks.web`` sends the messages that the page shows.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qs

from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from runtime.endpoints import is_loopback
from vaemotion.contract.errors import UsageError

SOCKET_PATH = "/socket"
TOKEN_CHARACTERS = 16  # at least: 16 hexadecimal digits are 64 bits
FILES = {  # path → file beside this module, type
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/plane.js": ("plane.js", "text/javascript"),
    "/page.js": ("page.js", "text/javascript"),
}
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_HTTP_PORT = 80  # the port that a browser leaves out
_AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([0-9A-Za-z._-]{1,253}))(?::([0-9]{1,5}))?")
_TOKEN = re.compile(rf"[0-9A-Za-z._~+/=-]{{{TOKEN_CHARACTERS},256}}")  # as hexadecimal or base64 write it


def check_token(address: str, token: str | None) -> None:
    """Check the token for a server on ``address``, a numeric one.

    Raises UsageError for an address on a network without a token, and for a token that is too short or holds
    characters that do not fit into a URL.
    """
    if token is None and not is_loopback(address):
        raise UsageError(
            f"--out web: {address} is on a network, where a token is needed: give one of {TOKEN_CHARACTERS} "
            "or more characters, or 127.0.0.1 for this machine only"
        )
    if token is not None and not _TOKEN.fullmatch(token):
        raise UsageError(
            f"--out web: a token is {TOKEN_CHARACTERS} to 256 of A-Z a-z 0-9 . _ ~ + / = -, "
            "for example from: openssl rand -hex 16"
        )


@dataclass(frozen=True)
class RequestGuard:
    """The answer to each HTTP request. ``host``: as the user gave it; ``pages``: path → type and content."""

    host: str
    port: int
    token: str | None
    pages: Mapping[str, tuple[str, bytes]]

    def answer(self, request: Request, local_address: str) -> Response | None:
        """Return the answer to a request, or None for a WebSocket's handshake that may go on.

        ``local_address``: this machine's address at which the request came in.
        """
        path, _, query = request.path.partition("?")
        authority = _single(request.headers, "Host")
        if not self.names_this_server(authority, local_address):
            return respond(HTTPStatus.FORBIDDEN, "This is not the address of this page.\n")
        if not self.holds_token(query):
            return respond(HTTPStatus.FORBIDDEN, "Open the page with its whole address, token included.\n")
        if request.method != "GET":
            return respond(HTTPStatus.METHOD_NOT_ALLOWED, "Only GET.\n", {"Allow": "GET"})
        if path in self.pages:
            kind, content = self.pages[path]
            return respond(HTTPStatus.OK, content, {"Content-Type": f"{kind}; charset=utf-8"})
        if path != SOCKET_PATH:
            return respond(HTTPStatus.NOT_FOUND, "There is no such page.\n")
        if _single(request.headers, "Origin").lower() != f"http://{authority}".lower():
            return respond(HTTPStatus.FORBIDDEN, "Only the page itself may read along.\n")
        return None

    def names_this_server(self, authority: str, local_address: str) -> bool:
        """Return True for a request's ``Host`` that names this machine and this port."""
        match = _AUTHORITY.fullmatch(authority)
        if match is None or int(match[3] or _HTTP_PORT) != self.port:
            return False
        name = (match[1] or match[2]).lower()
        try:
            return is_loopback(name) or ipaddress.ip_address(name) == ipaddress.ip_address(local_address)
        except ValueError:  # not an address, but a name
            machine = socket.gethostname().lower()
            return name in ("localhost", self.host.lower(), machine, f"{machine}.local")

    def holds_token(self, query: str) -> bool:
        """Return True for a request's query that holds the token, or where there is none."""
        if self.token is None:
            return True
        try:
            given = parse_qs(query, max_num_fields=8).get("token", [])
        except ValueError:
            return False
        # A plus in an address arrives as a space, which no token has.
        return len(given) == 1 and secrets.compare_digest(
            given[0].replace(" ", "+").encode(), self.token.encode()
        )


def load_pages(token: str | None) -> dict[str, tuple[str, bytes]]:
    """Read the page's files, by path; with a token, the page asks for its other files with it."""
    folder = Path(__file__).with_name("page")
    pages = {path: (kind, (folder / name).read_bytes()) for path, (name, kind) in FILES.items()}
    if token is not None:
        kind, html = pages["/"]
        for path in FILES:
            html = html.replace(f'"{path[1:]}"'.encode(), f'"{path[1:]}?token={token}"'.encode())
        pages["/"] = kind, html
    return pages


def respond(status: HTTPStatus, content: str | bytes, headers: Mapping[str, str] | None = None) -> Response:
    """Make an answer after which the connection closes."""
    body = content.encode() if isinstance(content, str) else content
    first = {
        "Date": formatdate(usegmt=True),
        "Connection": "close",
        "Content-Length": str(len(body)),
        "Content-Type": "text/plain; charset=utf-8",
    }
    return Response(status.value, status.phrase, Headers(first | dict(headers or {})), body)


def _single(headers: Headers, name: str) -> str:
    """Return the header's value, or "" unless it was given exactly once."""
    values = headers.get_all(name)
    return values[0] if len(values) == 1 else ""
