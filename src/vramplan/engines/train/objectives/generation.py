"""Completions that a step generates, and what that takes: transformers' own `generate`, or vLLM beside the training.

What it does not know: `merge_adapter` before vLLM gets the weights, padded prompts (whose mask makes sdpa copy keys and values to all
heads), the fragmentation that a growing cache leaves.
"""

from __future__ import annotations

from dataclasses import replace

from ....dim import Dim, numel
from ....errors import BadInput, Unknown
from ....ledger import Item, Moment
from ....sweep import forward_only
from ....tape import Tape
from ....tensors import Cache
from ...job import Job
from ...lines import cache_items, text_caches
from ..recipe import Recipe
from .goal import Goal

GENERATE = frozenset({Moment.GENERATE})
UTILIZATION = 0.3
"""TRL 1.16 `trainer/grpo_config.py` vllm_gpu_memory_utilization."""
CACHED = "transformers 5.23 cache_utils.py, DynamicLayer"
SAMPLED = "transformers 5.23 generation/utils.py, _sample"


def generated(job: Job, recipe: Recipe, goal: Goal) -> list[Item]:
    """transformers' `generate` over the prompts of a whole step: at the last token, or at the prompts where that takes more.

    Accelerate puts autocast around the forward of the model that it is given; with adapters that is PEFT's, whose `generate` goes past it.
    """
    autocast = 0 if recipe.adapters else recipe.mixed.autocast
    if autocast and recipe.mixed.compute > autocast:
        raise Unknown(
            f"generation 'in-process' with precision {recipe.precision!r}: what the cache holds is not estimated under autocast of fp32 "
            "weights; choose precision bf16, or generation vllm or server"
        )
    first = _phase(job, recipe, goal, autocast, tokens=goal.length - goal.scored, past=0)
    last = _phase(job, recipe, goal, autocast, tokens=1, past=goal.length - 1)
    return max(first, last, key=lambda items: sum(item.nbytes for item in items))


def _phase(job: Job, recipe: Recipe, goal: Goal, autocast: int, *, tokens: int, past: int) -> list[Item]:
    """The cache after `tokens` more, and what the pass makes.

    A layer's cache is copied as it grows, keys and values in turn. `generate` names the positions of each sequence, so that each has rotary
    tables of its own. The sampler has the logits (in fp32 where they leave autocast), their copy in fp32, the probabilities, and what
    `multinomial` divides them by. After the prompts, experts that were one grouped product are computed another way.
    """
    size, kernels = recipe.mixed.compute, replace(recipe.framework.kernels(recipe), logits="last")
    kernels = replace(kernels, experts="batched") if past and kernels.experts == "grouped" else kernels
    tape = Tape(Dim(goal.generated, "sequences"), Dim(tokens, "tokens"), past, size, kernels)
    tape.method, tape.autocast = recipe.trains, autocast
    job.walk(tape)
    caches = text_caches(tape)

    def held(cache: Cache) -> tuple[int, int, str]:
        return goal.generated, cache.kept(past + tokens), ""

    growing = max((goal.generated * numel(c.shape) * c.kept(past) * size for c in caches if c.per == "token"), default=0)
    for op in tape.ops:
        op.workspace += growing if op.name.endswith(".attention") else 0
    for table in tape.tables:
        if table.name.startswith("rotary."):
            table.shape = (tape.sequences, *table.shape[1:])
    made, logits = forward_only(tape).forward, tape.ops[-1].writes[0]
    sampling = numel(logits.shape) * ((4 if autocast else logits.itemsize) + 3 * 4)
    nbytes, why = max((sampling, "in the sampler"), (made.nbytes, f"{tokens:,} tokens more of each, most alive at {made.where}"))
    dtype = "fp32" if size == 4 else recipe.precision[:4]
    items = list(cache_items(caches, held, kv_dtype=None, default=dtype, alive=GENERATE, source=CACHED))
    return [*items, Item(path=("activations", "generate"), nbytes=nbytes, alive=GENERATE, why=why, source=SAMPLED)]


def vllm(job: Job, goal: Goal, training: frozenset[Moment]) -> list[Item]:
    """vLLM on the same GPU has its share of it, while `training` too unless it sleeps (level 2: neither weights nor cache)."""
    if goal.generation == "server":
        return []
    if job.gpu is None:
        raise BadInput(f"generation {goal.generation!r}: vLLM takes a share of the GPU; name one with gpu")
    share = job.scenario.gpu_memory_utilization or UTILIZATION
    alive = GENERATE if goal.generation == "vllm-sleep" else GENERATE | training
    why = f"{share:g} of the GPU's memory: weights, cache and what a pass takes"
    source = "TRL 1.16 generation/vllm_generation.py, _init_vllm"
    return [Item(path=("vllm",), nbytes=int(share * job.gpu.usable), alive=alive, why=why, source=source)]
