"""Unsloth (FastLanguageModel) on one GPU: LoRA and QLoRA through its own functions, norms and loss, layers' inputs in host memory.

Decoder blocks are taken as its Python runs them: before PyTorch 2.11, or with UNSLOTH_BLOCK_COMPILE=0. Not here: compiled blocks and full
fine-tuning, whose modules it compiles too: there Inductor chooses what is kept. Nor dropout, packing, experts and vision towers.
"""

from __future__ import annotations

from dataclasses import replace

from ...dim import numel
from ...errors import Unknown
from ...kernels import Kernels
from ...ledger import Item, Moment
from ...ops import fused_loss
from ...tape import Tape
from ..job import Account, Job, release
from .recipe import Framework, Recipe
from .step import account as step_account
from .stepping import TRAINING

NAMES = ("unsloth",)
ABOUT = "one GPU: LoRA and QLoRA of Llama, Mistral and Qwen3; offloaded checkpointing; fused loss; not: full, compiled blocks, dropout"
VERSION = "2026.10"

MODEL_TYPES = ("llama", "mistral", "qwen3")
"""Those whose attention and MLP its fused functions take whole: SwiGLU, no biases (2026.10.9 `models/llama.py` patch_peft_model)."""
LEAST = 2 << 20
"""Inputs of layers up to so many bytes stay on the GPU (Unsloth Zoo 2026.10.9 `gradient_checkpointing.py` MINIMUM_SIZE)."""
PROJECTIONS = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"})


def account(job: Job) -> Account:
    """A steady step. Raises Unknown for what its own functions do not run, or what it compiles."""
    s, kind = job.scenario, str(job.model.config.get("model_type"))
    if release(s.engine_version or VERSION) < (2026, 10):
        raise Unknown(f"engine_version {s.engine_version!r}: Unsloth is described since {VERSION}")
    if kind not in MODEL_TYPES:
        raise Unknown(f"engine 'unsloth': its functions are described for model types {', '.join(MODEL_TYPES)}, not {kind!r}")
    lora = s.lora or {}
    targets = lora.get("targets", "all-linear")
    if targets != "all-linear" and not set(targets if isinstance(targets, tuple) else ()) >= PROJECTIONS:
        raise Unknown(f"lora.targets {targets!r}: Unsloth's functions are described with adapters on all seven projections; try all-linear")
    if lora.get("dropout"):
        raise Unknown(f"lora.dropout {lora['dropout']}: Unsloth's functions are described without dropout, its default")
    method = s.method or ("lora" if s.quantization is None and s.lora else "qlora")
    asked = replace(s, method=method, double_quant=s.double_quant is not False)
    memory = job.gpu.usable if job.gpu else None

    def loss(tape: Tape, recipe: Recipe) -> None:
        fused_loss.unsloth(tape, memory)

    return step_account(replace(job, scenario=asked), replace(UNSLOTH, losses={"fused": loss}))


def _kernels(recipe: Recipe) -> Kernels:
    return Kernels(attention=recipe.attention, norm="inplace", rope="inplace", adapters="fused", logits="all")


def _stays(tape: Tape, recipe: Recipe) -> list[Item]:
    """Buffers that it makes once: two for inputs of layers on their way back from the host, one for an unpacked weight."""
    items, entry = [], next(op.reads[0] for op in tape.ops if op.in_layers)
    if recipe.offloaded and entry.nbytes > LEAST:
        source = "Unsloth Zoo 2026.10.9 gradient_checkpointing.py UnslothCheckpointFunction"
        why = "two buffers like a layer's input, while half a GiB is free"
        items.append(Item(path=("activations", "staging"), nbytes=2 * entry.nbytes, alive=TRAINING, why=why, source=source))
        why, before = "the last layer's input is not sent to the host", frozenset({Moment.FORWARD, Moment.LOSS})
        items.append(Item(path=("activations", "last input"), nbytes=entry.nbytes, alive=before, why=why, source=source))
    base = recipe.adapters.base if recipe.adapters else None
    if base:
        linear = [numel(w.shape) for w in tape.weights if w.kind == "linear" and w.part != "adapters" and not w.tower]
        why, source = "the largest weight unpacked, for every product of the forward pass", "Unsloth 2026.10.9 kernels/utils.py _scratch"
        items.append(Item(path=("workspace", "unpacked"), nbytes=max(linear) * base.compute, alive=TRAINING, why=why, source=source))
    return items


def _assumes(recipe: Recipe) -> list[str]:
    return ["blocks not compiled: PyTorch before 2.11, or UNSLOTH_BLOCK_COMPILE=0", "adapters in every projection, no dropout"]


UNSLOTH = Framework(
    name="unsloth",
    version=VERSION,
    kernels=_kernels,
    losses={},
    loss="fused",
    precisions=("bf16",),
    optimizer="adamw-8bit",
    checkpointing="full",
    offloads=True,
    methods=("lora", "qlora"),
    packed=("nf4",),
    wide_embeddings=True,
    clips=True,
    stays=_stays,
    assumes=_assumes,
)
