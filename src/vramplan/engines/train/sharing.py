"""Several GPUs that train on different data: whole copies of the model (DDP), or parts of it that are gathered as they run (FSDP).

Hybrid sharding (hsdp) is FSDP within groups of GPUs that each have the whole model. DeepSpeed's ZeRO is in deepspeed.py. What it does not
know: other kinds of parallelism, what NCCL itself takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from ...errors import BadInput, Unknown
from ...parallel.flat import Flat
from ...parallel.sharded import Sharding
from ...tensors import Weight
from ..job import Job

DDP = "pytorch 2.13 torch/csrc/distributed/c10d/reducer.cpp, Reducer::initialize_buckets"
ZERO = "bf16 means weights and gradients in bf16 with fp32 masters to DeepSpeed; what torch's allocator reserves beyond is not estimated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """How a framework wraps a model in FSDP, which it calls `named`; the rest is as `Sharding` has it, `apart` where embedding and head are
    not `tied`; `flat` is FSDP1, for its `leaves` and `prefetch` see `Flat`. `autocast`: around it, or not. `reduced`: bytes of an
    element of gradients that are reduced in mixed precision. `synced`:
    each pass of a step reduces its gradients, or whole ones wait for the last pass. `stage`: of ZeRO, 0 for FSDP. `outside`:
    the loss is no part of what is wrapped.
    """

    named: str = "FSDP2"
    flat: bool = False
    leaves: bool = False
    prefetch: bool = False
    apart: bool = False
    always: bool = False
    autocast: bool = False
    reduced: int = 4
    synced: bool = False
    stage: int = 0
    outside: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """What a scenario asks for: `ranks` GPUs, and how they share (`shares`); None is DDP. `hosted`: each rank's parts of weights, gradients
    and states lie in host memory, and the optimizer steps there. `tensor` ranks together have one copy of the model. `shard`
    GPUs share one copy of the weights, where several groups of them do. DDP has `buckets`, a second place for each gradient,
    or gradients are `views` of them and stay from one step to the next.
    """

    ranks: int = 1
    shares: Shares | None = None
    keeps: bool = False
    always: bool = False
    hosted: bool = False
    tensor: int = 1
    shard: int = 0
    buckets: bool = True
    views: bool = False

    @property
    def copies(self) -> int:
        """Ranks, or groups of them, that train on sequences of their own."""
        return self.ranks // self.tensor

    @property
    def stage(self) -> int:
        """Of ZeRO, 0 without it."""
        return self.shares.stage if self.shares else 0

    def assumptions(self, *, packed: bool, context: int) -> list[str]:
        """How the GPUs share the model, in words; nothing for one."""
        if self.ranks == 1 and not self.shares:
            return []
        together = context * self.tensor
        if self.ranks == together and not self.shares:
            return [f"{together} GPUs train together on micro_batch sequences; what NCCL takes is not in it"]
        units = "DeepSpeed's defaults and `auto` sizes" if self.stage else "each layer a unit"
        ddp = f"DDP, gradient_as_bucket_view {'on' if self.views else 'off'}" if self.buckets or self.views else "FSDP1's NO_SHARD"
        named = f"{self.shares.named}, {units}{self._groups()}" if self.shares else ddp
        who = f"each of {self.ranks} GPUs trains" if together == 1 else f"every {together} of {self.ranks} GPUs train together"
        lines = [f"{who} on micro_batch sequences of {'its' if together == 1 else 'their'} own ({named}); what NCCL takes is not in it"]
        if self.stage:
            return [*lines, ZERO]
        return [*lines, "packed weights are shared out: bnb_4bit_quant_storage is a float type"] if packed and self.shares else lines

    def _groups(self) -> str:
        return f", one copy of the weights over {self.shard} of them" if self.shard else ""

    def sharding(self, gathered: Callable[[Weight], float], *, computed: int, gradient: int, tied: bool, adapters: bool) -> Sharding | None:
        """How parts are gathered, in `gathered` bytes of an element, for gradients of `computed` and, of a rank's own, `gradient` bytes."""
        shares = self.shares
        if shares is None:
            return None
        how = partial(Flat, leaves=shares.leaves and adapters, prefetch=shares.prefetch) if shares.flat else Sharding
        return how(
            ranks=self.shard or self.copies,
            replicated=bool(self.shard),
            gathered=gathered,
            computed=computed,
            reduced=computed if computed == gradient else shares.reduced,
            gradient=gradient,
            casts=computed != gradient or self.hosted,
            apart=shares.apart and not tied,
            always=self.always,
            keeps=self.keeps,
            outside=shares.outside,
        )


ALONE = Sharing()
"""One GPU, nothing shared."""


def asked(job: Job, known: Mapping[str, Shares | None], name: str) -> Sharing:
    """The sharing that the scenario asks of framework `name`; without a word its first kind. Raises Unknown for what is not estimated."""
    s, ranks, tensor = job.scenario, job.scenario.gpu_count or 1, job.scenario.tensor_parallel or 1
    if ranks == tensor > 1 and s.sharding in (None, "none"):
        return Sharing(ranks=ranks, tensor=tensor)
    kind = s.sharding or (next(iter(known), "none") if ranks > 1 else "none")
    policy, hosted = s.reshard_after_forward, _hosted(s.offload or (), kind)
    if kind == "none":
        if ranks > 1 and known:
            raise BadInput(f"sharding 'none' with gpu_count {ranks}: nothing would use the other GPUs; choose {' or '.join(known)}")
        if ranks > 1:
            raise Unknown(f"gpu_count {ranks}: engine {name!r} is estimated on one GPU by this version")
        job.refuse("reshard_after_forward")
        return ALONE
    if kind not in known:
        raise Unknown(f"sharding {kind!r}: estimated for engine {name!r} are {', '.join(['none', *known])}")
    shares = known[kind]
    if s.fsdp_version and shares and not shares.stage and s.fsdp_version != (1 if shares.flat else 2):
        raise Unknown(f"fsdp_version {s.fsdp_version} with sharding {kind!r}: engine {name!r} is estimated with {shares.named}")
    if policy and (shares is None or shares.stage):
        raise BadInput(f"reshard_after_forward {policy!r}: of FSDP, and sharding is {kind!r}")
    always = policy == "always" or (policy != "never" and shares is not None and shares.always)
    return Sharing(
        ranks=ranks,
        shares=shares,
        keeps=policy == "never",
        always=always,
        hosted=hosted,
        tensor=tensor,
        shard=_group(job, kind, ranks // tensor),
        buckets=s.fsdp_version != 1 and not s.gradient_as_bucket_view,
        views=_views(job, kind),
    )


NODE = 8
"""GPUs of one node, as most have: hybrid sharding is made to gather within a node (pytorch 2.13 `distributed/fsdp/api.py` HYBRID_SHARD)."""


def _group(job: Job, kind: str, ranks: int) -> int:
    """GPUs that share one copy of the weights with hybrid sharding, else 0. Raises BadInput where they are no part of `ranks`."""
    asked = job.scenario.shard_size
    if kind != "hsdp":
        if asked:
            raise BadInput(f"shard_size {asked}: of sharding hsdp, and sharding is {kind!r}")
        return 0
    size = asked or NODE
    if ranks % size or size >= ranks:
        near = [n for n in range(2, ranks) if ranks % n == 0]
        raise BadInput(
            f"shard_size {size} with {ranks} GPUs: hsdp wants several groups; " + (f"choose {_list(near)}" if near else "choose fsdp")
        )
    return size


def _views(job: Job, kind: str) -> bool:
    """Whether gradients lie in DDP's buckets (pytorch 2.13 `csrc/distributed/c10d/reducer.cpp`, Reducer::mark_variable_ready_dense)."""
    asked = bool(job.scenario.gradient_as_bucket_view)
    if asked and (kind != "ddp" or job.scenario.fsdp_version == 1):
        raise BadInput(f"gradient_as_bucket_view: of DDP, and sharding is {kind!r}; leave it out")
    return asked


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _hosted(offload: Sequence[str], kind: str) -> bool:
    """Whether parameters and the optimizer are in host memory: FSDP has both there or neither."""
    asked = [part for part in ("parameters", "optimizer") if part in offload]
    for part in offload:
        if part == "kv_cache":
            raise BadInput("offload 'kv_cache': there is none in training; there are parameters, optimizer, activations")
    if asked and kind != "fsdp":
        raise Unknown(f"offload {asked[0]!r} with sharding {kind!r}: estimated are activations, and parameters with optimizer under fsdp")
    if len(asked) == 1:
        raise BadInput(f"offload {asked[0]!r}: FSDP has parameters and optimizer in host memory together; write parameters,optimizer")
    return bool(asked)
