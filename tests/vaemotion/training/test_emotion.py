"""Stage 2 on rows of any source: masks, labels, losses, language targets, and a whole training."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.predictors import checkpoint_constants, checkpoint_predictor
from runtime.perception.perception import Perception
from tests.rated import bare_item, item, made_set, write_film, write_image
from tests.tiny import CONFIG_FILE, SMALL, save_tiny_checkpoint, tiny_config, tiny_model
from vaemotion.contract.emotions import EMOTIONS
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.front_end import PATHS
from vaemotion.contract.prompts import EMOTION
from vaemotion.data.art.art import sample_work, work_seed
from vaemotion.data.clips.of_art import item_of
from vaemotion.data.instructions import EMOTION_INDUCED, FEELING, known_of, language_target
from vaemotion.data.manifest.manifest import write_manifest
from vaemotion.model.checkpoint import load_checkpoint, read_config
from vaemotion.model.vaemotion_llm import VAEmotionLLM
from vaemotion.training import emotion
from vaemotion.training.config import TrainingConfig
from vaemotion.training.losses import gaussian_nll, sign_loss
from vaemotion.training.rated_sets import RatedSet
from vaemotion.training.rows import AdapterBatch, Rows, audio_token_ages_s

WORKS = [sample_work(work_seed("train", index)) for index in range(5)]


def works_set() -> RatedSet:
    return made_set([item_of(work, "train") for work in WORKS], PATHS)


def rated_set(path: str, construct: str, count: int = 7, **values: object) -> RatedSet:
    """Make a set of stills or sounds that are rated by arousal alone."""
    medium = {"audio": "a.wav"} if path == "audio" else {"image": "a.png"}
    levels = np.linspace(-1, 1, count).tolist()
    items = [
        bare_item(f"{path} {k}", modality=path, construct=construct, arousal=level, **medium, **values)
        for k, level in enumerate(levels)
    ]
    return made_set(items, (path,), views=3)


def small_rows(*sets: RatedSet, **changes: object) -> tuple[VAEmotionLLM, RatedSet, Rows]:
    model, works = tiny_model(), works_set()
    return model, works, Rows(model, [works, *sets], stage_config(**changes))


def stage_config(**changes: object) -> TrainingConfig:
    config = tiny_config("emotion.optimisation.batch=5")
    return replace(config, emotion=replace(config.emotion, **changes))


# --- rows ---------------------------------------------------------------------------------------------------


def test_the_three_paths_are_one_batch_and_a_path_is_a_mask() -> None:
    model, _, rows = small_rows()
    batch = rows.collate(range(5))["rows"]
    assert batch.path.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    for place, path in enumerate(PATHS):
        mine = slice(5 * place, 5 * place + 5)
        assert batch.audio_mask[mine].all().item() == (path != "visual")
        assert batch.visual_mask[mine].any().item() == (path != "audio")
        assert torch.equal(batch.affect[mine], batch.affect[:5])
        assert torch.equal(batch.audio[mine], batch.audio[:5])
    with torch.no_grad():
        together = model.emo_adapter(*batch.inputs())
        alone = model.emo_adapter(*(part[5:10] for part in batch.inputs()))
        torch.testing.assert_close(
            together.valence_arousal[5:10], alone.valence_arousal, atol=1e-5, rtol=1e-5
        )


def test_rated_items_have_their_own_path_and_their_own_construct() -> None:
    _, _, rows = small_rows(rated_set("audio", "expressed"), rated_set("visual", "induced"))
    batch = rows.collate(range(5))["rows"]
    sounds, images = slice(15, 20), slice(20, 25)
    assert batch.path[sounds].tolist() == [0] * 5
    assert batch.path[images].tolist() == [1] * 5
    assert not batch.visual_mask[sounds].any()
    assert not batch.audio_mask[images].any()
    assert batch.construct.tolist() == [0] * 20 + [1] * 5
    assert batch.source.tolist() == [0] * 15 + [1] * 5 + [2] * 5
    assert torch.isnan(batch.affect[15:, 0]).all()
    assert torch.isfinite(batch.affect[15:, 1]).all()
    newest = batch.visual_mask[images].unflatten(1, (4, 4))[:, -1]
    assert newest.all()  # an image alone is the newest frame of its window


def test_windows_with_fewer_frames_keep_the_newest_and_their_ages_fall_towards_0() -> None:
    _, _, rows = small_rows()
    fewer = 0
    for step in range(10):
        collated = rows.collate(range(5 * step, 5 * step + 5))
        batch = collated["rows"]
        mask = batch.visual_mask[10:].unflatten(1, (4, 4))
        age = batch.visual_age_s[10:].unflatten(1, (4, 4))
        assert (mask == mask[..., :1]).all()  # a frame is present with all its tokens
        assert (age == age[..., :1]).all()
        assert mask[:, -1].all()
        assert (mask[:, 1:, 0] >= mask[:, :-1, 0]).all()
        torch.testing.assert_close(age[:, :-1, 0] - age[:, 1:, 0], torch.full((5, 3), 0.4, dtype=age.dtype))
        assert ((age[:, -1] >= 0) & (age[:, -1] < 0.1)).all()
        fewer += int((~mask).any())
        for row, window in enumerate(collated["windows"][0]):
            expected = torch.tensor([WORKS[window].valence, WORKS[window].arousal])
            torch.testing.assert_close(batch.affect[row], expected)
    assert fewer > 0


def test_a_work_is_drawn_before_its_window_so_that_long_works_count_as_short_ones() -> None:
    works = rated_set("audio", "expressed", 3)
    long = replace(works, first=torch.tensor([0, 1, 2, 9]))
    rows = Rows(tiny_model(), [long], stage_config())
    drawn = Counter(long.work_of(rows.collate([number])["windows"][0][0]) for number in range(300))
    assert min(drawn.values()) > 70


def test_without_token_ages_every_token_is_0_s_old() -> None:
    _, _, rows = small_rows(rated_set("visual", "expressed"), token_ages=False)
    batch = rows.collate(range(5))["rows"]
    assert not batch.audio_age_s.any()
    assert not batch.visual_age_s.any()


def test_an_audio_tokens_age_is_that_of_its_end() -> None:
    ages = audio_token_ages_s(tiny_model())
    torch.testing.assert_close(ages, torch.tensor([0.8, 0.6, 0.4, 0.2, 0.0]), atol=1e-6, rtol=0)


# --- the Supervisor's losses --------------------------------------------------------------------------------


@pytest.mark.parametrize(("construct", "other"), [(0, 1), (1, 0)])
def test_each_construct_has_its_own_head_and_missing_labels_give_no_gradient(
    construct: int, other: int
) -> None:
    model, _, rows = small_rows(rated_set("visual", ("expressed", "induced")[construct]))
    only = rows.collate(range(5))["rows"].only(torch.arange(15, 20))
    gradient = head_gradient(model, only)
    assert not gradient[other].any()
    assert gradient[construct, 1].any()  # arousal
    assert not gradient[construct, 0].any()  # nobody rated valence
    assert not gradient[construct, 4:].any()


def head_gradient(model: VAEmotionLLM, rows: AdapterBatch) -> torch.Tensor:
    """Return the gradient of the last layer: construct; valence, arousal, two spreads, nine emotions."""
    out = model.emo_adapter(*rows.inputs())
    emotion.supervisor_loss(out, rows, tiny_config().emotion)[0].backward()
    gradient = model.emo_adapter.heads[-1].weight.grad
    assert gradient is not None
    return gradient.unflatten(0, (2, 13))


def test_a_sign_pulls_a_reading_to_its_side_and_leaves_the_spread_alone() -> None:
    reading = torch.tensor([[0.5, -0.5], [-0.5, 0.5]], requires_grad=True)
    spread = torch.full((2, 2), 0.2, requires_grad=True)
    sign = torch.tensor([[1.0, torch.nan], [1.0, -1.0]])
    loss = sign_loss(reading, spread, sign)
    loss.backward()
    assert reading.grad is not None
    assert spread.grad is None
    assert reading.grad[0, 1] == 0  # no label
    assert reading.grad[1, 0] < 10 * reading.grad[0, 0] < 0  # far stronger on the wrong side
    assert reading.grad[1, 1] > 0
    # the likelihood of the sign of N(0.5, 0.2), as `gaussian_nll` is that of a value
    likely = -torch.special.log_ndtr(torch.tensor(2.5))
    right = sign_loss(reading[:1], spread[:1], sign[:1])
    assert right.item() == pytest.approx(likely.item(), abs=0.01)
    assert gaussian_nll(reading[:1], spread[:1], torch.full((1, 2), torch.nan)).item() == 0


def test_quadrants_alone_train_both_dimensions() -> None:
    works = [
        bare_item(f"q {k}", modality="audio", audio="a.wav", valence_sign=1 - 2 * (k % 2), arousal_sign=1)
        for k in range(5)
    ]
    model = tiny_model()
    rows = Rows(model, [made_set(works, ("audio",))], stage_config())
    gradient = head_gradient(model, rows.collate(range(5))["rows"])
    assert gradient[0, :2].any(1).all()
    assert not gradient[0, 2:].any()


def test_labels_that_a_model_gave_count_by_their_weight_and_apart() -> None:
    people, made = rated_set("audio", "expressed"), rated_set("audio", "expressed", machine_made=True)
    model, _, rows = small_rows(people, made, machine_made_weight=0.25)
    batch = rows.collate(range(5))["rows"]
    assert batch.machine_made.tolist() == [False] * 20 + [True] * 5
    out = model.emo_adapter(*batch.inputs())
    total, terms = emotion.supervisor_loss(out, batch, rows.config.emotion)
    alone = {}
    for name, chosen in (("people", ~batch.machine_made), ("machine", batch.machine_made)):
        part = batch.only(chosen)
        as_human = replace(part, machine_made=torch.zeros_like(part.machine_made))
        of_part = model.emo_adapter(*part.inputs())
        alone[name] = emotion.supervisor_loss(of_part, as_human, rows.config.emotion)
    expected = alone["people"][0] + 0.25 * alone["machine"][0]
    torch.testing.assert_close(total, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(terms["nll"], alone["people"][1]["nll"], atol=1e-5, rtol=1e-5)
    assert {"nll", "machine_made_nll", "machine_made_ccc_loss_audio"} <= set(terms)


# --- the language loss --------------------------------------------------------------------------------------


def objective(
    sets: Sequence[RatedSet], works: RatedSet | None = None, **changes: Any
) -> emotion.EmotionObjective:
    data = emotion.EmotionData(works, list(sets))
    return emotion.EmotionObjective(tiny_model(), data, stage_config(**changes))


def asked(training: emotion.EmotionObjective, path: str, count: int = 200) -> list[tuple[int, str, str]]:
    """Return set, question and answer of many language samples."""
    sets = training.data.sets
    windows = [0] * len(sets)
    found = [training.language_sample(path, windows, np.random.default_rng(k)) for k in range(count)]
    return [each for each in found if each is not None]


def test_the_raters_own_words_are_language_targets() -> None:
    words = ("the colors glow like an ember", "it scares me")
    painting = bare_item("p", modality="visual", image="a.png", construct="induced", utterances=words)
    training = objective([made_set([painting], ("visual",))])
    assert {(question, answer) for _, question, answer in asked(training, "visual")} == {
        (FEELING.text, word) for word in words
    }
    batch = Rows(training.model, training.data.sets, training.config).collate(range(5))
    loss, terms = training(batch)
    assert terms["language"] > 0
    loss.backward()
    up = training.model.emo_adapter.visual_enhancer.up.weight.grad
    assert up is not None
    assert up.any()


def test_a_rated_item_is_asked_for_everything_that_is_known_of_it() -> None:
    shares = tuple(1.0 if name == "fear" else 0.0 for name in EMOTIONS)
    known = bare_item(
        "k",
        label="playing violin",
        valence=-0.9,
        arousal=0.5,
        emotion_distribution=shares,
        question="Who plays?",
        answer="a girl",
        utterances=("it hurts",),
        construct="induced",
    )
    answers = {}
    for k in range(300):
        target = language_target(np.random.default_rng(k), known_of(known), emotion.QUESTION_SHARES, "audio")
        assert target is not None
        answers.setdefault(target[1], set()).add(target[0])
    assert set(answers) == {
        "very unpleasant",
        "stirring",
        "fear",
        "playing violin, stirring and very unpleasant",
        "playing violin",
        "a girl",
        "it hurts",
    }
    assert answers["a girl"] == {"Who plays?"}
    # what was felt is asked for in words of feeling, never as what the work expresses
    assert answers["fear"] == {EMOTION_INDUCED.text, *EMOTION_INDUCED.paraphrases}
    assert EMOTION.text not in answers["fear"]


def test_a_question_that_sound_cannot_answer_is_not_asked_of_sound() -> None:
    seen = known_of(bare_item("k", question="Which color?", answer="red", audible=False, construct=None))
    rng = np.random.default_rng(0)
    assert language_target(rng, seen, emotion.QUESTION_SHARES, "audio") is None
    assert language_target(rng, seen, emotion.QUESTION_SHARES, "visual") == ("Which color?", "red")


def test_changing_labels_are_asked_for_as_they_are_at_the_windows_time() -> None:
    rated = made_set([bare_item("k", video="a.mkv", valence=0.0)], PATHS, views=2)
    changing = replace(rated, affect=torch.tensor([[-0.9, torch.nan], [0.9, torch.nan]]))
    first, second = changing.known_at(0), changing.known_at(1)
    assert (first.valence, second.valence) == (pytest.approx(-0.9), pytest.approx(0.9))
    assert first.arousal is None
    rng = np.random.default_rng(0)
    answers = [language_target(rng, known, emotion.QUESTION_SHARES, "audio") for known in (first, second)]
    assert [answer[1] for answer in answers if answer] == ["very unpleasant", "very pleasant"]


def test_rated_works_have_their_share_of_the_language_loss_beside_procedural_ones() -> None:
    sounds, images = rated_set("audio", "expressed"), rated_set("visual", "expressed")
    training = objective([sounds, images], works_set(), rated_language_share=0.25)
    chosen = Counter(which for which, _, _ in asked(training, "audio", 400))
    assert set(chosen) == {0, 1}  # works and sounds
    assert 0.17 < chosen[1] / 400 < 0.33
    assert {which for which, _, _ in asked(training, "audio-visual")} == {0}
    # without any, the draws are those of procedural works alone
    alone = objective([], works_set())
    for k in range(20):
        rng, same = np.random.default_rng(k), np.random.default_rng(k)
        expected = language_target(same, works_set().known_at(0), emotion.QUESTION_SHARES, "visual")
        assert expected is not None
        assert alone.language_sample("visual", [0], rng) == (0, *expected)


def test_labels_that_a_model_gave_are_never_language_targets() -> None:
    made = rated_set("audio", "expressed", machine_made=True)
    training = objective([made, rated_set("visual", "expressed")], works_set(), machine_made_weight=1.0)
    assert {which for which, _, _ in asked(training, "audio")} == {0}
    assert {which for which, _, _ in asked(training, "visual")} == {0, 2}
    assert objective([made], machine_made_weight=1.0).spoken == []


def test_a_batch_without_words_has_no_language_loss() -> None:
    signs = bare_item("s", modality="audio", audio="a.wav", valence_sign=1)
    training = objective([made_set([signs], ("audio",))])
    batch = Rows(training.model, training.data.sets, training.config).collate(range(5))
    assert training(batch)[1]["language"].item() == 0


def test_the_language_loss_reads_the_tokens_of_the_sample_that_it_asks_about() -> None:
    sounds = rated_set("audio", "expressed")
    training = objective([sounds], works_set(), rated_language_share=1.0, language_batch=2)
    training.spoken = ["audio"]
    collated = Rows(training.model, training.data.sets, training.config).collate(range(5))
    out = training.model.emo_adapter(*collated["rows"].inputs())
    audio = out.audio_tokens.detach().clone().requires_grad_()
    training.language_loss(out._replace(audio_tokens=audio), collated).backward()
    assert audio.grad is not None
    read = audio.grad.abs().amax((1, 2)).nonzero()[:, 0].tolist()
    assert read == [15, 16]  # behind the three rows of five works each


# --- whole trainings ----------------------------------------------------------------------------------------


NAMES = ("awe", "saudade", "fear")


def foreign(index: int) -> dict[str, object]:
    shares = [0.1, 0.1, 0.1]
    shares[index % 3] = 0.8
    return {"emotion_names": NAMES, "emotion_distribution": tuple(shares)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train on two rated films and an image with names of their own, without procedural art."""
    folder = tmp_path_factory.mktemp("runs")
    items = []
    for index in range(2):
        write_film(folder / f"{index}.mkv", 2.0, seed=index)
        about = {"video": f"{index}.mkv", "source": "films", "modality": "audio-visual", **foreign(index)}
        changing = {"valence_series": (-0.5, 0.5, 0.1), "series_rate_hz": 1.0, "reaction_lag_s": 0.2}
        items.append(item(folder, f"film {index}", utterances=("so slow",), **about, **changing))
    write_image(folder / "a.png")
    image = {"image": "a.png", "source": "images", "modality": "visual", "construct": "induced"}
    items.append(item(folder, "image", valence=0.5, **image, **foreign(1)))
    items.append(item(folder, "made", valence=0.5, machine_made=True, **image))
    items.append(item(folder, "unknown", emotion_names=("x", "y"), emotion_distribution=(0.5, 0.5), **image))
    write_manifest(folder / "rated.jsonl", items)
    save_tiny_checkpoint(folder / "align")
    emotion.train(CONFIG_FILE, overrides(folder), None, False)
    return folder


def overrides(folder: Path) -> list[str]:
    names = ", ".join(f"'{name}'" for name in NAMES)
    steps = ("steps=3", "save_every=1", "log_every=1", "batch=2", "workers=0")
    return [
        *SMALL,
        f"runs={folder}",
        f"media_root={folder}",
        f"emotion.ratings=['{folder / 'rated.jsonl'}']",
        f"emotion.emotions=[{names}]",
        "emotion.works=0",
        "emotion.language_batch=2",
        *(f"emotion.optimisation.{step}" for step in steps),
    ]


def test_the_names_stand_in_the_checkpoint_and_in_everything_that_reads_it(runs: Path) -> None:
    assert read_config(runs / "emotion")["model"]["adapter"]["emotions"] == list(NAMES)
    model = load_checkpoint(runs / "emotion")
    assert model.emo_adapter.config.emotions == NAMES
    constants = checkpoint_constants(model)
    assert constants.emotions == NAMES
    perception = Perception(checkpoint_predictor(model))
    perception.encode_frame(np.full((24, 24, 3), 90, np.uint8), 0)
    evidence = perception.read(0.0)
    assert evidence is not None
    assert tuple(evidence.reading.emotions) == NAMES
    assert sum(evidence.reading.emotions.values()) == pytest.approx(1, abs=1e-3)


def test_the_lineage_counts_what_people_rated(runs: Path) -> None:
    lineage = read_config(runs / "emotion")["lineage"]["emotion"]
    films = "films, expressed, audio + visual + audio-visual"
    assert lineage["rated_items"] == {films: 2, "images, induced, visual": 1}
    assert lineage["machine_made_items"] == {}
    assert lineage["machine_made_items_left_out"] == {"images, induced, visual": 1}
    assert lineage["items_without_label"] == {"images, induced, visual": 1}
    assert lineage["rated_windows"] == {films: 8, "images, induced, visual": 24}
    assert lineage["emotion"]["emotions"] == list(NAMES)


def test_every_loss_was_taken(runs: Path) -> None:
    steps = [json.loads(line) for line in (runs / "emotion.training" / "log.jsonl").read_text().splitlines()]
    assert len(steps) == 3
    for name in ("ccc_loss_audio", "ccc_loss_visual", "ccc_loss_audio-visual", "kl", "language"):
        assert all(step[name] > 0 for step in steps), name


def test_a_run_goes_on_with_the_tokens_that_it_encoded(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = {file: file.stat().st_mtime_ns for file in runs.glob("rated-*/*")}
    emotion.train(CONFIG_FILE, overrides(runs), None, True)
    assert {file: file.stat().st_mtime_ns for file in runs.glob("rated-*/*")} == blocks
    printed = capsys.readouterr().out
    assert "| films | audio + visual + audio-visual | expressed | 2 | 8 | 0 | 0 | 0 |" in printed


def test_other_ratings_are_not_resumed(runs: Path) -> None:
    lines = (runs / "rated.jsonl").read_text().splitlines()
    changed = json.loads(lines[-1]) | {"valence": -0.5}
    (runs / "other.jsonl").write_text("\n".join([*lines[:-1], json.dumps(changed)]) + "\n")
    other = [*overrides(runs), f"emotion.ratings=['{runs / 'other.jsonl'}']"]
    with pytest.raises(UserError, match="another configuration or other data"):
        emotion.train(CONFIG_FILE, other, None, True)


def test_one_enhancer_for_both_modalities_is_one_in_the_checkpoint(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "shared"
    emotion.train(CONFIG_FILE, [*overrides(runs), "emotion.shared_enhancer=true"], out, False)
    adapter = load_checkpoint(out).emo_adapter
    assert adapter.audio_enhancer is adapter.visual_enhancer
    assert adapter.audio_enhancer.up.weight.abs().max() > 0
    two = load_checkpoint(runs / "emotion").emo_adapter
    size = sum(p.numel() for p in adapter.audio_enhancer.parameters())
    assert sum(p.numel() for p in two.parameters()) - sum(p.numel() for p in adapter.parameters()) == size


def test_stage_2_needs_a_work(runs: Path) -> None:
    with pytest.raises(UsageError, match=r"set emotion\.ratings or emotion\.works"):
        emotion.train(CONFIG_FILE, [*overrides(runs), "emotion.ratings=[]"], None, False)


@pytest.mark.parametrize("names", ["['awe']", "['awe', 'Awe']", "['awe', ' ']"])
def test_names_that_cannot_be_told_apart_are_refused(names: str) -> None:
    with pytest.raises(UsageError, match=r"emotion\.emotions must be two or more different names"):
        tiny_config(f"emotion.emotions={names}")


def test_a_modality_that_no_set_has_keeps_its_tokens() -> None:
    model = tiny_model(adapter=False)
    sounds = emotion.EmotionData(None, [rated_set("audio", "expressed")])
    adapter = emotion.with_adapter(model, sounds, stage_config()).emo_adapter
    assert torch.equal(adapter.visual_whitening.matrix, torch.eye(64))
    assert not torch.equal(adapter.audio_whitening.matrix, torch.eye(64))
