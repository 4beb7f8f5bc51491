"""The recorder judged by the real CPU allocator: two real training steps on real tensors, and the same on fake ones.

The CPU's own operators run on both sides (a GPU's are chosen by kernels.py, which is left out here), so that a difference would be the
recorder's. torch's profiler sees every allocation of the CPU allocator, hidden workspaces included.
"""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SMALL = {"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 8}
LLAMA = {"model_type": "llama", "num_key_value_heads": 2, "tie_word_embeddings": False, **SMALL}
RNG_STATE = 5056
"""Bytes of the CPU generator's state, which checkpointing saves for each layer: in host memory where the model is on a GPU."""
CASES: dict[str, dict[str, Any]] = {
    "llama": {"config": LLAMA, "precision": "fp32"},
    "llama, checkpointed": {"config": LLAMA, "precision": "fp32", "checkpointing": "full"},
    "llama, checkpointed, re-entrant": {"config": LLAMA, "precision": "fp32", "checkpointing": "full", "reentrant": True},
    "llama, bf16, foreach": {"config": LLAMA, "optimizer": "adamw"},
    "llama, autocast": {"config": LLAMA, "precision": "bf16-mixed"},
    "llama, LoRA": {"config": LLAMA, "method": "lora", "precision": "bf16"},
    "llama, accumulated, clipped": {"config": LLAMA, "gradient_accumulation": 2, "clip": 1.0, "optimizer": "sgd-momentum"},
    "qwen3": {"config": {"model_type": "qwen3", "num_key_value_heads": 4, "head_dim": 32, **SMALL}, "precision": "fp32"},
    "gpt2": {"config": {"model_type": "gpt2", "n_layer": 4, "n_embd": 256, "n_head": 4, "vocab_size": 4096}, "precision": "fp32"},
    "phi3": {"config": {"model_type": "phi3", "num_key_value_heads": 8, "pad_token_id": 0, **SMALL}, "precision": "fp32"},
    "mixtral, bf16": {"config": {"model_type": "mixtral", "num_key_value_heads": 2, "num_local_experts": 4, **SMALL}},
}


def steps(recipe: Any) -> tuple[Any, Any]:
    """Build and train on real CPU tensors; the model is returned so that nothing of it is freed before the end."""
    from vramplan.trace.models import build
    from vramplan.trace.recorder import Recorder
    from vramplan.trace.step import run_steps

    silent = Recorder()
    model = build(recipe)
    run_steps(silent, recipe, model)
    return model, silent


def profiled(recipe: Any) -> list[int]:
    """Bytes of every allocation (positive) and free (negative) of the CPU allocator, in order."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        kept = steps(recipe)
    assert kept
    events = [(e.start_ns(), e.nbytes()) for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    return [nbytes for _, nbytes in sorted(events, key=lambda event: event[0])]


def recorded(recipe: Any) -> Any:
    from torch._subclasses.fake_tensor import FakeTensorMode

    from vramplan.trace.environment import gpu_answers, modules
    from vramplan.trace.models import build
    from vramplan.trace.recorder import Recorder
    from vramplan.trace.step import adopt, run_steps

    recorder = Recorder()
    with gpu_answers("a GPU", (8, 0), 80 << 30), FakeTensorMode(allow_non_fake_inputs=True), recorder:
        model = build(recipe)
        recorder.mark("load")
        adopt(recorder, model)
        with modules(recorder):
            run_steps(recorder, recipe, model)
        return recorder.result("fake")


def peak(sizes: list[int]) -> int:
    now = most = 0
    for nbytes in sizes:
        now += nbytes
        most = max(most, now)
    return most


@pytest.mark.parametrize("name", CASES)
def test_the_peak_is_that_of_the_real_allocator(name: str) -> None:
    from vramplan.allocator import ALLOC, MARK
    from vramplan.trace.recipe import Recipe

    recipe = Recipe(micro_batch=2, sequence_length=256, **CASES[name])
    real = profiled(recipe)
    trace = recorded(recipe)
    fake = [trace.blocks[n].nbytes * (1 if kind == ALLOC else -1) for kind, n, _ in trace.events if kind != MARK]
    generator_states = RNG_STATE * 4 if recipe.checkpointing == "full" else 0
    assert peak(fake) == pytest.approx(peak(real) - generator_states, rel=1e-5)
