"""What one rank of a pipeline stage holds under Megatron: its weights, buffers and optimizer, and the activations of its passes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby

from ...dim import numel
from ...errors import Unknown
from ...formats import Scheme, weights_nbytes
from ...ledger import Item, Moment
from ...optimizers import optimizer
from ...optimizers.master import MASTER, MEGATRON, MEGATRON_BF16, PRECISION_AWARE, REMAINDER
from ...parallel.schedule import SCHEDULES, Pass, delayed, passes
from ...parallel.stage import stage_of
from ...runs import Checkpointing
from ...sweep import Peak, Sweep, sweep
from ...tape import Tape
from ...tensors import Weight
from ..lines import item_of_share
from .megatron_ranks import Ranks
from .step import pass_items
from .stepping import LOADED, TRAINING

MATRICES = ("linear", "head", "experts")
"""Kinds of weights whose gradients their product adds into the buffer at once (`gradient_accumulation_fusion`)."""
DUMMY = "TransformerEngine 2.9 pytorch/module/base.py, get_dummy_wgrad"
BUFFER = "Megatron-Core 0.19 core/distributed/param_and_grad_buffer.py"


class Stages:
    """The stages' chunks of one tape, each kind swept once."""

    def __init__(self, tape: Tape, ranks: Ranks, layers: Sequence[Sequence[range]], checkpointing: Checkpointing | None) -> None:
        self.tape, self.ranks, self.layers, self.checkpointing = tape, ranks, layers, checkpointing
        self.swept: dict[tuple[object, ...], Sweep] = {}
        self.kinds = {index: op.region for op in tape.ops for w in op.weights if w.layers and not w.tower for index in w.layers}

    def chunk(self, stage: int, number: int) -> tuple[Tape, Sweep]:
        """A stage's chunk, and what a pass of one micro-batch through it takes."""
        layers = self.layers[stage][number]
        first, last = stage == number == 0, (stage, number) == (len(self.layers) - 1, len(self.layers[0]) - 1)
        tape = stage_of(self.tape, layers, first=first, last=last)
        key = (first, last, *sorted(self.kinds[index] for index in layers))
        if self.checkpointing and self.checkpointing.first and len([*groupby(self.kinds[index] for index in layers)]) > len(set(key[2:])):
            raise Unknown("recompute_layers: layers of several kinds by turns are not estimated with it; leave it out")
        if key not in self.swept:
            self.swept[key] = sweep(tape, gradient_itemsize=_gradient, checkpointing=self.checkpointing, accumulates=True)
        return tape, self.swept[key]

    def passes(self, stage: int) -> Iterable[Pass]:
        """A stage's passes in their order."""
        mesh = self.ranks.mesh
        return passes(self.ranks.schedule, stage, mesh.pipeline, self.ranks.micro_batches, self.ranks.chunks)


def _gradient(weight: Weight) -> int:
    """Bytes of an element of a gradient as autograd has it, before it is added to the buffer. Adapters' layers are Megatron-Core's own,
    which make an empty tensor each time (`core/tensor_parallel/layers.py`, LinearWithGradAccumulationAndAsyncCommunication).
    """
    return 0 if weight.kind in MATRICES and len(weight.shape) > 1 and weight.part != "adapters" else 2


def stage_items(stages: Stages, stage: int, form: Scheme, *, name: str, states: str | None, gradients: int, origin: str) -> list[Item]:
    """The items of a rank of `stage`. Optimizer `name` has `states` of that dtype; gradients are summed in so many bytes."""
    chunks = [stages.chunk(stage, number) for number in range(stages.ranks.chunks)]
    weights = list({id(weight): weight for tape, _ in chunks for weight in tape.weights}.values())
    trained = [weight for weight in weights if weight.trained and weight.kind != "buffer"]
    waiting = delayed(stages.ranks.schedule, stage, stages.ranks.micro_batches) * delayed_bytes(chunks[0][0])
    combined = _worst(stages.passes(stage), [swept for _, swept in chunks], waiting)
    items = [
        *(item_of_share(share, LOADED, origin) for share in weights_nbytes(weights, form)),
        *_optimizer(stages.ranks, trained, name, states, gradients),
        *pass_items(combined, gradients * sum(weight.numel for weight in trained), True, 0),
        _dummies(chunk for chunk, _ in chunks),
    ]
    if stages.ranks.mesh.pipeline > 1:
        items = [_said(item, stages.ranks.schedule) if item.path == ("saved activations",) else item for item in items]
    return items


def _said(item: Item, schedule: str) -> Item:
    return replace(item, why=f"of all micro-batches that are under way ({schedule}); the last {item.why}", source=SCHEDULES[schedule])


def _worst(order: Iterable[Pass], swept: Sequence[Sweep], waiting: int) -> Sweep:
    """The passes that take most, forward and back, with what is kept of the others; `waiting` bytes are there beside."""
    peaks: dict[bool, list[Peak]] = {True: [], False: []}
    for one in order:
        own = swept[one.chunk].forward if one.forward else swept[one.chunk].backward
        kept = waiting + sum(count * chunk.saved for count, chunk in zip(one.others, swept, strict=True))
        peaks[one.forward].append(replace(own, saved=own.saved + kept))
    forward, backward = (max(peaks[way], key=lambda peak: peak.nbytes) for way in (True, False))
    return replace(swept[0], forward=forward, backward=backward)


def delayed_bytes(tape: Tape) -> int:
    """What waits for the gradients of a micro-batch's matrices: their inputs, and the gradients of what they made.

    Source: Qi et al. 2024, arXiv:2401.10241, table 1: 32 sbh a layer of theirs.
    """
    ops = [op for op in tape.ops if any(weight.kind in MATRICES for weight in op.weights)]
    kept = {id(t): t.nbytes * op.repeats for op in ops for t in op.keeps}
    return sum(kept.values()) + sum(op.writes[0].nbytes * op.repeats for op in ops)


def _optimizer(ranks: Ranks, trained: Sequence[Weight], name: str, states: str | None, gradients: int) -> list[Item]:
    """fp32 masters, the optimizer's states, and what its step takes: of a rank's part, or of all its weights."""
    parts = ranks.mesh.optimizer_part(trained) if ranks.distributed else trained
    count = sum(weight.numel for weight in parts)
    inner = optimizer(name)
    aware = states == "bf16"
    master = PRECISION_AWARE if aware else MEGATRON if gradients == 4 else MEGATRON_BF16
    each = REMAINDER if aware else MASTER
    kept = sum(inner.states(weight, 2 if aware else 4) for weight in parts)
    step, who = master.step(count, inner.step(parts, lambda _: 4).most), f"{count:,} trained parameters of this rank's part"
    why = f"{each} B for {who}"
    return [
        Item(path=("weights", "fp32 master"), nbytes=each * count, alive=TRAINING, why=why, source=master.source),
        Item(path=("optimizer states",), nbytes=kept, alive=TRAINING, why=f"{name} for {who}", source=inner.source),
        Item(path=("optimizer step",), nbytes=step, alive=frozenset({Moment.STEP}), why="made and freed by the step", source=master.source),
    ]


def _dummies(tapes: Iterable[Tape]) -> Item:
    """In place of gradients that are in the buffer already, autograd gets an empty tensor of their shape, one for all of a shape."""
    shapes: set[tuple[int, int]] = set()
    for tape in tapes:
        joined: dict[tuple[int, int], list[tuple[int, ...]]] = {}
        for op in tape.ops:
            joined.setdefault((op.region, id(op.reads[0].storage)), []).extend(
                w.shape for w in op.weights if w.trained and _gradient(w) == 0
            )
        shapes |= {(sum(int(shape[0]) for shape in some), int(some[0][1])) for some in joined.values() if some}
    nbytes = 2 * sum(numel(shape) for shape in shapes)
    why = f"empty gradients of {len(shapes)} shapes of matrices, for autograd: the real ones are in the buffer"
    return Item(path=("workspace", "empty gradients"), nbytes=nbytes, alive=TRAINING, why=why, source=DUMMY)
