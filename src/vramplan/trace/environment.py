"""What makes transformers, PEFT and plain PyTorch code take on fake CPU tensors the path of the chosen GPU; undone when the trace ends.

It does not know which operators a GPU runs (kernels.py), nor what a script asks of `torch.cuda` beyond its GPU's properties (script.py).
"""

from __future__ import annotations

import logging
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import transformers.utils.import_utils as import_utils
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from . import quantized, workspaces
from .kernels import cuda_operators
from .recorder import Recorder


def apply(module: Any, function: Any, recurse: bool = True, memo: dict[Any, Any] | None = None) -> Any:
    """`nn.Module._apply` by plain assignment: the original swaps parameters in place, which fails where weak references point at them."""
    memo = {} if memo is None else memo
    if recurse:
        for child in module.children():
            apply(child, function, True, memo)
    for name, old in module._parameters.items():
        if old is not None:
            if id(old) not in memo:
                with torch.no_grad():
                    value = function(old)
                new = old if value is old else nn.Parameter(value, old.requires_grad)
                if new is not old and old.grad is not None:
                    new.grad = function(old.grad)
                memo[id(old)] = (new, old)
            module._parameters[name] = memo[id(old)][0]
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = function(buffer)
    return module


def _no(_: Any) -> bool:
    """Not a Mock: a Mock would hold every tensor that it is called with."""
    return False


def _of_the_cpu(question: Any) -> Any:
    """Autocast's state for "cuda", which PEFT asks of no device in particular: the CPU's, under whose autocast the trace runs."""
    return lambda device="cuda": question("cpu" if device == "cuda" else device)


def properties(name: str, capability: tuple[int, int], memory: int) -> Any:
    """What `torch.cuda.get_device_properties` answers, as far as the libraries ask."""
    return types.SimpleNamespace(
        name=name,
        major=capability[0],
        minor=capability[1],
        total_memory=memory,
        multi_processor_count=108,
        warp_size=32,
        gcnArchName="",
    )


@contextmanager
def gpu_answers(name: str, capability: tuple[int, int], memory: int) -> Iterator[None]:
    """Capability look-ups answer for the GPU, fake tensors are not taken for an export, modules can be moved and cast."""
    answers: dict[str, Any] = {
        "get_device_capability": lambda *_: capability,
        "get_device_properties": lambda *_: properties(name, capability, memory),
        "get_device_name": lambda *_: name,
        "is_bf16_supported": lambda *_, **__: capability >= (8, 0),
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
    }
    with ExitStack() as stack:
        for attribute, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, attribute, answer))
        for question in ("is_autocast_enabled", "get_autocast_dtype"):
            stack.enter_context(mock.patch.object(torch, question, _of_the_cpu(getattr(torch, question))))
        stack.enter_context(mock.patch.object(nn.Module, "_apply", apply))
        stack.enter_context(mock.patch.object(import_utils, "is_fake_tensor", _no))
        yield


@contextmanager
def on_gpu(name: str, capability: tuple[int, int], memory: int) -> Iterator[Recorder]:
    """Fake tensors, the GPU's answers and operators, and a recorder, which is paused until its `paused` is set to False."""
    table = {**workspaces.TABLE, **quantized.WORKSPACES}
    recorder = Recorder(table, products=workspaces.PRODUCTS, product_nbytes=workspaces.cublas(capability))
    with ExitStack() as stack:
        stack.enter_context(_quiet())
        stack.enter_context(gpu_answers(name, capability, memory))
        stack.enter_context(cuda_operators(capability, lambda kernel: recorder.kernels.update([kernel])))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(recorder)
        yield recorder


@contextmanager
def _quiet() -> Iterator[None]:
    """The libraries' own advice is for runs, not for traces of them."""
    loggers = [logging.getLogger(name) for name in ("bitsandbytes", "transformers", "peft", "accelerate")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)


@contextmanager
def modules(recorder: Recorder) -> Iterator[None]:
    """Tell the recorder whose forward runs, by its name in the outermost module that is called; that one's parameters are weights."""
    names: dict[int, str] = {}
    known: set[int] = set()
    depth = 0
    hooks = sys.modules["torch.nn.modules.module"]

    def enter(module: Any, args: Any) -> None:
        nonlocal depth
        if depth == 0 and id(module) not in known:
            known.add(id(module))
            names.update((id(child), name) for name, child in module.named_modules())
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                recorder.belongs(tensor, name.rpartition(".")[0], "weights")
        depth += 1
        recorder.enter(names.get(id(module), type(module).__name__))

    def leave(module: Any, args: Any, result: Any) -> None:
        nonlocal depth
        depth -= 1
        recorder.leave()

    before = hooks.register_module_forward_pre_hook(enter)
    after = hooks.register_module_forward_hook(leave, always_call=True)
    try:
        yield
    finally:
        before.remove()
        after.remove()
