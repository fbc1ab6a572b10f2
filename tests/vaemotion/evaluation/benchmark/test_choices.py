import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from tests.vaemotion.evaluation.benchmark.rows import answer
from vaemotion.data.art.contents import CONTENT_CLASSES
from vaemotion.evaluation.benchmark.choices import choice_results, listed_results, matched_option, normalized
from vaemotion.evaluation.benchmark.rows import Bootstrap

BOOTSTRAP = Bootstrap(50, 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rooster", "rooster"),
        ("  A Rooster.\n", "rooster"),
        ("the   sea\twaves!", "sea waves"),
        ("“An abstract shape”", "abstract shape"),
        ("ＤＯＧ bark", "dog bark"),
        ("something else", "something else"),
        ("a", "a"),
        ("the the bell", "the bell"),
        ("", ""),
        ("...", ""),
    ],
)
def test_case_punctuation_around_and_a_leading_article_do_not_count(text, expected):
    assert normalized(text) == expected


@pytest.mark.parametrize("name", CONTENT_CLASSES)
def test_every_class_is_found_in_what_a_model_would_write(name):
    for text in (name, f" {name}.", f"A {name.upper()}", f'"{name}"'):
        assert matched_option(text, CONTENT_CLASSES) == CONTENT_CLASSES.index(name)


@pytest.mark.parametrize("name", CONTENT_CLASSES)
def test_every_class_is_found_in_a_sentence_that_names_it(name):
    for text in (
        f"The sound in the clip is {name}.",
        f"It's a {name.title()}, calm.",
        f"I hear a {name}\nand",
    ):
        assert matched_option(text, CONTENT_CLASSES) == CONTENT_CLASSES.index(name)


def test_an_option_within_a_longer_one_is_not_named_by_it():
    options = ("dog", "dog bark", "bark")
    assert matched_option("I hear a dog bark.", options) == 1
    assert matched_option("I hear a dog.", options) == 0
    assert matched_option("A dog bark or a bell", (*options, "bell")) is None


@pytest.mark.parametrize("text", ["", "roosters", "bell or drum", "I hear a bell, no drum", "sea-waves", "1"])
def test_a_text_that_is_no_option_is_unparsable(text):
    assert matched_option(text, CONTENT_CLASSES) is None


def test_options_that_are_one_once_normalized_cannot_be_told_apart():
    assert matched_option("bell", ("a bell", "The bell", "drum")) is None
    assert matched_option("drum", ("a bell", "The bell", "drum")) == 2


def test_both_scorings_are_what_scikit_learn_computes():
    rng = np.random.default_rng(0)
    options = ("bell", "drum", "piano")
    truth, chosen = rng.integers(0, 3, 60), rng.integers(0, 3, 60)
    spoken = rng.integers(0, 4, (60, 2))  # 3: nonsense
    said = [*options, "well"]
    rows = [
        answer(i, options, int(truth[i]), int(chosen[i]), [f"A {said[k]}." for k in spoken[i]])
        for i in range(60)
    ]
    (unlisted,), (listed,) = choice_results(rows, BOOTSTRAP), listed_results(rows, BOOTSTRAP)
    assert unlisted.uar.value == pytest.approx(balanced_accuracy_score(truth, chosen))
    assert unlisted.macro_f1.value == pytest.approx(f1_score(truth, chosen, average="macro"))
    assert unlisted.accuracy.value == pytest.approx((truth == chosen).mean())
    twice, flat = np.repeat(truth, 2), spoken.ravel()
    assert listed.texts == 120
    assert listed.rotations == 2
    assert listed.parse_rate.value == pytest.approx((flat < 3).mean())
    assert listed.accuracy.value == pytest.approx((flat == twice).mean())
    assert listed.circular.value == pytest.approx((spoken == truth[:, None]).all(1).mean())
    assert (listed.chance, listed.circular_chance) == pytest.approx((1 / 3, 1 / 9))
    recalls = [(flat[twice == k] == k).mean() for k in range(3)]
    assert listed.uar.value == pytest.approx(np.mean(recalls))
    scores = f1_score(twice, flat, average="macro", labels=[0, 1, 2])
    assert listed.macro_f1.value == pytest.approx(scores)
    for figure in (unlisted.uar, unlisted.macro_f1, listed.parse_rate, listed.accuracy, listed.circular):
        assert figure.low < figure.value < figure.high


def test_a_model_that_always_takes_the_first_place_is_right_by_chance_and_never_under_all_rotations():
    options = ("bell", "drum")
    rows = [answer(i, options, i % 2, 0, ["bell", "drum"]) for i in range(40)]
    (listed,) = listed_results(rows, BOOTSTRAP)
    assert listed.accuracy.value == 0.5
    assert listed.circular.value == 0


def test_items_that_were_not_written_about_have_no_listed_row():
    assert listed_results([answer(0, ("bell", "drum"), 0, 0, [])], BOOTSTRAP) == ()
