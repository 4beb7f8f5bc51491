"""The scheme behind nearly all others: one format for linear layers and experts, exceptions by name, the rest as it was.

Knows which *kinds* of weights there are (tensors.Weight.kind); which are excepted, each format's file or a checkpoint's config says.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import BadInput
from ..tensors import Weight
from . import Format
from .dtypes import float_format

if TYPE_CHECKING:
    from .patterns import Patterns


@dataclass(frozen=True, slots=True, kw_only=True)
class Selective:
    """Matrices of nn.Linear and of experts take `linear` (None: none does); `head`, `embed` and `router` theirs, if a scheme reaches them.

    `rules` are tried in order on a matrix's module name: the first that matches decides, None leaving it unquantised; a rule also
    reaches the head and the router. Norms, biases, convolutions and buffers are never quantised. `towers`: vision and audio towers too.
    `columns` must divide a row's length, or the matrix stays as it is.
    """

    name: str
    linear: Format | None
    dtype: str
    head: Format | None = None
    embed: Format | None = None
    experts: Format | None = None
    router: Format | None = None
    rules: Sequence[tuple[Patterns, Format | None]] = ()
    towers: bool = False
    columns: int = 1
    note: str = ""

    @property
    def layered(self) -> bool:
        """Whether a rule names layers one by one."""
        return any(patterns.layered for patterns, _ in self.rules)

    def apart(self, weight: Weight) -> Collection[int]:
        """The layers that a rule may single out."""
        if weight.layers is None or weight.kind not in ("linear", "experts", "router") or len(weight.shape) != 2:
            return ()
        module = module_name(weight)
        return set().union(*(patterns.apart(module, weight.layers) for patterns, _ in self.rules))

    def format_of(self, weight: Weight, layer: int | None) -> Format:
        """The format of `weight` in `layer`."""
        chosen = self._quantised(weight, layer)
        return chosen if chosen is not None and weight.shape[-1] % self.columns == 0 else plain(weight, self.dtype)

    def _quantised(self, weight: Weight, layer: int | None) -> Format | None:
        if len(weight.shape) != 2 or (weight.tower is not None and not self.towers):
            return None
        kind = weight.kind
        if kind == "embed":
            return self.embed
        if kind not in ("linear", "experts", "head", "router") or (kind == "router" and self.router is None):
            return None
        if self.rules:
            module = module_name(weight)
            for patterns, form in self.rules:
                if patterns.match(module, layer):
                    return form
        match kind:
            case "head":
                return self.head
            case "router":
                return self.router
            case "experts" if self.experts is not None:
                return self.experts
        return self.linear


def module_name(weight: Weight) -> str:
    """The module that holds `weight`: `a.{i}.b.weight` -> `a.{i}.b`; of experts, the first one stands for all."""
    name = weight.name.removesuffix(".weight")
    return name.replace("{e}", "0") if weight.kind == "experts" else name


def plain(weight: Weight, dtype: str) -> Format:
    """The format of an unquantised weight: its own dtype where the model states one, else `dtype`."""
    return float_format(weight.dtype or dtype)


def no_options(name: str, options: list[str]) -> None:
    """Raise BadInput if there are any."""
    if options:
        raise BadInput(f"weights {name!r} takes no option {options[0][:30]!r}")


def take_options(name: str, options: list[str], **allowed: int | None) -> dict[str, int | None]:
    """Numbers among `options`: `bits` reads `8bit`, `group` reads `g128`, a flag reads its own name as 1. `allowed` gives the defaults.

    >>> take_options("gptq", ["8bit", "g32"], bits=4, group=128)
    {'bits': 8, 'group': 32}
    """
    found = dict(allowed)
    for option in options:
        if "bits" in allowed and option.endswith("bit") and option[:-3].isdigit():
            found["bits"] = int(option[:-3][:9])
        elif "group" in allowed and option[:1] == "g" and option[1:].isdigit():
            found["group"] = int(option[1:][:9])
        elif option in allowed:
            found[option] = 1
        else:
            known = ", ".join({"bits": "4bit", "group": "g128"}.get(key, key) for key in allowed)
            raise BadInput(f"weights {name!r} has no option {option[:30]!r}; options look like {known}")
    return found
