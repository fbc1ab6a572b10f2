"""The web page as a real Chromium shows it, driven over the DevTools protocol."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from websockets.sync.client import ClientConnection, connect

from runtime.messages import Message, Narration, Notice
from runtime.sinks.console import words
from runtime.sinks.web import WINDOW, WebSink
from runtime.sinks.web_server import FILES
from tests.web_peers import (
    END,
    LOOPBACK,
    PATIENCE_S,
    SECRET,
    START,
    TOKEN,
    jpeg,
    reading,
    serving,
    status,
    wait_until,
)

# Records in window.states each state that the page shows, from its beginning on.
RECORD_STATES = """
window.states = [];
new MutationObserver(() => {
  const state = document.body?.dataset.live;
  if (state && state !== states.at(-1)) states.push(state);
}).observe(document, {attributes: true, childList: true, subtree: true});"""


class Browser:
    """Headless Chromium, driven over its DevTools protocol."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection, self._calls = connection, 0
        self.events: list[dict] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.addScriptToEvaluateOnNewDocument", source=RECORD_STATES)

    def call(self, method: str, **parameters) -> dict:
        self._calls += 1
        self._connection.send(json.dumps({"id": self._calls, "method": method, "params": parameters}))
        while (got := json.loads(self._connection.recv(timeout=PATIENCE_S))).get("id") != self._calls:
            self.events.append(got)
        assert "error" not in got, got
        return got["result"]

    def open(
        self, url: str, width: int = 1280, height: int = 800, scale: float = 1.0, phone: bool = False
    ) -> None:
        self.events.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=phone,
        )
        self.call("Page.navigate", url=url)
        wait_until(lambda: self.eval("document.readyState === 'complete' && location.href !== 'about:blank'"))

    def eval(self, script: str):
        got = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in got, got
        return got["result"].get("value")

    def text(self, name: str) -> str:
        return self.eval(f"document.getElementById('{name}').textContent").strip()

    def wait_for(self, script: str) -> None:
        wait_until(lambda: self.eval(script))

    def wait_for_value(self, script: str, expected: object) -> None:
        """Wait for a value of a live reading, which is stale for a moment where the machine stalls."""
        deadline = time.monotonic() + PATIENCE_S
        while (got := self.eval(script)) != expected:
            assert time.monotonic() < deadline, got
            time.sleep(0.05)

    def errors(self) -> list[dict]:
        """Return the page's errors, also of its content security policy, without lost connections."""
        logged = [e for e in self.events if e["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]
        wrong = [e for e in logged if e["params"].get("entry", {}).get("level", "error") == "error"]
        return [e for e in wrong if "WebSocket connection to" not in json.dumps(e)]

    def requested_urls(self) -> set[str]:
        return {
            e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"
        }


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip(f"none of {', '.join(names)} is installed")
    folder = tmp_path_factory.mktemp("chromium")
    options = ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "no-first-run")
    command = [program, *(f"--{option}" for option in options), f"--user-data-dir={folder}"]
    command += ["--remote-debugging-port=0", "about:blank"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            port_file = folder / "DevToolsActivePort"
            wait_until(lambda: port_file.exists() and "\n" in port_file.read_text())
            with urllib.request.urlopen(
                f"http://{LOOPBACK}:{port_file.read_text().split()[0]}/json/list"
            ) as listed:
                [target] = [t for t in json.load(listed) if t["type"] == "page"]
            with connect(
                target["webSocketDebuggerUrl"], max_size=None, compression=None, proxy=None
            ) as connection:
                yield Browser(connection)
        finally:
            process.terminate()


@contextlib.contextmanager
def feeding(sink: WebSink, *messages: Message) -> Iterator[None]:
    """Publish the messages once, and then the last again and again, as live readings come."""
    over = threading.Event()

    def feed() -> None:
        for message in messages:
            sink.publish(message)
        while not over.wait(0.1):
            sink.publish(messages[-1])

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


LIVE = "document.body.dataset.live === 'live'"


WIDE = "document.documentElement.scrollWidth"


def test_the_page_acknowledges_each_message_and_shows_it(browser: Browser) -> None:
    with serving() as sink:
        browser.open(sink.url)
        wait_until(lambda: sink.pages == 1)
        for k in range(3 * WINDOW):  # more than a page may leave unacknowledged
            sink.publish(reading(60.0 * k, k / 100))
            browser.wait_for(f"document.getElementById('valence').textContent === '+{k / 100:.2f} ± 0.10'")
            browser.wait_for(f"document.getElementById('clock').textContent === '0:{k:02}:00'")
        assert sink.dropped == 0
        sent = [
            e["params"]["response"] for e in browser.events if e["method"] == "Network.webSocketFrameSent"
        ]
        assert {str(k + 1) for k in range(2 * WINDOW)} <= {frame["payloadData"] for frame in sent}
        assert browser.requested_urls() == {sink.url + path[1:] for path in FILES}
        assert browser.errors() == []


def test_the_page_shows_everything_as_text(browser: Browser) -> None:
    shown = replace(
        reading(5.0, 0.5, -0.4),
        label="contentment",
        confidence=0.64,
        valence_interval=0.3,
        arousal_interval=0.25,
    )
    sentences = [Narration(4.0, 2.0, "a bell"), Narration(4.5, 3.0, "rain <b>on</b> a roof")]
    with serving(token=TOKEN) as sink:
        browser.open(sink.url)
        wait_until(lambda: sink.pages == 1)  # a message that comes once needs an open page
        with feeding(sink, START, status(4.0), *sentences, Notice(4.5, "<i>a drop</i>"), shown):
            browser.wait_for(LIVE)
            browser.wait_for_value("document.getElementById('link-words').textContent", "live")
            assert browser.text("source") == f"{SECRET} · tiny"
            assert browser.text("words") == words(shown)
            assert browser.text("committed") == "contentment (64 % sure)"
            assert browser.text("valence") == "+0.50 ± 0.30"
            assert browser.text("arousal") == "−0.40 ± 0.25"
            assert browser.text("ellipse") == "ellipse: on each axis, 90 in 100 lie within"
            # messages come one after the other: the page may be live before the last of them
            browser.wait_for_value(
                "document.getElementById('notice').textContent.trim()", "0:00:04  <i>a drop</i>"
            )
            rows = (
                "[...document.querySelectorAll('{}')]"
                ".map((row) => row.innerText.split('\\n').map((text) => text.trim()))"
            )
            bars = browser.eval(rows.format("#emotions li"))
            assert [(bar[0].removesuffix(" ●"), bar[-1]) for bar in bars] == [
                (name, f"{share:.0%}".replace("%", " %")) for name, share in shown.emotions.items()
            ]
            sentences_shown = rows.format("#narrations li") + ".map((row) => row[0])"
            browser.wait_for_value(sentences_shown, ["rain <b>on</b> a roof", "a bell"])
            lights = (
                "[...document.querySelectorAll('#lights li')]"
                ".map((row) => [row.className, ...[...row.children].map((c) => c.textContent)])"
            )
            expected = [
                ["bad", "camera", "frozen · 4.2 s · lost 3 ×"],
                ["good", "microphone", "live"],
                ["path good", "based on", "audio-visual"],
                ["good", "state", "engaged"],
                ["good", "output", "on"],
                ["warn", "narrator", "slowed"],
                ["bad", "wall clock", "not synchronized"],
            ]
            browser.wait_for_value(lights, expected)
            figures = dict(browser.eval(rows.format("#figures div")))
            assert figures["latency"] == "42 ms"
            assert figures["latency p99"] == "68 ms"
            assert figures["skew"] == "−12 ms"
            assert figures["drift"] == "–"
            assert (figures["ticks dropped"], figures["messages dropped"]) == ("12", "3")
        assert browser.errors() == []


def test_the_point_stands_where_the_reading_is_in_every_pixel_density(browser: Browser) -> None:
    bright = """((v, a) => { const plane = document.getElementById('plane');
        const place = [plane.width * (0.5 + v * REACH), plane.height * (0.5 - a * REACH)];
        const [r, g, b, alpha] = plane.getContext('2d').getImageData(...place, 1, 1).data;
        return (r + g + b) * alpha / 255 > 400; })"""
    for scale in (1.0, 2.0):
        with serving() as sink:
            browser.open(sink.url, scale=scale)
            with feeding(sink, reading(1.0, 0.6, -0.7)):
                browser.wait_for(f"{LIVE} && {bright}(0.6, -0.7)")
                assert not browser.eval(f"{bright}(-0.6, -0.7) || {bright}(0.6, 0.7)")
            size = "(plane => plane.width === Math.round(plane.clientWidth * devicePixelRatio))"
            assert browser.eval(f"{size}(document.getElementById('plane'))")
            assert browser.eval("devicePixelRatio") == scale


def test_the_page_has_the_contracts_words_and_geometry(browser: Browser) -> None:
    with serving() as sink:
        browser.open(sink.url)
        for valence in np.linspace(-1, 1, 11):
            for arousal in (-1.0, -0.61, -0.2, 0.0, 0.199, 0.6, 1.0):
                text = f"`${{level({arousal}, AROUSAL_WORDS)}}, ${{level({valence}, VALENCE_WORDS)}}`"
                assert browser.eval(text) == words(reading(0.0, float(valence), arousal))


def test_a_stale_value_turns_gray_and_is_never_live_for_a_page_that_opens_later(
    browser: Browser,
) -> None:
    opacity = "parseFloat(getComputedStyle(document.getElementById('{}')).opacity)"
    with serving() as sink:
        browser.open(sink.url)
        with feeding(sink, START, status(1.0), reading(1.0)):
            browser.wait_for(f"{LIVE} && {opacity.format('words')} === 1")
        browser.wait_for("document.body.dataset.live === 'stale'")
        assert browser.text("link-words") == "no new reading"
        for gray in ("words", "valence", "emotions", "affect", "narrations"):
            browser.wait_for(f"{opacity.format(gray)} < 0.6")
        browser.wait_for(f"document.body.dataset.status === 'stale' && {opacity.format('lights')} < 0.6")
        browser.open(sink.url)
        browser.wait_for("document.body.dataset.live === 'stale'")
        assert browser.text("valence") == "+0.50 ± 0.10"
        assert "live" not in browser.eval("states")


def test_a_lost_connection_is_shown_at_once_and_made_again(browser: Browser) -> None:
    with serving() as sink:
        browser.open(sink.url)
        with feeding(sink, START, reading(1.0)):
            browser.wait_for(LIVE)
    browser.wait_for("document.body.dataset.live === 'lost'")
    assert browser.text("link-words") == "connection lost, trying again"
    with contextlib.closing(WebSink(LOOPBACK, sink.port)) as again, feeding(again, START, reading(2.0)):
        browser.wait_for(LIVE)
        again.publish(END)
        browser.wait_for("document.body.dataset.live === 'ended'")
        assert browser.text("link-words") == "the run ended: source ended"
    with contextlib.closing(WebSink(LOOPBACK, sink.port)) as next_run, feeding(next_run, START, reading(3.0)):
        browser.wait_for(LIVE)


def test_a_silent_connection_counts_as_dead(browser: Browser) -> None:
    with serving() as sink:
        browser.open(sink.url)
        browser.wait_for(
            "['waiting', 'lost', 'waiting'].every("
            "(state, i) => states.slice(states.indexOf('waiting'))[i] === state)"
        )


def test_the_preview_is_shown_only_while_the_camera_is_live_and_the_page_says_that_it_is_on(
    browser: Browser,
) -> None:
    newest: list[bytes | None] = [jpeg(220)]
    bright = "document.getElementById('picture').getContext('2d').getImageData(1, 1, 1, 1).data[0] > 200"
    stale = "document.getElementById('preview').classList.contains('stale')"
    with serving(preview=lambda: newest[0]) as sink:
        browser.open(sink.url)
        without_frame = replace(reading(1.0), path="audio", visual_age_s=None)
        with feeding(sink, START, reading(1.0)):
            browser.wait_for(f"{LIVE} && {bright} && !{stale}")
            assert "Camera preview is on" in browser.eval("document.querySelector('#preview h2').innerText")
            newest[0] = None
            browser.wait_for(f"{LIVE} && {stale}")
            newest[0] = jpeg(220)
            browser.wait_for(f"{LIVE} && !{stale}")
        with feeding(sink, without_frame):
            browser.wait_for(f"{LIVE} && {stale}")
        assert browser.errors() == []
    with serving() as sink:
        browser.open(sink.url)
        with feeding(sink, START, reading(1.0)):
            browser.wait_for(LIVE)
            assert browser.eval("document.getElementById('preview').offsetParent === null")


def test_a_phone_shows_it_without_scrolling_sideways(browser: Browser) -> None:
    long = Narration(1.0, 0.5, "incomprehensibilities " * 12)
    for width in (360, 390, 768):
        with serving() as sink:
            browser.open(sink.url, width, 780, 2.0, phone=True)
            with feeding(sink, START, status(1.0), long, replace(reading(1.0), label="something else")):
                browser.wait_for(LIVE)
                assert browser.eval(f"{WIDE} <= {width} && innerWidth === {width}")
                styles = "[...document.querySelectorAll('main *')].map((e) => getComputedStyle(e))"
                smallest = f"Math.min(...{styles}.map((style) => parseFloat(style.fontSize)))"
                assert browser.eval(smallest) >= 11


@pytest.mark.parametrize("size", [(1920, 1080), (1280, 800), (1080, 1920)])
def test_a_projection_is_large_quiet_and_whole(browser: Browser, size: tuple[int, int]) -> None:
    width, height = size
    with serving() as sink:
        browser.open(sink.url + "?mode=projection", width, height)
        sentence = "A storm of thin black lines gathers while the low strings grow louder. "
        long = Narration(1.0, 0.5, sentence * 4)
        with feeding(sink, START, status(1.0), long, Notice(1.0, "x"), reading(1.0)):
            browser.wait_for(LIVE)
            shown = (
                "[...document.querySelectorAll('header, header *, main, main *')]"
                ".filter((e) => e.getClientRects().length && !e.children.length && e.textContent)"
            )
            texts = ["stirring", "calm", "unpleasant", "pleasant", "calm, pleasant", long.text]
            browser.wait_for_value(f"{shown}.map((e) => e.textContent)", texts)
            outside = (
                f"{shown}.map((e) => e.getBoundingClientRect())"
                f".some((box) => box.bottom > {height} || box.right > {width})"
            )
            assert not browser.eval(outside)
            least = f"Math.min(...{shown}.map((e) => parseFloat(getComputedStyle(e).fontSize)))"
            assert browser.eval(least) >= 0.04 * min(size)
            assert browser.eval("document.getElementById('plane').clientWidth") >= 0.75 * min(size)
            assert browser.eval("getComputedStyle(document.documentElement).cursor") == "none"
            assert browser.eval(f"{WIDE} <= {width} && document.documentElement.scrollHeight <= {height}")
            sink.publish(replace(status(2.0), muted=True))
            browser.wait_for("getComputedStyle(document.querySelector('main')).opacity === '0'")
            sink.publish(status(3.0))
            browser.wait_for("getComputedStyle(document.querySelector('main')).opacity === '1'")
        browser.wait_for("document.getElementById('link').getClientRects().length === 1")


def test_reduced_motion_is_no_motion(browser: Browser) -> None:
    browser.call(
        "Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}]
    )
    try:
        with serving() as sink:
            browser.open(sink.url)
            moving = (
                "[...document.querySelectorAll('*')]"
                ".filter((e) => getComputedStyle(e).transitionDuration !== '0s').length"
            )
            assert browser.eval(moving) == 0
    finally:
        browser.call("Emulation.setEmulatedMedia", features=[])
