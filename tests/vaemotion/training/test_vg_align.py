"""Stage 1 on lessons in any words: which pairs it trains on, and what its disposable head learns."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.lessons import QUESTIONS, align_data, lessons, small_windows
from tests.tiny import tiny_config, tiny_model
from vaemotion.contract.audio import AST_LOG_MEL
from vaemotion.contract.errors import UserError
from vaemotion.training import vg_align
from vaemotion.training.recordings import Recording

FRONT_END = tiny_model().config.front_end
NAMES = ("a dog barking loudly", "a dog barking loudly", "rain on a tin roof", "two musicians", "rain")


def recording(label: str) -> Recording:
    return Recording(label, np.random.default_rng(0).standard_normal((70, 32)).astype(np.float32))


def content_lessons(names: tuple[str, ...] = NAMES) -> vg_align.Lessons:
    return lessons([(window, 1, 0, name) for window, name in enumerate(names)], names)


def test_controls_break_the_pairs_and_a_windows_own_sound_stays_with_it(tmp_path: Path) -> None:
    windows = small_windows(tmp_path)
    data = align_data(windows, content_lessons(), [recording("rain"), recording("dog")])
    config = tiny_config("align.optimisation.batch=40", "align.recordings_share=0.5")
    batch = vg_align.Pairs(data, config, FRONT_END).collate(range(40))
    assert 5 < (~batch["synchronized"]).sum() < 35
    original = [windows.log_mel(window) for window in batch["windows"]]

    def distance(mels: np.ndarray) -> float:
        pairs = zip(mels, original, batch["synchronized"], strict=True)
        return float(np.mean([np.median(np.abs(a - b)) for a, b, synchronized in pairs if synchronized]))

    assert distance(batch["log_mel"].numpy()) < 0.06  # the window's own sound, apart from the gain
    for pairing in ("shuffled", "shifted"):
        config = replace(config, align=replace(config.align, pairing=pairing))
        broken = vg_align.Pairs(data, config, FRONT_END).collate(range(40))
        assert distance(broken["log_mel"].numpy()) > 0.3


def test_a_recording_is_heard_with_clips_that_the_teacher_gives_its_name(tmp_path: Path) -> None:
    rows = [*((w, 1, 0, name) for w, name in enumerate(NAMES)), (2, 1, 1, "calm"), (4, 1, 1, "calm")]
    data = align_data(small_windows(tmp_path), lessons(rows, NAMES), [recording("Rain"), recording("tuba")])
    config = tiny_config("align.optimisation.batch=30", "align.recordings_share=1.0")
    batch = vg_align.Pairs(data, config, FRONT_END).collate(range(30))
    assert not batch["synchronized"].any()
    assert set(batch["windows"]) == {2, 4}
    assert set(batch["questions"]) == {QUESTIONS[0].text}  # content alone
    assert set(batch["answers"]) == {"rain on a tin roof", "rain"}  # the teacher's words, not the label


def test_recordings_that_no_clip_is_named_like_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    windows, config = small_windows(tmp_path), tiny_config()
    some = align_data(windows, content_lessons(), [recording("rain"), recording("tuba")])
    vg_align.Pairs(some, config, FRONT_END)
    assert "recordings left out, because no clip is named so: tuba" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"no clip is named like the recordings \(tuba\)"):
        vg_align.Pairs(align_data(windows, content_lessons(), [recording("tuba")]), config, FRONT_END)


def test_pairs_go_to_worker_processes_and_are_the_same_there(tmp_path: Path) -> None:
    data = align_data(small_windows(tmp_path), content_lessons())
    pairs = vg_align.Pairs(data, tiny_config("align.optimisation.batch=4"), FRONT_END)
    here, there = pairs.collate(range(4)), pickle.loads(pickle.dumps(pairs)).collate(range(4))
    assert here["windows"] == there["windows"]
    assert torch.equal(here["pictures"], there["pictures"])
    assert torch.equal(here["log_mel"], there["log_mel"])


def test_the_head_learns_the_teachers_last_state_and_its_affect(tmp_path: Path) -> None:
    hidden = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    given = lessons([(0, 1, 0, "x")], NAMES, torch.full((5, 2), 0.8), hidden)
    alignment = vg_align.Alignment(
        tiny_model(), align_data(small_windows(tmp_path), given), tiny_config('align.head="hidden"')
    )
    head = alignment.auxiliary
    with torch.no_grad():
        head.out.weight.zero_()
        head.out.bias.zero_()
    audio, matched = torch.randn(2, 5, 64), torch.tensor([False, False])
    standard = (hidden.half().float() - hidden.half().float().mean(0)) / hidden.half().float().std(
        0, correction=0
    )
    expected = standard[[1, 3]].square().mean().item()
    assert head(audio, [1, 3], matched).item() == pytest.approx(expected, rel=1e-2)
    with_affect = head(audio, [1, 3], torch.tensor([True, False])).item()
    assert with_affect == pytest.approx(expected + 4 * 0.8**2, rel=1e-2)


def test_the_other_head_tells_apart_the_teachers_frequent_answers(tmp_path: Path) -> None:
    given = lessons([(0, 1, 0, "x")], NAMES, torch.full((5, 2), 0.8))
    alignment = vg_align.Alignment(
        tiny_model(), align_data(small_windows(tmp_path), given), tiny_config('align.head="answer"')
    )
    head = alignment.auxiliary
    with torch.no_grad():
        head.out.weight.zero_()
        head.out.bias.zero_()
    loss = head(torch.randn(2, 5, 64), [1, 3], torch.tensor([False, False])).item()
    assert loss == pytest.approx(math.log(len(set(NAMES))), rel=1e-5)
    assert head.targets[0] == head.targets[1] != head.targets[2]


def test_weak_augmentation_leaves_its_input_alone_and_changes_little() -> None:
    rng = np.random.default_rng(0)
    mel = rng.standard_normal((6, 50, AST_LOG_MEL.n_mels)).astype(np.float32)
    before = mel.copy()
    changed = np.stack([vg_align.weak_augmentation(row, rng) for row in mel])
    assert np.array_equal(mel, before)
    shift = np.median((changed - mel).reshape(6, -1), axis=1)
    assert (np.abs(shift) <= 0.05 + 1e-6).all()
    assert len(set(shift.tolist())) == 6
    masked = (np.abs(changed - mel - shift[:, None, None]) > 1e-5).mean()
    assert 0 < masked < 9 / 50 + 3 / 128


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ('align.pairing="swapped"', "pairing must be synchronised, shifted or shuffled"),
        ('align.head="class"', "head must be hidden or answer"),
        ("align.repeat_share=0.0", "repeat_share must be above 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(setting: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        tiny_config(setting)
