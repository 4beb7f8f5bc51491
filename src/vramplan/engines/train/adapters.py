"""Methods with adapters, as a scenario names them: what trains, what the frozen base is stored in, what PEFT and bitsandbytes refuse."""

from __future__ import annotations

from collections.abc import Iterable

from ...errors import BadInput, Unknown, nearest
from ...kernels import Kernels
from ...methods import (
    ADAPTERS,
    FUSED,
    ROUTER_LAYERS,
    WITHOUT_OUT_PROJ,
    Adapters,
    Full,
    ends,
    implied,
    inside,
    packed_as,
    shortened,
    variant,
)
from ...ops.packed import Packed
from ...tape import Tape
from ..job import Job, release


def method_of(job: Job, known: Iterable[str], engine: str) -> str:
    """The scenario's method. Raises Unknown for one that the engine is not estimated with, BadInput where it contradicts other keys."""
    s = job.scenario
    named = (s.method or implied(s.quantization, s.lora)).lower()
    if named not in known:
        raise Unknown(f"method {named!r}: estimated for engine {engine!r} are {', '.join(known)}{nearest(named, known)}")
    if named not in ADAPTERS and (s.quantization or job.model.config.get("quantization_config")):
        raise BadInput(f"method {named!r}: quantised weights do not train; choose qlora, or a checkpoint in 16 bits")
    if named in ADAPTERS and s.frozen_modules:
        raise BadInput(f"frozen_modules with method {named!r}: adapters freeze the whole model; leave it out, or use method full")
    if s.kbit_preparation and not packed_as(named, s.quantization):
        raise BadInput("kbit_preparation without a quantised base: add quantization, or use method qlora")
    return named


UNREPLACED = {"falcon": (5, 6)}
"""Model types whose linear layers are a class of their own, which transformers leaves in 16 bits since that version (5.3.0 does not).

Source: `integrations/bitsandbytes.py` replace_with_bnb_linear: `type(module) is nn.Linear`, before `isinstance`.
"""
UNPACKABLE = ("falcon_mamba", "jamba", "mamba")
"""Model types whose code multiplies with the weight of a linear layer, `dt_proj`, which cannot be packed then (transformers 5.23)."""


def base_of(job: Job, method: str, kinds: Iterable[str], precision: str, version: str) -> Packed | None:
    """How the frozen linear layers are stored; None for plain ones.

    Raises Unknown for a format that is not estimated, and BadInput for models that cannot be packed.
    """
    s, model_type = job.scenario, str(job.model.config.get("model_type"))
    kind = packed_as(method, s.quantization) if method in ADAPTERS else None
    if kind is None:
        return None
    if kind not in kinds:
        raise Unknown(f"quantization {kind!r}: estimated in training are {', '.join(kinds)}")
    if model_type in UNPACKABLE:
        raise BadInput(f"quantization {kind!r} of {job.model.id}: {model_type} multiplies with the weight of dt_proj, which it would pack")
    if job.engine == "transformers" and model_type in UNREPLACED and release(version) >= UNREPLACED[model_type]:
        return None
    compute = 4 if precision == "fp32" else 2
    return Packed(kind=kind, compute=compute, double=bool(s.double_quant), half=precision == "fp16" and not s.kbit_preparation)


def adapters_of(
    job: Job,
    method: str,
    base: Packed | None,
    kernels: Kernels,
    *,
    rank: int,
    targets: str | tuple[str, ...],
    dtype: str,
    dropout: float,
    recomputes: bool,
) -> Adapters | None:
    """The adapters of a scenario, with the framework's defaults where it is silent; None in full training."""
    if method not in ADAPTERS:
        return None
    lora = job.scenario.lora or {}
    asked, wanted, share = lora.get("rank", rank), lora.get("targets", targets), lora.get("dropout", dropout)
    assert isinstance(asked, int)
    assert isinstance(share, int | float)
    assert isinstance(wanted, str | tuple)
    kind = str(job.model.config.get("model_type"))
    return Adapters(
        rank=asked,
        dtype=str(lora.get("dtype", dtype)),
        dropout=float(share),
        variant=variant(method, lora),
        targets=wanted,
        saved_modules=job.scenario.trained_modules or (),
        base=base,
        checkpointing=recomputes,
        fused=FUSED.get(kind, ()) if kernels.experts == "grouped" else (),
        routers=kind in ROUTER_LAYERS or kernels.experts == "looped",
    )


def check(tape: Tape, trains: Full | Adapters, model: str, model_type: str) -> None:
    """Raise BadInput for modules that the walked model does not have, and for adapters that PEFT does not make."""
    paths = {shortened(weight.name.rpartition(".")[0]) for weight in tape.weights if weight.part != "adapters" and weight.tower is None}
    if isinstance(trains, Full):
        for name in trains.frozen:
            if not any(inside(f"{path}.weight", [name]) for path in paths):
                raise BadInput(f"frozen_modules {name!r}: {model} has no module of this name{_instead(name, paths)}")
        return
    tied = {"lm_head"} if any(weight.tied for weight in tape.weights) else set()
    for name in trains.saved_modules:
        if not any(ends(path, [name]) for path in paths | tied):
            raise BadInput(f"trained_modules {name!r}: {model} has no module of this name{_instead(name, paths)}")
    adapted = {weight.name.rpartition(".lora.")[0] for weight in tape.weights if weight.part == "adapters"}
    for name in () if isinstance(trains.targets, str) else trains.targets:
        last = name.rpartition(".")[2]
        if last not in trains.fused and not any(ends(module, [name]) for module in adapted):
            layers = {shortened(w.name.rpartition(".")[0]) for w in tape.weights if w.kind in ("linear", "head", "embed") and not w.tower}
            raise BadInput(f"lora.targets {name!r}: {model} has no layer of this name{_instead(name, layers)}")
    if model_type in WITHOUT_OUT_PROJ and any(ends(module, ("out_proj",)) for module in adapted):
        raise BadInput(f"lora.targets {_said(trains.targets)}: PEFT refuses out_proj of {model_type} models; name targets without it")
    if not adapted:
        raise BadInput(f"lora.targets {_said(trains.targets)}: {model} has no such layer; try all-linear")
    if trains.variant == "dora" and any(
        weight.kind == "embed" and ends(weight.name.rpartition(".")[0], adapted) for weight in tape.weights
    ):
        raise Unknown("DoRA on embeddings is not estimated by this version; leave them out of lora.targets")
    if trains.fused and any(weight.kind == "experts" for weight in tape.weights):
        _experts(trains, adapted, model)


def _experts(trains: Adapters, adapted: set[str], model: str) -> None:
    """What PEFT refuses of adapters on the stacked matrices of experts, and on routers."""
    pair = trains.fused[1:3]
    asked = [name for name in pair if trains.wanted(name)]
    if len(asked) == 1:
        other = pair[1] if asked[0] == pair[0] else pair[0]
        raise BadInput(f"lora.targets {asked[0]!r}: {model} has it in one parameter with {other!r}; name both or neither")
    if not any(ends(module, ("gate_up_proj", "down_proj", "gate")) for module in adapted):
        return
    if trains.variant == "dora" or trains.dropout:
        what = "DoRA" if trains.variant == "dora" else f"lora.dropout {trains.dropout:g}"
        raise BadInput(f"{what}: PEFT has it for layers, and the experts of {model} are parameters; try lora.targets attention")


def _said(targets: str | tuple[str, ...]) -> str:
    return targets if isinstance(targets, str) else ", ".join(targets)


def _instead(name: str, paths: Iterable[str]) -> str:
    """The names that come closest, or all there are."""
    names = sorted({path.rpartition(".")[2] for path in paths} - {""})
    return nearest(name, names) or f"; it has {', '.join(names)}"
