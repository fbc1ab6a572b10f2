import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import SplineTransformer

from vaemotion.data.relations import (
    AGREEMENT,
    CALMER,
    GAP,
    LEAST_PAIRS,
    MODALITIES,
    Stimulus,
    agreement_pairs,
    calmer_pairs,
    modality_baseline,
)

RNG = np.random.default_rng(0)


def stimuli(kind, arousal):
    return [Stimulus(f"{kind}{k}", float(value)) for k, value in enumerate(arousal)]


POOL = (stimuli("visual", RNG.uniform(-1, 1, 2000)), stimuli("sound", RNG.normal(0, 0.5, 2000).clip(-1, 1)))
MADE = ((AGREEMENT, agreement_pairs(*POOL, 100, 0)), (CALMER, calmer_pairs(*POOL, 100, 0)))


@pytest.mark.parametrize(("relation", "pairs"), MADE, ids=lambda value: getattr(value, "name", ""))
@pytest.mark.parametrize("known", MODALITIES)
def test_one_modalitys_true_arousal_alone_stays_at_chance(relation, pairs, known):
    found = modality_baseline(relation, pairs, known)
    assert found.chance_low <= found.learned <= found.chance_high
    assert found.chance_low <= found.memorized <= found.chance_high
    assert found.pairs >= 100


@pytest.mark.parametrize(("relation", "pairs"), MADE, ids=lambda value: getattr(value, "name", ""))
@pytest.mark.parametrize("known", MODALITIES)
def test_another_learner_stays_at_chance(relation, pairs, known):
    x = np.array([[getattr(pair, known).arousal] for pair in pairs])
    y = [pair.answer for pair in pairs]
    names = [getattr(pair, known).name for pair in pairs]
    model = make_pipeline(SplineTransformer(n_knots=6), LogisticRegression(C=10))
    score = cross_val_score(model, x, y, groups=names, cv=GroupKFold(5)).mean()
    found = modality_baseline(relation, pairs, known)
    assert found.chance_low <= score <= found.chance_high


@pytest.mark.parametrize(("relation", "pairs"), MADE, ids=lambda value: getattr(value, "name", ""))
def test_both_modalities_together_determine_the_answer(relation, pairs):
    for pair in pairs:
        truth = {
            "agree": "yes" if pair.visual.arousal * pair.sound.arousal > 0 else "no",
            "calmer": "picture" if pair.visual.arousal < pair.sound.arousal else "sound",
        }
        assert pair.answer == truth[relation.name]
    assert {pair.answer for pair in pairs} == set(relation.options)


def test_every_stimulus_agrees_once_and_disagrees_once():
    for kind in MODALITIES:
        answers: dict[str, list[str]] = {}
        for pair in MADE[0][1]:
            answers.setdefault(getattr(pair, kind).name, []).append(pair.answer)
        assert all(sorted(both) == ["no", "yes"] for both in answers.values())
        assert modality_baseline(*MADE[0], kind).memorized == 0.5


def test_every_stimulus_inside_a_chain_is_calmer_once_and_more_arousing_once():
    pairs = MADE[1][1]
    ends = []
    for block in {pair.block for pair in pairs}:
        roles: dict[str, list[bool]] = {}
        for pair in (p for p in pairs if p.block == block):
            assert abs(pair.visual.arousal - pair.sound.arousal) >= GAP - 1e-9
            roles.setdefault(pair.visual.name, []).append(pair.answer == "picture")
            roles.setdefault(pair.sound.name, []).append(pair.answer == "sound")
        once = [name for name, calmer in roles.items() if len(calmer) == 1]
        assert len(once) == 2
        assert all(sorted(calmer) == [False, True] for calmer in roles.values() if len(calmer) > 1)
        ends += once
    # Only the ends carry information about the answer, and about as much for both modalities.
    for kind in MODALITIES:
        mine = sum(name.startswith(kind) for name in ends)
        assert modality_baseline(CALMER, pairs, kind).memorized == pytest.approx(0.5 + mine / 2 / len(pairs))
        assert 0.4 <= mine / len(ends) <= 0.6


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 120), st.integers(0, 120), st.integers(0, 5))
def test_blocks_never_share_a_stimulus_and_few_stimuli_make_few_pairs(n_visuals, n_sounds, seed):
    rng = np.random.default_rng(seed)
    visuals = stimuli("visual", rng.uniform(-1, 1, n_visuals))
    sounds = stimuli("sound", rng.uniform(-1, 1, n_sounds))
    for make in (agreement_pairs, calmer_pairs):
        pairs = make(visuals, sounds, 60, seed)
        home: dict[str, int] = {}
        for pair in pairs:
            for name in (pair.visual.name, pair.sound.name):
                assert home.setdefault(name, pair.block) == pair.block
        assert len(pairs) < 60 + 2 * 20
        assert pairs == make(visuals, sounds, 60, seed)


def test_too_few_levels_make_no_chain():
    few = np.repeat(np.linspace(-0.4, 0.4, LEAST_PAIRS), 10)
    assert calmer_pairs(stimuli("visual", few), stimuli("sound", few), 20, 0) == []
