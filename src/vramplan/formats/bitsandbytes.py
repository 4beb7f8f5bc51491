"""bitsandbytes: 4-bit NF4 and FP4, with and without double quantisation, and LLM.int8().

Every nn.Linear but the output head is replaced, in towers too; embeddings, norms and routers stay. Experts that a checkpoint stores fused
(one 3-D tensor) are no nn.Linear and stay as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import BadInput
from ..tensors import Weight
from . import Extra, Format, Scheme
from .config import ListOfNames, left_out
from .patterns import Patterns
from .selective import Selective, plain, take_options

if TYPE_CHECKING:
    from .gguf_facts import ModelFacts

NAMES = ("nf4", "fp4", "int8")
METHODS = ("bitsandbytes", "bitsandbytes_4bit", "bitsandbytes_8bit")


def four_bit(name: str, *, double_quant: bool = False) -> Format:
    """n/2 bytes, a scale per 64 elements, and a table of 16 fp32 codes; with double quantisation the scales are 8 bits in blocks of 256.

    >>> four_bit("nf4").nbytes(4096, 4096), four_bit("nf4", double_quant=True).nbytes(4096, 4096)
    (9437248, 8655940)

    Source: bitsandbytes 0.50.2 `functional.py` `quantize_4bit` (blocksize 64, `compress_statistics`), `QuantState` (absmax, code, nested
    absmax, nested code of 256 fp32, offset fp32); measured on a 4096 × 4096 tensor. Dettmers et al., arXiv 2305.14314, section 3.
    """
    code = Extra(what="code table", nbytes=64)
    if not double_quant:
        return Format(name=name, block=2, block_bytes=1, extras=(Extra(what="absmax", nbytes=4, tile=(0, 64), flat=True), code))
    return Format(
        name=f"{name} double-quantised",
        block=2,
        block_bytes=1,
        extras=(
            Extra(what="absmax", nbytes=1, tile=(0, 64), flat=True),
            Extra(what="nested absmax", nbytes=4, tile=(0, 64 * 256), flat=True),
            Extra(what="nested code and offset", nbytes=256 * 4 + 4),
            code,
        ),
    )


INT8 = Format(name="int8", block=1, block_bytes=1, extras=(Extra(what="SCB", nbytes=4, tile=(1, 0)),))
"""n + an fp32 `SCB` per output row. Source: bitsandbytes 0.50.2 `nn/modules.py` `Int8Params`; Dettmers et al., arXiv 2208.07339."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _NotFused(Selective):
    """Experts only where each is a module of its own, which none is once `stacked` (transformers since 5.0 stacks them as it loads)."""

    stacked: bool = False

    def format_of(self, weight: Weight, layer: int | None) -> Format:
        if weight.kind == "experts" and (self.stacked or "{e}" not in weight.name):
            return plain(weight, self.dtype)
        return Selective.format_of(self, weight, layer)


def scheme(name: str, options: list[str], dtype: str, facts: ModelFacts | None) -> Scheme:
    """`nf4`, `fp4` (`-double`: double quantisation) and `int8`; `-head`: the head too; `-stacked`: experts are one tensor, and stay in 16
    bits.
    """
    known = {"head": 0, "stacked": 0} if name == "int8" else {"double": 0, "head": 0, "stacked": 0}
    taken = take_options(name, options, **known)
    form = INT8 if name == "int8" else four_bit(name, double_quant=bool(taken["double"]))
    head = form if taken["head"] else None
    return _NotFused(name="-".join((name, *options)), linear=form, head=head, dtype=dtype, towers=True, stacked=bool(taken["stacked"]))


def from_config(config: Mapping[str, object], dtype: str) -> Scheme:
    """transformers' BitsAndBytesConfig; `llm_int8_skip_modules` are left out of both 4 and 8 bits."""
    skipped = ListOfNames.of(config, "llm_int8_skip_modules")
    if config.get("load_in_4bit") or config.get("quant_method") == "bitsandbytes_4bit":
        kind = config.get("bnb_4bit_quant_type", "fp4")
        if kind not in ("nf4", "fp4"):
            raise BadInput(f"quantization_config: 'bnb_4bit_quant_type' is {str(kind)[:40]!r}; it must be 'nf4' or 'fp4'")
        form = four_bit(kind, double_quant=bool(config.get("bnb_4bit_use_double_quant")))
    else:
        form = INT8
    rules: tuple[tuple[Patterns, Format | None], ...] = left_out(skipped, "transformers")
    return _NotFused(name="bitsandbytes", linear=form, dtype=dtype, rules=rules, towers=True, note=skipped.note)
