"""What must hold for every estimate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import ENGINES, MODELS, scenarios

from vramplan import estimate, inspect, scenario
from vramplan.ledger import Item, Moment, ledger
from vramplan.units import gib, parse_size

few = settings(max_examples=60, deadline=None)
moments = st.frozensets(st.sampled_from(list(Moment)), min_size=1)
items = st.builds(
    Item,
    path=st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(tuple),
    nbytes=st.integers(0, 2**50),
    alive=moments,
    why=st.just(""),
    source=st.just(""),
)


@given(st.lists(items, max_size=20), st.sampled_from(list(Moment)), st.integers(1, 5))
def test_the_tree_sums_to_the_total_at_every_depth(entries: list[Item], moment: Moment, depth: int) -> None:
    made = ledger(entries)
    assert sum(made.tree(moment, depth).values()) == made.at(moment) == made.total(moment=moment)
    assert made.peak()[1] == max(made.at(m) for m in Moment)
    for path, nbytes in made.tree(moment, depth).items():
        assert made.total(*path, moment=moment) >= nbytes


@few
@given(scenarios())
def test_every_answer_adds_up(given_: dict[str, Any]) -> None:
    answer = estimate(scenario(given_))
    moment, peak = answer.peak
    for depth in (1, 2, 3):
        assert sum(answer.ledger.tree(moment, depth).values()) == peak
    assert peak >= answer.quantities["weights"] > 0
    assert all(peak >= answer.ledger.at(m) for m in Moment)
    assert (answer.fits, answer.headroom) == ((None, None) if answer.gpu is None else (answer.room >= peak, answer.room - peak))  # type: ignore[operator]


def numbers(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Every number of a JSON value with its path."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from numbers(entry, f"{path}.{key}")
    elif isinstance(value, list):
        for entry in value:
            yield from numbers(entry, path)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value


SHARES = (".scenario.gpu_memory_utilization", ".likelihood", ".speed.")
"""What is no count."""


@few
@given(scenarios())
def test_bytes_and_counts_are_integers_everywhere(given_: dict[str, Any]) -> None:
    for path, number in numbers(estimate(scenario(given_)).to_dict()):
        share = path in (".scenario.gpu_memory_utilization", ".likelihood") or path.startswith(".speed.")
        assert type(number) is int or share, (path, number, type(number))


def peak(given_: dict[str, Any], **more: Any) -> int:
    """The peak; for llama.cpp's fixed context the same."""
    return estimate(scenario({**given_, **more})).peak[1]


@few
@given(scenarios(), st.integers(1, 512))
def test_more_context_never_takes_less(given_: dict[str, Any], more: int) -> None:
    # A pass of llama.cpp is never longer than its context, so that a short one has a smaller graph too.
    assert peak(given_, context_length=given_["context_length"] + more) >= peak(given_)


@few
@given(scenarios(), st.integers(1, 64))
def test_more_sequences_never_take_less(given_: dict[str, Any], more: int) -> None:
    """But for llama.cpp's compute buffer: sequences share its context, and each attends to its own part, with fewer scores.

    Its own planner says so: Llama-3.2-1B with -c 16384 and no flash attention takes 1,126 MB for one, 573 for two, 296 for four.
    """
    one, several = (estimate(scenario({**given_, "sequences": given_["sequences"] + n})) for n in (0, more))
    if given_["engine"] == "llama.cpp":
        assert all(several.quantities[part] >= one.quantities[part] for part in ("weights", "kv_cache"))
    else:
        assert several.peak[1] >= one.peak[1]


@few
@given(scenarios(), st.integers(1, 512))
def test_a_longer_prompt_never_takes_less(given_: dict[str, Any], more: int) -> None:
    longer = min(given_["prompt_length"] + more, given_["context_length"])
    assert peak(given_, prompt_length=longer) >= peak(given_)


@few
@given(
    st.sampled_from(["meta-llama/Llama-3.1-8B", "Qwen/Qwen3-30B-A3B", "deepseek-ai/DeepSeek-V2-Lite"]),
    st.integers(1, 16),
    st.integers(2, 8),
)
def test_full_attention_s_cache_is_linear_in_tokens(model: str, pages: int, times: int) -> None:
    for engine in ENGINES:
        one, many = (
            estimate(model, engine=engine, context_length=256 * n, prompt_length=1).ledger.total("kv cache", moment=Moment.DECODE)
            for n in (pages, pages * times)
        )
        assert many == times * one


@few
@given(st.sampled_from(MODELS), st.integers(1, 10**6), st.integers(0, 10**6))
def test_a_window_never_keeps_more_than_the_full_cache(model: str, tokens: int, more: int) -> None:
    found = inspect(model)
    for cache in found.caches:
        assert cache.kept(tokens) <= tokens
        assert cache.kept(tokens) <= cache.kept(tokens + more)
    assert found.cache_nbytes(tokens) <= found.cache_nbytes(tokens + more)


@given(st.integers(0, 2**60))
def test_what_is_printed_is_read_back(nbytes: int) -> None:
    text = gib(nbytes).replace(",", "")
    unit = {"GiB": 2**30 // 100, "MiB": 2**20 // 10, "KiB": 2**10 // 10, "B": 0}[text.split()[1]]
    assert abs(parse_size(text) - nbytes) <= unit / 2 + 1 + nbytes // 2**52
    assert parse_size(f"{nbytes}B") == parse_size(nbytes) == nbytes


@given(st.integers(0, 10**6), st.integers(0, 10**6 - 1), st.sampled_from(["KiB", "MiB", "GiB", "TiB", "KB", "MB", "GB", "TB"]))
def test_sizes_are_floored_to_the_byte(whole: int, fraction: int, unit: str) -> None:
    scale = parse_size(f"1{unit}")
    assert parse_size(f"{whole}.{fraction:06d} {unit}") == (whole * 10**6 + fraction) * scale // 10**6
    assert parse_size("1 GiB") != parse_size("1 GB")


@pytest.mark.parametrize("engine", ENGINES)
def test_two_sequences_of_transformers_take_twice_the_cache(engine: str) -> None:
    """vLLM's peak holds one request whatever may run, llama.cpp's slots share the context."""
    one, two = (
        estimate("meta-llama/Llama-3.1-8B", engine=engine, context_length=512, prompt_length=1, sequences=n).ledger.total(
            "kv cache", moment=Moment.DECODE
        )
        for n in (1, 2)
    )
    assert two == (2 if engine == "transformers" else 1) * one
