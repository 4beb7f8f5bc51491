"""Hybrid, recurrent and vision-language families: caches and states by hand, what is unusual, and configs that contradict themselves.

Sizes are those of the published config.json files; the parameter counts of all models are tested elsewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pytest

from vramplan.dim import Dim
from vramplan.errors import BadInput
from vramplan.families import walk
from vramplan.kernels import Kernels
from vramplan.ops.norm_fp32 import gated_rms_norm, rms_norm_fp32
from vramplan.tape import Tape

BYTES = {None: 2, "bf16": 2, "fp32": 4}

QWEN3_NEXT = {
    "model_type": "qwen3_next",
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
}
QWEN3_6_27B = {
    "model_type": "qwen3_5_text",
    "hidden_size": 5120,
    "intermediate_size": 17408,
    "num_hidden_layers": 64,
    "num_attention_heads": 24,
    "num_key_value_heads": 4,
    "linear_num_value_heads": 48,
}
GEMMA3_27B = {
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "num_hidden_layers": 62,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "sliding_window": 1024,
        "vocab_size": 262208,
    },
    "vision_config": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 896,
        "patch_size": 14,
        "vision_use_head": False,
    },
}
GEMMA3N_E4B: dict[str, object] = {"model_type": "gemma3n"}
GEMMA4_31B = {
    "model_type": "gemma4",
    "text_config": {
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "num_hidden_layers": 60,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "num_global_key_value_heads": 4,
        "attention_k_eq_v": True,
        "sliding_window": 1024,
        "hidden_size_per_layer_input": 0,
    },
}
GEMMA4_E2B = {
    "model_type": "gemma4",
    "text_config": {
        "hidden_size": 1536,
        "intermediate_size": 6144,
        "num_hidden_layers": 35,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "num_kv_shared_layers": 20,
        "use_double_wide_mlp": True,
        "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 7,
    },
}
JAMBA_MINI: dict[str, object] = {"model_type": "jamba"}
MAMBA_130M = {"model_type": "mamba", "hidden_size": 768, "num_hidden_layers": 24}
CODESTRAL: dict[str, object] = {"model_type": "mamba2"}
NEMOTRON_H_8B = {"model_type": "nemotron_h", "hybrid_override_pattern": "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"}
FALCON_H1_7B = {
    "model_type": "falcon_h1",
    "hidden_size": 3072,
    "intermediate_size": 12288,
    "num_hidden_layers": 44,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "mamba_d_ssm": 3072,
    "mamba_n_heads": 24,
    "mamba_d_head": 128,
    "vocab_size": 130049,
}
GRANITE_H_SMALL = {
    "model_type": "granitemoehybrid",
    "hidden_size": 4096,
    "intermediate_size": 768,
    "shared_intermediate_size": 1536,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 72,
    "num_experts_per_tok": 10,
    "mamba_d_state": 128,
    "mamba_d_head": 64,
    "vocab_size": 100352,
    "tie_word_embeddings": True,
    "layer_types": ["attention" if i in (5, 15, 25, 35) else "mamba" for i in range(40)],
}
LFM2_1_2B = {
    "model_type": "lfm2",
    "hidden_size": 2048,
    "intermediate_size": 12288,
    "num_hidden_layers": 16,
    "full_attn_idxs": [2, 5, 8, 10, 12, 14],
}
MLLAMA_11B = {"model_type": "mllama", "vision_config": {"image_size": 560}}
QWEN3_VL_30B = {
    "model_type": "qwen3_vl_moe",
    "text_config": {
        "hidden_size": 2048,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
    },
    "vision_config": {"out_hidden_size": 2048},
}


def traced(config: Mapping[str, object], tokens: int = 8) -> Tape:
    return walk(Tape(Dim(1, "sequences"), Dim(tokens, "tokens")), config)


def held(config: Mapping[str, object], tokens: int, *, tower: str | None = None) -> dict[str, int]:
    """Bytes that one sequence of `tokens` tokens keeps, by cache, in bf16 unless the cache has a type of its own."""
    found: Counter[str] = Counter()
    for cache in traced(config).caches:
        if cache.tower == tower:
            found[cache.name] += cache.elements(cache.kept(tokens)) * BYTES[cache.dtype]
    return dict(found)


def layers_of(config: Mapping[str, object], end: str) -> int:
    """In how many layers a weight whose name ends so stands."""
    return sum(weight.repeats for weight in traced(config).weights if weight.name.endswith(end) and weight.tower is None)


# ---- caches and states -----------------------------------------------------------------
def test_gemma_3_27b_at_131072_tokens_takes_10_4_gib() -> None:
    """52 of 62 layers keep 1,024 tokens: (10 · 131072 + 52 · 1024) tokens · 2 · 16 heads · 128 · 2 B; all of them would take 62 GiB."""
    kept = held(GEMMA3_27B, 131072)
    assert kept["keys"] + kept["values"] == (10 * 131072 + 52 * 1024) * 2 * 16 * 128 * 2
    assert round(sum(kept.values()) / 2**30, 1) == 10.4


def test_qwen3_next_keeps_a_state_in_36_layers_and_a_cache_in_12() -> None:
    """A quarter of the layers attend, with 2 kv heads of 256; a delta net's state is 32 heads of 128 × 128 in fp32: 72 MiB in all."""
    kept = held(QWEN3_NEXT, 1)
    assert kept["keys"] + kept["values"] == 12 * 2 * 2 * 256 * 2 == 24576
    assert kept["delta state"] == 36 * 32 * 128 * 128 * 4 == 72 * 2**20
    assert kept["conv state"] == 36 * (2 * 16 * 128 + 32 * 128) * 3 * 2
    assert held(QWEN3_NEXT, 262144)["delta state"] == kept["delta state"]


def test_qwen3_5_27b_state_is_what_sglang_prints() -> None:
    """SGLang's pool of 125 slots printed 17.58 GiB of state (48 layers of 48 heads), and 64 KiB of cache per token (16 layers)."""
    kept = held(QWEN3_6_27B, 1)
    assert round(125 * kept["delta state"] / 2**30, 2) == 17.58
    assert kept["keys"] + kept["values"] == 64 * 1024


def test_a_gated_query_projection_is_twice_as_wide() -> None:
    shapes = {weight.name.rsplit(".", 2)[-2]: weight.shape for weight in traced(QWEN3_NEXT).weights if "self_attn" in weight.name}
    assert shapes["q_proj"] == (2 * 16 * 256, 2048)
    assert shapes["o_proj"] == (2048, 16 * 256)


@pytest.mark.parametrize(
    ("config", "layers", "own"),
    [pytest.param(GEMMA3N_E4B, 35, 20, id="gemma-3n-E4B"), pytest.param(GEMMA4_E2B, 35, 15, id="gemma-4-E2B")],
)
def test_layers_that_share_keys_have_none_and_cache_none(config: Mapping[str, object], layers: int, own: int) -> None:
    assert layers_of(config, "self_attn.q_proj.weight") == layers
    assert layers_of(config, "self_attn.k_proj.weight") == own
    assert sum(len(cache.layers) for cache in traced(config).caches if cache.side == "k") == own


def test_gemma_4_e2b_doubles_the_mlp_where_keys_are_shared() -> None:
    widths = Counter[int]()
    for weight in traced(GEMMA4_E2B).weights:
        if weight.name.endswith("mlp.gate_proj.weight"):
            widths[int(weight.shape[0])] += weight.repeats
    assert widths == {6144: 15, 12288: 20}


def test_gemma_4_31b_caches_values_that_it_has_no_projection_for() -> None:
    """10 of 60 layers see everything, with 4 kv heads of 512 and no value projection; 50 slide over 1,024 with 16 heads of 256."""
    assert layers_of(GEMMA4_31B, "self_attn.k_proj.weight") == 60
    assert layers_of(GEMMA4_31B, "self_attn.v_proj.weight") == 50
    kept = held(GEMMA4_31B, 262144)
    assert kept["values"] == kept["keys"] == (10 * 262144 * 4 * 512 + 50 * 1024 * 16 * 256) * 2


def test_embedding_gemma_caches_nothing() -> None:
    """Without a causal mask the text is read once; its window of 512 reaches 257 to either side (Gemma3TextConfig)."""
    config = {"model_type": "gemma3_text", "num_key_value_heads": 1, "use_bidirectional_attention": True, "sliding_window": 512}
    assert traced(config).caches == []


def test_mamba_keeps_the_same_at_any_length() -> None:
    """Mamba-130m: 24 layers of 1,536 × 16 numbers in fp32, and 3 columns of the convolution."""
    assert held(MAMBA_130M, 1) == held(MAMBA_130M, 10**6) == {"ssm state": 24 * 1536 * 16 * 4, "conv state": 24 * 1536 * 3 * 2}


def test_mamba_2_has_heads() -> None:
    """Mamba-Codestral-7B: 64 layers, 128 heads of 64 × 128 in fp32; B and C of 8 groups pass the convolution too."""
    kept = held(CODESTRAL, 1)
    assert kept == {"ssm state": 64 * 128 * 64 * 128 * 4, "conv state": 64 * (8192 + 2 * 8 * 128) * 3 * 2}


def test_jamba_attends_in_every_eighth_layer() -> None:
    """Jamba-Mini: 4 of 32 layers with 8 kv heads of 128, 28 with 8,192 × 16 states (Lieber et al. 2024, section 3: 1 to 7)."""
    kept = held(JAMBA_MINI, 1)
    assert kept["keys"] == 4 * 8 * 128 * 2
    assert kept["ssm state"] == 28 * 8192 * 16 * 4
    assert layers_of(JAMBA_MINI, "feed_forward.router.weight") == 16


def test_nemotron_h_8b_is_24_mamba_24_mlp_4_attention() -> None:
    """52 layers of one thing each (arXiv:2504.03624, table 1); the state's type is the config's."""
    assert layers_of(NEMOTRON_H_8B, "mixer.A_log") == layers_of(NEMOTRON_H_8B, "mixer.up_proj.weight") == 24
    assert layers_of(NEMOTRON_H_8B, "mixer.q_proj.weight") == 4
    assert held(NEMOTRON_H_8B, 1)["ssm state"] == 24 * 128 * 64 * 128 * 4
    assert held({**NEMOTRON_H_8B, "mamba_ssm_cache_dtype": "bfloat16"}, 1)["ssm state"] == 24 * 128 * 64 * 128 * 2


def test_falcon_h1_has_both_in_every_layer() -> None:
    kept = held(FALCON_H1_7B, 1)
    assert kept["keys"] == 44 * 2 * 128 * 2
    assert kept["ssm state"] == 44 * 24 * 128 * 256 * 4


def test_granite_4_h_small_has_9b_active_of_32b() -> None:
    """IBM's model card: 32B parameters, 9B active; 4 attention layers of 40."""
    tape = traced(GRANITE_H_SMALL)
    assert (round(tape.parameters / 1e9), round(tape.active_parameters / 1e9)) == (32, 9)
    assert held(GRANITE_H_SMALL, 1)["keys"] == 4 * 8 * 128 * 2


def test_lfm2_state_is_two_columns() -> None:
    """LFM2-1.2B: 10 convolution layers keep 2 columns of 2,048; 6 attend; the MLP is two thirds of 12,288."""
    kept = held(LFM2_1_2B, 1)
    assert kept["conv state"] == 10 * 2048 * 2 * 2
    assert kept["keys"] == 6 * 8 * 64 * 2
    assert {weight.shape for weight in traced(LFM2_1_2B).weights if weight.name.endswith("w1.weight")} == {(8192, 2048)}


def test_llama_3_2_vision_caches_its_image_apart() -> None:
    """8 cross-attention layers keep 4 tiles of (560 / 14)² + 1 tokens, and nothing per token of text; the other 32 do."""
    assert held(MLLAMA_11B, 1, tower="vision") == dict.fromkeys(("image keys", "image values"), 8 * 4 * 1601 * 8 * 128 * 2)
    assert held(MLLAMA_11B, 1) == {"keys": 32 * 8 * 128 * 2, "values": 32 * 8 * 128 * 2}


# ---- weights ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("config", "fused", "shape", "copies"),
    [
        pytest.param(
            {"model_type": "qwen3_5_moe"}, "model.language_model.layers.{i}.mlp.experts.gate_up_proj", (2 * 512, 2048), 256, id="qwen3.5"
        ),
        pytest.param(
            QWEN3_VL_30B, "model.language_model.layers.{i}.mlp.experts.gate_up_proj", (2048, 2 * 768), 128, id="qwen3-vl: stored [in, out]"
        ),
        pytest.param(QWEN3_NEXT, "model.layers.{i}.mlp.experts.{e}.gate_proj.weight", (512, 2048), 512, id="qwen3-next: one by one"),
    ],
)
def test_experts_stand_as_the_checkpoint_has_them(config: Mapping[str, object], fused: str, shape: tuple[int, int], copies: int) -> None:
    found = {weight.name: weight for weight in traced(config).weights}
    assert (found[fused].shape, found[fused].copies) == (shape, copies)


@pytest.mark.parametrize(
    ("config", "text", "tower"),
    [
        pytest.param(GEMMA3_27B, "language_model.model.norm.weight", "vision_tower.vision_model.post_layernorm.weight", id="gemma3"),
        pytest.param(QWEN3_VL_30B, "model.language_model.norm.weight", "model.visual.merger.norm.weight", id="qwen3-vl"),
        pytest.param(MLLAMA_11B, "language_model.model.norm.weight", "vision_model.layernorm_post.weight", id="llama-3.2-vision"),
        pytest.param(
            GEMMA3N_E4B,
            "model.language_model.norm.weight",
            "model.vision_tower.timm_model.blocks.2.{i}.attn.key.down_conv.weight",
            id="gemma3n",
        ),
    ],
)
def test_names_are_those_of_the_checkpoint(config: Mapping[str, object], text: str, tower: str) -> None:
    towers = {weight.name: weight.tower for weight in traced(config).weights}
    assert towers[text] is None
    assert towers[tower] == "vision"


def test_a_tower_adds_weights_and_nothing_to_a_pass_over_text() -> None:
    text_config = GEMMA3_27B["text_config"]
    assert isinstance(text_config, dict)
    whole, text = traced(GEMMA3_27B), traced({"model_type": "gemma3_text", **text_config})
    assert whole.parameters - text.parameters == sum(weight.numel for weight in whole.weights if weight.tower) > 400e6
    assert (whole.flops, whole.saved_bytes, whole.peak()[0]) == (text.flops, text.saved_bytes, text.peak()[0])


def test_gemma_3n_has_a_table_of_embeddings_for_each_layer() -> None:
    """E4B: 2.35B of its parameters, 262,144 × 35 · 256, which enter no matrix product."""
    table = next(weight for weight in traced(GEMMA3N_E4B).weights if weight.name.endswith("embed_tokens_per_layer.weight"))
    assert table.numel == 262144 * 35 * 256
    assert table.kind == "embed"


# ---- working sets ------------------------------------------------------------------------------
@pytest.mark.parametrize(("gate_first", "kept"), [(False, 16), (True, 18)])
def test_norms_keep_what_autograd_keeps(gate_first: bool, kept: int) -> None:
    """Per element, as torch 2.13's saved-tensor hooks list it for Qwen3_5RMSNormGated (16 B) and Mamba-2's MambaRMSNormGated (18 B)."""
    tape = Tape(Dim(2), Dim(16))
    x, gate = (tape.tensor(name, (Dim(2), Dim(16), Dim(64))) for name in ("x", "gate"))
    gated_rms_norm(tape, x, gate, "norm", gate_first=gate_first)
    assert tape.saved_bytes == 2 * 16 * (64 * kept + 4)


@pytest.mark.parametrize(("kernel", "kept"), [("upcast", 8), ("fused", 2)])
def test_a_norm_in_fp32_keeps_two_copies_in_fp32(kernel: str, kept: int) -> None:
    """Gemma3RMSNorm keeps x and the normed x in fp32 (8 B an element, 4 B a row), and 1 + w; a fused kernel keeps x itself."""
    tape = Tape(Dim(2), Dim(16), kernels=Kernels(norm=kernel))  # type: ignore[arg-type]
    rms_norm_fp32(tape, tape.tensor("x", (Dim(2), Dim(16), Dim(64))), "norm")
    assert tape.saved_bytes == 2 * 16 * (64 * kept + 4) + (64 * 4 if kernel == "upcast" else 0)


# ---- configs that contradict themselves ----------------------------------------------------------
@pytest.mark.parametrize(
    ("config", "words"),
    [
        pytest.param({**QWEN3_NEXT, "num_attention_heads": 15}, "heads is 15; it must be a multiple of kv_heads", id="heads and kv heads"),
        pytest.param(
            {**QWEN3_NEXT, "linear_num_value_heads": 24}, "value_heads is 24; it must be a multiple of key_heads", id="delta heads"
        ),
        pytest.param({**QWEN3_NEXT, "num_experts_per_tok": 600}, "top_k is 600; it must be at most experts", id="more than all experts"),
        pytest.param({**QWEN3_NEXT, "layer_types": ["full_attention"]}, "names 1 layers, the model has 48", id="too few layer types"),
        pytest.param({**QWEN3_NEXT, "mlp_only_layers": ["first"]}, "'mlp_only_layers' must hold layer numbers", id="a layer's name"),
        pytest.param({**CODESTRAL, "num_heads": 100}, "100 Mamba heads of 64 do not make up the inner width, 8192", id="mamba heads"),
        pytest.param(
            {**JAMBA_MINI, "attn_layer_offset": 8}, "'attn_layer_offset' is 8; it must be below 'attn_layer_period', 8", id="offset"
        ),
        pytest.param({**NEMOTRON_H_8B, "hybrid_override_pattern": "M-X"}, "letters of M\\*-E", id="an unknown letter"),
        pytest.param({**NEMOTRON_H_8B, "num_hidden_layers": 50}, "names 52 layers, the model has 50", id="pattern and number"),
        pytest.param({"model_type": "nemotron_h"}, "'hybrid_override_pattern' is missing", id="no pattern"),
        pytest.param({**LFM2_1_2B, "block_ffn_dim_multiplier": float("nan")}, "'block_ffn_dim_multiplier' is nan", id="not a number"),
        pytest.param(
            {"model_type": "gemma3n", "text_config": {"intermediate_size": [8192] * 3}}, "names 3 layers, the model has 35", id="widths"
        ),
        pytest.param(
            {"model_type": "gemma3n", "text_config": {"num_kv_shared_layers": 35}},
            "'num_kv_shared_layers' is 35; of 35 layers",
            id="all share",
        ),
        pytest.param(
            {"model_type": "gemma4", "text_config": {"per_layer_config": {"99": {}}}}, "'99' is none of the layers", id="no layer"
        ),
        pytest.param(
            {"model_type": "llava", "text_config": {"model_type": "llava"}}, "text_config: 'model_type' is 'llava'", id="a llava in a llava"
        ),
        pytest.param(
            {"model_type": "llava", "vision_config": {"model_type": "eva"}, "text_config": {"hidden_size": 8}},
            "vision_config: 'model_type' is 'eva'; vision towers known here are",
            id="an unknown tower",
        ),
        pytest.param(
            {**GEMMA3_27B, "vision_config": {"image_size": 8, "patch_size": 14}},
            "'patch_size' is 14, greater than 'image_size', 8",
            id="patch",
        ),
        pytest.param(
            {**QWEN3_VL_30B, "vision_config": {"deepstack_visual_indexes": [30]}},
            "holds 30; the tower's layers are 0 to 26",
            id="deepstack",
        ),
    ],
)
def test_contradictions_are_told_in_one_line(config: Mapping[str, object], words: str) -> None:
    with pytest.raises(BadInput, match=words) as caught:
        traced(config)
    assert "\n" not in str(caught.value)
