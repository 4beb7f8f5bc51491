"""What a scenario's names stand for: its model, its GPUs, the engine that runs it, and how the weights are stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from .dim import Dim
from .engines import engine
from .engines.lines import text_caches
from .errors import BadInput, Unknown
from .families import walk
from .formats import Scheme, is_gguf, scheme_from_config
from .formats import scheme as named_scheme
from .scenario import Scenario
from .sources.model import Model
from .tape import Tape

if TYPE_CHECKING:
    from .catalog.gpus import Gpu
    from .formats.gguf_facts import ModelFacts

FLOATS = ("bf16", "fp16", "fp32")


@lru_cache(maxsize=64)
def _named(model: str) -> Model:
    from .sources import resolve

    return resolve(model)


def model_of(model: str | Mapping[str, object]) -> Model:
    """The model of a name, of which the last 64 are kept, or of a config given as a dict."""
    if isinstance(model, str):
        return _named(model)
    from .sources import resolve

    return resolve(model)


def gpus_of(asked: Scenario) -> tuple[Gpu, ...]:
    """The GPU that a scenario names, or each of several kinds; of alike ones the first. None without a name."""
    if asked.gpu is None:
        if asked.gpu_memory is None:
            return ()
        from .catalog.gpus import anonymous_gpu

        return (anonymous_gpu(asked.gpu_memory),)
    from .catalog.gpus import find_gpus

    gpus = find_gpus(asked.gpu)
    if asked.gpu_memory is None:
        return gpus
    return tuple(replace(gpu, capacity=asked.gpu_memory, usable=asked.gpu_memory) for gpu in gpus)


def engine_of(asked: Scenario, model: Model) -> str:
    """The engine that serves, named or by the weights' format. Raises BadInput, or Unknown, where it does not load that as it is."""
    gguf = model.gguf or (asked.weights is not None and is_gguf(asked.weights))
    name = asked.engine or ("llama.cpp" if gguf else "vllm")
    if gguf and name == "transformers":
        raise Unknown(
            "engine 'transformers' dequantises GGUF files when it loads them: name the number format that you load with --weights"
        )
    if name == "llama.cpp" and not gguf and (asked.weights or "bf16").lower() not in (*FLOATS, "mxfp4"):
        raise BadInput(f"weights {asked.weights!r}: llama.cpp loads GGUF files; name one of their types, such as Q4_K_M")
    return name


def counted(asked: Scenario, gpus: tuple[Gpu, ...], name: str) -> Scenario:
    """The scenario with as many GPUs as it names. Raises BadInput for another count, Unknown for an engine that has equal ones only."""
    if len(gpus) < 2:
        return asked
    if asked.gpu_count not in (None, len(gpus)):
        raise BadInput(f"gpu_count {asked.gpu_count}: gpu names {len(gpus)}, {asked.gpu}")
    if not getattr(engine(name), "UNEQUAL", False):
        raise Unknown(f"gpu {asked.gpu}: GPUs of several kinds are not estimated for engine {name!r} by this version")
    return replace(asked, gpu_count=len(gpus))


def stored_as(asked: Scenario, model: Model) -> Scheme:
    """How the weights are stored: as the scenario says, as the checkpoint's own quantisation says, or in its dtype."""
    if asked.weights is not None:
        double = "-double" if asked.double_quant and asked.weights.lower() in ("nf4", "fp4") else ""
        return scheme_of(asked.weights + double, model)
    own = own_quantisation(model)
    if own is None:
        return named_scheme(model.named_format or model.dtype, dtype=model.dtype)
    if not isinstance(own, dict):
        raise BadInput(f"{model.id}: quantization_config must be an object")
    experts = {"expert_dtype": model.config["expert_dtype"]} if "expert_dtype" in model.config else {}
    return scheme_from_config({**experts, **own}, dtype=model.dtype)


@lru_cache(maxsize=64)
def scheme_of(name: str, model: Model) -> Scheme:
    """The number format `name`, as it is for the tensors of `model`."""
    return named_scheme(name, dtype=model.dtype, facts=None if name in FLOATS else gguf_facts(model))


def is_converted(name: str, asked: Scenario, model: Model) -> bool:
    """Whether the engine `name` runs no checkpoint but what `convert_hf_to_gguf.py` makes of it: floats in 16 bits, MXFP4 as it is."""
    return name == "llama.cpp" and asked.weights is None and not model.gguf


def own_quantisation(model: Model) -> object:
    """What the checkpoint's config says of its quantisation; None where it says nothing."""
    return next(
        (found for key in ("quantization_config", "quantization") for c in (model.config, model.text) if (found := c.get(key))), None
    )


@lru_cache(maxsize=64)
def gguf_facts(model: Model) -> ModelFacts:
    """What llama.cpp's per-tensor rules ask of a model."""
    from .formats.gguf_facts import model_facts

    text = model.text

    def size(*names: str, default: int = 1) -> int:
        return next((n for name in names if isinstance(n := text.get(name), int) and n > 0), default)

    tape = walk(Tape(Dim(1, "sequences"), Dim(1, "tokens")), model.config)
    heads = size("num_attention_heads", "n_head", "num_heads", "n_heads")
    kv_heads = size("num_key_value_heads", "num_kv_heads", "n_head_kv", default=heads)
    own = own_quantisation(model)
    first = any(cache.side == "k" and 0 in cache.layers for cache in text_caches(tape)) or not tape.caches
    return model_facts(
        tape.weights,
        heads=heads,
        kv_heads=kv_heads if first else 0,
        model_type=str(model.config.get("model_type")),
        qk_nope=size("qk_nope_head_dim", default=128),
        v_dim=size("v_head_dim", default=128),
        mxfp4_experts=isinstance(own, dict) and own.get("quant_method") == "mxfp4",
    )
