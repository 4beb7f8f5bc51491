"""The models of the catalogue: their configs as given, found by repository id or by what people call them.

`models.txt` explains its own format. A look-up searches its text and parses one line of it; what is more than an exact id is searched by
`search.py`. Parameter counts are not here: they follow from the config.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache


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


@cache
def model_lines() -> list[str]:
    """The lines of the models, in the file's order: the columns that the head of models.txt explains, the id and the downloads first."""
    return [line for line in _text().decode().splitlines() if line[0] not in "#@{"]


def all_ids() -> list[str]:
    """Every repository id of the catalogue, in alphabetical order."""
    return sorted((line.partition("\t")[0] for line in model_lines()), key=str.lower)


def all_models() -> Iterator[ModelEntry]:
    """Every model of the catalogue, those of one architecture together and with one config object."""
    config: Mapping[str, object] = {}
    for line in _text().decode().splitlines():
        if line[0] == "{":
            config = json.loads(line)
        elif line[0] not in "#@":
            yield _entry(config, line)


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
    from .search import meant_id

    return find_model(meant_id(name))


def search_models(query: str = "", limit: int = 20) -> list[ModelEntry]:
    """At most `limit` models whose id holds every word of `query`: what it may name first, then official ones, then by downloads."""
    from .search import ranked_ids

    entries = (_exact(id) for id in ranked_ids(query)[:limit])
    return [entry for entry in entries if entry is not None]
