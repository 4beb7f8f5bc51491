"""LitGPT: `litgpt finetune_full` and `finetune_lora`, their defaults, kernels, adapters and losses.

One model class runs all families: queries, keys and values come of one projection, keys and values are repeated to all heads, a tied head
has a matrix of its own, RMS norms stay in fp32 and activations are one kernel. Lightning hands the logits out in fp32, and the loop's
variable holds them until the next. On several GPUs it shards with FSDP1, checkpoints each block, and lets whole gradients wait for the last
pass of a step of 16 sequences (0.5.13 `litgpt/finetune/lora.py`: FSDPStrategy, no_backward_sync). What it does not know: mixtures of
experts, pre-training, int8, adapters other than LoRA.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...errors import BadInput, Unknown, nearest
from ...kernels import Kernels
from ...ledger import Item, Moment
from ...methods import Adapters, implied
from ...ops.chunked import chunked_cross_entropy, held, split_cross_entropy
from ...ops.lora import Adapter
from ...tape import Tape
from ...tensors import Weight
from ..job import Account, Job, release
from .recipe import Framework, Recipe
from .sharing import Shares
from .step import account as step_account
from .stepping import TRAINING

NAMES = ("litgpt",)
ABOUT = "full, LoRA and QLoRA as `litgpt finetune` runs them, on several GPUs with FSDP; not: mixtures of experts"
VERSION = "0.4"
"""The one that LitGPT's tables were measured with (April to September 2024)."""

CHUNK = 128
"""Positions that the head takes at once, and tokens of a chunk of the loss (0.5.13 `litgpt/finetune/lora.py`, `litgpt/utils.py`)."""
STABLE = (0, 5)
"""Since then QLoRA puts a bitsandbytes StableEmbedding in the embedding's place (LitGPT #1770), and bitsandbytes is later than 0.43.2
(LitGPT #1893; before, 0.42.0 was asked for)."""

ROLES = {
    "query": ("q_proj", "query"),
    "key": ("k_proj", "key"),
    "value": ("v_proj", "value"),
    "projection": ("o_proj", "dense", "out_proj", "proj", "projection"),
    "mlp": ("gate_proj", "up_proj", "down_proj", "gate_up_proj", "fc1", "fc2", "dense_h_to_4h", "dense_4h_to_h", "mlp"),
    "head": ("lm_head", "embed_out", "head"),
}
"""LitGPT's switches (`lora_query`, `lora_mlp` …) and the layers of checkpoints that each stands for."""
JOINED = ("qkv_proj", "query_key_value", "Wqkv", "c_attn", "attn")
"""One name for queries, keys and values."""


def account(job: Job) -> Account:
    """A steady step of `litgpt finetune`. QLoRA takes bitsandbytes' PagedAdamW (0.5.13 `litgpt/utils.py` instantiate_bnb_optimizer)."""
    job.refuse("optimizer_in_backward", "kbit_preparation", "trained_modules")
    method = job.scenario.method or implied(job.scenario.quantization, job.scenario.lora)
    if method == "qlora" and (job.scenario.precision or "").endswith("-mixed"):
        raise BadInput(f"precision {job.scenario.precision!r} with qlora: LitGPT quantises with true precisions only; choose bf16")
    several = (job.scenario.gpu_count or 1) > 1
    framework = replace(LITGPT, checkpointing="full", checkpointings=("full",)) if several else LITGPT
    return step_account(job, replace(framework, optimizer="paged-adamw-32bit") if method == "qlora" else framework)


@dataclass(frozen=True, slots=True, kw_only=True)
class Switched(Adapters):
    """LitGPT's adapters: on the layers that `roles` switch on, all of a kind at once."""

    roles: frozenset[str] = frozenset()

    def assumptions(self, weights: Sequence[Weight]) -> list[str]:
        """The choices in words."""
        _, *base = Adapters.assumptions(self, weights)
        return [f"LoRA of rank {self.rank} in {self.dtype} on {', '.join(role for role in ROLES if role in self.roles)}", *base]

    def adapter(self, module: str, weight: Weight) -> Adapter | None:
        if weight.kind not in ("linear", "head") or len(weight.shape) != 2 or weight.tower is not None:
            return None
        made = Adapter(rank=self.rank, itemsize=4 if self.dtype == "fp32" else 2, dtype=self.dtype, dropout=self.dropout)
        if weight.parts:
            parts = tuple(role in self.roles for role in ("query", "key", "value"))
            return replace(made, parts=parts) if any(parts) else None
        role = "head" if weight.kind == "head" else "mlp" if weight.part == "mlp" else "projection"
        return replace(made, rows=CHUNK if role == "head" else 0) if role in self.roles else None


def _switched(adapters: Adapters, recipe: Recipe) -> Adapters:
    """The adapters by LitGPT's switches, over a base that bitsandbytes holds as its version does. Raises BadInput for an unknown target."""
    base = adapters.base
    if base:
        base = replace(base, head=True, twice=True, keeps=release(recipe.version) < STABLE)
    own = {name: getattr(adapters, name) for name in Adapters.__slots__}
    return Switched(**{**own, "base": base, "targets": "all-linear"}, roles=frozenset(_roles(adapters.targets)))


def _roles(targets: str | tuple[str, ...]) -> list[str]:
    if isinstance(targets, str):
        return [role for role in ROLES if role != "head" and (targets == "all-linear" or role != "mlp")]
    roles = []
    for target in targets:
        last = target.rpartition(".")[2]
        found = [role for role, names in ROLES.items() if last in names] or (["query", "key", "value"] if last in JOINED else [])
        if not found:
            known = [name for names in ROLES.values() for name in names]
            raise BadInput(f"lora.targets {target!r}: LitGPT has adapters for {', '.join(ROLES)}{nearest(last, known)}")
        roles += found
    return roles


def _kernels(recipe: Recipe) -> Kernels:
    """Before 0.5 the chunks of the head that `finetune_lora` asks for were not soft-capped (LitGPT #1891)."""
    return Kernels(
        attention="eager" if recipe.attention == "eager" else "sdpa",
        norm="fp32",
        mlp="plain",
        rope="concatenated",
        kv="expanded",
        qkv="joined",
        gate_up="split",
        dropout=False,
        tied=False,
        softcap=recipe.method == "full" or release(recipe.version) >= STABLE,
        logits="all",
    )


def _loss(tape: Tape, recipe: Recipe) -> None:
    """The head in chunks with adapters, whole without; the loss in chunks. Raises Unknown for models not described as it runs them."""
    if any(weight.kind == "experts" for weight in tape.weights):
        raise Unknown("engine 'litgpt': mixtures of experts, which it runs one expert at a time, are not estimated by this version")
    if not any(weight.parts for weight in tape.weights):
        raise Unknown("engine 'litgpt': it joins queries, keys and values in one projection, as this model's are not described here")
    logits = tape.ops[-1].writes[0]
    if recipe.adapters:
        chunked_cross_entropy(tape, logits, rows=CHUNK)
    else:
        split_cross_entropy(tape, logits)


def _stays(tape: Tape, recipe: Recipe) -> list[Item]:
    """What the loop's variables hold: the logits, and of the graph behind them what autograd does not free."""
    logits = next(op.reads[0] for op in tape.ops if op.name.endswith("output"))
    source = "LitGPT 0.5.13 litgpt/finetune/lora.py fit"
    items = [
        Item(path=("activations", "logits held"), nbytes=held(logits), alive=TRAINING, why="the loop's variable, in fp32", source=source)
    ]
    base = recipe.adapters.base if recipe.adapters else None
    if base and base.keeps:
        kept = {
            id(t): t for op in tape.ops if any(w.kind in ("linear", "head") and w.part != "adapters" for w in op.weights) for t in op.keeps
        }
        nbytes = sum(tensor.nbytes * tensor.repeats for tensor in kept.values())
        why = "inputs of 4-bit layers in the pass before, whose graph the logits hold"
        source = "bitsandbytes 0.42 autograd/_functions.py MatMul4Bit (ctx.tensors)"
        items.append(Item(path=("activations", "inputs held"), nbytes=nbytes, alive=frozenset({Moment.FORWARD}), why=why, source=source))
    elif base:
        embedding = next(weight for weight in tape.weights if weight.kind == "embed")
        nbytes = embedding.numel * recipe.size(embedding)
        why = "the embedding before it was replaced, and the gradient of the new one, which is never cleared"
        source = "LitGPT 0.5.13 litgpt/finetune/lora.py main"
        items.append(Item(path=("weights", "embedding replaced"), nbytes=2 * nbytes, alive=TRAINING, why=why, source=source))
    return items


def _assumes(recipe: Recipe) -> list[str]:
    lines = [f"logits in fp32, loss in chunks of {CHUNK} tokens; no checkpointing on one GPU, each block on several"]
    if recipe.adapters and recipe.adapters.base:
        old = recipe.adapters.base.keeps
        lines.append(
            f"bitsandbytes {'0.42, which LitGPT 0.4 asks for; see engine_version 0.5' if old else '0.45 or later'}; the head in 4 bits too"
        )
    return lines


LITGPT = Framework(
    name="litgpt",
    version=VERSION,
    kernels=_kernels,
    losses={"chunked": _loss},
    precisions=("bf16", "fp16", "fp32", "bf16-mixed", "fp16-mixed"),
    optimizer="adamw",
    loss="chunked",
    checkpointings=("none",),
    shares={"fsdp": Shares(named="FSDP1", flat=True, prefetch=True)},
    global_batch=16,
    rank=8,
    targets=("q_proj", "v_proj"),
    adapter_dtype=None,
    dropout=0.05,
    adapts=_switched,
    stays=_stays,
    assumes=_assumes,
)
