"""The noise floor of a silent room against levels and spectra that are known."""

import numpy as np
import pytest

from calibration.venue import measure_noise_floor
from vaemotion.contract.audio import SAMPLE_RATE_HZ, LogMelConfig, log_mel
from vaemotion.contract.errors import UserError

TIME_S = np.arange(2 * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ


def test_full_scale_sine_is_zero_dbfs_and_halving_it_takes_six_decibels():
    sine = np.sin(2 * np.pi * 1000 * TIME_S).astype(np.float32)
    assert measure_noise_floor(sine).level_dbfs == pytest.approx(0.0, abs=0.01)
    assert measure_noise_floor(sine / 2).level_dbfs == pytest.approx(-6.02, abs=0.01)


def test_a_dc_offset_is_not_noise():
    noise = 0.01 * np.random.default_rng(0).standard_normal(len(TIME_S)).astype(np.float32)
    with_offset = measure_noise_floor(noise + np.float32(0.2))
    assert with_offset.level_dbfs == pytest.approx(measure_noise_floor(noise).level_dbfs, abs=0.01)


def test_log_mel_mean_is_that_of_the_contract_and_shows_where_the_hum_is():
    rng = np.random.default_rng(1)
    hum = (0.1 * np.sin(2 * np.pi * 120 * TIME_S) + 1e-4 * rng.standard_normal(len(TIME_S))).astype(
        np.float32
    )
    config = LogMelConfig(n_mels=40)
    floor = measure_noise_floor(hum, config)
    assert floor.log_mel_mean.shape == (40,)
    assert floor.log_mel_mean.dtype == np.float32
    np.testing.assert_allclose(floor.log_mel_mean, log_mel(hum, config).mean(0), atol=1e-4)
    assert floor.log_mel_mean.argmax() < 4


@pytest.mark.parametrize(
    ("samples", "word"),
    [
        (np.ones(100, np.float32), "at least 1 s"),
        (np.zeros(SAMPLE_RATE_HZ, np.float32), "muted"),
        (np.full(SAMPLE_RATE_HZ, 0.3, np.float32), "muted"),
        (np.full(SAMPLE_RATE_HZ, np.nan, np.float32), "not finite"),
    ],
)
def test_recordings_no_room_can_give_are_refused(samples, word):
    with pytest.raises(UserError, match=word):
        measure_noise_floor(samples)
