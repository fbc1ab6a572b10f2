"""Commands that make bundles, verify them, compare them and measure them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from vaemotion.cli.app import (
    AsJson,
    Bundle,
    GgufType,
    LanguageModelType,
    MediaRoot,
    OnnxExporter,
    Precision,
    TensorType,
    app,
    bundle_app,
    local_path,
)
from vaemotion.contract.errors import UsageError


@app.command("export")
def export_checkpoint(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the bundle; an existing bundle is replaced.")],
    precision: Annotated[
        Precision,
        typer.Option("--precision", help="fp32: FP32 only. fp16: FP32 and FP16. int8: FP32, FP16 and INT8."),
    ] = Precision.FP32,
    max_drop: Annotated[
        str,
        typer.Option(
            "--max-drop",
            metavar="POINTS",
            help="Largest loss of INT8 in CCC on each path and in content accuracy, with 95 % confidence; "
            "none: no limit and no measurement.",
        ),
    ] = "0.5pp",
    windows: Annotated[
        int,
        typer.Option(
            "--windows",
            min=16,
            max=1_000_000,
            help="Windows on which INT8 is measured, at most 8 of a medium.",
        ),
    ] = 2000,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            parser=local_path,
            metavar="FILE",
            help="Manifest whose split 'train' calibrates INT8; default: procedural art.",
        ),
    ] = None,
    judge: Annotated[
        Path | None,
        typer.Option(
            "--judge",
            parser=local_path,
            metavar="FILE",
            help="Manifest (or folder of shards) whose split 'validation', or else 'test', judges INT8: "
            "affect on every path and against people's ratings, content where items have options, narration, "
            "jitter. The bundle is compared with its checkpoint on it, too. Default: procedural art, for a "
            "checkpoint that learned on it.",
        ),
    ] = None,
    confidence: Annotated[
        Path | None,
        typer.Option(
            "--confidence",
            parser=local_path,
            metavar="FILE",
            help="Manifest whose split 'validation' has the ratings (expressed valence, arousal and "
            "emotions) that the confidence of readings is fitted on. Default: those of --judge, if it has 20 "
            "such works there; else procedural art, for a checkpoint that learned on it.",
        ),
    ] = None,
    media_root: Annotated[
        Path, typer.Option("--media-root", help="Root folder of the paths in all of these manifests.")
    ] = Path(),
    calibration_windows: Annotated[
        int, typer.Option("--calibration-windows", min=16, max=1_000_000, help="Windows that calibrate INT8.")
    ] = 256,
    clips: Annotated[
        int, typer.Option("--clips", min=1, max=100_000, help="Clips on which the bundle is verified.")
    ] = 40,
    language_model: Annotated[
        list[LanguageModelType] | None,
        typer.Option(
            "--language-model",
            help="GGUF type beside F16, which is always there; repeatable. Default: both.",
        ),
    ] = None,
    question: Annotated[
        str,
        typer.Option(
            "--question",
            metavar="TEXT",
            help="Question that the bundle's narrations answer; default: 'Describe it.'",
        ),
    ] = "",
    exporter: Annotated[
        OnnxExporter,
        typer.Option(
            "--exporter",
            help="torch: torch.onnx.export. transformers: transformers.exporters, which succeeds optimum and "
            "is experimental. Both are verified alike.",
        ),
    ] = OnnxExporter.TORCH,
) -> None:
    """Export a checkpoint as a verified bundle.

    What cannot be judged is said before the first step, and stands in the bundle's manifest.
    Finished steps stay in OUT.steps, or in the folder that VAEMOTION_EXPORT_STEPS names: after a failure the
    same command continues from them, and other options repeat only the steps that depend on them. Exit code
    3: INT8 loses more than --max-drop allows.
    """
    from export.options import Options, parse_drop
    from export.pack import export_bundle

    drop = parse_drop(max_drop)
    options = Options(
        precision,
        drop,
        windows,
        calibration,
        media_root,
        calibration_windows,
        clips,
        judge=judge,
        confidence=confidence,
        question=question,
        exporter=exporter,
    )
    if language_model:
        options = replace(options, language_models=tuple(language_model))
    export_bundle(checkpoint, out, options)


@app.command("gguf")
def gguf_of_folder(
    folder: Annotated[
        Path, typer.Argument(help="Folder of a language or vision-language model, saved by transformers.")
    ],
    out: Annotated[Path, typer.Option("--out", help="GGUF file to write.")],
    file_type: Annotated[
        GgufType, typer.Option("--type", help="File type. auto: search for the type of each matrix.")
    ] = GgufType.Q8_0,
    text: Annotated[
        str,
        typer.Option(
            "--text",
            metavar="FILE",
            help="Text like what the model will say. Three quarters of it weigh the rounding errors, the "
            "rest judges the result. Default: plain English. none: neither.",
        ),
    ] = "",
    importance: Annotated[
        Path | None,
        typer.Option(
            "--importance",
            parser=local_path,
            metavar="FILE",
            help="Importance matrix that weighs the rounding errors, in place of the text.",
        ),
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(
            "--adapter", parser=local_path, metavar="FOLDER", help="Folder of a LoRA adapter to merge."
        ),
    ] = None,
    max_kl: Annotated[
        float | None,
        typer.Option(
            "--max-kl",
            metavar="NATS",
            min=0.0,
            help="With --type auto: the smallest file with at most this mean divergence a token; default "
            "0.02.",
        ),
    ] = None,
    max_mb: Annotated[
        float | None,
        typer.Option(
            "--max-mb", metavar="MB", min=0.0, help="With --type auto: the best file of at most this size."
        ),
    ] = None,
    without: Annotated[
        list[TensorType] | None,
        typer.Option("--without", help="With --type auto: a type that the search does not use; repeatable."),
    ] = None,
    license_id: Annotated[
        str, typer.Option("--license", metavar="SPDX", help="SPDX license to store in the file.")
    ] = "NOASSERTION",
) -> None:
    """Convert a local folder's language model to GGUF.

    Decoders of Llama, Mistral, SmolLM, Qwen2, Qwen2.5 and Qwen3, also within a vision-language model.
    Prints the type that each tensor has in the file, and how far its next words diverge from the model's on
    held-out text. --type auto also prints every file that it measured.
    """
    from export.gguf.folder import Material, folder_to_gguf
    from export.gguf.search import Search
    from export.gguf.text import SHIPPED_TEXT

    wanted: str | Search = file_type
    if file_type is GgufType.AUTO:
        if max_kl is not None and max_mb is not None:
            raise UsageError("--max-kl and --max-mb: give one of them; the search holds one limit")
        limit = {} if max_kl is None else {"max_kl_nats": max_kl}
        max_bytes = None if max_mb is None else int(max_mb * 1e6)
        wanted = Search(max_bytes=max_bytes, without=tuple(without or ()), **limit)
    elif max_kl is not None or max_mb is not None or without:
        raise UsageError(f"--max-kl, --max-mb and --without go with --type auto, got --type {file_type}")
    chosen = SHIPPED_TEXT if not text else None if text == "none" else local_path(text)
    folder_to_gguf(folder, out, wanted, Material(chosen, importance), adapter=adapter, license=license_id)


@app.command("assemble")
def assemble_parts(
    recipe: Annotated[
        Path, typer.Argument(parser=local_path, help="TOML file that names the parts; see docs/assemble.md.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the bundle; an existing bundle is replaced."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Check the parts on clips, and write nothing.")
    ] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Make FP16 engines beside the FP32 ones.")] = False,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            parser=local_path,
            metavar="FILE",
            help="Manifest whose split 'train' shows where FP16 overflows; default: procedural art.",
        ),
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(
            "--manifest",
            parser=local_path,
            metavar="FILE",
            help="Manifest (or folder of shards) whose split 'validation', or else 'test', has the clips on "
            "which the parts are run. Default: procedural art.",
        ),
    ] = None,
    media_root: MediaRoot = Path(),
    clips: Annotated[
        int, typer.Option("--clips", min=2, max=100_000, help="Clips that the parts are run on.")
    ] = 8,
) -> None:
    """Make a bundle of parts that were trained elsewhere.

    The parts are ONNX files of two encoders and an EmoAdapter, a language model and its tokenizer. They are
    checked against each other and run on clips. Golden vectors are what they give on this machine.
    """
    from export.assemble.make import Options, assemble, check_recipe

    if (out is None) != check:
        raise UsageError("give either --out FOLDER for the bundle, or --check to write nothing")
    options = Options(fp16, calibration, clips, manifest, media_root)
    if out is None:
        check_recipe(recipe, options)
    else:
        assemble(recipe, out, options)


@app.command("verify")
def verify_bundle(
    bundle: Bundle,
    against: Annotated[
        Path | None, typer.Option("--against", help="Checkpoint whose results the bundle must match.")
    ] = None,
    clips: Annotated[
        int, typer.Option("--clips", min=1, max=100_000, help="Clips to compare on, with --against.")
    ] = 40,
    manifest: Annotated[
        Path | None,
        typer.Option(
            "--manifest",
            parser=local_path,
            metavar="FILE",
            help="Manifest (or folder of shards) with the clips to compare on, and questions about them: its "
            "split 'validation', or else 'test'. Default: procedural art.",
        ),
    ] = None,
    media_root: MediaRoot = Path(),
) -> None:
    """Verify a bundle's files and its results on this machine."""
    if against is None and manifest is not None:
        raise UsageError(
            "--manifest goes with --against CHECKPOINT: without a checkpoint there is nothing to compare "
            "with on its clips"
        )
    if against is None:
        from runtime.commands.verify import verify_bundle as verify_alone

        verify_alone(bundle)
    else:
        from export.verify import verify

        verify(bundle, against, clips, manifest, media_root)


@app.command("engines")
def build_engines_ahead(
    bundle: Bundle,
    precision: Annotated[
        Precision | None,
        typer.Option("--precision", help="Precision to build; default: all that the bundle has."),
    ] = None,
) -> None:
    """Build a bundle's TensorRT engines ahead of time.

    Run this on the device that will use them.
    """
    from export.to_tensorrt import build_engines

    build_engines(bundle, precision)


@app.command("bench")
def bench_bundle(
    bundle: Bundle,
    out: Annotated[Path, typer.Option("--out", help="Folder for bench.json, bench.md and bench.png.")] = Path(
        "bench"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
    rounds: Annotated[
        int,
        typer.Option("--rounds", min=1, max=100_000, help="Measurement rounds; use more on a busy machine."),
    ] = 5,
) -> None:
    """Measure the speed and accuracy of a bundle's files.

    Size, load time, memory, p50 and p95 latency and accuracy of each file. Every precision runs in
    processes of its own, in turns. The result names smaller precisions that are not faster. Other load on
    the machine makes the figures worse.
    """
    from runtime.commands.bench.bench import bench

    bench(bundle, out, as_json, rounds)


@bundle_app.command("inspect")
def bundle_inspect(bundle: Bundle, as_json: AsJson = False) -> None:
    """Print the contents and the origin of a bundle."""
    from runtime.commands.bundle.inspect import inspect

    inspect(bundle, as_json)


@bundle_app.command("diff")
def bundle_diff(
    a: Bundle,
    b: Annotated[
        Path,
        typer.Argument(parser=local_path, metavar="b", help="Bundle folder to compare it with."),
    ],
    as_json: AsJson = False,
) -> int:
    """Compare the manifests of two bundles.

    Compares weights, precisions, front end, prompt, calibration, accuracy, licenses and tools. `vaemotion
    verify` checks that the files match their manifest. Exit code 0: equal in everything that affects
    results; 1: different.
    """
    from runtime.commands.bundle.diff import diff

    return diff(a, b, as_json)
