"""The models of the catalogue: their configs as given, found by repository id or by what people call them.

`models.txt` explains its own format. A look-up searches its text and parses one line of it. Parameter counts are not here: they follow
from the config.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from ..errors import NotFound
from .names import Candidate, distance, meant, parse


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """One repository of the catalogue.

    `config` is its config.json: the whole of it (less its volatile keys) where `verbatim`, else the keys that give shapes, so that a
    missing key, quantization_config too, means nothing. `context_length` is in tokens; what is not known is None.
    """

    id: str
    config: Mapping[str, object]
    context_length: int | None
    context_source: str | None
    licence: str | None
    downloads: int | None
    released: str | None
    source: str
    check: str
    note: str | None

    @property
    def verbatim(self) -> bool:
        """Whether `config` is the repository's own config.json."""
        return self.source.startswith("verbatim")


@cache
def _text() -> bytes:
    with open(os.path.join(os.path.dirname(__file__), "models.txt"), "rb") as file:
        return file.read()


@cache
def _words() -> dict[tuple[str, str], str]:
    """(column, word) -> its explanation, from the lines that begin with "@"."""
    head = _text()[: _text().index(b"\n{")].decode().splitlines()
    fields = (line[2:].split("\t") for line in head if line.startswith("@"))
    return {(column, word): text for column, word, text in fields}


@cache
def _lines() -> list[str]:
    """The lines of the models, in the file's order."""
    return [line for line in _text().decode().splitlines() if line[0] not in "#@{"]


@cache
def _ids() -> list[str]:
    """The ids of `_lines`."""
    return [line[: line.index("\t")] for line in _lines()]


@cache
def _squashed() -> list[str]:
    """The `_ids` in lower case and without separators."""
    return "\n".join(_ids()).lower().encode().translate(None, b"-_.").decode().split("\n")


@cache
def official_organisations() -> frozenset[str]:
    """The organisations (in lower case) that publish their own models, from the line "@ official"."""
    return frozenset(_words()["official", "organisations"].lower().split())


def _entry(config: Mapping[str, object], line: str) -> ModelEntry:
    """A model from its line and its architecture's config."""
    given: list[str | None] = [None if column == "-" else column for column in line.split("\t")]
    id, downloads, licence, context, context_source, released, source, check, note = given + [None] * (9 - len(given))
    words = _words()
    return ModelEntry(
        id=id or "",
        config=config,
        context_length=int(context) if context else None,
        context_source=words.get(("context", context_source), context_source) if context_source else None,
        licence=licence,
        downloads=int(downloads) if downloads else None,
        released=released,
        source=words.get(("source", source or "llmfit"), source or ""),
        check=words.get(("check", check or "exact"), check or ""),
        note=note,
    )


@cache
def _lower() -> bytes:
    return _text().lower()


def _exact(id: str) -> ModelEntry | None:
    """The model with this repository id, whatever its case."""
    at = _lower().find(b"\n" + id.lower().encode("utf-8", "replace") + b"\t") + 1
    if not at or "\n" in id or "\t" in id or id[:1] in "#@{":
        return None
    text = _text()
    config = text.rindex(b"\n{", 0, at) + 1
    return _entry(json.loads(text[config : text.index(b"\n", config)]), text[at : text.index(b"\n", at)].decode())


def all_ids() -> list[str]:
    """Every repository id of the catalogue, in alphabetical order."""
    return sorted(_ids(), key=str.lower)


def all_models() -> Iterator[ModelEntry]:
    """Every model of the catalogue, those of one architecture together and with one config object."""
    config: Mapping[str, object] = {}
    for line in _text().decode().splitlines():
        if line[0] == "{":
            config = json.loads(line)
        elif line[0] not in "#@":
            yield _entry(config, line)


def _candidates(words: Iterable[str]) -> list[Candidate]:
    """The repositories whose id holds all of `words`, separators aside."""
    hits = list(zip(_squashed(), _lines(), strict=True))
    for word in sorted(words, key=len, reverse=True):
        piece = word.replace(".", "")
        hits = [hit for hit in hits if piece in hit[0]]
    columns = [line.split("\t", 2) for _, line in hits]
    official = official_organisations()
    return [Candidate(id, id.partition("/")[0].lower() in official, int(n) if n != "-" else 0) for id, n, *_ in columns]


def find_model(name: str) -> ModelEntry:
    """The model that `name` means: a repository id, or a short name ("llama 3.1 8b", "qwen3-30b-a3b", "gemma3:27b").

    An id with an organisation means that repository and no other. How a short name is understood: `vramplan.catalog.names`.
    Raises NotFound, with the nearest ids, for a name that means nothing here or several different models.

    >>> find_model("llama 3.1 8b").id, find_model("qwen/qwen3-8b").config["hidden_size"]
    ('meta-llama/Llama-3.1-8B', 4096)
    """
    name = name.strip()
    entry = _exact(name)
    if entry is not None:
        return entry
    shown = f"model {name[:80]!r}"
    organisation, _, short = name.rpartition("/")
    cores = meant(short, _candidates(parse(short).core)) if len(name) <= 200 else []
    if organisation:  # its name may be spelled anew (Meta-Llama-3.1-8B, Llama-3.1-8B), no more
        theirs = [id for ids in cores for id in ids if id.lower().startswith(organisation.lower() + "/")]
        cores = [[id] for id in theirs if parse(id.rpartition("/")[2]) == parse(short)][:1]
    if len(cores) > 1:
        several = ", ".join(ids[0] for ids in cores[:6]) + (", …" if len(cores) > 6 else "")
        raise NotFound(f"{shown}: may mean several models; name one of {several}")
    entry = _exact(cores[0][0]) if cores else None
    if entry is None:
        raise NotFound(f"{shown}: not in the catalogue{_did_you_mean(name[:80])}")
    return entry


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


def search_models(query: str = "", limit: int = 20) -> list[ModelEntry]:
    """At most `limit` models whose id holds every word of `query`: what it may name first, then official ones, then by downloads."""
    words = tuple(query.lower().replace("_", " ").replace("-", " ").split())
    found = _candidates(words)
    named = {id for ids in meant(query, found) for id in ids} if words else set()
    found.sort(key=lambda one: (one.id not in named, not one.official, -one.downloads, one.id.lower()))
    entries = (_exact(one.id) for one in found[:limit])
    return [entry for entry in entries if entry is not None]
