"""llama.cpp's caches: cells by slots and windows, bytes by type, the device of each layer's.

Source: llama.cpp 0.5.0 `src/llama-context.cpp` (n_ctx_seq, padded to 256), `llama-kv-cache-iswa.cpp` (cells of a window),
`llama-kv-cache.cpp` (types, streams), `llama-memory-recurrent.cpp` (one state for each sequence, in fp32).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ..dim import numel
from ..tape import Tape
from ..tensors import Cache
from .lines import cache_nbytes, text_caches

PADDING = 256
"""Cells of a cache are a multiple of it: GGML_PAD(n_ctx, 256)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """`-c`, `-np`, `-kvu`, `-ub`, `--swa-full` as a cache sees them: `cells` of one stream, of which there are `streams`."""

    sequences: int
    streams: int
    cells: int
    ubatch: int
    swa_full: bool
    padded_values: bool = False

    def kept(self, cache: Cache) -> tuple[int, int, str]:
        """Streams, the cells that each keeps of `cache`, and a word on how that came."""
        if cache.per == "sequence":
            return self.sequences, 1, ""
        if cache.window is None or self.swa_full:
            return self.streams, self.cells // cache.stride, ""
        together = self.sequences if self.streams == 1 else 1
        window = padded(min(self.cells, int(cache.window) * together + self.ubatch))
        return self.streams, window, f" (window of {cache.window:,} + {self.ubatch}, padded)"


def padded(cells: int) -> int:
    """`cells`, rounded up.

    >>> padded(1000), padded(1024)
    (1024, 1024)
    """
    return -(-cells // PADDING) * PADDING


def slots(context: int, sequences: int, *, unified: bool, ubatch: int, swa_full: bool, padded_values: bool) -> Slots:
    """The cells of a context that `sequences` share, or of which each has its part."""
    whole = padded(context)
    cells = whole if unified else padded(max(whole // sequences, 1))
    return Slots(
        sequences=sequences,
        streams=1 if unified else sequences,
        cells=cells,
        ubatch=ubatch,
        swa_full=swa_full,
        padded_values=padded_values,
    )


def layer_bytes(tape: Tape, held: Slots, kv: tuple[str, str]) -> Mapping[int, Mapping[str, int]]:
    """Bytes of each layer's caches by their side (k, v or state), keys and values of the types `kv`."""
    types = {"k": kv[0], "v": kv[1], "state": "fp32"}
    found: dict[int, dict[str, int]] = {}
    for cache in caches(tape, held):
        streams, kept, _ = held.kept(cache)
        one = streams * cache_nbytes(replace(cache, layers=cache.layers[:1]), kept, types[cache.side])
        for layer in cache.layers:
            sides = found.setdefault(layer, {})
            sides[cache.side] = sides.get(cache.side, 0) + one
    return found


def caches(tape: Tape, held: Slots) -> Iterator[Cache]:
    """The caches of the language model.

    Without flash attention values are transposed, and as wide in all layers as in the widest: in those too that have no attention, where
    the model keeps no states (llama-kv-cache.cpp, TAG_V_CACHE_VARIABLE).
    """
    found = text_caches(tape)
    widest = max((cache for cache in found if cache.side == "v"), key=lambda cache: numel(cache.shape), default=None)
    if widest is None or not held.padded_values:
        yield from found
        return
    for cache in found:
        yield replace(cache, shape=widest.shape) if cache.side == "v" else cache
    depth = {layer for weight in tape.weights if weight.tower is None for layer in weight.layers or ()}
    idle = depth - {layer for weight in tape.weights if weight.part == "attention" for layer in weight.layers or ()}
    if idle and not any(cache.side == "state" for cache in found):
        yield replace(widest, layers=tuple(sorted(idle)))


def some_layers(tape: Tape, held: Slots, chosen: frozenset[int]) -> Iterator[Cache]:
    """The caches of the `chosen` layers."""
    for cache in caches(tape, held):
        layers = tuple(layer for layer in cache.layers if layer in chosen)
        if layers:
            yield replace(cache, layers=layers)
