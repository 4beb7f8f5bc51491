"""LoRA under Megatron, as Megatron-Bridge has it: adapters in bf16 beside four kinds of layers, split as these are.

What it does not know: DoRA, canonical LoRA (an adapter for each of queries, keys and values), adapters for each expert of a rank, routers'
and recurrent layers' adapters, quantised bases (ModelOpt), the option that gathers inputs again (`sequence_parallel_input_regather`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ...dim import shape_label
from ...errors import BadInput, Unknown, nearest
from ...methods import Adapters, ends
from ...ops.lora_parallel import Parallel
from ...tensors import Weight
from .megatron_ranks import Ranks

RANK = 32
"""Megatron-Bridge 0.6 `peft/lora.py`, LoRA.dim."""
LAYERS: Mapping[str, tuple[str, ...]] = {
    "linear_qkv": ("q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value", "Wqkv", "c_attn"),
    "linear_proj": ("o_proj", "self_attn.out_proj", "attention.dense", "self_attention.dense"),
    "linear_fc1": ("gate_proj", "up_proj", "gate_up_proj", "fc1", "c_fc", "dense_h_to_4h"),
    "linear_fc2": ("down_proj", "fc2", "dense_4h_to_h"),
}
"""Megatron's layers (the default `target_modules`), and checkpoints' names for what is in each."""
LATENT = "nope_dim"
"""A size of multi-head latent attention, whose queries are no part of `linear_qkv`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bridged(Adapters):
    """Adapters beside Megatron's `layers`; tensor-parallel `ranks` share a layer, and tokens too (`scatters`)."""

    layers: frozenset[str]
    ranks: bool
    scatters: bool

    def assumptions(self, weights: Sequence[Weight]) -> list[str]:
        """The choices in words."""
        shared = ", one for all experts of a rank" if any(weight.kind == "experts" for weight in weights) else ""
        return [f"LoRA of rank {self.rank} in bf16 on {', '.join(name for name in LAYERS if name in self.layers)}{shared}"]

    def adapter(self, module: str, weight: Weight) -> Parallel | None:
        """What stands beside `module`: nothing in towers."""
        layer = layer_of(module, weight)
        if layer not in self.layers:
            return None
        side: Literal["column", "row", "whole"]
        side = "whole" if weight.kind == "experts" else "column" if layer in ("linear_qkv", "linear_fc1") else "row"
        return Parallel(
            rank=self.rank,
            itemsize=2,
            dtype="bf16",
            dropout=self.dropout,
            layer=layer,
            side=side,
            ranks=self.ranks,
            scatters=self.scatters,
        )


def layer_of(module: str, weight: Weight) -> str:
    """Megatron's name for a layer of a checkpoint's, or nothing."""
    if weight.tower is not None or weight.kind not in ("linear", "experts") or LATENT in shape_label(weight.shape[:1]):
        return ""
    return next((layer for layer, names in LAYERS.items() if ends(module, (layer, *names))), "")


def bridged(adapters: Adapters, ranks: Ranks, *, full: bool) -> Bridged:
    """The adapters as Megatron-Bridge makes them. With `full` recomputation the first layer's input gets a gradient
    (`peft/recompute.py`). Raises Unknown for what it or this has not, BadInput for a target that is no layer of Megatron's.
    """
    if adapters.variant != "lora":
        raise Unknown(f"lora.variant {adapters.variant!r}: estimated for engine 'megatron' is lora")
    if adapters.dtype != "bf16":
        raise BadInput(f"lora.dtype {adapters.dtype!r}: Megatron-Bridge's adapters are in bf16; leave it out")
    own = {name: getattr(adapters, name) for name in Adapters.__slots__}
    own |= {"targets": "all-linear", "checkpointing": full}
    return Bridged(**own, layers=_layers(adapters.targets), ranks=ranks.mesh.tensor > 1, scatters=ranks.sequence)


def _layers(targets: str | tuple[str, ...]) -> frozenset[str]:
    """Megatron's layers, of its own names or of checkpoints'; a joined one only as a whole."""
    if isinstance(targets, str):
        return frozenset(("linear_qkv", "linear_proj") if targets == "attention" else LAYERS)
    asked = {target.rpartition(".")[2] for target in targets}
    named = {layer: {layer, *(name.rpartition(".")[2] for name in names)} for layer, names in LAYERS.items()}
    known = set().union(*named.values())
    for name in sorted(asked - known):
        raise BadInput(f"lora.targets {name!r}: Megatron-Bridge has adapters for {', '.join(LAYERS)}{nearest(name, sorted(known))}")
    for whole, parts in (("linear_qkv", ("q_proj", "k_proj", "v_proj")), ("linear_fc1", ("gate_proj", "up_proj"))):
        some = [part for part in parts if part in asked]
        if some and len(some) < len(parts):
            raise BadInput(f"lora.targets {', '.join(some)}: Megatron has {', '.join(parts)} in one layer; name {whole} or all of them")
    return frozenset(layer for layer, names in named.items() if asked & names)
