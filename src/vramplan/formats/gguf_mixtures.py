"""llama.cpp's file types: Q4_K_M and the like are mixtures, a rule that gives each tensor its block type.

Knows what `llama-quantize` does by default. Not known: files made with `--tensor-type`, `--pure` or `--target-bpw`, Unsloth's UD-* and
ik_llama.cpp's mixes (their own headers say it), the padding of tensors to 32 bytes and the file's metadata, and tensors that conversion
adds (`rope_freqs.weight`). A vision tower is a file of its own (mmproj) and counted as converted, unquantised.

Source of every rule: llama.cpp `src/llama-quant.cpp` at 007dbbf3f: `llama_ftype_get_default_type`, `llama_tensor_get_type_impl`,
`tensor_type_fallback`, `tensor_allows_quantization`. It gives the sizes of all file types in `tools/quantize/README.md`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection
from dataclasses import dataclass, field
from fractions import Fraction

from ..errors import BadInput
from ..tensors import Weight
from . import Format, Scheme
from .ggml import BLOCKS, block_type
from .gguf_facts import ModelFacts
from .gguf_names import Category, category
from .selective import take_options

NAMES = (
    "F32", "F16", "Q1_0", "Q2_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4_MOE",
    "Q2_K", "Q2_K_S", "Q3_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K", "Q4_K_S", "Q4_K_M", "Q5_K", "Q5_K_S", "Q5_K_M", "Q6_K",
    "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "IQ3_S", "IQ3_M", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0",
)  # fmt: skip
SHORT = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
"""Short names of file types. Source: `tools/quantize/quantize.cpp`, QUANT_OPTIONS."""

_BASE = {
    "Q2_K_S": "Q2_K", "Q3_K_S": "Q3_K", "Q3_K_M": "Q3_K", "Q3_K_L": "Q3_K", "Q4_K_S": "Q4_K", "Q4_K_M": "Q4_K", "Q5_K_S": "Q5_K",
    "Q5_K_M": "Q5_K", "IQ2_S": "IQ2_XS", "IQ2_M": "IQ2_S", "IQ3_XS": "IQ3_S", "IQ3_M": "IQ3_S", "MXFP4_MOE": "MXFP4",
}  # fmt: skip
_NARROW = {
    "IQ1_S": "IQ4_NL", "IQ1_M": "IQ4_NL", "IQ2_XXS": "IQ4_NL", "IQ2_XS": "IQ4_NL", "IQ2_S": "IQ4_NL", "IQ3_XXS": "IQ4_NL",
    "IQ3_S": "IQ4_NL", "IQ4_XS": "IQ4_NL", "Q2_0": "Q4_0", "Q2_K": "Q4_0", "Q3_K": "Q4_0", "TQ1_0": "Q4_0", "TQ2_0": "Q4_0",
    "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
}  # fmt: skip
"""For rows that are no multiple of the block."""
_LOWEST = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M")
_FLOATS = ("F32", "F16", "BF16")
_NEEDS_IMATRIX = (*_LOWEST, "IQ3_XXS", "IQ3_XS", "Q2_K_S")


@dataclass(slots=True, kw_only=True)
class Mixture:
    """A file type of one model: each tensor's block type."""

    file_type: str
    facts: ModelFacts
    imatrix: bool
    name: str
    source: str = "F16"
    note: str = ""
    chosen: dict[tuple[str, int | None, tuple[int, ...]], Format] = field(default_factory=dict)

    @property
    def layered(self) -> bool:
        """Whether layers differ: in every mixture they may."""
        return self.file_type not in (*_FLOATS, "MXFP4_MOE", "Q8_0", "Q6_K", "Q4_1", "Q5_1", "TQ1_0", "TQ2_0")

    def apart(self, weight: Weight) -> Collection[int]:
        """All layers of a value projection, a down projection and (IQ3_XS) an up projection; none of other weights."""
        where = category(weight)
        differs = where in ("attn_v", "qkvz", "ffn_down") or (where == "ffn_up" and self.file_type == "IQ3_XS")
        return weight.layers or () if differs and weight.tower is None else ()

    def format_of(self, weight: Weight, layer: int | None) -> Format:
        """The block type of `weight` in `layer`; the format's name says it."""
        if weight.tower is not None:
            return block_type("F32" if category(weight) == "f32" else self.source)
        key = (weight.name, layer, weight.shape)
        found = self.chosen.get(key)
        if found is None:
            found = self.chosen[key] = self._choose(weight, category(weight), layer)
        return found

    def _choose(self, weight: Weight, where: Category, layer: int | None) -> Format:
        """MLA's kv_b [heads·(nope + v), rank] becomes attn_k_b, in rows of `nope`, and attn_v_b, in rows of `rank`: of base type, and 3-D,
        which MXFP4_MOE takes for experts. Experts that the checkpoint has in MXFP4 stay so in every file type, F16 too: llama.cpp
        `convert_hf_to_gguf.py` GptOssModel; gpt-oss-20b's published files have 11.5 to 13.8 GB, whatever their name.
        """
        if where == "f32":
            return block_type("F32")
        if self.facts.mxfp4_experts and weight.kind == "experts":
            return block_type("MXFP4")
        if self.file_type in _FLOATS:
            return block_type(self.file_type)
        if where == "source":
            return block_type(self.source)
        width = int(weight.shape[-1])
        if where == "kv_b":
            base = self._type("other", 0, width, True, False)
            return joined(fitting(base, self.facts.key_width), fitting(base, width), self.facts.key_share)
        if where == "qkvz":
            qkv, gate = (self._type(part, layer or 0, width, False, False) for part in ("attn_v", "other"))
            return joined(fitting(qkv, width), fitting(gate, width), self.facts.qkv_share)
        experts = weight.kind == "experts"
        return block_type(fitting(self._type(where, layer or 0, width, experts, "shared" in weight.name), width))

    def _output(self, width: int) -> str:
        base = _BASE.get(self.file_type, self.file_type)
        if self.file_type == "MXFP4_MOE" or self.facts.falcon or width % BLOCKS[base][0]:
            return "Q8_0"
        if self.file_type in (*_LOWEST, "IQ3_XXS"):
            return "Q5_K"
        return base if base == "Q8_0" else "Q6_K"

    def _type(self, where: Category, layer: int, width: int, experts: bool, shared: bool) -> str:
        """The rule, before rows that do not fit fall back."""
        file_type, facts = self.file_type, self.facts
        base = _BASE.get(file_type, file_type)
        if where == "output" or (where == "token_embd" and facts.tied):
            return self._output(width)
        if file_type == "MXFP4_MOE":
            return "MXFP4" if experts else "Q8_0"
        if where == "token_embd":
            return _EMBEDDINGS.get(file_type, base)
        if where == "attn_v":
            return self._values(base, layer)
        if where == "ffn_down":
            return self._down(base, layer, shared and not experts)
        if where == "attn_output":
            return self._attention_output(base)
        if where in ("attn_q", "attn_k"):
            return self._query_or_key(where, base)
        eighth = facts.layers // 8
        if where == "ffn_up" and file_type == "IQ3_XS" and eighth <= layer < 7 * facts.layers // 8:
            return "IQ3_XXS"
        return base

    def _values(self, base: str, layer: int) -> str:
        file_type, facts = self.file_type, self.facts
        order = range(facts.layers) if facts.values is None else facts.values
        i, n = bisect_left(order, layer), len(order)
        grouped = facts.gqa >= 4
        if file_type in _LOWEST:
            if grouped or facts.experts >= 4:
                return "Q4_K"
            return "IQ3_S" if file_type in ("IQ2_S", "IQ2_M") else "Q2_K"
        chosen = base
        match file_type:
            case "Q2_K":
                chosen = "Q4_K" if grouped else "Q3_K"
            case "Q2_K_S" | "IQ3_XS" | "IQ3_S" if grouped:
                chosen = "Q4_K"
            case "IQ3_XXS":
                chosen = "Q4_K" if grouped else "IQ3_XXS" if self.imatrix else "IQ3_S"
            case "IQ3_M":
                chosen = "Q4_K"
            case "Q3_K_M":
                chosen = "Q5_K" if i < 2 else "Q4_K"
            case "Q3_K_L":
                chosen = "Q5_K"
            case "IQ4_NL" | "IQ4_XS" if grouped:
                chosen = "Q5_K"
            case "Q4_K_M" | "Q5_K_M" if more_bits(i, n):
                chosen = "Q6_K"
            case "Q4_K_S" if i < 4:
                chosen = "Q5_K"
        if facts.is_70b and chosen in ("Q3_K", "Q4_K"):
            chosen = "Q5_K"
        return "Q8_0" if facts.experts == 8 else chosen

    def _down(self, base: str, layer: int, second: bool) -> str:
        file_type, n, falcon = self.file_type, self.facts.layers, self.facts.falcon
        i = layer
        if self.facts.downs is not None and (not self.facts.experts or file_type in _LOWEST):  # counted, not read from the name
            i = bisect_left(self.facts.downs, layer)
            i += second and self.facts.downs.count(layer) > 1
        early, more = i < n // 8, more_bits(i, n)
        if file_type in _LOWEST:
            return ("IQ3_S" if file_type in ("IQ2_S", "IQ2_M") else "Q2_K") if early else base
        match file_type:
            case "Q2_K":
                return "Q3_K"
            case "Q2_K_S" if early:
                return "Q4_K"
            case "IQ3_XXS" if not self.imatrix:
                return "Q4_K" if early else "Q3_K"
            case "Q3_K_M":
                return "Q5_K" if i < n // 16 else "Q4_K" if not falcon or more else "Q3_K"
            case "IQ3_M" if early or (self.facts.experts == 8 and more):
                return "Q4_K"
            case "Q3_K_L":
                return "Q4_K" if falcon else "Q5_K"
            case "Q4_K_M" if falcon:
                return "Q6_K" if i < n // 16 else "Q5_K" if more else "Q4_K"
            case "Q4_K_M" | "Q5_K_M" if more:
                return "Q6_K"
            case "IQ4_NL" | "IQ4_XS" if early and not self.imatrix:
                return "Q5_K"
            case "Q4_K_S" if early and not falcon:
                return "Q5_K"
            case "Q4_0" | "Q5_0" if early and self.imatrix:
                return {"Q4_0": "Q4_1", "Q5_0": "Q5_1"}[file_type]
        return base

    def _attention_output(self, base: str) -> str:
        file_type = self.file_type
        if file_type in _LOWEST:
            if self.facts.experts == 8:
                return "Q5_K"
            return "IQ2_XXS" if file_type in ("IQ1_S", "IQ1_M") else "IQ3_S" if file_type in ("IQ2_S", "IQ2_M") else base
        if self.facts.falcon:
            return "Q4_K" if file_type == "Q3_K_L" else base
        if self.facts.experts == 8:
            return "Q5_K" if file_type in _OUTPUT_OF_EIGHT else base
        return _ATTENTION_OUTPUT.get(file_type, base)

    def _query_or_key(self, where: Category, base: str) -> str:
        lowest = self.file_type in _LOWEST
        if where == "attn_k" and self.facts.experts == 8:
            return "Q4_K" if lowest else "Q8_0"
        return {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}.get(self.file_type, base)


_EMBEDDINGS = {
    "IQ1_S": "Q2_K", "IQ1_M": "Q2_K", "IQ2_XXS": "Q2_K", "IQ2_XS": "Q2_K", "IQ2_S": "IQ3_S", "IQ2_M": "IQ3_S", "IQ3_XXS": "IQ3_S",
    "TQ1_0": "Q4_K", "TQ2_0": "Q4_K", "Q2_0": "Q4_K",
}  # fmt: skip
_ATTENTION_OUTPUT = {"Q2_K": "Q3_K", "IQ3_XXS": "IQ3_S", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K", "IQ3_M": "Q4_K"}
_OUTPUT_OF_EIGHT = (
    "Q2_K", "IQ3_XS", "IQ3_XXS", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M", "IQ3_S", "IQ3_M", "IQ4_XS",
)  # fmt: skip


def more_bits(i: int, n: int) -> bool:
    """Whether tensor `i` of `n` gets more bits: the first and last eighth, and every third between (`use_more_bits`)."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def fitting(block: str, width: int) -> str:
    """`block`, or what llama-quantize takes for rows of `width` elements that are no multiple of it."""
    if width % BLOCKS[block][0] == 0:
        return block
    narrow = _NARROW.get(block, block)
    return narrow if width % BLOCKS[narrow][0] == 0 else "F16"


def joined(first: str, second: str, share: tuple[int, int]) -> Format:
    """The layout of a matrix that conversion splits by rows: `share` = (rows, of) of it as `first`, the rest as `second`."""
    if first == second:
        return block_type(first)
    rows, of = share
    size = Fraction(rows, of) * _size(first) + Fraction(of - rows, of) * _size(second)
    return Format(name=f"{first} and {second}", block=size.denominator, block_bytes=size.numerator)


def _size(block: str) -> Fraction:
    elements, nbytes = BLOCKS[block]
    return Fraction(nbytes, elements)


def gguf_scheme(file_type: str, facts: ModelFacts, *, imatrix: bool | None = None) -> Scheme:
    """The mixture of `file_type` (Q4_K_M …) for a model. `imatrix`: made with an importance matrix; by default where it must be.

    Raises BadInput for an unknown file type.
    """
    name = file_type.upper()
    if name not in NAMES and name != "BF16":
        raise BadInput(f"GGUF file type {file_type[:40]!r} is not known; known are {', '.join(NAMES)}")
    kind = SHORT.get(name, name)
    wanted = kind in _NEEDS_IMATRIX if imatrix is None else imatrix
    return Mixture(file_type=kind, facts=facts, imatrix=wanted, name=name, source="BF16" if kind == "BF16" else "F16")


def scheme(name: str, options: list[str], dtype: str, facts: ModelFacts | None) -> Scheme:
    """Every file type by its name; `-imatrix`: made with an importance matrix (IQ1, IQ2, IQ3_XXS, IQ3_XS and Q2_K_S always are)."""
    if facts is None:
        raise BadInput(f"weights {name!r}: a GGUF file type is a rule over a model's layers, and no model is given")
    imatrix = bool(take_options(name, options, imatrix=0)["imatrix"])
    return gguf_scheme(name, facts, imatrix=True if imatrix else None)
