"""A GPU pretended to code that asks for "cuda": fake CPU tensors say that they are on it, calls that name it are answered without it.

PyTorch's builds without CUDA cannot differentiate fake CUDA tensors; a mode on torch's functions translates instead. Which tensors are on
the GPU is the recorder's knowledge: those that were made or moved there, and what comes of them. It does not know several GPUs, streams
(they are stubs), CUDA graphs, and compiled code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils import _device as default_device
from torch.utils._device import _device_constructors

from .recorder import Recorder

CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")


class Pretend(TorchFunctionMode):
    """Translates "cuda" to "cpu" in the arguments of torch's functions, and tells the recorder where their results go."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        answer = ANSWERS.get(func)
        if answer is not None:
            return answer(self, func, args, kwargs)
        if func in _device_constructors() and kwargs.get("device") is None and default_device.CURRENT_DEVICE is not None:
            kwargs = {**kwargs, "device": default_device.CURRENT_DEVICE}
        named = {_device(a) for a in (*args, *kwargs.values())} - {None}
        if not named or func in ASKED:
            return func(*args, **kwargs)
        args = tuple(CPU if _device(a) else a for a in args)
        kwargs = {name: CPU if _device(a) else a for name, a in kwargs.items()}
        with self._at("device" if "cuda" in named else "host"):
            return func(*args, **kwargs)

    @contextmanager
    def _at(self, place: str) -> Iterator[None]:
        before, self.recorder.place = self.recorder.place, place
        try:
            yield
        finally:
            self.recorder.place = before

    def on_cuda(self, func: Any, args: Any, kwargs: Any) -> Any:
        """`tensor.is_cuda`."""
        return self.recorder.on_device(args[0])

    def move(self, func: Any, args: Any, kwargs: Any) -> Any:
        """`tensor.to(…)`, `.cuda()`, `.cpu()`: a copy where the place changes, else what the function itself does."""
        tensor, here = args[0], self.recorder.on_device(args[0])
        there = next((d for a in (*args[1:], *kwargs.values()) if (d := _device(a)) is not None), None)
        if func is torch.Tensor.cuda or func is torch.Tensor.cpu:
            there, args, kwargs = ("cuda" if func is torch.Tensor.cuda else "cpu"), (tensor,), {}
        elif there is None and len(args) > 1 and isinstance(args[1], torch.Tensor):
            there = "cuda" if self.recorder.on_device(args[1]) else "cpu"
        if there is None or (there == "cuda") == here:
            args = tuple(CPU if _device(a) else a for a in args)
            kwargs = {name: CPU if _device(a) else a for name, a in kwargs.items()}
            return torch.Tensor.to(*args, **kwargs) if len(args) > 1 or kwargs else tensor
        dtype = next((a for a in (*args[1:], *kwargs.values()) if isinstance(a, torch.dtype)), None)
        if dtype is None and len(args) > 1 and isinstance(args[1], torch.Tensor):
            dtype = args[1].dtype
        with self._at("device" if there == "cuda" else "host"):
            return torch.Tensor.to(tensor, dtype=dtype or tensor.dtype, copy=True)

    def to_list(self, func: Any, args: Any, kwargs: Any) -> Any:
        """`tensor.tolist()`: ones, as for `.item()`."""
        if not isinstance(args[0], FakeTensor):
            return func(*args, **kwargs)
        return _ones(tuple(args[0].shape), 1.0 if args[0].dtype.is_floating_point else 1)

    def to_numpy(self, func: Any, args: Any, kwargs: Any) -> Any:
        """`tensor.numpy()`: ones, as for `.item()`."""
        if not isinstance(args[0], FakeTensor):
            return func(*args, **kwargs)
        import numpy

        return numpy.ones(tuple(args[0].shape))


ANSWERS: dict[Any, Any] = {
    torch.Tensor.is_cuda.__get__: Pretend.on_cuda,
    torch.Tensor.to: Pretend.move,
    torch.Tensor.cuda: Pretend.move,
    torch.Tensor.cpu: Pretend.move,
    torch.Tensor.tolist: Pretend.to_list,
    torch.Tensor.numpy: Pretend.to_numpy,
}


ASKED = (torch.device, torch._C._nn._parse_to)
"""Functions that are asked what a device is, and answer as they do."""


def _device(value: Any) -> str | None:
    """ "cuda" or "cpu" where `value` names such a device."""
    if isinstance(value, torch.device):
        return value.type if value.type in ("cuda", "cpu") else None
    if isinstance(value, str) and (value in ("cuda", "cpu") or value.startswith("cuda:")):
        return value[:4].rstrip(":") if value.startswith("cuda") else "cpu"
    return None


def _ones(shape: tuple[int, ...], one: float) -> Any:
    return one if not shape else [_ones(shape[1:], one)] * shape[0]


class _Stub:
    """A stream or an event that has nothing to wait for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.device = CUDA

    def __enter__(self) -> _Stub:
        return self

    def __exit__(self, *error: Any) -> None:
        return None

    def _nothing(self, *args: Any, **kwargs: Any) -> float:
        return 0.0

    record = wait = synchronize = wait_stream = wait_event = record_event = elapsed_time = query = _nothing


@contextmanager
def pretend(recorder: Recorder, memory: int) -> Iterator[None]:
    """As long as it lasts, `torch.cuda` is there with one GPU of `memory` bytes, and what is put on it is what the recorder counts."""
    recorder.everything = False
    autocast = torch.autocast.__init__

    def cuda_autocast(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        if device_type == "cuda" and not args and kwargs.get("dtype") is None:
            kwargs["dtype"] = torch.float16
        autocast(self, "cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    def always_step(self: Any, stepper: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
        return stepper.step(*args, **kwargs)

    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "init": lambda: None,
        "set_device": lambda *_: None,
        "current_stream": lambda *_: _Stub(),
        "stream": lambda *_: _Stub(),
        "Stream": _Stub,
        "Event": _Stub,
        "mem_get_info": lambda *_: (memory - recorder.allocated, memory),
        "memory_allocated": lambda *_: recorder.allocated,
        "max_memory_allocated": lambda *_: recorder.max_allocated,
        "memory_reserved": lambda *_: recorder.allocated,
        "max_memory_reserved": lambda *_: recorder.max_allocated,
        "reset_peak_memory_stats": lambda *_: None,
        "manual_seed": lambda *_: None,
        "manual_seed_all": lambda *_: None,
        "ipc_collect": lambda: None,
    }
    import torch.optim.optimizer as optimizer

    own_device = FakeTensor.device.fget

    def device(tensor: Any) -> Any:
        return CUDA if recorder.idle and recorder.on_device(tensor) else own_device(tensor)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(FakeTensor, "device", property(device)))
        for attribute, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, attribute, answer))
        stack.enter_context(mock.patch.object(torch.autocast, "__init__", cuda_autocast))
        stack.enter_context(mock.patch.object(torch.amp.GradScaler, "_maybe_opt_step", always_step))
        stack.enter_context(mock.patch.object(optimizer, "_foreach_supported_types", [*optimizer._foreach_supported_types, FakeTensor]))
        stack.enter_context(Pretend(recorder))
        yield
