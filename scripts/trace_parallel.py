"""Trace training steps of torchtitan's Llama 3 over several GPUs on a fake process group, and write the last rank's peaks.

`python scripts/trace_parallel.py data/traced/parallel.jsonl` appends the cases that the file lacks (extra `trace`, torchtitan 0.2.2). No
GPU, no network: collectives of torch's `fake` backend do nothing, and tensors are fake. torchtitan's own parallelize_llama splits the model
(context parallelism, checkpointing, FSDP2), and each step is that of its trainer.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trace_kernels import Finder
from traced_rows import append

TINY, LLAMA = "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "meta-llama/Llama-3.1-8B"
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


def settings(asked: dict[str, Any]) -> Any:
    """torchtitan's configuration."""
    from torchtitan.config.job_config import JobConfig

    job = JobConfig()
    job.activation_checkpoint.mode, job.activation_checkpoint.selective_ac_option = asked["checkpointing"], "op"
    job.training.seq_len, job.training.local_batch_size = asked["sequence_length"], asked["micro_batch"]
    return job


def built(asked: dict[str, Any]) -> Any:
    """torchtitan's Llama of the sizes of a model."""
    from torchtitan.models.llama3.model.args import TransformerModelArgs
    from torchtitan.models.llama3.model.model import Transformer

    from vramplan.sources import resolve

    config = resolve(asked["model"]).config
    heads = {"n_heads": config["num_attention_heads"], "n_kv_heads": config["num_key_value_heads"]}
    sizes = {"dim": config["hidden_size"], "n_layers": config["num_hidden_layers"], "vocab_size": config["vocab_size"]}
    factor = (config["intermediate_size"] + 0.5) / int(2 * 4 * config["hidden_size"] / 3)  # rounded down to the size again
    return Transformer(
        TransformerModelArgs(**heads, **sizes, ffn_dim_multiplier=factor, multiple_of=1, max_seq_len=asked["sequence_length"])
    )


def trace(asked: dict[str, Any]) -> Any:
    """Two steps of the last rank, which in context parallelism merges whole parts."""
    import torch
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._sharding_prop import ShardingPropagator
    from torch.testing._internal.distributed.fake_pg import FakeStore

    sys.meta_path.insert(0, Finder())  # Triton that does nothing
    sys.modules["torch.utils.tensorboard"] = types.SimpleNamespace(SummaryWriter=None)  # type: ignore[assignment]
    import torchtitan.distributed.parallel_dims as parallel_dims
    from torchtitan.distributed.context_parallel import prepare_context_parallel_input
    from torchtitan.models.llama3.infra.parallelize import parallelize_llama

    from vramplan.trace.environment import modules, on_gpu
    from vramplan.trace.recipe import DEFAULT_GPU
    from vramplan.trace.recorder import Recorder

    own, propagate = Recorder.__torch_dispatch__, ShardingPropagator._propagate_tensor_meta_non_cached

    def local(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """DTensors first take their operators apart into those of their parts."""
        return NotImplemented if any(issubclass(kind, DTensor) for kind in types) else own(self, func, types, args, kwargs)

    ranks, cp = asked["gpu_count"], asked.get("context_parallel", 1)
    dist.init_process_group("fake", store=FakeStore(), rank=ranks - 1, world_size=ranks)
    parallel_dims.device_type = "cpu"
    dims = parallel_dims.ParallelDims(dp_replicate=1, dp_shard=ranks // cp, cp=cp, tp=1, pp=1, ep=1, etp=1, world_size=ranks)
    dims.build_mesh()
    Recorder.__torch_dispatch__ = local  # type: ignore[method-assign]
    with on_gpu(*DEFAULT_GPU) as recorder:

        def uncounted(self: Any, *args: Any, **kwargs: Any) -> Any:
            """Shapes of whole tensors, from which DTensor infers those of results."""
            with recorder.uncounted():
                return propagate(self, *args, **kwargs)

        ShardingPropagator._propagate_tensor_meta_non_cached = uncounted  # type: ignore[method-assign]
        model = parallelize_llama(built(asked), dims, settings(asked))
        recorder.mark("load")
        recorder.adopt(((name, p.to_local()) for name, p in model.named_parameters()), "weights")
        recorder.adopt(((name, b) for name, b in model.named_buffers()), "weights")
        stepper = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        recorder.paused = False
        with modules(recorder):
            for _ in range(2):
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
