"""Tensor parallelism with sequence parallelism, in training: what is not split by heads, ffn or vocabulary is split by its tokens.

The residual stream, norms and dropout have a rank's share of every sequence. Before a layer that is split by what it makes, the tokens of
all ranks are gathered; after one that is split by what it takes, the ranks' sums are reduced and scattered; backward it is the other way
round (Korthikanti et al. 2022, arXiv:2205.05198, section 4.2). Which of the two tensors backward keeps, and what an exchange takes, is the
`Style`.

It knows an op by what it reads: one with a plain weight or a split tensor is on all tokens, one that reads the residual stream on a rank's.
It does not know FP8, LoRA, towers.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..dim import Dim, numel
from ..tape import Tape
from ..tensors import Op, Tensor, Weight
from .tensor import VOCABULARY, part, tensor_parallel

LATE = frozenset({"moe_ffn", "expert_ffn", "shared_ffn"})
"""Sums over these are reduced where the mixture of experts ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How a framework runs it. With `regathers` backward keeps a rank's tokens and gathers those of all again, else, and of adapters
    always, it keeps what was gathered. `dtensor`: what is exchanged goes through a copy, as tokens come after sequences; two gradients of
    one tensor are added in a third; the embedding's gradient is made of the whole vocabulary, then cut. With `copied` layers whose weights
    every rank has whole (routers, latents, experts) are on a rank's own tokens. The vocabulary is padded to a multiple of `vocabulary`.
    """

    regathers: bool = False
    dtensor: bool = False
    copied: bool = False
    vocabulary: int = VOCABULARY


DTENSOR = Style(dtensor=True, vocabulary=1)
"""torch's parallelize_module (pytorch 2.13 `distributed/tensor/parallel/style.py`; `_functional_collectives.py`: all_gather_single copies
with several sequences, reduce_scatter_tensor always; `_ops/_embedding_ops.py`; `csrc/autograd/input_buffer.cpp`, accumulate)."""


def sequence_parallel(tape: Tape, degree: int, style: Style = DTENSOR) -> Tape:
    """The tape of one of `degree` ranks, in `style`. Degree 1 is the tape itself.

    Raises BadInput where heads, ffn, vocabulary or tokens do not divide by the degree.
    """
    if degree == 1:
        return tape
    mine = tensor_parallel(tape, degree, vocabulary=style.vocabulary)
    return _Exchange(tape, mine, degree, style).run()


@dataclass(slots=True)
class _Exchange:
    """Walks the ops of `mine`, the `whole` tape split by names, and puts what is exchanged between them.

    By identity of a storage: `split` has the whole shapes of those that are divided by tokens, `gathered` and `scattered` what was made of
    one. `places` are the indices of the tape's own ops among the new `ops`.
    """

    whole: Tape
    mine: Tape
    degree: int
    style: Style
    ops: list[Op] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    split: dict[int, tuple[int, ...]] = field(default_factory=dict)
    gathered: dict[int, Tensor] = field(default_factory=dict)
    scattered: dict[int, Tensor] = field(default_factory=dict)

    def run(self) -> Tape:
        """The tape with what is exchanged. What was gathered or scattered of a tensor lives as long as that did."""
        pairs = [(before, op, _split(before, op, self.style.copied)) for before, op in zip(self.whole.ops, self.mine.ops, strict=True)]
        for t in self.mine.tensors:
            if t.follows is not None:
                self._cut(t)
        for before, op, split in pairs:
            self._op(before, op, split or not any(id(t.storage) in self.split or id(t.storage) in self.scattered for t in op.reads))
        made = [*self.scattered.values(), *self.gathered.values()]
        for t in self.mine.tensors:
            t.born, t.last = self.places[t.born], self._end(t.last)
            t.follows = self.scattered.get(id(t.follows), t.follows)
            if id(t) in self.scattered:
                t.last = self.scattered[id(t)].born
        for t in made:
            t.last = max(t.born, self.places[t.last])
        for t in (*made, *(t for t in self.mine.tensors if id(t) in self.gathered or id(t) in self.scattered)):
            t.saved = max((min(t.repeats, op.repeats) for op in self.ops if any(kept is t for kept in op.keeps)), default=0)
        return replace(self.mine, ops=self.ops, tensors=[*self.mine.tensors, *made])

    def _end(self, index: int) -> int:
        """Where what an op was given goes: DTensor's exchange of its result is a hook of the module, whose call holds its arguments."""
        place = self.places[index]
        return place + 1 if self.style.dtensor and id(self.ops[place].writes[0]) in self.scattered else place

    def _op(self, before: Op, op: Op, within: bool) -> None:
        """One op: on all tokens of a share of heads, ffn or vocabulary, or on a rank's tokens."""
        now, was = max(zip((*op.reads, op.writes[0]), (*before.reads, before.writes[0]), strict=True), key=lambda pair: pair[1].nbytes)
        share = now.nbytes, was.nbytes * (1 if within else self.degree)
        op.workspace, op.backward_workspace = (taken * share[0] // max(share[1], 1) for taken in (op.workspace, op.backward_workspace))
        if within:
            op.reads = tuple(self._all(op, t) for t in op.reads)
            op.keeps = tuple(self._kept(op, t) for t in op.keeps)
        else:
            for t in op.writes:
                self._cut(t)
            op.reads = tuple(self._own(op, t) for t in op.reads)
            op.keeps = tuple(self._own(op, t) for t in op.keeps)
            op.flops //= self.degree
        self.places.append(len(self.ops))
        self.ops.append(op)
        weight = _reduced(before, op)
        if weight is not None:
            self._scatter(op, op.writes[0])
            if weight.kind == "embed" and self.style.dtensor:
                whole, cut = (numel(w.shape) * op.writes[0].itemsize for w in (weight, op.weights[0]))
                op.backward_workspace += whole - min(cut, op.writes[0].nbytes)  # cut when the gradient that it was made of is gone

    def _all(self, op: Op, t: Tensor) -> Tensor:
        """`t` with the tokens of all ranks, gathered before the first op that reads them."""
        source = self.scattered.get(id(t.storage), t.storage)
        if id(source) not in self.split:
            return t
        if id(source) in self.gathered:
            op.backward_workspace += self.gathered[id(source)].nbytes if self.style.dtensor else 0
        else:
            shape = self.split[id(source)]
            nbytes = numel(shape) * source.itemsize
            copied = nbytes if self.style.dtensor and int(self.mine.sequences) > 1 else 0
            y = replace(source, name=f"{source.name}.gathered", shape=shape, follows=None)
            self._exchange(op, source, y, copied, nbytes if self.style.dtensor else 0)
            self.gathered[id(source)] = y
        return self.gathered[id(source)]

    def _kept(self, op: Op, t: Tensor) -> Tensor:
        """What backward keeps of an op on all tokens: a rank's own, which are gathered again while it runs, or all."""
        source = self.scattered.get(id(t.storage), t.storage)
        if id(source) not in self.gathered:
            return t
        if self.style.regathers and not any(weight.part == "adapters" for weight in op.weights):
            op.backward_workspace += self.gathered[id(source)].nbytes
            return source
        return self.gathered[id(source)]

    def _own(self, op: Op, t: Tensor) -> Tensor:
        """A rank's tokens of `t`, which may be whole sums."""
        source = self.scattered.get(id(t.storage), t.storage)
        if id(source) in self.split:
            return source if t.base is None else replace(t, shape=self._tokens(t), base=source)
        return t if self._tokens(source) == source.shape else self._scatter(op, source)

    def _scatter(self, op: Op, source: Tensor) -> Tensor:
        """A rank's tokens of sums that the ranks have in parts."""
        y = replace(source, name=f"{source.name}.scattered", shape=self._tokens(source), follows=None)
        copied = source.nbytes if self.style.dtensor and int(self.mine.sequences) > 1 else 0
        self._exchange(op, source, y, source.nbytes if self.style.dtensor else 0, copied)
        self.split[id(y)], self.scattered[id(source)] = source.shape, y
        return y

    def _exchange(self, op: Op, source: Tensor, y: Tensor, forward: int, backward: int) -> None:
        """An op between the others, where `op` is, that makes `y` of `source`; both ways it takes so many bytes."""
        y.born = len(self.ops)
        made = replace(op, name=y.name, reads=(source,), writes=(y,), weights=(), keeps=(), flops=0, pins=None, passes=False, overwrites="")
        self.ops.append(replace(made, workspace=forward, backward_workspace=backward))

    def _cut(self, t: Tensor) -> None:
        """From here on `t` is divided by tokens."""
        self.split[id(t)], t.shape = t.shape, self._tokens(t)

    def _tokens(self, t: Tensor) -> tuple[int, ...]:
        names = frozenset({self.mine.tokens.label})
        return tuple(part(size, self.degree, names) for size in t.shape)


def _split(before: Op, op: Op, copied: bool) -> bool:
    """Whether an op has all tokens of a share: what it reads or makes is split by name, or its weight is, or (not `copied`) is plain."""
    named = [[*(t.shape for t in (*one.reads, one.writes[0])), *(w.shape for w in one.weights)] for one in (before, op)]
    return any(weight.kind != "norm" and not copied for weight in op.weights) or named[0] != named[1]


def _reduced(before: Op, op: Op) -> Weight | None:
    """The weight of an op whose result is the ranks' sum: a linear layer that is split by what it takes, or the embedding."""
    for whole, mine in zip(before.weights[:1], op.weights[:1], strict=True):
        split = whole.shape[0] != mine.shape[0] if whole.kind == "embed" else whole.shape[-1] != mine.shape[-1]
        late = isinstance(whole.shape[-1], Dim) and whole.shape[-1].label in LATE
        if split and not late and whole.part != "adapters" and whole.kind in ("embed", "linear") and len(whole.shape) > 1:
            return whole
    return None
