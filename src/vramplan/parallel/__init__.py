"""Parallelism: a tape as one rank has it. Here, and nowhere else, is anything divided by a degree."""

from .expert import expert_parallel, expert_slices
from .pipeline import part_of, pipeline_stage
from .sequence import sequence_parallel
from .tensor import tensor_parallel

__all__ = ["expert_parallel", "expert_slices", "part_of", "pipeline_stage", "sequence_parallel", "tensor_parallel"]
