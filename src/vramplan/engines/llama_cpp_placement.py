"""Which device holds which tensor: -ngl, -ts, -sm, -ot, --n-cpu-moe.

Devices are numbered from 0 in the order that llama.cpp finds them; the host comes last. Source: llama.cpp 0.5.0 `src/llama-model.cpp`,
load_tensors (layers by the running sum of the splits; the input layer on the host, the output as one more layer),
`src/llama-model-loader.cpp`, create_tensor (overrides by the first pattern found in the name), `common/common.h` (LLM_FFN_EXPS_REGEX). It
knows layers and tensors' names, no sizes.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from ..errors import BadInput
from ..formats.gguf_names import category
from ..scenario import Scenario
from ..tensors import Weight

_EXPERTS = re.compile(r"blk\.(\d+)\.ffn_(up|down|gate|gate_up)_(ch|)exps")
_HOSTS = ("CPU",)
_DEVICE = re.compile(r"(?:CUDA|ROCm|Vulkan|Metal|MTL|SYCL|CANN|RPC)(\d*)(?:\[.*\])?", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Devices of a model of `layers` layers over `gpus` GPUs: those of the layers and, last, of the output; patterns that move tensors."""

    layers: int
    gpus: int
    devices: tuple[int, ...]
    overrides: tuple[tuple[re.Pattern[str], int], ...] = ()
    cpu_moe: int = 0

    @property
    def host(self) -> int:
        return self.gpus

    @property
    def on_gpu(self) -> int:
        """Layers on GPUs, the output counted as one."""
        return sum(device != self.gpus for device in self.devices)

    def layer(self, i: int) -> int:
        """The device of layer `i`; the output is layer `layers`."""
        return self.devices[i]

    def moves(self, kind: str) -> bool:
        """Whether a pattern may put a weight of this kind elsewhere than its layer."""
        return bool(self.overrides) or (self.cpu_moe > 0 and kind == "experts")

    def tensor(self, name: str, home: int) -> int:
        """The device of the tensor called `name` in the file: that of the first pattern found in its name, else `home`."""
        for pattern, device in self.overrides:
            if pattern.search(name):
                return device
        found = _EXPERTS.search(name) if self.cpu_moe else None
        return self.host if found and int(found[1]) < self.cpu_moe else home


def placement(s: Scenario, layers: int, free: tuple[float, ...]) -> Placement:
    """What a scenario's flags say of GPUs with `free` memory. Raises BadInput for a split, a pattern or a device that llama.cpp refuses."""
    asked = layers + 1 if s.gpu_layers is None or s.gpu_layers < 0 else s.gpu_layers
    gpus = len(free)
    shares = tuple(s.tensor_split or free)
    if len(shares) > max(gpus, 1):
        raise BadInput(f"tensor_split: {len(shares)} shares for {gpus} GPUs (gpu_count)")
    shares = shares + (0.0,) * (gpus - len(shares))
    if gpus and (min(shares) < 0 or not sum(shares)):
        raise BadInput("tensor_split: shares must not be negative, and one must be more than 0")
    if s.split_mode == "none":
        shares = (1.0,) + (0.0,) * (gpus - 1)
    given = tuple(_override(text, gpus) for entry in s.override_tensor or () for text in entry.split(","))
    devices = _devices(layers + 1, min(asked, layers + 1) if gpus else 0, shares)
    return Placement(layers=layers, gpus=gpus, devices=devices, overrides=given, cpu_moe=s.cpu_moe_layers or 0)


def _devices(layers: int, held: int, shares: Sequence[float]) -> tuple[int, ...]:
    """The device of each layer, of which the last `held` are on GPUs: by their place in the running sum of the shares."""
    gpus = len(shares)
    splits = [total / sum(shares) for total in accumulate(shares)]
    found = (min(bisect_right(splits, i / held), gpus - 1) for i in range(held))
    return (*(gpus,) * (layers - held), *found)


def _override(text: str, gpus: int) -> tuple[re.Pattern[str], int]:
    pattern, equals, device = text.rpartition("=")
    if not equals or not pattern:
        raise BadInput(f"override_tensor {text[:60]!r}: must be pattern=device, such as exps=CPU")
    try:
        found = re.compile(pattern)
    except re.error as error:
        raise BadInput(f"override_tensor {text[:60]!r}: no regular expression ({error})") from None
    number = gpus if device in _HOSTS else int(m[1] or 0) if (m := _DEVICE.fullmatch(device)) else -1
    if not 0 <= number <= gpus or (number == gpus and device not in _HOSTS):
        raise BadInput(
            f"override_tensor {text[:60]!r}: unknown buffer type {device[:20]!r}; there are CPU and {gpus} GPUs, CUDA0 the first"
        )
    return found, number


# ---- names ---------------------------------------------------------------------------------------------------------------
@lru_cache(maxsize=65536)
def _template(name: str, kind: str, where: str, rank: int) -> tuple[str, ...]:
    stem, _, end = name.rpartition(".")
    if end not in ("weight", "bias"):
        stem, end = name, "bias" if end.endswith("bias") else "weight"
    leaf = stem.rpartition(".")[2].removesuffix("_bias")
    expert = "_exps" if kind == "experts" else "_shexp" if "shared" in stem else ""
    base: tuple[str, ...]
    if kind == "router":
        base = ("ffn_gate_inp",)
    elif kind == "head":
        return (f"output.{end}",)
    elif kind == "embed":
        return (f"token_embd.{end}" if where == "token_embd" and "per_layer" not in name else f"{leaf}.{end}",)
    elif where == "kv_b":
        base = ("attn_k_b", "attn_v_b")
    elif where == "qkvz":
        base = ("attn_qkv", "attn_gate")
    elif where in ("attn_q", "attn_k", "attn_output"):
        base = (where,)
    elif where == "attn_v":
        base = ("attn_v" if leaf in ("v_proj", "wv", "value", "v", "v_lin") else "attn_qkv",)
    elif where == "ffn_down":
        base = (f"ffn_down{expert}",)
    elif where == "ffn_up":
        gate = leaf in ("gate_proj", "w1", "gate", "wi_0")
        both = kind == "experts" and leaf in ("gate_up_proj", "input_linear")
        base = (f"ffn_gate{expert}", f"ffn_up{expert}") if both else (f"ffn_{'gate' if gate else 'up'}{expert}",)
        base = ("ffn_gate_up_exps",) if is_merged(name) else base
    else:
        base = (leaf,)
    layer = "blk.{i}." if "{i}" in name else ""
    return tuple(f"{layer}{part}.{end}" for part in base)


def is_merged(name: str) -> bool:
    """Whether conversion keeps the experts' gate and up as one tensor: where the experts are the layer's own, beside its MLP."""
    return ".{i}.experts.gate_up_proj" in name


def is_split(name: str) -> bool:
    """Whether conversion makes two tensors of a joined gate and up: of the shared experts that call it input_linear."""
    return name.endswith("shared_mlp.input_linear.weight")


def file_names(weight: Weight, layer: int | None) -> tuple[str, ...]:
    """What a file calls the tensors of `weight` in a layer; norms and small parts keep the checkpoint's own last name.

    >>> w = Weight(name="model.layers.{i}.mlp.experts.{e}.up_proj.weight", shape=(768, 2048), kind="experts", part="experts")
    >>> file_names(w, 3)
    ('blk.3.ffn_up_exps.weight',)
    """
    plain = weight if len(weight.shape) > 1 else None
    where = category(weight) if plain is not None else _of_bias(weight)
    return tuple(part.replace("{i}", str(layer)) for part in _template(weight.name, weight.kind, where, len(weight.shape)))


def _of_bias(weight: Weight) -> str:
    """The category of the matrix that a bias stands beside."""
    if weight.kind not in ("linear", "experts"):
        return "f32"
    matrix = Weight(name=weight.name.replace("_bias", "").replace(".bias", ".weight"), shape=(2, 2), kind=weight.kind, part=weight.part)
    return category(matrix)
