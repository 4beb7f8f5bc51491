"""Trace training steps under TRL's activation offloading, without checkpointing; write their peaks and what lies in host memory.

`python scripts/trace_offload.py data/traced/offload.jsonl` appends the cases that the file lacks. TRL's own class runs. A host's tensor is
not counted, and what comes back from it is a copy; streams and pinned memory are stood in for, as nothing is computed. Storages have no
addresses on fake tensors: the numbers of their blocks stand for those. (TRL tells tensors by address: on a GPU one that is put where
another was that it has copied already is kept there, which no row has.)
"""

from __future__ import annotations

import sys
import types
import weakref
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

from trace_kernels import rewritten
from traced_rows import append

LLAMA, QWEN = "meta-llama/Llama-3.2-1B", "Qwen/Qwen2.5-0.5B"
CASES: tuple[dict[str, Any], ...] = (
    {"model": LLAMA, "sequence_length": 2048},
    {"model": LLAMA, "sequence_length": 2048, "micro_batch": 4, "optimizer": "sgd"},
    {"model": LLAMA, "sequence_length": 1024, "micro_batch": 4, "optimizer": "sgd", "attention": "eager"},
    {"model": LLAMA, "sequence_length": 2048, "micro_batch": 2, "optimizer": "sgd", "precision": "bf16-mixed"},
    {"model": LLAMA, "sequence_length": 4096, "micro_batch": 2, "method": "lora"},
    {"model": LLAMA, "sequence_length": 4096, "micro_batch": 2, "method": "lora", "lora": {"dtype": "bf16"}},
    {"model": "meta-llama/Llama-3.1-8B", "sequence_length": 4096, "method": "qlora"},
    {"model": "meta-llama/Llama-3.1-8B", "sequence_length": 8192, "optimizer": "sgd"},
    {"model": QWEN, "sequence_length": 2048, "micro_batch": 4, "optimizer": "sgd"},
    {"model": "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "sequence_length": 2048, "optimizer": "sgd"},
    {"model": "mistralai/Mistral-7B-Instruct-v0.3", "sequence_length": 4096, "method": "lora"},
    {"model": "Qwen/Qwen3-0.6B", "sequence_length": 2048, "micro_batch": 4, "optimizer": "sgd"},
)
DEFAULTS: dict[str, Any] = {
    "task": "train",
    "engine": "transformers",
    "method": "full",
    "precision": "bf16",
    "attention": "sdpa",
    "optimizer": "adamw-fused",
    "micro_batch": 1,
    "offload": ["activations"],
}


class Host:
    """Tensors in host memory: bytes now and at most."""

    def __init__(self) -> None:
        self.recorder: Any = None
        self.nbytes = self.most = 0

    def like(self, tensor: Any) -> Any:
        """A tensor like `tensor`, which the recorder does not count."""
        with self.recorder.uncounted():
            made = tensor.new_empty(tensor.shape)
        size = made.numel() * made.element_size()
        self.nbytes += size
        self.most = max(self.most, self.nbytes)
        weakref.finalize(made, self.gone, size)
        return made

    def gone(self, size: int) -> None:
        self.nbytes -= size

    def address(self, storage: Any) -> int:
        """What stands for a storage's address: no other block ever has it, nor what is near it."""
        found = self.recorder and self.recorder._live.get(storage._cdata)
        return (found[0] + 1) << 40 if found else 0


def offloading(host: Host) -> Any:
    """TRL's module, with copies between a host and a device that are both the CPU."""
    import trl.models.activation_offloading as own

    made = rewritten(
        own,
        device="torch.accelerator.current_accelerator().type -> 'cpu'",
        streams="torch.get_device_module(self.accelerator_type) -> streams",
        host='torch.empty_like(activation, pin_memory=self.use_pin_memory, device="cpu") -> host(activation)',
        copy="cpu_tensor.copy_(activation, non_blocking=True) -> pass",
        back="maybe_accelerator_tensor.to(self.accelerator_type, non_blocking=True) -> maybe_accelerator_tensor.clone()",
    )
    stream: Any = mock.MagicMock()
    made.host = host.like
    made.streams = types.SimpleNamespace(
        Stream=lambda: stream, current_stream=lambda: stream, stream=lambda _: nullcontext(), empty_cache=lambda: None
    )
    return made


def traced(asked: dict[str, Any]) -> dict[str, Any]:
    """Two steps, each forward and backward pass within TRL's context, as its trainer's `training_step` is."""
    import torch

    import vramplan.trace.step as step
    from vramplan.scenario import scenario

    host, run = Host(), step.run_steps
    made = offloading(host)

    def steps(recorder: Any, recipe: Any, model: Any) -> None:
        host.recorder, mark = recorder, recorder.mark
        context = made.get_act_offloading_ctx_manager(model, use_pin_memory=False)

        def marked(phase: str) -> None:
            if phase == "step":
                context.__exit__(None, None, None)
            mark(phase)
            if phase == "forward":
                context.__enter__()

        recorder.mark = marked
        run(recorder, recipe, model)

    known = {key: value for key, value in asked.items() if key != "offload"}
    with (
        mock.patch.object(step, "run_steps", steps),
        mock.patch.object(torch.UntypedStorage, "data_ptr", lambda storage: host.address(storage)),
    ):
        steady = step.trace_scenario(scenario(known), loop="trainer").steady
    return {
        "peak": steady.nbytes,
        "moment": steady.moment,
        "op": steady.op,
        "categories": steady.categories,
        "host": host.most,
    }


def versions(_: dict[str, Any]) -> Mapping[str, str]:
    """What made a row."""
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "peft", "trl")}


if __name__ == "__main__":
    append(Path(sys.argv[1]), ({**DEFAULTS, **case} for case in CASES), traced, versions)
