"""Training methods as the tape sees them: what trains, which layers get adapters, which weights are packed."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .ops.lora import lora
from .tape import Tape, Tensor, Weight, numel

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "c_attn", "query_key_value", "qkv_proj", "Wqkv", "dense", "out_proj", "W_pack")
"""What people mean by the attention's projections, by the last part of a module's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Full:
    """Every weight trains but those of towers; `frozen` towers are what vision-language fine-tuning keeps."""

    def trains(self, weight: Weight) -> bool:
        return weight.kind != "buffer" and weight.tower is None

    def inputs_need_gradients(self) -> bool:
        return False

    def unpacked(self, weight: Weight) -> int:
        return 0

    def adapt(self, tape: Tape, x: Tensor, y: Tensor, weight: Weight) -> Tensor:
        return y


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapters:
    """LoRA and QLoRA: low-rank adapters beside frozen linear layers, and modules that train whole (`modules_to_save`).

    `targets`: `all-linear` (every linear layer but the head, as PEFT), `attention`, or endings of module names. `packed`: bytes of an
    element that 4-bit layers are unpacked into, 0 for plain ones. `itemsize`: bytes of an adapter's element.
    """

    rank: int
    itemsize: int
    dropout: float
    targets: str | tuple[str, ...]
    saved_modules: tuple[str, ...] = ()
    packed: int = 0
    checkpointing: bool = False

    def trains(self, weight: Weight) -> bool:
        if weight.part == "adapters":
            return True
        module = weight.name.removesuffix(".weight")
        return any(module == name or module.endswith(f".{name}") for name in self.saved_modules)

    def inputs_need_gradients(self) -> bool:
        return self.checkpointing

    def unpacked(self, weight: Weight) -> int:
        quantised = self.packed and weight.kind == "linear" and len(weight.shape) == 2 and weight.part != "adapters"
        return numel(weight.shape) * self.packed if quantised else 0

    def targeted(self, weight: Weight) -> bool:
        """Whether `weight`'s layer gets an adapter: linear layers of the language model only, experts and routers never."""
        if weight.tower is not None or weight.kind not in ("linear", "head") or len(weight.shape) != 2:
            return False
        module = re.sub(r"\.\{[ie]\}", "", weight.name.removesuffix(".weight"))
        last = module.rpartition(".")[2]
        if self.targets == "all-linear":
            return weight.kind == "linear"
        if self.targets == "attention":
            return weight.part == "attention" and last in ATTENTION
        return any(module == name or module.endswith(f".{name}") for name in self.targets)

    def adapt(self, tape: Tape, x: Tensor, y: Tensor, weight: Weight) -> Tensor:
        if not self.targeted(weight):
            return y
        return lora(tape, x, y, weight, rank=self.rank, itemsize=self.itemsize, dropout=self.dropout, packed=bool(self.unpacked(weight)))
