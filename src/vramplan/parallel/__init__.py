"""Parallelism: a tape as one rank has it. Here, and nowhere else, is anything divided by a degree."""

from .expert import expert_parallel
from .pipeline import pipeline_stage
from .tensor import tensor_parallel

__all__ = ["expert_parallel", "pipeline_stage", "tensor_parallel"]
