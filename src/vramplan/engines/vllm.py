"""vLLM: weights, the profile run's peak, what torch does not see, and a cache pool of whatever is left of the budget.

The budget is gpu_memory_utilization × the GPU's memory; cache pool = budget − weights − activation peak − non-torch memory (− CUDA graphs
since 0.20). It fits if the pool holds one sequence of the longest length, which is what vLLM checks when it starts, and if the GPU has
room for the budget and what lies outside it: with the pool made, graphs are captured and the sampler runs once more. V0 (to 0.7, and to
0.10 on GPUs before Ampere) runs the same profile without compilation, and charges every layer a page for every block. Each rank of a
tensor-parallel group has its share of weights, cache and activations; ranks of a pipeline differ by their layers; data-parallel replicas
share experts. What it does not know: disaggregated prefill, offloading, other platforms than CUDA.
Sources: `gpu_worker.py`, `gpu_model_runner.py` (vllm.v1.worker), `kv_cache_utils.py` (vllm.v1.core), `worker.py` at 0.6.4, and 60 start-up
logs of vLLM 0.19.0 on H100 (jgchn/llm-d-planner, commit d3121e0).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..formats import weights_nbytes
from ..ledger import Item, Moment
from ..scenario import MTP
from ..tape import Tape
from ..units import GiB, gib
from .advice import advised
from .drafts import draft, own_layers, passed, with_draft
from .eagle import states
from .job import Account, Device, Job
from .lines import SERVING, counted, item_of_share
from .ranks import Ranks, ranks
from .vllm_advice import advice
from .vllm_defaults import UTILIZATION, V1, VERSION, batch, check, largest_graph, latents, running
from .vllm_graphs import OUTSIDE, shapeless
from .vllm_pages import Pages, pages
from .vllm_profile import Pass, activations, kernels, logits
from .vllm_weights import repacked, weights

NAMES = ("vllm",)
ABOUT = (
    "V0, V1 to 0.19, later (graphs in the budget): profile run, pages, windows, hybrid groups, pictures, LoRA slots, drafts, EAGLE, MTP; "
    "TP, PP, EP, DP; not: offloading"
)
SWAP = 4 * GiB
"""V0's `--swap-space` for each GPU, in host memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A rank of a pipeline's stage: what it holds beside the pool, the pages of that, and the most bytes `while_loading`."""

    fixed: list[Item]
    pages: Pages
    while_loading: int

    def inside(self) -> int:
        """Bytes that the budget has to hold beside the pool."""
        return sum(item.nbytes for item in self.fixed if OUTSIDE not in item.path)

    def total(self, context: int) -> int:
        """Bytes with one request of `context` tokens."""
        return sum(item.nbytes for item in self.fixed) + self.pages.need(context)


def account(job: Job) -> Account:
    """What `vllm serve` takes on one GPU, what its pool holds, and what would make it start where it does not."""
    return advised(job, _account, advice)


def _account(job: Job) -> Account:
    s = job.scenario
    check(job)
    version, utilization = s.engine_version or VERSION, s.gpu_memory_utilization or UTILIZATION
    run = _pass(job, version)
    whole = job.tape(sequences=1, tokens=run.tokens, kernels=kernels(run.running), itemsize=job.itemsize)
    latents(whole, run.running)
    split = ranks(job, whole, "vLLM")
    stages = _stages(job, whole, split, run)
    held = [[*stage.fixed, *stage.pages.items(run.context)] for stage in stages]
    worst = max(range(len(stages)), key=lambda stage: stages[stage].total(run.context))
    made = Account(
        tape=whole,
        items=held[worst],
        rank=worst * split.tensor,
        count=split.tensor * split.replicas,
        filled={
            "engine_version": version,
            "sequences": run.sequences,
            "max_batched_tokens": run.tokens,
            "context_length": run.context,
            "gpu_memory_utilization": utilization,
            "eager": run.eager,
        },
        facts=_facts(stages[worst].fixed),
        assumptions=[
            f"vLLM {version}, at most {counted(run.sequences, 'sequence')} and {run.tokens:,} tokens per pass, {utilization:g} of the GPU",
            *split.assumed,
            *_context_assumed(job, run.context),
        ],
        host=[_swap()] if run.running < V1 else [],
    )
    if job.gpu is not None:
        most = job.model.context_length or run.context
        _fill_pool(made, stages, worst, job.gpu.usable, int(utilization * job.gpu.usable), run.context, most)
    others = [stage for stage in range(len(stages)) if stage != worst]
    made.others = [Device(rank=n * split.tensor, count=made.count, gpu=job.gpu, room=made.room, items=held[n]) for n in others]
    return made


def _pass(job: Job, version: str) -> Pass:
    """The profile run's size as the scenario or the release's defaults have it."""
    since = running(job, version)
    context = job.context(default=job.model.context_length or 8192)
    sequences, tokens = batch(job, since, context)
    return Pass(
        sequences=sequences,
        tokens=tokens,
        context=context,
        running=since,
        eager=bool(job.scenario.eager),
        gpu=job.gpu,
        drafting=job.scenario.draft_model is not None,
        states=states(job.draft) if job.draft else 0,
        captured=largest_graph(job, since),
    )


def _stages(job: Job, whole: Tape, split: Ranks, run: Pass) -> list[Stage]:
    """What the ranks of each stage hold; a draft has its weights and caches on each of them."""
    beside, drafted = _drafted(job, split, run)
    stages = []
    for number, tape in enumerate(split.stages):
        mine = replace(split.tape, weights=tape.weights, caches=tape.caches)
        peak = activations(job, mine, run, first=number == 0, last=number == len(split.stages) - 1)
        others = shapeless(mine, run, split.tensor, len(split.stages))
        unused, loading = repacked(job, tape, run.running, _total(peak), 4 * logits(job, run), _total(others, "cuda context"))
        fixed = [*weights(job, tape, whole, run.running), *beside, *peak, *unused, *others]
        keeps = with_draft(tape, drafted) if drafted else tape
        stages.append(Stage(fixed=fixed, pages=pages(job, keeps, run.tokens, run.running), while_loading=loading))
    return stages


def _drafted(job: Job, split: Ranks, run: Pass) -> tuple[list[Item], Tape | None]:
    """Weights of what proposes tokens on a rank, and its tape, whose caches are beside the model's."""
    helper = draft(job)
    if helper is not None:
        whole = passed(helper, run.tokens, kernels(run.running))
        share = ranks(helper, whole, "vLLM").stages[0]
        items = weights(helper, share, whole, run.running)
    elif job.scenario.draft_model == MTP:
        share = own_layers(job, split.stages[0])
        items = [item_of_share(part, SERVING, job.model.origin) for part in weights_nbytes(share.weights, job.scheme)]
    else:
        return [], None
    return [replace(item, path=("weights", "draft", *item.path[1:])) for item in items], share


def _facts(fixed: list[Item]) -> dict[str, int]:
    """What vLLM logs of a rank."""
    names = {"activation_peak": "activations", "non_torch": "non-torch", "cuda_graphs": "cuda graphs"}
    return {fact: _total(fixed, name) for fact, name in names.items()}


def _total(items: list[Item], name: str | None = None) -> int:
    return sum(item.nbytes for item in items if name in (None, item.path[0]))


def _swap() -> Item:
    return Item(
        path=("swap space",), nbytes=SWAP, alive=frozenset({Moment.PREFILL, Moment.DECODE}), why="--swap-space 4, for each GPU",
        source="vLLM 0.6.4 engine/arg_utils.py",
    )  # fmt: skip


def _fill_pool(made: Account, stages: list[Stage], worst: int, usable: int, budget: int, context: int, most: int) -> None:
    """The cache pool is what the budget has left; it must hold one sequence. All ranks have as many blocks as the one with the fewest."""
    stage = stages[worst]
    outside = sum(item.nbytes for item in stage.fixed) - stage.inside()
    need = stage.pages.need(context)
    pool = budget - stage.inside() if need else 0  # an encoder has no pool (kv_cache_utils.py, _get_kv_cache_groups: no specs)
    made.room = min(budget + outside, usable)
    made.facts |= {"kv_cache": max(pool, 0), "process": stage.inside() + outside + max(pool, need)}
    over, failure = _failure(stage, usable, budget, outside if pool > 0 else None)
    if need:
        tokens = made.facts["kv_tokens"] = min(held.pages.tokens(budget - held.inside(), context) for held in stages)
        longest = made.facts["longest_context"] = min(held.pages.fits(budget - held.inside(), most) for held in stages)
        if pool > 0 and stage.while_loading <= usable:
            held = f"{gib(pool)} holds {tokens:,} tokens: {pool / need:.1f} sequences of {context:,}"
            made.remarks.append(f"the cache pool of {held}, or one of {longest:,}")
    if over > 0:  # the verdict is what is missing then
        made.room = min(made.room, sum(item.nbytes for item in made.items) - over)
        made.remarks.append(f"vLLM would {failure}")


def _failure(stage: Stage, usable: int, budget: int, outside: int | None) -> tuple[int, str]:
    """Bytes that are missing at the first step of a start that has too few, and what happens; `outside` the budget, if there is a pool."""
    free = usable - _total(stage.fixed, "cuda context")
    if budget > free:  # request_memory, v1/worker/utils.py
        what = f"not start: free memory, {gib(free)}, is less than the desired GPU memory utilization, {gib(budget)}"
        return (budget - free if outside is None else budget + outside - usable), what
    if stage.while_loading > usable:
        what = f"run out of memory while it lays out experts anew, which takes {gib(stage.while_loading)}"
        return stage.while_loading - usable, what
    over = 0 if outside is None else budget + outside - usable
    return over, f"run out of memory: the pool is {gib(over)} too large for what comes after it, outside the budget"


def _context_assumed(job: Job, context: int) -> list[str]:
    """What was taken for the longest sequence where the user left it open."""
    if job.scenario.context_length is not None:
        return []
    own = "the model's own maximum" if job.model.context_length else "a guess, as nothing states the model's own"
    return [f"sequences of up to {context:,} tokens: {own}"]
