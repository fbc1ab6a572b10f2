"""A ViT-base-sized vision tower on a processor: PyTorch eager and ``torch.compile`` against our ONNX in FP32 and INT8, in one run.

    python -m benchmarks.encoders [--side 224] [--repetitions 7]

Random weights of SigLIP-base's true shapes (86 M parameters, 12 layers of 768), procedural pictures. Repetitions are interleaved, so that
whatever else the machine does meets all of them; medians, and each as a ratio to eager. Nothing is said about accuracy here.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from rich.console import Console
from rich.table import Table

from calibration.qdq import blocks, quantise, weight_products
from calibration.ranges import observed
from export.budget import SessionEngine
from export.to_onnx import Part, export_onnx
from vaemotion.contract.image import ImageConfig, prepare_frame
from vaemotion.data.procedural_art import draw_frame, sample_work, work_seed
from vaemotion.model.backbones import VisionEncoder, build_vlm

CALIBRATION_PICTURES = 8


def tower(side_px: int) -> VisionEncoder:
    """SigLIP-base with SmolVLM's connector, in front of a text width of 960."""
    torch.manual_seed(0)
    vision = {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "image_size": side_px, "patch_size": 16,
    }  # fmt: skip
    text = {
        "model_type": "llama",
        "hidden_size": 960,
        "num_hidden_layers": 1,
        "vocab_size": 64,
        "num_attention_heads": 15,
    }
    vlm = build_vlm({"vision_config": vision, "text_config": text, "scale_factor": 2, "image_token_id": 3})
    return VisionEncoder(vlm).eval()


def pictures(side_px: int, count: int) -> np.ndarray:
    config = ImageConfig(side_px=side_px)
    works = [sample_work(work_seed("train", index)) for index in range(count)]
    return np.stack([prepare_frame(draw_frame(work, 1.0, side_px), config) for work in works])


def contenders(side_px: int, threads: int, with_compile: bool) -> dict[str, Callable[[], object]]:
    """Each a call that encodes the same picture."""
    torch.set_num_threads(threads)
    model, pixels = tower(side_px), pictures(side_px, CALIBRATION_PICTURES)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tower.onnx"
        export_onnx(Part(model, {"pixels": torch.zeros(2, 3, side_px, side_px)}, ("tokens",)), path)
        fp32 = onnx.load(str(path))
    products = weight_products(fp32)
    histograms = observed(
        fp32, sorted({p.activation for p in products}), [{"pixels": p[None]} for p in pixels], threads
    )
    int8 = quantise(fp32, histograms, "max", "int8-cpu", blocks(products))
    arrays, tensor = {"pixels": pixels[:1]}, torch.from_numpy(pixels[:1])
    engines = {
        name: SessionEngine(graph, threads) for name, graph in {"ONNX FP32": fp32, "ONNX INT8": int8}.items()
    }
    calls: dict[str, Callable[[], object]] = {"eager": lambda: model(tensor)}
    if with_compile:
        compiled = torch.compile(model)
        calls["torch.compile"] = lambda: compiled(tensor)
    for name, engine in engines.items():
        calls[name] = lambda engine=engine: engine.run(arrays)
    return calls


@torch.no_grad()
def measure(calls: dict[str, Callable[[], object]], repetitions: int) -> dict[str, list[float]]:
    """Seconds of each repetition, interleaved, after one run to warm up."""
    times_s: dict[str, list[float]] = {name: [] for name in calls}
    for repetition in range(-1, repetitions):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if repetition >= 0:
                times_s[name].append(time.perf_counter() - began)
    return times_s


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=224, help="Pixels a side, a multiple of 32.")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--no-compile", action="store_true", help="Leave torch.compile out: compiling takes a minute."
    )
    parser.add_argument("--json", type=Path, help="Write the figures there, too.")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    times_s = measure(contenders(options.side, options.threads, not options.no_compile), options.repetitions)
    eager = times_s["eager"]
    table = Table(title=f"ViT-base at {options.side} px, batch 1, {options.threads} threads, load {load:.1f}")
    for column in ("", "median ms", "times as fast as eager", "least .. most"):
        table.add_column(column)
    for name, values in times_s.items():
        ratios = [a / b for a, b in zip(eager, values, strict=True)]
        spread = f"{min(ratios):.2f} .. {max(ratios):.2f}"
        table.add_row(
            name, f"{1e3 * statistics.median(values):.0f}", f"{statistics.median(ratios):.2f}", spread
        )
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps({"load": load, "seconds": times_s}, indent=1))


if __name__ == "__main__":
    main()
