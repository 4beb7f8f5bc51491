"""Trace training steps of torchtune's own models and losses on fake tensors, and write their peaks: the referee of the estimate.

`python scripts/trace_torchtune.py data/traced/torchtune.jsonl` appends the cases that the file lacks. It needs the extra `trace`, and
`torchtune` with `torchao` (0.10, the last with its NF4Tensor where torchtune looks for it), `omegaconf`, `antlr4-python3-runtime`,
`torchdata`, `sentencepiece`, `tiktoken`, `blobfile`, `kagglehub` and `pillow`, which may be installed without what they depend on. The loop
is that of the recipes `full_finetune_single_device.py` and `lora_finetune_single_device.py` (0.6.1).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from traced_rows import append

NAMES = {
    "meta-llama/Llama-3.2-1B": ("llama3_2", "llama3_2_1b"),
    "meta-llama/Llama-3.1-8B": ("llama3_1", "llama3_1_8b"),
    "Qwen/Qwen2.5-0.5B": ("qwen2_5", "qwen2_5_0_5b"),
    "google/gemma-2b": ("gemma", "gemma_2b"),
    "microsoft/Phi-3-mini-4k-instruct": ("phi3", "phi3_mini"),
}
"""Of the catalogue, and where torchtune builds them."""
LARGE = ("meta-llama/Llama-3.1-8B", "microsoft/Phi-3-mini-4k-instruct")
ALL = {"rank": 8, "targets": ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}
QV = {"rank": 64, "dropout": 0.05, "targets": ["q_proj", "v_proj"]}
RECIPES: tuple[dict[str, Any], ...] = (
    {"method": "full", "micro_batch": 2, "sequence_length": 1024, "optimizer": "adamw-fused"},
    {"method": "full", "micro_batch": 1, "sequence_length": 512, "optimizer": "adamw", "checkpointing": "none", "gradient_accumulation": 2},
    {"method": "full", "micro_batch": 1, "sequence_length": 1024, "optimizer": "sgd", "loss": "plain", "optimizer_in_backward": True},
    {"method": "full", "micro_batch": 2, "sequence_length": 256, "optimizer": "adamw-fused", "checkpointing": "none", "precision": "fp32"},
    {"method": "lora", "micro_batch": 2, "sequence_length": 2048, "lora": ALL},
    {"method": "lora", "micro_batch": 1, "sequence_length": 1024, "lora": QV, "checkpointing": "none"},
    {"method": "lora", "micro_batch": 1, "sequence_length": 2048, "lora": ALL, "checkpointing": "none", "loss": "plain"},
    {"method": "qlora", "micro_batch": 2, "sequence_length": 2048, "lora": ALL},
    {"method": "qlora", "micro_batch": 1, "sequence_length": 512, "lora": QV, "checkpointing": "none"},
)
GPU = ("NVIDIA A100-SXM4-80GB", (8, 0), 80 << 30)


def cases() -> Iterator[dict[str, Any]]:
    """Every scenario of the matrix; full training of the small models only."""
    for model in NAMES:
        for recipe in RECIPES:
            partly = (
                recipe["method"] == "qlora" and recipe["lora"] is QV and model.startswith("Qwen/")
            )  # refused: its other layers stay plain
            if not (partly or (recipe["method"] == "full" and model in LARGE)):
                yield {"model": model, "task": "train", "engine": "torchtune", "engine_version": "0.6", **recipe}


def frozen(self: Any, inputs: int, outputs: int, bias: bool = False, **_: Any) -> None:
    """FrozenNF4Linear's own `__init__` but for the way in which it puts the weight in its place, which weak references forbid."""
    import torch
    from torchao.dtypes.nf4tensor import to_nf4

    torch.nn.Linear.__init__(self, inputs, outputs, bias=bias)
    self.weight = torch.nn.Parameter(to_nf4(self.weight.detach()), requires_grad=False)
    self.requires_grad_(False)


def build(asked: dict[str, Any]) -> Any:
    """The model as the recipe makes it, checkpointed and frozen as asked."""
    import torch
    from torchtune import modules, training
    from torchtune.models.llama3_1._position_embeddings import Llama3ScaledRoPE
    from torchtune.modules.low_precision import FrozenNF4Linear
    from torchtune.modules.peft import get_adapter_params, set_trainable_params

    FrozenNF4Linear.__init__ = frozen
    Llama3ScaledRoPE.apply_scaling = lambda self, frequencies, *_: frequencies  # it reads values, which fake tensors do not have
    package, name = NAMES[asked["model"]]
    home = import_module(f"torchtune.models.{package}")
    dtype = torch.float32 if asked.get("precision") == "fp32" else torch.bfloat16
    with training.set_default_dtype(dtype):
        if "lora" in asked:
            targets = asked["lora"]["targets"]
            attention = ["output_proj" if name == "o_proj" else name for name in targets if name[1:] == "_proj"]
            model = getattr(home, f"lora_{name}")(
                lora_attn_modules=attention,
                apply_lora_to_mlp="up_proj" in targets,
                lora_rank=asked["lora"]["rank"],
                lora_dropout=asked["lora"].get("dropout", 0.0),
                quantize_base=asked["method"] == "qlora",
            )
            set_trainable_params(model, get_adapter_params(model))
        else:
            model = getattr(home, name)()
    if asked.get("checkpointing", "full") == "full":
        training.set_activation_checkpointing(model, auto_wrap_policy={modules.TransformerSelfAttentionLayer})
    return model.train()


def adopt(recorder: Any, model: Any) -> None:
    """Count what the model holds; of an NF4Tensor, what it is made of."""
    from vramplan.trace.step import adopt as parameters

    parameters(recorder, model)
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "quantized_data"):
            own = (
                parameter.quantized_data,
                parameter.quantized_scalers,
                parameter.quantization_factor,
                parameter.scaler_mean,
                parameter.nf4,
            )
            recorder.adopt(((name.rpartition(".")[0], tensor) for tensor in own), "weights")


def stepper_of(asked: dict[str, Any], model: Any) -> Any:
    """The optimizer; None where each weight's steps in the backward pass."""
    import torch
    from torchtune import training

    kind = asked.get("optimizer", "adamw-fused")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if asked.get("optimizer_in_backward"):
        training.register_optim_in_bwd_hooks(model, {p: torch.optim.SGD([p], lr=0.1) for p in trained})
        return None
    return torch.optim.AdamW(trained, foreach=True) if kind == "adamw" else torch.optim.AdamW(trained, fused=True)


def trace(asked: dict[str, Any]) -> Any:
    """Two steps of a scenario."""
    import torch
    from torchtune.modules.loss import CEWithChunkedOutputLoss

    from vramplan.trace.environment import modules, on_gpu
    from vramplan.trace.optimizers import states

    with on_gpu(*GPU) as recorder:
        model = build(asked)
        plain = asked.get("loss") == "plain"
        loss_fn: Any = torch.nn.CrossEntropyLoss(ignore_index=-100) if plain else CEWithChunkedOutputLoss()
        if not plain:
            model.set_num_output_chunks(loss_fn.num_output_chunks)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        stepper = stepper_of(asked, model)
        recorder.mark("load")
        adopt(recorder, model)

        def loss_step(ids: Any) -> Any:
            logits = model(ids)
            recorder.mark("loss")
            labels = ids
            if not isinstance(logits, list):
                labels, logits = labels.reshape(-1), logits.reshape(-1, logits.size(-1))
            loss = loss_fn(logits, labels)
            del logits
            return loss

        with modules(recorder):
            recorder.paused = False
            passes = asked.get("gradient_accumulation", 1)
            for number in range(2 * passes):
                recorder.mark("forward")
                ids = torch.zeros((asked["micro_batch"], asked["sequence_length"]), dtype=torch.long)
                recorder.label([ids], "inputs")
                loss = loss_step(ids)
                recorder.mark("backward")
                loss.backward()
                recorder.label((parameter.grad for parameter in trained), "gradients")
                if (number + 1) % passes == 0:
                    recorder.mark("step")
                    if stepper:
                        stepper.step()
                        recorder.label(states(stepper), "optimizer states")
                        stepper.zero_grad(set_to_none=True)
                    recorder.step += 1
            recorder.paused = True
        return recorder.result(asked["model"])


def main() -> None:
    """Trace what the file lacks."""
    made = {name: version(name) for name in ("torch", "torchtune", "torchao")}
    append(Path(sys.argv[1]), cases(), trace, lambda asked: made)


if __name__ == "__main__":
    main()
