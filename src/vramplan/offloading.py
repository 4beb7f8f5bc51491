"""Activation offloading without checkpointing: what ops save for backward goes to host memory, and comes back before their backward pass.

As TRL's `OffloadActivations` does it with torch's hooks on saved tensors (1.16 `trl/models/activation_offloading.py`): what is saved
leaves the GPU once five more have been, weights among them. One that is saved again before that stays on the GPU for good, though a
copy of it lies in host memory. What comes back for an op stays until the next such op's backward pass is over. The head's input stays.

It knows the tape only. It does not know: kernels that keep by other ways than torch's, the streams' own pools of memory, and copies of
tensors that are not contiguous, for a moment in the forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

from .tape import Tape
from .tensors import Op, Tensor

LEAST = 1024
"""Bytes of the smallest tensor that goes (`min_offload_size`)."""
STASH = 5
"""After how many saves more a tensor leaves the GPU (`max_fwd_stash_size`)."""
Region = Sequence[tuple[int, Op]]
"""Ops that run after each other, with their places on the tape: one layer of a kind, or what is between layers."""


def offload(tape: Tape) -> None:
    """Note on the tape what leaves the GPU between forward and backward, and how much lies in host memory (`Tape.offloaded`).

    What has not left yet when a layer ends is a workspace of the next one's ops, and what came back one of their backward pass.
    """
    hooks = _Hooks()
    regions: list[Region] = [list(group) for _, group in groupby(enumerate(tape.ops), key=lambda pair: pair[1].region)]
    for region in regions:
        for _ in range(2 if region[0][1].repeats > 1 else 1):  # only the second layer has one of its kind before it
            hooks.run(region)
    for op in tape.ops:
        op.workspace += hooks.carried.get(id(op), 0)
        sent = hooks.sent.get(id(op), [])
        tape.offloaded += sum(tensor.nbytes * (op.repeats - tensor.spared) for tensor in sent)
        op.keeps = tuple(tensor for tensor in op.keeps if tensor not in sent)
        op.also = tuple(tensor for tensor in op.also if tensor not in sent)
        for tensor in sent:
            tensor.saved = tensor.saved if id(tensor) in hooks.staying else 0
    _bring_back(regions, {key: sum(tensor.nbytes for tensor in sent) for key, sent in hooks.sent.items()})


@dataclass(slots=True)
class _Hooks:
    """What the hooks remember: which save it is, what is in the `stash` (its identity, 0 if of a layer before, and bytes), and what is
    `staying` on the GPU, of which some are `shared` by all layers. By op: what was `sent` to the host, and bytes `carried` over
    from the layer before.
    """

    number: int = 0
    stash: dict[int, tuple[Tensor | None, int]] = field(default_factory=dict)
    staying: set[int] = field(default_factory=set)
    shared: set[int] = field(default_factory=set)
    sent: dict[int, list[Tensor]] = field(default_factory=dict)
    carried: dict[int, int] = field(default_factory=dict)

    def run(self, region: Region) -> None:
        """One layer's forward pass. What an op saves of a layer's own is another tensor in the next one."""
        again = {id(tensor) for _, op in region for tensor in _saves(op) if tensor and tensor.repeats == op.repeats}
        self.shared = self.staying - again
        for index, op in region:
            self.sent[id(op)] = [tensor for tensor in _saves(op) if self._leaves(tensor, index) and tensor]
            self.carried[id(op)] = sum(nbytes for tensor, nbytes in self.stash.values() if tensor is None)
            if _is_head(op):
                self.staying |= {id(tensor) for tensor in op.keeps}
        for number, (tensor, nbytes) in self.stash.items():
            self._lives_to(tensor, region[-1][0])
            self.stash[number] = None, nbytes

    def _leaves(self, tensor: Tensor | None, index: int) -> bool:
        """Whether a tensor that is saved (None: a weight) is sent to the host."""
        self.number += 1
        if tensor is None or tensor.nbytes < LEAST or id(tensor) in self.shared:
            return False
        if any(other is tensor for other, _ in self.stash.values()):
            self.staying.add(id(tensor))
            self.shared.add(id(tensor))
            return False
        for number in [number for number in self.stash if number <= self.number - STASH]:
            self._lives_to(self.stash.pop(number)[0], index)
        self.stash[self.number] = tensor, tensor.nbytes
        return True

    @staticmethod
    def _lives_to(tensor: Tensor | None, index: int) -> None:
        if tensor is not None:
            tensor.last = max(tensor.last, index)


def _is_head(op: Op) -> bool:
    return any(weight.kind == "head" or (weight.kind == "embed" and op.flops) for weight in op.weights)


def _saves(op: Op) -> list[Tensor | None]:
    """What an op saves by torch's hooks, in order: a product its weight, or autocast's copy of it, then its input; others a weight last."""
    if not op.writes[0].grad or op.pins is not None or _is_head(op):
        return []
    casts: list[Tensor | None] = [tensor for tensor in op.writes[1:] if tensor.saved and tensor not in op.keeps]
    weights = casts or [None] * bool(op.weights)
    return [*weights, *op.keeps] if op.flops else [*op.also, *op.keeps, *weights]


def _bring_back(regions: Sequence[Region], sent: dict[int, int]) -> None:
    """What each op was `sent` away comes back for its backward pass, and stays until that of the next one that has such is over."""
    there = 0
    for region in reversed(regions):
        if region[0][1].repeats > 1:
            there = max(there, next((sent[id(op)] for _, op in region if sent[id(op)]), 0))
        for _, op in reversed(region):
            op.backward_workspace += sent[id(op)] + there
            there = sent[id(op)] or there
