"""Search over the ids of the catalogue: which one a short name means, which ones are near, which ones a query lists. Knows no configs."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from ..errors import NotFound
from .models import model_lines, official_organisations
from .names import Candidate, distance, meant, parse


@cache
def _ids() -> list[str]:
    """The ids, in the order of `model_lines`."""
    return [line[: line.index("\t")] for line in model_lines()]


@cache
def _squashed() -> list[str]:
    """The `_ids` in lower case and without separators."""
    return "\n".join(_ids()).lower().encode().translate(None, b"-_.").decode().split("\n")


def _candidates(words: Iterable[str]) -> list[Candidate]:
    """The repositories whose id holds all of `words`, separators aside."""
    squashed, lines = _squashed(), model_lines()
    hits = list(range(len(lines)))
    for word in sorted(words, key=len, reverse=True):
        piece = word.replace(".", "")
        hits = [hit for hit in hits if piece in squashed[hit]]
    columns = [lines[hit].split("\t", 2) for hit in hits]
    official = official_organisations()
    return [Candidate(id, id.partition("/")[0].lower() in official, int(n) if n != "-" else 0) for id, n, *_ in columns]


def meant_id(name: str) -> str:
    """The id that a short name means, or one with an organisation whose repository is spelled a little differently.

    Raises NotFound, with the nearest ids, for a name that means nothing here or several different models.
    """
    shown = f"model {name[:80]!r}"
    organisation, _, short = name.rpartition("/")
    cores = meant(short, _candidates(parse(short).core)) if len(name) <= 200 else []
    if organisation:  # its name may be spelled anew (Meta-Llama-3.1-8B, Llama-3.1-8B), no more
        theirs = [id for ids in cores for id in ids if id.lower().startswith(organisation.lower() + "/")]
        cores = [[id] for id in theirs if parse(id.rpartition("/")[2]) == parse(short)][:1]
    if len(cores) > 1:
        several = ", ".join(ids[0] for ids in cores[:6]) + (", …" if len(cores) > 6 else "")
        raise NotFound(f"{shown}: may mean several models; name one of {several}")
    if not cores:
        raise NotFound(f"{shown}: not in the catalogue{_did_you_mean(name[:80])}")
    return cores[0][0]


def ranked_ids(query: str) -> list[str]:
    """The ids that hold every word of `query`: what it may name first, then official ones, then by downloads."""
    found = _candidates(query.lower().replace("_", " ").replace("-", " ").split())
    named = [id for ids in meant(query, found) for id in ids]
    rank = {id: place for place, id in enumerate(named)}
    found.sort(key=lambda one: (rank.get(one.id, len(rank)), not one.official, -one.downloads, one.id.lower()))
    return [one.id for one in found]


def _did_you_mean(name: str, n: int = 3) -> str:
    """The end of a message: ids that hold all words of `name`, or look most like it (by pairs of letters in common, then difflib)."""
    from difflib import SequenceMatcher

    asked = parse(name.rpartition("/")[2])
    if len(asked.key) < 3:
        return ""
    likely = [(one, parse(one.id.rpartition("/")[2])) for one in _candidates(asked.core)]
    ids = [one.id for one, has in sorted(likely, key=lambda pair: (not pair[0].official, distance(asked, pair[1]), -pair[0].downloads))]
    if not ids:
        pairs = {asked.key[i : i + 2] for i in range(len(asked.key) - 1)}
        common = [(sum([pair in text for pair in pairs]) - len(text) / 4, id) for text, id in zip(_squashed(), _ids(), strict=True)]
        matcher = SequenceMatcher(b=asked.key, autojunk=False)
        scored = []
        for _, id in sorted(common, reverse=True)[:60]:
            matcher.set_seq1(parse(id.rpartition("/")[2]).key)
            scored.append((-matcher.ratio(), id))
        ids = [id for ratio, id in sorted(scored) if ratio <= -0.6]
    return f"; did you mean {' or '.join(repr(id) for id in ids[:n])}?" if ids else ""
