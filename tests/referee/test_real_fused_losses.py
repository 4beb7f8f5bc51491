"""Other packages' kernels, losses and models: some of the stored traces made again, and how real torch adds gradients, unlike fake tensors.

`data/traced/kernels.jsonl` holds all of them; this needs the packages that `scripts/trace_kernels.py` names.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import runpy
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

ROOT = Path(__file__).parents[2]
ROWS = [json.loads(line) for line in (ROOT / "data" / "traced" / "kernels.jsonl").read_text().splitlines()]
NEEDS = {"liger": "liger_kernel", "chunked": "trl", "cut": "cut_cross_entropy", "fp8-mixed": "torchao"}
"""The package of a scenario's kernels, loss or precision; that of another engine has its name."""


def name(scenario: dict[str, Any]) -> str:
    return next((value for value in map(str, scenario.values()) if value in (*NEEDS, "unsloth", "torchtitan")), "fused")


SOME = {name(row["scenario"]): row for row in ROWS}


@pytest.mark.parametrize("kind", SOME)
def test_stored_traces_are_what_the_packages_do(kind: str) -> None:
    if importlib.util.find_spec(NEEDS.get(kind, "liger_kernel" if kind == "fused" else kind)) is None:
        pytest.skip(f"{kind} is not installed")
    script = runpy.run_path(str(ROOT / "scripts" / "trace_kernels.py"))
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=script["run"], args=(SOME[kind]["scenario"], sender))
    child.start()
    made = receiver.recv()
    child.join()
    assert made.get("peak") == SOME[kind]["peak"], made.get("failed")


def test_torch_adds_the_gradients_of_one_tensor_in_place() -> None:
    """Where two gradients of a tensor meet, the sum lies where one of them did. Fake tensors, a subclass, get a third: the traces of LoRA
    under Liger's kernels in bf16 are higher by that (`torch/csrc/autograd/input_buffer.cpp`, accumulate).
    """
    seen: list[int] = []

    class Branch(torch.autograd.Function):  # type: ignore[misc, name-defined]
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            made = gradient.clone()
            seen.append(made.data_ptr())
            return made

    class Root(torch.autograd.Function):  # type: ignore[misc, name-defined]
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            assert gradient.data_ptr() in seen
            return gradient

    x = torch.ones(1024, requires_grad=True)
    middle = Root.apply(x)
    (Branch.apply(middle).sum() + Branch.apply(middle).sum()).backward()
    assert len(seen) == 2
    assert x.grad is not None
