"""Whole sentences of what a language model said, as plain text in one line.

In: a text as decoded, perhaps cut in the middle, with Markdown, line breaks and loops. Out: its whole
sentences, fit for a wall. Pure functions without a model.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence

from markdown_it import MarkdownIt
from markdown_it.token import Token

from vaemotion.contract.prompts import folded

# Signs that end a sentence (Unicode's property Sentence_Terminal, in the scripts of modern languages).
_WIDE_ENDS = "。！？｡．"  # need no space behind them
_ENDS = re.compile(rf"[.!?…؟۔।॥։።၊။{_WIDE_ENDS}]+")
_LAST_WORD = re.compile(r"[\w.'’-]*$")
_MARKS = re.compile(r"(?<!\w)[*_`#~]+|[*_`#~]+(?!\w)|[*`~]{2,}")  # of Markdown that is not closed
_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_VOWELS = re.compile("[aeiouy]", re.IGNORECASE)
_LONGEST_TITLE = 3  # letters of "Mrs"
_RAMBLING = 3  # times the same four words in a sentence
_SURE_COPIES = 3  # of one or two words, such as "far, far, far"; of a longer phrase two are a loop


def whole_sentences(text: str, *, ended: bool) -> list[str]:
    """Return the whole sentences of ``text``, none of them twice, and none that only repeats itself.

    ``ended``: the text ends where the language model ended it. Then a text without any full stop is whole,
    too, because some models speak in phrases; otherwise a sentence that is cut at the end is left out.
    """
    blocks = [(_without_loops(plain), is_heading) for plain, is_heading in _plain_blocks(text)]
    found: dict[str, str] = {}
    for number, (block, _) in enumerate(blocks, start=1):
        for sentence in _sentences_of(block, ended or number < len(blocks)):
            found.setdefault(folded(sentence), sentence)
    if found or not ended:
        return list(found.values())
    phrases = [block for block, is_heading in blocks if not is_heading] or [block for block, _ in blocks]
    phrase = ", ".join(phrases)
    fit = _WORD.search(phrase) and not _announces(phrase) and not _rambles(phrase)
    return [_quoted(phrase)] if fit else []


def count_whole(text: str) -> int:
    """Return the number of whole sentences of a text that goes on.

    One that may end at the text's end is not counted before the next word has come.
    """
    if not _ENDS.search(text) or text[-1].isspace() or _closes(text[-1]) or _ENDS.fullmatch(text[-1]):
        return 0
    return len(whole_sentences(text, ended=False))


# --- plain text --------------------------------------------------------------------------------------------


@functools.cache
def _markdown() -> MarkdownIt:
    return MarkdownIt("commonmark")


def _plain_blocks(text: str) -> Iterator[tuple[str, bool]]:
    """Yield the paragraphs, headings and list items of Markdown, each in one line; True for a heading."""
    before: Token | None = None
    for token in _markdown().parse("\n".join(line.strip() for line in text.splitlines())):
        if token.type in ("inline", "fence", "code_block"):
            content = token.content if token.children is None else "".join(_inline(token.children))
            if plain := _one_line(content):
                yield plain, before is not None and before.type == "heading_open" and before.markup[0] == "#"
        before = token


def _inline(tokens: Sequence[Token]) -> Iterator[str]:
    """Yield the text of a paragraph's parts, without emphasis, links and HTML."""
    for token in tokens:
        if token.type in ("softbreak", "hardbreak"):
            yield " "
        elif token.type != "html_inline":
            yield token.content


def _one_line(text: str) -> str:
    """Return a text without control characters, broken characters and the marks of unclosed Markdown."""
    signs = (" " if unicodedata.category(sign) in ("Cc", "Cs") else sign for sign in text)
    line = " ".join(_MARKS.sub("", "".join(signs).replace("\ufffd", "")).split())
    # Bullets, dashes and emoji before the first word.
    start = next((i for i, sign in enumerate(line) if sign.isalnum() or _opens(sign)), len(line))
    return line[start:]


def _opens(sign: str) -> bool:
    return sign in "\"'¿¡" or unicodedata.category(sign) in ("Ps", "Pi")


def _closes(sign: str) -> bool:
    return sign in "\"'" or unicodedata.category(sign) in ("Pe", "Pf")


# --- loops -------------------------------------------------------------------------------------------------


def _without_loops(text: str) -> str:
    """Return a text in which a phrase that is repeated at once is said once.

    The signs after the last copy are kept, so that the end of a sentence remains one.
    """
    words = list(_words(text))
    start = 0
    while start < len(words):
        loop = next(_loops(words, start), None)
        if loop is None:
            start += 1
            continue
        first_end, last_end = (words[i - 1][2] for i in loop)
        text = text[:first_end] + text[last_end:]
        words, start = list(_words(text)), 0
    return text


def _loops(words: Sequence[tuple[str, int, int]], start: int) -> Iterator[tuple[int, int]]:
    """Yield the loops that begin at ``start``, shortest phrase first.

    Each is the index after the phrase's first copy, and the index after its last one.
    """
    for length in range(1, (len(words) - start) // 2 + 1):
        phrase = [word for word, _, _ in words[start : start + length]]
        end = start + length
        while [word for word, _, _ in words[end : end + length]] == phrase:
            end += length
        if (end - start) // length >= (2 if length > 2 else _SURE_COPIES):
            yield start + length, end


def _rambles(sentence: str) -> bool:
    """Return True for a sentence that comes back to the same four words again and again."""
    words = [word for word, _, _ in _words(sentence)]
    fours = Counter(zip(*(words[k:] for k in range(4)), strict=False))
    return max(fours.values(), default=0) >= _RAMBLING


def _words(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield each word in small letters, with its start and end. A sign of a script without spaces is one."""
    for found in _WORD.finditer(text):
        if unicodedata.east_asian_width(found[0][0]) == "W":
            yield from ((sign, at, at + 1) for at, sign in enumerate(found[0], start=found.start()))
        else:
            yield found[0].casefold(), found.start(), found.end()


# --- sentences ---------------------------------------------------------------------------------------------


def _sentences_of(block: str, ended: bool) -> Iterator[str]:
    """Yield the whole sentences of one line of plain text."""
    start = 0
    for end in _ends_of(block, ended):
        sentence = block[start:end].strip()
        start = end
        if _WORD.search(sentence) and not _rambles(sentence):
            yield _quoted(sentence)


def _ends_of(text: str, ended: bool) -> Iterator[int]:
    """Yield the positions after each sentence. ``ended``: the text's end is one, if it looks like one."""
    for found in _ENDS.finditer(text):
        end = found.end()
        while end < len(text) and _closes(text[end]):
            end += 1
        rest = text[end:]
        if found[0][-1] in _WIDE_ENDS:
            yield end
        elif not rest:
            if ended or not _may_go_on(text[: found.start()], found[0], at_end=True):
                yield end
        elif (
            rest[0] == " "
            and not (rest[1].islower() or rest[1].isdigit())
            and not _may_go_on(text[: found.start()], found[0], at_end=False)
        ):
            yield end


def _may_go_on(before: str, sign: str, *, at_end: bool) -> bool:
    """Return True for a full stop that may belong to an abbreviation or a number: "Mr.", "U.S.", "3."."""
    found = _LAST_WORD.search(before)
    word = found[0] if found else ""
    if sign != ".":
        return False
    if word.isdigit():
        return at_end or len(word) < 3  # the number of a list, "3.5", "1."
    title = word.isascii() and word.isalpha() and len(word) <= _LONGEST_TITLE and not _VOWELS.search(word)
    return title or "." in word or (len(word) == 1 and word.isalpha())


def _announces(phrase: str) -> bool:
    """Return True for a phrase that promises more: "The colors are:"."""
    return phrase[-1] in ":,;" or unicodedata.category(phrase[-1]) == "Pd"


def _quoted(sentence: str) -> str:
    """Return a sentence whose quotation marks are pairs, where the cut parted them."""
    for opening, closing in (('"', '"'), ("“", "”")):
        count = sentence.count(opening)
        missing = count % 2 if opening == closing else max(0, count - sentence.count(closing))
        if missing and sentence.startswith(opening):
            sentence, missing = sentence[1:].lstrip(), missing - 1
        sentence += closing * missing
    return sentence
