"""How Megatron's ranks share a training step: the pipeline's bubble, and what the ranks exchange while they wait.

What it does not know: links between machines, the all-to-all of experts, the ring of context parallelism, communication that is overlapped
(Megatron's `overlap_grad_reduce`, `tp_comm_overlap`, which are off by default).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..catalog.gpus import Gpu
from ..ledger import Moment
from ..parallel.stage import depth_of
from .hardware import link

if TYPE_CHECKING:
    from ..estimate import Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A copy of the model is shared by `ranks`, each of which takes `waiting` times its own work in the pipeline, and `link` seconds of a
    step to exchange what it has.
    """

    ranks: int
    waiting: float
    link: float


def split(answer: Estimate, gpu: Gpu, ranks: int, passes: int) -> Split:
    """The split of a step of `passes` micro-batches over `ranks`.

    The bubble is (p − 1) / (m·v) of the work of p stages, m micro-batches and v chunks (Narayanan et al. 2021, arXiv:2104.04473, section
    2.2), none of a zero-bubble schedule. Tensor-parallel ranks add up twice a layer forward, twice backward, and twice when it is
    recomputed, each time 2 (t − 1) / t of a layer's output (Shoeybi et al. 2019, arXiv:1909.08053, section 3). Copies scatter and gather
    what they hold of gradients and weights once a step.
    """
    s, tape = answer.scenario, answer.tape
    tensor, pipeline = s.tensor_parallel or 1, s.pipeline_parallel or 1
    chunks = s.virtual_pipeline or 1
    bubble = 0.0 if s.pipeline_schedule == "zero-bubble" else (pipeline - 1) / (passes * chunks)
    added = (6 if s.checkpointing == "full" else 4) * depth_of(tape) / pipeline * passes
    output = int(tape.sequences) * int(tape.tokens) * int(tape.ops[0].writes[0].shape[-1]) * tape.itemsize
    copies = ranks // (tensor * pipeline)
    gradients = answer.ledger.total("gradients", moment=Moment.STEP)
    sent = added * 2 * (tensor - 1) / tensor * output + 1.5 * gradients * (copies - 1) / copies  # fp32 gradients there, bf16 weights back
    return Split(ranks=tensor * pipeline, waiting=1 + bubble, link=sent / link(gpu) if ranks > 1 else 0.0)
