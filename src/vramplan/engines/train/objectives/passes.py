"""What an objective adds to a step: the reference model and its pass, and generated completions, as line items.

What it does not know: `merge_adapter` before vLLM gets the weights, a reference adapter of its own, padded prompts (whose mask makes sdpa
copy keys and values to all heads).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ....errors import BadInput, Unknown
from ....formats import Scheme, weights_nbytes
from ....ledger import Item, Moment
from ....methods import Adapters, Frozen, Full
from ....sweep import Sweep, forward_only
from ....tape import Cache, Dim, Tape, numel
from ...job import Job
from ...lines import cache_items, text_caches
from ..recipe import Recipe
from .goal import Goal

STEP = frozenset({Moment.FORWARD, Moment.LOSS, Moment.BACKWARD, Moment.STEP})
"""What is alive at all of these is there at an objective's own moments too."""
GENERATE, REFERENCE = frozenset({Moment.GENERATE}), frozenset({Moment.REFERENCE})
UTILIZATION = 0.3
"""TRL 1.16 `trainer/grpo_config.py` vllm_gpu_memory_utilization."""
CACHED = "transformers 5.23 cache_utils.py, DynamicLayer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """An objective's own items, the pass that runs between forward and backward, and bytes that are another program's.

    `copies`: of the base's weights, beside the policy's own; `timed`: whether the order of all blocks is known.
    """

    items: Sequence[Item] = ()
    copies: int = 0
    between: Sweep | None = None
    outside: int = 0
    timed: bool = True

    def joined(self, items: Iterable[Item]) -> list[Item]:
        """`items` of a step with the objective's own. What lasts is alive at its moments too, but gradients are gone when it generates."""
        own = frozenset(moment for item in self.items for moment in item.alive) - STEP - {Moment.LOAD}
        here = {True: own - GENERATE, False: own}
        lasting = [replace(i, alive=i.alive | here[i.path[0] == "gradients"]) if i.alive >= STEP else i for i in items]
        return [*lasting, *self.items]


def beside(job: Job, recipe: Recipe, tape: Tape, swept: Sweep, form: Scheme) -> Beside:
    """What the recipe's objective adds to a step, whose training pass was walked on `tape` and `swept`."""
    goal = recipe.goal
    if goal is None:
        return Beside()
    items = _copy(goal, tape, form)
    copies = len(items)
    if goal.generation == "in-process":
        return Beside(items=[*items, *_generated(job, recipe, goal)], copies=copies, timed=False)
    if goal.generation:
        pool = _vllm(job, goal)
        lasting = sum(item.nbytes for item in pool if item.alive >= STEP)
        return Beside(items=[*items, *pool], copies=copies, outside=lasting, timed=goal.generation != "vllm-sleep")
    if goal.reference not in ("model", "adapter-off"):
        return Beside(items=items, copies=copies)
    between = forward_only(tape if not recipe.adapters else _reference(job, recipe, goal))
    saved = "what the policy's forward pass, which ran before, keeps for backward"
    why = f"in the reference's forward pass, where most is alive: at {between.forward.where}"
    for path, nbytes, text in (("saved activations",), swept.saved, saved), (("activations", "reference"), between.forward.nbytes, why):
        items.append(Item(path=path, nbytes=nbytes, alive=REFERENCE, why=text, source=goal.objective.source))
    return Beside(items=items, copies=copies, between=between)


def _copy(goal: Goal, tape: Tape, form: Scheme) -> list[Item]:
    """The reference model, where it is one of its own: in the policy's dtype."""
    if goal.reference != "model":
        return []
    nbytes = sum(share.nbytes for share in weights_nbytes([w for w in tape.weights if w.part != "adapters"], form))
    why = "a second copy of the weights, which does not train"
    return [Item(path=("weights", "reference model"), nbytes=nbytes, alive=STEP | {Moment.LOAD}, why=why, source=goal.objective.source)]


def _reference(job: Job, recipe: Recipe, goal: Goal) -> Tape:
    """The forward pass without adapters. Weights of a model of its own are marked as trained, so that autocast caches their copies."""
    base = recipe.adapters.base if recipe.adapters else None
    method = Full() if goal.reference == "model" and base is None else Frozen(base=base)
    tape = _walked(job, recipe, method, goal.sequences, goal.length)
    goal.objective.end(tape, goal.scored)
    return tape


def _walked(job: Job, recipe: Recipe, method: Full | Frozen | Adapters, sequences: int, tokens: int, past: int = 0) -> Tape:
    kernels = recipe.framework.kernels(recipe)
    if past or tokens < recipe.length:
        kernels = replace(kernels, logits="last")
    tape = Tape(Dim(sequences, "sequences"), Dim(tokens, "tokens"), past, recipe.mixed.compute, kernels)
    tape.method, tape.autocast = method, recipe.mixed.autocast
    return job.walk(tape)


# ---- generation ---------------------------------------------------------------------------
def _generated(job: Job, recipe: Recipe, goal: Goal) -> list[Item]:
    """transformers' `generate` over the prompts of a whole step: at the last token, or at the prompts where that takes more."""
    if recipe.mixed.compute > (recipe.mixed.autocast or recipe.mixed.compute):
        raise Unknown(
            f"generation 'in-process' with precision {recipe.precision!r}: what the cache holds is not estimated under autocast of fp32 "
            "weights; choose precision bf16, or generation vllm or server"
        )
    prompt = goal.length - goal.scored
    first = _phase(job, recipe, goal, tokens=prompt, past=0)
    last = _phase(job, recipe, goal, tokens=1, past=goal.length - 1)
    return max(first, last, key=lambda items: sum(item.nbytes for item in items))


def _phase(job: Job, recipe: Recipe, goal: Goal, *, tokens: int, past: int) -> list[Item]:
    """The cache after `tokens` more, and what the pass makes; a layer's cache is copied as it grows, keys and values in turn."""
    tape = _walked(job, recipe, recipe.trains, goal.generated, tokens, past)
    dtype = "fp32" if recipe.mixed.compute == 4 else recipe.precision[:4]

    def held(cache: Cache) -> tuple[int, int, str]:
        return goal.generated, cache.kept(past + tokens), ""

    items = list(cache_items(text_caches(tape), held, kv_dtype=None, default=dtype, alive=GENERATE, source=CACHED))
    growing = max(
        (goal.generated * numel(c.shape) * c.kept(past) * recipe.mixed.compute for c in text_caches(tape) if c.per == "token"), default=0
    )
    for op in tape.ops:
        op.workspace += growing if op.name.endswith(".attention") else 0
    passing = forward_only(tape).forward
    logits = tape.ops[-1].writes[0]
    sampling = numel(logits.shape) * (16 if recipe.mixed.autocast else 12 + logits.itemsize)
    what = {True: ("the sampler", sampling), False: (f"{tokens:,} tokens more, at {passing.where}", passing.nbytes)}
    why, nbytes = what[sampling > passing.nbytes]
    items.append(
        Item(
            path=("activations", "generate"),
            nbytes=nbytes,
            alive=GENERATE,
            why=why,
            source="transformers 5.23 generation/utils.py, _sample",
        )
    )
    return items


def _vllm(job: Job, goal: Goal) -> list[Item]:
    """vLLM beside the training on the same GPU takes its share of the GPU; asleep (level 2) it has neither weights nor cache."""
    if goal.generation == "server":
        return []
    if job.gpu is None:
        raise BadInput(f"generation {goal.generation!r}: vLLM takes a share of the GPU; name one with gpu")
    share = job.scenario.gpu_memory_utilization or UTILIZATION
    nbytes = int(share * job.gpu.usable)
    alive = GENERATE if goal.generation == "vllm-sleep" else GENERATE | STEP
    why = f"{share:g} of the GPU's memory: weights, cache and what a pass takes"
    return [Item(path=("vllm",), nbytes=nbytes, alive=alive, why=why, source="TRL 1.16 generation/vllm_generation.py, _init_vllm")]
