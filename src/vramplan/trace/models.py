"""The real model on fake tensors: transformers builds it from its config, PEFT puts adapters on it, quantised bases get their stand-ins."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from ..errors import BadInput, Unknown
from ..methods import inside
from .images import frozen
from .recipe import Recipe

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "bf16-mixed": torch.float32, "fp16-mixed": torch.float32}
"""Of the weights, by precision."""


def build(recipe: Recipe) -> Any:
    """The model as it stands before the first step: in training mode, frozen and adapted as the method says."""
    model = _base(recipe)
    model.config.use_cache = False
    if recipe.quantization:
        from .quantized import quantize

        quantize(model, recipe.quantization, double=recipe.double_quant, compute=_compute(recipe))
    if recipe.adapters:
        model = _adapted(model, recipe)
    tower = frozen(recipe)
    for name, parameter in model.named_parameters():
        if inside(name, recipe.frozen_modules) or (tower and not recipe.adapters and tower.match(name)):
            parameter.requires_grad = False
    if recipe.checkpointing == "full":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": recipe.reentrant})
        if recipe.adapters:
            model.enable_input_require_grads()
    return model.train()


def _compute(recipe: Recipe) -> torch.dtype:
    return torch.float16 if recipe.precision.startswith("fp16") else torch.float32 if recipe.precision == "fp32" else torch.bfloat16


def _base(recipe: Recipe) -> Any:
    import transformers
    from transformers.initialization import no_init_weights

    given = copy.deepcopy(dict(recipe.config))
    given.pop("quantization_config", None)
    kind = given.pop("model_type", None)
    try:
        config = transformers.AutoConfig.for_model(kind, **given)
    except ValueError:
        raise Unknown(f"{recipe.name}: transformers {transformers.__version__} does not know model_type {kind!r}") from None
    autos: tuple[Any, ...] = (transformers.AutoModelForCausalLM, transformers.AutoModelForImageTextToText)
    if recipe.images:
        autos = autos[1:]
    if recipe.head:
        autos = (transformers.AutoModelForSequenceClassification if recipe.head == "classification" else transformers.AutoModelForMaskedLM,)
    auto = next((a for a in autos if type(config) in a._model_mapping), None)
    if auto is None:
        raise Unknown(f"{recipe.name}: transformers has no language model for model_type {kind!r}")
    attention = {"auto": None, "eager": "eager"}.get(recipe.attention, "sdpa")
    try:
        with no_init_weights():
            model = auto.from_config(config, dtype=DTYPES[recipe.precision], attn_implementation=attention)
    except ValueError as error:
        if "attention" not in str(error):
            raise
        raise BadInput(f"{recipe.name}: {error}") from None
    except ImportError as error:
        raise Unknown(f"{recipe.name}: transformers' code for it needs another package: {str(error).splitlines()[0]}") from None
    model.tie_weights()
    return model


def _adapted(model: Any, recipe: Recipe) -> Any:
    import peft

    if recipe.kbit_preparation:
        model = peft.prepare_model_for_kbit_training(
            model,
            use_gradient_checkpointing=recipe.checkpointing == "full",
            gradient_checkpointing_kwargs={"use_reentrant": recipe.reentrant},
        )
    targets: Any = recipe.lora.targets
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    if targets == "attention":
        targets = attention_linears(model)
    elif not isinstance(targets, str):
        targets = list(targets)
        if missing := [t for t in targets if t.rpartition(".")[2] not in names]:
            from ..errors import nearest

            raise BadInput(f"{recipe.name} has no module {missing[0]!r} for a LoRA adapter{nearest(missing[0], names)}")
    settings = peft.LoraConfig(
        r=recipe.lora.rank,
        lora_alpha=int(recipe.lora.alpha),
        lora_dropout=recipe.lora.dropout,
        target_modules=targets,
        use_rslora=recipe.lora.variant == "rslora",
        use_dora=recipe.lora.variant == "dora",
        modules_to_save=list(recipe.trained_modules) or None,
        exclude_modules=tower.pattern if (tower := frozen(recipe)) else None,
        task_type="CAUSAL_LM",
    )
    model = peft.get_peft_model(model, settings, autocast_adapter_dtype=recipe.lora.dtype == "fp32")
    for wrapper in [module for module in model.modules() if isinstance(module, peft.utils.other.ModulesToSaveWrapper)]:
        _renew(wrapper.modules_to_save)
    if recipe.lora.dtype != "fp32":
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(DTYPES[recipe.lora.dtype])
    return model


def attention_linears(model: Any) -> list[str]:
    """The linear layers that stand in an attention module."""
    found = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
        if "attn" in name.rpartition(".")[0].lower() or "attention" in name.rpartition(".")[0].lower()
    }
    return sorted(found)


def _renew(modules: Any) -> None:
    """Give copied modules parameters of their own: the copy of a fake tensor has another storage than its views."""
    for module in modules.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty_like(parameter), parameter.requires_grad))
