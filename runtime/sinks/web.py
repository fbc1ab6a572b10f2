"""The web page: whoever opens it in a browser sees what is perceived now. docs/web.md says how; ``runtime.sinks.web_server`` whom.

In: messages, and pictures of the camera where they are allowed. Out: to each open page the JSON of ``runtime.messages.record`` over a
WebSocket, with ``waited_s`` added: how old the message is, so that the page never shows an old value as a live one.

The server runs on a thread with an event loop of its own. A page acknowledges each message by how many it has received. One that is
``WINDOW`` messages behind gets nothing until it catches up; as many wait for it, and the newest of each type whatever happens; what it
misses is counted. So neither a slow browser nor a dead one costs perception a moment, and none shows what is long past.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qs

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response

from runtime.mailbox import Closed, Ring
from runtime.messages import Message, record
from runtime.sinks.osc import parse_endpoint, resolve
from runtime.sinks.web_server import SECURITY_HEADERS, Gate, check_token, load_pages
from vaemotion.contract.errors import UserError

MAX_PAGES = 16  # open at a time
MAX_CONNECTIONS = 64  # with those that ask for files, or for nothing: file descriptors are perception's, too
WINDOW = 8  # messages that a page may owe: 0.8 s of readings
PREVIEW_EVERY_S = 0.25
FAREWELL_S = 0.4  # at the end, for pages to take what they are owed
_FIRST = ("start", "status", "reading", "narration", "end")  # what a page that opens later gets of the past
_INBOX = 256  # messages between the sink's thread and the server's
_MESSAGE_BYTES = 16  # of an acknowledgement, at most
_OPEN_S, _PING_S, _PONG_S = (
    5.0,
    5.0,
    10.0,
)  # a client's time to make its request; the beat of asking whether it lives, and to answer


def parse_web(target: str) -> tuple[str, int]:
    """Host and port from what follows ``--out web:``, a PORT of loopback or HOST:PORT. Raises UsageError."""
    return parse_endpoint(target, "--out web:", "127.0.0.1")


@dataclass(frozen=True)
class News:
    """A message on its way. ``kind``: its type; ``content``: an object's JSON, or a JPEG."""

    kind: str
    content: str | bytes
    came_s: float = field(default_factory=time.monotonic)

    def payload(self) -> str | bytes:
        if isinstance(self.content, bytes):
            return self.content
        return f'{{"waited_s": {time.monotonic() - self.came_s:.3f}, {self.content[1:]}'


class Page:
    """One open page: what waits for it, and how much of what was sent it has acknowledged."""

    def __init__(self, connection: ServerConnection) -> None:
        self._connection = connection
        self._waiting: list[News] = []
        self._sent = self._acknowledged = self.dropped = 0
        self._changed = asyncio.Event()
        assert connection.request is not None, "the handshake is over"
        query = connection.request.path.partition("?")[2]
        self.is_projection = parse_qs(query).get("mode") == ["projection"]

    @property
    def is_served(self) -> bool:
        return not self._waiting

    def put(self, news: News) -> None:
        """Where ``WINDOW`` messages wait, a new one takes the place of the oldest of its kind; a picture always does."""
        if len(self._waiting) >= WINDOW or news.kind == "preview":
            older = next((waiting for waiting in self._waiting if waiting.kind == news.kind), None)
            if older is not None:
                self._waiting.remove(older)
                self.dropped += 1
        self._waiting.append(news)
        self._changed.set()

    def acknowledge(self, data: str | bytes) -> bool:
        """Whether ``data`` is the number of messages that the page can have received by now."""
        if not (isinstance(data, str) and data.isascii() and data.isdecimal()):
            return False
        if not self._acknowledged < int(data) <= self._sent:
            return False
        self._acknowledged = int(data)
        self._changed.set()
        return True

    async def send(self) -> None:
        """Until the connection closes."""
        with contextlib.suppress(ConnectionClosed):
            while await self._changed.wait():
                self._changed.clear()
                while self._waiting and self._sent - self._acknowledged < WINDOW:
                    self._sent += 1
                    await self._connection.send(self._waiting.pop(0).payload())


class _Connection(ServerConnection):
    """Any connection, not only an open WebSocket, counts and is known to the server. One too many is cut off."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.server.all_connections.add(self)
        if len(self.server.all_connections) > MAX_CONNECTIONS:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.server.all_connections.discard(self)


class WebSink:
    """Serves the page and feeds it. ``preview`` gives the camera's newest picture as JPEG, at once, or None while there is none that
    is live; without it no picture ever leaves."""

    def __init__(
        self, host: str, port: int, *, token: str | None = None, preview: Callable[[], bytes | None] | None = None
    ) -> None:  # fmt: skip
        """Port 0: any free one, then in ``port``. Raises UserError when the host cannot be found or the port cannot be had,
        UsageError for an address on a network without a token."""
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
        shown_host = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown_host}:{self.port}/" + (f"?token={token}" if token else "")
        self._gate = Gate(host, self.port, token, load_pages(token))
        self._preview = preview
        self._inbox: Ring[News] = Ring(_INBOX, "drop-oldest")
        self._newest: dict[str, News] = {}
        self._pages: set[Page] = set()
        self._dropped_before = 0  # for pages that have closed
        self._failure: BaseException | None = None
        self._loop = asyncio.new_event_loop()
        self._came = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="web page", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Messages that open pages did not get, because they were slow."""
        return self._inbox.dropped + self._dropped_before + sum(page.dropped for page in set(self._pages))

    @property
    def pages(self) -> int:
        """How many are open."""
        return len(self._pages)

    def publish(self, message: Message) -> None:
        """Never waits. Raises what made the server fail."""
        if self._failure is not None:
            raise self._failure
        content = json.dumps(record(message), ensure_ascii=False, allow_nan=False)
        self._inbox.put(News(type(message).__name__.lower(), content))
        self._wake()

    def close(self) -> None:
        self._inbox.close()
        self._wake()
        self._thread.join(timeout=5.0)

    def _wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # the server has failed: the next message raises why
            self._loop.call_soon_threadsafe(self._came.set)

    def _run(self) -> None:
        """The server's thread."""
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._serve())
        except BaseException as error:
            self._failure = error
        finally:
            self._socket.close()

    async def _serve(self) -> None:
        server = await serve(
            self._attend, sock=self._socket, process_request=self._decide, process_response=_harden, server_header=None,
            compression=None, max_size=_MESSAGE_BYTES, max_queue=WINDOW, create_connection=_Connection,
            logger=logging.Logger("web page", logging.CRITICAL + 1),  # no stranger fills our log
            open_timeout=_OPEN_S, close_timeout=_OPEN_S, ping_interval=_PING_S, ping_timeout=_PONG_S,
        )  # fmt: skip
        try:
            await self._spread()
        finally:
            await _farewell(server, self._pages)

    async def _spread(self) -> None:
        """From the inbox to every page, and pictures in between, until the sink is closed."""
        next_preview_s = 0.0
        with contextlib.suppress(Closed):
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PREVIEW_EVERY_S if self._preview else None):
                        await self._came.wait()
                self._came.clear()
                while batch := self._inbox.take_all():
                    for news in batch:
                        self._tell(news)
                if self._preview and time.monotonic() >= next_preview_s:
                    next_preview_s = time.monotonic() + PREVIEW_EVERY_S
                    self._show(self._preview)

    def _tell(self, news: News) -> None:
        self._newest[news.kind] = news
        for page in self._pages:
            page.put(news)

    def _show(self, preview: Callable[[], bytes | None]) -> None:
        """A picture, to pages that show it; none is taken while none is open."""
        viewers = [page for page in self._pages if not page.is_projection]
        picture = preview() if viewers else None
        if picture is not None:
            for page in viewers:
                page.put(News("preview", picture))

    def _decide(self, connection: ServerConnection, request: Request) -> Response | None:
        return self._gate.answer(request, str((connection.local_address or ("",))[0]))

    async def _attend(self, connection: ServerConnection) -> None:
        """One page, from its opening to its end. What it says and is no acknowledgement ends it."""
        if len(self._pages) >= MAX_PAGES:
            await connection.close(CloseCode.TRY_AGAIN_LATER, "too many pages are open")
            return
        page = Page(connection)
        if self._preview is not None:
            page.put(News("preview on", '{"type": "preview"}'))
        for kind in _FIRST:
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


def _harden(_: ServerConnection, __: Request, response: Response) -> None:
    """Every answer carries the security headers."""
    for name, value in SECURITY_HEADERS.items():
        response.headers[name] = value


async def _farewell(server: Server, pages: set[Page]) -> None:
    """Let pages have the end, close them, and cut off whoever is still there."""
    deadline_s = time.monotonic() + FAREWELL_S
    while time.monotonic() < deadline_s and not all(page.is_served for page in pages):
        await asyncio.sleep(0.01)
    server.close()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(server.wait_closed(), FAREWELL_S)
    for connection in set(server.all_connections):
        connection.transport.abort()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(server.wait_closed(), FAREWELL_S)
