"""What loading the weights takes beside them: its own peak, before the first step."""

from __future__ import annotations

from collections.abc import Iterable

from ...ledger import Item, Moment
from ...tape import Tape
from ...tensors import Weight
from .recipe import Recipe

SOURCE = "transformers 5.23 core_model_loading.py, convert_and_load_state_dict_in_model"


def loading(tape: Tape, recipe: Recipe) -> list[Item]:
    """What of a base is quantised on the way, or stacked."""
    adapters = recipe.adapters
    converted = [w for w in tape.weights if w.part != "adapters" and (w.kind == "experts" or (adapters and adapters.packed(w)))]
    return [being_loaded(converted, recipe.mixed.compute)]


def being_loaded(converted: Iterable[Weight], itemsize: int) -> Item:
    """Weights that are quantised on the way arrive in 16 bits first, one matrix at a time, and a layer's fused experts are stacked from a
    copy of each; others are read into their place. Nothing is read ahead where it quantises (SOURCE).
    """
    largest = max((weight.numel // weight.repeats * itemsize for weight in converted), default=0)
    why = "the largest matrix that is converted on the way"
    return Item(path=("load", "being converted"), nbytes=largest, alive=frozenset({Moment.LOAD}), why=why, source=SOURCE)
