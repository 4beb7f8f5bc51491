"""Training methods as the tape sees them: what trains, which layers get adapters, which weights are packed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from .errors import BadInput
from .ops.lora import Adapter
from .ops.packed import Packed
from .tensors import Weight

_MIXTRAL, _QWEN = ("gate", "w1", "w3", "w2"), ("gate", "gate_proj", "up_proj", "down_proj")
FUSED: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("mixtral", "minimax", "minimax_m2"), _MIXTRAL),
    **dict.fromkeys(("afmoe", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots1", "ernie4_5_moe", "glm4_moe", "glm4_moe_lite"), _QWEN),
    **dict.fromkeys(("glm_moe_dsa", "glm4v_moe", "longcat_flash", "solar_open", "mellum", "qwen3_moe", "qwen3_omni_moe"), _QWEN),
    **dict.fromkeys(("qwen3_next", "hunyuan_v1_moe", "flex_olmo", "olmoe", "exaone_moe", "cohere2_moe"), _QWEN),
}
"""Linear layers of transformers 4 by model type, for which PEFT puts adapters on the router's and the experts' stacked parameters.

It does so wherever these names are asked for, `all-linear` among them, and then leaves plain layers of these names without any. Source:
PEFT 0.21 `utils/transformers_weight_conversion.py` _MOE_TARGET_MODULE_MAPPING; transformers 5.23 `conversion_mapping.py`.
"""

ROUTER_LAYERS = ("dbrx", "hunyuan_v1_moe", "llama4", "phimoe")
"""Model types whose router is a linear layer (transformers 5.23), which `all-linear` means too."""
WITHOUT_OUT_PROJ = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")
"""Model types of which PEFT 0.21 refuses `out_proj` (`tuners/tuners_utils.py`, _check_lora_target_modules_mamba)."""

ADAPTERS: Mapping[str, str] = {"lora": "lora", "rslora": "rslora", "dora": "dora", "qlora": "lora"}
"""Methods that train adapters beside a frozen base, and the variant of LoRA that each names."""


def implied(quantization: str | None, lora: Mapping[str, object] | None) -> str:
    """The method where none is named: what the scenario's other keys ask for."""
    return "qlora" if quantization else "lora" if lora else "full"


def variant(method: str, lora: Mapping[str, object]) -> str:
    """lora, rslora or dora: what an adapter method names, or `lora.variant`. Raises BadInput where the two disagree."""
    named, asked = ADAPTERS[method], lora.get("variant")
    if asked is not None and named not in ("lora", asked):
        raise BadInput(f"lora.variant {asked!r}: method {method!r} says otherwise; leave one of them out")
    return str(asked or named)


def packed_as(method: str, quantization: str | None) -> str | None:
    """The number format of the frozen base's linear layers: what `quantization` says, nf4 for qlora, None for 16 bits."""
    return quantization or ("nf4" if method == "qlora" else None)


def shortened(module: str) -> str:
    """A module's path without the numbers of layers and experts."""
    return module.replace(".{i}", "").replace(".{e}", "")


def ends(module: str, names: Iterable[str]) -> bool:
    """Whether the path `module` is one of `names`, or ends in it after a dot; numbers of layers and experts are left out of paths.

    >>> ends("model.layers.{i}.self_attn.q_proj", ["q_proj"]), ends("model.layers.{i}.self_attn.q_proj", ["proj"])
    (True, False)
    """
    path = shortened(module)
    return any(path == name or path.endswith(f".{name}") for name in names)


def inside(name: str, modules: Iterable[str]) -> bool:
    """Whether the weight `name` stands in one of `modules`, each given by its name or the end of its path.

    >>> inside("model.layers.{i}.mlp.up_proj.weight", ["mlp"]), inside("model.norm.weight", ["layers.norm"])
    (True, False)
    """
    return any(f".{module}." in f".{name}." for module in modules)


Towers = Literal["frozen", "projector", "trained"]
"""What of a tower for another modality trains: nothing, what carries its output over to the language model, or all of it."""


def reaches(towers: Towers, weight: Weight) -> bool:
    """Whether training reaches `weight`: those of the language model always."""
    return weight.tower is None or towers == "trained" or (towers == "projector" and weight.part == "projector")


@dataclass(frozen=True, slots=True, kw_only=True)
class Full:
    """Every weight trains, in a tower if `towers` says so, but not those of `frozen` modules.

    With `checkpointing` transformers asks inputs for gradients, so that frozen parts before trained ones pass them on
    (`activation_checkpointing_enable`, transformers 5.23 `modeling_utils.py`).
    """

    frozen: tuple[str, ...] = ()
    towers: Towers = "trained"
    checkpointing: bool = False

    def trains(self, weight: Weight) -> bool:
        return weight.kind != "buffer" and reaches(self.towers, weight) and not inside(weight.name, self.frozen)

    def inputs_need_gradients(self) -> bool:
        return self.checkpointing

    def copies(self, module: str) -> bool:
        return False

    def packed(self, weight: Weight) -> Packed | None:
        return None

    def adapter(self, module: str, weight: Weight) -> Adapter | None:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """Nothing trains: a reference model, or the policy with its adapters switched off. Linear layers are stored as `base` says."""

    base: Packed | None = None

    def trains(self, weight: Weight) -> bool:
        return False

    def inputs_need_gradients(self) -> bool:
        return False

    def copies(self, module: str) -> bool:
        return False

    def packed(self, weight: Weight) -> Packed | None:
        return self.base if weight.kind == "linear" and len(weight.shape) == 2 else None

    def adapter(self, module: str, weight: Weight) -> Adapter | None:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapters:
    """LoRA and its variants: low-rank adapters beside frozen layers, and modules of which a copy trains whole (`modules_to_save`).

    `targets`: `all-linear` (every linear layer but the head, as PEFT), `attention`, or names of modules or the ends of their paths.
    `base`: how the frozen linear layers are stored, None for plain ones. `dtype`: the adapters' own. `fused`: names of linear layers of
    transformers 4 that PEFT looks for in the experts' stacked matrices (`FUSED`); empty where it does not. `routers`: they are layers.
    """

    rank: int
    dtype: str
    dropout: float = 0.0
    variant: str = "lora"
    targets: str | tuple[str, ...] = "all-linear"
    saved_modules: tuple[str, ...] = ()
    base: Packed | None = None
    checkpointing: bool = False
    fused: tuple[str, ...] = ()
    routers: bool = False
    towers: Towers = "trained"

    def assumptions(self, weights: Sequence[Weight]) -> list[str]:
        """The choices in words, for a model of `weights`."""
        kind = {"lora": "LoRA", "rslora": "rsLoRA", "dora": "DoRA"}[self.variant]
        targets = self.targets if isinstance(self.targets, str) else ", ".join(self.targets)
        lines = [f"{kind} of rank {self.rank} in {self.dtype} on {targets}"]
        if self.base and self.base.eight:
            lines.append("LLM.int8(): no input beyond its threshold of 6")
        elif self.base:
            lines.append(f"{self.base.kind} {'with' if self.base.double else 'without'} double quantisation")
        if self.base and any(weight.kind == "experts" for weight in weights):
            lines.append("experts in 16 bits: transformers since 5.0 stacks their matrices, which bitsandbytes then does not pack")
        if any(self.adapter(shortened(weight.name.removesuffix(".weight")), weight) for weight in weights if weight.kind == "experts"):
            lines.append("adapters on experts' stacked matrices, of which PEFT makes a sum with them, as large, in every layer")
        return lines

    def trains(self, weight: Weight) -> bool:
        return weight.part == "adapters" or self.copies(weight.name.rpartition(".")[0])

    def inputs_need_gradients(self) -> bool:
        return self.checkpointing

    def copies(self, module: str) -> bool:
        return ends(module, self.saved_modules)

    def packed(self, weight: Weight) -> Packed | None:
        kinds = ("linear", "head") if self.base and self.base.head else ("linear",)
        return self.base if weight.kind in kinds and len(weight.shape) == 2 and weight.part != "adapters" else None

    def adapter(self, module: str, weight: Weight) -> Adapter | None:
        if not self.targeted(module, weight):
            return None
        return Adapter(
            rank=self.rank,
            itemsize=4 if self.dtype == "fp32" else 2,
            dtype=self.dtype,
            dropout=self.dropout,
            dora=self.variant == "dora",
            packed=self.packed(weight),
            merged=module.rpartition(".")[2] in self.fused,
            copies=weight.copies if weight.kind == "linear" else 1,
        )

    def targeted(self, module: str, weight: Weight) -> bool:
        """Whether `module` gets an adapter: linear layers and embeddings, a tower's too; of what PEFT looks for in experts, nothing."""
        if not reaches(self.towers, weight) or len(weight.shape) != 2 or self.copies(module):
            return False
        last = module.rpartition(".")[2]
        if last in self.fused:
            return weight.kind in ("router", "experts") and self.wanted(last)
        layers = ("linear", "router") if self.routers else ("linear",)
        if self.targets == "all-linear":
            return weight.kind in layers
        if self.targets == "attention":
            parent = module.rpartition(".")[0].lower()
            return weight.kind == "linear" and ("attn" in parent or "attention" in parent)
        return weight.kind in (*layers, "head", "embed") and ends(module, self.targets)

    def wanted(self, name: str) -> bool:
        """Whether a linear layer of transformers 4, called `name`, is asked for, which is no layer of its own any more."""
        return self.targets == "all-linear" or (
            not isinstance(self.targets, str) and any(ends(name, [t.rpartition(".")[2]]) for t in self.targets)
        )
