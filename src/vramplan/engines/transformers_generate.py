"""A device's lines while transformers' `generate` runs: weights, caches, the larger of a pass and of choosing a token, workspaces.

Judged by transformers' own loop on fake tensors (`data/traced/generate.jsonl`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..errors import BadInput
from ..formats import scheme
from ..kernels import Kernels
from ..ledger import Item, Moment
from ..tape import Tape
from .job import Job, release
from .lines import SERVING, block_rest_item, counted, weight_items
from .process import CUDA_CONTEXT, cublas
from .train.transformers_versions import Behaviour
from .transformers_cache import Generation
from .transformers_loading import Loading

LAST_LOGITS = (4, 45)
"""The first release whose `generate` asks for the last position's logits only (`num_logits_to_keep`, transformers PR #31292)."""
PACKED_QUERIES = (5, 23)
"""`integrations/sdpa_attention.py`, pack_gqa: since then a single token's queries are grouped under a mask; before, keys were repeated."""
WARMED = (4, 50)
"""Since this release one block of all weights' size is taken and freed before they load, and they are cut from it without remainders:
`caching_allocator_warmup`, modeling_utils.py (4.51.3: half of a quantised model's). It needs a device_map, which is taken to be there."""
LOADED = SERVING | {Moment.LOAD}
TIMES = (Moment.PREFILL, Moment.DECODE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """The prompt's pass and that of the last token, as one device has them; `head`: the logits are made there, `chooses`: taken there."""

    prefill: Tape
    decode: Tape
    head: bool = True
    chooses: bool = True


def kernels(job: Job, did: Behaviour, version: str) -> Kernels:
    """What the release runs for this model on a prompt. Raises BadInput for kernels of attention that it has not, as it does."""
    attention: Any = job.scenario.attention or ("sdpa" if did.sdpa else "eager")
    if attention == "sdpa" and not did.sdpa:
        raise BadInput(f"attention 'sdpa': transformers {version} has it not for {job.model.id}; choose eager or flash")
    if attention == "flash" and job.dtype == "fp32":
        raise BadInput("attention 'flash': its kernels take fp16 and bf16 only; choose sdpa, or weights bf16")
    return Kernels(
        attention=attention,
        logits="last" if release(version) >= LAST_LOGITS else "all-fp32",
        softmax="fused" if job.dtype == "fp16" else "copied",
        kv=did.kv,
        layout=did.layout,
        rotary=did.rotary,
        experts=did.experts,
    )


def passes(job: Job, run: Generation, plain: Kernels, loads: Loading) -> Passes:
    """The two passes on one device, each with what is drafted; experts are computed another way in the decode (`ops/moe_batched.py`), but
    not with an assistant.

    A static cache gives eager attention all of its keys; sdpa's take those of the prompt.
    """
    sizes: dict[str, Any] = {"sequences": run.rows, "itemsize": job.itemsize, "method": loads.method}
    first = replace(plain, cache=run.update, packing=run.packing)
    room = run.context - run.prompt if run.static and plain.attention == "eager" else 0
    prefill = job.tape(tokens=run.prompt + run.drafted, past=room, kernels=first, **sizes)
    copied = first.experts == "grouped" and not run.drafted and loads.copies_experts(prefill)
    then = replace(first, packing=0, experts="batched" if copied else first.experts)
    if run.static and release(run.version) < PACKED_QUERIES:
        then = replace(then, kv="repeated")
    new = run.drafted + 1
    return Passes(prefill=prefill, decode=job.tape(tokens=new, past=max(run.context - new, 1), kernels=then, **sizes))


def device_items(job: Job, run: Generation, loads: Loading, at: Passes) -> list[Item]:
    """What torch's allocator has on one device."""
    items = [*weight_items(job, at.prefill, LOADED), *loads.items(at.prefill), *run.items(at.prefill, at.decode)]
    warmed = release(run.version) >= WARMED and loads.scheme.name in ("fp32", "fp16", "bf16")
    rests = [] if warmed else [block_rest_item(job, at.prefill, LOADED)]
    return [*items, *_activations(job, run, at), cublas(job.gpu, SERVING), *rests]


def draft_items(job: Job, run: Generation, plain: Kernels) -> list[Item]:
    """An assistant's weights, in its own dtype, and its dynamic cache; its passes run between those of the model, and are smaller.

    Raises BadInput where it has another vocabulary, as `generate` does (`_validate_generation_mode`).
    """
    if job.draft is None:
        return []
    own = job.draft.dtype
    other = replace(job, model=job.draft, draft=None, scheme=scheme(own, dtype=own), scenario=replace(job.scenario, weights=None))
    tape = other.tape(sequences=run.rows, tokens=1, past=run.context - 1, itemsize=other.itemsize, kernels=plain)
    if job.model.text.get("vocab_size") != job.draft.text.get("vocab_size"):
        raise BadInput(f"draft_model {job.draft.id}: its vocabulary is another; transformers then asks for both tokenizers")
    weights = [replace(item, path=("draft model", *item.path)) for item in weight_items(other, tape, LOADED)]
    cache = replace(run, job=other, drafted=0).items(tape, tape)
    return [*weights, *(replace(item, path=("draft model", *item.path)) for item in cache)]


def allocated(items: list[Item]) -> int:
    """The peak of loading and generating."""
    return max(sum(item.nbytes for item in items if moment in item.alive) for moment in (Moment.LOAD, *TIMES))


def context() -> Item:
    """The CUDA context."""
    why = "one process with lazy module loading"
    return Item(path=("cuda context",), nbytes=CUDA_CONTEXT, alive=LOADED, why=why, source="pytorch #107667")


def _activations(job: Job, run: Generation, at: Passes) -> Iterator[Item]:
    """The larger of the pass and of choosing a token from its logits, with what the loop holds from the step before.

    Greedy search and sampling hold the last token's logits in fp32 into the next step, where those of that step come beside them; beam
    search the logits and the accumulated scores, which are made anew by way of a softmax; assisted generation the logits of all drafted
    tokens and the next, twice in fp32 too, and the assistant's. Source: transformers 5.23 `generation/utils.py`, _sample, _beam_search and
    _assisted_decoding.
    """
    vocabulary = run.rows * int(at.decode.ops[-1].writes[0].shape[-1]) if at.chooses else 0
    fp32, logits = vocabulary * 4, vocabulary * job.itemsize
    held, choosing = (2 * fp32, fp32) if run.beams > 1 else (fp32, 0)
    first = 3 * fp32 if run.beams > 1 else logits + fp32
    if run.drafted:
        held = (run.drafted + 1) * (2 * fp32 + logits) + run.drafted * fp32
        first, choosing = (run.drafted + 1) * (2 * fp32 + logits), run.drafted * (2 * fp32 + logits) + fp32
    for tape, moment, what, kept, beside in (
        (at.prefill, Moment.PREFILL, f"the prefill of {run.prompt:,} tokens", 0, first),
        (at.decode, Moment.DECODE, "one decode step", held, logits + fp32 + choosing),
    ):
        here = tape if at.head else _without_head(tape)
        nbytes, where = max(here.peak(), (beside, "choosing the next token"))
        why = f"most alive at once in {what} of {counted(run.rows, 'sequence')}, at {where or 'the end'}"
        alive = frozenset({moment})
        yield Item(path=("activations", moment.value), nbytes=kept + nbytes, alive=alive, why=why, source="the tape's forward pass")


def _without_head(tape: Tape) -> Tape:
    """The ops up to the last layer's last."""
    end = max((i for i, op in enumerate(tape.ops, 1) if op.in_layers), default=len(tape.ops))
    return replace(tape, ops=tape.ops[:end], tensors=[tensor for tensor in tape.tensors if tensor.born < end])
