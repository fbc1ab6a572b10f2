"""The web sink: a page that shows the readings live in a browser (docs/web.md).

In: messages, and frames of the camera where they are allowed. Out: to each open page the JSON of
``runtime.messages.to_json`` over a WebSocket, with ``waited_s`` added. It is the message's age, so that
the page never shows an old value as a live one. ``runtime.sinks.web_server`` decides who may open the
page.

The server runs on a thread with an event loop of its own. A page acknowledges messages by the number that
it has received. A page that is ``WINDOW`` messages behind gets nothing until it catches up. Meanwhile that
many messages wait for it, and always the newest of each type; the rest is dropped and counted. So a slow or
dead browser never delays perception, and no page shows values that are long past.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response
from websockets.protocol import State

from runtime.endpoints import authority, resolve
from runtime.mailbox import BoundedQueue, Closed
from runtime.messages import Message, to_json
from runtime.sinks.web_server import SECURITY_HEADERS, RequestGuard, check_token, load_pages
from vaemotion.contract.errors import UserError

MAX_PAGES = 16  # open at a time
MAX_CONNECTIONS = 64  # of any kind: the whole process shares its file descriptors
MAX_STRANGERS = 16  # of them from one address, before they have shown the token
WINDOW = 8  # messages that a page may leave unacknowledged: 0.8 s of readings
PREVIEW_EVERY_S = 0.25
CLOSING_S = 0.4  # at the end, for pages to receive the messages that wait
_REPEATED = ("start", "status", "reading", "narration", "end")  # newest of each: sent to a page that opens
_INBOX = 256  # messages between the sink's thread and the server's
_MESSAGE_BYTES = 16  # of an acknowledgement, at most
_OPEN_S = 5.0  # for a client to make its request
_PING_S = 5.0  # between two pings of a client
_PONG_S = 10.0  # for a client to answer a ping


@dataclass(frozen=True)
class Outgoing:
    """A message for a page. ``kind``: its type; ``content``: a JSON object, or a JPEG."""

    kind: str
    content: str | bytes
    came_s: float = field(default_factory=time.monotonic)

    def payload(self) -> str | bytes:
        """Return what is sent now: the JPEG, or the JSON with the message's age."""
        if isinstance(self.content, bytes):
            return self.content
        return f'{{"waited_s": {time.monotonic() - self.came_s:.3f}, {self.content[1:]}'


class Page:
    """One open page: the messages that wait for it, and the number that it has acknowledged."""

    def __init__(self, connection: ServerConnection) -> None:
        self._connection = connection
        self._waiting: list[Outgoing] = []
        self._sent = self._acknowledged = self.dropped = 0
        self._changed = asyncio.Event()
        assert connection.request is not None, "the handshake is over"
        query = connection.request.path.partition("?")[2]
        self.is_projection = parse_qs(query).get("mode") == ["projection"]

    @property
    def is_idle(self) -> bool:
        """No message waits."""
        return not self._waiting

    def put(self, message: Outgoing) -> None:
        """Queue a message.

        It replaces the oldest of its kind where ``WINDOW`` messages wait already; a camera frame always does.
        """
        if len(self._waiting) >= WINDOW or message.kind == "preview":
            older = next((waiting for waiting in self._waiting if waiting.kind == message.kind), None)
            if older is not None:
                self._waiting.remove(older)
                self.dropped += 1
        self._waiting.append(message)
        self._changed.set()

    def acknowledge(self, data: str | bytes) -> bool:
        """Take the page's count of received messages. Returns False for anything that cannot be one."""
        if not (isinstance(data, str) and data.isascii() and data.isdecimal()):
            return False
        if not self._acknowledged < int(data) <= self._sent:
            return False
        self._acknowledged = int(data)
        self._changed.set()
        return True

    async def send(self) -> None:
        """Send the waiting messages as the page acknowledges them, until the connection closes."""
        with contextlib.suppress(ConnectionClosed):
            while await self._changed.wait():
                self._changed.clear()
                while self._waiting and self._sent - self._acknowledged < WINDOW:
                    self._sent += 1
                    await self._connection.send(self._waiting.pop(0).payload())


class _Connection(ServerConnection):
    """A connection that the server counts, also before it is a WebSocket.

    Where there are too many, the oldest that has not shown its token is cut off. So strangers who connect
    and wait lock nobody out.
    """

    made_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.made_s = time.monotonic()
        connections: set[Any] = self.server.all_connections  # each a ``_Connection``
        connections.add(self)
        strangers = [each for each in connections if each.protocol.state is State.CONNECTING]
        neighbors = [each for each in strangers if each.address == self.address]
        if len(neighbors) > MAX_STRANGERS or len(connections) > MAX_CONNECTIONS:
            crowd = neighbors if len(neighbors) > MAX_STRANGERS else strangers
            oldest = min(crowd, key=lambda connection: connection.made_s)
            oldest.transport.abort()
            connections.discard(oldest)  # it does not count any more; ``connection_lost`` comes later

    @property
    def address(self) -> str:
        """The peer's address, without its port."""
        return str((self.remote_address or ("",))[0])

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.server.all_connections.discard(self)


class WebSink:
    """A server of the page and its messages."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        token: str | None = None,
        preview: Callable[[], bytes | None] | None = None,
    ) -> None:
        """Start the server's thread. Port 0 takes a free one; the attribute ``port`` then holds it.

        ``preview`` returns the camera's newest frame as JPEG, or None while there is no live one; without
        ``preview`` no frame is ever sent. Raises UserError when the host cannot be found or the port is
        taken, UsageError for a network address without a token.
        """
        family, address = resolve(host, port, "--out web")
        check_token(address[0], token)
        try:
            self._socket = socket.create_server(address, family=family)
        except OSError as error:
            reason = (error.strerror or str(error)).partition(" (")[0]
            raise UserError(
                f"--out web: cannot listen on {host}:{port} ({reason}); choose another port"
            ) from error
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://{authority(host, self.port)}/" + (f"?token={token}" if token else "")
        self._guard = RequestGuard(host, self.port, token, load_pages(token))
        self._preview = preview
        self._inbox: BoundedQueue[Outgoing] = BoundedQueue(_INBOX, "drop-oldest")
        self._newest: dict[str, Outgoing] = {}
        self._pages: set[Page] = set()
        self._dropped_before = 0  # for pages that have closed
        self._failure: BaseException | None = None
        self._loop = asyncio.new_event_loop()
        self._came = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="web page", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Number of messages that slow pages did not get."""
        return self._inbox.dropped + self._dropped_before + sum(page.dropped for page in set(self._pages))

    @property
    def pages(self) -> int:
        """Number of open pages."""
        return len(self._pages)

    def publish(self, message: Message) -> None:
        """Queue a message, without waiting. Raises the error that made the server fail."""
        if self._failure is not None:
            raise self._failure
        self._inbox.put(Outgoing(type(message).__name__.lower(), to_json(message)))
        self._wake()

    def close(self) -> None:
        self._inbox.close()
        self._wake()
        self._thread.join(timeout=5.0)

    def _wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # the server has failed: the next ``publish`` raises why
            self._loop.call_soon_threadsafe(self._came.set)

    def _run(self) -> None:
        """Run the server; the thread's function."""
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._serve())
        except BaseException as error:
            self._failure = error
        finally:
            self._socket.close()

    async def _serve(self) -> None:
        server = await serve(
            self._serve_page,
            sock=self._socket,
            process_request=self._check_request,
            process_response=_add_security_headers,
            server_header=None,
            compression=None,
            max_size=_MESSAGE_BYTES,
            max_queue=WINDOW,
            create_connection=_Connection,
            logger=logging.Logger("web page", logging.CRITICAL + 1),  # no stranger fills our log
            open_timeout=_OPEN_S,
            close_timeout=_OPEN_S,
            ping_interval=_PING_S,
            ping_timeout=_PONG_S,
        )
        try:
            await self._deliver()
        finally:
            await _close_server(server, self._pages)

    async def _deliver(self) -> None:
        """Pass messages from the inbox to every page, and frames in between, until the sink is closed."""
        next_preview_s = 0.0
        with contextlib.suppress(Closed):
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PREVIEW_EVERY_S if self._preview else None):
                        await self._came.wait()
                self._came.clear()
                while batch := self._inbox.take_all():
                    for message in batch:
                        self._broadcast(message)
                if self._preview and time.monotonic() >= next_preview_s:
                    next_preview_s = time.monotonic() + PREVIEW_EVERY_S
                    self._send_preview(self._preview)

    def _broadcast(self, message: Outgoing) -> None:
        self._newest[message.kind] = message
        for page in self._pages:
            page.put(message)

    def _send_preview(self, preview: Callable[[], bytes | None]) -> None:
        """Send a frame to the pages that show one; without such a page none is made."""
        viewers = [page for page in self._pages if not page.is_projection]
        jpeg = preview() if viewers else None
        if jpeg is not None:
            for page in viewers:
                page.put(Outgoing("preview", jpeg))

    def _check_request(self, connection: ServerConnection, request: Request) -> Response | None:
        return self._guard.answer(request, str((connection.local_address or ("",))[0]))

    async def _serve_page(self, connection: ServerConnection) -> None:
        """Serve one page until its connection closes; anything but an acknowledgement closes it."""
        if len(self._pages) >= MAX_PAGES:
            await connection.close(CloseCode.TRY_AGAIN_LATER, "too many pages are open")
            return
        page = Page(connection)
        if self._preview is not None:
            page.put(Outgoing("preview on", '{"type": "preview"}'))
        for kind in _REPEATED:
            if kind in self._newest:
                page.put(self._newest[kind])
        self._pages.add(page)
        sender = asyncio.create_task(page.send())
        try:
            with contextlib.suppress(ConnectionClosed):
                async for data in connection:
                    if not page.acknowledge(data):
                        await connection.close(CloseCode.POLICY_VIOLATION, "only acknowledgements are read")
        finally:
            sender.cancel()
            self._pages.discard(page)
            self._dropped_before += page.dropped


def _add_security_headers(_: ServerConnection, __: Request, response: Response) -> None:
    """Add the security headers to an answer."""
    for name, value in SECURITY_HEADERS.items():
        response.headers[name] = value


async def _close_server(server: Server, pages: set[Page]) -> None:
    """Deliver the waiting messages, close the pages, and cut off connections that stay open."""
    deadline_s = time.monotonic() + CLOSING_S
    while time.monotonic() < deadline_s and not all(page.is_idle for page in pages):
        await asyncio.sleep(0.01)
    server.close()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(server.wait_closed(), CLOSING_S)
    for connection in set(server.all_connections):
        connection.transport.abort()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(server.wait_closed(), CLOSING_S)
