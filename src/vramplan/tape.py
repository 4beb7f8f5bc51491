"""The tape: a model's forward pass run on shapes only, remembering every weight, cache and tensor.

Nothing is computed. A family (families/) walks its layers once per *kind* of layer and calls ops (ops/); each op notes what it
reads and writes, which tensors its backward pass would need (`saved`), its FLOPs and its weights. All memory questions are sums and
sweeps over these lists. The tape knows no number formats (formats/), no engines and no GPUs: a weight has a shape, not a size in bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

from .dim import Dim, numel
from .kernels import Kernels
from .tensors import ORIGINAL, Cache, Kind, Method, Op, Picture, Tensor, Weight

_PARTS = {"embed": "embedding", "head": "head", "norm": "norms"}


@dataclass(slots=True)
class Tape:
    """A forward pass of `sequences` × `tokens` new tokens, each sequence with `past` tokens in its cache.

    Tensors have `itemsize` bytes per element; under `autocast` (its itemsize; 0 is off) matrix products and attention go down to that,
    linear layers to `fp8`.
    Each sequence has `images` among its tokens, of `image_size` (height and width in pixels; None is what the model was made for): a family
    that runs its tower for them says what it makes of one, its `picture`, and how what comes of them is `merging` with the embeddings.
    In training a share of attention's probabilities is dropped (`attention_dropout`). An encoder is trained with the `head` named here, in
    place of the one that its config names. `positions` is the most that the model was made for. The keys before those that have just
    `grown` outlive them where a window keeps a view of both. `untold` is what a family does not describe of a training step,
    `offloaded` the bytes that lie in host memory between forward and backward.
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
    recomputed: bool = True
    frames: list[list[Tensor]] = field(default_factory=lambda: [[]])
    tables: list[Tensor] = field(default_factory=list)
    rotated: set[int] = field(default_factory=set)
    in_tower: str | None = None
    tower_part: str = ""
    idle: str | None = None
    towers: dict[str, range] = field(default_factory=dict)
    without_gradients: bool = False
    region: int = 0
    method: Method | None = None
    autocast: int = 0
    fp8: bool = False
    images: int = 0
    image_size: tuple[int, int] | None = None
    picture: Picture | None = None
    merging: Callable[[Tensor], Tensor] | None = None
    attention_dropout: float = 0.0
    head: Literal["classification", "mlm"] | None = None
    positions: int = 0
    untold: str = ""
    offloaded: int = 0
    grown: Tensor | None = None

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

    def hold_to_the_end(self) -> None:
        """Keep what the outermost frame names, that of the model's own forward, until the last op that is noted: the loss."""
        for tensor in self.frames[0] if self.kernels.frames == "held" else ():
            tensor.storage.last = len(self.ops) - 1

    def cast_weights(self, weights: tuple[Weight, ...], kept: bool, late: bool = False) -> tuple[Tensor, ...]:
        """Under autocast, copies of `weights` in the lower precision, `kept` for backward where the input gets a gradient, `late` as it.

        Those of weights that train are cached until the forward pass ends. Source: `cached_cast`, aten/src/ATen/autocast_mode.cpp.
        """
        casts = []
        for weight in weights if self.autocast else ():
            if {"fp32": 4, "bf16": 2, "fp16": 2}.get(weight.dtype or "", self.itemsize) > self.autocast:
                cast = self.tensor(f"{weight.name}.autocast", (weight.copies, *weight.shape), self.autocast)
                cast.saved, cast.cached = self.repeats * (kept or weight.trained), weight.trained
                cast.spared = late and not weight.trained
                casts.append(cast)
        return tuple(casts)

    def shared(self, name: str, shape: tuple[int, ...], itemsize: int = 0) -> Tensor:
        """A tensor that all layers use, such as rotary tables: made once, kept until the outermost module returns."""
        found = next((tensor for tensor in self.tables if tensor.name == name and tensor.shape == shape), None)
        if found is None:
            found = self.tensor(name, shape, itemsize)
            found.repeats = 1
            self.tables.append(found)
            self.frames[min(1, len(self.frames) - 1)].append(found)
        return found

    @contextmanager
    def layers(self, name: str, indices: Sequence[int], x: Tensor, *, recomputed: bool = True) -> Iterator[Tensor]:
        """Inside the layers `indices` of the list `name`: walked once, counted `len(indices)` times. Yields their input.

        Checkpointing is of those that are `recomputed`. Where there are several, that is not `x`, the first one's input, but a tensor like
        it: the output of a layer before.
        """
        before = self.repeated, self.recomputed
        self.repeated, self.recomputed = tuple(indices), recomputed
        self.region += 1
        first = x
        if len(indices) > 1:
            first = self.tensor(f"{name}.input", x.shape, x.itemsize)
            first.follows = x.storage
            first.grad = True  # of the layers after the first: something before them trains, or nothing does
            first.late = not x.storage.grad
        start = len(self.ops)
        with self.module(f"{name}.{{i}}"):
            yield self.hold(first)
        if self.method and not x.storage.grad and not any(weight.trained for op in self.ops[start:] for weight in op.weights):
            self._detach(first, start)
        self.repeated, self.recomputed = before
        self.region += 1

    @contextmanager
    def tower(self, name: str, *, part: str | None = None, runs: bool = False) -> Iterator[None]:
        """Inside a tower for another modality: its weights count, its activations only when that modality is used and it `runs`."""
        before = self.in_tower, self.tower_part, self.idle
        self.in_tower, self.tower_part, self.idle = name, part or f"{name} tower", None if runs else name
        start = len(self.ops)
        yield
        self.in_tower, self.tower_part, self.idle = before
        if runs:
            self.towers[name] = range(min(start, self.towers.get(name, range(start, start)).start), len(self.ops))

    def _detach(self, first: Tensor, start: int) -> None:
        """Nothing trains in layers that were walked from op `start`, nor before them: their input `first` needs no gradient after all."""
        first.grad = False
        needed = {id(tensor) for op in self.ops[:start] for tensor in op.keeps}
        for op in self.ops[start:]:
            for tensor in (*op.keeps, *op.writes[1:]):
                tensor.saved = tensor.saved if id(tensor) in needed else 0
            op.writes[0].grad, op.keeps = False, ()

    def merged(self, x: Tensor) -> Tensor:
        """The tokens' embeddings `x` with what comes of images in its place, where a family said so: its tower runs here, once."""
        if self.merging is None:
            return x
        merging, self.merging = self.merging, None
        return merging(x)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Outside of all modules, for what the outermost one runs between two of the inner ones."""
        before, self.prefix = self.prefix, ""
        self.region += 1
        yield
        self.region += 1
        self.prefix = before

    @contextmanager
    def skipping(self, skipped: bool) -> Iterator[None]:
        """What does not run, if it is `skipped`: its weights count, and nothing else."""
        before = self.idle
        self.idle = "skipped" if skipped else before
        yield
        self.idle = before

    @contextmanager
    def unused(self) -> Iterator[None]:
        """What runs though nothing comes of it: no gradient passes, and its weights get none."""
        before, self.without_gradients = self.without_gradients, True
        yield
        self.without_gradients = before

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
            part=self.tower_part if self.in_tower and self.part != "adapters" else _PARTS.get(kind, self.part),
            layers=self.repeated,
            copies=int(copies),
            active=int(active),
            dtype=dtype,
            tower=self.in_tower,
        )
        if self.method is not None:
            weight.trained = self.idle is None and not self.without_gradients and self.method.trains(weight)
        self.weights.append(weight)
        if self.method is not None and self.method.copies(weight.name.rpartition(".")[0]):
            self.weights.append(replace(weight, name=weight.name + ORIGINAL, trained=False))
        return weight

    def tensor(self, name: str, shape: tuple[int, ...], itemsize: int = 0) -> Tensor:
        """A new activation, written by the op that is noted next. Where nothing says what trains, it may need a gradient."""
        here = len(self.ops)
        tensor = Tensor(name, shape, itemsize or self.itemsize, here, here, self.repeats, grad=self.method is None)
        if self.idle is None:
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
        overwrites: Literal["", "gradient", "kept"] = "",
        pins: tuple[Tensor, ...] | None = None,
        also: tuple[Tensor, ...] = (),
    ) -> Tensor:
        """Note an op that writes one tensor of `shape` (and `extra`), and return it; of what does not run nothing is noted.

        Backward keeps `saves` (and the output, with `saves_out`) if a gradient is to pass. Those of an op with weights serve the weights'
        gradient, and are kept only if one of them is trained, unless `always` says that the input's gradient needs them too.
        """
        out = self.tensor(self.prefix + name, shape, itemsize)
        if self.idle is not None:
            return out
        here, sources = len(self.ops), [tensor.base or tensor for tensor in reads]
        for source in sources:
            source.last = here
        trained = any(weight.trained for weight in weights)
        out.grad = (trained or any(source.grad for source in sources)) and not self.without_gradients
        keeps = tuple(t.storage for t in saves) if out.grad and (trained or always or not weights) else ()
        if saves_out and out.grad:
            keeps = (*keeps, out)
        out.late = out.grad and not trained and all(source.late for source in sources if source.grad)
        for tensor in keeps:
            tensor.spared = out.late and (tensor.spared or not tensor.saved)
            tensor.saved = max(tensor.saved, min(tensor.repeats, self.repeats))
        in_layers = self.repeated is not None and self.recomputed
        op = Op(out.name, reads, (out, *extra), weights, flops, self.repeats, self.region, in_layers, keeps, workspace, backward_workspace)
        op.passes, op.overwrites, op.pins, op.also = passes, overwrites, pins, also
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
        if self.kernels.cache == "grown" and self.past and per == "token":
            before = self.tensor(f"{name}.before", (self.sequences, cache.kept(self.past), *shape))
            self.op(f"{name}.grown", (self.grown,) if window and self.grown else (), (Dim(0),), extra=(before,))
            self.grown = before if side == "k" else None
        if self.kernels.packing and per == "token":
            packed = self.sequences * int(self.tokens) * numel(shape) // 64
            self.op(f"{name}.packed", (), (Dim(0),), workspace=packed * self.kernels.packing)

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
        """FLOPs of this pass (2 per multiply-add), without towers that do not run."""
        return sum(op.flops * op.repeats for op in self.ops)

    @property
    def moved(self) -> int:
        """Bytes of activations read and written in this pass, without towers that do not run."""
        return sum(op.moved * op.repeats for op in self.ops)

    @property
    def saved_bytes(self) -> int:
        """Bytes of activations that all layers keep for the backward pass."""
        return sum(t.nbytes * t.saved for t in self.tensors)

    def peak(self, tower: str | None = None) -> tuple[int, str]:
        """Most bytes of activations alive at once in a forward pass that keeps nothing, and the op where that is.

        With `tower`, of those that are made in that tower, which has to be one that runs.
        """
        changes = [0] * (len(self.ops) + 1)
        within = range(len(self.ops)) if tower is None else self.towers[tower]
        for tensor in self.tensors:
            if tensor.born in within:
                nbytes = tensor.nbytes
                changes[tensor.born] += nbytes
                changes[min(tensor.last + 1, len(self.ops))] -= nbytes
        best, where, alive = 0, "", 0
        for op, change in zip(self.ops, changes, strict=False):  # the last change is after the last op
            alive += change
            if alive + op.workspace > best:
                best, where = alive + op.workspace, op.name
        return best, where
