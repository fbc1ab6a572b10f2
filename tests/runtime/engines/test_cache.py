"""The cache returns the stored bytes under their own key, or nothing, also after a writer was killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.engines.cache import BatchProfile, EngineKey, cache_folder, engine_file, load, sidecar_of, store
from tests.paths import ROOT

KEY = EngineKey("ab" * 32, "int8", BatchProfile(), "10.16.1.11", 13020, 13040, "Orin", "8.7")
NUMBERS = st.integers(1, 10**6)
KEYS = st.builds(
    EngineKey,
    st.text(max_size=8),
    st.sampled_from(["fp32", "fp16", "int8"]),
    st.builds(BatchProfile, NUMBERS, NUMBERS, NUMBERS),
    st.text(max_size=8),
    NUMBERS,
    NUMBERS,
    st.text(max_size=8),
    st.text(max_size=4),
    NUMBERS,
)


@given(a=KEYS, b=KEYS, name=st.sampled_from([f.name for f in fields(EngineKey)]))
def test_every_field_alone_changes_the_key(a: EngineKey, b: EngineKey, name: str) -> None:
    changed = replace(a, **{name: getattr(b, name)})
    assert (changed.digest == a.digest) == (changed == a)


@given(a=KEYS, b=KEYS)
def test_bytes_stored_under_one_key_are_not_returned_under_another(
    a: EngineKey, b: EngineKey, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("cache") / "one.engine"
    store(file, asdict(a), b"plan")
    content, reason = load(file, asdict(b))
    assert (content, reason) == (
        (b"plan", "") if a == b else (None, "the cached engine was built for something else")
    )


def test_nothing_is_cached_at_first(tmp_path: Path) -> None:
    assert load(tmp_path / "one.engine", asdict(KEY)) == (None, "nothing is cached")


@given(cut=st.integers(0, 999), flipped=st.integers(0, 999), value=st.integers(1, 255))
def test_a_torn_or_flipped_engine_is_refused(
    cut: int, flipped: int, value: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file, plan = tmp_path_factory.mktemp("cache") / "one.engine", bytes(range(250)) * 4
    store(file, asdict(KEY), plan)
    damaged = bytearray(plan)
    damaged[flipped] ^= value
    for content in (plan[:cut], bytes(damaged), plan + b"\0"):
        file.write_bytes(content)
        assert load(file, asdict(KEY)) == (None, "the cached engine is damaged (sha256 differs)")


@pytest.mark.parametrize("sidecar", ["", "{", "[]", "null", "{}", '{"key": 1}', '{"key": {}, "sha256": 3}'])
def test_an_engine_whose_sidecar_is_not_its_own_is_refused(tmp_path: Path, sidecar: str) -> None:
    file = tmp_path / "one.engine"
    store(file, asdict(KEY), b"plan")
    sidecar_of(file).write_text(sidecar)
    content, reason = load(file, asdict(KEY))
    assert content is None
    assert reason


def test_an_engine_without_a_sidecar_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "one.engine"
    file.write_bytes(b"plan")
    assert load(file, asdict(KEY)) == (None, "nothing is cached")


def test_the_sidecar_can_be_read_by_a_person(tmp_path: Path) -> None:
    file = engine_file(tmp_path, "emo_adapter", KEY)
    store(file, asdict(KEY), b"plan")
    assert file.name.startswith("emo_adapter-int8-")
    assert json.loads(sidecar_of(file).read_text())["key"]["gpu_name"] == "Orin"


WRITER = """
import sys; from dataclasses import asdict; from pathlib import Path
from runtime.engines.cache import store
from tests.runtime.engines.test_cache import KEY
print("ready", flush=True)
while True: store(Path(sys.argv[1]), asdict(KEY), b"x" * 4_000_000)
"""


@pytest.mark.parametrize("delay_s", [0.0, 0.003, 0.01, 0.03])
def test_a_writer_that_is_killed_leaves_a_whole_engine_or_none(tmp_path: Path, delay_s: float) -> None:
    file = tmp_path / "one.engine"
    home = ROOT
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(file)],
        stdout=subprocess.PIPE,
        cwd=home,
        env={"PYTHONPATH": str(home)},
    )
    assert writer.stdout is not None
    writer.stdout.readline()
    time.sleep(delay_s)
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    content, reason = load(file, asdict(KEY))
    assert content == b"x" * 4_000_000 if content is not None else reason == "nothing is cached"


SMALL_DISK = """
import resource, sys; from dataclasses import asdict; from pathlib import Path
from runtime.engines.cache import store
from tests.runtime.engines.test_cache import KEY
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
store(Path(sys.argv[1]), asdict(KEY), b"x" * 4_000_000)
"""


def test_a_disk_that_is_full_leaves_nothing_behind(tmp_path: Path) -> None:
    home = ROOT
    done = subprocess.run(
        [sys.executable, "-c", SMALL_DISK, str(tmp_path / "one.engine")],
        capture_output=True,
        text=True,
        cwd=home,
        env={"PYTHONPATH": str(home)},
    )
    assert "OSError" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_cache_is_where_the_user_says(tmp_path: Path) -> None:
    assert cache_folder({"VAEMOTION_CACHE": "/a", "XDG_CACHE_HOME": "/b"}) == Path("/a")
    assert cache_folder({"XDG_CACHE_HOME": "/b"}) == Path("/b/vaemotion")
    in_home = Path.home() / ".cache" / "vaemotion"
    assert cache_folder({}) == in_home
    assert cache_folder({"XDG_CACHE_HOME": "b", "VAEMOTION_CACHE": ""}) == in_home


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert cache_folder({}) is None
    assert cache_folder({"XDG_CACHE_HOME": "/b"}) == Path("/b/vaemotion")
