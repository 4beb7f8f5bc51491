"""Optimizers by the scenario's names: torch's own, transformers' Adafactor, and bitsandbytes' with 8-bit and paged states."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

Uncounted = Callable[[], AbstractContextManager[None]]
RATE = 1e-4
FOREACH: dict[str, tuple[Any, dict[str, Any]]] = {
    "adamw": (torch.optim.AdamW, {"foreach": True}),
    "adamw-fused": (torch.optim.AdamW, {"fused": True}),
    "adamw-forloop": (torch.optim.AdamW, {"foreach": False, "fused": False}),
    "sgd": (torch.optim.SGD, {"foreach": True}),
    "sgd-momentum": (torch.optim.SGD, {"foreach": True, "momentum": 0.9}),
    "adagrad": (torch.optim.Adagrad, {"foreach": True}),
    "rmsprop": (torch.optim.RMSprop, {"foreach": True}),
}


def optimizer(name: str, model: Any, uncounted: Uncounted, *, in_backward: bool = False) -> Any:
    """The optimizer over the parameters of `model` that are trained, matrices before vectors, as transformers' Trainer groups them.

    Paged states are made under `uncounted`: they are in host memory. With `in_backward` each parameter is stepped as soon as its gradient
    is there, by an optimizer of its own, and lets go of it.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if name == "muon":
        return MuonAndAdamW(model)
    if in_backward:
        return InBackward(trained, lambda parameters: _build(name, parameters, model, uncounted))
    groups = [[p for p in trained if p.dim() > 1], [p for p in trained if p.dim() < 2]]
    return _build(name, [{"params": group} for group in groups if group], model, uncounted)


def states(stepper: Any) -> Iterator[Any]:
    """The tensors that the optimizer keeps between steps."""
    for state in stepper.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor):
                yield value


def _build(name: str, parameters: Sequence[Any], model: Any, uncounted: Uncounted) -> Any:
    if name in FOREACH:
        kind, choices = FOREACH[name]
        return kind(parameters, lr=RATE, **choices)
    if name == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor(parameters, lr=RATE, scale_parameter=False, relative_step=False)
    return _bitsandbytes(name, parameters, model, uncounted)


class Several:
    """Optimizers that are one to the loop."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = parts

    @property
    def state(self) -> dict[Any, Any]:
        """Parameter -> its state, of all."""
        return {parameter: state for part in self.parts for parameter, state in part.state.items()}

    def step(self) -> None:
        """Step all."""
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Let the gradients of all go."""
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)


class MuonAndAdamW(Several):
    """torch's Muon for the matrices of the layers and AdamW for the rest, as Muon's authors say: embeddings, the head and vectors."""

    def __init__(self, model: Any) -> None:
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        edges = {id(m.weight) for m in (inner.get_input_embeddings(), inner.get_output_embeddings()) if m is not None}
        trained = [p for p in model.parameters() if p.requires_grad]
        matrices = [p for p in trained if p.dim() == 2 and id(p) not in edges]
        chosen = {id(p) for p in matrices}
        rest = [p for p in trained if id(p) not in chosen]
        super().__init__([torch.optim.Muon(matrices, lr=RATE), torch.optim.AdamW(rest, lr=RATE, fused=True)])


class InBackward(Several):
    """An optimizer for each parameter, which steps in a hook after its gradient is accumulated (torchtune's OptimizerInBackwardWrapper)."""

    def __init__(self, trained: Sequence[Any], build: Callable[[Sequence[Any]], Any]) -> None:
        self.of = {id(p): build([p]) for p in trained}
        super().__init__(list(self.of.values()))
        for p in trained:
            p.register_post_accumulate_grad_hook(self._step)

    def _step(self, parameter: Any) -> None:
        self.of[id(parameter)].step()
        self.of[id(parameter)].zero_grad(set_to_none=True)

    def step(self) -> None:
        """All have stepped."""


def _bitsandbytes(name: str, parameters: Sequence[Any], model: Any, uncounted: Uncounted) -> Any:
    """bitsandbytes' own optimizer, whose states are made as it makes them on a GPU (get_state_buffer, 0.50).

    transformers' Trainer asks 8-bit ones for fp32 states of embeddings (`trainer.py`, create_optimizer).
    """
    import bitsandbytes as bnb

    kinds = {"adamw": bnb.optim.AdamW, "lion": bnb.optim.Lion, "rmsprop": bnb.optim.RMSprop, "ademamix": bnb.optim.AdEMAMix}
    kind: Any = kinds[name.removeprefix("paged-").partition("-")[0]]
    bits, paged = 8 if name.endswith("8bit") else 32, name.startswith("paged-")
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}

    class OnGpu(kind):
        def get_config(self, gindex: int, pindex: int, group: Any) -> Any:
            config = super().get_config(gindex, pindex, group)
            return {**config, "optim_bits": 32} if id(group["params"][pindex]) in embeddings else config

        def get_state_buffer(self, p: Any, dtype: torch.dtype = torch.float32) -> Any:
            return self._buffer(p, p.shape, dtype)

        def _get_state_double_buffer(self, p: Any, dtype: torch.dtype = torch.float32) -> Any:
            return self._buffer(p, (2, *p.shape), dtype)

        def _buffer(self, p: Any, shape: Any, dtype: torch.dtype) -> Any:
            if paged and p.numel() >= 1e5:
                with uncounted():
                    return torch.zeros(shape, dtype=dtype)
            return torch.zeros(shape, dtype=dtype)

    return OnGpu(parameters, lr=RATE, optim_bits=bits, **({"is_paged": True} if paged else {}))
