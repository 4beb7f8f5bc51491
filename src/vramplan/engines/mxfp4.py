"""Experts in MXFP4 as kernels want them: sizes rounded up, scales laid out anew.

A layout rounds the hidden size and the experts' (a rank's share of it), as gpt-oss has 2,880 of both. What it does not know: AMD's layouts.
Sources: vLLM layers/quantization/mxfp4.py at 0.11.0, layers/fused_moe/oracle/mxfp4.py `mxfp4_round_up_hidden_size_and_intermediate_size`
at 0.19.0; triton_kernels' tensor_details/layout_details/hopper_*.py; SGLang 0.5.6 layers/quantization/mxfp4.py create_weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..dim import Dim
from ..formats import Share
from ..tensors import Weight

BLOCK = 32
"""Elements of a scale (OCP Microscaling Formats 1.0, table 1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Multiples of the hidden size and of the experts' own; `swizzled` is Hopper's for Triton, `aligned` if its values are rounded too,
    `twice` if the scales stay as they were loaded, too."""

    name: str
    hidden: int = 1
    ffn: int = 1
    swizzled: bool = False
    aligned: bool = False
    twice: bool = True


FLASHINFER = Layout(name="FlashInfer (Blackwell)", hidden=256, ffn=256)
MARLIN = Layout(name="Marlin", hidden=256, ffn=128)


def triton(*, aligned: bool, twice: bool = True) -> Layout:
    """Triton's on Hopper: triton_kernels 3.6 has values `aligned` to 64 × 64 too."""
    return Layout(name="Triton (Hopper)", ffn=64, swizzled=True, aligned=aligned, twice=twice)


def grown(shares: Iterable[Share], layout: Layout) -> int:
    """Bytes by which experts in MXFP4 exceed what the checkpoint has."""
    return sum(_held(share.weight, layout) * share.weight.copies * len(share.layers or (0,)) - share.nbytes for share in matrices(shares))


def matrices(shares: Iterable[Share]) -> Iterator[Share]:
    """The experts' matrices that are stored in MXFP4."""
    return (share for share in shares if share.weight.kind == "experts" and share.format.name == "mxfp4" and len(share.weight.shape) > 1)


def _held(weight: Weight, layout: Layout) -> int:
    """Bytes of one expert's matrix: elements in half a byte, a byte of scale for each 32.

    Swizzled, the scales may be held twice, as loaded and laid out anew; biases are in fp32 in place of bf16.
    """
    rows, cols = (_up(size, layout) for size in weight.shape)
    if not layout.swizzled:
        return rows * cols // 2 + rows * cols // BLOCK
    made = swizzled(weight, layout)
    return made.values + made.loaded_scales * layout.twice + made.scales + 2 * made.rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Swizzled:
    """One expert's matrix on Hopper in bytes, as loaded and as laid out anew, where scales' rows are in multiples of 256."""

    rows: int
    loaded: int
    loaded_scales: int
    values: int
    scales: int


def swizzled(weight: Weight, layout: Layout) -> Swizzled:
    """The matrix of `weight` in a `layout` that is swizzled."""
    rows, cols = (_up(size, layout) for size in weight.shape)
    out, wide = (rows, cols) if weight.name.endswith(".weight") else (cols, rows)  # gpt-oss stores [in, out]
    loaded = wide // 2 * out
    return Swizzled(
        rows=out,
        loaded=loaded,
        loaded_scales=out * wide // BLOCK,
        values=_round(wide // 2, 64) * _round(out, 64) if layout.aligned else loaded,
        scales=_round(out, 256) * _round(wide // BLOCK, 2),
    )


def _round(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _up(size: int, layout: Layout) -> int:
    """A size whose named factors are rounded up."""
    if not isinstance(size, Dim):
        return size
    if size.parts is None:
        return _round(int(size), layout.hidden if size.label == "hidden" else layout.ffn)
    _, a, b = size.parts
    return _up(a, layout) * _up(b, layout)
