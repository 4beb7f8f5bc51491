"""How many users a served model has room for: the sequences of the longest length whose caches lie on the GPU at once."""

from __future__ import annotations

from ..errors import BadInput
from ..estimate import Estimate
from ..ledger import Moment
from ..scenario import Scenario
from .trying import Change

POOLED = ("vllm", "sglang", "tensorrt-llm", "lmdeploy")
"""Engines whose cache is a pool for as many sequences as there is room; the others make it for all that the scenario names."""


def for_users(asked: Scenario, engine: str | None, users: int) -> Change:
    """The change that serves so many, each with a sequence as long as asked: llama.cpp's `-c` is the length of all slots together."""
    if engine != "llama.cpp" or users == 1:
        return {"sequences": users}
    if asked.context_length is None:
        raise BadInput("sequences: how long is each? name --context")
    return {"sequences": users, "context_length": users * asked.context_length}


def held(answer: Estimate) -> int:
    """Sequences of the scenario's longest length that are held at once, where it fits."""
    asked = answer.scenario
    if asked.engine not in POOLED:
        return asked.sequences or 1
    tokens, length = answer.facts.get("kv_tokens"), asked.context_length
    return tokens // length if tokens and length else asked.sequences or 1


def spare(answer: Estimate, users: int) -> int | None:
    """Bytes to spare with so many `users`, each with a sequence of the longest length; negative where they are missing, None without a GPU.

    A pool is as large as it can be, so what the users need of it is their share of its tokens.
    """
    if answer.headroom is None or answer.scenario.engine not in POOLED or users <= 1:
        return answer.headroom
    pool, tokens = answer.facts.get("kv_cache", 0), answer.facts.get("kv_tokens", 0)
    length = answer.scenario.context_length or 0
    if not tokens:
        return answer.headroom if answer.headroom < 0 else -answer.ledger.total("kv cache", moment=Moment.DECODE) * users
    return min(answer.headroom, pool - pool * users * length // tokens)
