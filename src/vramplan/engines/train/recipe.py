"""Recipe: what a training scenario means, with every default filled in; the same for all frameworks, each with its own defaults.

It also holds what a framework is: the defaults, kernels and losses that its file gives. Nothing here counts bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from ...errors import BadInput, Unknown, nearest
from ...kernels import Kernels
from ...ledger import Item
from ...methods import Adapters, Full
from ...optimizers.master import DEEPSPEED, Master
from ...parallel.context import degree as context_of
from ...runs import Checkpointing
from ...tape import Tape
from ...tensors import Op, Weight
from ..job import MANY, Job
from ..process import CUDA_CONTEXT
from . import deepspeed
from .adapters import adapters_of, base_of, method_of
from .images import NO_IMAGES, Images, asked
from .objectives.goal import Goal, aimed, trl
from .offloaded import asked as offloaded
from .sharing import ALONE, Shares, Sharing
from .sharing import asked as shared

FLOATS = {"fp32": 4, "bf16": 2, "fp16": 2}
_SPLIT = ("virtual_pipeline", "pipeline_schedule", "pipeline_layers", "sequence_parallel")
MEGATRON = (*_SPLIT, "recompute_modules", "recompute_layers", "expert_imbalance", "gradient_dtype")
"""Keys of Megatron's own, which it reads before it comes here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """Bytes of an element: of weights and their gradients, of what is computed in, of autocast's lower precision (0: no autocast), of the
    fp32 copy that the optimizer steps on (0: none).
    """

    weights: int
    compute: int
    gradients: int
    autocast: int = 0
    master: int = 0
    fp8: bool = False
    about: str


PRECISIONS: Mapping[str, Precision] = {
    "fp32": Precision(weights=4, compute=4, gradients=4, about="pure fp32: weights, gradients and states"),
    "bf16": Precision(weights=2, compute=2, gradients=2, about="pure bf16: weights, gradients and states"),
    "fp16": Precision(weights=2, compute=2, gradients=2, about="pure fp16: weights, gradients and states"),
    "bf16-mixed": Precision(weights=4, compute=4, gradients=4, autocast=2, about="fp32 weights under autocast to bf16"),
    "fp16-mixed": Precision(weights=4, compute=4, gradients=4, autocast=2, about="fp32 weights under autocast to fp16"),
    "fp8-mixed": Precision(
        weights=4, compute=4, gradients=4, autocast=2, fp8=True, about="fp32 weights, linear layers in FP8 (torchao) under autocast to bf16"
    ),
    "bf16-master": Precision(weights=2, compute=2, gradients=2, master=4, about="bf16 weights with an fp32 master copy"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Framework:
    """A training framework: its defaults, its kernels, its losses, and what it refuses.

    `kernels` gives the variants of the ops for a recipe, `kernel_sets` their names in a scenario. Not all train `encoders`. `optimizers`:
    what the names of some mean to it; one that `zeroes_gradients` keeps them from step to step. `context`: bytes of the CUDA context and
    where that is said. `losses` and `checkpointings` are the names that it knows: a loss is noted on the tape that the model has walked;
    the ops whose outputs selective checkpointing keeps are named by `selective`; a checkpointed layer `stops` where backward needs no more;
    layers may be `compiled`; one that `offloads` sends checkpointed layers' inputs to the host. With `wide_embeddings` 8-bit optimizers
    keep embeddings' states in fp32; one that `clips` does so by default. `master` is its wrapper for fp32 master weights. `shares`: the
    ways in which several GPUs share a model, its own first; these make a step of `global_batch` sequences by default (0: one pass).
    `splits`: keys of parallelism within a model. `objectives`: whether TRL's trainers run on it; `loops`: whether users write loops of
    their own around its models. `adapts` makes the adapters its own; `stays` is what else is there from one pass to the next. `assumes`
    says what was assumed beyond the recipe.
    """

    name: str
    version: str
    kernels: Callable[[Recipe], Kernels]
    losses: Mapping[str, Callable[[Tape, Recipe], None]]
    kernel_sets: Sequence[str] = ("native",)
    precision: str = "bf16"
    precisions: Sequence[str] = tuple(PRECISIONS)
    attention: Literal["eager", "sdpa"] = "sdpa"
    encoders: bool = False
    optimizer: str = "adamw-fused"
    optimizers: Mapping[str, str] = field(default_factory=dict)
    zeroes_gradients: bool = False
    context: tuple[int, str] = (CUDA_CONTEXT, "pytorch #107667")
    loss: str = "plain"
    checkpointing: str = "none"
    checkpointings: Sequence[str] = ("none", "full")
    offloads: bool = False
    selective: Callable[[Op], bool] | None = None
    stops: bool = True
    compiled: bool = False
    rank: int = 16
    targets: str | tuple[str, ...] = "all-linear"
    adapter_dtype: str | None = "fp32"
    methods: Sequence[str] = ("full", "lora", "qlora")
    dropout: float = 0.0
    packed: Sequence[str] = ("nf4", "fp4")
    adapts: Callable[[Adapters, Recipe], Adapters] = lambda adapters, recipe: adapters
    stays: Callable[[Tape, Recipe], Sequence[Item]] = lambda tape, recipe: ()
    wide_embeddings: bool = False
    clips: bool = False
    master: Master = DEEPSPEED
    shares: Mapping[str, Shares | None] = field(default_factory=dict)
    global_batch: int = 0
    splits: Sequence[str] = ()
    objectives: bool = False
    loops: bool = False
    assumes: Callable[[Recipe], Sequence[str]] = lambda recipe: ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a scenario means for a framework. `checkpointing` is `none`, `full` or `selective`; `every` k-th layer has it. `frozen` modules
    are left out of full training; `prepared` is PEFT's k-bit preparation; `compiled`: each layer by torch.compile; `context`
    ranks share each sequence, `tensor` ranks each layer, and `expert` ranks the experts.
    """

    framework: Framework
    version: str
    method: str
    precision: str
    batch: int
    length: int
    passes: int
    checkpointing: str
    every: int
    offloaded: bool
    attention: Literal["eager", "sdpa", "flash"]
    loss: str
    optimizer: str
    adapters: Adapters | None
    frozen: tuple[str, ...] = ()
    images: Images = NO_IMAGES
    prepared: bool = False
    goal: Goal | None = None
    sharing: Sharing = ALONE
    compiled: bool = False
    context: int = 1
    tensor: int = 1
    expert: int = 1

    @property
    def trains(self) -> Full | Adapters:
        """What trains."""
        return self.adapters or Full(frozen=self.frozen, towers=self.images.towers, checkpointing=self.checkpointing != "none")

    @property
    def mixed(self) -> Precision:
        """The precision; PEFT's k-bit preparation raises all that is not packed to fp32. TRL trains 16-bit weights under autocast too."""
        asked = PRECISIONS[self.precision]
        if self.goal and asked.weights == 2:
            asked = replace(asked, autocast=2, about=f"{asked.about.removeprefix('pure ')}, under autocast")
        shares = self.sharing.shares
        if shares and asked.autocast:
            autocast = asked.autocast if shares.autocast else 0
            about = f"parts of weights in fp32, gathered in {self.precision[:4]} ({shares.named} mixed precision)"
            asked = replace(asked, compute=asked.autocast, autocast=autocast, about=about)
        if not self.prepared:
            return asked
        about = f"{asked.about.partition(':')[0]}, what is not packed in fp32 (prepare_model_for_kbit_training)"
        return replace(asked, weights=4, compute=4, gradients=4, about=about)

    def size(self, weight: Weight) -> int:
        """Bytes of an element of a weight."""
        return FLOATS.get(weight.dtype or "") or self.mixed.weights

    def gradient(self, weight: Weight) -> int:
        """Bytes of an element of a weight's gradient."""
        return FLOATS.get(weight.dtype or "") or self.mixed.gradients

    def computed(self, weight: Weight) -> int:
        """Bytes of an element of a weight's gradient as the backward pass makes it."""
        return min(self.gradient(weight), self.mixed.compute) if self.sharing.shares else self.gradient(weight)

    def recomputes(self) -> Checkpointing | None:
        """How activations are checkpointed."""
        if self.checkpointing == "none":
            return None
        stops = self.framework.stops
        if self.checkpointing == "selective" and self.framework.selective:
            return Checkpointing(every=self.every, keeps=self.framework.selective, offloaded=self.offloaded, stops=stops)
        return Checkpointing(every=self.every, offloaded=self.offloaded, stops=stops)


def read(job: Job, framework: Framework) -> Recipe:
    """The scenario with defaults. Raises Unknown for what is not estimated, BadInput for what contradicts itself."""
    s = job.scenario
    job.refuse(*(key for key in MANY if key not in ("offload", "gpu_count", *framework.splits)), *MEGATRON)
    if not framework.compiled:
        job.refuse("compile")
    if not framework.loops:
        job.refuse("loop")
    sharing = shared(job, framework.shares, framework.name)
    method = method_of(job, framework.methods, framework.name)
    tensor = _tensor(job)
    goal = aimed(job, framework, method)
    framework = trl(framework, goal, job) if goal else framework
    framework = deepspeed.wrapped(job, framework, sharing) if sharing.stage else framework
    precision = _one_of("precision", s.precision, framework.precision, framework.precisions, framework)
    precision = deepspeed.precision(precision, sharing) if sharing.stage else precision
    if s.attention == "flash" and precision == "fp32":
        raise BadInput("attention 'flash': its kernels take 16-bit types only, precision is fp32; choose bf16, bf16-mixed or sdpa")
    if PRECISIONS[precision].fp8:
        _runs_fp8(job, method)
    default = "full" if s.kbit_preparation else framework.checkpointing
    _one_of("kernels", s.kernels, "native", framework.kernel_sets, framework)
    checkpointing = _one_of("checkpointing", s.checkpointing, default, framework.checkpointings, framework)
    kinds: Mapping[str, Literal["eager", "sdpa", "flash"]] = {"eager": "eager", "sdpa": "sdpa", "flash": "flash"}
    recipe = Recipe(
        framework=framework,
        version=s.engine_version or framework.version,
        method=method,
        precision=precision,
        batch=goal.sequences if goal else s.micro_batch or 1,
        length=goal.length if goal else _length(job),
        passes=goal.passes if goal else s.gradient_accumulation or _passes(framework, sharing, s.micro_batch or 1),
        checkpointing=checkpointing,
        every=_every(job, checkpointing),
        offloaded=offloaded(job, framework, checkpointing),
        attention=kinds.get(s.attention or "", framework.attention),
        loss=_one_of("loss", s.loss, framework.loss, tuple(framework.losses), framework),
        optimizer=framework.optimizers.get(s.optimizer or "") or s.optimizer or framework.optimizer,
        adapters=None,
        frozen=s.frozen_modules or (),
        images=asked(job),
        prepared=bool(s.kbit_preparation),
        goal=goal,
        sharing=sharing,
        compiled=bool(s.compile),
        context=context_of(s.context_parallel or 1, s.gpu_count or 1, tensor),
        tensor=tensor,
        expert=s.expert_parallel or 1,
    )
    adapters = adapters_of(
        job,
        method,
        base_of(job, method, framework.packed, precision, recipe.version),
        framework.kernels(recipe),
        rank=framework.rank,
        targets=framework.targets,
        dtype=framework.adapter_dtype or ("fp32" if PRECISIONS[precision].weights == 4 else precision[:4]),
        dropout=framework.dropout,
        recomputes=checkpointing != "none",
    )
    return replace(recipe, adapters=adapters and framework.adapts(replace(adapters, towers=recipe.images.towers), recipe))


def _one_of(key: str, given: str | None, default: str, known: Sequence[str], framework: Framework) -> str:
    value = given or default
    if value not in known:
        raise Unknown(f"{key} {value!r}: estimated for engine {framework.name!r} are {', '.join(known)}{nearest(value, known)}")
    return value


def _runs_fp8(job: Job, method: str) -> None:
    """FP8 products need compute capability 8.9 (pytorch `aten/src/ATen/native/cuda/Blas.cpp`, _scaled_mm)."""
    if method != "full":
        raise Unknown(f"precision 'fp8-mixed' with method {method!r}: estimated for method full only")
    found = job.gpu.compute_capability if job.gpu else None
    if found and tuple(int(part) for part in found.split(".")) < (8, 9):
        raise BadInput(f"precision 'fp8-mixed': FP8 needs compute capability 8.9, the GPU has {found}; choose bf16-mixed")


def _length(job: Job) -> int:
    """Tokens of a sequence: as asked, else 2,048, within what the model was made for."""
    own, asked = job.model.context_length, job.scenario.sequence_length
    if own and asked and asked > own:
        raise BadInput(f"sequence_length {asked:,}: beyond what {job.model.id} was made for, {own:,} tokens")
    return asked or min(2048, own or 2048)


def _passes(framework: Framework, sharing: Sharing, batch: int) -> int:
    """Passes of a step over several GPUs, where the framework's default is a number of sequences."""
    return max(framework.global_batch // (batch * sharing.ranks), 1) if sharing.ranks > 1 else 1


def _tensor(job: Job) -> int:
    """Ranks that share each layer, as asked."""
    asked, ranks = job.scenario.tensor_parallel or 1, job.scenario.gpu_count or 1
    if ranks % asked:
        near = max(n for n in range(1, min(asked, ranks) + 1) if ranks % n == 0)
        raise BadInput(f"gpu_count {ranks}: tensor_parallel {asked} does not divide it; the nearest is {near}")
    return asked


def _every(job: Job, checkpointing: str) -> int:
    every = job.scenario.checkpoint_every
    if every and checkpointing == "none":
        raise BadInput(f"checkpoint_every {every}: nothing is checkpointed; add checkpointing full")
    return every or 1
