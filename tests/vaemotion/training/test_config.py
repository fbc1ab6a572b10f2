"""Training configurations: overrides, types, and keys that do not exist."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny import CONFIG_FILE
from vaemotion.contract.errors import UsageError
from vaemotion.training.config import TrainingConfig, read_training_config


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    (tmp_path / "empty.toml").write_text("")
    return tmp_path / "empty.toml"


def test_the_shipped_configuration_is_readable_and_consistent() -> None:
    config = read_training_config(CONFIG_FILE)
    assert config.name == "vaemotion-tiny"
    assert config.audio_encoder["kind"] == "conv"
    assert config.audio_encoder["frames"] == round(config.windows.audio_window_s / config.log_mel.hop_s)
    assert config.audio_encoder["n_mels"] == config.log_mel.n_mels
    assert config.vlm.text_width % 256 == 0  # keeps every GGUF type available


def test_an_empty_file_gives_the_defaults(empty: Path) -> None:
    assert read_training_config(empty) == TrainingConfig()


def test_an_override_changes_its_own_value_and_no_other(empty: Path) -> None:
    config = read_training_config(empty, ["align.optimisation.steps=7", "align.temperature=2"])
    assert config.align.optimisation.steps == 7
    assert config.align.temperature == 2.0
    assert isinstance(config.align.temperature, float)
    assert config.align.optimisation.learning_rate == 1e-3  # the stage's own default stays
    assert config.base == TrainingConfig().base


def test_an_override_beats_the_file_and_the_last_one_wins(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("seed = 1\n[emotion]\nworks = 5\n")
    config = read_training_config(file, ["emotion.works=6", "emotion.works=8"])
    assert (config.seed, config.emotion.works) == (1, 8)


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("name=gallery east", "gallery east"),
        ('name="quoted"', "quoted"),
        ("name=a=b", "a=b"),
        (" name = spaced ", "spaced"),
        ("name=../runs/x-1", "../runs/x-1"),
    ],
)
def test_text_needs_no_quotes(empty: Path, override: str, read: str) -> None:
    assert read_training_config(empty, [override]).name == read


def test_lists_numbers_and_tables_are_toml(empty: Path) -> None:
    config = read_training_config(
        empty,
        [
            "base.frame_counts=[1, 2]",
            "base.optimisation.learning_rate=3e-4",
            "audio_encoder={kind='conv', width=8}",
        ],
    )
    assert config.base.frame_counts == (1, 2)
    assert config.base.optimisation.learning_rate == 3e-4
    assert config.audio_encoder == {"kind": "conv", "width": 8}


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("align.temprature=2", r"align\.temprature; did you mean align\.temperature\?"),
        ("alig.temperature=2", r"alig; did you mean align\?"),
        ("base.optimisation.step=2", r"did you mean base\.optimisation\.steps\?"),
        ("zzzzzz=2", "zzzzzz; known: .*windows"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(empty: Path, override: str, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        read_training_config(empty, [override])


def test_an_unknown_key_in_the_file_is_refused_too(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[windows]\nframe_hops = 0.1\n")
    with pytest.raises(UsageError, match=r"did you mean windows\.frame_hop_s\?"):
        read_training_config(file)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("emotion.works=many", "emotion.works must be a whole number, got 'many'"),
        ("emotion.works=2.5", "emotion.works must be a whole number, got 2.5"),
        ("emotion.works=true", "emotion.works must be a whole number, got true"),
        ("name=3", "name must be a text in quotes, got 3"),
        ("align.temperature=hot", "align.temperature must be a number, got 'hot'"),
        ("align=3", "align is a section, got 3"),
        ("base.frame_counts=3", "base.frame_counts must be a list in brackets"),
        ('base.frame_counts=["a"]', "base.frame_counts"),
        ("base.frame_counts=[1.5]", "base.frame_counts"),
        ("seed.deep=1", "seed"),
        ("name.deep=1", "name"),
        ("seed", "takes key=value, got 'seed'"),
        ("=3", "key"),
        ("windows.frame_spacing_s=0.25", r"\[windows\].*frame_spacing_s \(0.25\)"),
        ("windows.language_frames=99", "language_frames"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_its_key(override: str, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        read_training_config(CONFIG_FILE, [override])


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.toml"):
        read_training_config(tmp_path / "nowhere.toml")
    (tmp_path / "broken.toml").write_text("[windows\n")
    with pytest.raises(UsageError, match=r"broken\.toml"):
        read_training_config(tmp_path / "broken.toml")


def test_the_record_of_a_run_keeps_the_values_of_its_configuration(tmp_path: Path) -> None:
    import json

    config = read_training_config(CONFIG_FILE, ["emotion.works=12"])
    recorded = json.loads(json.dumps(config.to_dict()))
    assert recorded["emotion"]["works"] == 12
    assert recorded["windows"]["frames"] == config.windows.frames
    assert recorded["audio_encoder"] == config.audio_encoder


def test_the_lineage_names_no_place_on_this_machine() -> None:
    config = read_training_config(
        CONFIG_FILE,
        [
            "runs=/somewhere/runs",
            "media_root=/somewhere/media",
            "align.recordings=/somewhere/esc10.jsonl",
            "emotion.ratings=['/somewhere/bass.jsonl']",
        ],
    )
    lineage = config.lineage()
    assert "somewhere" not in json.dumps(lineage)
    assert lineage["align"]["recordings"] == "esc10.jsonl"
    assert lineage["emotion"]["ratings"] == ["bass.jsonl"]
    assert lineage["seed"] == config.seed
