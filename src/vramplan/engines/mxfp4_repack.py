"""What it takes to lay experts in MXFP4 out anew for Triton on Hopper, and what torch's allocator cannot give back after it.

Once all layers are loaded, layer after layer, each matrix is padded, permuted and packed, with eight temporaries of its size at once. What
is kept lies in segments that were a temporary's or an old matrix's, of another size: the allocator's rules say how much of them stays
unused. That is most from 0.17 to 0.20, whose triton_kernels 3.6 round values up to 64 × 64: gpt-oss-120b does not start on one H100, nor
on two by its defaults. Since 0.21 blocks of 20 MiB and more are not split while a model loads, and nothing stays unused.
What it does not know: 0.11 and 0.12, whose triton_kernels were not vLLM's own copy, and what other layouts and formats leave (Marlin's,
FP8's). Sources: vLLM 0.19.0 layers/quantization/mxfp4.py (process_weights_after_loading), third_party/triton_kernels/tensor_details/
layout_details/hopper_value.py (swizzle_data, _pack_bits) and hopper_scale.py; 0.16.0 for the layout without padding; 0.21.0 v1/worker/
gpu_worker.py (load_model) and vllm#41268, which says that two H100 ran out of memory, and why.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from ..allocator import Allocator, OutOfMemory
from ..formats import Share
from .mxfp4 import Layout, Swizzled, matrices, swizzled

VENDORED = (0, 13)
"""The first release with a copy of triton_kernels in it, whose order of allocations this is."""
WHOLE = (0, 21)
"""The first that loads with `max_split_size_mb` 20: `_scoped_allocator_max_split`, v1/worker/gpu_worker.py."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repacked:
    """Bytes of experts: `peak` while they are laid out anew, what of them stays `unused` after it, and the largest `hole` in that."""

    peak: int = 0
    unused: int = 0
    hole: int = 0


def repack(shares: Iterable[Share], layout: Layout, capacity: int | None, *, whole: bool) -> Repacked:
    """Experts of all layers in `capacity` bytes; `whole` if large blocks are not split. Without room `peak` exceeds the capacity."""
    found = list(matrices(shares))
    layers = {i for share in found for i in share.layers or (0,)}
    first = [share.weight for share in found if min(layers) in (share.layers or (0,))] if layout.swizzled else []
    if not first:
        return Repacked()
    sizes = tuple((swizzled(weight, layout), weight.copies) for weight in first)
    return _repack(len(layers), sizes, layout, None if whole else capacity, whole)


@lru_cache(maxsize=32)
def _repack(layers: int, sizes: tuple[tuple[Swizzled, int], ...], layout: Layout, capacity: int | None, whole: bool) -> Repacked:
    run = Run(capacity)
    try:
        loaded = [[(run.new(one.loaded * n), run.new(one.loaded_scales * n)) for one, n in sizes] for _ in range(layers)]
        for layer in loaded:
            for one, n in sizes:
                run.values(one.values * n, layout.aligned)
                run.scales(one.loaded_scales * n, one.scales * n)
            run.free(*(block for values, scales in layer for block in ((values,) if layout.twice else (values, scales))))
    except OutOfMemory:
        return Repacked(peak=run.allocator.reserved + run.asked)
    unused, hole = (0, 0) if whole else run.unused()
    return Repacked(peak=run.allocator.max_allocated, unused=unused, hole=hole)


class Run:
    """The allocator while matrices are laid out anew: blocks by number."""

    def __init__(self, capacity: int | None) -> None:
        self.allocator = Allocator(capacity)
        self.count = self.asked = 0

    def new(self, nbytes: int) -> int:
        """A block of `nbytes`; its number."""
        self.count, self.asked = self.count + 1, nbytes
        self.allocator.malloc(self.count, nbytes)
        return self.count

    def free(self, *blocks: int) -> None:
        """These go."""
        for block in blocks:
            self.allocator.free(block)

    def after(self, nbytes: int, *before: int) -> int:
        """A block that is made of those `before`, which then go."""
        made = self.new(nbytes)
        self.free(*before)
        return made

    def values(self, nbytes: int, aligned: bool) -> None:
        """Padded (twice where `aligned`), permuted, and packed: each four values' bits as int32, shifted into one."""
        padded = self.new(nbytes)
        data = self.after(nbytes, self.after(nbytes, padded) if aligned else padded)
        fields = [self._field(nbytes, terms) for terms in (2, 2, 2, 3)]
        made = self.after(nbytes, self._moved(nbytes))
        made = self.after(nbytes, made, self._moved(nbytes))
        self.after(nbytes, made)
        self.free(*fields, data)

    def scales(self, loaded: int, nbytes: int) -> None:
        """Copied twice as they were loaded, padded and permuted."""
        copied = self.after(loaded, self.new(loaded))
        self.after(nbytes, self.after(nbytes, copied))

    def _field(self, nbytes: int, terms: int) -> int:
        """Both halves of every fourth byte in one: `terms` masked and shifted parts of each."""
        low = self._bits(nbytes, terms, self.new(nbytes))
        high = self._bits(nbytes, terms, self.after(nbytes, self.new(nbytes // 4)))
        return self.after(nbytes, low, self.after(nbytes, high))

    def _bits(self, nbytes: int, terms: int, wide: int) -> int:
        made = self._moved(nbytes)
        for _ in range(terms - 1):
            made = self.after(nbytes, made, self._moved(nbytes))
        self.free(wide)
        return made

    def _moved(self, nbytes: int) -> int:
        """Masked, then shifted."""
        return self.after(nbytes, self.new(nbytes))

    def unused(self) -> tuple[int, int]:
        """Bytes of segments beyond what is allocated, once those without any use are given back, and the largest free block."""
        self.allocator.empty_cache()
        largest = max((pool[-1][0] for pool in self.allocator.pools.values() if pool), default=0)
        return self.allocator.reserved - self.allocator.allocated, largest
