"""Trace fine-tuning steps of LitGPT's own model, precision plugin and loss on fake tensors, and write their peaks: the estimate's referee.

`python scripts/trace_litgpt.py data/traced/litgpt.jsonl [folder]` appends the cases that the file lacks. It needs the extra `trace`, and
`litgpt` with `lightning`, `lightning-utilities`, `torchmetrics` and `jsonargparse`, which may be installed without what they depend on.
The loop is that of LitGPT 0.5.13, `finetune/full.py` and `finetune/lora.py`. Cases of QLoRA are traced where `folder` holds an unpacked
wheel of bitsandbytes 0.42.0: of that its own MatMul4Bit is taken, its CUDA kernel is one that makes an fp16 weight.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from importlib.metadata import version
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from traced_rows import append

NAMES = {
    "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T": "tiny-llama-1.1b",
    "meta-llama/Llama-3.2-1B": "Llama-3.2-1B",
    "meta-llama/Llama-2-7b-hf": "Llama-2-7b-hf",
    "meta-llama/Meta-Llama-3-8B": "Llama-3-8B",
    "EleutherAI/pythia-410m": "pythia-410m",
    "microsoft/phi-1_5": "phi-1_5",
    "tiiuae/falcon-7b": "falcon-7b",
    "google/gemma-2b": "Gemma-2b",
    "Qwen/Qwen2.5-0.5B": "Qwen2.5-0.5B",
    "Qwen/Qwen3-0.6B": "Qwen3-0.6B",
}
"""Of the catalogue, and as LitGPT calls them."""
QV = {"rank": 32, "dropout": 0.05, "targets": ["q_proj", "v_proj"]}
ALL = {"rank": 16, "dropout": 0.1, "targets": ["q_proj", "k_proj", "v_proj", "o_proj", "mlp", "lm_head"]}
RECIPES: tuple[dict[str, Any], ...] = (
    {"method": "full", "precision": "bf16", "micro_batch": 1, "sequence_length": 1024},
    {"method": "full", "precision": "bf16", "micro_batch": 4, "sequence_length": 512, "gradient_accumulation": 2},
    {"method": "full", "precision": "fp32", "micro_batch": 2, "sequence_length": 256},
    {"method": "full", "precision": "bf16-mixed", "micro_batch": 2, "sequence_length": 512},
    {"method": "lora", "precision": "bf16", "micro_batch": 1, "sequence_length": 2048, "lora": QV},
    {"method": "lora", "precision": "bf16", "micro_batch": 4, "sequence_length": 512, "lora": {**ALL, "dropout": 0}},
    {"method": "lora", "precision": "bf16", "micro_batch": 1, "sequence_length": 100, "lora": ALL},
    {"method": "lora", "precision": "bf16-mixed", "micro_batch": 1, "sequence_length": 512, "lora": ALL},
    {"method": "qlora", "precision": "bf16", "micro_batch": 1, "sequence_length": 512, "lora": QV, "engine_version": "0.4"},
    {"method": "qlora", "precision": "bf16", "micro_batch": 2, "sequence_length": 1024, "lora": ALL, "engine_version": "0.4"},
)
LARGE = ("meta-llama/Llama-2-7b-hf", "meta-llama/Meta-Llama-3-8B", "tiiuae/falcon-7b")
PRECISIONS = {"fp32": "32-true", "bf16": "bf16-true", "bf16-mixed": "bf16-mixed"}
GPU = ("NVIDIA A100-SXM4-80GB", (8, 0), 80 << 30)


def cases(with_qlora: bool) -> Iterator[dict[str, Any]]:
    """Every scenario of the matrix; full training of the small models only."""
    for model in NAMES:
        for recipe in RECIPES:
            if (recipe["method"] == "full" and model in LARGE) or (recipe["method"] == "qlora" and not with_qlora):
                continue
            yield {"model": model, "task": "train", "engine": "litgpt", "engine_version": "0.5", **recipe}


def switches(lora: dict[str, Any]) -> dict[str, Any]:
    """LitGPT's own settings for adapters."""
    on = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "projection": "o_proj", "mlp": "mlp", "head": "lm_head"}
    flags = {f"lora_{name}": layer in lora["targets"] for name, layer in on.items()}
    return {"lora_r": lora["rank"], "lora_alpha": 16, "lora_dropout": lora["dropout"], **flags}


def product_of(folder: str) -> Any:
    """MatMul4Bit of the bitsandbytes in `folder`; its dequantisation makes a tensor of the weight's shape in fp16."""
    import torch

    tree = ast.parse((Path(folder) / "bitsandbytes" / "autograd" / "_functions.py").read_text())
    wanted: list[ast.stmt] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "MatMul4Bit"]
    kernels = SimpleNamespace(
        dequantize_4bit=lambda weight, state: torch.empty(state.shape, dtype=torch.float16).t(), QuantState=SimpleNamespace
    )
    names: dict[str, Any] = {"torch": torch, "F": kernels, "prod": prod}
    exec(compile(ast.Module(body=wanted, type_ignores=[]), folder, "exec"), names)
    return names["MatMul4Bit"]


def quantise(model: Any, folder: str) -> None:
    """Put 4-bit layers in the place of all linear ones, the head's too, as Lightning's BitsandbytesPrecision does."""
    import torch

    from vramplan.trace.quantized import Linear4bit

    matmul = product_of(folder)

    class Linear(Linear4bit):
        def forward(self, x: Any) -> Any:
            return matmul.apply(x, self.weight.t(), None, self.bias, SimpleNamespace(shape=(self.out_features, self.in_features)))

    for name, module in list(model.named_modules()):
        if type(module) is torch.nn.Linear:
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, Linear(module, "nf4", False, torch.bfloat16))


def trace(asked: dict[str, Any], folder: str) -> Any:
    """Two steps of a scenario. Paged states are in host memory: their optimizer does nothing here."""
    import lightning
    import torch
    from litgpt.utils import chunked_cross_entropy

    from vramplan.trace.environment import modules, on_gpu
    from vramplan.trace.optimizers import states
    from vramplan.trace.step import adopt

    if "lora" in asked:
        from litgpt.lora import GPT, Config, mark_only_lora_as_trainable
    else:
        from litgpt import GPT, Config
    fabric = lightning.Fabric(accelerator="cpu", devices=1, precision=PRECISIONS[asked["precision"]])
    with on_gpu(*GPU) as recorder:
        with fabric.init_module(empty_init=True):
            model = GPT(Config.from_name(NAMES[asked["model"]], **(switches(asked["lora"]) if "lora" in asked else {})))
        if "lora" in asked:
            mark_only_lora_as_trainable(model)
        if asked["method"] == "qlora":
            quantise(model, folder)
            model.requires_grad_(False)
            for name, parameter in model.named_parameters():
                parameter.requires_grad = "lora_" in name
        model = fabric.setup_module(model)
        model.max_seq_length = asked["sequence_length"]
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        stepper = None if asked["method"] == "qlora" else torch.optim.AdamW(trained, foreach=True)
        recorder.mark("load")
        adopt(recorder, model.module)
        with modules(recorder):
            recorder.paused = False
            passes = asked.get("gradient_accumulation", 1)
            for number in range(2 * passes):
                recorder.mark("forward")
                ids = torch.zeros((asked["micro_batch"], asked["sequence_length"]), dtype=torch.long)
                recorder.label([ids], "inputs")
                if "lora" in asked:
                    logits = model(ids, lm_head_chunk_size=128)
                    logits[-1] = logits[-1][..., :-1, :]
                    recorder.mark("loss")
                    loss = chunked_cross_entropy(logits, ids[..., 1:])
                else:
                    logits = model(ids)
                    recorder.mark("loss")
                    loss = chunked_cross_entropy(logits[..., :-1, :], ids[..., 1:])
                recorder.mark("backward")
                fabric.backward(loss / passes)
                recorder.label((parameter.grad for parameter in trained), "gradients")
                if (number + 1) % passes == 0:
                    recorder.mark("step")
                    if stepper:
                        stepper.step()
                        recorder.label(states(stepper), "optimizer states")
                    for parameter in trained:
                        parameter.grad = None
                    recorder.step += 1
            recorder.paused = True
        return recorder.result(asked["model"])


def main() -> None:
    """Trace what the file lacks."""
    folder = sys.argv[2] if len(sys.argv) > 2 else ""
    made = {name: version(name) for name in ("torch", "litgpt", "lightning")}
    append(
        Path(sys.argv[1]),
        cases(bool(folder)),
        lambda asked: trace(asked, folder),
        lambda asked: {**made, "bitsandbytes": "0.42.0"} if asked["method"] == "qlora" else made,
    )


if __name__ == "__main__":
    main()
