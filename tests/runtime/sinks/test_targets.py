"""The grammar of ``--out``, which the command line and the configuration share."""

from __future__ import annotations

import pwd

import pytest

from runtime.config import OutConfig
from runtime.sinks.targets import SinkTarget, is_sink, parse_sink
from vaemotion.contract.errors import UsageError
from vaemotion.contract.settings import Impossible


def test_a_tilde_that_the_shell_left_is_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/anna")
    assert parse_sink("jsonl:~/t").file == "/home/anna/t"
    assert parse_sink("jsonl:~root/t").file == f"{pwd.getpwnam('root').pw_dir}/t"
    assert parse_sink("jsonl:a~/t").file == "a~/t"


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("console", SinkTarget("console", "console")),
        ("jsonl:-", SinkTarget("jsonl:-", "jsonl", file="-")),
        ("jsonl:a:b.jsonl", SinkTarget("jsonl:a:b.jsonl", "jsonl", file="a:b.jsonl")),
        ("osc:10.0.0.5:9000", SinkTarget("osc:10.0.0.5:9000", "osc", host="10.0.0.5", port=9000)),
        ("osc:[::1]:9000", SinkTarget("osc:[::1]:9000", "osc", host="::1", port=9000)),
        ("web:8080", SinkTarget("web:8080", "web", host="127.0.0.1", port=8080)),
        ("web:0.0.0.0:8080", SinkTarget("web:0.0.0.0:8080", "web", host="0.0.0.0", port=8080)),
    ],
)
def test_a_sink_is_parsed(text: str, target: SinkTarget) -> None:
    assert parse_sink(text) == target
    assert OutConfig((text,)).sinks == (text,)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "--out must be a list of"),
        ("console:", "--out must be a list of"),
        ("jsonl:", "--out must be a list of"),
        ("jsonl", "--out must be a list of"),
        ("midi:1", "--out must be a list of"),
        ("osc:9000", "--out osc: takes HOST:PORT with a port from 1 to 65535, got '9000'"),
        ("osc:", "--out osc: takes HOST:PORT"),
        ("osc:::1:9000", "--out osc: takes an IPv6 address in brackets, for example [::1]:9000"),
        ("web:fe80::1", "--out web: takes an IPv6 address in brackets"),
        ("web:99999", "--out web: takes PORT or HOST:PORT with a port from 1 to 65535, got '99999'"),
    ],
)
def test_what_is_no_sink_is_refused_by_both(text: str, sentence: str) -> None:
    with pytest.raises(UsageError) as refusal:
        parse_sink(text)
    assert str(refusal.value).startswith(sentence)
    assert not is_sink(text)
    with pytest.raises(Impossible, match="must be a list of"):
        OutConfig((text,))
