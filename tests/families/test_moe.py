"""Mixtures of experts with ordinary attention: published totals and active parameters, caches by hand, names of the checkpoints, errors.

Sizes are those of the published config.json files, where they differ from transformers' defaults, which a config may leave out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from vramplan.dim import Dim
from vramplan.errors import BadInput
from vramplan.families import walk
from vramplan.tape import Tape

CONTEXT = 131_072
QWEN3_30B: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "head_dim": 128,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
}
GPT_OSS_20B: dict[str, Any] = {"model_type": "gpt_oss", "num_hidden_layers": 24, "num_local_experts": 32}
GLM45_AIR: dict[str, Any] = {"model_type": "glm4_moe", "head_dim": 128, "attention_bias": True}
SCOUT: dict[str, Any] = {
    "model_type": "llama4",
    "text_config": {"model_type": "llama4_text"},
    "vision_config": {
        "hidden_size": 1408,
        "image_size": 336,
        "vision_output_dim": 4096,
    },
}
MIMO: dict[str, Any] = {"model_type": "mimo_v2_flash", "sliding_window_size": 128, "swa_num_key_value_heads": 8}
M3_SPARSE: dict[str, Any] = {"sparse_attention_freq": [0, 0, 0] + [1] * 57, "sparse_topk_blocks": 16, "sparse_block_size": 128}
M3: dict[str, Any] = {
    "model_type": "minimax_m3_vl",
    "text_config": {"moe_layer_freq": [0, 0, 0] + [1] * 57, "sparse_attention_config": M3_SPARSE},
}
STEP: dict[str, Any] = {
    "model_type": "step3p7",
    "sliding_window": 512,
    "layer_types": (["full_attention"] + ["sliding_attention"] * 3) * 12,
}


def walked(config: Mapping[str, Any], past: int = 0) -> Tape:
    return walk(Tape(Dim(1, "sequences"), Dim(64, "tokens"), past=past), config)


def cached(tape: Tape, tokens: int = CONTEXT) -> int:
    """Elements of the token caches."""
    return sum(c.elements(c.kept(tokens)) for c in tape.caches)


@pytest.mark.parametrize(
    ("config", "billions", "active"),
    [
        ({"model_type": "mixtral"}, 46.7, 12.9),  # Mistral AI, "Mixtral of experts", 11 December 2023
        (QWEN3_30B, 30.5, 3.3),  # arXiv:2505.09388, table 2 and the model card: 30.5B in total, 3.3B activated
        (GPT_OSS_20B, 20.9, 3.6 + 0.579),  # arXiv:2508.10925, table 1: 20.91B, 3.61B active, the input embedding not among them
        (GLM45_AIR, 106, 12 + 1.4),  # arXiv:2508.06471, table 1: 106B, 12B active; without embedding and head, 0.62B each
        ({"model_type": "dbrx", "d_model": 6144, "n_heads": 48, "n_layers": 40, "vocab_size": 100352,
          "attn_config": {"kv_n_heads": 8}, "ffn_config": {"ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4}},
         132, 36),  # Databricks, "Introducing DBRX", 27 March 2024
        ({"model_type": "minimax_m2"}, 230, 10 + 0.6),  # model card: 230B in total, 10B active; the embedding has 0.6B
        (SCOUT, 109, 17 + 0.9),  # model card: 109B, 17B active, the vision tower not among them
        ({"model_type": "solar_open"}, 102.6, 12),  # model card: 102.6B in total, 12B active
        (MIMO, 309, 15),  # model card: 309B in total, 15B active
    ],
)  # fmt: skip
def test_published_sizes(config: Mapping[str, Any], billions: float, active: float) -> None:
    tape = walked(config)
    assert tape.parameters / 1e9 == pytest.approx(billions, rel=0.01)
    assert tape.active_parameters / 1e9 == pytest.approx(active, rel=0.06)


def test_mixtral_exactly() -> None:
    """safetensors index of mistralai/Mixtral-8x7B-v0.1: 46,702,792,704; active by hand: six experts of eight unused in 32 layers."""
    tape = walked({"model_type": "mixtral"})
    assert tape.parameters == 46_702_792_704
    assert tape.active_parameters == 46_702_792_704 - 32 * 6 * 3 * 4096 * 14336


def test_gpt_oss_windows() -> None:
    """12 layers keep all tokens, 12 keep 128; each 2 × 8 × 64 numbers per token."""
    tape = walked(GPT_OSS_20B)
    assert cached(tape) == 1024 * 12 * (CONTEXT + 128)
    assert {c.window: len(c.layers) for c in tape.caches} == {128: 12, None: 12}
    assert walked({**GPT_OSS_20B, "sliding_window": None}).caches[0].window is None


def test_llama4_chunks() -> None:
    """Scout: 36 layers keep 8,192 tokens, 12 keep all; each 2 × 8 × 128 numbers per token."""
    assert cached(walked(SCOUT)) == 2048 * (36 * 8192 + 12 * CONTEXT)


def test_llama4_experts_in_every_other_layer() -> None:
    """Maverick: 24 layers with 128 experts, 24 dense and twice as wide. Total of its model card: 400B."""
    maverick = {**SCOUT, "text_config": {"interleave_moe_layer_step": 2, "num_local_experts": 128}}
    tape = walked(maverick)
    down = [w for w in tape.weights if w.name.endswith("experts.down_proj")]
    assert sorted(i for w in down for i in w.layers or ()) == list(range(1, 48, 2))
    assert tape.parameters / 1e9 == pytest.approx(401.6, abs=0.05)


def test_mimo_windows_and_narrow_values() -> None:
    """9 full layers of 4 kv heads, 39 sliding of 8, which see 128 tokens and themselves; keys of 192 and values of 128."""
    assert cached(walked(MIMO)) == (192 + 128) * (9 * 4 * CONTEXT + 39 * 8 * 129)


def test_minimax_m3_keeps_all_keys_and_the_indexers() -> None:
    """60 layers of 2 × 4 × 128, and 128 more in the 57 sparse ones; attention then sees 16 blocks of 128."""
    tape = walked(M3)
    assert cached(tape) == CONTEXT * (60 * 1024 + 57 * 128)
    longer = walked(M3, past=100_000)
    sparse = next(op for op in reversed(longer.ops) if op.name.endswith("attention") and op.repeats == 57)
    assert sparse.flops == 2 * 64 * 64 * (16 * 128) * 256


def test_step_reads_windows_from_a_flat_config() -> None:
    """45 layers of the 48 listed: 12 full, 33 sliding over 512 tokens; each 2 × 8 × 128."""
    assert cached(walked(STEP)) == 2048 * (12 * CONTEXT + 33 * 512)


def test_step_sliding_layers_have_more_heads() -> None:
    """`attention_other_setting` of the released config: 96 heads in the sliding layers."""
    text = {key: STEP[key] for key in ("sliding_window", "layer_types")}
    more = {**text, "attention_other_setting": {"num_attention_heads": 96}}
    difference = walked({"model_type": "step3p7", "text_config": more}).parameters - walked(STEP).parameters
    assert difference == 33 * 32 * (2 * 128 + 1) * 4096


def test_qwen2_moe_has_a_gate_on_its_shared_expert() -> None:
    tape = walked({"model_type": "qwen2_moe"})
    assert next(w.shape for w in tape.weights if w.name.endswith("mlp.shared_expert_gate.weight")) == (1, 2048)
    assert tape.parameters == 14_315_784_192  # safetensors index of Qwen/Qwen1.5-MoE-A2.7B


def test_dense_layers_among_sparse_ones() -> None:
    tape = walked({**QWEN3_30B, "num_hidden_layers": 6, "decoder_sparse_step": 2, "mlp_only_layers": [3]})
    assert {w.layers for w in tape.weights if w.kind == "experts"} == {(1, 5)}


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"model_type": "mixtral"}, {"block_sparse_moe.gate.weight", "block_sparse_moe.experts.{e}.w2.weight"}),
        ({"model_type": "granitemoe"}, {"block_sparse_moe.input_linear.weight", "block_sparse_moe.router.layer.weight"}),
        (GPT_OSS_20B, {"mlp.experts.gate_up_proj", "mlp.experts.gate_up_proj_bias", "mlp.router.bias", "self_attn.sinks"}),
        (MIMO, {"self_attn.attention_sink_bias", "mlp.gate.e_score_correction_bias"}),
        ({"model_type": "minimax_m2"}, {"block_sparse_moe.e_score_correction_bias"}),
        ({"model_type": "hunyuan_v1_moe"}, {"mlp.gate.wg.weight", "mlp.shared_mlp.up_proj.weight", "self_attn.query_layernorm.weight"}),
        ({"model_type": "ernie4_5_moe"}, {"mlp.moe_statics.e_score_correction_bias"}),
        (STEP, {"moe.router_bias", "moe.down_proj.weight", "share_expert.up_proj.weight", "self_attn.g_proj.weight"}),
    ],
)
def test_names_are_those_of_the_checkpoint(config: Mapping[str, Any], names: set[str]) -> None:
    assert {f"model.layers.{{i}}.{name}" for name in names} <= {w.name for w in walked(config).weights}


def test_fused_experts_are_stored_as_in_out() -> None:
    """gpt-oss: gate_up_proj [32, 2880, 5760] as in unsloth/gpt-oss-20b-BF16."""
    up = next(w for w in walked(GPT_OSS_20B).weights if w.name.endswith("experts.gate_up_proj"))
    assert (up.copies, up.active, up.shape) == (32, 4, (2880, 5760))


def test_hunyuan_sizes_given_per_layer() -> None:
    """tencent/Hunyuan-A13B-Instruct gives some sizes as one number per layer."""
    once = {"model_type": "hunyuan_v1_moe", "num_experts": 64, "moe_topk": 8, "num_shared_expert": 1}
    listed = {**once, "moe_topk": [8] * 32, "num_shared_expert": [1] * 32}
    assert walked(listed).active_parameters == walked(once).active_parameters
    with pytest.raises(BadInput, match="'moe_topk' differs from layer to layer"):
        walked({**once, "moe_topk": [8] * 31 + [4]})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "mixtral", "num_key_value_heads": 5}, "heads is 32; it must be a multiple of kv_heads, which is 5"),
        ({"model_type": "mixtral", "num_experts_per_tok": 9}, "top_k is 9; it must be at most experts, which is 8"),
        ({**QWEN3_30B, "mlp_only_layers": ["a"]}, "'mlp_only_layers' must hold layer numbers"),
        ({**QWEN3_30B, "decoder_sparse_step": 0}, "'decoder_sparse_step' is 0; it must be an integer from 1"),
        ({**GPT_OSS_20B, "layer_types": ["full_attention"]}, "'layer_types' names 1 layers, the model has 24"),
        ({**SCOUT, "text_config": {"no_rope_layers": [1, 0]}}, "'no_rope_layers' names 2 layers, the model has 48"),
        ({"model_type": "step3p7", "layer_types": ["sliding_attention"] * 45}, "'sliding_window' is missing"),
        ({"model_type": "step3p7", "text_config": {"moe_layers_enum": "3,x"}}, "'moe_layers_enum' must hold layer numbers"),
        ({"model_type": "step3p7", "vision_config": {"mlp_ratio": "9"}}, "'mlp_ratio' is 9; it must be a number"),
        ({**MIMO, "moe_layer_freq": [1]}, "'mlp_layer_types' names 1 layers, the model has 48"),
    ],
)
def test_contradictions_are_refused(config: Mapping[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        walked(config)
