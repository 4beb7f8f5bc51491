"""torchtune's recipes: their defaults, kernels, adapters and losses.

Each layer is checkpointed unless asked otherwise, keys and values of several heads are repeated to all, projections are apart even where a
checkpoint joins them, and QLoRA's base is torchao's NF4Tensor. Knowledge distillation, QAT and PPO are not known, nor packed data,
compilation, and what custom_sharded_layers wraps by itself. On several GPUs each layer and what is outside of them is a unit of FSDP2
(0.6.1 `training/_distributed.py` shard_model).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from ...errors import BadInput, Unknown
from ...kernels import Kernels
from ...ledger import Item
from ...methods import Adapters, implied
from ...ops.chunked import chunked_output_loss
from ...ops.lora import Adapter
from ...ops.loss import cross_entropy
from ...tape import Tape
from ...tensors import Weight
from ..job import Account, Job
from .recipe import Framework, Recipe
from .sharing import Shares
from .step import account as step_account
from .stepping import TRAINING

NAMES = ("torchtune",)
ABOUT = "full, LoRA and QLoRA (NF4Tensor) as its recipes run them, on several GPUs with FSDP2; not: compilation, QAT, PPO"
VERSION = "0.6"

PAIRS, HALVES = ("llama", "mistral", "gemma", "gemma2"), ("qwen2", "phi3")
"""Model types that it builds, by their rotary tables: a cosine and a sine for each pair, or for each element
(0.6.1 `models/*/_component_builders.py`, `modules/position_embeddings.py`, `models/qwen2/_positional_embeddings.py`)."""
SCALED = 131072
"""Positions of Llama 3.1 and later, whose layers share one table with adapters too; those of others share it without only."""
UNKNOWN = 4096
"""Positions of a table where the model's are not known: those that the module has by default."""
CHUNKS = 8
"""Pieces of the output (`num_output_chunks`, 0.6.1 `modules/loss/ce_chunked_output_loss.py`)."""
MLP = ("gate_proj", "up_proj", "down_proj")
OWN = {"output_proj": ("o_proj",), "output": ("lm_head",), "mlp": MLP, "w1": MLP, "w2": MLP, "w3": MLP, **dict.fromkeys(MLP, MLP)}
"""torchtune's names, and layers that only come together (`apply_lora_to_mlp`), as checkpoints name them."""


def account(job: Job) -> Account:
    """A steady step. Full training, where the scenario says nothing of the optimizer, steps in the backward pass as the recipe does."""
    s, kind = job.scenario, str(job.model.text.get("model_type"))
    method = s.method or implied(s.quantization, s.lora)
    if kind not in PAIRS + HALVES:
        raise Unknown(f"engine 'torchtune' with model_type {kind!r}: estimated are those that it builds, {', '.join(PAIRS + HALVES)}")
    framework = replace(TORCHTUNE, stays=partial(_tables, kind), adapts=partial(_linears, kind))
    job.refuse("kbit_preparation", "trained_modules")
    if s.quantization == "fp4" or s.double_quant is False:
        raise BadInput("torchtune's QLoRA holds weights in nf4 with quantised scales only; leave quantization and double_quant out")
    if method != "full" or s.optimizer or s.optimizer_in_backward is not None or (s.gradient_accumulation or 1) > 1:
        return step_account(job, framework)
    answer = step_account(replace(job, scenario=replace(s, optimizer="paged-adamw-8bit", optimizer_in_backward=True)), framework)
    answer.filled = {**answer.filled, "optimizer_in_backward": True}
    return answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Linears(Adapters):
    """torchtune's LoRALinear: the base's output is not cloned, whatever it is stored in."""

    def adapter(self, module: str, weight: Weight) -> Adapter | None:
        made = Adapters.adapter(self, module, weight)
        return made and replace(made, packed=None)


def _linears(kind: str, adapters: Adapters, recipe: Recipe) -> Adapters:
    """The adapters on the layers that torchtune's switches stand for; no gradients are asked of the embeddings.

    Of Qwen2 it packs those layers only that have an adapter: raises Unknown where these leave out more than the keys.
    """
    own = {name: getattr(adapters, name) for name in Adapters.__slots__}
    targets = adapters.targets
    if not isinstance(targets, str):
        targets = tuple(dict.fromkeys(name for target in targets for name in OWN.get(target.rpartition(".")[2], (target,))))
    base = adapters.base and replace(adapters.base, kind="nf4tensor", double=False)
    left = {"q_proj", "v_proj", "o_proj", *MLP}.difference(() if isinstance(targets, str) else targets)
    if base and kind == "qwen2" and left and targets != "all-linear":
        raise Unknown(
            f"lora.targets without {', '.join(sorted(left))}: torchtune leaves these in 16 bits, which is not estimated; name them too"
        )
    return Linears(**{**own, "targets": targets, "base": base, "checkpointing": False})


def _tables(kind: str, tape: Tape, recipe: Recipe) -> list[Item]:
    """Cosines and sines of all positions in fp32."""
    caches = [cache for cache in tape.caches if cache.side == "k" and cache.tower is None]
    shared = recipe.adapters is None or (kind == "llama" and tape.positions >= SCALED)
    tables = 1 if shared else sum(len(cache.layers) for cache in caches)
    width = int(caches[0].shape[-1]) * (2 if kind in HALVES else 1)
    positions = tape.positions or max(UNKNOWN, recipe.length)
    why = f"{tables} of {positions:,} positions × {width} × 4 B"
    source = "torchtune 0.6.1 models/*/_component_builders.py"
    return [Item(path=("weights", "rotary tables"), nbytes=tables * positions * width * 4, alive=TRAINING, why=why, source=source)]


def _kernels(recipe: Recipe) -> Kernels:
    return Kernels(
        attention="eager" if recipe.attention == "eager" else "sdpa",
        mlp="plain",
        rope="stacked",
        kv="repeated",
        qkv="split",
        gate_up="split",
        dropout=False,
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
    shares={"fsdp": Shares(always=True)},
    rank=8,
    targets=("q_proj", "v_proj", "o_proj", *MLP),
    adapter_dtype=None,
    packed=("nf4",),
    adapts=partial(_linears, "llama"),
    assumes=_assumes,
)
