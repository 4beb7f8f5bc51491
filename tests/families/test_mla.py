"""Latent attention, sparse and compressed attention, and the models not in transformers: numbers by hand and published ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from vramplan.dim import Dim
from vramplan.errors import BadInput
from vramplan.families import walk
from vramplan.kernels import Kernels
from vramplan.tape import Tape

CONTEXT = 131_072
V3: dict[str, Any] = {"model_type": "deepseek_v3"}
V32: dict[str, Any] = {"model_type": "deepseek_v32"}
V4_FLASH: dict[str, Any] = {"model_type": "deepseek_v4", "compress_ratios": [0, 0] + [4, 128] * 20 + [4, 0]}
GLM52: dict[str, Any] = {"model_type": "glm_moe_dsa", "index_topk_freq": 4, "index_skip_topk_offset": 3}
KIMI_K25: dict[str, Any] = {
    "model_type": "kimi_k25",
    "text_config": {
        "model_type": "deepseek_v3",
        "first_k_dense_replace": 1,
        "n_routed_experts": 384,
        "num_attention_heads": 64,
        "vocab_size": 163840,
    },
    "vision_config": {"vt_hidden_size": 1152, "vt_num_hidden_layers": 27},
}
FULL_LAYERS = [*range(4, 93, 4), 93]
KIMI_K3: dict[str, Any] = {
    "model_type": "kimi_k3",
    "text_config": {
        "attn_res_block_size": 12,
        "first_k_dense_replace": 1,
        "hidden_size": 7168,
        "intermediate_size": 33792,
        "kv_lora_rank": 512,
        "latent_moe_use_norm": True,
        "linear_attn_config": {
            "full_attn_layers": FULL_LAYERS,
            "kda_layers": [i for i in range(1, 94) if i not in FULL_LAYERS],
            "head_dim": 128,
            "num_heads": 96,
            "short_conv_kernel_size": 4,
            "use_full_rank_gate": True,
        },
        "mla_use_nope": True,
        "mla_use_output_gate": True,
        "moe_intermediate_size": 3072,
        "num_attention_heads": 96,
        "num_experts": 896,
        "num_experts_per_token": 16,
        "num_hidden_layers": 93,
        "num_shared_experts": 2,
        "q_lora_rank": 1536,
        "routed_expert_hidden_size": 3584,
        "vocab_size": 163840,
    },
    "vision_config": {"qkv_hidden_size": 1536, "vt_hidden_size": 1024, "vt_intermediate_size": 4096, "vt_num_attention_heads": 12},
}
SERVING = Kernels(attention="flash", norm="fused", mlp="merged", rope="inplace", mla="absorbed", frames="freed")


def walked(config: Mapping[str, Any], tokens: int = 64, past: int = 0, kernels: Kernels | None = None) -> Tape:
    return walk(Tape(Dim(1, "sequences"), Dim(tokens, "tokens"), past=past, kernels=kernels or Kernels()), config)


def cached(tape: Tape, name: str, tokens: int = CONTEXT) -> int:
    return sum(c.elements(c.kept(tokens)) for c in tape.caches if c.name == name)


def everything(tape: Tape) -> int:
    """Parameters and buffers: what a safetensors index counts."""
    return sum(w.numel for w in tape.weights)


def test_deepseek_v3_cache() -> None:
    """61 layers × (512 + 64) × 2 B × 131,072 tokens = 8.58 GiB (arXiv:2412.19437 section 4.2 for the sizes)."""
    nbytes = 2 * sum(c.elements(c.kept(CONTEXT)) for c in walked(V3).caches)
    assert nbytes == 61 * 576 * 2 * CONTEXT
    assert nbytes / 2**30 == pytest.approx(8.58, abs=0.005)


@pytest.mark.parametrize(
    ("config", "billions", "active"),
    [
        (V3, 671, 37),  # arXiv:2412.19437
        (KIMI_K25, 1027, 32),  # model card: 1T in total, 32B activated
        (V4_FLASH, 284, 13),  # model card: 284B in total, 13B activated
    ],
)
def test_published_sizes(config: Mapping[str, Any], billions: float, active: float) -> None:
    tape = walked(config)
    assert tape.parameters / 1e9 == pytest.approx(billions, rel=0.005)
    assert tape.active_parameters / 1e9 == pytest.approx(active, rel=0.07)


def test_kimi_k25_exactly() -> None:
    """safetensors index of moonshotai/Kimi-K2.6: 1,026,879,376,368 elements, the routing biases among them."""
    tape = walked(KIMI_K25)
    assert everything(tape) == 1_026_879_376_368
    assert sum(w.numel for w in tape.weights if w.tower) == 471_143_920


def test_prefill_expands_the_latents() -> None:
    """Keys [1, 64, 128 · 192] and values in [1, 64, 128 · 256] of all heads, from the latents of these tokens."""
    shapes = {op.name.rsplit(".", 1)[-1]: op.writes[0].shape for op in walked(V3).ops if "self_attn" in op.name}
    assert shapes["kv_b_proj"] == (1, 64, 128 * 256)
    assert shapes["k"] == (1, 64, 128 * 192)


def test_decode_expands_all_latents_in_transformers_and_none_when_serving() -> None:
    """transformers 5.23 `expand_kv` runs on the whole cache; vLLM's decode attends to the latents with one key-value head."""
    in_transformers = walked(V3, tokens=1, past=8191)
    expansion = next(op for op in in_transformers.ops if op.name.endswith("kv_b_proj"))
    assert expansion.writes[0].shape == (1, 8192, 128 * 256)
    serving = walked(V3, tokens=1, past=8191, kernels=SERVING)
    attention = next(op for op in serving.ops if op.name.endswith("attention"))
    assert attention.flops == 2 * 128 * 8192 * (576 + 512)
    assert max(t.nbytes for t in serving.tensors) < 2**20
    assert serving.parameters == in_transformers.parameters


def test_v32_indexer() -> None:
    """128 more numbers per token in each layer, and attention that sees 2,048 keys."""
    tape = walked(V32, past=100_000)
    assert cached(tape, "indexer keys") == 61 * 128 * CONTEXT
    assert cached(tape, "latent") == 61 * 576 * CONTEXT
    attention = next(op for op in tape.ops if op.name.endswith("self_attn.attention"))
    assert attention.flops == 2 * 128 * 64 * 2048 * (192 + 128)


def test_indexer_scores_of_each_head_only_in_transformers() -> None:
    """[b, s, 64 heads, keys] in fp32 against [b, s, keys]."""
    for kernels, heads in ((Kernels(), 64), (SERVING, 1)):
        scores = [op.writes[0].nbytes for op in walked(V32, tokens=4096, kernels=kernels).ops if "indexer.indexer" in op.name]
        assert max(scores) == 4 * heads * 4096 * 4096


def test_glm_shares_the_choice_of_keys() -> None:
    """Layers 0, 1, 2, then every fourth of 78: 21 indexers, as zai-org/GLM-5.2's `indexer_types` lists them."""
    full = [i for i in range(78) if i < 3 or (i - 2) % 4 == 0]
    listed = {"model_type": "glm_moe_dsa", "indexer_types": ["full" if i in full else "shared" for i in range(78)]}
    patterned = {"model_type": "glm_moe_dsa", "index_topk_pattern": "".join("F" if i in full else "S" for i in range(78))}
    for config in (GLM52, listed, patterned):
        tape = walked(config)
        assert sorted(i for c in tape.caches if c.name == "indexer keys" for i in c.layers) == full
        assert tape.parameters == 743_377_000_704  # zai-org/GLM-5.2 without its MTP layer


def test_v4_cache() -> None:
    """43 layers of 128 tokens; 21 with an entry and an indexer's per 4 tokens, 20 with one per 128; keys are the values too."""
    tape = walked(V4_FLASH)
    assert cached(tape, "window") == 43 * 128 * 512
    assert cached(tape, "compressed keys") == 512 * (21 * CONTEXT // 4 + 20 * CONTEXT // 128)
    assert cached(tape, "indexer keys") == 21 * 128 * CONTEXT // 4
    assert not [c for c in tape.caches if c.side == "v"]
    waiting = sum(c.elements(0) for c in tape.caches if c.per == "sequence")
    assert waiting == 2 * (20 * 127 * 512 + 21 * 10 * (512 + 128))


def test_v4_residual_streams_and_hashed_layers() -> None:
    tape = walked(V4_FLASH)
    assert next(op for op in tape.ops if op.name.endswith("residual")).writes[0].shape == (1, 64, 4 * 4096)
    tables = [w for w in tape.weights if w.name.endswith("gate.tid2eid")]
    assert [i for w in tables for i in w.layers or ()] == [0, 1, 2]
    assert tape.parameters == 284_332_230_231
    assert walked({**V4_FLASH, "model_type": "deepseek_ref"}).parameters == tape.parameters


def test_kimi_k3_exactly() -> None:
    """safetensors index of moonshotai/Kimi-K3: 2,779,931,837,184 elements, the routing biases among them."""
    assert everything(walked(KIMI_K3)) == 2_779_931_837_184


def test_kimi_k3_state() -> None:
    """69 layers keep 96 × 128 × 128 numbers in fp32 and three convolutions' last three columns, 24 keep 576 per token."""
    tape = walked(KIMI_K3)
    state = next(c for c in tape.caches if c.name == "delta state")
    assert (state.dtype, cached(tape, "delta state")) == ("fp32", 69 * 96 * 128 * 128)
    assert cached(tape, "conv state") == 69 * 3 * 96 * 128 * 3
    assert cached(tape, "latent") == 24 * 576 * CONTEXT


def test_nemotron_nas_exactly() -> None:
    """nvidia/Llama-3_3-Nemotron-Super-49B-v1, its blocks counted: 49,867,145,216 published; 49 of 80 layers attend, to 8 kv heads."""
    blocks = [(8, 5.25)] * 48 + [(8, 2.625)] + [(0, 1.3125)] * 10 + [(0, 1.0)] * 8 + [(0, 0.5)] * 6 + [(0, 2.625)] * 5
    blocks += [(0, 3.28125), (0, 5.25)]
    config = nas([{"attention": {"n_heads_in_group": g or None, "no_op": not g}, "ffn": {"ffn_mult": m}} for g, m in blocks])
    tape = walked(config)
    assert tape.parameters == 49_867_145_216
    assert sum(c.elements(1) for c in tape.caches) == 49 * 2 * 8 * 128


def test_nemotron_nas_replaced_parts() -> None:
    """A linear map in the place of attention, no MLP: [8192, 8192] and one norm."""
    linear = nas([{"attention": {"replace_with_linear": True}, "ffn": {"no_op": True}}])
    assert walked(linear).parameters == 2 * 128256 * 8192 + 8192 + 8192 * 8192 + 8192


def nas(blocks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "model_type": "nemotron-nas",
        "block_configs": blocks,
        "num_hidden_layers": len(blocks),
        "hidden_size": 8192,
        "num_attention_heads": 64,
        "vocab_size": 128256,
    }


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**V3, "num_experts_per_tok": 257}, "top_k is 257; it must be at most experts, which is 256"),
        ({**V4_FLASH, "compress_ratios": [8] * 43}, "'compress_ratios' holds something else than 0, 4, 128"),
        ({**V4_FLASH, "o_groups": 7}, "it must be a multiple of o_groups, which is 7"),
        ({**GLM52, "index_topk_pattern": "FX"}, "'indexer_types' names 2 layers, the model has 78"),
        ({**KIMI_K25, "text_config": {"model_type": "llama"}}, "'model_type' is 'llama'; here it must be one of deepseek_v2"),
        ({**KIMI_K3, "text_config": {**KIMI_K3["text_config"], "num_hidden_layers": 92}}, "must hold the layers 1 to 92, each once"),
        (nas([{"attention": {"n_heads_in_group": 7}, "ffn": {"ffn_mult": 1}}]), "it must be a multiple of n_heads_in_group, which is 7"),
        (nas([{"attention": {"no_op": True}, "ffn": {"ffn_mult": "2"}}]), r"block_configs\[0\].ffn: 'ffn_mult' is 2"),
        (nas([{"attention": {"sparsify": ["q"]}, "ffn": {"ffn_mult": 2}}]), "sparsified layers are not known"),
        ({**nas([]), "num_hidden_layers": 2}, "'block_configs' must be a list of 2 objects"),
    ],
)
def test_contradictions_are_refused(config: Mapping[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        walked(config)
