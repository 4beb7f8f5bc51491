"""What a tape notes: weights, caches, tensors and the ops between them, what one image is to a model, what a training method answers.

They have shapes; a tensor has bytes per element, a weight's depend on its format.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from .dim import numel

if TYPE_CHECKING:
    from .ops.lora import Adapter
    from .ops.packed import Packed

Kind = Literal["embed", "head", "linear", "experts", "router", "norm", "conv", "buffer"]
ORIGINAL = ".original"
"""What the name of a frozen weight ends in, of which a copy trains."""


@dataclass(slots=True, eq=False, kw_only=True)
class Weight:
    """A stored weight, or the same one in several layers and experts.

    `name` is its name in the checkpoint, `{i}` standing for the layer and `{e}` for the expert; `shape` is that of one matrix,
    `(out, in)`, or `(n,)`; `kind` says what quantisation schemes ask: an nn.Linear (`linear`, `router`, `head`), an expert's matrix, an
    embedding, a convolution, anything 1-D or special (`norm`), or a persistent buffer (loaded, but no parameter). A `tied` embedding is the
    head's matrix too. `copies` experts hold it, of which a token reads `active`. A `trained` one gets a gradient. One that joins the
    projections of queries, keys and values has their widths as `parts`.
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
    parts: tuple[int, ...] = ()

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
    One that is `cached` stays until the forward pass ends, one that is `pinned` until its backward pass, checkpointing or not. The input of
    a repeated layer `follows` that of the first; one without a gradient in the first layer is `late`, and `spared` if backward does not
    need it there. One that is `held` stays until the optimizer has stepped.
    """

    name: str
    shape: tuple[int, ...]
    itemsize: int
    born: int
    last: int
    repeats: int = 1
    base: Tensor | None = None
    saved: int = 0
    grad: bool = False
    cached: bool = False
    pinned: bool = False
    follows: Tensor | None = None
    late: bool = False
    spared: bool = False
    held: bool = False

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
    backward pass does; one that `passes` hands the gradient on as it is, without a new tensor, to inputs as large. Its backward
    pass may write over what it was given (`gradient`) or over what it `kept`, in place of new tensors. One that is not torch's own may keep
    what it needs by itself, out of checkpointing's reach: the tensors that it `pins` (None: torch keeps all). It saves `also` what is kept
    at least as long by a later op.
    """

    name: str
    reads: tuple[Tensor, ...]
    writes: tuple[Tensor, ...]
    weights: tuple[Weight, ...]
    flops: int
    repeats: int
    region: int
    in_layers: bool
    keeps: tuple[Tensor, ...] = ()
    workspace: int = 0
    backward_workspace: int = 0
    passes: bool = False
    overwrites: Literal["", "gradient", "kept"] = ""
    pins: tuple[Tensor, ...] | None = None
    also: tuple[Tensor, ...] = ()

    @property
    def moved(self) -> int:
        """Bytes of activations that it reads and writes in one layer; those of its weights depend on their format."""
        return sum(tensor.nbytes for tensor in (*self.reads, *self.writes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One image as a model takes it: `pixels`, the shape of what the processor hands over for it, in fp32; `grid`, the rows and columns of
    patches that it is cut into; and the `tokens` that stand for it in the sequence.
    """

    pixels: tuple[int, ...]
    grid: tuple[int, int]
    tokens: int


class Method(Protocol):
    """How a model is trained, where it is: what trains, what stands beside a layer, how its weight is stored."""

    def trains(self, weight: Weight) -> bool:
        """Whether `weight` gets a gradient."""
        ...

    def inputs_need_gradients(self) -> bool:
        """Whether the embeddings' output needs a gradient though they do not train (checkpointing over frozen layers)."""
        ...

    def copies(self, module: str) -> bool:
        """Whether a copy of `module` trains, beside the original, which is frozen."""
        ...

    def packed(self, weight: Weight) -> Packed | None:
        """How `weight` is stored; None for a plain one."""
        ...

    def adapter(self, module: str, weight: Weight) -> Adapter | None:
        """What stands beside `module` and its `weight`, if anything does."""
        ...
