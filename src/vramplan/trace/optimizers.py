"""Optimizers by the scenario's names: torch's own, transformers' Adafactor, and bitsandbytes' with 8-bit and paged states."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch

Uncounted = Callable[[], AbstractContextManager[None]]
RATE = 1e-4


def optimizer(name: str, model: Any, uncounted: Uncounted) -> Any:
    """The optimizer over the parameters of `model` that are trained; paged states are made under `uncounted`: they are in host memory."""
    trained = [p for p in model.parameters() if p.requires_grad]
    match name:
        case "adamw":
            return torch.optim.AdamW(trained, lr=RATE, foreach=True)
        case "adamw-fused":
            return torch.optim.AdamW(trained, lr=RATE, fused=True)
        case "adamw-forloop":
            return torch.optim.AdamW(trained, lr=RATE, foreach=False, fused=False)
        case "sgd" | "sgd-momentum":
            return torch.optim.SGD(trained, lr=RATE, momentum=0.9 if name == "sgd-momentum" else 0.0, foreach=True)
        case "adafactor":
            from transformers.optimization import Adafactor

            return Adafactor(trained, lr=RATE, scale_parameter=False, relative_step=False)
        case "muon":
            return MuonAndAdamW(model)
    return _bitsandbytes(name, trained, uncounted)


def states(stepper: Any) -> Iterator[Any]:
    """The tensors that the optimizer keeps between steps."""
    for state in stepper.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor):
                yield value


class MuonAndAdamW:
    """torch's Muon for the matrices of the layers and AdamW for the rest, as Muon's authors say: embeddings, the head and vectors."""

    def __init__(self, model: Any) -> None:
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        edges = {id(m.weight) for m in (inner.get_input_embeddings(), inner.get_output_embeddings()) if m is not None}
        trained = [p for p in model.parameters() if p.requires_grad]
        matrices = [p for p in trained if p.dim() == 2 and id(p) not in edges]
        chosen = {id(p) for p in matrices}
        self.parts = [
            torch.optim.Muon(matrices, lr=RATE),
            torch.optim.AdamW([p for p in trained if id(p) not in chosen], lr=RATE, fused=True),
        ]

    @property
    def state(self) -> dict[Any, Any]:
        """Parameter -> its state, of both."""
        return {parameter: state for part in self.parts for parameter, state in part.state.items()}

    def step(self) -> None:
        """Step both."""
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Let the gradients of both go."""
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)


def _bitsandbytes(name: str, trained: list[Any], uncounted: Uncounted) -> Any:
    """bitsandbytes' own optimizer, whose states are made as it makes them on a GPU (Optimizer8bit.get_state_buffer, 0.50)."""
    import bitsandbytes as bnb

    kind: Any = bnb.optim.Lion if "lion" in name else bnb.optim.AdamW
    bits = 8 if "8bit" in name else 32
    paged = name.startswith("paged")

    class OnGpu(kind):
        def get_state_buffer(self, p: Any, dtype: torch.dtype = torch.float32) -> Any:
            if paged and p.numel() >= 1e5:
                with uncounted():
                    return torch.zeros_like(p, dtype=dtype)
            return torch.zeros_like(p, dtype=dtype)

    return OnGpu(trained, lr=RATE, optim_bits=bits, is_paged=paged)
