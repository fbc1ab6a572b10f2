import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vaemotion.contract.errors import UsageError, UserError
from vaemotion.data.manifest.manifest import (
    Item,
    ManifestError,
    content_sha256,
    read_manifest,
    read_manifests,
    validate,
    write_manifest,
)
from vaemotion.data.manifest.rules import item_problems, stays_inside

VALID = {
    "id": "a",
    "video": "media/a.mkv",
    "pairing": "synchronised",
    "question": "What is this?",
    "answer": "bell",
    "options": ["drum", "bell"],
    "answer_index": 1,
    "task": "content",
    "modality": "audio-visual",
    "valence": 0.5,
    "arousal": -0.25,
    "construct": "expressed",
    "emotion_distribution": [0.2, 0.8, 0, 0, 0, 0, 0, 0, 0],
    "split": "train",
    "work_id": "w1",
    "creator_id": "c1",
    "source": "test",
    "license": "CC0-1.0",
    "sha256": "0" * 64,
}


TIMED = {"series_rate_hz": 2}
UNLABELED = dict.fromkeys(
    (
        "question",
        "answer",
        "options",
        "answer_index",
        "valence",
        "arousal",
        "construct",
        "emotion_distribution",
    )
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "a.mkv").write_bytes(b"picture and sound")
    return tmp_path


def write_lines(root: Path, *lines: object) -> Path:
    path = root / "manifest.jsonl"
    path.write_text(
        "".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines), encoding="utf-8"
    )
    return path


def problems_of(path: Path, root: Path, **options: bool) -> list[tuple[int, str]]:
    with pytest.raises(ManifestError) as caught:
        read_manifest(path, root, **options)
    return [(problem.line, problem.message) for problem in caught.value.problems]


def test_a_valid_manifest_is_read_and_blank_lines_are_skipped(root):
    path = write_lines(root, VALID, "", {**VALID, "id": "b", "t0": None})
    first, second = read_manifest(path, root)
    assert first.options == ("drum", "bell")
    assert first.emotion_distribution == (0.2, 0.8, 0, 0, 0, 0, 0, 0, 0)
    assert second.t0 is None


def test_all_problems_are_reported_with_their_lines(root):
    path = write_lines(
        root,
        "{not json",
        {**VALID, "valence": 3, "answer_index": 7, "colour": "red"},
        {**VALID, "split": "holdout"},
        {**VALID, "video": "media/missing.mkv"},
        [1, 2],
        VALID,
    )
    found = problems_of(path, root)
    assert [line for line, _ in found] == [1, 2, 2, 2, 3, 4, 5, 6]
    message = str(ManifestError([path], ()))
    assert "0 problems" in message
    with pytest.raises(ManifestError) as caught:
        read_manifest(path, root)
    for number in range(1, 7):
        assert f"\n  line {number}: " in str(caught.value)
    assert issubclass(ManifestError, UserError)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"id": None}, "field 'id' is missing"),
        ({"id": 5}, "id must be a text"),
        ({"surprise": 1}, "unknown field 'surprise'"),
        ({"valence": 1.01}, "valence must be a number in [-1, 1]"),
        ({"valence": True}, "valence must be"),
        ({"valence": "0.5"}, "valence must be"),
        ({"arousal": 10**400}, "arousal must be"),
        ({"arousal_sd": -0.1}, "arousal_sd must be"),
        ({"valence": None, "valence_sd": 0.1}, "valence_sd without valence"),
        ({"t0": 2.0, "t1": 2.0}, "must come after t0"),
        ({"t0": -1.0}, "t0 must be"),
        ({"pairing": "sync"}, "pairing must be one of"),
        ({"task": "colour"}, "task must be one of"),
        ({"construct": "felt"}, "construct must be one of"),
        ({"construct": None}, "valence needs a construct"),
        ({"split": "val"}, "split must be one of"),
        ({"modality": "both"}, "modality must be one of"),
        ({"answer_index": 2, "answer": None}, "answer_index 2 is outside the 2 options"),
        ({"answer_index": -1}, "answer_index must be"),
        ({"answer_index": 0}, "answer 'bell' is not option 0"),
        ({"answer_index": None}, "must both be given"),
        ({"options": ["bell", "bell"]}, "options must be"),
        ({"options": ["bell", " Bell"]}, "options must be"),
        ({"options": "bell"}, "options must be"),
        ({"question": None}, "without a question"),
        ({"options": None, "answer_index": None, "answer": None}, "a question without"),
        ({"audible": "yes"}, "audible must be"),
        ({"n_raters": 0}, "n_raters must be"),
        ({"emotion_distribution": [0.5, 0.5]}, "emotion_distribution must be 9 numbers"),
        ({"emotion_distribution": [0.2] * 9}, "emotion_distribution must be"),
        ({"emotion_distribution": [1.5, -0.5] + [0] * 7}, "emotion_distribution must be"),
        ({"emotion_names": ["joy"]}, "emotion_names must be a list of two or more different texts"),
        ({"emotion_names": ["joy", " Joy"]}, "emotion_names must be"),
        (
            {"emotion_names": ["joy", "awe"]},
            "emotion_distribution must be 2 numbers, one for each of the emotion_n",
        ),
        ({"emotion_names": ["joy", "awe"], "emotion_distribution": None}, "without emotion_distribution"),
        ({"label": " "}, "label must be a text"),
        ({"utterances": []}, "utterances must be a list of texts"),
        ({"utterances": "warm"}, "utterances must be"),
        ({"machine_made": 1}, "machine_made must be true or false"),
        ({"machine_made": True, "n_raters": 3}, "n_raters counts people"),
        ({"valence_sign": 0}, "valence_sign must be -1 or 1"),
        ({"arousal_sign": True}, "arousal_sign must be -1 or 1"),
        ({"valence_sign": -1}, "valence_sign -1 contradicts valence 0.5"),
        ({"valence_series": [0.1], **TIMED}, "valence_series must be two or more numbers in [-1, 1]"),
        ({"valence_series": [0, 1.1], **TIMED}, "valence_series must be"),
        ({"arousal_series": [0, None], **TIMED}, "arousal_series must be"),
        (
            {"valence_series": [0, 1], "arousal_series": [0, 1, 0], **TIMED},
            "has 2 values and arousal_series 3",
        ),
        ({"valence_series": [0, 1]}, "valence_series needs series_rate_hz"),
        ({"valence_series": [0, 1], "series_rate_hz": 0}, "series_rate_hz must be a number above 0"),
        ({"series_start_s": 15}, "series_start_s without a series"),
        ({"reaction_lag_s": -1}, "reaction_lag_s must be seconds, at least 0"),
        ({"reaction_lag_s": 2}, "reaction_lag_s without a series"),
        ({"sha256": "ABC"}, "sha256 must be"),
        ({"video": "/etc/passwd"}, "video must be a path relative"),
        ({"video": "media/../../x"}, "video must be a path relative"),
        ({"video": "C:/x.mkv"}, "video must be a path relative"),
        ({"video": None}, "no medium; give video, image or audio"),
        ({"image": "media/a.png"}, "video and image exclude each other"),
        ({"video": None, "image": "a.png", "modality": "audio"}, "needs sound"),
        ({"video": None, "audio": "a.wav", "modality": "audio-visual"}, "needs frames"),
    ],
)
def test_each_rule_has_its_message(change, part):
    assert item_problems(VALID) == []
    assert any(part in problem for problem in item_problems({**VALID, **change}))


@pytest.mark.parametrize(
    "label",
    [
        {"valence_sign": -1},
        {"arousal_series": [0, 0.5], **TIMED},
        {"emotion_distribution": [0.5, 0.5], "emotion_names": ["calm", "power"]},
        {"utterances": ["It feels like rain."]},
    ],
)
def test_every_kind_of_label_is_enough_and_needs_a_construct(label):
    item = {**VALID, **UNLABELED, "task": "emotion"}
    assert item_problems(item) == ["neither a question nor labels; give one of them, or the task clip"]
    assert item_problems({**item, **label, "construct": "induced"}) == []
    [problem] = item_problems({**item, **label})
    assert "needs a construct: expressed or induced" in problem


def test_a_clip_needs_no_labels():
    assert item_problems({**VALID, **UNLABELED, "task": "clip", "label": "church bell"}) == []


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ('{"id": NaN}', "NaN"),
        ('{"id": "a", "id": "b"}', "given twice: id"),
        ('{"id": "\\ud800"}', "surrogate"),
        ("[" * 100_000, "not JSON"),
        ("7" * 5000, "a number of 5000 digits is too long"),
    ],
)
def test_lines_that_pythons_parser_accepts_but_the_manifest_does_not(root, line, part):
    [(number, message)] = problems_of(write_lines(root, line), root)
    assert number == 1
    assert part in message


def test_splits_share_neither_ids_nor_works_nor_creators(root):
    same_work = {**VALID, "id": "b", "split": "test", "creator_id": "c2"}
    same_creator = {**VALID, "id": "c", "split": "validation", "work_id": "w3", "sha256": "3" * 64}
    found = problems_of(write_lines(root, VALID, same_work, same_creator, VALID), root)
    assert [line for line, _ in found] == [2, 3, 4]
    assert "work_id 'w1' is in split 'test' here and in 'train' in line 1" in found[0][1]
    assert "creator_id 'c1'" in found[1][1]
    assert "id 'a' was used in line 1" in found[2][1]


def test_links_that_leave_the_media_root_are_refused_and_those_inside_are_not(root, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "secret.mkv"
    outside.write_bytes(b"x")
    (root / "media" / "out.mkv").symlink_to(outside)
    (root / "media" / "in.mkv").symlink_to(root / "media" / "a.mkv")
    assert read_manifest(write_lines(root, {**VALID, "video": "media/in.mkv"}), root)
    [(_, message)] = problems_of(write_lines(root, {**VALID, "video": "media/out.mkv"}), root)
    assert "leaves the media root" in message


def test_hashes_are_compared_on_request_and_cover_all_media(root):
    (root / "b.wav").write_bytes(b"sound")
    media = {**VALID, "video": None, "image": "media/a.mkv", "audio": "b.wav"}
    right = content_sha256([root / "media" / "a.mkv", root / "b.wav"])
    assert read_manifest(write_lines(root, {**media, "sha256": right}), root, check_hashes=True)
    path = write_lines(root, VALID, {**media, "id": "b"})
    assert len(read_manifest(path, root)) == 2
    found = problems_of(path, root, check_hashes=True)
    assert [line for line, _ in found] == [1, 2]
    assert "sha256 differs: media/a.mkv and b.wav" in found[1][1]


def test_the_same_bytes_in_two_splits_are_a_leak_under_any_name(root):
    copy = {**VALID, "id": "b", "split": "test", "work_id": "w2", "creator_id": "c2"}
    [(line, message)] = problems_of(write_lines(root, VALID, copy), root)
    assert line == 2
    assert "media bytes (sha256 000000000000…) are in split 'test' here and in 'train' in line 1" in message
    assert read_manifest(write_lines(root, VALID, {**copy, "split": "train"}), root)


def test_a_file_leaks_also_as_a_part_of_an_item(root):
    (root / "b.wav").write_bytes(b"sound")
    (root / "same.wav").write_bytes(b"sound")
    parts = [root / "media" / "a.mkv", root / "b.wav"]
    both = {**VALID, "video": None, "image": "media/a.mkv", "audio": "b.wav", "sha256": content_sha256(parts)}
    alone = {
        **VALID,
        "id": "b",
        "video": None,
        "audio": "same.wav",
        "modality": "audio",
        "split": "test",
        "work_id": "w2",
        "creator_id": "c2",
        "sha256": content_sha256([root / "same.wav"]),
    }
    path = write_lines(root, both, alone)
    assert len(read_manifest(path, root)) == 2
    [(line, message)] = problems_of(path, root, check_hashes=True)
    assert (line, "same media bytes" in message) == (2, True)


def named_lines(root: Path, name: str, *lines: object) -> Path:
    return write_lines(root, *lines).rename(root / name)


def test_several_manifests_are_checked_as_one(root, capsys):
    train = named_lines(root, "train.jsonl", {**VALID, "sha256": content_sha256([root / "media" / "a.mkv"])})
    other = {**VALID, "id": "b", "work_id": "w2", "split": "test", "sha256": "1" * 64}
    test = named_lines(root, "test.jsonl", "{oops", other, {**other, "id": "a", "creator_id": "c2"})
    with pytest.raises(ManifestError) as caught:
        validate([train, test], root, check_hashes=False)
    assert str(caught.value).splitlines() == [
        "2 manifests have 3 problems; fix the lines listed:",
        f"  {test}, line 1: not JSON: Expecting property name enclosed in double quotes at column 2",
        f"  {test}, line 2: creator_id 'c1' is in split 'test' here and in 'train' in line 1 of {train}",
        f"  {test}, line 3: id 'a' was used in line 1 of {train}",
    ]
    (root / "c.mkv").write_bytes(b"another")
    right = {**other, "video": "c.mkv", "creator_id": "c2", "sha256": content_sha256([root / "c.mkv"])}
    test = named_lines(root, "test.jsonl", right)
    validate([train, test], root)
    assert capsys.readouterr().out.splitlines() == [
        f"{train}: 1 items of 1 works are valid (train 1)",
        f"{test}: 1 items of 1 works are valid (test 1)",
        "together: 2 items of 2 works are valid (train 1, test 1)",
    ]
    with pytest.raises(UsageError, match="must be given once"):
        validate([train, train], root)
    with pytest.raises(ManifestError, match=r"line 0: the manifest has no items"):
        validate([train, named_lines(root, "empty.jsonl", "")], root)


def test_licenses_outside_the_list_are_named(root):
    path = write_lines(root, VALID, {**VALID, "id": "b", "license": "CC-BY-NC-4.0"})
    with pytest.raises(ManifestError) as caught:
        validate([path], root, check_hashes=False, allow_licenses="CC0-1.0, CC-BY-4.0")
    [problem] = caught.value.problems
    assert problem.line == 2
    assert problem.message == "license 'CC-BY-NC-4.0' is not one of those allowed: CC0-1.0, CC-BY-4.0"
    validate([path], root, check_hashes=False, allow_licenses="CC0-1.0,CC-BY-NC-4.0")
    with pytest.raises(UsageError, match="--allow-licenses must name"):
        validate([path], root, allow_licenses=" , ")


def test_empty_missing_and_binary_files(root):
    assert problems_of(write_lines(root, ""), root) == [(0, "the manifest has no items")]
    with pytest.raises(UserError, match="does not exist"):
        read_manifest(root / "none.jsonl", root)
    with pytest.raises(UserError, match="is a folder"):
        read_manifest(root, root)
    (root / "binary").write_bytes(b"\x00\xff\xfe")
    with pytest.raises(UserError, match="byte 1 is not UTF-8"):
        read_manifest(root / "binary", root)


def test_writing_is_atomic(root):
    path = write_lines(root, VALID)
    before = path.read_text()
    item = read_manifest(path, root)[0]

    def broken():
        yield item
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_manifest(path, broken())
    assert path.read_text() == before
    assert sorted(os.listdir(root)) == ["manifest.jsonl", "media"]


def test_validate_prints_a_summary(root, capsys):
    sha256 = content_sha256([root / "media" / "a.mkv"])
    validate([write_lines(root, {**VALID, "sha256": sha256})], root)
    assert "1 items of 1 works are valid (train 1)" in capsys.readouterr().out


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)
SERIES = st.lists(st.floats(-1, 1), min_size=4, max_size=4).map(tuple)
ITEMS = st.builds(
    replace,
    st.just(
        Item(
            id="a",
            video="media/a.mkv",
            pairing="none",
            task="emotion",
            modality="visual",
            construct="induced",
            split="test",
            work_id="w",
            creator_id="c",
            source="s",
            license="CC0-1.0",
            sha256="f" * 64,
        )
    ),
    valence=st.floats(-1, 1),
    arousal=st.none() | st.floats(-1, 1),
    t0=st.none() | st.floats(0, 1e6),
    n_raters=st.none() | st.integers(1, 10**6),
    audible=st.none() | st.booleans(),
    label=st.none() | TEXT,
    valence_series=st.none() | SERIES,
    arousal_series=SERIES,
    series_rate_hz=st.floats(0.01, 100),
    series_start_s=st.floats(-100, 100),
    reaction_lag_s=st.floats(0, 10),
    emotion_names=st.just(("calm", "power")),
    emotion_distribution=st.just((0.25, 0.75)),
    utterances=st.none() | st.lists(TEXT, min_size=1, max_size=3).map(tuple),
    work_id=TEXT,
    source=TEXT,
    license=TEXT,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ITEMS, min_size=1, max_size=4))
def test_what_is_written_is_read_back(root, items):
    items = [replace(item, id=str(number)) for number, item in enumerate(items)]
    write_manifest(root / "m.jsonl", items)
    assert read_manifest(root / "m.jsonl", root) == items


def messages(manifests: list[Path]) -> list[str]:
    """Read manifests and return the messages of their problems, without the line numbers."""
    try:
        read_manifests(manifests, None)
    except ManifestError as error:
        return [problem.message.partition(" in line ")[0] for problem in error.problems]
    return []


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "id": st.sampled_from("abc"),
                "split": st.sampled_from(["train", "test"]),
                "work_id": st.sampled_from(["w1", "w2"]),
                "creator_id": st.sampled_from(["c1", "c2"]),
                "sha256": st.sampled_from(["0" * 64, "1" * 64]),
            }
        ),
        min_size=2,
        max_size=6,
    ),
    st.data(),
)
def test_a_manifest_in_two_parts_has_the_problems_of_the_whole(root, changes, data):
    lines = [{**VALID, **change} for change in changes]
    cut = data.draw(st.integers(1, len(lines) - 1))
    parts = [named_lines(root, "1.jsonl", *lines[:cut]), named_lines(root, "2.jsonl", *lines[cut:])]
    assert messages(parts) == messages([write_lines(root, *lines)])


@given(st.lists(TEXT, max_size=3), st.lists(TEXT, max_size=3))
def test_any_path_with_two_dots_is_refused(before, after):
    assert not stays_inside("/".join([*before, "..", *after]))


@given(st.text())
def test_no_accepted_path_leaves_the_root(path):
    if stays_inside(path):
        joined = os.path.normpath(os.path.join("/root-of-media", path))
        assert joined.startswith("/root-of-media/")
