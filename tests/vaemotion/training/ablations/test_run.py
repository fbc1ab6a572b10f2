"""The ablations at a test's size: trials that run, results that are kept, sentences of the document."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny import CONFIG_FILE, SMALL, randomize, tiny_config, tiny_model
from vaemotion.cli.main import main
from vaemotion.contract import prompts
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.data.clips.of_art import ArtClips
from vaemotion.evaluation.hearing.listening import encode_audio, question_scores
from vaemotion.training import emotion
from vaemotion.training.ablations import run as ablations
from vaemotion.training.ablations.document import NOT_RUN, NOT_THERE, cell, findings, markdown
from vaemotion.training.ablations.measures import Validation, adapter_figures, partial_correlation
from vaemotion.training.ablations.plan import ALIGN, EMOTION, GROUPS, AblationPlan, Document, Trial
from vaemotion.training.ablations.run import AblationRun, chosen_groups, read_result, run_and_write
from vaemotion.training.config import read_training_config
from vaemotion.training.encoded import Windows, WindowStore, encode_all
from vaemotion.training.rated_sets import encoded_set
from vaemotion.training.teacher import level_from_scores, mean_level

OVERRIDES = [
    *SMALL,
    "align.clips=['art:6']",
    "emotion.works=6",
    "emotion.language_batch=2",
    *(
        f"{stage}.optimisation.{key}"
        for stage in ("align", "emotion")
        for key in ("steps=2", "batch=4", "workers=0", 'precision="no"')
    ),
]
VALIDATION, SEEDS = 10, 2
ACCURACY = "content accuracy from sound"


@dataclass(frozen=True)
class Made:
    base: Path
    out: Path
    document: Path

    def run(self, *only: str, seeds: int = SEEDS, more: tuple[str, ...] = ()) -> None:
        ablations.train(
            CONFIG_FILE, [*OVERRIDES, *more], self.base, self.out, self.document, seeds, only, VALIDATION
        )

    def results(self) -> dict[str, int]:
        """Return the time at which each trial's result was written."""
        return {f.name: f.stat().st_mtime_ns for f in self.out.glob("[!s]*.json")}

    def parts(self, kind: type[AblationRun] = AblationRun) -> tuple[AblationPlan, AblationRun]:
        config = read_training_config(CONFIG_FILE, OVERRIDES)
        ablation_run = kind(config, self.base, self.out)
        return AblationPlan(config, ablation_run.base_hash, VALIDATION, SEEDS), ablation_run


class CutOff(AblationRun):
    """A run that is interrupted in the middle of the second trial."""

    begun = 0

    def figures_of(self, trial: Trial, validation: Validation) -> dict[str, float | None]:
        self.begun += 1
        if self.begun == 2:
            (self.out / f"{trial.key}.training").mkdir()
            raise KeyboardInterrupt
        return super().figures_of(trial, validation)


@pytest.fixture(scope="module")
def made(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Run two variants of stage 1 with two seeds: interrupted, then continued by the same command."""
    folder = tmp_path_factory.mktemp("ablations")
    made = Made(small_checkpoint, folder / "out", folder / "doc" / "ablations.md")
    plan, ablation_run = made.parts(CutOff)
    with pytest.raises(KeyboardInterrupt):
        run_and_write(plan, chosen_groups(["both"]), ablation_run, made.document, "the command")
    assert len(made.results()) == 1
    (folder / "half.md").write_text(made.document.read_text())
    first = made.results()
    made.run("both")
    assert first.items() <= made.results().items()
    return made


def test_an_interrupted_run_is_continued_and_no_trial_runs_twice(made: Made) -> None:
    before = made.results()
    assert len(before) == 6  # three variants, two seeds
    made.run("both")
    assert made.results() == before
    left = {file.suffix for file in made.out.rglob("*") if file.is_file()}
    assert left == {".json", ".safetensors"}


def test_only_a_missing_result_is_computed_again_with_the_same_figures(made: Made) -> None:
    before = made.results()
    gone = sorted(before)[0]
    figures = json.loads((made.out / gone).read_text())["figures"]
    (made.out / gone).unlink()
    made.run("both")
    after = made.results()
    assert after.keys() == before.keys()
    assert [name for name in after if after[name] != before[name]] == [gone]
    assert json.loads((made.out / gone).read_text())["figures"] == figures


def test_the_document_of_an_interrupted_run_names_the_trials_that_were_not_run(made: Made) -> None:
    half = (made.document.parent.parent / "half.md").read_text()
    assert half.startswith("# Mechanism checks, not benchmark results")
    assert NOT_RUN in half
    table = [line for line in half.splitlines() if line.startswith(("| [V; A]", "| never"))]
    assert [line.rsplit("|", 2)[1].strip() for line in table] == ["1", "0", "0"]
    assert "never: not run" in half


def test_the_document_holds_the_numbers_of_the_files(made: Made) -> None:
    made.run("both")
    text = made.document.read_text()
    plan, ablation_run = made.parts()
    [group] = chosen_groups(["both"])
    values = []
    for trial in plan.of_variant(group, group.variants[2]):
        result = read_result(ablation_run.out, trial.key)
        assert result is not None
        values.append(result["figures"]["follows_sight"])
    assert cell(values) in next(line for line in text.splitlines() if line.startswith("| never"))
    assert plan.base_hash[:12] in text
    assert "6 of 40 trials" in text
    assert "--seeds 2" in text
    assert made.document.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "](ablations.png)" in text


def test_stage_2_reads_the_audio_pathway_of_its_seed(made: Made) -> None:
    made.run("dropout", seeds=1)
    plan, ablation_run = made.parts()
    [group] = chosen_groups(["dropout"])
    trials = [plan.of_variant(group, variant)[0] for variant in group.variants]
    assert trials[0].align_trial == trials[1].align_trial
    assert trials[0].align_trial is not None
    audio_file = ablation_run.audio_file(trials[0].align_trial)
    assert audio_file.exists()
    result = read_result(ablation_run.out, trials[0].key)
    assert result is not None
    assert result["stage"] == EMOTION
    assert -1 <= result["figures"]["arousal.visual"] <= 1
    audio_file.unlink()
    before = made.results()
    made.run("dropout", seeds=1)
    assert made.results() == before  # no trial needs that audio pathway any more
    (made.out / f"{trials[1].key}.json").unlink()
    made.run("dropout", seeds=1)
    assert audio_file.exists()


def test_settings_that_differ_make_another_file_and_equal_ones_the_same() -> None:
    config = read_training_config(CONFIG_FILE, OVERRIDES)
    plan = AblationPlan(config, "base", 10, 3)
    keys = {trial.key for trial in plan.trials(GROUPS)}
    assert len(keys) == len(plan.trials(GROUPS)) == 60
    some = GROUPS[0].variants[1]
    one = plan.of_variant(GROUPS[0], some)[0].key
    others = [
        replace(plan, base_hash="other"),
        replace(plan, validation=11),
        replace(plan, config=replace(config, seed=1)),
        replace(plan, config=replace(config, align=replace(config.align, clips=("art:7",)))),
    ]
    assert one not in {other.of_variant(GROUPS[0], some)[0].key for other in others}
    named = {(g.key, v.name): plan.of_variant(g, v)[0].key for g in GROUPS for v in g.variants}
    same = [
        ("objective", "KD + CE"),
        ("temperature", "τ = 1.5"),
        ("pairing", "synchronised"),
        ("both", "never"),
    ]
    assert len({named[name] for name in same}) == 1
    longer = replace(
        config, align=replace(config.align, optimisation=replace(config.align.optimisation, steps=3))
    )
    ages = chosen_groups(["ages"])[0]
    assert replace(plan, config=longer).of_variant(ages, ages.variants[0])[0].key != named["ages", "ages"]


def test_variants_without_any_loss_are_not_trained() -> None:
    plan = AblationPlan(tiny_config(), "base", 10, 1)
    idle = {
        variant.name
        for group in GROUPS
        for variant in group.variants
        if not plan.of_variant(group, variant)[0].is_trained
    }
    assert idle == {"none", "neither"}


def document_of(figures: Mapping[str, list[Mapping[str, float | None]]], seeds: int = 3) -> Document:
    """Make a document of the objective's group whose variants have these figures, by seed."""
    plan = AblationPlan(tiny_config(), "base", 10, seeds)
    results: dict[str, Any] = {}
    for variant in GROUPS[0].variants:
        trials = plan.of_variant(GROUPS[0], variant)
        for trial, found in zip(trials, figures.get(variant.name, []), strict=False):
            results[trial.key] = {"figures": found, "seconds": 60.0, "machine": "2 cores, abacus"}
    return Document(plan, results, None, "the command", Path("base"))


def content(*values: float) -> list[Mapping[str, float | None]]:
    return [{"content.audio": value, "said_arousal.audio": 0.1} for value in values]


@pytest.mark.parametrize(
    ("of_none", "of_both", "finding"),
    [
        ((0.1, 0.1, 0.1), (0.5, 0.6, 0.7), f"+0.50 {ACCURACY}, larger than the spread over seeds"),
        ((0.1, 0.3, 0.5), (0.2, 0.4, 0.6), f"+0.10 {ACCURACY}, within the spread over seeds"),
        ((0.6, 0.6, 0.6), (0.2, 0.2, 0.2), f"−0.40 {ACCURACY}, larger than the spread over seeds"),
        ((0.3, 0.3), (0.301, 0.301), f"no difference in {ACCURACY}"),
        ((0.1,), (0.3,), f"+0.20 {ACCURACY} (a single seed, so no spread)"),
        ((), (0.3,), "not run"),
    ],
)
def test_the_sentence_follows_the_numbers(
    of_none: tuple[float, ...], of_both: tuple[float, ...], finding: str
) -> None:
    document = document_of({"none": content(*of_none), "KD + CE": content(*of_both)})
    sentence = findings(document, GROUPS[0])
    assert sentence.split("; ")[0] == f"KD + CE against none: {finding}"
    assert sentence.endswith("KD + CE + head against KD + CE: not run.")


def test_cells_hold_the_mean_and_the_spread_or_name_what_is_missing() -> None:
    assert cell([0.1, 0.2, 0.3]) == "0.20 ± 0.10"
    assert cell([0.125]) == "0.12"
    assert cell([]) == NOT_RUN
    assert cell([None, None]) == NOT_THERE
    text = markdown(document_of({"CE": content(0.2, 0.4, 0.3)}))
    assert "| CE | 0.30 ± 0.10 |" in text
    assert "3.0 minutes on 2 cores, abacus" in text


def windows_of(count: int, folder: Path) -> Validation:
    model = tiny_model(audio=False, adapter=False)
    front_end = model.config.front_end
    clips = Windows(ArtClips(count, "validation", front_end.windows), front_end, 0)
    return Validation(encode_all(model, WindowStore(clips, "tiny", folder), 0))


def test_a_partial_correlation_holds_the_other_factors_fixed(tmp_path: Path) -> None:
    windows = windows_of(40, tmp_path)
    tempo, energy = (
        np.array([getattr(work.factors, name) for work in windows.works]) for name in ("tempo", "energy")
    )
    assert partial_correlation(windows, 0.3 * tempo - 2 * energy, "tempo") == pytest.approx(1, abs=1e-6)
    assert partial_correlation(windows, 0.3 * tempo - 2 * energy, "energy") == pytest.approx(-1, abs=1e-6)
    assert partial_correlation(windows, np.full(40, 0.5), "tempo") == 0
    few = windows_of(5, tmp_path)
    assert partial_correlation(few, np.array([w.factors.tempo for w in few.works]), "tempo") == 0


def test_the_mean_level_of_chunked_scores_is_the_teachers(tmp_path: Path) -> None:
    model, windows = tiny_model(), windows_of(5, tmp_path)
    visual = windows.windows.visual_tokens(range(5), 2)
    scores = question_scores(model, visual, None, 5, prompts.AROUSAL.text, prompts.AROUSAL_WORDS)
    expected = mean_level(
        model, model.media_embeddings(visual, None, 5), prompts.AROUSAL.text, prompts.AROUSAL_WORDS
    )
    level = level_from_scores(model, scores, prompts.AROUSAL_WORDS)
    torch.testing.assert_close(level, expected, atol=1e-5, rtol=1e-4)


def test_the_order_of_the_tokens_counts_only_with_ages(tmp_path: Path) -> None:
    model, windows = tiny_model(), windows_of(6, tmp_path)
    randomize(model.emo_adapter)
    audio = encode_audio(model, windows.windows.log_mels(range(6)))
    works = encoded_set(windows.windows, audio, model.config.front_end, model.emo_adapter.config.emotions)
    data = emotion.EmotionData(works, [])
    for ages in (True, False):
        config = tiny_config(f"emotion.token_ages={str(ages).lower()}")
        figures = adapter_figures(model, windows, data, config, is_supervised=True)
        for path in ("audio", "visual", "audio-visual"):
            change = figures[f"backwards.{path}"]
            assert change is not None
            assert (change > 1e-4) == ages, path
    unsupervised = adapter_figures(model, windows, data, config, is_supervised=False)
    assert unsupervised["arousal.audio"] is None
    assert unsupervised["said_arousal.audio"] == figures["said_arousal.audio"]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--only", "tau"], "--only tau: no such group; known: objective, temperature"),
        (["--set", "align.recordings=x.jsonl"], "procedural pairs alone"),
        (["--doc", "ablations.txt"], "--doc must be a Markdown file"),
        (["--set", "image.side_px=30"], "must be those of the base"),
        (["--base", "nowhere"], "nowhere is not a checkpoint"),
    ],
)
def test_an_impossible_run_is_refused_in_one_sentence(
    more: list[str], sentence: str, small_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "ablations", "--config", str(CONFIG_FILE), "--base", str(small_checkpoint)]
    words += ["--out", str(tmp_path / "out"), "--doc", str(tmp_path / "a.md")]
    words += [word for override in OVERRIDES for word in ("--set", override)]
    assert main([*words, *more]) in (1, 2)
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "abc.json").write_text("{")
    with pytest.raises(UserError, match=r"abc\.json is damaged"):
        read_result(tmp_path, "abc")
    assert read_result(tmp_path, "abcd") is None


def test_an_unknown_group_names_the_known_ones() -> None:
    with pytest.raises(
        UsageError,
        match="known: objective, temperature, pairing, space, both, adapter, enhancer, ages, dropout",
    ):
        chosen_groups(["objective", "x"])
    assert [group.stage for group in chosen_groups(["both", "ages"])] == [ALIGN, EMOTION]
