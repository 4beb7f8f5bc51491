"""GGUF headers as llama.cpp's converter would write them, made of a Hugging Face config: an independent way back for gguf_config.

Tensor names come from gguf-py's own maps of Hugging Face names; what the converter renames, splits or stacks before is listed here, as are
the metadata keys that it writes (conversion/*.py of llama.cpp).
"""

import re
from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import Any

import gguf

from vramplan.catalog.models import find_model
from vramplan.dim import Dim
from vramplan.families import walk
from vramplan.sources.gguf import ArrayLength
from vramplan.sources.stored import Header, StoredTensor
from vramplan.tape import Tape
from vramplan.tensors import Weight

Config = Mapping[str, Any]
ARCHS = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}


def language_model(model: str) -> dict[str, Any]:
    """The catalogue's config of `model`, of its language model where it has a tower too."""
    config: dict[str, Any] = dict(find_model(model).config)
    if "text_config" in config:
        tied = {key: value for key, value in config.items() if key == "tie_word_embeddings"}
        config = {**config["text_config"], **tied}
    return {key: value for key, value in config.items() if key not in ("architectures", "quantization_config")}


def tape_of(config: Mapping[str, object]) -> Tape:
    return walk(Tape(Dim(1, "sequences"), Dim(1, "tokens")), config)


def header_of(arch: str, config: Config, *, extra_blocks: int = 0) -> Header:
    """The header of `config` (of a language model) as architecture `arch`, with `extra_blocks` for multi-token prediction at the end."""
    config = {**DEFAULTS.get(config["model_type"], {}), **config}
    tape = tape_of(config)
    layers = 1 + max(i for w in tape.weights for i in w.layers or (0,))
    names = gguf.get_tensor_name_map(ARCHS[arch], layers)
    shapes = dict(tensor for w in tape.weights for tensor in tensors_of(w, names, config))
    for i in range(layers, layers + extra_blocks):
        shapes[f"blk.{i}.nextn.eh_proj.weight"] = (64, 128)
        shapes[f"blk.{i}.attn_q.bias"] = (64,)
    metadata: dict[str, object] = {"general.architecture": arch, "tokenizer.ggml.tokens": ArrayLength(1)}
    metadata |= {f"{arch}.{key}": frozen(value) for key, value in metadata_of(arch, config, layers).items() if value is not None}
    if extra_blocks:
        metadata[f"{arch}.block_count"] = layers + extra_blocks
        metadata[f"{arch}.nextn_predict_layers"] = extra_blocks
    return Header(tuple(StoredTensor(name, "F32", shape, 4 * prod(shape)) for name, shape in shapes.items()), metadata)


def frozen(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


# ---- tensors ---------------------------------------------------------------------------------------------------------------------
RENAMED: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"e_score_correction_bias$", "e_score_correction.bias"),
    (r"(feed_forward\.expert_bias)$", r"\1.bias"),
    (r"mixer\.dt_bias$|mamba\.dt_bias$|linear_attn\.dt_bias$", lambda m: m[0].replace("dt_bias", "dt_proj.bias")),
    (r"(attention_sink_bias|self_attn\.sinks)$", r"\1.weight"),
    (r"model\.layers\.(\d+)\.(?:block_sparse_moe|feed_forward)\.experts\.(w\d)", r"layers.\1.feed_forward.experts.\2"),
    (r"(?:feed_forward|mixer)\.experts\.(\w+_proj)", r"mlp.experts.\1"),
    (r"^backbone(\.layers\.\d+\.mlp\.experts)", r"model\1"),
    (r"_proj_bias$", "_proj.bias"),
    (r"(experts\.(?:down|gate|up|gate_up)_proj|layer_scalar|experts\.mlp\.\w\d)$", r"\1.weight"),
    (r"^transformer\.(word_embeddings_layernorm|h\.\d+\.post_attention_layernorm)", r"\1"),
    (r"(q|k)_layernorm\.norms", r"\1_layernorm"),
]
"""What conversion/*.py does to a Hugging Face name before it looks it up."""

TRANSPOSED = ("gpt_oss", "llama4_text", "qwen3_vl_moe")
"""Families whose checkpoints store experts as [in, out]; GPT-2's linears are so too."""

DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma4_text": {"global_head_dim": 512},
    "cohere2": {"sliding_window": 4096},
    "exaone4": {"sliding_window": 4096},
    "gpt_oss": {"sliding_window": 128},
    "olmo3": {"sliding_window": 4096},
    "modernbert": {"local_attention": 128, "global_attn_every_n_layers": 3},
    "t5": {"relative_attention_num_buckets": 32},
    "jamba": {"num_experts": 16, "num_experts_per_tok": 2, "num_key_value_heads": 8},
    "deepseek_v2": {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128, "first_k_dense_replace": 0},
    "deepseek_v3": {
        "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128, "q_lora_rank": 1536,
        "n_routed_experts": 256, "num_experts_per_tok": 8,
    },
    "glm4_moe_lite": {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 192, "v_head_dim": 256, "q_lora_rank": 768},
    "mamba2": {"num_heads": 128, "head_dim": 64, "n_groups": 8, "state_size": 128},
    "youtu": {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128, "q_lora_rank": 1536},
}  # fmt: skip
"""What configs leave out: defaults of transformers' configuration classes, 5.23."""


def tensors_of(w: Weight, names: gguf.TensorNameMap, c: Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors of the file that hold `w`: one for each layer, all experts in one, fused ones split."""
    if ".act_fn." in w.name or w.name.startswith("pooler."):  # Apertus's xIELU constants are metadata; BERT's pooler is not run
        return
    shape = tuple(int(size) for size in (*((w.copies,) if "{e}" in w.name or w.copies > 1 else ()), *w.shape))
    if c["model_type"] in TRANSPOSED and "experts" in w.name and not w.name.endswith("bias"):
        shape = (shape[0], shape[2], shape[1])
    if c["model_type"] == "gpt2" and w.kind == "linear":
        shape = tuple(reversed(shape))
    for layer in w.layers or (0,):
        name = w.name.replace(".{e}", "").replace("{i}", str(layer))
        for part, part_shape in parts_of(name, shape, c):
            for pattern, new in RENAMED:
                part = re.sub(pattern, new, part)
            found = names.get_name(part, try_suffixes=(".weight", ".bias", ".scale"))
            assert found, f"gguf-py has no name for {part}"
            yield found, part_shape


def parts_of(name: str, shape: tuple[int, ...], c: Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    """`name` itself, or what the converter splits it into."""
    front = name.rpartition(".")[0]
    block = f"blk.{m[1]}" if (m := re.search(r"\.(\d+)\.", name)) else ""
    if m := re.fullmatch(r".*router\.(scale|per_expert_scale)", name):
        yield f"{block}.ffn_{'gate_inp' if m[1] == 'scale' else 'down_exps'}.scale", shape
    elif "experts.gate_up_proj" in name and c["model_type"] != "gemma4_text":
        for part in ("gate_proj", "up_proj"):
            yield name.replace("gate_up_proj", part), (shape[0], shape[1] // 2, *shape[2:])
    elif front.endswith("input_linear"):
        kind = "_exps" if "block_sparse" in front else "_shexp" if c["num_local_experts"] else ""
        for part in ("gate", "up"):
            yield f"{block}.ffn_{part}{kind}.weight", (*shape[:-2], shape[-2] // 2, shape[-1])
    elif front.endswith("shared_mlp.output_linear") and not c["num_local_experts"]:
        yield f"{block}.ffn_down.weight", shape
    elif m := re.fullmatch(r"(model\.altup_(?:unembed_)?projections)\.(\d)\.weight", name):
        if m[2] == "0":
            yield f"{m[1]}.weight", (c["altup_num_inputs"] - 1, *shape)
    elif front.endswith("in_proj_qkvz"):
        yield f"{block}.attn_qkv.weight", (shape[0] // 3 * 2, shape[1])
        yield f"{block}.attn_gate.weight", (shape[0] // 3, shape[1])
    elif front.endswith("kv_b_proj"):
        for part in ("k", "v"):
            yield f"{block}.attn_{part}_b.weight", (shape[0] // 2, shape[1])
    else:
        yield name, shape


# ---- metadata ----------------------------------------------------------------------------------------------------------------------
def metadata_of(arch: str, c: Config, layers: int) -> dict[str, Any]:
    """`TextModel.set_gguf_parameters` of conversion/base.py, then the architecture's own."""

    def first(*keys: str) -> Any:
        return next((c[key] for key in keys if c.get(key) is not None), None)

    common = {
        "block_count": layers,
        "context_length": first("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"),
        "embedding_length": first("hidden_size", "n_embd", "d_model"),
        "feed_forward_length": first("intermediate_size", "n_inner", "d_ff"),
        "attention.head_count": first("num_attention_heads", "n_head", "n_heads", "num_heads"),
        "attention.head_count_kv": first("num_key_value_heads"),
        "attention.key_length": first("head_dim"),
        "attention.value_length": first("head_dim"),
        "expert_count": first("num_local_experts", "num_experts", "n_routed_experts"),
        "expert_used_count": first("num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts"),
    }
    own = OWN.get(arch)
    return {**common, **(own(c, layers) if own else {})}


def window(c: Config, n: int) -> dict[str, Any]:
    return {"attention.sliding_window": c.get("sliding_window")}


def mla(c: Config, n: int) -> dict[str, Any]:
    return {
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": c.get("q_lora_rank"),
        "attention.kv_lora_rank": c["kv_lora_rank"],
        "attention.key_length": c["kv_lora_rank"] + c["qk_rope_head_dim"],
        "attention.value_length": c["kv_lora_rank"],
        "attention.key_length_mla": c["qk_nope_head_dim"] + c["qk_rope_head_dim"],
        "attention.value_length_mla": c["v_head_dim"],
        "rope.dimension_count": c["qk_rope_head_dim"],
        "leading_dense_block_count": c.get("first_k_dense_replace"),
        "expert_feed_forward_length": c.get("moe_intermediate_size"),
        "expert_shared_count": c.get("n_shared_experts"),
    }


def dsa(c: Config, n: int) -> dict[str, Any]:
    keys = {"head_count": "index_n_heads", "key_length": "index_head_dim", "top_k": "index_topk"}
    return {**mla(c, n), **{f"attention.indexer.{key}": c[name] for key, name in keys.items()}}


def delta(c: Config, n: int) -> dict[str, Any]:
    return {
        "ssm.conv_kernel": c.get("linear_conv_kernel_dim", 4),
        "ssm.state_size": c.get("linear_key_head_dim", 128),
        "ssm.group_count": c.get("linear_num_key_heads", 16),
        "ssm.time_step_rank": c.get("linear_num_value_heads", 32),
        "ssm.inner_size": c.get("linear_value_head_dim", 128) * c.get("linear_num_value_heads", 32),
        "full_attention_interval": c.get("full_attention_interval", 4),
        "expert_feed_forward_length": c.get("moe_intermediate_size"),
        "expert_shared_feed_forward_length": c.get("shared_expert_intermediate_size"),
    }


def mamba2(heads: str, dim: str, groups: str, state: str, kernel: str) -> Callable[[Config], dict[str, Any]]:
    def keys(c: Config) -> dict[str, Any]:
        return {
            "ssm.conv_kernel": c.get(kernel, 4),
            "ssm.inner_size": c[heads] * c[dim],
            "ssm.state_size": c[state],
            "ssm.time_step_rank": c[heads],
            "ssm.group_count": c.get(groups, 1),
        }

    return keys


GROUPED = mamba2("mamba_n_heads", "mamba_d_head", "mamba_n_groups", "mamba_d_state", "mamba_d_conv")


def mamba(c: Config, n: int) -> dict[str, Any]:
    hidden = c["hidden_size"]
    return {
        "context_length": 2**20, "feed_forward_length": 0, "attention.head_count": 0, "attention.head_count_kv": None,
        "attention.key_length": None, "attention.value_length": None,
        "ssm.conv_kernel": c.get("conv_kernel", 4), "ssm.inner_size": 2 * hidden, "ssm.state_size": c.get("state_size", 16),
        "ssm.time_step_rank": c.get("time_step_rank", -(-hidden // 16)),
    }  # fmt: skip


def mamba_2(c: Config, n: int) -> dict[str, Any]:
    return {**mamba(c, n), **mamba2("num_heads", "head_dim", "n_groups", "state_size", "conv_kernel")(c)}


def jamba(c: Config, n: int) -> dict[str, Any]:
    period, offset = c.get("attn_layer_period", 8), c.get("attn_layer_offset", 4)
    return {
        "attention.head_count_kv": [c.get("num_key_value_heads", 8) if i % period == offset else 0 for i in range(n)],
        "ssm.conv_kernel": c.get("mamba_d_conv", 4),
        "ssm.inner_size": c.get("mamba_expand", 2) * c["hidden_size"],
        "ssm.state_size": c.get("mamba_d_state", 16),
        "ssm.time_step_rank": c["mamba_dt_rank"],
    }


def nemotron_h(c: Config, n: int) -> dict[str, Any]:
    letters = {"mamba": "M", "attention": "*", "mlp": "-", "moe": "E"}
    pattern = c.get("hybrid_override_pattern") or "".join(letters[kind] for kind in c["layers_block_type"])
    ffn = c["moe_intermediate_size"] if "E" in pattern else c["intermediate_size"]
    return {
        "attention.head_count_kv": [c["num_key_value_heads"] if kind == "*" else 0 for kind in pattern],
        "feed_forward_length": [ffn if kind in "-E" else 0 for kind in pattern],
        **mamba2("mamba_num_heads", "mamba_head_dim", "n_groups", "ssm_state_size", "conv_kernel")(c),
    }


def granite_hybrid(c: Config, n: int) -> dict[str, Any]:
    kinds = c["layer_types"]
    return {"attention.head_count_kv": [c["num_key_value_heads"] if kind == "attention" else 0 for kind in kinds], **GROUPED(c)}


def lfm2(c: Config, n: int) -> dict[str, Any]:
    kinds = c.get("layer_types") or ["full_attention" if i in c["full_attn_idxs"] else "conv" for i in range(n)]
    return {
        "attention.head_count_kv": [c["num_key_value_heads"] if kind == "full_attention" else 0 for kind in kinds],
        "shortconv.l_cache": c.get("conv_L_cache", 3),
    }


def deci(c: Config, n: int) -> dict[str, Any]:
    heads, hidden, blocks = c["num_attention_heads"], c["hidden_size"], c["block_configs"]
    widths = [0 if b["ffn"].get("no_op") else -(-int(2 * b["ffn"]["ffn_mult"] * hidden / 3) // 256) * 256 for b in blocks]
    groups = [b["attention"].get("n_heads_in_group") or 0 for b in blocks]
    return {
        "attention.head_count": [0 if b["attention"].get("no_op") else heads for b in blocks],
        "attention.head_count_kv": [heads // g if g else 0 for g in groups],
        "feed_forward_length": widths,
    }


def mimo2(c: Config, n: int) -> dict[str, Any]:
    kv = (c["num_key_value_heads"], c["swa_num_key_value_heads"])
    return {
        **window(c, n),
        "attention.sliding_window_pattern": c["hybrid_layer_pattern"],
        "attention.head_count_kv": [kv[slides] for slides in c["hybrid_layer_pattern"]],
        "attention.value_length": c["v_head_dim"],
    }


def gemma3n(c: Config, n: int) -> dict[str, Any]:
    return {
        **window(c, n),
        "attention.sliding_window_pattern": [kind == "sliding_attention" for kind in c["layer_types"]],
        "attention.shared_kv_layers": c["num_kv_shared_layers"],
        "embedding_length_per_layer_input": c["hidden_size_per_layer_input"],
        "altup.num_inputs": c.get("altup_num_inputs"),
    }


def gemma4(c: Config, n: int) -> dict[str, Any]:
    slides = [kind == "sliding_attention" for kind in c["layer_types"]]
    kv, first_shared = (
        (c.get("num_global_key_value_heads") or c["num_key_value_heads"], c["num_key_value_heads"]),
        n - c["num_kv_shared_layers"],
    )
    wide = c.get("use_double_wide_mlp", False)
    return {
        **gemma3n(c, n),
        "attention.key_length": c["global_head_dim"],
        "attention.value_length": c["global_head_dim"],
        "attention.key_length_swa": c["head_dim"],
        "attention.value_length_swa": c["head_dim"],
        "attention.head_count_kv": [kv[s] for s in slides],
        "feed_forward_length": [c["intermediate_size"] * (2 if wide and i >= first_shared else 1) for i in range(n)],
    }


def t5(c: Config, n: int) -> dict[str, Any]:
    return {
        "block_count": c["num_layers"],
        "decoder_block_count": c.get("num_decoder_layers"),
        "attention.key_length": c["d_kv"],
        "attention.relative_buckets_count": c["relative_attention_num_buckets"],
    }


OWN: dict[str, Callable[[Config, int], dict[str, Any]]] = {
    "gemma2": window,
    "gemma3": window,
    "gemma-embedding": window,
    "gemma3n": gemma3n,
    "gemma4": gemma4,
    "llama4": lambda c, n: {"feed_forward_length": c["intermediate_size_mlp"]},
    "phi3": window,
    "cohere2": window,
    "exaone4": window,
    "gpt-oss": window,
    "olmo2": window,
    "falcon": lambda c, n: {"attention.head_count_kv": c.get("num_kv_heads", 1) if c.get("new_decoder_architecture") else 1},
    "starcoder": lambda c, n: {"attention.head_count_kv": 1},
    "gptneox": lambda c, n: {"use_parallel_residual": c.get("use_parallel_residual", True)},
    "dbrx": lambda c, n: {
        "attention.head_count_kv": c["attn_config"]["kv_n_heads"],
        "feed_forward_length": c["ffn_config"]["ffn_hidden_size"],
        "expert_count": c["ffn_config"]["moe_num_experts"],
        "expert_used_count": c["ffn_config"]["moe_top_k"],
    },
    "deepseek2": mla,
    "glm-dsa": dsa,
    "ernie4_5-moe": lambda c, n: {"expert_count": c["moe_num_experts"], "interleave_moe_layer_step": c.get("moe_layer_interval", 1)},
    "modern-bert": lambda c, n: {"attention.sliding_window": c["local_attention"]},
    "qwen3next": delta,
    "qwen35": delta,
    "qwen35moe": delta,
    "mamba": mamba,
    "mamba2": mamba_2,
    "falcon-h1": lambda c, n: GROUPED(c),
    "granitehybrid": granite_hybrid,
    "jamba": jamba,
    "nemotron_h": nemotron_h,
    "nemotron_h_moe": nemotron_h,
    "lfm2": lfm2,
    "lfm2moe": lfm2,
    "deci": deci,
    "mimo2": mimo2,
    "t5": t5,
}
"""What conversion/*.py writes for one architecture, over the common keys."""
