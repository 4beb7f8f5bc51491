"""The order of allocations: the sweep's events unrolled over all layers, and what the allocator makes of them.

Judges: the sweep's own peaks (two ways to the same number), and the reserved memory of traced steps of real code, whose allocations and
frees went through the same allocator in their real order.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from vramplan import BadInput, Unknown, estimate, scenario
from vramplan.allocator import ALLOC, FREE, STREAM, Event, replay
from vramplan.dim import Dim
from vramplan.families import walk
from vramplan.kernels import Kernels
from vramplan.methods import Full
from vramplan.ops.loss import cross_entropy
from vramplan.runs import Checkpointing
from vramplan.sweep import forward_only, sweep
from vramplan.tape import Tape
from vramplan.tensors import Op
from vramplan.timeline import timeline

ROWS = [json.loads(line) for line in (Path(__file__).parent.parent / "data" / "traced" / "steps.jsonl").read_text().splitlines()]
LLAMA = {
    "model_type": "llama",
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 1792,
    "vocab_size": 1000,
}
BATCH, TOKENS = 2, 320
HIDDEN = BATCH * TOKENS * 512 * 2


def tape() -> Tape:
    made = Tape(Dim(BATCH, "batch"), Dim(TOKENS, "tokens"), kernels=Kernels(logits="all"))
    made.method = Full()
    walk(made, LLAMA)
    cross_entropy(made, made.ops[-1].writes[0])
    return made


def most(events: Sequence[Event]) -> tuple[int, int]:
    """Most bytes asked for at once, and those still held at the end."""
    sizes: dict[int, int] = {}
    now = peak = 0
    for kind, block, nbytes in events:
        if kind == ALLOC:
            sizes[block] = nbytes
            now += nbytes
            peak = max(peak, now)
        elif kind == FREE:
            now -= sizes.pop(block)
    return peak, now


def size(_: object) -> int:
    return 2


def attends(op: Op) -> bool:
    return op.name.endswith("self_attn.attention")


@pytest.mark.parametrize(
    "checkpointing", [None, Checkpointing(), Checkpointing(every=2), Checkpointing(every=3), Checkpointing(keeps=attends)]
)
def test_the_order_has_the_sweeps_peak(checkpointing: Checkpointing | None) -> None:
    swept = sweep(tape(), gradient_itemsize=size, checkpointing=checkpointing)
    peak, left = most(timeline([], [swept], states=[], step=[], steps=1))
    assert left == 0
    assert peak == pytest.approx(max(swept.forward.nbytes, swept.backward.nbytes), rel=2e-3)


def test_what_checkpointing_keeps() -> None:
    """Full: each layer's input; every other: half of both; selective: the kept ops' outputs as well; offloaded: nothing on the GPU."""
    full, none, half, kept, away = (
        sweep(tape(), gradient_itemsize=size, checkpointing=c)
        for c in (Checkpointing(), None, Checkpointing(every=2), Checkpointing(keeps=attends), Checkpointing(offloaded=True))
    )
    inputs = 8 * HIDDEN
    outputs = 8 * (HIDDEN + BATCH * 8 * TOKENS * 4)  # attention's output, and the log-sum-exp in fp32
    assert none.saved - half.saved == half.saved - full.saved
    assert kept.saved - full.saved == outputs
    assert away.offloaded == inputs
    assert full.saved - away.saved == inputs


def test_each_gradient_is_freed_where_the_optimizer_steps_in_backward() -> None:
    whole = sweep(tape(), gradient_itemsize=size)
    stepping = sweep(tape(), gradient_itemsize=size, stepping=lambda weight: 0)
    assert whole.gradients == 2 * tape().parameters
    assert stepping.gradients == 0
    assert stepping.backward.nbytes <= whole.backward.nbytes


def test_without_gradients_nothing_is_kept() -> None:
    """Neither layers' activations nor the loss's are there when the pass is over: of 8 layers about one is alive at a time."""
    assert forward_only(tape()).forward.nbytes < sweep(tape(), gradient_itemsize=size).forward.nbytes / 2


def test_each_threads_first_product_takes_its_workspace_for_good() -> None:
    """The forward pass's lies before the logits, that of the backward pass behind what the loss has made: both stay for all steps."""
    swept = sweep(tape(), gradient_itemsize=size)
    plain, taken = (timeline([], [swept], states=[], step=[], workspaces=w) for w in ((0, 0), (1001, 1003)))
    added = [(at, block) for at, (kind, block, nbytes) in enumerate(taken) if kind == ALLOC and nbytes in (1001, 1003)]
    (forward, first), (backward, second) = added
    assert len(taken) == len(plain) + 2
    assert not {first, second} & {block for kind, block, _ in taken if kind == FREE}
    logits = max(range(backward), key=lambda at: taken[at][2])
    assert forward < logits < backward < len(taken) / 2


def reserved(row: dict[str, Any], *, expandable: bool) -> float:
    answer = estimate(scenario(row["scenario"]))
    assert answer.events is not None
    name = "reserved_expandable" if expandable else "reserved"
    return replay(answer.events(), expandable=expandable).max_reserved / row[name] - 1


@pytest.mark.parametrize("expandable", [False, True])
def test_reserved_memory_of_traced_steps(expandable: bool) -> None:
    """One in four rows: the allocator multiplies small differences of order, so that the median is judged, and the tails are bounded.

    The worst are small models with a large vocabulary and expandable segments, where one block of logits more is a tenth: -10.9 % here, and
    -11.5 % in all rows. Whether the logits find room in the hole that those of the step before left depends on where the workspace of
    autograd's thread and what the optimizer keeps have come to lie in it, to a few MiB.
    """
    errors = [reserved(row, expandable=expandable) for row in ROWS[::4]]
    assert median(abs(error) for error in errors) < 0.005
    assert sum(abs(error) < 0.05 for error in errors) >= 0.9 * len(errors)
    assert min(errors) > -0.11


def test_what_making_a_unit_of_fsdp1_leaves_in_the_cache() -> None:
    """Tensors of 30 and 40 MiB come, go to other ranks in a bucket of 70, whose block the flat one then takes; a part of 38 finds none."""
    mib = 1 << 20
    replayed = replay(timeline([], [], states=[], step=[], wrapped=[([30 * mib, 40 * mib], 38 * mib)]))
    assert replayed.max_allocated == replayed.max_reserved == (30 + 40 + 70 + 38) * mib


def test_two_flat_weights_are_reserved_though_one_is_whole_at_a_time() -> None:
    """The host runs ahead of the GPU: FSDP1's rate limiter waits for the third gather only."""
    keys = {"model": "meta-llama/Llama-3.1-8B", "task": "train", "method": "lora", "gpu_count": 8, "sharding": "fsdp", "fsdp_version": 1}
    events = estimate(**keys, sequence_length=64, checkpointing="full", lora={"dtype": "bf16"}).events
    assert events is not None
    layer = 2 * 218_112_000
    sizes: dict[int, int] = {}
    most = 0
    for kind, number, nbytes in events():
        if kind == ALLOC + STREAM and nbytes >= layer:
            sizes[number] = nbytes
        elif kind == FREE:
            sizes.pop(number, None)
        most = max(most, sum(layer <= size < 2 * layer for size in sizes.values()))
    assert most == 2


def test_reserved_is_at_least_what_is_allocated_and_part_of_the_process() -> None:
    q = estimate("Qwen/Qwen2.5-0.5B", task="train", sequence_length=512).quantities
    assert q["peak_allocated"] <= q["peak_reserved"] < q["process"]


def test_where_nearly_everything_is_used_the_allocator_decides() -> None:
    """Within what is allocated and no more, cached segments are given back and it still fits; below the ledger's peak it does not."""
    answer = estimate("Qwen/Qwen2.5-0.5B", task="train", sequence_length=512)
    q, context = answer.quantities, answer.outside
    roomy, tight = (
        estimate("Qwen/Qwen2.5-0.5B", task="train", sequence_length=512, gpu_memory=nbytes + context)
        for nbytes in (q["peak_reserved"], answer.ledger.peak()[1] - context - 1)
    )
    assert roomy.fits
    assert not tight.fits


@pytest.mark.parametrize(
    ("keys", "error", "words"),
    [
        ({"checkpoint_every": 2}, BadInput, "nothing is checkpointed; add checkpointing full"),
        ({"offload": ["activations"], "engine": "torchtune", "checkpointing": "none"}, BadInput, "add checkpointing full"),
        ({"offload": ["optimizer"], "checkpointing": "full"}, Unknown, "estimated are activations"),
    ],
)
def test_what_contradicts_itself_or_is_unknown_names_the_remedy(keys: dict[str, object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        estimate("Qwen/Qwen2.5-0.5B", task="train", **keys)
