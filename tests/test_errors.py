"""The errors' tree, and the nearest match that their messages end in."""

from __future__ import annotations

import pytest

from vramplan import errors
from vramplan.errors import BadFile, BadInput, NotFound, Unknown, Unreachable, VramplanError, nearest


@pytest.mark.parametrize(
    ("error", "parent"),
    [(BadInput, VramplanError), (BadFile, BadInput), (NotFound, BadInput), (Unknown, VramplanError), (Unreachable, VramplanError)],
)
def test_the_tree_is_the_one_that_the_docstring_draws(error: type[Exception], parent: type[Exception]) -> None:
    assert error.__bases__ == (parent,)
    assert error.__name__ in (errors.__doc__ or "")


def test_nearest_names_at_most_n_and_nothing_far_away() -> None:
    assert nearest("contxt_length", ["context_length", "prompt_length", "model"]).startswith("; did you mean 'context_length'")
    assert nearest("LLAMA", ["llama"]) == "; did you mean 'llama'?"
    assert nearest("aaa", ["aab", "aac", "aad"], n=2).count("'") == 4
    assert nearest("zzz", ["context_length"]) == ""
    assert nearest("x", []) == ""
