"""torchtitan: Llama 3, Qwen3 and DeepSeek-V3 from scratch or fully trained, fp32 weights, selective checkpointing by op.

Defaults are those of `train_configs/llama3_*.toml`. One GPU runs under autocast; several gather layers
in bf16, the embedding and the head for themselves, and reduce gradients in fp32 (FSDP2, `models/llama3/infra/parallelize.py` apply_fsdp),
in each pass of a step. Not here: 0.3, which wraps one GPU in FSDP as well; compiled models and
losses, whose kept tensors Inductor chooses. What other models have beside Llama's is in torchtitan_models.py.
"""

from __future__ import annotations

from dataclasses import replace

from ...errors import BadInput, Unknown
from ...kernels import Kernels
from ...ops.chunked import sliced_cross_entropy
from ...ops.loss import compiled_cross_entropy, cross_entropy
from ...ops.parallel_loss import parallel_cross_entropy
from ...optimizers import named
from ...tape import Tape
from ...tensors import Op
from ..job import Account, Job, release
from .recipe import Framework, Recipe
from .sharing import Shares
from .step import account as step_account
from .torchtitan_models import known, own

NAMES = ("torchtitan",)
ABOUT = "Llama, Qwen3, DeepSeek-V3, full, on one GPU or with FSDP2, tensor, context and expert parallelism; mixed precision, FP8; not: PP"
VERSION = "0.2.2"

GROUPED = (0, 2)
"""Since then a checkpointed layer runs to its end again (`config/job_config.py`, early_stop), and SDPA takes keys and values of fewer
heads; before, they were repeated (`models/llama3/model/model.py`, repeat_kv), and the PyTorch that 0.1 asks for, 2.8, has no kernel for
RMSNorm: its product with the weight keeps the normed x (`native/layer_norm.cpp`)."""
FSDP_OF_ONE = (0, 3)
"""Since then a single GPU is wrapped in FSDP too (`models/llama3/parallelize.py`)."""
CHUNKS, CHUNKED = 8, (0, 1)
"""Slices of the chunked loss, and the release before which main had it, in March 2025 (commits e23bb707d to bbb1b616e)."""
OPTIMIZERS = ("adamw-fused", "adamw", "adamw-forloop")
"""AdamW, and Adam, which has the same states (0.2.2 `components/optimizer.py`)."""
KEPT = ("q_proj", "v_proj", "attention", "gate_proj", ".scattered", "down_proj")
"""Ops whose results `selective_ac_option = "op"` keeps: attention, and every second product, from the first on, of q, k, v, o, gate, up,
down (0.2.2 `distributed/activation_checkpoint.py` _apply_op_sac; `models/llama3/infra/parallelize.py` _op_sac_save_list)."""


def account(job: Job) -> Account:
    """A steady step. Raises Unknown for models and releases that are not described."""
    s = job.scenario
    version = s.engine_version or VERSION
    if release(version) >= FSDP_OF_ONE:
        raise Unknown(f"engine_version {version!r}: torchtitan 0.3 wraps one GPU in FSDP, which is not estimated; 0.1 and 0.2 are")
    if s.checkpoint_every and s.checkpointing in (None, "selective"):
        raise BadInput(f"checkpoint_every {s.checkpoint_every}: what torchtitan calls selective_ac_option is this with checkpointing full")
    if s.optimizer and named(s.optimizer) not in OPTIMIZERS:
        raise Unknown(f"optimizer {s.optimizer!r}: torchtitan has {', '.join(OPTIMIZERS)}")
    if s.compile and s.checkpointing == "none":
        raise Unknown("compile with checkpointing 'none': what Inductor keeps is its own choice then; estimated are selective and full")
    if s.loss == "chunked" and release(version) >= CHUNKED:
        raise Unknown(
            f"loss 'chunked': torchtitan had it before 0.1 only, not in {version}; choose plain or compiled, or engine_version 0.0.2"
        )
    known(job)
    framework = own(replace(TORCHTITAN, stops=release(version) < GROUPED), job.model.text)
    return step_account(job, replace(framework, selective=_kept_compiled, compiled=True, loss="compiled") if s.compile else framework)


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
    loss = cross_entropy if recipe.tensor == 1 else parallel_cross_entropy
    loss(tape, tape.ops[-1].writes[0])


def _compiled(tape: Tape, recipe: Recipe) -> None:
    compiled_cross_entropy(tape, tape.ops[-1].writes[0])


def _chunked(tape: Tape, recipe: Recipe) -> None:
    sliced_cross_entropy(tape, tape.ops[-1].writes[0], chunks=CHUNKS)


def _assumes(recipe: Recipe) -> list[str]:
    lines = ["defaults of train_configs/llama3_8b.toml; the embedding and the head are two matrices"]
    if recipe.compiled:
        lines.append(
            "each layer compiled (and the loss, unless loss plain); what Inductor fuses within a layer is counted as if it did not"
        )
    if recipe.context > 1:
        lines.append(f"{recipe.context} GPUs share each sequence (ring attention, context_parallel_rotate_method allgather)")
    if recipe.expert > 1:
        lines.append(f"{recipe.expert} GPUs share the experts: tokens fall evenly; expert_tensor_parallel_degree 1, all-to-all, not DeepEP")
    return [*lines, "checkpointing selective: selective_ac_option 'op'"] if recipe.checkpointing == "selective" else lines


TORCHTITAN = Framework(
    name="torchtitan",
    version=VERSION,
    kernels=_kernels,
    losses={"plain": _plain, "compiled": _compiled, "chunked": _chunked},
    precision="bf16-mixed",
    precisions=("bf16-mixed", "fp8-mixed", "fp32"),
    checkpointing="selective",
    checkpointings=("none", "full", "selective"),
    selective=_kept,
    methods=("full",),
    clips=True,
    shares=dict.fromkeys(("fsdp", "hsdp"), Shares(apart=True, synced=True, outside=True)),
    splits=("context_parallel", "tensor_parallel", "expert_parallel"),
    assumes=_assumes,
)
