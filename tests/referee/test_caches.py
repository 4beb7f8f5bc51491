"""The caches of the engine `transformers` judged by transformers: the storages that a real DynamicCache holds, to the byte.

Counted are storages, not tensors: a sliding layer keeps window − 1 tokens as a view, whose storage holds the whole prompt after the prefill
and `window` tokens in decode. Latent attention caches the latent (since PR #47761; before, keys and values of all heads). Needs the extra
`trace`.
"""

from __future__ import annotations

from typing import Any

import pytest

import vramplan
from vramplan.ledger import Moment

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

SEQUENCES, PROMPT = 2, 150
SMALL = {
    "hidden_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 1024,
    "vocab_size": 1000,
    "pad_token_id": 0,
    "max_position_embeddings": 2048,
}
WINDOWS = {"sliding_window": 64, "layer_types": ["sliding_attention"] * 3 + ["full_attention"]}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128}
LATENT = {
    **EXPERTS,
    "q_lora_rank": 256,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
    "head_dim": 32,
    "num_key_value_heads": 8,
    "n_group": 1,
    "topk_group": 1,
}
INDEXED = {"index_n_heads": 4, "index_head_dim": 64, "index_topk": 32}
MAMBA2 = {"mamba_n_heads": 16, "mamba_d_head": 64, "mamba_d_state": 32, "mamba_n_groups": 1, "mamba_chunk_size": 64, "mamba_expand": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {},
    "mixtral": EXPERTS,
    "gpt2": {"n_layer": 4, "n_embd": 512, "n_head": 8},
    "mistral": {"sliding_window": 64},
    "gemma3_text": WINDOWS,
    "cohere2": WINDOWS,
    "olmo3": WINDOWS,
    "exaone4": {**WINDOWS, "sliding_window_pattern": 4},
    "gpt_oss": {**WINDOWS, **EXPERTS},
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "deepseek_v32": {**LATENT, **INDEXED},
    "glm_moe_dsa": {**LATENT, **INDEXED},
    "glm4_moe_lite": LATENT,
    "youtu": LATENT,
    "mamba": {"expand": 2, "intermediate_size": 1024},
    "mamba2": {"num_heads": 16, "state_size": 32, "n_groups": 2, "chunk_size": 64},
    "falcon_h1": {**MAMBA2, "mamba_d_ssm": 1024},
    "granitemoehybrid": {**MAMBA2, **EXPERTS, "layer_types": ["mamba", "mamba", "attention", "mamba"], "shared_intermediate_size": 512},
    "jamba": {**EXPERTS, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "lfm2": {"layer_types": ["conv", "conv", "full_attention", "conv"]},
    "nemotron_h": {
        "layers_block_type": ["mamba", "attention", "mlp", "mamba"],
        "mamba_num_heads": 16,
        "mamba_head_dim": 64,
        "ssm_state_size": 32,
        "n_groups": 2,
        "chunk_size": 64,
    },
    "qwen3_next": {
        **EXPERTS,
        "shared_expert_intermediate_size": 128,
        "layer_types": ["linear_attention"] * 3 + ["full_attention"],
        "linear_num_key_heads": 4,
        "linear_num_value_heads": 8,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
    },
}


def config(name: str) -> dict[str, Any]:
    return {"model_type": name, **SMALL, **FAMILIES[name], "torch_dtype": "bfloat16"}


def held(cache: Any) -> int:
    """Bytes of the distinct storages of a cache's tensors, a layer's own numbers left out."""
    attributes = [value for layer in cache.layers for value in vars(layer).values()]
    flat = [inner for value in attributes for inner in (value.values() if isinstance(value, dict) else [value])]
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in flat if isinstance(t, torch.Tensor) and t.numel() > 1}
    return sum(storages.values())


def real_caches(raw: dict[str, Any]) -> tuple[int, int]:
    """Bytes of the cache after the prefill, and after one token more."""
    torch.manual_seed(0)
    made = transformers.AutoConfig.for_model(**raw)
    model = transformers.AutoModelForCausalLM.from_config(made, dtype=torch.bfloat16, attn_implementation="eager").eval()
    ids = torch.randint(0, SMALL["vocab_size"], (SEQUENCES, PROMPT))
    with torch.no_grad():
        first = model(ids, use_cache=True)
        name = "past_key_values" if "past_key_values" in first else "cache_params"
        prefilled = held(first[name])
        model(ids[:, :1], use_cache=True, **{name: first[name]})
    return prefilled, held(first[name])


@pytest.mark.parametrize("name", FAMILIES)
def test_cache_after_prefill_and_decode(name: str) -> None:
    raw = config(name)
    answer = vramplan.estimate(
        raw, engine="transformers", weights="bf16", sequences=SEQUENCES, prompt_length=PROMPT, output_length=1, context_length=PROMPT + 1
    )
    ours = tuple(answer.ledger.total("kv cache", moment=moment) for moment in (Moment.PREFILL, Moment.DECODE))
    assert ours == real_caches(raw)
