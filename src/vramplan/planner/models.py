"""The largest models of the catalogue that fit as a scenario says; of one architecture with the same sizes one is asked for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from ..catalog.models import all_models, official_organisations
from ..errors import BadInput, NotFound
from ..estimate import Estimate
from ..scenario import Scenario
from .trying import Tries, needs_gpu


def largest_models(
    asked: Scenario, query: str = "", *, limit: int = 10, progress: Callable[[int], object] = lambda done: None
) -> list[Estimate]:
    """The `limit` largest models by parameters that fit as `asked`, whose model is not looked at; one of each architecture and size.

    Only those whose id holds every word of `query`.

    Interrupted, it answers with those seen so far. `progress` is told how many were tried.
    """
    needs_gpu(asked, "max model")
    found: list[Estimate] = []
    refused: list[str] = []
    done = 0
    try:
        for done, name in enumerate(_named(query.lower().replace("-", " ").replace("_", " ").split()), 1):
            tries = Tries(replace(asked, model=name))
            answer = tries.answer({})
            if answer is None:
                refused.append(tries.refusal({}) or "")
            elif tries.fits({}):
                found.append(answer)
            progress(done)
    except KeyboardInterrupt:
        pass
    if not done:
        raise NotFound(f"max model: no model of the catalogue is called {query!r}")
    if len(refused) == done:
        raise BadInput(refused[-1])
    return sorted(found, key=lambda answer: (-answer.facts["parameters"], answer.model.id))[:limit]


def _named(words: Sequence[str]) -> Iterator[str]:
    """Of each architecture and size the model whose id holds all of `words` that is official, or else is loaded most."""
    official = official_organisations()
    for _, alike in groupby(all_models(), key=lambda entry: id(entry.config)):
        named = [entry for entry in alike if all(word in entry.id.lower().replace("-", " ").replace("_", " ") for word in words)]
        if named:
            yield max(named, key=lambda one: (one.id.partition("/")[0].lower() in official, one.downloads or 0)).id
