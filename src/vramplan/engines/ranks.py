"""The ranks of an engine that splits one model over several GPUs: tensor-parallel groups, one for each stage of a pipeline.

What a split leaves to each rank is in `parallel`; here is what a scenario asks for, and what such an engine refuses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import BadInput, Unknown
from ..parallel import expert_parallel, expert_slices, pipeline_stage, tensor_parallel
from ..parallel.pipeline import layers_of
from ..tape import Tape
from .job import Job
from .lines import counted

SPLITS = ("gpu_count", "tensor_parallel", "pipeline_parallel", "expert_parallel", "data_parallel")
"""The keys of `job.MANY` that are answered here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """What the ranks hold: `tape` is a rank's share of the whole pass, `stages` a rank's weights and caches by pipeline stage.

    There are `replicas` of all that, for requests of their own; experts are spread over all of them.
    """

    tensor: int
    replicas: int
    tape: Tape
    stages: list[Tape]

    @property
    def count(self) -> int:
        """GPUs."""
        return self.tensor * len(self.stages) * self.replicas

    @property
    def assumed(self) -> list[str]:
        """How the GPUs share the model; nothing for one."""
        if self.count == 1:
            return []
        replicas = f", data {self.replicas}" if self.replicas > 1 else ""
        split = f"tensor parallelism {self.tensor}, pipeline {len(self.stages)}{replicas}"
        return [f"each of {counted(self.count, 'GPU')} is a rank of {split}"]


def ranks(job: Job, whole: Tape, name: str, layers: Callable[[int, int, int], range] = layers_of) -> Ranks:
    """The split that the scenario asks of engine `name`; GPUs without a split are taken as tensor-parallel.

    `layers` says which layers a stage has. Raises BadInput as the engine would, Unknown for a file whose tensors would be split.
    """
    s = job.scenario
    pipeline, replicas = s.pipeline_parallel or 1, s.data_parallel or 1
    tensor = s.tensor_parallel or max((s.gpu_count or 1) // (pipeline * replicas), 1)
    count = tensor * pipeline * replicas
    if s.gpu_count and s.gpu_count != count:
        data = f" × data_parallel {replicas}" if replicas > 1 else ""
        raise BadInput(f"gpu_count {s.gpu_count}: tensor_parallel {tensor} × pipeline_parallel {pipeline}{data} takes {count} GPUs")
    if count > 1 and job.stored:
        raise Unknown("a file's own tensors are not split over GPUs by this version: name the model by its id or config.json")
    tape = tensor_parallel(whole, tensor)
    spread = tensor * replicas
    if s.expert_parallel and s.expert_parallel > 1:
        if s.expert_parallel != spread:
            over = "tensor-parallel ranks" if replicas == 1 else "tensor-parallel ranks of all replicas"
            raise BadInput(f"expert_parallel {s.expert_parallel}: {name} spreads experts over the {over}, {spread}")
        tape = expert_parallel(tape, whole, spread)
    elif replicas > 1:
        tape = expert_slices(tape, whole, spread)
    stages = [pipeline_stage(tape, stage, pipeline, layers) for stage in range(pipeline)] if pipeline > 1 else [tape]
    return Ranks(tensor=tensor, replicas=replicas, tape=tape, stages=stages)
