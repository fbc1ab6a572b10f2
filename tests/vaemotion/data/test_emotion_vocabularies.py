from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaemotion.contract.emotions import EMOTIONS
from vaemotion.data.emotion_vocabularies import mapped_distribution, vocabularies
from vaemotion.data.manifest.item import Item

SONG = Item(
    id="a",
    audio="a.wav",
    pairing="none",
    task="emotion",
    modality="audio",
    construct="induced",
    split="train",
    work_id="a",
    creator_id="a",
    source="s",
    license="CC0-1.0",
    sha256="0" * 64,
)


def voted(vocabulary: str, **shares: float) -> Item:
    names = vocabularies()[vocabulary].names
    assert set(shares) <= set(names)
    return replace(SONG, emotion_names=names, emotion_distribution=tuple(shares.get(n, 0) for n in names))


def mapped(item: Item, target: tuple[str, ...] = EMOTIONS) -> dict[str, float] | None:
    found = mapped_distribution(item, target)
    return None if found is None else {n: round(v, 6) for n, v in zip(target, found, strict=True) if v}


def test_every_entry_of_the_table_names_what_its_vocabularies_have():
    known = vocabularies()
    assert known["artemis"].names == EMOTIONS
    for name, vocabulary in known.items():
        assert len(set(vocabulary.names)) == len(vocabulary.names), name
        assert set(vocabulary.same) <= set(vocabulary.names), name
        assert set(vocabulary.same.values()) <= set(EMOTIONS), name
        assert not set(vocabulary.same) & set(EMOTIONS), f"{name} maps a name away that ArtEmis has, too"


def test_several_names_go_to_one_and_the_same_name_stays():
    votes = voted("gems-9", power=0.25, joyful_activation=0.25, sadness=0.5)
    assert mapped(votes) == {"excitement": 0.5, "sadness": 0.5}


def test_votes_without_a_counterpart_are_dropped_while_at_least_half_remain():
    assert mapped(voted("gems-9", calmness=0.5, nostalgia=0.5)) == {"contentment": 1}
    assert mapped(voted("wikiart", fear=0.3, anger=0.3, shame=0.4)) == {"fear": 0.5, "anger": 0.5}
    assert mapped(voted("gems-9", calmness=0.49, nostalgia=0.51)) is None


def test_items_without_names_have_artemis_names_and_those_without_votes_none():
    shares = (0.5, 0, 0, 0, 0, 0, 0, 0, 0.5)
    item = replace(SONG, emotion_distribution=shares)
    assert mapped_distribution(item, EMOTIONS) == shares
    assert mapped_distribution(item, EMOTIONS[::-1]) == shares[::-1]
    assert mapped_distribution(SONG, EMOTIONS) is None
    assert mapped_distribution(replace(SONG, valence_sign=1, arousal_sign=1), EMOTIONS) is None


def test_other_targets_and_unknown_vocabularies_keep_the_names_that_they_share():
    own = replace(SONG, emotion_names=("Awe", "boredom"), emotion_distribution=(0.75, 0.25))
    assert mapped(own) == {"awe": 1}
    assert mapped(own, ("boredom", "awe")) == {"boredom": 0.25, "awe": 0.75}
    # A name that the target has itself is not mapped away.
    assert mapped(voted("gems-9", power=1), ("power", "excitement")) == {"power": 1}
    assert mapped(voted("gems-9", power=1), ("excitement", "fear")) == {"excitement": 1}


@given(st.sampled_from(["gems-9", "gems-27", "wikiart", "artemis"]), st.data())
def test_what_is_mapped_is_a_distribution(name, data):
    names = vocabularies()[name].names
    weights = data.draw(st.lists(st.floats(0, 1), min_size=len(names), max_size=len(names)))
    total = sum(weights)
    if total < 1e-3:
        return
    item = replace(SONG, emotion_names=names, emotion_distribution=tuple(w / total for w in weights))
    found = mapped_distribution(item, EMOTIONS)
    if found is not None:
        assert min(found) >= 0
        assert sum(found) == pytest.approx(1)
