"""The roof of a training step, op by op from the tape that its memory is counted on, forward and backward, with the optimizer's bytes.

Each op takes the longer of its operations and of what it moves; a frozen weight has no gradient of its own, checkpointed layers run forward
twice, packed weights are unpacked each time. What GPUs gather and reduce runs beside it; how Megatron's ranks share it, `megatron` tells.
What it does not know: links between machines, data loading, the processor's optimizer, objectives other than plain fine-tuning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..catalog.gpus import Gpu
from ..errors import Unknown
from ..ledger import Moment
from ..tape import Tape
from ..tensors import Op
from .hardware import bandwidth, link, peak
from .megatron import split
from .roof import Roof
from .work import flops, is_fused_attention

if TYPE_CHECKING:
    from ..estimate import Estimate

FLASH_BACKWARD = 2.5
"""Operations of fused attention's backward pass over its forward's: five products for two (Dao 2023, arXiv:2307.08691, section 4.1)."""


def step(answer: Estimate) -> tuple[Roof, int]:
    """One optimizer step on one GPU, all GPUs at once, and the tokens that they train on in it all together.

    Raises Unknown for objectives with more than one pass, and for what is stepped or kept on the host.
    """
    gpu, s, tape = answer.gpu, answer.scenario, answer.tape
    assert gpu is not None
    if s.objective not in (None, "sft") or s.offload:
        raise Unknown(f"speed of {'offloaded' if s.offload else s.objective} training is not estimated by this version")
    passes = s.gradient_accumulation or 1
    ops = [seconds(op, tape, gpu, answer, full=s.checkpointing == "full") for op in tape.ops]
    memory = sum(moved for moved, computed in ops if moved >= computed) * passes
    stepping = _stepping(answer) / bandwidth(gpu)
    compute = sum(computed for moved, computed in ops if moved < computed) * passes
    ranks = sum(share.count for share in answer.shares)
    if answer.job.engine == "megatron":
        return _split(answer, gpu, ranks, passes, (memory, compute), stepping)
    memory += stepping
    tokens = int(tape.sequences) * int(tape.tokens) * ranks * passes
    return Roof(bandwidth=memory, compute=compute, ideal=memory + compute, link=_shared(answer, gpu, ranks, passes), hidden=True), tokens


def _split(answer: Estimate, gpu: Gpu, ranks: int, passes: int, work: tuple[float, float], stepping: float) -> tuple[Roof, int]:
    """A step whose `work`, seconds of moving and of computing for one copy of the model, Megatron's ranks share."""
    one = split(answer, gpu, ranks, passes)
    memory, compute = (part / one.ranks * one.waiting for part in work)
    memory += stepping
    tokens = int(answer.tape.sequences) * int(answer.tape.tokens) * passes * ranks // one.ranks
    return Roof(bandwidth=memory, compute=compute, ideal=memory + compute, link=one.link), tokens


def seconds(op: Op, tape: Tape, gpu: Gpu, answer: Estimate, *, full: bool) -> tuple[float, float]:
    """Seconds of `op` forward and backward, in all its layers: what moving takes, and what computing takes."""
    forward = 2 if full and op.in_layers else 1
    trained = any(weight.trained for weight in op.weights)
    onward = any(tensor.storage.grad for tensor in op.reads)
    if op.weights:
        backward: float = (trained + onward) if op.flops else 1
    else:
        backward = (FLASH_BACKWARD if is_fused_attention(op) else 2) * onward
    matrices = sum(weight.numel // weight.repeats * op.writes[0].itemsize for weight in op.weights) if op.flops else 0
    unpacked = 2 * op.workspace if op.weights else 0
    once = op.moved + matrices + unpacked
    kept = sum(tensor.nbytes for tensor in op.keeps)
    moved = once * forward + (once + kept) * (trained or onward)
    form = "fp32" if op.writes[0].itemsize == 4 else "fp8" if answer.scenario.precision == "fp8-mixed" and _in_layer(op) else "bf16"
    computed = flops(op, int(tape.tokens), 0) * (forward + backward) / peak(gpu, form)
    return moved * op.repeats / bandwidth(gpu), computed


def _in_layer(op: Op) -> bool:
    """Whether `op` is a linear layer of those that FP8 training converts: all but the head's."""
    return any(weight.kind == "linear" for weight in op.weights)


def _stepping(answer: Estimate) -> int:
    """Bytes that the optimizer moves: states read and written, gradients read, weights, as large as they, read and written."""
    at = [item for item in answer.ledger.items if Moment.STEP in item.alive]
    states = sum(item.nbytes for item in at if item.path[0] == "optimizer states")
    return 2 * states + 3 * sum(item.nbytes for item in at if item.path[0] == "gradients")


def _shared(answer: Estimate, gpu: Gpu, ranks: int, passes: int) -> float:
    """Seconds of the link: weights gathered forward and backward and gradients reduced (FSDP, ZeRO-3), or gradients added up by a ring."""
    if ranks == 1:
        return 0.0
    tape = answer.tape
    size = tape.autocast or tape.itemsize
    weights = sum(weight.numel for weight in tape.weights if weight.kind != "buffer") * size
    gradients = sum(weight.numel for weight in tape.weights if weight.trained and weight.kind != "buffer") * size
    sharded = answer.scenario.sharding in ("fsdp", "hsdp", "zero3")
    sent = passes * (2 * weights + gradients) if sharded else 2 * gradients
    return sent * (ranks - 1) / ranks / link(gpu)
