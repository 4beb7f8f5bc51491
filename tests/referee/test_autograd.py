"""The tape judged by PyTorch: what autograd really keeps, and the real peak of a forward pass, to the byte.

Small transformers models in bf16 on a CPU. Two things differ from a GPU and are named where they occur: CPU layer norm keeps its statistics
in the model's dtype (a GPU in fp32), and a layer's mask or unequal widths of keys and values send CPU attention to other kernels, so that
such models are judged with `eager` only. Needs the extra `trace`.
"""

from __future__ import annotations

from typing import Any

import pytest

from vramplan.dim import Dim
from vramplan.families import walk
from vramplan.kernels import Kernels
from vramplan.tape import Tape

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
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 256}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-mha": {"num_key_value_heads": 8},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {},
    "granite": {},
    "seed_oss": {"residual_dropout": 0.0},
    "hunyuan_v1_dense": {},
    "arcee": {},
    "gemma": {"hidden_activation": "gelu_pytorch_tanh"},
    "cohere": {},
    "starcoder2": {"residual_dropout": 0.0, "embedding_dropout": 0.0},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "olmoe": {"num_experts": 8, "num_experts_per_tok": 2},
    "olmoe-normalised": {"num_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": True},
    "qwen3_moe": EXPERTS,
    "qwen3_moe-mixed": {**EXPERTS, "num_hidden_layers": 4, "mlp_only_layers": [0, 1], "norm_topk_prob": True},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 512},
}
EAGER_ONLY: dict[str, dict[str, Any]] = {"phi3": {}}
"""Their rotated queries are laid out so that CPU attention copies its output."""
MASKED = ("qwen2_moe",)
"""transformers makes it two masks, one for windows that its layers do not have: its peaks are not judged."""


def config(name: str) -> dict[str, Any]:
    own = FAMILIES[name] if name in FAMILIES else EAGER_ONLY[name]
    return {"model_type": name.split("-")[0], **SMALL, "pad_token_id": 0, "attention_dropout": 0.0, **own}


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


def half_of_statistics(tape: Tape) -> int:
    """What CPU layer norms save less: bf16 for mean and reciprocal deviation."""
    return sum(tensor.nbytes // 2 * tensor.saved for tensor in tape.tensors if tensor.name.endswith(".stats"))


@pytest.mark.parametrize(
    ("name", "attention"),
    [*((name, kernel) for name in FAMILIES for kernel in ("eager", "sdpa")), *((name, "eager") for name in EAGER_ONLY)],
)
def test_saved_for_backward(name: str, attention: str) -> None:
    raw = config(name)
    ids = torch.randint(0, raw["vocab_size"], (BATCH, TOKENS))
    ours = tape(raw, attention=attention, logits="all")
    assert ours.saved_bytes - half_of_statistics(ours) == saved_by_autograd(real_model(raw, attention), ids)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", [name for name in (*FAMILIES, *EAGER_ONLY) if name not in MASKED])
def test_peak_of_a_forward_pass(name: str, attention: str) -> None:
    raw = config(name)
    model = real_model(raw, attention).eval()
    ids = torch.randint(0, raw["vocab_size"], (BATCH, TOKENS))
    assert tape(raw, attention=attention).peak()[0] + POSITION_IDS == real_peak(model, ids)
