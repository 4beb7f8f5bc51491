"""The recipe of a trace: what a scenario leaves open is decided here, and said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import BadInput, Unknown, nearest
from ..families import encoder, model_types
from ..methods import ADAPTERS, implied, packed_as, variant
from ..optimizers import named
from ..scenario import Scenario

if TYPE_CHECKING:
    from ..sources.model import Model

METHODS = ("full", "pretrain", *ADAPTERS)
OPTIMIZERS = (
    *("adamw", "adamw-fused", "adamw-forloop", "adamw-8bit", "adamw-32bit", "paged-adamw-8bit", "paged-adamw-32bit"),
    *("sgd", "sgd-momentum", "adagrad", "rmsprop", "rmsprop-8bit", "rmsprop-32bit", "adafactor", "muon"),
    *("lion", "lion-8bit", "paged-lion", "paged-lion-8bit", "ademamix", "ademamix-8bit", "paged-ademamix", "paged-ademamix-8bit"),
)
DEFAULT_GPU = ("NVIDIA A100-SXM4-80GB", (8, 0), 80 << 30)
"""Whose kernels are taken where no GPU is named."""
UNTRACED = (
    *("tensor_parallel", "pipeline_parallel", "context_parallel", "expert_parallel", "offload", "compile", "ema"),
    *("optimizer_dtype", "optimizer_rank", "gpu_count"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """Adapters: `targets` is "all-linear", "attention" or names; `dtype` that of the adapters' weights; `variant` lora, rslora or dora."""

    rank: int = 16
    alpha: float = 16.0
    dropout: float = 0.0
    targets: str | tuple[str, ...] = "all-linear"
    dtype: str = "fp32"
    variant: str = "lora"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One training step, every choice made. Sizes in bytes, lengths in tokens.

    `quantization` is that of a frozen base, or None; `kbit_preparation` PEFT's `prepare_model_for_kbit_training`; `frozen_modules` are
    left out of full fine-tuning; each sequence has `images` of `image_size` (height and width), and of the `tower` that sees them trains
    nothing ("frozen"), the "projector", or what the method says; `clip` is a gradient norm or None; `padded` says that a mask with padding
    is given, for which flash attention cannot run. An encoder has a `head`: "classification" or "mlm".
    `attention` "auto" is what transformers takes: sdpa, or eager where the model has no
    other. `loop` says who holds the model's output, and so the logits: a "plain" loop's variable
    does until the next step, while transformers' "trainer" lets it go before the backward pass.
    """

    config: Mapping[str, Any]
    name: str = "model"
    method: str = "full"
    precision: str = "bf16"
    quantization: str | None = None
    double_quant: bool = False
    kbit_preparation: bool = False
    lora: Lora = field(default_factory=Lora)
    head: str | None = None
    trained_modules: tuple[str, ...] = ()
    frozen_modules: tuple[str, ...] = ()
    images: int = 0
    image_size: tuple[int, int] | None = None
    tower: str = "trained"
    optimizer: str = "adamw-fused"
    optimizer_in_backward: bool = False
    micro_batch: int = 1
    sequence_length: int = 2048
    gradient_accumulation: int = 1
    checkpointing: str = "none"
    reentrant: bool = False
    attention: str = "auto"
    padded: bool = False
    clip: float | None = None
    loop: str = "plain"
    steps: int = 2
    gpu: str = DEFAULT_GPU[0]
    capability: tuple[int, int] = DEFAULT_GPU[1]
    memory: int = DEFAULT_GPU[2]

    @property
    def adapters(self) -> bool:
        """Whether the base model is frozen and adapters are trained."""
        return self.method not in ("full", "pretrain")

    @property
    def mixed(self) -> bool:
        """Whether the forward pass runs under autocast."""
        return self.precision.endswith("-mixed")

    @property
    def assumptions(self) -> tuple[str, ...]:
        """The choices in words, for whoever reads the result."""
        said = [f"method {self.method}, precision {self.precision}, optimizer {self.optimizer}, checkpointing {self.checkpointing}"]
        said.append(f"{self.micro_batch} x {self.sequence_length:,} tokens, {self.gradient_accumulation} pass(es) a step, plain loss")
        if self.images:
            tower = {"frozen": "is frozen", "projector": "is frozen, its projector trains", "trained": "trains as the method says"}
            said.append(f"{self.images} image(s) among each sequence's tokens; the tower {tower[self.tower]}")
        if self.adapters:
            lora = self.lora
            targets = lora.targets if isinstance(lora.targets, str) else ", ".join(lora.targets)
            kind = {"lora": "LoRA", "rslora": "rsLoRA", "dora": "DoRA"}[lora.variant]
            said.append(f"{kind} adapters of rank {lora.rank} in {lora.dtype} on {targets}, dropout {lora.dropout:g}")
        if self.quantization:
            preparation = "with" if self.kbit_preparation else "without"
            double = " with double quantisation" if self.double_quant and self.quantization != "int8" else ""
            said.append(f"base in {self.quantization}{double}, {preparation} prepare_model_for_kbit_training")
        held = {"plain": "a variable of the loop holds the logits until the next step", "trainer": "nobody holds the logits"}[self.loop]
        said.append(f"{held} (--loop)")
        said.append(f"kernels as on {self.gpu}, compute capability {self.capability[0]}.{self.capability[1]}")
        return tuple(said)


def recipe(asked: Scenario, model: Model, **choices: Any) -> Recipe:
    """The recipe of a scenario. `choices` are fields of Recipe that a scenario does not have, such as `kbit_preparation` or `clip`.

    Raises BadInput for what contradicts itself and Unknown for what is not traced.
    """
    if asked.task != "train":
        raise BadInput(f"task {asked.task!r}: a trace is of a training step; add --task train")
    if asked.engine not in (None, "transformers"):
        raise Unknown(f"engine {asked.engine!r} is not traced, only transformers; trace your own script: vramplan trace script.py")
    for key in UNTRACED:
        if getattr(asked, key) not in (None, False, (), 1):
            raise Unknown(f"{key} is not traced: vramplan trace is of one GPU and plain PyTorch; leave it out, or trace your own script")
    if asked.sharding not in (None, "none"):
        raise Unknown(f"sharding {asked.sharding!r} is not traced: vramplan trace is of one GPU")
    if asked.loss not in (None, "plain"):
        raise Unknown(f"loss {asked.loss!r} is not traced: transformers itself has the plain loss only; trace your own script with yours")
    if asked.kernels not in (None, "native"):
        raise Unknown(f"kernels {asked.kernels!r} are not traced: Triton's do not run on fake tensors; estimate has them")
    if asked.checkpointing == "selective":
        raise Unknown("checkpointing 'selective' is not traced: transformers has none or full; trace your own script with yours")
    method = (asked.method or implied(asked.quantization, asked.lora)).lower()
    if method not in METHODS:
        raise BadInput(f"method {method!r}: traced are {', '.join(METHODS)}{nearest(method, METHODS)}")
    if asked.quantization and method not in ADAPTERS:
        raise BadInput(f"quantization {asked.quantization!r} with method {method!r}: quantised weights do not train; use method qlora")
    chosen: dict[str, Any] = {"config": model.config, "name": model.id, "method": method}
    if asked.optimizer is not None:
        chosen["optimizer"] = named(asked.optimizer)
    for key in ("precision", "double_quant", "micro_batch", "sequence_length", "gradient_accumulation", "checkpointing"):
        if (value := getattr(asked, key)) is not None:
            chosen[key] = value.lower() if isinstance(value, str) else value
    for key in (
        "attention",
        "optimizer_in_backward",
        "trained_modules",
        "frozen_modules",
        "kbit_preparation",
        "images",
        "image_size",
        "tower",
    ):
        if (value := getattr(asked, key)) is not None:
            chosen[key] = value
    if asked.kbit_preparation and asked.checkpointing is None:
        chosen["checkpointing"] = "full"
    if method in ADAPTERS:
        settings: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in (asked.lora or {}).items()}
        chosen["lora"] = Lora(**{**settings, "variant": variant(method, settings)})
        chosen["quantization"] = packed_as(method, asked.quantization)
    if model.config.get("model_type") in model_types() and encoder(model.config):
        chosen["head"] = asked.head or "classification"
    elif asked.head:
        raise BadInput(f"head {asked.head!r}: {model.id} is a decoder, which has its own; leave it out")
    made = Recipe(**{**chosen, **_gpu(asked), **choices})
    _check(made)
    return made


def _gpu(asked: Scenario) -> dict[str, Any]:
    if asked.gpu is None:
        return {} if asked.gpu_memory is None else {"memory": asked.gpu_memory}
    name, capability, memory = gpu_facts(asked.gpu)
    return {"gpu": name, "capability": capability, "memory": asked.gpu_memory or memory}


def gpu_facts(name: str) -> tuple[str, tuple[int, int], int]:
    """Name, compute capability and usable bytes of a GPU of the catalogue. Raises NotFound, and Unknown for other makers' GPUs."""
    from ..catalog.gpus import find_gpu

    gpu = find_gpu(name)
    if gpu.compute_capability is None:
        raise Unknown(f"gpu {gpu.name}: only NVIDIA GPUs are traced, whose kernels PyTorch chooses by compute capability")
    major, _, minor = gpu.compute_capability.partition(".")
    return gpu.name, (int(major), int(minor or 0)), gpu.usable


def _check(made: Recipe) -> None:
    if made.frozen_modules and made.adapters:
        raise BadInput(f"frozen_modules with method {made.method!r}: adapters freeze the whole model; use method full")
    if made.image_size and not made.images:
        raise BadInput("image_size: there are no images; say how many stand in a sequence, such as images 1")
    if made.kbit_preparation and not made.quantization:
        raise BadInput("kbit_preparation without a quantised base: add quantization, or method qlora")
    if made.optimizer not in OPTIMIZERS:
        raise BadInput(f"optimizer {made.optimizer!r}: traced are {', '.join(OPTIMIZERS)}{nearest(made.optimizer, OPTIMIZERS)}")
    if made.optimizer_in_backward and (made.gradient_accumulation > 1 or made.optimizer == "muon"):
        raise BadInput("optimizer_in_backward: a gradient is gone when its weight has stepped, so no gradient_accumulation; and no muon")
    if made.precision == "fp8-mixed":
        raise Unknown("precision 'fp8-mixed' is not traced; trace your own script with its FP8 layers")
    if made.attention == "flash" and made.precision == "fp32":
        raise BadInput("attention 'flash' with precision 'fp32': flash attention takes fp16 and bf16 only; use --attention sdpa or bf16")
    if made.attention == "flash" and made.capability < (8, 0):
        raise BadInput(f"attention 'flash' needs compute capability 8.0, {made.gpu} has {made.capability[0]}.{made.capability[1]}")
