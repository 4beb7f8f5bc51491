"""Trace training steps whose kernels and losses are other packages' (Liger, TRL, cut-cross-entropy), and write their peaks.

`python scripts/trace_kernels.py data/traced/kernels.jsonl` appends the cases that the file lacks, each in a process of its own. It needs the
extra `trace`, liger-kernel, trl and cut-cross-entropy, but neither Triton nor a GPU: kernels are stood in for by ones that do nothing, so
that the packages' own code makes and keeps its tensors. Where that code asks whether a tensor is on CUDA, it is told so.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import inspect
import json
import multiprocessing
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LLAMA = "meta-llama/Llama-3.2-1B"
CASES: tuple[dict[str, Any], ...] = (
    {"model": LLAMA, "kernels": "liger", "sequence_length": 1024},
    {"model": LLAMA, "kernels": "liger", "sequence_length": 2048, "micro_batch": 4, "checkpointing": "full"},
    {"model": LLAMA, "kernels": "liger", "sequence_length": 2048, "micro_batch": 4},
    {"model": LLAMA, "kernels": "liger", "sequence_length": 1024, "micro_batch": 2, "precision": "bf16-mixed"},
    {"model": LLAMA, "kernels": "liger", "sequence_length": 4096, "precision": "bf16-mixed", "checkpointing": "full"},
    {"model": LLAMA, "kernels": "liger", "sequence_length": 2048, "micro_batch": 2, "method": "lora"},
    {"model": LLAMA, "kernels": "liger", "sequence_length": 2048, "micro_batch": 8, "method": "lora", "checkpointing": "full"},
    {"model": LLAMA, "kernels": "liger", "sequence_length": 2048, "micro_batch": 2, "method": "lora", "lora": {"dtype": "bf16"}},
    {"model": LLAMA, "kernels": "liger", "sequence_length": 1024, "gradient_accumulation": 2},
    {"model": "meta-llama/Llama-3.1-8B", "kernels": "liger", "sequence_length": 4096, "optimizer": "sgd"},
    {"model": "mistralai/Mistral-7B-Instruct-v0.3", "kernels": "liger", "sequence_length": 2048, "optimizer": "sgd"},
    {"model": "Qwen/Qwen2.5-0.5B", "kernels": "liger", "sequence_length": 2048, "micro_batch": 4},
    {"model": "Qwen/Qwen3-0.6B", "kernels": "liger", "sequence_length": 2048, "micro_batch": 4},
    {"model": "Qwen/Qwen3-0.6B", "kernels": "liger", "sequence_length": 2048, "micro_batch": 2, "precision": "bf16-mixed"},
    {"model": "HuggingFaceTB/SmolLM3-3B", "kernels": "liger", "sequence_length": 2048, "checkpointing": "full"},
    {"model": "google/gemma-2b", "kernels": "liger", "sequence_length": 2048, "optimizer": "sgd"},
    {"model": "google/gemma-2-2b", "kernels": "liger", "sequence_length": 2048, "attention": "eager", "optimizer": "sgd"},
    {"model": "google/gemma-3-1b-it", "kernels": "liger", "sequence_length": 2048, "optimizer": "sgd"},
    {"model": "google/gemma-3-1b-it", "kernels": "liger", "sequence_length": 2048, "precision": "bf16-mixed", "optimizer": "sgd"},
    {"model": "microsoft/Phi-3-mini-4k-instruct", "kernels": "liger", "sequence_length": 2048, "optimizer": "sgd"},
    {"model": "allenai/OLMo-2-0425-1B", "kernels": "liger", "sequence_length": 2048, "optimizer": "sgd"},
    {"model": LLAMA, "kernels": "liger", "loss": "plain", "sequence_length": 2048},
    {"model": LLAMA, "loss": "fused", "sequence_length": 2048, "micro_batch": 2},
    {"model": "Qwen/Qwen2.5-7B", "loss": "fused", "sequence_length": 2048, "method": "lora", "checkpointing": "full"},
    {"model": LLAMA, "loss": "chunked", "sequence_length": 1024, "optimizer": "sgd"},
    {"model": LLAMA, "loss": "chunked", "sequence_length": 4096, "micro_batch": 4, "checkpointing": "full", "optimizer": "sgd"},
    {"model": LLAMA, "loss": "chunked", "sequence_length": 2048, "micro_batch": 2, "precision": "bf16-mixed", "optimizer": "sgd"},
    {"model": "Qwen/Qwen2.5-0.5B", "loss": "chunked", "sequence_length": 4096, "micro_batch": 2, "method": "lora", "checkpointing": "full"},
    {"model": LLAMA, "precision": "fp8-mixed", "sequence_length": 1024, "optimizer": "sgd"},
    {"model": LLAMA, "precision": "fp8-mixed", "sequence_length": 2048, "micro_batch": 4, "checkpointing": "full", "optimizer": "sgd"},
    {"model": LLAMA, "precision": "fp8-mixed", "sequence_length": 2048, "micro_batch": 4, "loss": "fused", "optimizer": "sgd"},
    {"model": "Qwen/Qwen2.5-0.5B", "precision": "fp8-mixed", "sequence_length": 2048, "loss": "fused", "optimizer": "sgd"},
    {"model": "meta-llama/Llama-3.1-8B", "precision": "fp8-mixed", "sequence_length": 4096, "loss": "fused", "optimizer": "sgd"},
    {"model": LLAMA, "loss": "cut", "sequence_length": 1024, "optimizer": "sgd"},
    {"model": LLAMA, "loss": "cut", "sequence_length": 4096, "micro_batch": 4, "checkpointing": "full", "optimizer": "sgd"},
    {"model": LLAMA, "loss": "cut", "sequence_length": 2048, "micro_batch": 2, "precision": "bf16-mixed", "optimizer": "sgd"},
    {"model": "Qwen/Qwen2.5-0.5B", "loss": "cut", "sequence_length": 4096, "micro_batch": 2, "method": "lora", "checkpointing": "full"},
)
DEFAULTS = {"task": "train", "engine": "transformers", "precision": "bf16", "micro_batch": 1}


def cases() -> Iterator[dict[str, Any]]:
    """Every scenario."""
    for case in CASES:
        yield {**DEFAULTS, **case}


# ---- Triton that does nothing -------------------------------------------------------------------
class Thing:
    """A type, a decorator, a constant: whatever is asked of it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if len(args) == 1 and not kwargs and isinstance(args[0], types.FunctionType) else Thing()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Thing()

    def __getitem__(self, index: Any) -> Any:
        return Thing()

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __or__(self, other: Any) -> Any:
        return self

    __ror__ = __or__


class Kernel:
    """A kernel whose launch does nothing."""

    def __init__(self, function: Any) -> None:
        self.fn, self.__name__ = function, function.__name__

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda *args, **kwargs: None


class Module(types.ModuleType):
    """A module that has every name."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Thing,), {}) if name[:1].isupper() else Thing()


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `triton` and all below it."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] == "triton" else None

    def create_module(self, spec: Any) -> Any:
        module: Any = Module(spec.name)
        if spec.name == "triton":
            module.jit = lambda function=None, **options: Kernel(function) if function else Kernel
            module.autotune = module.heuristics = lambda *args, **options: lambda function: function
            module.cdiv = lambda a, b: -(-a // b)
            module.next_power_of_2 = lambda n: 1 << (n - 1).bit_length()
            module.__version__ = "3.7.0"
        return module

    def exec_module(self, module: Any) -> None:
        pass


# ---- the packages, as on CUDA -------------------------------------------------------------------
def rewritten(module: Any, **lines: str) -> Any:
    """The module `module` anew, with each of the texts `lines` (two each: what is there, what is put there) replaced in its source."""
    text = inspect.getsource(module)
    for pair in lines.values():
        old, new = pair.split(" -> ")
        if old not in text:
            raise LookupError(f"{module.__name__} has no {old!r}")
        text = text.replace(old, new)
    made = types.ModuleType(module.__name__)
    made.__package__ = module.__package__
    exec(compile(text, module.__file__, "exec"), made.__dict__)
    return made


def liger(asked: dict[str, Any]) -> None:
    """Liger's own patches of the model's classes, as `use_liger_kernel` applies them."""
    import liger_kernel.ops.fused_linear_cross_entropy as fused
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN as PATCHES

    from vramplan.sources import resolve

    made = rewritten(
        fused,
        products='_input.device.type != "cuda" -> False',
        sums='grad_weight.device.type == "cuda" -> True',
        scaling="torch.equal(grad_output, torch.tensor(1.0, device=grad_output.device)) -> False",
    )
    for module in [m for name, m in sys.modules.items() if name.startswith("liger_kernel")]:
        if hasattr(module, "LigerFusedLinearCrossEntropyFunction"):
            module.LigerFusedLinearCrossEntropyFunction = made.LigerFusedLinearCrossEntropyFunction
    patch = PATCHES[resolve(asked["model"]).config["model_type"]]
    own = set(inspect.signature(patch).parameters) - {"model", "cross_entropy"}
    wanted = own if asked.get("kernels") == "liger" else {"fused_linear_cross_entropy"}
    patch(**{name: name in wanted and not (name == "fused_linear_cross_entropy" and asked.get("loss") == "plain") for name in own})


def changed(change: Callable[[Any], None]) -> None:
    """`change` each model when it is built, before adapters are put on it."""
    import vramplan.trace.models as models

    base = models._base

    def build(recipe: Any) -> Any:
        model = base(recipe)
        change(model)
        return model

    models._base = build


def headless(loss: Callable[..., Any]) -> None:
    """Causal language models whose forward gives `loss(hidden, head's weight, labels)` and no logits."""
    from transformers.modeling_outputs import CausalLMOutputWithPast

    def change(model: Any) -> None:
        def forward(input_ids: Any = None, labels: Any = None, **kwargs: Any) -> Any:
            outputs = model.model(input_ids=input_ids, **kwargs)
            hidden = outputs[0]
            return CausalLMOutputWithPast(loss=loss(hidden, model.lm_head.weight, labels))

        model.forward = forward

    changed(change)


def trl(asked: dict[str, Any]) -> None:
    """TRL's loss. Rows with a label are looked up by their indices, as a mask's are; here all but the last of each sequence."""
    import torch
    import trl.kernels.chunked_logprob as chunked

    made = rewritten(
        chunked, fp32='acc.device.type == "cuda" and -> ', kernel='device.type in ("cuda", "xpu") -> True', late="..trainer.utils -> trl.trainer.utils"
    )
    outputs = ("log_probs", "entropy", "is_top1")

    def loss(hidden: Any, weight: Any, labels: Any) -> Any:
        hidden, labels = hidden[:, :-1], labels[:, 1:]
        b, s = labels.shape
        at = torch.arange(b).repeat_interleave(s), torch.arange(s).repeat(b)
        mask = labels != -100
        found = made.ChunkedLogProbFunction.apply(hidden[at], weight, None, labels[at], 1.0, 32768, None, 1.0, outputs)
        scattered = [x if x is None else x.new_zeros(mask.shape).masked_scatter(mask, x) for x in found]
        return -scattered[0].sum() / mask.sum()

    headless(loss)


def cut(asked: dict[str, Any]) -> None:
    """cut-cross-entropy's function, over all rows but each sequence's last."""
    import cut_cross_entropy.cce as cce
    import cut_cross_entropy.cce_backward as backward
    import torch

    made = rewritten(cce, aligned="targets.data_ptr() % 16 -> 0", compiled="@torch.compile(fullgraph=True) -> ", type='device_type="cuda" -> device_type="cpu"')
    backward.is_triton_greater_or_equal_3_2_0 = lambda: True
    made._build_flat_valids = lambda targets, ignored, shift: torch.zeros(targets[..., shift:].numel(), dtype=torch.int32)
    asked_of = {"is_autocast_enabled": lambda: torch.is_autocast_enabled("cpu"), "get_autocast_gpu_dtype": lambda: torch.bfloat16}
    made.torch = types.SimpleNamespace(**{**torch.__dict__, **asked_of})
    headless(lambda hidden, weight, labels: made.cce_linear_cross_entropy(hidden, weight, labels, shift=1)[0])


def fp8(asked: dict[str, Any]) -> None:
    """accelerate's conversion to torchao's FP8 layers. What a tensor subclass computes within itself is shown to the recorder too."""
    import torch
    import torchao.float8.float8_linear as linear
    import torchao.float8.float8_training_tensor as tensors
    from accelerate.utils.ao import convert_model_to_fp8_ao
    from torch.utils._python_dispatch import _pop_mode, _push_mode

    from vramplan.trace.recorder import Recorder

    linear.torch = types.SimpleNamespace(**{**torch.__dict__, "get_autocast_gpu_dtype": lambda: torch.bfloat16})
    own, recorders = tensors.Float8TrainingTensor.__torch_dispatch__.__func__, []
    enter = Recorder.__enter__

    def remember(recorder: Any) -> Any:
        recorders.append(recorder)
        return enter(recorder)

    def dispatch(cls: Any, func: Any, kinds: Any, args: Any, kwargs: Any = None) -> Any:
        _push_mode(recorders[-1])
        try:
            return own(cls, func, kinds, args, kwargs)
        finally:
            _pop_mode()

    Recorder.__enter__ = remember
    tensors.Float8TrainingTensor.__torch_dispatch__ = classmethod(dispatch)
    changed(convert_model_to_fp8_ao)


LOSSES = {"chunked": trl, "cut": cut}


def prepare(asked: dict[str, Any]) -> dict[str, Any]:
    """Make the packages do what the scenario asks of them; the rest of it is what is traced."""
    if "kernels" in asked or asked.get("loss") == "fused":
        liger(asked)
    elif "loss" in asked:
        LOSSES[asked["loss"]](asked)
    known = {key: value for key, value in asked.items() if key not in ("kernels", "loss")}
    if asked["precision"] == "fp8-mixed":
        fp8(asked)
        known["precision"] = "bf16-mixed"
    return known


# ---- the steps ----------------------------------------------------------------------------------
def run(asked: dict[str, Any], pipe: Any) -> None:
    """Trace one scenario and send the peaks of its moments in the last step, without workspaces."""
    start = time.perf_counter()
    try:
        sys.meta_path.insert(0, Finder())
        known = prepare(asked)
        from vramplan.scenario import scenario
        from vramplan.trace.step import trace_scenario

        steady = trace_scenario(scenario(known), loop="trainer").steady
        figures = {"peak": steady.nbytes, "moment": steady.moment, "op": steady.op, "categories": steady.categories}
        pipe.send({"scenario": asked, **figures, "seconds": round(time.perf_counter() - start, 1)})
    except Exception as error:
        pipe.send({"scenario": asked, "failed": f"{type(error).__name__}: {error}"[:600]})


def versions() -> dict[str, str]:
    """What made the figures."""
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "peft", "accelerate", "liger-kernel", "trl", "torchao")}


def main() -> None:
    """Trace what the file lacks."""
    import torch  # noqa: F401  so that children need not import it again
    import transformers  # noqa: F401

    path = Path(sys.argv[1])
    done = {json.dumps(json.loads(line)["scenario"], sort_keys=True) for line in path.read_text().splitlines()} if path.exists() else set()
    context = multiprocessing.get_context("fork")
    with path.open("a") as file:
        for asked in cases():
            if json.dumps(asked, sort_keys=True) in done:
                continue
            receiver, sender = context.Pipe(duplex=False)
            child = context.Process(target=run, args=(asked, sender))
            child.start()
            row = receiver.recv() if receiver.poll(180) else {"scenario": asked, "failed": "no answer in 180 s"}
            child.kill()
            child.join()
            print({k: v for k, v in asked.items() if k not in DEFAULTS}, row.get("failed") or row["peak"], flush=True)
            if "failed" not in row:
                file.write(json.dumps({**row, "versions": versions()}) + "\n")
                file.flush()


if __name__ == "__main__":
    main()
