"""Trace training steps whose kernels, losses or models are other packages'; write their peaks.

`python scripts/trace_kernels.py data/traced/kernels.jsonl` appends the cases that the file lacks, each in a process of its own. It needs
the extra `trace` and PACKAGES, but neither Triton nor a GPU: kernels are stood in for by ones that do nothing, so that the packages' own
code makes and keeps its tensors. Where it asks whether a tensor is on CUDA, it is told so.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib.abc
import importlib.machinery
import inspect
import json
import logging
import multiprocessing
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LLAMA, TINY = "meta-llama/Llama-3.2-1B", "TinyLlama/TinyLlama-1.1B-Chat-v1.0"
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
    {
        "model": "Qwen/Qwen2.5-0.5B",
        "precision": "fp8-mixed",
        "sequence_length": 2048,
        "micro_batch": 8,
        "loss": "fused",
        "checkpointing": "full",
        "optimizer": "sgd",
    },
    {"model": "meta-llama/Llama-3.1-8B", "precision": "fp8-mixed", "sequence_length": 4096, "loss": "fused", "optimizer": "sgd"},
    {"model": LLAMA, "loss": "cut", "sequence_length": 1024, "optimizer": "sgd"},
    {"model": LLAMA, "loss": "cut", "sequence_length": 4096, "micro_batch": 4, "checkpointing": "full", "optimizer": "sgd"},
    {"model": LLAMA, "loss": "cut", "sequence_length": 2048, "micro_batch": 2, "precision": "bf16-mixed", "optimizer": "sgd"},
    {"model": "Qwen/Qwen2.5-0.5B", "loss": "cut", "sequence_length": 4096, "micro_batch": 2, "method": "lora", "checkpointing": "full"},
    {"model": TINY, "engine": "torchtitan", "precision": "bf16-mixed", "sequence_length": 2048},
    {"model": TINY, "engine": "torchtitan", "precision": "bf16-mixed", "sequence_length": 2048, "micro_batch": 8},
    {"model": TINY, "engine": "torchtitan", "precision": "bf16-mixed", "sequence_length": 2048, "micro_batch": 4, "checkpointing": "none"},
    {"model": TINY, "engine": "torchtitan", "precision": "bf16-mixed", "sequence_length": 2048, "micro_batch": 8, "checkpointing": "full"},
    {"model": TINY, "engine": "torchtitan", "precision": "fp8-mixed", "sequence_length": 2048, "micro_batch": 4, "checkpointing": "none"},
    {"model": TINY, "engine": "torchtitan", "precision": "fp8-mixed", "sequence_length": 2048, "micro_batch": 8},
    {"model": "meta-llama/Llama-3.1-8B", "engine": "torchtitan", "precision": "bf16-mixed", "sequence_length": 8192},
    {
        "model": LLAMA,
        "engine": "unsloth",
        "method": "lora",
        "optimizer": "adamw-fused",
        "sequence_length": 2048,
        "micro_batch": 4,
        "checkpointing": "none",
    },
    {
        "model": LLAMA,
        "engine": "unsloth",
        "method": "lora",
        "optimizer": "adamw-fused",
        "sequence_length": 8192,
        "micro_batch": 1,
        "checkpointing": "none",
    },
    {
        "model": "meta-llama/Llama-3.1-8B",
        "engine": "unsloth",
        "method": "lora",
        "optimizer": "adamw-fused",
        "sequence_length": 2048,
        "checkpointing": "none",
    },
)
PACKAGES = ("liger-kernel", "trl", "cut-cross-entropy", "torchao", "torchtitan", "unsloth")
DEFAULTS: dict[str, Any] = {"task": "train", "engine": "transformers", "precision": "bf16", "micro_batch": 1}


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

    __path__ = ()

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


def torch_of_the_cpu() -> Any:
    """torch for a module that asks whether autocast is on: the trace runs under the CPU's."""
    import torch

    answers = {"is_autocast_enabled": lambda: torch.is_autocast_enabled("cpu"), "get_autocast_gpu_dtype": lambda: torch.bfloat16}
    return types.SimpleNamespace(**{**torch.__dict__, **answers})


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
        chunked,
        fp32='acc.device.type == "cuda" and -> ',
        kernel='device.type in ("cuda", "xpu") -> True',
        late="..trainer.utils -> trl.trainer.utils",
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

    made = rewritten(
        cce,
        aligned="targets.data_ptr() % 16 -> 0",
        compiled="@torch.compile(fullgraph=True) -> ",
        type='device_type="cuda" -> device_type="cpu"',
    )
    backward.is_triton_greater_or_equal_3_2_0 = lambda: True
    made._build_flat_valids = lambda targets, ignored, shift: torch.zeros(targets[..., shift:].numel(), dtype=torch.int32)
    made.torch = torch_of_the_cpu()
    headless(lambda hidden, weight, labels: made.cce_linear_cross_entropy(hidden, weight, labels, shift=1)[0])


def fp8(asked: dict[str, Any]) -> None:
    """accelerate's conversion to torchao's FP8 layers, when the model is built."""
    from accelerate.utils.ao import convert_model_to_fp8_ao

    show_fp8()
    changed(convert_model_to_fp8_ao)


def show_fp8() -> None:
    """What torchao's tensors compute within themselves is shown to the recorder too."""
    import torchao.float8.float8_linear as linear
    import torchao.float8.float8_training_tensor as tensors
    from torch.utils._python_dispatch import _pop_mode, _push_mode

    from vramplan.trace.recorder import Recorder

    linear.torch = torch_of_the_cpu()
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


def unsloth(asked: dict[str, Any]) -> None:
    """Unsloth's functions on PEFT's adapters in transformers' Llama, called as its own forward passes call them.

    Its loss is stood in for by one that keeps the hidden states' gradient and scales it, so that only the backward pass after it counts.
    """
    import torch
    from transformers.models.llama import modeling_llama as llama

    own = unsloth_functions()

    def adapted(*layers: Any) -> list[Any]:
        pairs = [(layer.base_layer.weight, layer.lora_A["default"].weight, layer.lora_B["default"].weight) for layer in layers]
        return [x for layer, (w, a, b) in zip(layers, pairs, strict=True) for x in (w, None, a, b, layer.scaling["default"])]

    def attend(self: Any, hidden_states: Any, position_embeddings: Any = None, **kwargs: Any) -> Any:
        b, s, _ = hidden_states.shape
        q, k, v = own["LoRA_QKV"].apply(hidden_states, *adapted(self.q_proj, self.k_proj, self.v_proj), True)
        q, k, v = (x.view(b, s, -1, self.head_dim).transpose(1, 2) for x in (q, k, v))
        q, k = own["Fast_RoPE_Embedding_QK_Positions"].apply(q, k, *(table[0] for table in position_embeddings))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return own["LoRA_W"].apply(out.transpose(1, 2).reshape(b, s, -1), *adapted(self.o_proj)), None

    def mlp(self: Any, x: Any) -> Any:
        kernels = own["swiglu_fg_kernel"], own["swiglu_DWf_DW_dfg_kernel"]
        return own["LoRA_MLP"].apply(x, *adapted(self.gate_proj, self.up_proj, self.down_proj), *kernels, True)

    class Loss(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, hidden: Any) -> Any:
            ctx.save_for_backward(torch.zeros_like(hidden))
            return hidden.new_zeros((), dtype=torch.float32)

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            return torch.empty_like(ctx.saved_tensors[0])

    llama.LlamaAttention.forward, llama.LlamaMLP.forward = attend, mlp
    llama.LlamaRMSNorm.forward = lambda self, x: own["Fast_RMS_Layernorm"].apply(x, self.weight, 1e-5, False, False, True)
    headless(lambda hidden, weight, labels: Loss.apply(hidden))


def unsloth_functions() -> dict[str, Any]:
    """Unsloth's autograd functions by name, from its files, which are not imported: that wants a GPU."""
    import torch

    home = Path(next(str(path) for path in map(Path, sys.path) if (path / "unsloth" / "kernels").is_dir())) / "unsloth" / "kernels"
    nothing = Kernel(nothing_done)
    names: dict[str, Any] = {"torch": torch, "torch_matmul": torch.matmul, "functools": functools}
    names |= {"addmm_": lambda out, a, b, alpha=1: out.addmm_(a, b, alpha=alpha), "fast_dequantize": lambda W, *_, **__: W}
    names |= dict.fromkeys(("Float8Tensor", "Int4QuantState"), Thing) | dict.fromkeys(
        ("torch_amp_custom_fwd", "torch_amp_custom_bwd"), same
    )
    names |= dict.fromkeys(("_is_packed_state", "_is_compiling", "long_indexing", "_multirow_checked"), lambda *_, **__: False)
    names |= dict.fromkeys(("_launch", "_rope_launch", "_rms_backward", "_dropout_forward"), nothing_done)
    names |= dict.fromkeys(("_fg_kernel", "_DWf_DW_dfg_kernel", "_rms_layernorm_forward", "_gemma_rms_layernorm_forward"), nothing)
    names |= {"torch_gpu_device": lambda _: contextlib.nullcontext(), "_settings": lambda *_, **__: (1, 1), "_eager_kernel": None}
    names |= {"BLOCK_SIZE": 1024, "INT32_SAFETY_BUFFER": 2**31, "_INDEX_MARGIN": 0, "_SAVE_OUTPUT": False}
    names["_rms_layernorm"] = types.SimpleNamespace(_SAVE_OUTPUT=False)
    for file, wanted in {
        "utils": ("matmul_lora",),
        "swiglu": ("swiglu_fg_kernel", "swiglu_DWf_DW_dfg_kernel"),
        "fast_lora": ("LoRA_MLP", "LoRA_QKV", "LoRA_W", "_add_lora_dX"),
        "rms_layernorm": ("Fast_RMS_Layernorm", "_rms_forward"),
        "rope_embedding": ("Fast_RoPE_Embedding_QK_Positions", "_bshd_buffer"),
    }.items():
        path = home / f"{file}.py"
        body = [node for node in ast.parse(path.read_text()).body if getattr(node, "name", "") in wanted]
        exec(compile(ast.Module(body, []), str(path), "exec"), names)
    return names


def nothing_done(*args: Any, **kwargs: Any) -> None:
    """A kernel's launch."""


def same(function: Any) -> Any:
    """A decorator that does nothing."""
    return function


LOSSES = {"chunked": trl, "cut": cut}


def prepare(asked: dict[str, Any]) -> dict[str, Any]:
    """Make the packages do what the scenario asks of them; the rest of it is what is traced."""
    if asked["engine"] == "unsloth":
        unsloth(asked)
        return {**asked, "engine": "transformers"}
    if "kernels" in asked or asked.get("loss") == "fused":
        liger(asked)
    elif "loss" in asked:
        LOSSES[asked["loss"]](asked)
    known = {key: value for key, value in asked.items() if key not in ("kernels", "loss")}
    if asked["precision"] == "fp8-mixed":
        fp8(asked)
        known["precision"] = "bf16-mixed"
    return known


def torchtitan(asked: dict[str, Any]) -> Any:
    """Two steps of torchtitan's own Llama 3 as its trainer runs them on one GPU; returns their trace."""
    import torch

    sys.modules["torch.utils.tensorboard"] = types.SimpleNamespace(SummaryWriter=None)  # type: ignore[assignment]
    from torchao.float8 import convert_to_float8_training
    from torchtitan.config.job_config import ActivationCheckpoint
    from torchtitan.distributed.activation_checkpoint import apply_ac
    from torchtitan.models.llama3.infra.parallelize import _op_sac_save_list
    from torchtitan.models.llama3.model.args import TransformerModelArgs
    from torchtitan.models.llama3.model.model import Transformer

    from vramplan.sources import resolve
    from vramplan.trace.environment import modules, on_gpu
    from vramplan.trace.recipe import DEFAULT_GPU
    from vramplan.trace.step import adopt

    config, length = resolve(asked["model"]).config, asked["sequence_length"]
    heads = {"n_heads": config["num_attention_heads"], "n_kv_heads": config["num_key_value_heads"]}
    sizes = {"dim": config["hidden_size"], "n_layers": config["num_hidden_layers"], "vocab_size": config["vocab_size"]}
    factor = (config["intermediate_size"] + 0.5) / int(2 * 4 * config["hidden_size"] / 3)  # rounded down to the size again
    arguments = TransformerModelArgs(**heads, **sizes, ffn_dim_multiplier=factor, multiple_of=1, max_seq_len=length)
    if asked["precision"] == "fp8-mixed":
        show_fp8()
    with on_gpu(*DEFAULT_GPU) as recorder:
        model = Transformer(arguments)
        if asked["precision"] == "fp8-mixed":
            convert_to_float8_training(model, module_filter_fn=lambda module, name: name != "output")
        if asked.get("checkpointing", "selective") != "none":
            settings = ActivationCheckpoint(mode=asked.get("checkpointing", "selective"), selective_ac_option="op")
            apply_ac(model, settings, op_sac_save_list=_op_sac_save_list)
        recorder.mark("load")
        adopt(recorder, model)
        stepper = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        recorder.paused = False
        with modules(recorder):
            for _ in range(2):
                recorder.mark("forward")
                ids = torch.zeros((asked["micro_batch"], length), dtype=torch.long)
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    logits = model(ids)
                    rows = logits.flatten(0, 1).float()
                    loss = torch.nn.functional.cross_entropy(rows, torch.zeros_like(ids).flatten(0, 1), reduction="sum") / 1.0
                del logits, rows
                recorder.mark("backward")
                loss.backward()
                recorder.mark("step")
                stepper.step()
                recorder.label((x for state in stepper.state.values() for x in state.values()), "optimizer states")
                stepper.zero_grad()
                recorder.step += 1
        recorder.paused = True
        return recorder.result(asked["model"])


# ---- the steps ----------------------------------------------------------------------------------
def run(asked: dict[str, Any], pipe: Any) -> None:
    """Trace one scenario and send the peaks of its moments in the last step, without workspaces."""
    start = time.perf_counter()
    logging.disable()  # who keeps Liger's warnings, keeps the frames of the exceptions that are in them
    try:
        sys.meta_path.insert(0, Finder())
        if asked["engine"] == "torchtitan":
            found = torchtitan(asked)
        else:
            known = prepare(asked)
            from vramplan.scenario import scenario
            from vramplan.trace.step import trace_scenario

            found = trace_scenario(scenario(known), loop="trainer")
        steady = found.peak_of(found.last_step, "backward") if asked["engine"] == "unsloth" else found.steady
        figures = {"peak": steady.nbytes, "moment": steady.moment, "op": steady.op, "categories": steady.categories}
        pipe.send({"scenario": asked, **figures, "seconds": round(time.perf_counter() - start, 1)})
    except Exception as error:
        pipe.send({"scenario": asked, "failed": f"{type(error).__name__}: {error}"[:600]})


def versions() -> dict[str, str]:
    """What made the figures."""
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "peft", "accelerate", *PACKAGES)}


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
