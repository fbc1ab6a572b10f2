"""SentencePiece's BPE, as `tokenizers` writes it for Llama 2 and Mistral, in llama.cpp's form.

In: a `tokenizer.json` with byte fallback. Out: a score for each token instead of the list of merges, and
whether text begins with a space. SentencePiece merges the pair whose result has the best score; `tokenizers`
has a list of pairs instead. A list that scores cannot stand for is refused.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

_SPACE = "\u2581"  # stands for a space within tokens
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]


def scores(model: Mapping[str, Any], whole: Collection[str]) -> dict[str, float]:
    """Return the score of each token that a merge makes: 0 for the first, and less for each after it.

    whole: added tokens, which are found before anything is merged. Raises ValueError.
    """
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    merges = [(left, right) for left, right in pairs]
    known, pieces = set(merges), model["vocab"].keys() - set(whole)
    for token in pieces:
        for cut in range(1, len(token)):
            pair = (token[:cut], token[cut:])
            if pair not in known and all(len(part) == 1 or part in pieces for part in pair):
                raise ValueError(
                    f"tokenizer_json: {pair[0]!r} and {pair[1]!r} are not merged, but llama.cpp would do so, "
                    f"because {token!r} is a token; expected a tokenizer made from a SentencePiece model"
                )
    return {token: -float(rank) for rank, group in enumerate(_groups(merges)) for token in group}


def _groups(merges: Sequence[tuple[str, str]]) -> Iterator[list[str]]:
    """Yield the tokens that merges make, best first; those whose merges alternate have one score.

    These are runs of spaces. Either way the leftmost run grows, until no token is longer.
    """
    made = [left + right for left, right in merges]
    last = {token: number for number, token in enumerate(made)}
    group: dict[str, None] = {}
    end = 0
    for number, token in enumerate(made):
        group[token] = None
        end = max(end, last[token])
        if number == end:
            if len(group) > 1 and len(set("".join(group))) > 1:
                raise ValueError(
                    f"tokenizer_json: the merges that make {', '.join(map(repr, list(group)[:3]))} "
                    "alternate, so that scores cannot stand for them; expected a tokenizer made from a "
                    "SentencePiece model"
                )
            yield list(group)
            group = {}


def problems(tokenizer: Mapping[str, Any]) -> list[str]:
    """List what llama.cpp's SentencePiece cannot do."""
    model = tokenizer["model"]
    found = [f"it lacks the token {token}" for token in BYTE_TOKENS if token not in model["vocab"]][:1]
    if model.get("ignore_merges"):
        found.append("it has ignore_merges")
    if _prefix(tokenizer) is None:
        found.append(
            f"normalizer {tokenizer.get('normalizer')} and pre_tokenizer {tokenizer.get('pre_tokenizer')}: "
            f"expected Prepend({_SPACE!r}) and Replace(' ', {_SPACE!r}), or Metaspace(split=False)"
        )
    if tokenizer.get("normalizer"):
        for added in tokenizer.get("added_tokens") or []:
            if added.get("normalized"):
                found.append(
                    f"the added token {added['content']!r} is searched for in normalized text; set its "
                    '"normalized" to false in tokenizer.json'
                )
    return found


def space_prefix(tokenizer: Mapping[str, Any], *, chat: bool) -> tuple[bool, tuple[str, ...]]:
    """Return whether llama.cpp shall put a space before a text, and in which texts that is not the same.

    chat: prompts begin with a special token.
    """
    prefix = _prefix(tokenizer)
    if prefix == "first" and chat:
        return False, (
            "llama.cpp puts no space before a text without special tokens, where `tokenizers` does; prompts "
            "of the chat template are the same",
        )
    if prefix == "first":
        return True, (
            "llama.cpp puts a space before each text behind a special token, where `tokenizers` puts one "
            "only before the first text",
        )
    if prefix == "missing":
        return True, ("llama.cpp puts a space also before a text that begins with one, unlike `tokenizers`",)
    return prefix == "each", ()


def _prefix(tokenizer: Mapping[str, Any]) -> str | None:
    """Return before which texts between special tokens a space comes.

    "each"; "missing": each that has none; "first": that at the very beginning, if it has none; "no";
    None: neither, and other changes of the text.
    """
    outer, split = tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")
    steps = outer["normalizers"] if outer and outer["type"] == "Sequence" else [outer] if outer else []
    prepended = {"type": "Prepend", "prepend": _SPACE}
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    if split is None and replaced in steps and all(step in (prepended, replaced) for step in steps):
        return {0: "no", 1: "each"}.get(steps.count(prepended))
    if steps or split is None or split.get("type") != "Metaspace" or split.get("split", True):
        return None
    if split.get("replacement") != _SPACE:
        return None
    scheme = split.get("prepend_scheme", "always" if split.get("add_prefix_space", True) else "never")
    return {"always": "missing", "first": "first", "never": "no"}.get(scheme)
