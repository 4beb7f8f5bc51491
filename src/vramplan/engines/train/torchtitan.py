"""torchtitan: Llama 3 from scratch or fully trained, fp32 weights, selective checkpointing by op.

Defaults are those of `train_configs/llama3_*.toml`. One GPU runs under autocast; several gather layers
in bf16, the embedding and the head for themselves, and reduce gradients in fp32 (FSDP2, `models/llama3/infra/parallelize.py` apply_fsdp),
in each pass of a step. Not here: 0.3, which wraps one GPU in FSDP as well; compiled models and
losses, whose kept tensors Inductor chooses; other models than Llama 3, whose code is their own.
"""

from __future__ import annotations

from dataclasses import replace

from ...errors import BadInput, Unknown
from ...kernels import Kernels
from ...ops.loss import compiled_cross_entropy, cross_entropy
from ...optimizers import named
from ...tape import Op, Tape
from ..job import Account, Job, release
from .recipe import Framework, Recipe
from .sharing import Shares
from .step import account as step_account

NAMES = ("torchtitan",)
ABOUT = "Llama, full, on one GPU or with FSDP2 and context parallelism; mixed precision, FP8; not: TP, PP, other models"
VERSION = "0.2.2"

GROUPED = (0, 2)
"""Since then SDPA takes keys and values of fewer heads; before, they were repeated (`models/llama3/model/model.py`, repeat_kv), and the
PyTorch that 0.1 asks for, 2.8, has no kernel for RMSNorm: its product with the weight keeps the normed x (`native/layer_norm.cpp`)."""
FSDP_OF_ONE = (0, 3)
"""Since then a single GPU is wrapped in FSDP too (`models/llama3/parallelize.py`)."""
OPTIMIZERS = ("adamw-fused", "adamw", "adamw-forloop")
"""AdamW, and Adam, which has the same states (0.2.2 `components/optimizer.py`)."""
KEPT = ("q_proj", "v_proj", "attention", "gate_proj", "down_proj")
"""Ops whose results `selective_ac_option = "op"` keeps: attention, and every second product, from the first on, of q, k, v, o, gate, up,
down (0.2.2 `distributed/activation_checkpoint.py` _apply_op_sac; `models/llama3/infra/parallelize.py` _op_sac_save_list)."""


def account(job: Job) -> Account:
    """A steady step. Raises Unknown for models and releases that are not described."""
    s, kind = job.scenario, job.model.config.get("model_type")
    version = s.engine_version or VERSION
    if release(version) >= FSDP_OF_ONE:
        raise Unknown(f"engine_version {version!r}: torchtitan 0.3 wraps one GPU in FSDP, which is not estimated; 0.1 and 0.2 are")
    if s.checkpoint_every and s.checkpointing in (None, "selective"):
        raise BadInput(f"checkpoint_every {s.checkpoint_every}: what torchtitan calls selective_ac_option is this with checkpointing full")
    if s.optimizer and named(s.optimizer) not in OPTIMIZERS:
        raise Unknown(f"optimizer {s.optimizer!r}: torchtitan has {', '.join(OPTIMIZERS)}")
    if kind != "llama":
        raise Unknown(f"engine 'torchtitan': its Llama 3 is described, not its model for {kind!r}")
    if s.compile and s.checkpointing == "none":
        raise Unknown("compile with checkpointing 'none': what Inductor keeps is its own choice then; estimated are selective and full")
    return step_account(job, replace(TORCHTITAN, selective=_kept_compiled, compiled=True, loss="compiled") if s.compile else TORCHTITAN)


def _kernels(recipe: Recipe) -> Kernels:
    recent = release(recipe.version) >= GROUPED
    return Kernels(
        attention=recipe.attention,
        norm="fused" if recent else "upcast",
        mlp="plain",
        rope="complex",
        kv="grouped" if recent else "expanded",
        tied=False,
        logits="all",
    )


def _kept(op: Op) -> bool:
    return op.name.endswith(KEPT)


def _kept_compiled(op: Op) -> bool:
    """A compiled layer keeps no result that backward does not ask for: the last product's only goes into the next layer's input, and FP8
    copies are made again (torch `_functorch/partitioners.py`).
    """
    return op.name.endswith(KEPT[:-1])


def _plain(tape: Tape, recipe: Recipe) -> None:
    cross_entropy(tape, tape.ops[-1].writes[0])


def _compiled(tape: Tape, recipe: Recipe) -> None:
    compiled_cross_entropy(tape, tape.ops[-1].writes[0])


def _assumes(recipe: Recipe) -> list[str]:
    lines = ["defaults of train_configs/llama3_8b.toml; the embedding and the head are two matrices"]
    if recipe.compiled:
        lines.append(
            "each layer compiled (and the loss, unless loss plain); what Inductor fuses within a layer is counted as if it did not"
        )
    if recipe.context > 1:
        lines.append(f"{recipe.context} GPUs share each sequence (ring attention, context_parallel_rotate_method allgather)")
    return [*lines, "checkpointing selective: selective_ac_option 'op'"] if recipe.checkpointing == "selective" else lines


TORCHTITAN = Framework(
    name="torchtitan",
    version=VERSION,
    kernels=_kernels,
    losses={"plain": _plain, "compiled": _compiled},
    precision="bf16-mixed",
    precisions=("bf16-mixed", "fp8-mixed"),
    checkpointing="selective",
    checkpointings=("none", "full", "selective"),
    selective=_kept,
    methods=("full",),
    clips=True,
    shares={"fsdp": Shares(apart=True, synced=True, outside=True)},
    splits=("context_parallel",),
    assumes=_assumes,
)
