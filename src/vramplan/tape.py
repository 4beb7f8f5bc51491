"""The tape: a model's forward pass run on shapes only, remembering every weight, cache and tensor.

Nothing is computed. A family (families/) walks its layers once per *kind* of layer and calls ops (ops/); each op notes what it
reads and writes, which tensors its backward pass would need (`saved`), its FLOPs and its weights. All memory questions are sums and
sweeps over these lists. The tape knows no number formats (formats/), no engines and no GPUs: a weight has a shape, not a size in bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol


class Dim(int):
    """A size that remembers its name, so that a formula can be printed: products, sums and quotients of Dims carry labels.

    >>> heads, head_dim = Dim(32, "heads"), Dim(128, "head_dim")
    >>> (heads * head_dim, (heads * head_dim).label)
    (4096, 'heads·head_dim')
    """

    label: str

    def __new__(cls, value: int, label: str = "") -> Dim:
        self = super().__new__(cls, value)
        self.label = label or str(int(value))
        return self

    def __mul__(self, other: int) -> Dim:
        return Dim(int.__mul__(self, other), f"{self.label}·{_label(other)}")

    def __rmul__(self, other: int) -> Dim:
        return Dim(int.__mul__(self, other), f"{other}·{self.label}")

    def __add__(self, other: int) -> Dim:
        return Dim(int.__add__(self, other), f"({self.label} + {_label(other)})")

    def __radd__(self, other: int) -> Dim:
        return self if other == 0 else Dim(int.__add__(self, other), f"({other} + {self.label})")

    def __floordiv__(self, other: int) -> Dim:
        return self if other == 1 else Dim(int.__floordiv__(self, other), f"{self.label}/{_label(other)}")


def _label(size: int) -> str:
    return size.label if isinstance(size, Dim) else str(size)


def numel(shape: Iterable[int]) -> int:
    """Elements of a tensor of `shape`: a plain int, whatever labels the sizes carry."""
    n = 1
    for size in shape:
        n = int.__mul__(n, size)
    return n


def shape_label(shape: Iterable[int]) -> str:
    """`"[heads·head_dim=4096 · hidden=4096]"`: a shape with names and values."""
    parts = (f"{d.label}={int(d)}" if isinstance(d, Dim) and not d.label.isdigit() else str(int(d)) for d in shape)
    return f"[{' · '.join(parts)}]"


Kind = Literal["embed", "head", "linear", "experts", "router", "norm", "conv", "buffer"]
_PARTS = {"embed": "embedding", "head": "head", "norm": "norms"}


@dataclass(slots=True, eq=False, kw_only=True)
class Weight:
    """A stored weight, or the same one in several layers and experts.

    `name` is its name in the checkpoint, `{i}` standing for the layer and `{e}` for the expert; `shape` is that of one matrix,
    `(out, in)`, or `(n,)`; `kind` says what quantisation schemes ask: an nn.Linear (`linear`, `router`, `head`), an expert's matrix, an
    embedding, a convolution, anything 1-D or special (`norm`), or a persistent buffer (loaded, but no parameter). A `tied` embedding is the
    head's matrix too. `copies` experts hold it, of which a token reads `active`. A `trained` one gets a gradient.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind
    part: str
    layers: tuple[int, ...] | None = None
    copies: int = 1
    active: int = 1
    dtype: str | None = None
    tower: str | None = None
    tied: bool = False
    trained: bool = True

    @property
    def repeats(self) -> int:
        """In how many layers it stands."""
        return 1 if self.layers is None else len(self.layers)

    @property
    def numel(self) -> int:
        """Elements in all layers and experts."""
        return numel(self.shape) * self.copies * self.repeats

    @property
    def active_numel(self) -> int:
        """Elements that one token's forward pass reads."""
        return numel(self.shape) * self.active * self.repeats


@dataclass(slots=True, eq=False, kw_only=True)
class Cache:
    """What a layer keeps between steps: `shape` per token (`per="token"`) or per sequence; `window` caps the tokens kept.

    `side` is `k` or `v` for attention's cache (MLA's latent is a `k` without `v`), `state` for recurrent state, whose `dtype` is its own.
    """

    name: str
    side: Literal["k", "v", "state"]
    shape: tuple[int, ...]
    layers: tuple[int, ...]
    per: Literal["token", "sequence"] = "token"
    window: int | None = None
    stride: int = 1
    dtype: str | None = None
    tower: str | None = None

    def kept(self, tokens: int) -> int:
        """Tokens of a sequence of `tokens` that are kept as the model defines it: a window's worth, or one of every `stride`."""
        kept = tokens if self.window is None else min(tokens, int(self.window))
        return kept // self.stride

    def elements(self, kept: int) -> int:
        """Elements for `kept` tokens of one sequence, in all its layers; a state has the same at any length."""
        return numel(self.shape) * len(self.layers) * (1 if self.per == "sequence" else kept)


@dataclass(slots=True, eq=False)
class Tensor:
    """An activation: `itemsize` bytes per element, alive from op `born` to op `last`, in each of `repeats` layers.

    A view shares the storage of `base`; the backward pass needs `saved` of its instances, and makes a gradient for it where `grad` is set.
    One that is `cached` stays until the forward pass ends, checkpointing or not.
    """

    name: str
    shape: tuple[int, ...]
    itemsize: int
    born: int
    last: int
    repeats: int = 1
    tower: str | None = None
    base: Tensor | None = None
    saved: int = 0
    grad: bool = False
    cached: bool = False

    @property
    def nbytes(self) -> int:
        return numel(self.shape) * self.itemsize

    @property
    def storage(self) -> Tensor:
        return self if self.base is None else self.base


@dataclass(slots=True, eq=False)
class Op:
    """One step: what it reads and writes, the weights it reads, its FLOPs (for one layer), in how many layers it runs.

    `keeps` are the tensors that its backward pass needs; `workspace` bytes live only while it runs, and `backward_workspace` while its
    backward pass does; one that `passes` hands the gradient on as it is, without a new tensor.
    """

    name: str
    reads: tuple[Tensor, ...]
    writes: tuple[Tensor, ...]
    weights: tuple[Weight, ...]
    flops: int
    repeats: int
    region: int
    in_layers: bool
    tower: str | None = None
    keeps: tuple[Tensor, ...] = ()
    workspace: int = 0
    backward_workspace: int = 0
    passes: bool = False

    @property
    def moved(self) -> int:
        """Bytes of activations that it reads and writes in one layer; those of its weights depend on their format."""
        return sum(tensor.nbytes for tensor in (*self.reads, *self.writes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """Which variant of an op runs: given once per engine, and by the user's `attention`.

    `norm`: `upcast` (transformers' own RMSNorm goes through fp32) or `fused`; `mlp`: `eager` (gate, activation, product each a tensor)
    or `merged` (one gate-and-up projection, one fused activation); `rope`: `eager` or `inplace`; `mla`: past latents `expanded` to heads
    (transformers), or the expansion `absorbed` into the query (serving engines); `logits`: of the last token, of all, or of all with an
    fp32 copy; `frames`: Python's frames hold a module's arguments until it returns, or each tensor is freed at its last use.
    """

    attention: Literal["eager", "inplace", "sdpa", "flash"] = "sdpa"
    norm: Literal["upcast", "fused"] = "upcast"
    mlp: Literal["eager", "merged"] = "eager"
    rope: Literal["eager", "inplace"] = "eager"
    mla: Literal["expanded", "absorbed"] = "expanded"
    logits: Literal["last", "all", "all-fp32"] = "last"
    frames: Literal["held", "freed"] = "held"


class Method(Protocol):
    """How a model is trained, where it is: what trains, what stands beside a linear layer, what its weight has to be unpacked into."""

    def trains(self, weight: Weight) -> bool:
        """Whether `weight` gets a gradient."""
        ...

    def inputs_need_gradients(self) -> bool:
        """Whether the embeddings' output needs a gradient though they do not train (checkpointing over frozen layers)."""
        ...

    def unpacked(self, weight: Weight) -> int:
        """Bytes that `weight` is unpacked into while it is used, forward and backward; 0 for a plain one."""
        ...

    def adapt(self, tape: Tape, x: Tensor, y: Tensor, weight: Weight) -> Tensor:
        """`y` = x Wᵀ with what the method adds to it."""
        ...


@dataclass(slots=True)
class Tape:
    """A forward pass of `sequences` × `tokens` new tokens, each sequence with `past` tokens in its cache.

    Tensors have `itemsize` bytes per element; under `autocast` (its itemsize; 0 is off) matrix products and attention go down to that.
    """

    sequences: Dim
    tokens: Dim
    past: int = 0
    itemsize: int = 2
    kernels: Kernels = field(default_factory=Kernels)
    weights: list[Weight] = field(default_factory=list)
    caches: list[Cache] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    prefix: str = ""
    part: str = "other"
    repeated: tuple[int, ...] | None = None
    frames: list[list[Tensor]] = field(default_factory=lambda: [[]])
    tables: list[Tensor] = field(default_factory=list)
    in_tower: str | None = None
    region: int = 0
    method: Method | None = None
    autocast: int = 0

    # ---- where we are -----------------------------------------------------------------
    @contextmanager
    def module(self, name: str, *arguments: Tensor, part: str | None = None) -> Iterator[None]:
        """Inside the module `name`: weights get its name, and its frame holds its `arguments` until it returns."""
        before = self.prefix, self.part
        self.prefix = f"{self.prefix}{name}." if name else self.prefix
        self.part = part or self.part
        self.frames.append([*arguments])
        yield
        self.prefix, self.part = before
        held = self.frames.pop()
        if self.kernels.frames == "held":
            for tensor in held:
                tensor.storage.last = len(self.ops) - 1

    def hold(self, x: Tensor) -> Tensor:
        """Keep `x` until the current module returns: a local variable of its forward still names it."""
        self.frames[-1].append(x)
        return x

    def cast_weights(self, weights: tuple[Weight, ...]) -> tuple[Tensor, ...]:
        """Under autocast, copies of `weights` in the lower precision: cached until the forward pass ends, and kept for backward."""
        if not self.autocast:
            return ()
        casts = [self.tensor(f"{weight.name}.autocast", (weight.copies, *weight.shape), self.autocast) for weight in weights]
        for cast in casts:
            cast.saved, cast.cached = self.repeats, True
        return tuple(casts)

    def shared(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A tensor that all layers use, such as rotary tables: made once, kept until the outermost module returns."""
        found = next((tensor for tensor in self.tables if tensor.name == name and tensor.shape == shape), None)
        if found is None:
            found = self.tensor(name, shape)
            found.repeats = 1
            self.tables.append(found)
            self.frames[min(1, len(self.frames) - 1)].append(found)
        return found

    @contextmanager
    def layers(self, name: str, indices: Sequence[int], x: Tensor) -> Iterator[Tensor]:
        """Inside the layers `indices` of the list `name`: walked once, counted `len(indices)` times. Yields their input.

        Where there are several, that is not `x`, the first one's input, but a tensor like it: the output of a layer before.
        """
        before = self.repeated
        self.repeated = tuple(indices)
        self.region += 1
        first = x
        if len(indices) > 1:
            first = self.tensor(f"{name}.input", x.shape, x.itemsize)
            first.grad = True  # of the layers after the first: something before them trains, or nothing does
        with self.module(f"{name}.{{i}}"):
            yield self.hold(first)
        self.repeated = before
        self.region += 1

    @contextmanager
    def tower(self, name: str) -> Iterator[None]:
        """Inside a tower for another modality: its weights count, its activations only when that modality is used."""
        before = self.in_tower
        self.in_tower = name
        yield
        self.in_tower = before

    @property
    def repeats(self) -> int:
        """How many layers the current walk stands for."""
        return 1 if self.repeated is None else len(self.repeated)

    # ---- what ops note ------------------------------------------------------------------
    def weight(
        self, name: str, shape: tuple[int, ...], kind: Kind, *, copies: int = 1, active: int = 1, dtype: str | None = None
    ) -> Weight:
        """Note a stored weight of the current module."""
        weight = Weight(
            name=self.prefix + name,
            shape=shape,
            kind=kind,
            part=f"{self.in_tower} tower" if self.in_tower else _PARTS.get(kind, self.part),
            layers=self.repeated,
            copies=int(copies),
            active=int(active),
            dtype=dtype,
            tower=self.in_tower,
        )
        weight.trained = self.method is None or self.method.trains(weight)
        self.weights.append(weight)
        return weight

    def tensor(self, name: str, shape: tuple[int, ...], itemsize: int = 0) -> Tensor:
        """A new activation, written by the op that is noted next. Where nothing says what trains, it may need a gradient."""
        here = len(self.ops)
        tensor = Tensor(name, shape, itemsize or self.itemsize, here, here, self.repeats, self.in_tower, grad=self.method is None)
        self.tensors.append(tensor)
        return tensor

    def view(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Another shape of (a part of) `x`, on the same storage."""
        return Tensor(x.name, shape, x.itemsize, x.born, x.last, base=x.storage)

    def op(
        self,
        name: str,
        reads: tuple[Tensor, ...],
        shape: tuple[int, ...],
        *,
        itemsize: int = 0,
        weights: tuple[Weight, ...] = (),
        flops: int = 0,
        saves: tuple[Tensor, ...] = (),
        saves_out: bool = False,
        always: bool = False,
        extra: tuple[Tensor, ...] = (),
        workspace: int = 0,
        backward_workspace: int = 0,
        passes: bool = False,
    ) -> Tensor:
        """Note an op that writes one tensor of `shape` (and `extra`), and return it.

        Backward keeps `saves` (and the output, with `saves_out`) if a gradient is to pass. Those of an op with weights serve the weights'
        gradient, and are kept only if one of them is trained, unless `always` says that the input's gradient needs them too.
        """
        out = self.tensor(self.prefix + name, shape, itemsize)
        here = len(self.ops)
        for tensor in reads:
            tensor.storage.last = here
        trained = any(weight.trained for weight in weights)
        out.grad = trained or any(tensor.storage.grad for tensor in reads)
        keeps = tuple(t.storage for t in saves) if out.grad and (trained or always or not weights) else ()
        if saves_out and out.grad:
            keeps = (*keeps, out)
        for tensor in keeps:
            tensor.saved = max(tensor.saved, min(tensor.repeats, self.repeats))
        op = Op(
            self.prefix + name, reads, (out, *extra), weights, flops, self.repeats, self.region, self.repeated is not None, self.in_tower
        )
        op.keeps, op.workspace, op.backward_workspace, op.passes = keeps, workspace, backward_workspace, passes
        self.ops.append(op)
        return out

    def cache(
        self,
        name: str,
        side: Literal["k", "v", "state"],
        shape: tuple[int, ...],
        *,
        per: Literal["token", "sequence"] = "token",
        window: int | None = None,
        stride: int = 1,
        dtype: str | None = None,
    ) -> None:
        """Note what the current layers keep between steps, per token or per sequence."""
        layers = self.repeated if self.repeated is not None else (0,)
        cache = Cache(
            name=name, side=side, shape=shape, layers=layers, per=per, window=window, stride=stride, dtype=dtype, tower=self.in_tower
        )
        self.caches.append(cache)

    # ---- what is derived ------------------------------------------------------------------
    @property
    def parameters(self) -> int:
        """Unique parameters: what transformers counts on the meta device. Buffers are no parameters."""
        return sum(w.numel for w in self.weights if w.kind != "buffer")

    @property
    def active_parameters(self) -> int:
        """Parameters that one token's forward pass uses: of the experts only the routed ones."""
        return sum(w.active_numel for w in self.weights if w.kind != "buffer")

    @property
    def flops(self) -> int:
        """FLOPs of this pass (2 per multiply-add), towers left out."""
        return sum(op.flops * op.repeats for op in self.ops if op.tower is None)

    @property
    def moved(self) -> int:
        """Bytes of activations read and written in this pass, towers left out."""
        return sum(op.moved * op.repeats for op in self.ops if op.tower is None)

    @property
    def saved_bytes(self) -> int:
        """Bytes of activations that all layers keep for the backward pass."""
        return sum(t.nbytes * t.saved for t in self.tensors if t.tower is None)

    def peak(self) -> tuple[int, str]:
        """Most bytes of activations alive at once in a forward pass that keeps nothing, and the op where that is."""
        changes = [0] * (len(self.ops) + 1)
        for tensor in self.tensors:
            if tensor.tower is None:
                nbytes = tensor.nbytes
                changes[tensor.born] += nbytes
                changes[tensor.last + 1] -= nbytes
        best, where, alive = 0, "", 0
        for op, change in zip(self.ops, changes, strict=False):  # the last change is after the last op
            alive += change
            if alive > best:
                best, where = alive, op.name
        return best, where
