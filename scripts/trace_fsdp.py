"""Trace training steps of transformers' models under FSDP on a fake process group, and write a rank's peaks: the referee of the estimate.

`python scripts/trace_fsdp.py data/traced/fsdp.jsonl` appends the cases that the file lacks (extra `trace`, fifteen minutes). No GPU, no
network: collectives of torch's `fake` backend do nothing, and tensors are fake. Modules are wrapped as Accelerate 1.15 does: FSDP2 and HSDP
(`utils/fsdp_utils.py`, fsdp2_prepare_model), FSDP1 (`accelerator.py`, prepare_model; PEFT 0.21 `utils/other.py`, fsdp_auto_wrap_policy);
each step's loop is that of transformers' Trainer, with Accelerate's `no_sync`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from traced_rows import append

MODELS = (
    "meta-llama/Llama-3.2-1B",
    "meta-llama/Llama-3.1-8B",
    "Qwen/Qwen2.5-0.5B",
    "Qwen/Qwen3-8B",
    "google/gemma-3-1b-it",
    "openai-community/gpt2",
    "allenai/OLMoE-1B-7B-0924",
)
LORA = {"rank": 16, "targets": "all-linear", "dtype": "bf16"}
RECIPES: tuple[dict[str, Any], ...] = (
    {"method": "full", "precision": "bf16", "micro_batch": 1, "sequence_length": 1024, "checkpointing": "full", "gpu_count": 8},
    {"method": "full", "precision": "bf16", "micro_batch": 2, "sequence_length": 512, "gpu_count": 2, "optimizer": "adamw"},
    {"method": "full", "precision": "bf16-mixed", "micro_batch": 1, "sequence_length": 2048, "checkpointing": "full", "gpu_count": 4},
    {"method": "full", "precision": "bf16-mixed", "micro_batch": 1, "sequence_length": 512, "gpu_count": 64, "optimizer": "sgd"},
    {
        "method": "full",
        "precision": "bf16",
        "micro_batch": 1,
        "sequence_length": 512,
        "checkpointing": "full",
        "gpu_count": 8,
        "gradient_accumulation": 2,
    },
    {
        "method": "lora",
        "precision": "bf16",
        "micro_batch": 4,
        "sequence_length": 1024,
        "checkpointing": "full",
        "gpu_count": 2,
        "lora": LORA,
    },
    {
        "method": "full",
        "precision": "bf16",
        "micro_batch": 1,
        "sequence_length": 256,
        "checkpointing": "full",
        "gpu_count": 16,
        "reshard_after_forward": "never",
    },
)
HSDP: tuple[dict[str, Any], ...] = (
    {"precision": "bf16", "micro_batch": 1, "sequence_length": 512, "checkpointing": "full", "gpu_count": 16, "shard_size": 8},
    {"precision": "bf16-mixed", "micro_batch": 1, "sequence_length": 256, "checkpointing": "full", "gpu_count": 32, "shard_size": 4},
    {
        "precision": "bf16",
        "micro_batch": 1,
        "sequence_length": 256,
        "gpu_count": 4,
        "shard_size": 2,
        "gradient_accumulation": 2,
        "optimizer": "sgd",
    },
)
FIRST: tuple[dict[str, Any], ...] = (
    {"method": "full", "precision": "bf16", "micro_batch": 1, "sequence_length": 1024, "checkpointing": "full", "gpu_count": 8},
    {"method": "full", "precision": "bf16-mixed", "micro_batch": 1, "sequence_length": 256, "gpu_count": 4, "optimizer": "adamw"},
    {
        "method": "lora",
        "precision": "bf16",
        "micro_batch": 4,
        "sequence_length": 512,
        "checkpointing": "full",
        "gpu_count": 2,
        "lora": LORA,
    },
    {
        "method": "lora",
        "precision": "bf16",
        "micro_batch": 1,
        "sequence_length": 128,
        "checkpointing": "full",
        "gpu_count": 8,
        "lora": LORA,
    },
    {
        "method": "full",
        "precision": "bf16",
        "micro_batch": 1,
        "sequence_length": 256,
        "checkpointing": "full",
        "gpu_count": 8,
        "gradient_accumulation": 2,
    },
)
LAYERS = ("model.layers", "transformer.h")


def cases() -> Iterator[dict[str, Any]]:
    """Every scenario of the matrix."""
    for model in MODELS:
        for recipe in RECIPES:
            if not (model == "openai-community/gpt2" and recipe["sequence_length"] > 1024):  # it has no more positions
                yield {"model": model, "task": "train", "engine": "transformers", "sharding": "fsdp", **recipe}
    for model in MODELS[:5]:
        for recipe in HSDP:
            yield {"model": model, "task": "train", "engine": "transformers", "sharding": "hsdp", "method": "full", **recipe}
        for recipe in FIRST:
            yield {"model": model, "task": "train", "engine": "transformers", "sharding": "fsdp", "fsdp_version": 1, **recipe}


def flat(model: Any, asked: dict[str, Any]) -> Any:
    """FSDP1: each layer a unit; with adapters each module that trains too."""
    import torch
    from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision
    from torch.distributed.fsdp.wrap import _or_policy, lambda_auto_wrap_policy, transformer_auto_wrap_policy

    def leaf(module: Any) -> bool:
        return not list(module.children()) and getattr(module, "weight", None) is not None and module.weight.requires_grad

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    kinds = {type(module) for module in base.modules() if type(module).__name__ in base._no_split_modules}
    policies = [partial(transformer_auto_wrap_policy, transformer_layer_cls=kinds)]
    if base is not model:
        policies.insert(0, partial(lambda_auto_wrap_policy, lambda_fn=leaf))
    low = torch.bfloat16 if asked["precision"] == "bf16-mixed" else None
    return FullyShardedDataParallel(
        model,
        auto_wrap_policy=partial(_or_policy, policies=policies),
        mixed_precision=MixedPrecision(param_dtype=low, reduce_dtype=low, buffer_dtype=low) if low else None,
        use_orig_params=True,
        backward_prefetch=None,
        limit_all_gathers=False,
        device_id=torch.device("cpu"),
    )


def wrapped(model: Any, mesh: Any, asked: dict[str, Any]) -> Any:
    """FSDP2: each layer a unit; the embedding and the head too where they are two matrices, else one unit that stays whole."""
    import torch
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    dtype = torch.bfloat16 if asked["precision"] == "bf16-mixed" else None
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=dtype, output_dtype=dtype)
    given: dict[str, Any] = {"mesh": mesh, "mp_policy": policy}
    reshards = asked.get("reshard_after_forward") != "never"
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    layers = next(base.get_submodule(name) for name in LAYERS if any(n == name for n, _ in base.named_modules()))
    for layer in layers:
        fully_shard(layer, reshard_after_forward=reshards, **given)
    inputs, outputs = base.get_input_embeddings(), base.get_output_embeddings()
    norm = getattr(base.base_model, "norm", None) or base.base_model.ln_f
    tied = inputs.weight is outputs.weight
    if not tied:
        fully_shard(inputs, reshard_after_forward=reshards, **given)
    fully_shard([norm, inputs, outputs] if tied else [norm, outputs], reshard_after_forward=False, **given)
    return fully_shard(model, **given)


SHARED = ("sharding", "gpu_count", "reshard_after_forward", "fsdp_version", "shard_size")
"""Keys of a scenario that the trace of one GPU has not."""


def trace(asked: dict[str, Any]) -> Any:
    """Two steps of rank 0."""
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._sharding_prop import ShardingPropagator
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from vramplan.scenario import scenario
    from vramplan.sources import resolve
    from vramplan.trace.environment import modules, on_gpu
    from vramplan.trace.models import build
    from vramplan.trace.optimizers import optimizer, states
    from vramplan.trace.recipe import recipe
    from vramplan.trace.recorder import Recorder

    own, propagate = Recorder.__torch_dispatch__, ShardingPropagator._propagate_tensor_meta_non_cached

    def local(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """DTensors first take their operators apart into those of their parts."""
        return NotImplemented if any(issubclass(kind, DTensor) for kind in types) else own(self, func, types, args, kwargs)

    plain = {key: value for key, value in asked.items() if key not in SHARED}
    ranks, first = asked["gpu_count"], asked.get("fsdp_version") == 1
    group = asked.get("shard_size", ranks)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    several = group != ranks
    mesh = (
        init_device_mesh("cpu", (ranks // group, group), mesh_dim_names=("replicate", "shard"))
        if several
        else init_device_mesh("cpu", (ranks,))
    )
    wish = scenario(plain)
    choices = recipe(wish, resolve(wish.model), loop="trainer")
    Recorder.__torch_dispatch__ = local  # type: ignore[method-assign]
    with on_gpu(choices.gpu, choices.capability, choices.memory) as recorder:

        def uncounted(self: Any, *args: Any, **kwargs: Any) -> Any:
            """Shapes of whole tensors, from which DTensor infers those of results."""
            with recorder.uncounted():
                return propagate(self, *args, **kwargs)

        ShardingPropagator._propagate_tensor_meta_non_cached = uncounted  # type: ignore[method-assign]
        model = flat(build(choices), asked) if first else wrapped(build(choices), mesh, asked)
        recorder.mark("load")
        if first:
            handles = [(name, module._handle) for name, module in model.named_modules() if getattr(module, "_handle", None)]
            recorder.adopt(((name, handle.flat_param) for name, handle in handles), "weights")
        else:
            recorder.adopt(((name, p.to_local()) for name, p in model.named_parameters()), "weights")
        recorder.adopt(((name, b) for name, b in model.named_buffers()), "weights")
        trained = [p for p in model.parameters() if p.requires_grad]
        stepper = optimizer(choices.optimizer, model, recorder.uncounted)
        passes = choices.gradient_accumulation
        with modules(recorder):
            recorder.paused = False
            for _ in range(2):
                for number in range(passes):
                    last = number + 1 == passes
                    if not first:
                        model.set_requires_gradient_sync(last)
                    with model.no_sync() if first and not last else nullcontext():
                        recorder.mark("forward")
                        ids = torch.zeros((choices.micro_batch, choices.sequence_length), dtype=torch.long)
                        with torch.autocast("cpu", dtype=torch.bfloat16) if choices.mixed else nullcontext():
                            output = model(input_ids=ids, labels=ids, use_cache=False)
                        loss = output.loss
                        del output, ids
                        recorder.mark("backward")
                        loss.backward()
                recorder.mark("step")
                recorder.label((p.grad if first else p.grad.to_local() for p in trained if p.grad is not None), "gradients")
                stepper.step()
                recorder.label(states(stepper), "optimizer states")
                stepper.zero_grad(set_to_none=True)
                loss = None
                recorder.step += 1
            recorder.paused = True
        return recorder.result("fsdp")


def versions(_: dict[str, Any]) -> dict[str, str]:
    return {name: version(name) for name in ("torch", "transformers", "peft")}


if __name__ == "__main__":
    append(Path(sys.argv[1]), cases(), trace, versions)
