"""From HDR (PQ, HLG) and wide gamut to SDR: the picture that an ordinary screen shows.

In: nonlinear RGB of ITU-R BT.2020 in [0, 1]. Out: sRGB in [0, 1]. The curves are those of SMPTE ST 2084 and
ITU-R BT.2100; reference white is 203 cd/m² (ITU-R BT.2408). What lies above it is compressed (``tone_map``).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from vaemotion.contract.image import Picture

Float = npt.NDArray[np.float32]
Transfer = Literal["PQ", "HLG", "SDR"]

REFERENCE_WHITE_CD_M2 = 203.0
HLG_PEAK_CD_M2 = 1000.0
# Below this share of reference white a picture stays as it is; above, it nears 1 as light grows.
KNEE = 0.8
# Linear RGB of BT.2020 to BT.709 (ITU-R BT.2087, 4.3).
BT2020_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)
_BT2020_LUMA = np.array([0.2627, 0.6780, 0.0593], np.float32)


def pq_to_cd_m2(signal: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the luminance of a PQ signal in [0, 1], in cd/m². Source: SMPTE ST 2084, equation 4.1."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    root = np.power(np.clip(np.asarray(signal, np.float64), 0, 1), 1 / m2)
    return 10_000 * np.power(np.maximum(root - c1, 0) / (c2 - c3 * root), 1 / m1)


def hlg_to_scene(signal: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the scene light in [0, 1] of an HLG signal in [0, 1]. Source: ITU-R BT.2100, inverse OETF."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    clipped = np.clip(np.asarray(signal, np.float64), 0, 1)
    return np.where(clipped <= 0.5, np.square(clipped) / 3, (np.exp((clipped - c) / a) + b) / 12)


def srgb_signal(light: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the sRGB signal in [0, 1] of linear light in [0, 1]. Source: IEC 61966-2-1."""
    clipped = np.clip(np.asarray(light, np.float64), 0, 1)
    return np.where(clipped <= 0.0031308, 12.92 * clipped, 1.055 * np.power(clipped, 1 / 2.4) - 0.055)


def tone_map(light: Float) -> Float:
    """Compress linear RGB (…, 3), 1.0 = reference white, into [0, 1] without a change of hue.

    The largest of the three values goes through k + (1 - k) x / (x + 1 - k) for x = value - k above the knee
    k, which continues the straight line below it in value and slope.
    """
    largest = light.max(axis=-1, keepdims=True)
    over = np.maximum(largest - KNEE, 0)
    mapped = np.minimum(largest, KNEE) + (1 - KNEE) * over / (over + 1 - KNEE)
    return light * np.divide(mapped, largest, out=np.ones_like(largest), where=largest > KNEE)


def _table(values: npt.NDArray[np.float64]) -> Float:
    return values.astype(np.float32)


_CODES = np.arange(65536) / 65535
_PQ_WHITES = _table(pq_to_cd_m2(_CODES) / REFERENCE_WHITE_CD_M2)  # (65536,), in reference whites
_HLG_SCENE = _table(hlg_to_scene(_CODES))
_SDR_LIGHT = _table(np.power(_CODES, 2.4))  # ITU-R BT.1886
_SRGB_BYTES = np.round(255 * srgb_signal(_CODES)).astype(np.uint8)


def to_sdr(rgb: npt.NDArray[np.uint16], transfer: Transfer) -> Picture:
    """Convert BT.2020 RGB (H, W, 3) uint16 of a transfer function to sRGB (H, W, 3) uint8."""
    if transfer == "PQ":
        light = tone_map(_PQ_WHITES[rgb] @ BT2020_TO_BT709.T)
    elif transfer == "HLG":
        scene = _HLG_SCENE[rgb]
        luminance = scene @ _BT2020_LUMA  # (H, W)
        # BT.2100's OOTF: system gamma 1.2 on a display of 1000 cd/m².
        display = scene * np.power(luminance, np.float32(0.2))[..., None]
        whites = display * np.float32(HLG_PEAK_CD_M2 / REFERENCE_WHITE_CD_M2)
        light = tone_map(np.asarray(whites @ BT2020_TO_BT709.T, np.float32))
    else:
        light = _SDR_LIGHT[rgb] @ BT2020_TO_BT709.T
    return _SRGB_BYTES[np.round(65535 * np.clip(light, 0, 1)).astype(np.uint16)]
