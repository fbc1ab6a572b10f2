"""Commands of ``vaemotion evaluate``: benchmark, timeline, hearing report, baselines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vaemotion.cli.app import (
    HeldOutSplit,
    Manifest,
    Manifests,
    MediaRoot,
    PathName,
    Seed,
    Split,
    evaluate_app,
    local_path,
)

Resamples = Annotated[int, typer.Option("--bootstrap", min=1, max=1_000_000, help="Bootstrap resamples.")]


@evaluate_app.command("benchmark")
def evaluate_benchmark(
    manifest: Manifest,
    model: Annotated[
        list[Path],
        typer.Option(
            "--model",
            metavar="FOLDER",
            help="Bundle or checkpoint folder; repeat it for models of several training seeds.",
        ),
    ],
    media_root: MediaRoot,
    out: Annotated[Path, typer.Option("--out", help="Folder for the results.")],
    split: Annotated[Split | None, typer.Option("--split", help="Split to evaluate; default: all.")] = None,
    path: Annotated[
        PathName | None,
        typer.Option("--path", help="Path for every item, as a control; default: each item's own."),
    ] = None,
    rotations: Annotated[
        int,
        typer.Option(
            "--rotations",
            min=0,
            help="Rotations of the options when they are also listed in the prompt, at most one per option; "
            "0: do not list them.",
        ),
    ] = 2,
    bootstrap: Resamples = 1000,
    seed: Seed = 0,
) -> None:
    """Answer a manifest's questions and report accuracy.

    The report gives accuracy, agreement with the labels and their intervals, per path.
    """
    from export.predictors import load_predictor
    from vaemotion.evaluation.benchmark.rows import Bootstrap
    from vaemotion.evaluation.benchmark.run import BenchmarkSettings, run_benchmark

    settings = BenchmarkSettings(path, rotations, Bootstrap(bootstrap, seed))
    run_benchmark(manifest, media_root, model, load_predictor, out, settings, split=split)


@evaluate_app.command("timeline")
def evaluate_timeline(
    timelines: Annotated[
        list[Path],
        typer.Argument(parser=local_path, metavar="TIMELINE", help="Timelines of runs, one of each work."),
    ],
    labels: Annotated[
        Path,
        typer.Argument(
            parser=local_path,
            metavar="LABELS",
            help="Labels over time: a CSV file (time_s, valence, arousal; work; rater or valence_rater1, "
            "arousal_rater1, ...) or a data manifest.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the report.")],
    step: Annotated[
        float,
        typer.Option("--step", min=0.01, max=60, help="Seconds between the times that are compared."),
    ] = 0.5,
    max_lag: Annotated[
        float,
        typer.Option("--max-lag", min=0, max=600, help="Largest lag tried to either side; 0: none."),
    ] = 10.0,
    reaction_lag: Annotated[
        float,
        typer.Option(
            "--reaction-lag", min=0, max=60, help="Seconds that the raters of a CSV file answered late."
        ),
    ] = 0.0,
    bootstrap: Resamples = 1000,
    seed: Seed = 0,
) -> None:
    """Compare timelines of runs with labels over time.

    The report gives CCC, PCC and RMSE per work and pooled, the best lag, and how well one rater agrees with
    the others.
    """
    from runtime.commands.timeline.read import read_timeline
    from vaemotion.evaluation.benchmark.rows import Bootstrap
    from vaemotion.evaluation.timeline.results import Settings
    from vaemotion.evaluation.timeline.run import run_timeline

    settings = Settings(step, max_lag, reaction_lag, Bootstrap(bootstrap, seed))
    run_timeline(timelines, labels, out, settings, read_timeline)


@evaluate_app.command("hearing")
def evaluate_hearing(
    model: Annotated[Path, typer.Option("--model", help="Checkpoint after stage 1, or a complete one.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the report.")],
    shuffled: Annotated[
        Path | None,
        typer.Option("--shuffled", help="Control: checkpoint trained with --set align.pairing=shuffled."),
    ] = None,
    ce_only: Annotated[
        Path | None,
        typer.Option("--ce-only", help="Comparison: checkpoint trained with --set align.kd_weight=0."),
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(
            "--manifest",
            parser=local_path,
            metavar="FILE",
            help="Manifest (or folder of shards) of clips and sounds to measure on: which of their items' "
            "options, or else of their labels, does the sound name? Clips with frames also give retrieval "
            "and swapped sound. Without it: procedural art alone, for a model that learned on it.",
        ),
    ] = None,
    media_root: MediaRoot = Path(),
    split: Annotated[
        HeldOutSplit, typer.Option("--split", help="Split of the works and the clips.")
    ] = HeldOutSplit.TEST,
    works: Annotated[
        int,
        typer.Option(
            "--works",
            min=20,
            max=100_000,
            help="Number of procedural works, for a model that learned on procedural art.",
        ),
    ] = 300,
    bootstrap: Resamples = 1000,
    seed: Seed = 0,
) -> None:
    """Measure what a model recognizes from sound alone.

    The report compares it with every control, on one page with one verdict.
    """
    from vaemotion.evaluation.benchmark.rows import Bootstrap
    from vaemotion.evaluation.hearing.run import HearingOptions, run_hearing

    intervals = Bootstrap(bootstrap, seed)
    options = HearingOptions(shuffled, ce_only, manifest, media_root, split, works, intervals)
    run_hearing(model, out, options)


@evaluate_app.command("baselines")
def evaluate_baselines(
    manifests: Manifests,
    media_root: MediaRoot,
    split: Annotated[
        HeldOutSplit, typer.Option("--split", help="Split to measure; the baselines learn from train.")
    ] = HeldOutSplit.TEST,
    bootstrap: Resamples = 1000,
    seed: Seed = 0,
) -> None:
    """Measure linear models on simple statistics of the media.

    A trained model should reach at least their figures.
    """
    from vaemotion.evaluation.baselines import run_baselines

    run_baselines(manifests, media_root, split, bootstrap, seed)
