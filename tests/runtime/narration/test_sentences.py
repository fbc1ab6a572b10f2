"""Whole sentences of what language models really said: nothing cut, looped, empty or multi-line is left."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.narration.sentences import count_whole, whole_sentences

# Greedy answers of SmolLM2-135M-Instruct that reached the limit of their tokens.
SPECTER = 'The "Specter of the Unseen" is a 2019 film by the director Takashi, "Specter of the Unseen".'
CONVOLUTED = (
    "The original text is a bit long and convoluted. I'll break it down into smaller parts and provide a "
    "more concise explanation."
)
CUT = {
    f"{SPECTER} The film is a 2019 Japanese anime series, and the film's": SPECTER,
    'The original text is:\n\n"The original text': "",
    "a glass of bourbon, a glass of bourbon, a glass of bourbon": "",
    "The original sentence is:The original sentence is:The": "",
    'The original sentence is: "The new employee was hired by the company to help': "",
    "The": "",
    "": "",
    f"{CONVOLUTED} ...": CONVOLUTED,
    f"{CONVOLUTED}\n\n1. ": CONVOLUTED,
}


@pytest.mark.parametrize(("said", "spoken"), CUT.items())
def test_a_cut_answer_is_kept_as_far_as_its_last_whole_sentence(said: str, spoken: str) -> None:
    assert " ".join(whole_sentences(said, ended=False)) == spoken


@pytest.mark.parametrize(
    "said",
    [
        "a rooster, stirring and pleasant",  # models that speak in phrases
        "fire crackling, very calm and very unpleasant",
        "The sea is a vast and mysterious realm, teeming with life and unending in its own way.",
        "It was painted in 1874.",
        "Ein Hahn kräht; das Bild wirkt hell.",
        "静かな海。",
        "यह एक शांत समुद्र है।",
    ],
)
def test_what_the_model_ended_itself_is_whole(said: str) -> None:
    assert whole_sentences(said, ended=True) == [said]


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize(
    ("said", "sentences"),
    [
        ("**The sea** is calm.\n\n- It is *blue*", ["The sea is calm."]),
        ("# The Sea\n\nThe sea is calm. It", ["The sea is calm."]),
        ("Here are the features:\n\n1. **Color**: It is warm.\n2. It is", ["Color: It is warm."]),
        ("The sea\nis   calm.\t It is \x07blue. The", ["The sea is calm.", "It is blue."]),
        ("It is calm. It is warm. It is calm. It", ["It is calm.", "It is warm."]),
        ("It is calm. It is calm. It is calm. It is calm. It", ["It is calm."]),
        ("She drinks a glass of wine, a glass of wine, a glass of wine, and smiles. She", [
            "She drinks a glass of wine, and smiles."
        ]),
        ("It is a work of art, a work of art, a work of art, a work of art. It is calm. It", [
            "It is a work of art.", "It is calm."
        ]),
        ("A work of art, a sea, a work of art that was made, a work of art. It is calm. It", ["It is calm."]),
        ("It is far, far, far, far away. It", ["It is far away."]),
        ("It is far, far away. It", ["It is far, far away."]),
        ("Mr. J. Smith of the U.S. Army paints, e.g. with No. 5 oil. He", [
            "Mr. J. Smith of the U.S. Army paints, e.g. with No. 5 oil."
        ]),
        ("Dr. Smith paints. He", ["Dr. Smith paints."]),
        ("Is it calm? It is! “Yes,” she says. And", ["Is it calm?", "It is!", "“Yes,” she says."]),
        ('He said: "It is calm. And', ['He said: "It is calm."']),
        ('"It is calm. And', ["It is calm."]),
        ("The sky is bl\ufffd\ufffdue. It", ["The sky is blue."]),
        ("静かな海。赤い空。夜", ["静かな海。", "赤い空。"]),
        ("The <b>sea</b> is calm &amp; `blue`. It", ["The sea is calm & blue."]),
        ("It costs 3.50 dollars, i.e. nothing. It", ["It costs 3.50 dollars, i.e. nothing."]),
        ("🎨 • The sea is calm. It", ["The sea is calm."]),
        ("**The sea is calm. It", ["The sea is calm."]),
        ("... . The sea is calm. It", ["The sea is calm."]),
    ],
)  # fmt: skip
def test_sentences_are_plain_text_in_one_line_and_none_is_said_twice(
    said: str, sentences: list[str], ended: bool
) -> None:
    assert whole_sentences(said, ended=ended) == sentences


@pytest.mark.parametrize("said", ["It costs 3.", "He met Mr.", "It was J.", "in the U.S."])
def test_a_full_stop_that_may_go_on_ends_no_cut_answer(said: str) -> None:
    assert whole_sentences(said, ended=False) == []
    assert whole_sentences(said, ended=True) == [said]


@pytest.mark.parametrize("said", ["The colors are:", "First,", "# ", "***", "“", "...", "🎨", "a calm sea –"])
def test_what_says_nothing_is_nothing(said: str) -> None:
    assert whole_sentences(said, ended=True) == []


def test_a_sentence_is_counted_when_the_next_word_has_come() -> None:
    said = [
        "",
        "It is 3",
        "It is 3.",
        "It is 3.5",
        "It is 3.5 wide.",
        'It is 3.5 wide."',
        'It is 3.5 wide." ',
    ]
    assert [count_whole(text) for text in said] == [0] * 7
    assert count_whole('It is 3.5 wide." The') == 1
    assert count_whole("It is calm. It is warm! The") == 2
    assert count_whole("静かな海。赤") == 1


WORDS = ["The sea", "a glass of wine", " is calm", "e.g.", "Mr.", "3.5", "海", "🎨"]
SIGNS = [".", ". ", "!", "。", ",", ":", '"', "“", "”", "(", ")", "\ufffd", "\x1b", "\ud800"]
MARKDOWN = ["\n", "\n\n", "- ", "1. ", "**", "*", "`", "#", " # ", "<b>", "&lt;"]
PIECES = st.sampled_from([*WORDS, *SIGNS, *MARKDOWN])


@given(st.lists(PIECES, max_size=40).map("".join), st.booleans())
@settings(deadline=None)
def test_whatever_is_said_is_told_in_one_clean_line(said: str, ended: bool) -> None:
    told = whole_sentences(said, ended=ended)
    assert len(told) == len({sentence.casefold() for sentence in told})
    for sentence in told:
        assert sentence.isprintable()
        assert re.search(r"\w", sentence)
        assert "  " not in sentence
        assert sentence == sentence.strip()
        assert sentence.count("“") <= sentence.count("”")
        assert sentence.count('"') % 2 == 0
        assert not re.search(r"\b(\w+ \w+ \w+)\W+\1\b", sentence.casefold())
        assert ended or re.search(r"[.!?。][\"”)]*$", sentence), sentence
