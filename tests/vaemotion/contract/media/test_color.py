"""HDR against the tables of the standards."""

import numpy as np
import pytest

from vaemotion.contract.media.color import (
    KNEE,
    hlg_to_scene,
    pq_to_cd_m2,
    srgb_signal,
    to_sdr,
    tone_map,
)


@pytest.mark.parametrize(
    ("signal", "cd_m2"),
    # Signal levels of PQ in ITU-R BT.2408-7, table 1 (reference white, peak of HLG) and in SMPTE ST 2084.
    [
        (0.58069, 203.0),
        (0.508078, 100.0),
        (0.751827, 1000.0),
        (0.902572, 4000.0),
        (1.0, 10_000.0),
        (0.0, 0.0),
    ],
)
def test_pq_gives_the_luminance_of_the_standards_tables(signal: float, cd_m2: float) -> None:
    assert float(pq_to_cd_m2(signal)) == pytest.approx(cd_m2, rel=2e-4, abs=1e-9)


@pytest.mark.parametrize(
    ("signal", "light"),
    # BT.2100's HLG OETF: 1/12 of scene light has the signal 0.5, all of it 1; BT.2408: 75 % HLG is 26.5 %.
    [(0.0, 0.0), (0.5, 1 / 12), (0.75, 0.2650), (1.0, 1.0), (0.25, 0.25**2 / 3)],
)
def test_hlg_gives_the_scene_light_of_the_standards_tables(signal: float, light: float) -> None:
    assert float(hlg_to_scene(signal)) == pytest.approx(light, rel=1e-3, abs=1e-6)


def test_reference_white_of_pq_and_of_hlg_is_the_same_gray() -> None:
    """BT.2408: 58 % PQ and 75 % HLG are both 203 cd/m² of a neutral patch."""
    pq = to_sdr(np.full((1, 1, 3), round(0.58069 * 65535), np.uint16), "PQ")
    hlg = to_sdr(np.full((1, 1, 3), round(0.75 * 65535), np.uint16), "HLG")
    assert np.abs(pq.astype(int) - hlg).max() <= 2
    assert 235 <= pq[0, 0, 0] <= 250
    assert np.ptp(pq) <= 1  # neutral stays neutral


def test_what_lies_below_the_knee_keeps_its_light() -> None:
    """A picture mastered for an ordinary screen comes through: sRGB to PQ at 203 cd/m² and back."""
    shown = np.linspace(0, 1, 64)
    light = np.where(shown <= 0.04045, shown / 12.92, ((shown + 0.055) / 1.055) ** 2.4)
    below = light < KNEE
    relative = (light * 203 / 10_000) ** (2610 / 16384)
    m2, c1, c2, c3 = 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    signal = ((c1 + c2 * relative) / (1 + c3 * relative)) ** m2
    codes = np.repeat(np.round(65535 * signal).astype(np.uint16)[None, :, None], 3, axis=2)
    back = to_sdr(codes, "PQ")[0, :, 1].astype(int)
    assert np.abs(back - 255 * shown)[below].max() <= 1.5
    assert (np.diff(back) >= 0).all()


def test_highlights_are_compressed_without_a_change_of_hue() -> None:
    light = np.array([[[5.0, 2.5, 0.5]], [[0.5, 0.25, 0.1]]], np.float32)
    mapped = tone_map(light)
    assert mapped.max() < 1
    assert np.allclose(mapped[0] / mapped[0].max(), light[0] / light[0].max(), atol=1e-6)
    assert np.array_equal(mapped[1], light[1])


def test_srgb_has_the_values_of_its_standard() -> None:
    assert float(srgb_signal(0.214041)) == pytest.approx(0.5, abs=1e-5)  # IEC 61966-2-1
    assert float(srgb_signal(0.0031308)) == pytest.approx(0.04045, abs=1e-4)
