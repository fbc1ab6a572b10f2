"""Times of packets and frames, from recorded and made-up stamps."""

from dataclasses import dataclass
from fractions import Fraction

import pytest

from vaemotion.contract.media.decoder import BestStamp
from vaemotion.contract.media.remarks import Remarks
from vaemotion.contract.media.timeline import FrameTimes, PacketTimes

BASE = Fraction(1, 1000)


@dataclass
class Packet:
    stream_index: int
    dts: int | None
    duration: int = 40
    pts: int | None = None
    time_base: Fraction = BASE


def corrected(stamps: list[tuple[int, int]]) -> list[tuple[int, int | None]]:
    times = PacketTimes()
    packets = [Packet(index, dts, pts=dts + 80) for index, dts in stamps]
    for packet in packets:
        times.correct(packet)
        assert packet.pts == (packet.dts or 0) + 80  # both stamps move alike
    return [(packet.stream_index, packet.dts) for packet in packets]


def test_a_break_moves_both_streams_alike() -> None:
    first = [(0, 0), (1, 0), (0, 40), (1, 40)]
    ahead = [(0, 900_000), (1, 900_010), (0, 900_040), (1, 900_050)]
    assert corrected(first + ahead)[4:] == [(0, 80), (1, 90), (0, 120), (1, 130)]
    back = [(0, 1_000_000), (1, 1_000_000), (0, 1_000_040), (1, 1_000_040), (0, 0), (1, 10), (0, 40), (1, 50)]
    assert corrected(back)[4:] == [(0, 1_000_080), (1, 1_000_090), (0, 1_000_120), (1, 1_000_130)]


def test_a_stream_that_pauses_while_the_other_goes_on_does_not_break() -> None:
    sound = [(1, t) for t in range(0, 20_000, 40)]
    stamps = [(0, 0), *sound, (0, 20_000), (1, 20_000)]
    assert corrected(stamps) == stamps


def test_a_small_step_stays() -> None:
    stamps = [(0, 0), (0, 40), (0, 20), (0, 5_000)]
    assert corrected(stamps) == stamps


def placed(stamps: list[float | None], declared_s: float | None = None) -> tuple[list[float], list[str]]:
    times = FrameTimes(declared_s)
    results = [times.place(stamp, 0.04) for stamp in stamps]
    return [round(time_s, 6) for time_s, _ in results], [remark for _, remark in results if remark]


def test_a_still_of_an_hour_is_a_still() -> None:
    assert placed([0.0, 3600.0, 3600.04]) == ([0.0, 3600.0, 3600.04], [])


def test_a_stamp_far_behind_the_declared_end_is_closed_and_the_rest_follows() -> None:
    times, remarks = placed([0.0, 0.04, 90_000.0, 90_000.04], declared_s=10.0)
    assert times == [0.0, 0.04, 0.08, 0.12]
    assert len(remarks) == 1


def test_a_jump_back_is_closed_and_the_rest_follows() -> None:
    times, remarks = placed([5.0, 5.04, 0.0, 0.04, 0.08])
    assert times == [5.0, 5.04, 5.08, 5.12, 5.16]
    assert len(remarks) == 1


def test_frames_out_of_order_are_shown_in_decoded_order() -> None:
    times, remarks = placed([0.0, 0.12, 0.04, 0.08, 0.24, 0.16])
    assert times == sorted(times)
    assert len(set(times)) == 6
    assert times[-1] <= 0.3
    assert remarks


def test_frames_without_stamps_follow_one_another() -> None:
    assert placed([None, None, None]) == ([0.0, 0.04, 0.08], [])
    assert placed([0.0] * 100)[0][-1] == pytest.approx(99 * 0.04)


def test_the_better_stamp_is_ffmpegs_choice() -> None:
    """Of packed B-frames in AVI the frames' own stamps run backward, and the packets' do not."""
    best = BestStamp()
    assert [best.of(own, packet) for own, packet in [(1, 1), (3, 2), (2, 3), (5, 4), (4, 5)]] == [
        1,
        3,
        3,
        4,
        5,
    ]
    assert BestStamp().of(None, 7) == 7
    assert BestStamp().of(None, None) is None


def test_a_remark_is_made_once_and_then_counted() -> None:
    remarks = Remarks()
    made = [remark for second in range(25) for remark in remarks.add(float(second), "damaged packet")]
    assert [remark.time_s for remark in made] == [0.0, 10.0, 20.0]
    assert made[1].text == "damaged packet (9 more before it)"
    assert [remark.text for remark in remarks.rest()] == ["damaged packet (4 more)"]
