"""The trace: a real training step of real PyTorch code on fake tensors, every allocation and free recorded, without a GPU.

Needs the extra `trace` (torch, transformers, peft, bitsandbytes, accelerate); only this package imports them, and only when it is used.

    from vramplan.trace import recording

    with recording(gpu="rtx-4090") as recorded:
        train()
    print(recorded.trace.peak)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .generate import trace_generate
    from .script import recording, run
    from .step import trace, trace_scenario

__all__ = ["recording", "run", "trace", "trace_generate", "trace_scenario"]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in ("recording", "run"):
        return getattr(import_module(".script", __name__), name)
    if name == "trace_generate":
        return getattr(import_module(".generate", __name__), name)
    if name in ("trace", "trace_scenario"):
        return getattr(import_module(".step", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
