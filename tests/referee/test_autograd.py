"""The tape judged by PyTorch: what autograd really keeps, and the real peak of a forward pass, to the byte.

Small transformers models in bf16 on a CPU. Two things differ from a GPU and are named where they occur: CPU softmax converts its input to
fp32 in a copy, and CPU attention without a mask takes the flash kernel. Needs the extra `trace`.
"""

from __future__ import annotations

from typing import Any

import pytest

from vramplan.families import walk
from vramplan.tape import Dim, Kernels, Tape

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

BATCH, TOKENS = 2, 320
POSITION_IDS = TOKENS * 8
"""transformers makes them; the tape does not."""

SMALL = {
    "hidden_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 1792,
    "vocab_size": 1000,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
FAMILIES = {
    "llama": {},
    "llama-mha": {"num_key_value_heads": 8},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {},
    "granite": {},
}


def config(name: str) -> dict[str, Any]:
    return {"model_type": name.split("-")[0], **SMALL, **FAMILIES[name]}


def real_model(raw: dict[str, Any], attention: str) -> Any:
    torch.manual_seed(0)
    made = transformers.AutoConfig.for_model(**raw)
    return transformers.AutoModelForCausalLM.from_config(made, dtype=torch.bfloat16, attn_implementation=attention)


def saved_by_autograd(model: Any, ids: Any) -> int:
    """Bytes of the distinct storages that autograd saves, weights and buffers left out."""
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    seen: dict[int, int] = {}
    kept = []

    def pack(tensor: Any) -> Any:
        kept.append(tensor)
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            seen[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(ids, use_cache=False).logits
    assert output is not None
    return sum(seen.values())


def real_peak(model: Any, ids: Any) -> int:
    """Most bytes that the CPU allocator held at once during a forward pass, by torch's profiler."""
    with (
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile,
        torch.no_grad(),
    ):
        model(ids, use_cache=False, logits_to_keep=1)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def tape(raw: dict[str, Any], **kernels: Any) -> Tape:
    return walk(Tape(Dim(BATCH, "sequences"), Dim(TOKENS, "tokens"), kernels=Kernels(**kernels)), raw)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", FAMILIES)
def test_saved_for_backward(name: str, attention: str) -> None:
    raw = config(name)
    ids = torch.randint(0, raw["vocab_size"], (BATCH, TOKENS))
    assert tape(raw, attention=attention, logits="all").saved_bytes == saved_by_autograd(real_model(raw, attention), ids)


@pytest.mark.parametrize("name", FAMILIES)
def test_peak_of_a_forward_pass(name: str) -> None:
    raw = config(name)
    model = real_model(raw, "sdpa").eval()
    ids = torch.randint(0, raw["vocab_size"], (BATCH, TOKENS))
    assert tape(raw, attention="sdpa").peak()[0] + POSITION_IDS == real_peak(model, ids)
