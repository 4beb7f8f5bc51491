"""Views of a ledger made by hand."""

from __future__ import annotations

from vramplan.ledger import Item, Ledger, Moment, ledger

P, D, S = Moment.PREFILL, Moment.DECODE, Moment.STEP


def item(path: str, nbytes: int, *alive: Moment) -> Item:
    return Item(path=tuple(path.split("/")), nbytes=nbytes, alive=frozenset(alive), why="", source="")


LEDGER = ledger(
    [
        item("weights/mlp/up", 100, P, D),
        item("weights/mlp/down", 50, P, D),
        item("weights/head", 10, P, D),
        item("activations/prefill", 30, P),
        item("kv/keys", 7, P),
        item("kv/keys", 40, D),
        item("empty", 0, P, D),
    ]
)


def test_empty_items_are_left_out() -> None:
    assert len(LEDGER.items) == 6


def test_the_peak_is_the_moment_with_most_alive() -> None:
    assert (LEDGER.at(P), LEDGER.at(D), LEDGER.at(S)) == (197, 200, 0)
    assert LEDGER.peak() == (D, 200)


def test_of_equal_moments_the_earliest_is_the_peak() -> None:
    assert ledger([item("a", 5, D), item("b", 5, P)]).peak() == (P, 5)


def test_an_empty_ledger_peaks_at_nothing() -> None:
    assert Ledger(()).peak() == (Moment.LOAD, 0)


def test_totals_below_a_path_are_of_one_moment_or_of_all() -> None:
    assert LEDGER.total("weights") == 160
    assert LEDGER.total("weights", "mlp") == 150
    assert LEDGER.total("kv") == 47
    assert LEDGER.total("kv", moment=P) == 7
    assert LEDGER.total("wei") == 0


def test_the_tree_sums_by_the_first_parts_of_the_path() -> None:
    assert LEDGER.tree(D) == {("weights",): 160, ("kv",): 40}
    assert LEDGER.tree(P, depth=2) == {("weights", "mlp"): 150, ("weights", "head"): 10, ("activations", "prefill"): 30, ("kv", "keys"): 7}
