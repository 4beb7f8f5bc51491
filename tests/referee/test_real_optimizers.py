"""What optimizers keep and make, judged by the real ones: torch's, transformers', bitsandbytes', GaLore's and torchao's, on a real model.

Fake tensors, whose allocations the trace's recorder counts (the real allocator judges the recorder, tests/trace/test_real_cpu.py). Tensors
of one element are left out, but for fused AdamW's step counters: those that torch keeps in host memory, the recorder takes for the
device's. So are bitsandbytes' two tables that all weights share. The weights are those that the family's tape notes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from vramplan import estimate
from vramplan.allocator import ALLOC, FREE, block_size
from vramplan.dim import Dim
from vramplan.families import walk
from vramplan.optimizers import Optimizer, optimizer
from vramplan.optimizers.clipping import clipping
from vramplan.scenario import scenario
from vramplan.tape import Tape
from vramplan.tensors import Weight

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

LLAMA = {
    "model_type": "llama",
    "hidden_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "intermediate_size": 1792,
    "vocab_size": 1024,
    "tie_word_embeddings": False,
}
"""All its tensors are whole blocks of 512 B, in 16 bits too."""
DTYPES = {2: torch.bfloat16, 4: torch.float32}
TRACED = (
    *("adamw", "adamw-fused", "adamw-forloop", "sgd", "sgd-momentum", "adagrad", "rmsprop", "adafactor", "muon"),
    *("adamw-8bit", "adamw-32bit", "lion", "lion-8bit", "ademamix", "ademamix-8bit", "rmsprop-8bit"),
    *("paged-adamw-8bit", "paged-adamw-32bit", "paged-lion-8bit", "paged-ademamix-8bit"),
)


def weights() -> list[Weight]:
    tape = walk(Tape(Dim(1, "sequences"), Dim(8, "tokens")), LLAMA)
    return [weight for weight in tape.weights if weight.kind != "buffer"]


@contextmanager
def real_model(itemsize: int) -> Iterator[tuple[Any, Any]]:
    """The model on fake tensors, and the recorder."""
    from vramplan.trace.environment import on_gpu

    with on_gpu("NVIDIA A100", (8, 0), 80 << 30) as recorder:
        made = transformers.AutoConfig.for_model(**LLAMA)
        model = transformers.AutoModelForCausalLM.from_config(made, dtype=DTYPES[itemsize])
        recorder.mark("load")
        recorder.adopt((("", p) for p in model.parameters()), "weights")
        yield recorder, model


def run(recorder: Any, model: Any, stepper: Any, steps: int = 3) -> list[int]:
    """Most bytes above where each step began."""
    taken = []
    for _ in range(steps):
        recorder.paused = True
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        recorder.adopt((("", p.grad) for p in model.parameters()), "gradients")
        recorder.paused = False
        recorder.mark("step")
        at = len(recorder.events)
        stepper.step()
        taken.append(most(recorder, recorder.events[at:]))
        stepper.zero_grad()
        recorder.paused = True
    return taken


def most(recorder: Any, events: list[Any]) -> int:
    now = best = 0
    for kind, number, _ in events:
        block = recorder.blocks[number] if kind in (ALLOC, FREE) else None
        if block is not None and block.nbytes > 8 and not block.op.startswith("cuBLAS"):
            now += block_size(block.nbytes) * (1 if kind == ALLOC else -1)
            best = max(best, now)
    return best


def kept(recorder: Any, stepper: Any, counters: bool) -> tuple[int, int]:
    """Bytes of the states on the device, and of those that are elsewhere."""
    here: dict[int, int] = {}
    away: dict[int, int] = {}
    for state in stepper.state.values():
        for name, value in state.items():
            value = getattr(value, "ortho_matrix", value)
            if isinstance(value, torch.Tensor) and not name.startswith("qmap") and (counters or value.numel() > 1):
                storage = value.untyped_storage()
                (here if storage._cdata in recorder._live else away)[storage._cdata] = block_size(storage.nbytes())
    return sum(here.values()), sum(away.values())


def sums(ours: Optimizer, itemsize: int) -> tuple[int, int]:
    return sum(ours.states(w, itemsize) for w in weights()), sum(ours.paged(w, itemsize) for w in weights())


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("name", TRACED)
def test_states_and_temporaries(name: str, itemsize: int) -> None:
    from vramplan.trace.optimizers import optimizer as real
    from vramplan.trace.optimizers import states as states_of

    with real_model(itemsize) as (recorder, model):
        stepper = real(name, model, recorder.uncounted)
        recorder.adopt((("", state) for state in states_of(stepper)), "optimizer states")
        first, *_, steady = run(recorder, model, stepper)
        states = kept(recorder, stepper, counters=name in ("adamw-fused", "muon"))
    ours = optimizer(name, wide_embeddings=True)
    assert states == sums(ours, itemsize)
    temporary = ours.temporary(weights(), lambda _: itemsize)
    if name in ("adamw", "adagrad", "rmsprop"):  # two groups: the vectors' copies are made when the matrices' are gone
        temporary = ours.temporary([w for w in weights() if len(w.shape) > 1], lambda _: itemsize)
    assert steady == temporary
    assert first <= steady + states[0]


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("name", ["adamw", "adamw-fused", "adamw-forloop", "adafactor", "sgd-momentum", "adamw-8bit"])
def test_one_weight_alone(name: str, itemsize: int) -> None:
    from vramplan.trace.optimizers import _build

    with real_model(itemsize) as (recorder, model):
        weight = model.model.layers[0].mlp.up_proj.weight
        for parameter in model.parameters():
            parameter.requires_grad_(parameter is weight)
        steady = run(recorder, model, _build(name, [weight], model, recorder.uncounted))[-1]
    up = next(w for w in weights() if w.name.endswith("up_proj.weight"))
    assert steady == optimizer(name).temporary_of(up, itemsize)


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("name", ["galore-adamw", "galore-adamw-8bit"])
def test_galore(name: str, itemsize: int) -> None:
    """The first step decomposes the gradients; so does a later one every `update_proj_gap` steps, here every second."""
    galore = pytest.importorskip("galore_torch")
    rank = 128
    with real_model(itemsize) as (recorder, model):
        targets = [m.weight for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and ("attn" in n or "mlp" in n)]
        chosen = {id(p) for p in targets}
        rest = [p for p in model.parameters() if id(p) not in chosen]
        rest.sort(key=lambda p: p.dim() < 2)
        projected = {"params": targets, "rank": rank, "update_proj_gap": 2, "scale": 0.25, "proj_type": "std"}
        kind = galore.GaLoreAdamW8bit if name.endswith("8bit") else galore.GaLoreAdamW
        stepper = kind([{"params": rest}, projected], lr=1e-4)
        if name.endswith("8bit"):
            stepper.args.max_unorm = 0.0  # galore-torch's arguments by position are those of an older bitsandbytes
        _, _, steady = run(recorder, model, stepper)
        states = kept(recorder, stepper, counters=False)
    ours = optimizer(name, rank=rank)
    assert states == sums(ours, itemsize)
    assert steady == ours.temporary(weights(), lambda _: itemsize)


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize(
    ("name", "kind"), [("adamw-8bit-torchao", "AdamW8bit"), ("adamw-4bit-torchao", "AdamW4bit"), ("adamw-fp8-torchao", "AdamWFp8")]
)
def test_torchao(name: str, kind: str, itemsize: int) -> None:
    torchao = pytest.importorskip("torchao.optim")
    with real_model(itemsize) as (_, model):
        stepper = getattr(torchao, kind)(model.parameters(), lr=1e-4)
        buffers = [stepper._new_buffer(p, signed) for p in model.parameters() for signed in (True, False)]
        tensors = [t for b in buffers for t in ([getattr(b, a) for a in b.tensor_attrs] if hasattr(b, "tensor_attrs") else [b])]
        states = sum(block_size(t.untyped_storage().nbytes()) for t in tensors)
    assert states == sums(optimizer(name), itemsize)[0]


@pytest.mark.parametrize("itemsize", [2, 4])
def test_clipping(itemsize: int) -> None:
    with real_model(itemsize) as (recorder, model):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        recorder.adopt((("", p.grad) for p in model.parameters()), "gradients")
        before, recorder.paused = recorder.allocated, False
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        recorder.paused = True
        taken = recorder.max_allocated - before
    ours = clipping(weights(), lambda _: itemsize)
    assert ours <= taken <= ours + 4 * 512  # the norm of all, and what it is divided by


@pytest.mark.parametrize("name", ["adamw", "adamw-fused", "sgd", "adafactor"])
@pytest.mark.parametrize("tied", [False, True])
def test_steps_inside_the_backward_pass(name: str, tied: bool) -> None:
    """A whole step, with the hooks that torchtune's OptimizerInBackwardWrapper sets, against the sweep of the tape."""
    from vramplan.trace.step import trace_scenario

    keys = {"optimizer": name, "optimizer_in_backward": True, "precision": "bf16", "micro_batch": 2, "sequence_length": 256}
    asked = scenario({"model": {**LLAMA, "tie_word_embeddings": tied}, "task": "train", "method": "full", **keys})
    traced = trace_scenario(asked, loop="trainer").steady
    answer = estimate(asked)
    own = answer.ledger.total("workspace")
    assert answer.facts["peak_allocated"] - own == pytest.approx(traced.nbytes - traced.categories.get("workspace", 0), rel=0.002)
