"""What an objective adds to a step: the reference model, its pass, and who makes completions, as line items.

What it does not know: a reference adapter of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ....dim import Dim
from ....formats import Scheme, weights_nbytes
from ....ledger import Item, Moment
from ....methods import Frozen, Full
from ....sweep import Sweep, forward_only
from ....tape import Tape
from ...job import Job
from ..recipe import Recipe
from .generation import GENERATE, generated, vllm
from .goal import Goal

STEP = frozenset({Moment.FORWARD, Moment.LOSS, Moment.BACKWARD, Moment.STEP})
"""What is alive at all of these is there at an objective's own moments too."""
REFERENCE = frozenset({Moment.REFERENCE})


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
        if not self.items:
            return list(items)
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
        return Beside(items=[*items, *generated(job, recipe, goal)], copies=copies, timed=False)
    if goal.generation:
        pool = vllm(job, goal, STEP)
        lasting = sum(item.nbytes for item in pool if item.alive >= STEP)
        return Beside(items=[*items, *pool], copies=copies, outside=lasting, timed=goal.generation != "vllm-sleep")
    if goal.reference not in ("model", "adapter-off"):
        return Beside(items=items, copies=copies)
    alike = not recipe.adapters and not tape.ops[-1].name.endswith("balance")
    between = forward_only(tape if alike else _reference(job, recipe, goal))
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
    """The forward pass without adapters, nor what balances routers.

    Weights of a model of its own are marked as trained, so that autocast caches their copies.
    """
    base = recipe.adapters.base if recipe.adapters else None
    method = Full() if goal.reference == "model" and base is None else Frozen(base=base)
    tape = Tape(Dim(recipe.batch, "batch"), Dim(recipe.length, "tokens"), 0, recipe.mixed.compute, recipe.framework.kernels(recipe))
    tape.method, tape.autocast = method, recipe.mixed.autocast
    job.walk(tape)
    goal.objective.end(tape, goal.scored)
    return tape
