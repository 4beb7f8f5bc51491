"""Kernels: which variant of an op runs, as an engine, its version and the user's choice of attention decide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """Which variant of an op runs: given once per engine, and by the user's `attention`.

    `norm`: `upcast` (transformers' own RMSNorm goes through fp32), `fp32` (its weight is applied there too), `fused` (torch's kernel),
    `triton` (another) or `inplace` (likewise, with its gradient in place); `mlp`: `eager` (gate, activation, product each a tensor, some
    activations in pieces), `plain` (each activation one kernel), `fused` (activation and product one kernel) or `merged` (one gate-and-up
    projection too); `rope`: `eager`, `concatenated`, `stacked`, `complex`, `inplace` or `single` (one new tensor); `mla`: past latents
    `expanded` to heads (transformers), or the expansion `absorbed` into the query (serving engines); `logits`: of the last token, of all,
    or of all with an fp32 copy; `frames`: Python's frames hold a module's arguments until it returns, or each tensor is freed at its last
    use; `kv`: kernels of attention take `grouped` keys and values, or sdpa gets copies `repeated` to all heads where there are several, or
    `expanded` always; `softmax`: 16-bit scores are `copied` to fp32 for theirs (bf16), or converted within the kernel (fp16, `fused`);
    `rotary`: cosines and sines are `shared` by all layers, each makes its `own`, or takes them of those `cached` for every position;
    `experts`: one `grouped` product, a `looped` module for each, a `batched` product with copies of those that are chosen, tokens that
    are `dispatched` to the ranks that have theirs, or tokens `reordered` and padded for one product for each matrix; `cache`: one
    that is `kept` somewhere, or is made anew for each token with the one before (`grown`), or is as long as it will be (`static`);
    `packing`: bytes for 64 elements taken while what comes to a layer's cache is packed;
    `softmax_keeps`: its output for backward, or `both` that and its input; `padding_mask`: eager attention of encoders has one where
    `needed`, or `always`; `layout`: attention takes queries `by token`, as they are projected, or a copy `by head`, or a `dense`
    copy of each part of a wider projection. `qkv`: the projections of
    queries, keys and values are those that are `stored`, or `joined` in one, or `split`; `gate_up`, likewise; `tied`: whether a tied head
    shares the embedding's matrix; `dropout`: whether anything is dropped in training; `adapters`: PEFT's layers beside the frozen ones, or
    Unsloth's functions in their place, `fused`. `recurrence`: delta rules are `composed` of torch's operators (transformers where no
    package of kernels is installed), or one `fused` kernel. `written_out` are names of norms that are composed of torch's operators though
    the others are `fused`, with those that have no weight. `expert_ranks` each have a share of the experts, to which `reordered` tokens are
    sent.
    """

    attention: Literal["eager", "inplace", "sdpa", "flash"] = "sdpa"
    norm: Literal["upcast", "fp32", "fused", "triton", "inplace"] = "upcast"
    mlp: Literal["eager", "plain", "fused", "merged"] = "eager"
    rope: Literal["eager", "concatenated", "stacked", "complex", "inplace", "single"] = "eager"
    mla: Literal["expanded", "absorbed"] = "expanded"
    logits: Literal["last", "all", "all-fp32"] = "last"
    frames: Literal["held", "freed"] = "held"
    kv: Literal["grouped", "repeated", "expanded"] = "grouped"
    softmax: Literal["copied", "fused"] = "copied"
    rotary: Literal["shared", "own", "cached"] = "shared"
    experts: Literal["grouped", "looped", "batched", "dispatched", "workspaces", "reordered"] = "grouped"
    cache: Literal["kept", "grown", "static"] = "kept"
    packing: int = 0
    softmax_keeps: Literal["output", "both"] = "output"
    padding_mask: Literal["needed", "always"] = "needed"
    layout: Literal["by token", "by head", "dense"] = "by token"
    qkv: Literal["stored", "joined", "split"] = "stored"
    gate_up: Literal["stored", "split"] = "stored"
    tied: bool = True
    softcap: bool = True
    dropout: bool = True
    adapters: Literal["peft", "fused"] = "peft"
    recurrence: Literal["composed", "fused"] = "composed"
    written_out: frozenset[str] = frozenset()
    expert_ranks: int = 1
    imbalance: int = 1000
