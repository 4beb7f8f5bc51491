"""Trace training steps of torchtitan's models over several GPUs on a fake process group, and write the last rank's peaks.

`python scripts/trace_parallel.py data/traced/parallel.jsonl` appends the cases that the file lacks (extra `trace`, torchtitan 0.2.2). No
GPU, no network: collectives of torch's `fake` backend do nothing, and tensors are fake. torchtitan's own code splits the model
(tensor, context and expert parallelism, checkpointing, FSDP2), and each step is that of its trainer.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

from titan_models import built
from trace_kernels import Finder
from traced_rows import append

QWEN3 = "Qwen/Qwen3-8B"
TINY, SMALL, LLAMA = "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.1-8B"
NARROW = {
    "model_type": "llama",
    "hidden_size": 2048,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "intermediate_size": 8192,
    "vocab_size": 1024,
    "max_position_embeddings": 131072,
}
"""So few words that layers take most."""
EXPERTS = NARROW | {
    "model_type": "qwen3_moe",
    "head_dim": 128,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
}
LATENT = NARROW | {
    "model_type": "deepseek_v2",
    "num_key_value_heads": 16,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 512,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 32,
    "n_shared_experts": 2,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 768,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "greedy",
    "scoring_func": "softmax",
    "norm_topk_prob": False,
    "routed_scaling_factor": 1.0,
}
LATENT3 = LATENT | {
    "model_type": "deepseek_v3",
    "q_lora_rank": 768,
    "n_shared_experts": 1,
    "n_group": 8,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
}
CASES: tuple[dict[str, Any], ...] = (
    {"model": TINY, "gpu_count": 2},
    {"model": TINY, "gpu_count": 2, "checkpointing": "none"},
    {"model": TINY, "gpu_count": 2, "context_parallel": 2},
    {"model": TINY, "gpu_count": 4, "context_parallel": 2, "checkpointing": "none", "micro_batch": 2},
    {"model": TINY, "gpu_count": 4, "context_parallel": 4, "micro_batch": 8},
    {"model": TINY, "gpu_count": 8, "context_parallel": 4, "checkpointing": "full", "micro_batch": 4},
    {"model": TINY, "gpu_count": 64, "context_parallel": 8, "checkpointing": "none", "micro_batch": 16},
    {"model": LLAMA, "gpu_count": 8, "context_parallel": 8, "sequence_length": 131072, "checkpointing": "full"},
    {"model": LLAMA, "gpu_count": 8, "context_parallel": 2, "sequence_length": 8192},
    {"model": LLAMA, "gpu_count": 32, "context_parallel": 4, "sequence_length": 65536},
    {"model": LLAMA, "gpu_count": 16, "context_parallel": 2, "sequence_length": 4096, "checkpointing": "none"},
    {"model": LLAMA, "gpu_count": 256, "context_parallel": 16, "sequence_length": 131072, "checkpointing": "full", "micro_batch": 2},
    {"model": TINY, "gpu_count": 4, "tensor_parallel": 2},
    {"model": TINY, "gpu_count": 4, "tensor_parallel": 2, "micro_batch": 8},
    {"model": TINY, "gpu_count": 4, "tensor_parallel": 2, "micro_batch": 8, "checkpointing": "none"},
    {"model": TINY, "gpu_count": 4, "tensor_parallel": 2, "micro_batch": 8, "checkpointing": "full"},
    {"model": TINY, "gpu_count": 64, "tensor_parallel": 4, "micro_batch": 1, "checkpointing": "none"},
    {"model": TINY, "gpu_count": 64, "tensor_parallel": 4, "micro_batch": 16, "checkpointing": "none"},
    {"model": TINY, "gpu_count": 64, "tensor_parallel": 4, "micro_batch": 16},
    {"model": TINY, "gpu_count": 8, "tensor_parallel": 4, "micro_batch": 4, "checkpointing": "full", "precision": "fp32"},
    {"model": TINY, "gpu_count": 8, "tensor_parallel": 2, "micro_batch": 2, "checkpointing": "none", "precision": "fp32"},
    {"model": TINY, "gpu_count": 8, "tensor_parallel": 2, "micro_batch": 4, "precision": "fp32"},
    {"model": TINY, "gpu_count": 2, "tensor_parallel": 2, "precision": "fp32", "checkpointing": "none", "sharding": "none"},
    {"model": TINY, "gpu_count": 4, "tensor_parallel": 4, "precision": "fp32", "micro_batch": 4, "sharding": "none"},
    {"model": TINY, "gpu_count": 8, "tensor_parallel": 2, "context_parallel": 2, "micro_batch": 4},
    {"model": TINY, "gpu_count": 8, "tensor_parallel": 2, "context_parallel": 2, "micro_batch": 4, "checkpointing": "none"},
    {"model": TINY, "gpu_count": 32, "tensor_parallel": 4, "context_parallel": 4, "micro_batch": 8, "checkpointing": "full"},
    {"model": TINY, "gpu_count": 32, "tensor_parallel": 4, "context_parallel": 2, "micro_batch": 16},
    {"model": TINY, "gpu_count": 8, "tensor_parallel": 2, "reshard_after_forward": "never", "micro_batch": 4},
    {"model": TINY, "gpu_count": 8, "tensor_parallel": 4, "reshard_after_forward": "always", "micro_batch": 4},
    {"model": SMALL, "gpu_count": 4, "tensor_parallel": 2},
    {"model": SMALL, "gpu_count": 8, "tensor_parallel": 8, "precision": "fp32", "sharding": "none"},
    {"model": SMALL, "gpu_count": 16, "tensor_parallel": 8, "checkpointing": "none"},
    {"model": SMALL, "gpu_count": 16, "tensor_parallel": 8, "checkpointing": "full", "micro_batch": 16},
    {"model": SMALL, "gpu_count": 16, "tensor_parallel": 8, "micro_batch": 8, "sequence_length": 8192},
    {"model": SMALL, "gpu_count": 128, "tensor_parallel": 8, "context_parallel": 4, "sequence_length": 32768},
    {"model": SMALL, "gpu_count": 64, "tensor_parallel": 4, "micro_batch": 8, "checkpointing": "none", "sequence_length": 1024},
    {"model": SMALL, "gpu_count": 64, "tensor_parallel": 2, "micro_batch": 4, "checkpointing": "full", "precision": "fp32"},
    {"model": LLAMA, "gpu_count": 8, "tensor_parallel": 2, "sequence_length": 8192},
    {"model": LLAMA, "gpu_count": 8, "tensor_parallel": 2, "sequence_length": 8192, "checkpointing": "none"},
    {"model": LLAMA, "gpu_count": 8, "tensor_parallel": 4, "sequence_length": 8192, "checkpointing": "full"},
    {"model": LLAMA, "gpu_count": 64, "tensor_parallel": 8, "sequence_length": 8192, "micro_batch": 4},
    {"model": LLAMA, "gpu_count": 64, "tensor_parallel": 8, "sequence_length": 8192, "micro_batch": 4, "checkpointing": "full"},
    {"model": LLAMA, "gpu_count": 64, "tensor_parallel": 8, "sequence_length": 4096, "micro_batch": 2, "checkpointing": "none"},
    {"model": LLAMA, "gpu_count": 64, "tensor_parallel": 4, "context_parallel": 2, "sequence_length": 32768, "checkpointing": "full"},
    {"model": LLAMA, "gpu_count": 64, "tensor_parallel": 4, "context_parallel": 4, "sequence_length": 32768, "checkpointing": "selective"},
    {"model": LLAMA, "gpu_count": 64, "tensor_parallel": 2, "context_parallel": 4, "sequence_length": 16384, "checkpointing": "none"},
    {"model": LLAMA, "gpu_count": 512, "tensor_parallel": 8, "context_parallel": 8, "sequence_length": 131072, "checkpointing": "full"},
    {"model": LLAMA, "gpu_count": 16, "tensor_parallel": 8, "sequence_length": 4096, "precision": "fp32", "checkpointing": "full"},
    {"model": LLAMA, "gpu_count": 16, "tensor_parallel": 2, "sequence_length": 2048, "optimizer": "adamw"},
    {"model": LLAMA, "gpu_count": 16, "tensor_parallel": 2, "sequence_length": 2048, "micro_batch": 2, "gradient_accumulation": 2},
    {"model": LLAMA, "gpu_count": 32, "tensor_parallel": 4, "sequence_length": 8192, "reshard_after_forward": "never"},
    {"model": QWEN3, "gpu_count": 8},
    {"model": QWEN3, "gpu_count": 8, "checkpointing": "none", "micro_batch": 2},
    {"model": QWEN3, "gpu_count": 8, "checkpointing": "full", "micro_batch": 4},
    {"model": QWEN3, "gpu_count": 32, "tensor_parallel": 4, "checkpointing": "none", "micro_batch": 4},
    {"model": QWEN3, "gpu_count": 32, "tensor_parallel": 2, "sequence_length": 8192},
    {"model": NARROW | {"model_type": "qwen3", "head_dim": 128}, "gpu_count": 8, "checkpointing": "none", "micro_batch": 4},
    {"model": NARROW | {"model_type": "qwen3", "head_dim": 128}, "gpu_count": 8, "checkpointing": "full", "micro_batch": 4},
    {"model": NARROW | {"model_type": "qwen3", "head_dim": 128}, "gpu_count": 8, "micro_batch": 4},
    {"model": NARROW | {"model_type": "qwen3", "head_dim": 128}, "gpu_count": 8, "tensor_parallel": 4, "micro_batch": 4},
    {"model": QWEN3, "gpu_count": 8, "checkpointing": "full", "micro_batch": 4, "context_parallel": 4, "sequence_length": 8192},
    {"model": EXPERTS, "gpu_count": 8, "checkpointing": "none", "micro_batch": 4, "context_parallel": 2},
    {
        "model": NARROW | {"model_type": "qwen3", "head_dim": 128},
        "gpu_count": 8,
        "checkpointing": "none",
        "micro_batch": 4,
        "context_parallel": 4,
        "sequence_length": 8192,
    },
    {
        "model": NARROW | {"model_type": "qwen3", "head_dim": 128},
        "gpu_count": 8,
        "micro_batch": 4,
        "context_parallel": 4,
        "sequence_length": 8192,
    },
    {
        "model": NARROW | {"model_type": "qwen3", "head_dim": 128},
        "gpu_count": 8,
        "tensor_parallel": 4,
        "checkpointing": "none",
        "micro_batch": 4,
    },
    {"model": EXPERTS, "gpu_count": 8, "checkpointing": "none", "micro_batch": 4},
    {"model": EXPERTS, "gpu_count": 8, "checkpointing": "full", "micro_batch": 4},
    {"model": EXPERTS, "gpu_count": 8, "micro_batch": 4},
    {"model": "Qwen/Qwen3-30B-A3B", "gpu_count": 8, "checkpointing": "full"},
    {"model": "Qwen/Qwen3-30B-A3B", "gpu_count": 64, "micro_batch": 4},
    {"model": LATENT, "gpu_count": 8, "checkpointing": "none", "micro_batch": 4},
    {"model": LATENT, "gpu_count": 8, "checkpointing": "full", "micro_batch": 4},
    {"model": LATENT, "gpu_count": 8, "micro_batch": 4},
    {"model": LATENT3, "gpu_count": 8, "checkpointing": "none", "micro_batch": 4},
    {"model": LATENT3, "gpu_count": 8, "checkpointing": "full", "micro_batch": 4},
    {"model": LATENT3, "gpu_count": 8, "micro_batch": 4},
    {"model": "deepseek-ai/DeepSeek-V2-Lite", "gpu_count": 8, "checkpointing": "full"},
    {"model": "deepseek-ai/DeepSeek-V2-Lite", "gpu_count": 64, "micro_batch": 4},
    {"model": EXPERTS, "gpu_count": 8, "checkpointing": "none", "micro_batch": 4, "expert_parallel": 4},
    {"model": EXPERTS, "gpu_count": 8, "checkpointing": "full", "micro_batch": 4, "expert_parallel": 4},
    {"model": EXPERTS, "gpu_count": 8, "checkpointing": "full", "sequence_length": 512, "expert_parallel": 2},
    {"model": EXPERTS, "gpu_count": 64, "checkpointing": "full", "expert_parallel": 8},
    {"model": EXPERTS, "gpu_count": 8, "micro_batch": 4, "expert_parallel": 4, "reshard_after_forward": "never"},
    {"model": LATENT, "gpu_count": 8, "micro_batch": 4, "expert_parallel": 4, "reshard_after_forward": "never"},
    {"model": LATENT, "gpu_count": 16, "checkpointing": "none", "sequence_length": 512, "expert_parallel": 2},
    {"model": LATENT3, "gpu_count": 8, "checkpointing": "full", "micro_batch": 4, "expert_parallel": 8},
    {
        "model": "deepseek-ai/DeepSeek-V2-Lite",
        "gpu_count": 8,
        "checkpointing": "full",
        "micro_batch": 8,
        "sequence_length": 4096,
        "expert_parallel": 8,
    },
    {"model": NARROW, "gpu_count": 8, "checkpointing": "none", "micro_batch": 4},
    {"model": NARROW, "gpu_count": 8, "tensor_parallel": 2, "checkpointing": "none", "micro_batch": 4},
    {"model": NARROW, "gpu_count": 8, "tensor_parallel": 2, "micro_batch": 4},
    {"model": NARROW, "gpu_count": 8, "tensor_parallel": 2, "checkpointing": "full", "micro_batch": 4},
    {"model": NARROW, "gpu_count": 64, "tensor_parallel": 8, "checkpointing": "none", "sequence_length": 16384},
    {"model": NARROW, "gpu_count": 64, "tensor_parallel": 8, "sequence_length": 16384, "micro_batch": 2},
    {"model": NARROW, "gpu_count": 64, "tensor_parallel": 8, "checkpointing": "full", "sequence_length": 65536},
    {"model": NARROW, "gpu_count": 32, "tensor_parallel": 4, "context_parallel": 2, "sequence_length": 16384, "micro_batch": 4},
    {"model": NARROW, "gpu_count": 32, "tensor_parallel": 2, "context_parallel": 8, "sequence_length": 65536, "checkpointing": "full"},
    {"model": NARROW, "gpu_count": 16, "tensor_parallel": 4, "precision": "fp32", "micro_batch": 8, "checkpointing": "full"},
    {
        "model": NARROW,
        "gpu_count": 4,
        "tensor_parallel": 4,
        "precision": "fp32",
        "micro_batch": 8,
        "checkpointing": "none",
        "sharding": "none",
    },
)
DEFAULTS: dict[str, Any] = {
    "task": "train",
    "engine": "torchtitan",
    "precision": "bf16-mixed",
    "sharding": "fsdp",
    "micro_batch": 1,
    "sequence_length": 2048,
    "checkpointing": "selective",
}


def cases() -> Iterator[dict[str, Any]]:
    """Every scenario."""
    for case in CASES:
        yield {**DEFAULTS, **case}


def replaced() -> None:
    """What a fake tensor can't do: masks that on a GPU are a masked_fill_ (aten `TensorAdvancedIndexing.cpp`, canDispatchToMaskedFill),
    joining meshes, which looks at the ranks' numbers, counts of integers, and a Triton kernel's places of experts' rows.
    """
    import torch
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor._ops._mask_buffer import MaskBuffer
    from torch.distributed.tensor.placement_types import _MaskPartial
    from torch.utils._python_dispatch import _disable_current_modes
    from torchtitan.distributed import expert_parallel
    from torchtitan.models.moe import utils

    join, exchange = DeviceMesh._concatenate, expert_parallel.all_to_all_single_autograd

    def fill(self: Any, tensor: Any) -> None:
        tensor.masked_fill_(self.data if tensor.ndim == self.data.ndim else self.data.unsqueeze(-1), 0.0)

    def shift(tensor: Any, offset: int, size: int) -> tuple[Any, Any]:
        mask = (tensor < offset) | (tensor >= offset + size)
        return mask, (tensor.clone() - offset).masked_fill_(mask, 0)

    def joined(meshes: Any) -> Any:
        with _disable_current_modes():
            return join(meshes)

    def counted(x: Any, bins: int, **_: Any) -> Any:
        return torch.empty(bins, dtype=x.dtype)

    def exchanged(x: Any, _: Any, splits: Any, group: Any) -> Any:
        """As many rows to each rank as from it: counts are values, which fake tensors lack."""
        even = [x.shape[0] // len(splits)] * len(splits)
        return exchange(x, even, even, group)

    def placed(_: Any, experts: int, ranks: int, rows: int, alignment: int) -> tuple[Any, Any, Any]:
        return tuple(torch.empty(size, dtype=torch.int32) for size in (rows, experts, experts))  # type: ignore[return-value]

    torch.histc = counted  # type: ignore[assignment]
    utils.generate_permute_indices = placed
    expert_parallel.all_to_all_single_autograd = exchanged
    MaskBuffer.apply_mask = fill  # type: ignore[method-assign]
    _MaskPartial._mask_tensor = staticmethod(shift)  # type: ignore[assignment]
    DeviceMesh._concatenate = staticmethod(joined)  # type: ignore[method-assign]


def trace(asked: dict[str, Any]) -> Any:
    """Two steps of the last rank, which in context parallelism merges whole parts."""
    import torch
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._sharding_prop import ShardingPropagator
    from torch.distributed.tensor.parallel import loss_parallel
    from torch.testing._internal.distributed.fake_pg import FakeStore

    sys.meta_path.insert(0, Finder())  # Triton that does nothing
    sys.modules["torch.utils.tensorboard"] = types.SimpleNamespace(SummaryWriter=None)  # type: ignore[assignment]
    import torchtitan.distributed.parallel_dims as parallel_dims
    from torchtitan.distributed.context_parallel import prepare_context_parallel_input

    from vramplan.trace.environment import modules, on_gpu
    from vramplan.trace.recipe import DEFAULT_GPU
    from vramplan.trace.recorder import Recorder

    own, propagate = Recorder.__torch_dispatch__, ShardingPropagator._propagate_tensor_meta_non_cached

    def local(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """DTensors first take their operators apart into those of their parts; who waits for a tensor gets that one."""
        if func is torch.ops._c10d_functional.wait_tensor.default:
            return args[0]
        return NotImplemented if any(issubclass(kind, DTensor) for kind in types) else own(self, func, types, args, kwargs)

    ranks, cp, tp, ep = asked["gpu_count"], *(asked.get(f"{kind}_parallel", 1) for kind in ("context", "tensor", "expert"))
    replaced()
    dist.init_process_group("fake", store=FakeStore(), rank=ranks - 1, world_size=ranks)
    parallel_dims.device_type = "cpu"
    degrees = {"dp_replicate": 1, "dp_shard": ranks // cp // tp, "cp": cp, "tp": tp, "pp": 1, "ep": ep, "etp": 1}
    dims = parallel_dims.ParallelDims(**degrees, world_size=ranks)
    dims.build_mesh()
    Recorder.__torch_dispatch__ = local  # type: ignore[method-assign]
    with on_gpu(*DEFAULT_GPU) as recorder:

        def uncounted(self: Any, *args: Any, **kwargs: Any) -> Any:
            """Shapes of whole tensors, from which DTensor infers those of results."""
            with recorder.uncounted():
                return propagate(self, *args, **kwargs)

        ShardingPropagator._propagate_tensor_meta_non_cached = uncounted  # type: ignore[method-assign]
        model = built(asked, dims)
        recorder.mark("load")
        parts = [(name, p.to_local() if isinstance(p, DTensor) else p) for name, p in model.named_parameters()]
        recorder.adopt(parts, "weights")
        del parts
        recorder.adopt(((name, b) for name, b in model.named_buffers()), "weights")
        kind = {"foreach": True} if asked.get("optimizer") == "adamw" else {"fused": True}
        stepper = torch.optim.AdamW(model.parameters(), lr=1e-4, **kind)
        recorder.paused = False
        with modules(recorder), loss_parallel() if tp > 1 else nullcontext():
            for _ in range(2):
                for _ in range(asked.get("gradient_accumulation", 1)):
                    recorder.mark("forward")
                    ids = torch.zeros((asked["micro_batch"], asked["sequence_length"]), dtype=torch.long)
                    labels, more = torch.zeros_like(ids), {}
                    if cp > 1:
                        ids, labels, more = prepare_context_parallel_input(ids, labels, {}, dims.get_mesh("cp"), torch.device("cpu"))
                    logits = model(ids, **more)
                    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(0, 1), reduction="sum") / 1.0
                    del logits
                    recorder.mark("backward")
                    loss.backward()
                recorder.mark("step")
                stepper.step()
                states = [x for state in stepper.state.values() for x in state.values()]
                recorder.label((x.to_local() if isinstance(x, DTensor) else x for x in states), "optimizer states")
                del states
                stepper.zero_grad()
                recorder.step += 1
        recorder.paused = True
        return recorder.result("parallel")


def versions(_: dict[str, Any]) -> dict[str, str]:
    return {name: version(name) for name in ("torch", "torchtitan")}


if __name__ == "__main__":
    append(Path(sys.argv[1]), cases(), trace, versions)
