"""torchtune's single-device recipes: their defaults, kernels, adapters and losses.

Each layer is checkpointed unless asked otherwise, keys and values are repeated to all heads, projections are apart even where a checkpoint
joins them, and QLoRA's base is torchao's NF4Tensor. Knowledge distillation, QAT and PPO are not known, nor several GPUs and compilation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...errors import BadInput
from ...methods import Adapters, implied
from ...ops.chunked import chunked_output_loss
from ...ops.lora import Adapter
from ...ops.loss import cross_entropy
from ...tape import Kernels, Tape, Weight
from ..job import Account, Job
from .recipe import Framework, Recipe
from .step import account as step_account

NAMES = ("torchtune",)
ABOUT = "one GPU: full, LoRA and QLoRA (NF4Tensor) as its single-device recipes run them; not: several GPUs, compilation, QAT, PPO"
VERSION = "0.6"

CHUNKS = 8
"""Pieces of the output (`num_output_chunks`, 0.6.1 `modules/loss/ce_chunked_output_loss.py`)."""
MLP = ("gate_proj", "up_proj", "down_proj")
OWN = {"output_proj": ("o_proj",), "output": ("lm_head",), "mlp": MLP, "w1": MLP, "w2": MLP, "w3": MLP, **dict.fromkeys(MLP, MLP)}
"""torchtune's names, and layers that only come together (`apply_lora_to_mlp`), as checkpoints name them."""


def account(job: Job) -> Account:
    """A steady step. Full training, where the scenario says nothing of the optimizer, steps in the backward pass as the recipe does."""
    s = job.scenario
    method = s.method or implied(s.quantization, s.lora)
    if method == "full" and s.optimizer is None and s.optimizer_in_backward is None and (s.gradient_accumulation or 1) == 1:
        job = replace(job, scenario=replace(s, optimizer="paged-adamw-8bit", optimizer_in_backward=True))
    if s.quantization == "fp4" or s.double_quant is False:
        raise BadInput("torchtune's QLoRA holds weights in nf4 with quantised scales only; leave quantization and double_quant out")
    return step_account(job, TORCHTUNE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Linears(Adapters):
    """torchtune's LoRALinear: the base's output is not cloned, whatever it is stored in."""

    def adapter(self, module: str, weight: Weight) -> Adapter | None:
        made = Adapters.adapter(self, module, weight)
        return made and replace(made, packed=None)


def _linears(adapters: Adapters, recipe: Recipe) -> Adapters:
    """The adapters on the layers that torchtune's switches stand for; no gradients are asked of the embeddings."""
    own = {name: getattr(adapters, name) for name in Adapters.__slots__}
    targets = adapters.targets
    if not isinstance(targets, str):
        targets = tuple(dict.fromkeys(name for target in targets for name in OWN.get(target.rpartition(".")[2], (target,))))
    base = adapters.base and replace(adapters.base, kind="nf4tensor", double=False)
    return Linears(**{**own, "targets": targets, "base": base, "checkpointing": False})


def _kernels(recipe: Recipe) -> Kernels:
    return Kernels(
        attention="eager" if recipe.attention == "eager" else "sdpa",
        mlp="plain",
        rope="stacked",
        kv="expanded",
        qkv="split",
        gate_up="split",
        logits="all",
    )


def _chunked(tape: Tape, recipe: Recipe) -> None:
    chunked_output_loss(tape, tape.ops[-1].writes[0], chunks=CHUNKS)


def _plain(tape: Tape, recipe: Recipe) -> None:
    cross_entropy(tape, tape.ops[-1].writes[0])


def _assumes(recipe: Recipe) -> list[str]:
    lines = ["defaults of recipes/configs/llama3_1/8B_*_single_device.yaml"]
    if recipe.loss == "chunked":
        lines.append(f"CEWithChunkedOutputLoss in {CHUNKS} pieces")
    return lines


TORCHTUNE = Framework(
    name="torchtune",
    version=VERSION,
    kernels=_kernels,
    losses={"chunked": _chunked, "plain": _plain},
    precisions=("bf16", "fp32"),
    optimizer="adamw-fused",
    loss="chunked",
    checkpointing="full",
    rank=8,
    targets=("q_proj", "v_proj", "o_proj", *MLP),
    adapter_dtype=None,
    packed=("nf4",),
    adapts=_linears,
    assumes=_assumes,
)
