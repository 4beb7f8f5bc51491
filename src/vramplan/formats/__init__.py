"""Number formats: how many bytes a matrix takes, and which of a model's weights a quantisation scheme touches.

A `Format` is the layout of one matrix, in integers: packed elements, and the scales, zero points and tables beside them. A `Scheme`
gives every weight of a tape its format: what a user asks for (`scheme("nf4")`), or what a checkpoint's own `quantization_config` states
(`scheme_from_config`). One file per group of formats; a file is found by its `NAMES = (...)` and `METHODS = (...)` lines, and imported
only when one of its formats is asked for. Nothing here knows engines or GPUs: that an engine repacks, pads or moves a matrix is its own
affair.

Names are `base` or `base-option-option`: `gptq-8bit-g32`, `nf4-double`, `exl3-4.0bpw-h8`, `Q4_K_M`; upper or lower case.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ..discovery import declared
from ..errors import BadInput, NotFound, Unknown, nearest
from ..tensors import Weight

if TYPE_CHECKING:
    from .gguf_facts import ModelFacts

__all__ = ["Extra", "Format", "Scheme", "Share", "is_gguf", "scheme", "scheme_from_config", "scheme_names", "weights_nbytes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Extra:
    """What a matrix carries beside its elements: `nbytes` for every tile of `tile` = (rows, columns), a 0 meaning all of them.

    (1, 128): a group of 128 along a row; (1, 0): a row; (0, 1): a column; (0, 0): the matrix; (128, 128): a square block. `flat` counts
    tile[1] elements in storage order, across rows. What is not `loaded` stands in the file only.
    """

    what: str
    nbytes: int
    tile: tuple[int, int] = (0, 0)
    flat: bool = False
    loaded: bool = True

    def __str__(self) -> str:
        high, wide = self.tile
        if self.flat:
            per = f"per {wide} elements"
        elif (high, wide) in ((0, 0), (1, 0), (0, 1)):
            per = {(0, 0): "per matrix", (1, 0): "per row", (0, 1): "per column"}[high, wide]
        else:
            per = f"per {high} × {wide}"
        return f"{self.what} {self.nbytes} B {per}"

    def count(self, rows: int, cols: int) -> int:
        """How many of it a matrix [rows, cols] carries."""
        high, wide = self.tile
        if self.flat:
            return -(-rows * cols // wide)
        return (-(-rows // high) if high else 1) * (-(-cols // wide) if wide else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """The layout of one matrix: `block_bytes` for every `block` elements, and `extras`.

    >>> q4_k = Format(name="Q4_K", block=256, block_bytes=144)
    >>> q4_k.nbytes(4096, 4096), q4_k.bits
    (9437184, 4.5)
    """

    name: str
    block: int
    block_bytes: int
    extras: tuple[Extra, ...] = ()

    def nbytes(self, rows: int, cols: int, matrices: int = 1, *, stored: bool = False) -> int:
        """Bytes of `matrices` matrices [rows, cols] in memory, or (`stored`) in the checkpoint's file."""
        total = -(-rows * cols // self.block) * self.block_bytes
        for extra in self.extras:
            if extra.loaded or stored:
                total += extra.count(rows, cols) * extra.nbytes
        return total * matrices

    @property
    def bits(self) -> float:
        """Bits per element of the packed elements alone: a lower bound of what a matrix takes."""
        return self.block_bytes * 8 / self.block

    @property
    def layout(self) -> str:
        """Bytes per element, and what stands beside them in memory: what an explanation prints.

        >>> Format(name="Q4_K", block=256, block_bytes=144).layout
        'Q4_K, 144/256 B'
        """
        size = f"{self.block_bytes} B" if self.block == 1 else f"{self.block_bytes}/{self.block} B"
        return ", ".join([self.name, " + ".join([size, *(str(extra) for extra in self.extras if extra.loaded)])])


class Scheme(Protocol):
    """Which format each weight takes."""

    @property
    def name(self) -> str:
        """As the user or the checkpoint calls it."""

    @property
    def note(self) -> str:
        """What had to be assumed to answer, or an empty string."""

    @property
    def layered(self) -> bool:
        """Whether any answer depends on the layer's index; only then need a caller go through the layers."""

    def apart(self, weight: Weight) -> Collection[int]:
        """The layers in which `weight` may take another format than in all others, where it takes one."""

    def format_of(self, weight: Weight, layer: int | None) -> Format:
        """The format of `weight` in `layer` (None for a weight outside the layers)."""


class Share(NamedTuple):
    """Some layers of a weight that share a format: `layers` is None for a weight outside the layers. `nbytes` are those of all copies."""

    weight: Weight
    format: Format
    layers: tuple[int, ...] | None
    nbytes: int


def weights_nbytes(weights: Iterable[Weight], scheme: Scheme, *, stored: bool = False) -> Iterator[Share]:
    """Every weight with its format and bytes, in memory or (`stored`) in the file; split by format where layers differ."""
    layered = scheme.layered
    for weight in weights:
        rows, cols = matrix(weight)
        layers = weight.layers
        apart = frozenset(scheme.apart(weight)) if layered and layers else ()
        if layers is None or not apart:
            form = scheme.format_of(weight, layers[0] if layers else None)
            yield Share(weight, form, layers, form.nbytes(rows, cols, weight.copies * weight.repeats, stored=stored))
            continue
        split: dict[Format, list[int]] = {}
        common = None
        for layer in layers:
            if layer in apart:
                form = scheme.format_of(weight, layer)
            else:
                form = common = common or scheme.format_of(weight, layer)
            split.setdefault(form, []).append(layer)
        for form, some in split.items():
            yield Share(weight, form, tuple(some), form.nbytes(rows, cols, weight.copies * len(some), stored=stored))


def matrix(weight: Weight) -> tuple[int, int]:
    """(rows, columns) of one matrix of `weight`: (out, in); a vector or scalar is one row, a convolution [out, in · kernel]."""
    if len(weight.shape) < 2:
        return 1, int(weight.shape[0]) if weight.shape else 1
    first, *rest = weight.shape
    cols = 1
    for size in rest:
        cols = int.__mul__(cols, size)
    return int(first), cols


def _declared(key: str) -> Mapping[str, str]:
    return declared(__file__, key)


def scheme_names() -> tuple[str, ...]:
    """Every base name that `scheme` takes."""
    return tuple(_declared("NAMES"))


def scheme(name: str, *, dtype: str = "bf16", facts: ModelFacts | None = None) -> Scheme:
    """The scheme called `name`; what it leaves unquantised is stored as `dtype`.

    GGUF file types ask `facts` about the model (gguf_facts.model_facts). Raises NotFound for an unknown name, with the nearest, and
    BadInput for an option that the format does not have.
    """
    names = _declared("NAMES")
    base, *options = name.strip().split("-")
    known = _known(base)
    if known is None:
        raise NotFound(f"weights {name[:60]!r}: no such format{nearest(base[:60], names)}; known are {', '.join(names)}")
    build: Callable[[str, list[str], str, ModelFacts | None], Scheme] = import_module(f".{names[known]}", __name__).scheme
    return build(known, [option.lower() for option in options], dtype, facts)


def is_gguf(name: str) -> bool:
    """Whether `name` is a file type of llama.cpp, such as Q4_K_M."""
    known = _known(name.strip().split("-")[0])
    return known is not None and _declared("NAMES")[known] == "gguf_mixtures"


def _known(base: str) -> str | None:
    return next((name for name in (base, base.lower(), base.upper()) if name in _declared("NAMES")), None)


def scheme_from_config(config: Mapping[str, object], *, dtype: str = "bf16") -> Scheme:
    """The scheme that a checkpoint's own `quantization_config` states; what it leaves unquantised is stored as `dtype`.

    Raises Unknown for a method that we do not know, BadInput for a damaged config.
    """
    methods = _declared("METHODS")
    method = method_of(config)
    if method not in methods:
        raise Unknown(f"quant_method {method[:60]!r} is not known{nearest(method[:60], methods)}; known are {', '.join(methods)}")
    build: Callable[[Mapping[str, object], str], Scheme] = import_module(f".{methods[method]}", __name__).from_config
    return build(config, dtype)


def method_of(config: Mapping[str, object]) -> str:
    """The name of the method that wrote `config`: `quant_method`, or what only one library's configs look like."""
    method = config.get("quant_method", config.get("quantization_method"))
    if method is None:
        if "quant_algo" in config or "quantization" in config:
            method = "modelopt"
        elif "group_size" in config and "bits" in config:
            method = "mlx"
        elif config.get("load_in_4bit") or config.get("load_in_8bit"):
            method = "bitsandbytes"
    if not isinstance(method, str):
        raise BadInput("quantization_config: 'quant_method' is missing or no string")
    return method.lower()
