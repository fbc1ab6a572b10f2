"""The web page over real sockets, as docs/web.md specifies it (in a browser: test_web_browser.py)."""

from __future__ import annotations

import contextlib
import json
import logging
import random
import re
import select
import socket
import threading
import time
from collections import Counter

import pytest
from hatchling.builders.wheel import WheelBuilder
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.http11 import Response

from runtime.messages import Narration, Notice, record
from runtime.sinks.outbox import Outbox
from runtime.sinks.targets import parse_sink
from runtime.sinks.web import MAX_CONNECTIONS, MAX_PAGES, MAX_STRANGERS, WINDOW, WebSink
from runtime.sinks.web_server import FILES, SECURITY_HEADERS
from tests.paths import ROOT
from tests.web_peers import (
    END,
    LOOPBACK,
    PATIENCE_S,
    SECRET,
    START,
    TOKEN,
    answer,
    ask,
    handshake,
    jpeg,
    page,
    reading,
    serving,
    status,
    take,
    wait_until,
)
from vaemotion.contract.errors import UsageError, UserError

# --- over sockets ----------------------------------------------------------------------------------------


def test_every_file_of_the_page_is_served_whole_with_the_security_headers() -> None:
    with serving() as sink:
        for path, (name, kind) in FILES.items():
            head, _, body = answer(sink, path).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert body == (ROOT / "runtime/sinks/page" / name).read_bytes()
            assert f"Content-Type: {kind}; charset=utf-8" in head.decode()
            for header, value in SECURITY_HEADERS.items():
                assert f"{header}: {value}" in head.decode()
            assert b"Server:" not in head


def test_the_page_loads_nothing_from_elsewhere_and_runs_no_inline_script() -> None:
    folder = ROOT / "runtime/sinks/page"
    assert {file.name for file in folder.iterdir()} == {name for name, _ in FILES.values()}
    for file in folder.iterdir():
        assert "//" not in file.read_text().replace("// ", ""), file.name  # comments, but no address
    html = (folder / "index.html").read_text()
    assert not re.search(r"\s(on\w+|style)=", html)
    assert html.count("<script") == html.count("<script src=") == 2


def test_the_wheel_holds_the_page() -> None:
    included = {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    assert {f"runtime/sinks/page/{name}" for name, _ in FILES.values()} <= included


def test_a_page_that_opens_later_gets_the_newest_of_each_type_first_and_then_the_rest() -> None:
    messages = [
        START,
        reading(0.1),
        Narration(0.4, 0.1, "rain"),
        status(1.0),
        Notice(1.0, "x"),
        reading(1.1),
    ]
    with serving() as sink, page(sink) as early:
        wait_until(lambda: sink.pages == 1)
        for message in messages:
            sink.publish(message)
            got = take(early)
            assert 0 <= got.pop("waited_s") < PATIENCE_S
            assert got == json.loads(json.dumps(record(message)))
        early.send(str(len(messages)))
        with page(sink) as late:
            got = [take(late) for _ in range(4)]
            assert [each["type"] for each in got] == ["start", "status", "reading", "narration"]
            assert got[2]["time_s"] == 1.1
            sink.publish(END)
            assert take(late)["reason"] == take(early)["reason"] == "source ended"


def test_a_message_holds_the_time_that_it_waited() -> None:
    with serving() as sink:
        sink.publish(reading(1.0))
        time.sleep(0.3)
        with page(sink) as late:
            assert take(late)["waited_s"] >= 0.3


def test_a_closed_sink_delivers_the_end_and_closes_the_connections() -> None:
    sink = WebSink(LOOPBACK, 0)
    with page(sink) as connection:
        wait_until(lambda: sink.pages == 1)
        box = Outbox("web", sink, "drop-oldest", threading.Event())
        box.put(START)
        box.put(END)
        box.close(timeout_s=PATIENCE_S)
        assert [take(connection)["type"], take(connection)["type"]] == ["start", "end"]
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(timeout=PATIENCE_S)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001
    assert not any(thread.name == "web page" for thread in threading.enumerate())
    WebSink(LOOPBACK, sink.port).close()  # the port is free again


def test_a_page_that_acknowledges_nothing_gets_the_newest_later() -> None:
    with serving() as sink, page(sink) as slow, page(sink) as quick:
        wait_until(lambda: sink.pages == 2)
        for k in range(100):
            sink.publish(reading(k / 10))
            assert take(quick)["time_s"] == k / 10
            if k == 50:
                sink.publish(Narration(5.0, 4.0, "rain"))
                assert take(quick)["text"] == "rain"
            quick.send(str(k + 1 + (k >= 50)))
        assert [take(slow)["time_s"] for _ in range(WINDOW)] == [k / 10 for k in range(WINDOW)]
        with pytest.raises(TimeoutError):
            slow.recv(timeout=0.1)
        assert sink.dropped == 100 - 2 * WINDOW
        slow.send(str(WINDOW))
        waited = [take(slow) for _ in range(WINDOW)]
        slow.send(str(2 * WINDOW))
        waited.append(take(slow))
        assert waited[0]["text"] == "rain"
        assert [each["time_s"] for each in waited[1:]] == [(100 - k) / 10 for k in range(WINDOW, 0, -1)]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ("hello", 1008),
        ("0", 1008),
        ("2", 1008),  # one message was sent
        ("-1", 1008),
        ("١", 1008),  # a digit, but no ASCII
        ("", 1008),
        (b"1", 1008),
        ("1" * 17, 1009),
        (b"\xff" * 100_000, 1009),
    ],
)
def test_anything_but_an_acknowledgement_closes_that_page_and_no_other(data: str | bytes, code: int) -> None:
    with serving() as sink, page(sink) as rude, page(sink) as polite:
        wait_until(lambda: sink.pages == 2)
        sink.publish(START)
        assert take(rude)["type"] == "start"
        with contextlib.suppress(ConnectionClosed):
            rude.send(data)
        with pytest.raises(ConnectionClosed) as closed:
            rude.recv(timeout=PATIENCE_S)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == code
        assert take(polite)["type"] == "start"
        polite.send("1")
        sink.publish(reading(1.0))
        assert take(polite)["time_s"] == 1.0


def test_clients_that_stall_do_not_slow_others() -> None:
    with serving() as sink, contextlib.ExitStack() as stalled:
        stuck = stalled.enter_context(socket.create_connection((LOOPBACK, sink.port)))
        stuck.sendall(handshake(sink.port))  # opens, and never reads
        wait_until(lambda: sink.pages == 1)
        for beginning in (
            b"",
            b"G",
            b"GET / HTTP/1.1\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 4000,
        ):
            for _ in range(8):
                client = stalled.enter_context(socket.create_connection((LOOPBACK, sink.port)))
                client.sendall(beginning)
        with page(sink) as quick:
            wait_until(lambda: sink.pages == 2)
            for k in range(3000):
                sink.publish(reading(k / 10))
            got = received = 0
            while got < 299.9:
                got, received = take(quick)["time_s"], received + 1
                quick.send(str(received))
        assert answer(sink, "/").startswith(b"HTTP/1.1 200 OK")
        sink.publish(END)


def test_one_page_too_many_is_refused_with_a_reason_and_a_closed_page_makes_room() -> None:
    with serving() as sink, contextlib.ExitStack() as open_pages:
        pages = [open_pages.enter_context(page(sink)) for _ in range(MAX_PAGES)]
        wait_until(lambda: sink.pages == MAX_PAGES)
        with page(sink) as one_too_many:
            with pytest.raises(ConnectionClosed) as closed:
                one_too_many.recv(timeout=PATIENCE_S)
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1013, "too many pages are open")
        pages[0].close()
        wait_until(lambda: sink.pages == MAX_PAGES - 1)
        with page(sink) as next_page:
            wait_until(lambda: sink.pages == MAX_PAGES)
            sink.publish(START)
            assert take(next_page)["type"] == "start"


@pytest.mark.parametrize("addresses", [1, MAX_CONNECTIONS + 30])
def test_strangers_who_wait_take_few_descriptors_and_lock_nobody_out(addresses: int) -> None:
    most = MAX_STRANGERS if addresses == 1 else MAX_CONNECTIONS
    with serving() as sink, page(sink) as desktop, contextlib.ExitStack() as opened:
        wait_until(lambda: sink.pages == 1)
        idle: list[socket.socket] = []
        for number in range(MAX_CONNECTIONS + 30):
            source = (f"127.0.1.{number % addresses + 1}", 0)
            client = socket.create_connection((LOOPBACK, sink.port), PATIENCE_S, source_address=source)
            idle.append(opened.enter_context(client))

        def waiting() -> list[int]:
            over, _, _ = select.select(idle, [], [], 0)
            return [number for number, client in enumerate(idle) if client not in over]

        wait_until(lambda: len(waiting()) <= most)
        # The oldest are cut off, before any timeout, and none of the viewers.
        assert waiting() == list(range(len(idle) - len(waiting()), len(idle)))
        assert len(waiting()) >= most - 1
        assert answer(sink, "/").startswith(b"HTTP/1.1 200 OK")
        with page(sink) as second:
            sink.publish(START)
            assert take(desktop)["type"] == take(second)["type"] == "start"


def test_no_frame_is_sent_unless_it_is_allowed_and_the_projection_gets_none() -> None:
    newest = [jpeg(200)]
    with serving(preview=lambda: newest[0]) as sink, page(sink, "?mode=projection") as projection:
        with page(sink) as desktop:
            assert take(desktop)["type"] == "preview"
            assert desktop.recv(timeout=PATIENCE_S) == newest[0]
        sink.publish(START)
        assert [take(projection)["type"], take(projection)["type"]] == ["preview", "start"]
        with pytest.raises(TimeoutError):
            projection.recv(timeout=0.6)
    with serving() as sink, page(sink) as desktop:
        wait_until(lambda: sink.pages == 1)
        sink.publish(START)
        assert take(desktop)["type"] == "start"
        with pytest.raises(TimeoutError):
            desktop.recv(timeout=0.6)


def test_a_server_that_fails_fails_the_run() -> None:
    def preview() -> bytes:
        raise UserError("the camera's frame cannot be encoded")

    with serving(preview=preview) as sink, page(sink), pytest.raises(UserError, match="cannot be encoded"):
        publish_until_it_fails(sink)


def publish_until_it_fails(sink: WebSink) -> None:
    for _ in range(round(100 * PATIENCE_S)):
        sink.publish(reading(1.0))
        time.sleep(0.01)


# --- access ----------------------------------------------------------------------------------------------


def refused(sink: WebSink, query: str = "", *, host: str = "", origin: str | None = "same") -> Response:
    """Return the answer to a WebSocket that is refused."""
    with pytest.raises(InvalidStatus) as refusal, page(sink, query, host=host, origin=origin):
        pass
    return refusal.value.response


def test_without_the_token_there_is_nothing_but_403() -> None:
    with serving(token=TOKEN) as sink:
        sink.publish(START)
        wrong = ("", TOKEN[:-1], f"{TOKEN}0", TOKEN.upper(), "%ff", f"{TOKEN}&token={TOKEN}")
        queries = ("", *(f"?token={token}" for token in wrong))
        queries += (f"?Token={TOKEN}", f"?x={TOKEN}", "?" + "&".join("abcdefghij"))
        for query in queries:
            for path in (*FILES, "/socket", "/nothing"):
                got = answer(sink, path + query)
                assert got.startswith(b"HTTP/1.1 403 "), (path, query)
                assert b"vaemotion" not in got
            assert refused(sink, query).status_code == 403
        html = answer(sink, f"/?token={TOKEN}").decode()
        for path in list(FILES)[1:]:
            assert f'"{path[1:]}?token={TOKEN}"' in html
            assert answer(sink, f"{path}?token={TOKEN}").startswith(b"HTTP/1.1 200 OK")
        with page(sink, f"?token={TOKEN}") as connection:
            assert take(connection)["source"] == SECRET


def test_a_token_in_base64_opens_the_page_as_it_is_typed_and_as_it_is_quoted() -> None:
    token = "ab+/cd+/ef+/gh+/ij=="
    with serving(token=token) as sink:
        for query in (token, token.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")):
            assert answer(sink, f"/?token={query}").startswith(b"HTTP/1.1 200 OK")
        assert sink.url == f"http://{LOOPBACK}:{sink.port}/?token={token}"


def test_only_the_page_itself_may_open_the_websocket() -> None:
    with serving() as sink:
        here = f"{LOOPBACK}:{sink.port}"
        others = ("evil.example", f"{here}.evil.example", f"{LOOPBACK}:{sink.port + 1}", LOOPBACK)
        http = [f"http://{other}" for other in (*others, f"localhost:{sink.port}")]
        for origin in (None, "null", f"https://{here}", *http):
            response = refused(sink, origin=origin)
            assert response.status_code == 403
            assert response.headers["X-Content-Type-Options"] == "nosniff"
        twice = (f"Origin: http://{here}",) * 2
        assert ask(sink.port, "GET /socket HTTP/1.1", f"Host: {here}", *twice).startswith(b"HTTP/1.1 403 ")


def test_a_strangers_name_for_this_address_is_refused() -> None:
    machine = socket.gethostname()
    with serving() as sink:
        port = sink.port
        names = (
            "evil.example",
            "10.0.0.1",
            "localhost.evil.example",
            "evil@localhost",
            "[::1",
            "",
            "0.0.0.0",
        )
        hosts = [f"{name}:{port}" for name in (*names, "[::ffff:10.0.0.1]")]
        hosts += ["evil.example", "localhost", f"{LOOPBACK}:{port + 1}", f"localhost:{port}/x", " "]
        for host in (*hosts, f"localhost:{port}:80"):
            assert answer(sink, "/", host).startswith(b"HTTP/1.1 403 "), host
        assert refused(sink, host=f"evil.example:{port}").status_code == 403
        for host in (LOOPBACK, "127.1.2.3", "localhost", "LOCALHOST", "[::1]", machine, f"{machine}.local"):
            assert answer(sink, "/", f"{host}:{port}").startswith(b"HTTP/1.1 200 OK"), host
        assert ask(port, "GET / HTTP/1.1").startswith(b"HTTP/1.1 403 ")
        assert ask(port, "GET / HTTP/1.1", *[f"Host: {LOOPBACK}:{port}"] * 2).startswith(b"HTTP/1.1 403 ")


def test_on_every_address_of_this_machine_its_own_address_is_a_host() -> None:
    with contextlib.closing(WebSink("0.0.0.0", 0, token=TOKEN)) as sink:
        for host, code in ((LOOPBACK, b"200"), ("0.0.0.0", b"403"), ("192.0.2.7", b"403")):
            assert answer(sink, f"/?token={TOKEN}", f"{host}:{sink.port}").startswith(b"HTTP/1.1 " + code), (
                host
            )


def test_other_paths_and_methods_are_refused() -> None:
    with serving() as sink:
        for path in (
            "/x",
            "/page.css/",
            "//page.css",
            "/../web.py",
            "/%2e%2e/web.py",
            "/page/index.html",
            "*",
        ):
            assert answer(sink, path).startswith(b"HTTP/1.1 404 "), path
        for method in ("POST", "HEAD", "PUT", "get", "OPTIONS"):
            assert answer(sink, "/", method=method).startswith(b"HTTP/1.1 405 "), method
        origin = f"Origin: http://{LOOPBACK}:{sink.port}"
        upgrade = ask(sink.port, "GET /socket HTTP/1.1", f"Host: {LOOPBACK}:{sink.port}", origin)
        assert upgrade.startswith(b"HTTP/1.1 426 ")
        assert b"Content-Security-Policy" in upgrade


def test_what_cannot_be_served_is_one_sentence() -> None:
    for target, address in (("8080", LOOPBACK), ("0.0.0.0:8080", "0.0.0.0"), ("[::1]:8080", "::1")):
        parsed = parse_sink(f"web:{target}")
        assert (parsed.host, parsed.port) == (address, 8080)
    for target in ("", "x", "0", "70000", "a:b", "127.0.0.1:"):
        with pytest.raises(UsageError, match="--out web: takes PORT or HOST:PORT"):
            parse_sink(f"web:{target}")
    for host in ("0.0.0.0", "192.0.2.7", "::"):
        with pytest.raises(
            UsageError, match=r"on a network, where a token is needed: give one of 16 or more"
        ):
            WebSink(host, 0)
    for token in ("", "short", "x" * 257, "with a space in it", '"><script>alert(1)</script>', "tö" * 10):
        with pytest.raises(UsageError, match="a token is 16 to 256 of"):
            WebSink(LOOPBACK, 0, token=token)
    with pytest.raises(UserError, match=r"^--out web: the host .* cannot be found; give its IP address$"):
        WebSink("x" * 70, 0)
    with pytest.raises(UserError, match=r"cannot listen on 192.0.2.7:0 \(.*\); choose another port"):
        WebSink("192.0.2.7", 0, token=TOKEN)
    with (
        serving() as sink,
        pytest.raises(UserError, match=r"\(Address already in use\); choose another port$"),
    ):
        WebSink(LOOPBACK, sink.port)


# --- malformed inputs ------------------------------------------------------------------------------------


def damaged(chance: random.Random, data: bytes) -> bytes:
    """Change, insert, remove and cut off bytes."""
    changed = bytearray(data)
    for _ in range(chance.randint(0, 3)):
        place = chance.randrange(len(changed) + 1)
        match chance.randrange(4):
            case 0:
                changed[place : place + 1] = bytes([chance.randrange(256)])
            case 1:
                changed[place:place] = chance.choice(
                    (b"\r\n", b"\0", b" ", b":", b"\xff" * 9, b"a" * 9000, b"%")
                )
            case 2:
                del changed[place : place + chance.randint(1, 40)]
            case _:
                changed[place:place] = changed[: chance.randint(0, 200)]
    return bytes(changed[: chance.randint(0, len(changed))] if chance.random() < 0.3 else changed)


def exchange(port: int, data: bytes, behind: bytes = b"") -> bytes:
    """Return all answers: to ``data``, if it holds a whole head, and to ``behind``, which follows it."""
    with socket.create_connection((LOOPBACK, port), timeout=PATIENCE_S) as client:
        got = b""
        with contextlib.suppress(ConnectionError):
            client.sendall(data)
            if b"\r\n\r\n" in data:
                got = client.recv(65_536)
            client.sendall(behind)
            client.shutdown(socket.SHUT_WR)
            while part := client.recv(65_536):
                got += part
    return got


def test_malformed_requests_and_frames_do_no_harm_and_get_no_data(caplog: pytest.LogCaptureFixture) -> None:
    chance, answers = random.Random(6), Counter[bytes]()
    parts = [
        (b"\x81\x81", b"1"),
        (b"\x89\x80", b""),
        (b"\x88\x82", b"\x03\xe8"),
        (b"\x01\x81", b"1"),
        (b"\x80\x81", b"1"),
        (b"\x82\xfe\xff\xff", b"1"),
    ]
    frames = [head + bytes(4) + body for head, body in parts]
    caplog.set_level(logging.WARNING)
    with serving(token=TOKEN) as sink, page(sink, f"?token={TOKEN}") as viewer:
        sink.publish(START)
        assert take(viewer)["source"] == SECRET
        strangers = [
            handshake(sink.port, "?token=" + "0" * 16),
            handshake(sink.port),
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        ]
        for _ in range(3000):  # without the token, nothing is sent
            noise = chance.random() < 0.2
            data = (
                chance.randbytes(chance.randint(0, 300))
                if noise
                else damaged(chance, chance.choice(strangers))
            )
            got = exchange(sink.port, data)
            assert SECRET.encode() not in got
            answers[got[9:12]] += 1
        for _ in range(3000):  # with it, the server survives anything after the handshake
            behind = b"".join(damaged(chance, chance.choice(frames)) for _ in range(chance.randint(1, 6)))
            got = exchange(sink.port, handshake(sink.port, f"?token={TOKEN}"), behind)
            assert got.startswith(b"HTTP/1.1 101 ")
            assert b"\x88\x02\x03\xf3" not in got  # closed for an internal error
        assert set(answers) <= {b"", b"403", b"414", b"431"}, answers
        assert min(answers[b"403"], answers[b""]) > 300  # some were still requests, and some were not
        viewer.send("1")
        sink.publish(reading(7.0))
        assert take(viewer)["time_s"] == 7.0
        wait_until(lambda: sink.pages == 1)
    assert caplog.records == []
