"""Lists of module names, matched as each library matches them, and bounded against hostile ones."""

from __future__ import annotations

import re
from time import perf_counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vramplan.errors import BadInput
from vramplan.formats.patterns import Dialect, Patterns, bounded

Q = "model.layers.{i}.self_attn.q_proj"


@pytest.mark.parametrize(
    ("entry", "dialect", "module", "layers"),
    [
        # transformers `should_convert_module`: module boundary, wildcard, suffix
        ("model.layers.1", "transformers", Q, {1}),
        ("model.layers.*.self_attn", "transformers", Q, set(range(12))),
        ("q_proj", "transformers", Q, set(range(12))),
        ("self_attn", "transformers", Q, set()),
        ("gate", "transformers", "model.layers.{i}.mlp.gate", set(range(12))),
        ("model.layers.3.mlp.gate", "transformers", "model.layers.{i}.mlp.gate_proj", set()),
        ("visual", "transformers", "visual.merger.mlp.0", set(range(12))),
        ("visual.merger.mlp.0", "transformers", "visual.merger.mlp.0", set(range(12))),
        ("visual.merger.mlp.2", "transformers", "visual.merger.mlp.0", set()),
        # ModelOpt: fnmatch, where layers.1* is 1, 10 and 11, and layers.1.* is 1
        ("model.layers.1*", "glob", Q, {1, 10, 11}),
        ("model.layers.0*", "glob", Q, {0}),
        ("model.layers.1.*", "glob", Q, {1}),
        ("model.layers.10.self_attn*", "glob", Q, {10}),
        ("*.self_attn.*", "glob", Q, set(range(12))),
        ("mtp*", "glob", Q, set()),
        ("*.attn.*", "glob", Q, set()),
        # compressed-tensors: names and regular expressions from the start
        ("re:.*self_attn.*", "compressed-tensors", Q, set(range(12))),
        (r"re:.*mlp\.(gate|up|gate_up|down)_proj.*", "compressed-tensors", "model.layers.{i}.mlp.up_proj", set(range(12))),
        (r"re:.*mlp\.(gate|up|gate_up|down)_proj.*", "compressed-tensors", "model.layers.{i}.mlp.experts.0.up_proj", set()),
        (r"re:.*layers\.(0|11)\..*", "compressed-tensors", Q, {0, 11}),
        (r"re:model\.layers\.\d\..*", "compressed-tensors", Q, set(range(10))),
        ("re:self_attn", "compressed-tensors", Q, set()),
        ("lm_head", "compressed-tensors", "language_model.lm_head", set(range(12))),
        ("model.layers.4.self_attn.q_proj", "compressed-tensors", Q, {4}),
        ("model.layers.4.self_attn", "compressed-tensors", Q, set()),
    ],
)
def test_matches_as_the_library_does(entry: str, dialect: Dialect, module: str, layers: set[int]) -> None:
    patterns = Patterns([entry], dialect)
    assert {i for i in range(12) if patterns.match(module, i)} == layers
    if "{i}" in module and layers not in (set(), set(range(12))):
        assert layers <= set(patterns.apart(module, range(12)))


def test_a_cut_list_stands_for_all_layers() -> None:
    """One layer's module stands for all; a whole layer does not."""
    patterns = Patterns(["model.layers.0*", "model.layers.10.self_attn*"], "glob", cut_short=True)
    assert {i for i in range(12) if patterns.match(Q, i)} == set(range(12))
    assert {i for i in range(12) if patterns.match("model.layers.{i}.mlp.up_proj", i)} == {0}


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+b", "(a*)*", "((a|b)*c)*d", "(.*)*", "(?:x+y)+", "(a|a)*" + "(a|a)*" * 4, ".*a.*b.*c.*d.*e.*f", r"(a)\1", "(?P<x>a)(?P=x)",
     "a" * 301, "(", "[", "*a", "a{1,100}", "(a{1,9}){1,9}", "(?(1)a|b)", "x{99999999999}"],
)  # fmt: skip
def test_a_pattern_that_may_run_away_is_refused(pattern: str) -> None:
    with pytest.raises(BadInput, match="regular expression"):
        bounded(pattern)


@pytest.mark.parametrize(
    "pattern",
    [r".*self_attn.*", r".*mlp\.(gate|up|gate_up|down)_proj.*", r".*\.layers\.\d+\.mlp\.experts\.\d+\..*", r"^lm_head$", r"vision_tower.*",
     r"(?:.*\.)?gate$", r".*[0-9]+\.mlp.*", r".*(q|k|v)_proj"],
)  # fmt: skip
def test_patterns_of_real_checkpoints_are_taken(pattern: str) -> None:
    assert bounded(pattern).pattern == pattern


@settings(deadline=None)
@given(st.text(alphabet="ab.*+?()|[]{}\\1d", max_size=40))
def test_any_pattern_is_refused_or_quick(pattern: str) -> None:
    try:
        compiled = bounded(pattern)
    except BadInput:
        return
    start = perf_counter()
    compiled.match("ab" * 40 + "c")
    assert perf_counter() - start < 0.5


def test_matching_has_a_budget() -> None:
    """Patterns that are each acceptable are refused together once they take too long."""
    patterns = Patterns([f"re:.*a.*a.*a.*{i}z" for i in range(200)], "compressed-tensors")
    start = perf_counter()
    with pytest.raises(BadInput, match="more than 1 s"):
        any(patterns.match("a" * 250, 0) for _ in range(10_000))
    assert perf_counter() - start < 5


def test_too_many_wildcards_and_too_long_entries_are_refused() -> None:
    with pytest.raises(BadInput, match="wildcards"):
        Patterns(["*a*b*c*d*e"], "glob")
    with pytest.raises(BadInput, match="at most"):
        Patterns(["x" * 1000], "glob")


@settings(deadline=None)
@given(st.text(max_size=30), st.sampled_from(["transformers", "glob", "compressed-tensors"]))
def test_an_entry_without_signs_matches_itself(entry: str, dialect: Dialect) -> None:
    if re.search(r"[*?]|\d", entry) or entry.startswith("re:") or "\n" in entry:
        return
    assert Patterns([entry], dialect).match(entry, None)
