"""Several GPUs that train on different data: whole copies of the model (DDP), or parts of it that are gathered as they run (FSDP).

DeepSpeed's ZeRO is in deepspeed.py. What it does not know: hybrid sharding, other kinds of parallelism, what NCCL itself takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ...errors import BadInput, Unknown
from ...parallel.sharded import Sharding
from ...tape import Weight
from ..job import Job

DDP = "pytorch 2.13 torch/csrc/distributed/c10d/reducer.cpp, Reducer::initialize_buckets"
ZERO = "bf16 means weights and gradients in bf16 with fp32 masters to DeepSpeed; what torch's allocator reserves beyond is not estimated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """How a framework wraps a model in FSDP, which it calls `named`; the rest is as `Sharding` has it, `apart` where embedding and head are
    not `tied`. `autocast`: around it, or not. `reduced`: bytes of an element of gradients that are reduced in mixed precision. `synced`:
    each pass of a step reduces its gradients, or whole ones wait for the last pass. `stage`: of ZeRO, 0 for FSDP. `outside`:
    the loss is no part of what is wrapped.
    """

    named: str = "FSDP2"
    flat: bool = False
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
    and states lie in host memory, and the optimizer steps there.
    """

    ranks: int = 1
    shares: Shares | None = None
    keeps: bool = False
    always: bool = False
    hosted: bool = False

    @property
    def stage(self) -> int:
        """Of ZeRO, 0 without it."""
        return self.shares.stage if self.shares else 0

    def assumptions(self, *, packed: bool, context: int) -> list[str]:
        """How the GPUs share the model, in words; nothing for one."""
        if self.ranks == 1 and not self.shares:
            return []
        units = "DeepSpeed's defaults and `auto` sizes" if self.stage else "each layer a unit"
        named = f"{self.shares.named}, {units}" if self.shares else "DDP, gradient_as_bucket_view off"
        who = f"each of {self.ranks} GPUs trains" if context == 1 else f"every {context} of {self.ranks} GPUs train together"
        lines = [f"{who} on micro_batch sequences of {'its' if context == 1 else 'their'} own ({named}); what NCCL takes is not in it"]
        if self.stage:
            return [*lines, ZERO]
        return [*lines, "packed weights are shared out: bnb_4bit_quant_storage is a float type"] if packed and self.shares else lines

    def sharding(self, gathered: Callable[[Weight], float], *, computed: int, gradient: int, tied: bool) -> Sharding | None:
        """How parts are gathered, in `gathered` bytes of an element, for gradients of `computed` and, of a rank's own, `gradient` bytes."""
        shares = self.shares
        if shares is None:
            return None
        return Sharding(
            ranks=self.ranks,
            gathered=gathered,
            computed=computed,
            reduced=computed if computed == gradient else shares.reduced,
            gradient=gradient,
            casts=computed != gradient or self.hosted,
            flat=shares.flat,
            apart=shares.apart and not tied,
            always=self.always,
            keeps=self.keeps,
            outside=shares.outside,
        )


ALONE = Sharing()
"""One GPU, nothing shared."""


def asked(job: Job, known: Mapping[str, Shares | None], name: str) -> Sharing:
    """The sharing that the scenario asks of framework `name`; without a word its first kind. Raises Unknown for what is not estimated."""
    s, ranks = job.scenario, job.scenario.gpu_count or 1
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
    if policy and (shares is None or shares.stage):
        raise BadInput(f"reshard_after_forward {policy!r}: of FSDP, and sharding is {kind!r}")
    always = policy == "always" or (policy != "never" and shares is not None and shares.always)
    return Sharing(ranks=ranks, shares=shares, keeps=policy == "never", always=always, hosted=hosted)


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
