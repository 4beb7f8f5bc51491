"""Megatron's ranks: which degrees a scenario asks for, which layers each pipeline stage has, and what Megatron refuses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ...errors import BadInput, Unknown
from ...parallel.mesh import Mesh
from ...parallel.schedule import check
from ...scenario import Scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """`mesh` of ranks; of the pipeline its `schedule`, its `chunks` on each stage and the `micro_batches` of a step. `distributed`: the
    optimizer is spread over copies of a weight; `sequence`: tensor-parallel ranks split tokens too.
    """

    mesh: Mesh
    schedule: str
    chunks: int
    micro_batches: int
    distributed: bool
    sequence: bool

    def assumptions(self) -> list[str]:
        """The split in words."""
        m = self.mesh
        degrees = {"tensor": m.tensor, "context": m.context, "pipeline": m.pipeline, "expert": m.expert, "data": m.data}
        named = ", ".join(f"{name} {degree}" for name, degree in degrees.items() if degree > 1)
        lines = [f"{m.ranks} GPUs: {named}"] if m.ranks > 1 else []
        if m.tensor > 1 and self.sequence:
            lines.append("tensor-parallel ranks split tokens too (sequence_parallel)")
        if m.ranks > 1:
            lines.append("distributed optimizer" if self.distributed else "every rank steps all of its weights (no distributed optimizer)")
        if m.pipeline > 1:
            chunks = f", {self.chunks} chunks a stage" if self.chunks > 1 else ""
            lines.append(f"pipeline schedule {self.schedule}{chunks}, {self.micro_batches} micro-batches a step")
        return lines


def asked(s: Scenario) -> Ranks:
    """The ranks that a scenario asks for. Without a number of GPUs there are as many as the degrees take, without one of micro-batches as
    many as fill the pipeline. Raises BadInput as Megatron would.
    """
    tensor, pipeline, context, expert = (
        degree or 1 for degree in (s.tensor_parallel, s.pipeline_parallel, s.context_parallel, s.expert_parallel)
    )
    mesh = Mesh(
        ranks=s.gpu_count or pipeline * max(tensor * context, expert),
        tensor=tensor,
        pipeline=pipeline,
        context=context,
        expert=expert,
    )
    if s.sharding not in (None, "none", "ddp", "zero1"):
        raise Unknown(f"sharding {s.sharding!r}: estimated for engine 'megatron' are zero1 (its distributed optimizer), ddp and none")
    if s.data_parallel not in (None, 1, mesh.data):
        raise BadInput(f"data_parallel {s.data_parallel}: {mesh.ranks} GPUs leave {mesh.data} for it; leave it out")
    sequence = tensor > 1 and s.sequence_parallel is not False
    if expert > 1 and tensor > 1 and not sequence:
        raise BadInput("sequence_parallel false: Megatron wants it with tensor and expert parallelism together; leave it out")
    chunks = s.virtual_pipeline or 1
    schedule = s.pipeline_schedule or ("interleaved" if chunks > 1 else "1f1b")
    micro_batches = s.gradient_accumulation or (pipeline * min(chunks, 2) if pipeline > 1 else 1)
    check(schedule, pipeline, micro_batches, chunks)
    return Ranks(
        mesh=mesh,
        schedule=schedule,
        chunks=chunks,
        micro_batches=micro_batches,
        distributed=s.sharding in (None, "zero1"),
        sequence=sequence,
    )


def chunks_of(ranks: Ranks, depth: int, uneven: Sequence[int] | None) -> list[list[range]]:
    """The layers of each stage's chunks: even, or as many as `uneven` says, stage by stage, then the next chunk of each.

    Raises BadInput where they are not the model's `depth` (Megatron-Core 0.19 `core/transformer/transformer_block.py`,
    get_num_layers_to_build).
    """
    stages, chunks = ranks.mesh.pipeline, ranks.chunks
    pieces = stages * chunks
    if uneven and (len(uneven) != pieces or sum(uneven) != depth):
        raise BadInput(f"pipeline_layers {', '.join(map(str, uneven))}: must be {pieces} numbers that make {depth} layers")
    if not uneven and depth % pieces:
        near = min((n for n in range(1, depth + 1) if depth % n == 0 and n % chunks == 0), key=lambda n: abs(n - pieces), default=0)
        said = f"pipeline_parallel {stages}" + (f" × virtual_pipeline {chunks}" if chunks > 1 else "")
        works = f"; {near // chunks} stages would" if near else ""
        raise BadInput(f"{said}: {depth} layers do not divide by it{works}; or say with pipeline_layers how many each stage has")
    counts = uneven or [depth // pieces] * pieces
    starts = [sum(counts[:n]) for n in range(pieces + 1)]
    ranges = [range(a, b) for a, b in pairwise(starts)]
    return [ranges[stage::stages] for stage in range(stages)]
