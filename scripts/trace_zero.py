"""Trace training steps of transformers' models under DeepSpeed's ZeRO on a fake process group, and write a rank's peaks.

`python scripts/trace_zero.py data/traced/zero.jsonl` appends the cases that the file lacks (extra `trace`, and deepspeed; about fifteen
minutes). No GPU, no network: collectives of torch's `fake` backend do nothing, and tensors are fake, so what DeepSpeed asks of their values
is answered here. Configurations are what transformers' `auto` values come to, the optimizer is the Trainer's own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from traced_rows import append

QWEN, LLAMA, LARGE = "Qwen/Qwen2.5-0.5B", "meta-llama/Llama-3.2-1B", "Qwen/Qwen3-8B"
PLAIN = {"task": "train", "engine": "transformers", "precision": "bf16-master", "micro_batch": 1, "sequence_length": 512, "method": "full"}
LORA = {"method": "lora", "lora": {"rank": 16, "targets": "all-linear"}, "checkpointing": "full"}
LONG = {"checkpointing": "full", "sequence_length": 1024}
TWICE = {"gradient_accumulation": 2, "micro_batch": 2}
CASES: tuple[tuple[str, str, int, int, dict[str, Any]], ...] = (
    (QWEN, "zero3", 8, 0, {"checkpointing": "full"}),
    (QWEN, "zero3", 8, 0, {}),
    (QWEN, "zero3", 2, 0, TWICE),
    (QWEN, "zero3", 1, 0, {"checkpointing": "full"}),
    (QWEN, "zero2", 2, 0, TWICE),
    (QWEN, "zero2", 2, 1, TWICE),
    (QWEN, "zero2", 1, 0, {"checkpointing": "full"}),
    (QWEN, "zero1", 8, 0, {"checkpointing": "full"}),
    (QWEN, "zero1", 2, 0, TWICE),
    (LLAMA, "zero3", 8, 0, LONG),
    (LLAMA, "zero2", 8, 0, LONG),
    (LLAMA, "zero2", 8, 1, LONG),
    (LLAMA, "zero2", 8, 7, LONG),
    (LLAMA, "zero1", 8, 1, LONG),
    (LLAMA, "zero3", 4, 0, LORA),
    (LLAMA, "zero2", 4, 0, LORA),
    (LLAMA, "zero1", 4, 0, LORA),
    (LARGE, "zero3", 8, 0, {"checkpointing": "full", "sequence_length": 2048}),
    (LARGE, "zero3", 8, 0, {}),
    (LARGE, "zero3", 32, 0, {"checkpointing": "full", "sequence_length": 1024, "micro_batch": 2}),
    (LARGE, "zero2", 8, 7, {"checkpointing": "full", "sequence_length": 2048}),
    ("google/gemma-3-1b-it", "zero3", 4, 0, LONG),
    ("openai-community/gpt2", "zero3", 4, 0, {}),
    ("allenai/OLMoE-1B-7B-0924", "zero3", 8, 0, LONG),
    (QWEN, "zero3", 8, 0, {"checkpointing": "full", "optimizer": "adamw"}),
    (QWEN, "zero2", 8, 0, {"checkpointing": "full", "optimizer": "sgd"}),
    (QWEN, "zero2", 8, 2, {"checkpointing": "full", "optimizer": "sgd"}),
    (LARGE, "zero3", 2, 0, {"checkpointing": "full"}),
)


def cases() -> Iterator[dict[str, Any]]:
    """Every scenario of the matrix, with the rank that is asked."""
    for model, sharding, count, rank, keys in CASES:
        yield {"model": model, **PLAIN, "sharding": sharding, "gpu_count": count, "rank": rank, **keys}


def configured(asked: dict[str, Any], hidden: int) -> dict[str, Any]:
    """DeepSpeed's configuration, `auto` values filled in as transformers does (integrations/deepspeed.py, trainer_config_finalize)."""
    passes = asked.get("gradient_accumulation", 1)
    sizes = {
        "reduce_bucket_size": hidden * hidden,
        "stage3_prefetch_bucket_size": int(0.9 * hidden * hidden),
        "stage3_param_persistence_threshold": 10 * hidden,
    }
    return {
        "train_micro_batch_size_per_gpu": asked["micro_batch"],
        "gradient_accumulation_steps": passes,
        "train_batch_size": asked["micro_batch"] * passes * asked["gpu_count"],
        "gradient_clipping": 1.0,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": int(asked["sharding"][-1]), **sizes},
        "zero_allow_untested_optimizer": True,
    }


def answers() -> None:
    """What DeepSpeed asks of tensors that have no values: addresses are aligned, ranks agree, norms are numbers; `meta` takes nothing."""
    from deepspeed.runtime.zero import partition_parameters, partitioned_param_coordinator, stage3, stage_1_and_2
    from torch._subclasses.fake_tensor import FakeTensor

    from vramplan.trace.recorder import Recorder

    look = Recorder._look
    Recorder._look = lambda self, tensor, op: None if tensor.device.type == "meta" else look(self, tensor, op)  # type: ignore[method-assign]
    FakeTensor.data_ptr = lambda self: 0  # type: ignore[method-assign]
    for module in (stage3, stage_1_and_2, partitioned_param_coordinator, partition_parameters):
        for name, answer in (("assert_ints_same_as_other_ranks", None), ("is_invalid_grad_norm", False)):
            if hasattr(module, name):
                setattr(module, name, lambda *_, answer=answer, **__: answer)
    for kind in (stage_1_and_2.DeepSpeedZeroOptimizer, stage3.DeepSpeedZeroOptimizer_Stage3):
        kind.has_overflow = lambda *_, **__: False


def trace(asked: dict[str, Any]) -> Any:
    """Three steps of a rank: the first records the order of modules, the third is what all later ones are like."""
    os.environ |= {"DS_ACCELERATOR": "cpu", "RANK": str(asked["rank"]), "LOCAL_RANK": "0", "WORLD_SIZE": str(asked["gpu_count"])}
    import deepspeed
    import torch
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from vramplan.scenario import scenario
    from vramplan.sources import resolve
    from vramplan.trace.environment import on_gpu
    from vramplan.trace.models import build
    from vramplan.trace.optimizers import optimizer
    from vramplan.trace.recipe import recipe

    dist.init_process_group("fake", store=FakeStore(), rank=asked["rank"], world_size=asked["gpu_count"])
    plain = {key: value for key, value in asked.items() if key not in ("sharding", "gpu_count", "rank")}
    wish = scenario({**plain, "precision": "bf16"})
    choices = recipe(wish, resolve(wish.model), loop="trainer")
    answers()
    with on_gpu(choices.gpu, choices.capability, choices.memory) as recorder:
        model = build(choices)
        recorder.mark("load")
        recorder.adopt(model.named_buffers(), "weights")
        if asked["sharding"] != "zero3":
            recorder.adopt(model.named_parameters(), "weights")
        stepper = optimizer(choices.optimizer, model, recorder.uncounted)
        recorder.paused = False
        config = configured(asked, model.config.hidden_size)
        engine, *_ = deepspeed.initialize(model=model, optimizer=stepper, config=config, dist_init_required=False)
        for _ in range(3):
            for number in range(choices.gradient_accumulation):
                recorder.mark("forward")
                engine.set_gradient_accumulation_boundary(number + 1 == choices.gradient_accumulation)
                ids = torch.zeros((choices.micro_batch, choices.sequence_length), dtype=torch.long)
                output = engine(input_ids=ids, labels=ids, use_cache=False)
                loss = output.loss
                del output, ids
                recorder.mark("backward")
                engine.backward(loss)
            recorder.mark("step")
            engine.step()
            loss = None
            recorder.step += 1
        recorder.paused = True
        return recorder.result("zero")


def versions(_: dict[str, Any]) -> dict[str, str]:
    return {name: version(name) for name in ("torch", "transformers", "peft", "deepspeed")}


if __name__ == "__main__":
    append(Path(sys.argv[1]), cases(), trace, versions)
