"""What an engine is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ..allocator import Event
from ..catalog.gpus import Gpu
from ..dim import Dim
from ..errors import BadInput, Unknown
from ..families import walk
from ..formats import Scheme
from ..formats.dtypes import ALIASES
from ..formats.kv import kv_bytes
from ..kernels import Kernels
from ..ledger import Item
from ..scenario import Scenario
from ..sources.model import Model
from ..tape import Tape
from ..tensors import Method

MANY = (
    "gpu_count", "tensor_parallel", "pipeline_parallel", "data_parallel", "context_parallel", "expert_parallel", "offload", "draft_model",
)  # fmt: skip
"""Keys of scenarios with several devices or models, which no engine estimates yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A scenario with its model, GPU and the number format of its weights looked up, and its draft model where it names one.

    `gpus` are all of them where they are of several kinds, `gpu` the first.
    """

    engine: str
    scenario: Scenario
    model: Model
    gpu: Gpu | None
    scheme: Scheme
    gpus: tuple[Gpu, ...] = ()
    draft: Model | None = None
    draft_scheme: Scheme | None = None

    def gpu_at(self, rank: int) -> Gpu | None:
        """The GPU of number `rank`."""
        return self.gpus[rank] if rank < len(self.gpus) > 1 else self.gpu

    @property
    def stored(self) -> bool:
        """Whether the weights load as the file's header states them: there is one, the engine reads it, and nothing else is asked for."""
        read = self.model.gguf or self.engine != "llama.cpp"
        return self.model.stored is not None and self.scenario.weights is None and read

    @property
    def dtype(self) -> str:
        """The dtype that activations and the cache have: that of the weights where they are plain floats, else the model's own."""
        return self.scenario.weights if self.scenario.weights in ("fp32", "fp16", "bf16") else self.model.dtype

    @property
    def itemsize(self) -> int:
        """Bytes of an element of `dtype`."""
        return 4 if self.dtype == "fp32" else 2

    @property
    def kv_default(self) -> str:
        """The cache's number format where the scenario leaves it to the engine: the model's dtype; fp16 for GGUF files' engine."""
        return "fp16" if self.model.gguf or self.engine == "llama.cpp" else self.dtype

    def walk(self, tape: Tape) -> Tape:
        """The model's forward pass on `tape`."""
        return walk(tape, self.model.config, self.model.id)

    def tape(
        self, *, sequences: int, tokens: int, past: int = 0, itemsize: int = 2, kernels: Kernels, method: Method | None = None
    ) -> Tape:
        """The model's forward pass over `sequences` × `tokens` new tokens with `past` tokens in the cache, its weights as `method` says."""
        tape = Tape(Dim(sequences, "sequences"), Dim(tokens, "tokens"), past, itemsize, kernels, method=method)
        tape.positions = self.model.context_length or 0
        return walk(tape, self.model.config, self.model.id)

    def context(self, default: int) -> int:
        """Tokens of the longest sequence: the user's, checked against the model's own, or `default`."""
        own, asked = self.model.context_length, self.scenario.context_length
        if asked is None:
            return min(default, own) if own else default
        if own and asked > own:
            raise BadInput(f"context_length {asked:,}: beyond what {self.model.id} was made for, {own:,} tokens")
        return asked

    def prompt(self, context: int) -> int:
        """Tokens of the prompt: the user's, else what the output leaves of `context`. Raises BadInput where both do not fit into it."""
        prompt, output = self.scenario.prompt_length, self.scenario.output_length or 0
        if (prompt or 1) + output > context:
            raise BadInput(f"prompt_length {prompt or 1:,} and output_length {output:,}: more than the {context:,} tokens of the context")
        return prompt or context - output

    def kv_types(self, *allowed: str) -> None:
        """Raise BadInput where `kv_dtype` names a number format that the engine's cache does not come in; `auto` it always has."""
        named = self.scenario.kv_dtype
        for name in named.values() if isinstance(named, Mapping) else (named or "auto",):
            if ALIASES.get(name, name) not in ("auto", *allowed):
                kv_bytes(name)  # an unknown one is told with its nearest
                raise BadInput(f"kv_dtype {name!r}: no cache type of {self.engine}; it has auto, {', '.join(allowed)}")

    def refuse_formats(self, *bases: str) -> None:
        """Raise BadInput where the weights' number format is one of `bases`, which this engine does not load."""
        base = (self.scenario.weights or "").lower().split("-")[0]
        if base in bases:
            raise BadInput(f"weights {self.scenario.weights!r}: engine {self.engine!r} does not load this format")

    def only_formats(self, *bases: str) -> None:
        """Raise BadInput where the weights' number format is none of `bases` (or plain floats), which are all that this engine loads."""
        if self.model.gguf or not self.scheme.name.lower().startswith(("bf16", "fp16", "fp32", *bases)):
            named = "GGUF" if self.model.gguf else self.scheme.name
            raise BadInput(f"weights {named!r}: engine {self.engine!r} does not load this format; it has fp16, bf16, {', '.join(bases)}")

    def generates_only(self) -> None:
        """Raise Unknown where the model is to embed or rank texts, which this engine's estimate is not for."""
        if self.scenario.runner == "pooling":
            raise Unknown(f"runner 'pooling': not estimated for engine {self.engine!r} by this version")

    def only_architectures(self, *names: str) -> None:
        """Raise BadInput where the config names an architecture that is none of `names`, which are all that this engine runs."""
        given = self.model.config.get("architectures")
        first = str(given[0]) if isinstance(given, list) and given else ""
        if first and first not in names:
            raise BadInput(f"{self.model.id}: engine {self.engine!r} does not run {first[:60]}")

    def refuse(self, *keys: str) -> None:
        """Raise Unknown for the first of `keys` that the scenario sets to more than its neutral value: this estimate does not cover it."""
        for key in keys:
            value = getattr(self.scenario, key)
            if value is True or value not in (None, 1, False, ()):
                raise Unknown(f"{key}: not estimated for engine {self.engine!r} by this version")


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What a GPU holds: the one of number `rank`, and `count` alike; `room` as in Account."""

    rank: int
    gpu: Gpu | None
    room: int | None
    items: Sequence[Item]
    count: int = 1


@dataclass(slots=True, kw_only=True)
class Account:
    """An engine's answer: for the GPU that breaks first (`rank`, one of `count` alike), and for the `others`, and in host memory.

    `tape` is a pass whose weights and caches are those of `items`; `room` is what the engine may take of the GPU, in bytes (None without
    a GPU); `filled` the scenario's keys that it filled in; `facts` further quantities under the names of the machine interface;
    `remarks` what a user should know beside the numbers, and `advice` more of them that take longer to find. `events` gives what torch's
    allocator is asked for in order, and `outside` are the bytes of the process that it does not have.
    """

    tape: Tape
    items: list[Item]
    room: int | None = None
    filled: Mapping[str, object] = field(default_factory=dict)
    facts: dict[str, int] = field(default_factory=dict)
    assumptions: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    advice: Callable[[], Sequence[str]] | None = None
    events: Callable[[], Sequence[Event]] | None = None
    outside: int = 0
    rank: int = 0
    count: int = 1
    others: Sequence[Device] = ()
    host: Sequence[Item] = ()


def release(version: str) -> tuple[int, int]:
    """Major and minor number of an engine's version. Raises BadInput for a text that has none.

    >>> release("v0.19.0"), release("4.46")
    ((0, 19), (4, 46))
    """
    parts = version.removeprefix("v").split(".")
    if len(parts) < 2 or not all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts[:2]):
        raise BadInput(f"engine_version {version[:40]!r}: write it as 0.19.0")
    return int(parts[0]), int(parts[1])
