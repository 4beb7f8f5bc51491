"""Parts of a config, each a function of a GGUF header's facts: what an architecture's config holds beyond a plain decoder's.

`copies`, `there`, `experts` and `sliding` make the common ones; the others belong to one architecture or few. Sources: llama.cpp's
`conversion/*.py`, which write the keys, and `llama_model::load_hparams` in `src/llama-model.cpp`, which reads them and fixes what files
don't say; gguf-py 0.19.0 `gguf/constants.py` for names. Keys of configs are those that families/ read.
"""

from __future__ import annotations

from collections.abc import Callable

from ..errors import BadFile, Unknown
from .gguf_facts import Facts

Part = Callable[[Facts], dict[str, object]]


# ---- makers of parts ---------------------------------------------------------------------------------------------------
def copies(**keys: str) -> Part:
    """Sizes from metadata: config key = metadata key."""
    return lambda f: {key: f.size(source) for key, source in keys.items()}


def there(**keys: str) -> Part:
    """Flags: config key = a block's tensor that is there or not."""
    return lambda f: {key: bool(f.having(tensor)) for key, tensor in keys.items()}


def fixed(**keys: object) -> Part:
    """What the architecture says by its name."""
    return lambda f: keys


def experts(count: str, width: str = "moe_intermediate_size", used: str = "num_experts_per_tok") -> Part:
    """Routed experts under the family's keys. Files from before 2024-04 hold each expert alone, as wide as `feed_forward_length` says."""
    return lambda f: {
        count: f.size("expert_count"),
        used: f.size("expert_used_count"),
        width: f.columns("ffn_down_exps.weight", f.maybe("expert_feed_forward_length") or f.common("feed_forward_length", 0)),
    }


def sliding(period: int, window: int | None = None) -> Part:
    """A sliding window in all layers but each `period`-th, or as the file's pattern says; in none where it gives no window."""

    def part(f: Facts) -> dict[str, object]:
        size = f.maybe("attention.sliding_window") or window
        slides = f.pattern("attention.sliding_window_pattern", period)
        kinds = ["sliding_attention" if s and size else "full_attention" for s in slides]
        return {"sliding_window": size, "layer_types": kinds}

    return part


# ---- parts of one architecture or few ---------------------------------------------------------------------------------------
def llama4(f: Facts) -> dict[str, object]:
    """Chunks of 8192 in three layers of four, unless the file says that there is no window. Dense layers have a width of their own."""
    whole = f.given("attention.sliding_window") and not f.maybe("attention.sliding_window")
    return {
        "intermediate_size_mlp": f.ffn,
        "moe_layers": f.having("ffn_down_exps.weight"),
        "attention_chunk_size": 8192,
        "layer_types": ["full_attention"] * f.layers if whole else None,
    }


def positions(f: Facts) -> dict[str, object]:
    """Learned positions: as many as the table has rows."""
    return {"max_position_embeddings": f.rows("position_embd.weight")}


def head_bias(f: Facts) -> dict[str, object]:
    return {"lm_head_bias": "output.bias" in f.tensors}


def multi_query(f: Facts) -> dict[str, object]:
    return {"multi_query": f.size("attention.head_count_kv") == 1}


def parallel_residual(f: Facts) -> dict[str, object]:
    return {"use_parallel_residual": f.flag("use_parallel_residual", True)}


def stablelm(f: Facts) -> dict[str, object]:
    """Where attention and MLP are parallel they share one norm."""
    return {
        "use_qkv_bias": bool(f.having("attn_q.bias")),
        "qk_layernorm": bool(f.having("attn_q_norm.weight")),
        "use_parallel_residual": not f.having("ffn_norm.weight"),
    }


def mixtral(f: Facts) -> dict[str, object]:
    """Mixtral is llama with experts."""
    if not f.maybe("expert_count"):
        return {}
    return {"model_type": "mixtral", **experts("num_local_experts", "intermediate_size")(f)}


def shared_experts(f: Facts) -> dict[str, object]:
    """How many experts' widths the shared expert has, and how many dense layers come first."""
    width = f.columns("ffn_down_exps.weight")
    return {"n_shared_experts": f.rows("ffn_up_shexp.weight", 0) // width, "first_k_dense_replace": f.first("ffn_down_exps.weight")}


def shared_expert(f: Facts) -> dict[str, object]:
    return {"shared_expert_intermediate_size": f.rows("ffn_up_shexp.weight")}


def delta(f: Facts) -> dict[str, object]:
    """Qwen's gated delta nets: the layers without a query projection."""
    value_heads, attends = f.size("ssm.time_step_rank"), set(f.having("attn_q.weight"))
    return {
        "layer_types": ["full_attention" if i in attends else "linear_attention" for i in range(f.layers)],
        "linear_conv_kernel_dim": f.size("ssm.conv_kernel"),
        "linear_key_head_dim": f.size("ssm.state_size"),
        "linear_num_key_heads": f.size("ssm.group_count"),
        "linear_num_value_heads": value_heads,
        "linear_value_head_dim": f.size("ssm.inner_size") // value_heads,
    }


def latent(f: Facts) -> dict[str, object]:
    """Multi-head latent attention, whose keys and values llama.cpp describes as those of one wide head."""
    if not f.given("attention.key_length_mla"):
        raise Unknown(
            f"{f.name}: made before llama.cpp kept the latents of MLA (attention.key_length_mla is missing), so that it caches keys and "
            "values of all heads, which is not estimated; take a file converted since May 2025"
        )
    rope = f.size("rope.dimension_count")
    return {
        "num_key_value_heads": f.size("attention.head_count"),
        "head_dim": None,
        "q_lora_rank": f.maybe("attention.q_lora_rank"),
        "kv_lora_rank": f.size("attention.kv_lora_rank"),
        "qk_rope_head_dim": rope,
        "qk_nope_head_dim": f.size("attention.key_length_mla") - rope,
        "v_head_dim": f.size("attention.value_length_mla"),
    }


def indexer(f: Facts) -> dict[str, object]:
    """DeepSeek sparse attention; layers without an indexer share the choice of one before."""
    own = set(f.having("indexer.attn_k.weight"))
    return {
        "index_n_heads": f.size("attention.indexer.head_count"),
        "index_head_dim": f.size("attention.indexer.key_length"),
        "index_topk": f.size("attention.indexer.top_k"),
        "indexer_types": ["full" if i in own else "shared" for i in range(f.layers)],
    }


def deepseek2(f: Facts) -> dict[str, object]:
    """DeepSeek-V2, or V3 (Kimi K2, GLM-4.7-Flash) where the router has a correction bias, or Youtu, which has no experts."""
    if not f.having("ffn_down_exps.weight"):
        return {"model_type": "youtu"}
    model_type = "deepseek_v3" if f.having("exp_probs_b.bias") else "deepseek_v2"
    return {"model_type": model_type, **experts("n_routed_experts")(f), **shared_experts(f)}


def falcon(f: Facts) -> dict[str, object]:
    """40B and 180B have several key-value heads and two norms, 11B several and one norm, 7B one and one."""
    kv_heads, two_norms = f.size("attention.head_count_kv"), bool(f.having("attn_norm_2.weight"))
    return {
        "new_decoder_architecture": two_norms or kv_heads > 1,
        "num_kv_heads": kv_heads,
        "num_ln_in_parallel_attn": 2 if two_norms else 1,
        "bias": bool(f.having("attn_qkv.bias")),
    }


def dbrx(f: Facts) -> dict[str, object]:
    return {
        "d_model": f.size("embedding_length"),
        "n_heads": f.size("attention.head_count"),
        "n_layers": f.layers,
        "attn_config": {"kv_n_heads": f.size("attention.head_count_kv")},
        "ffn_config": experts("moe_num_experts", "ffn_hidden_size", "moe_top_k")(f),
    }


def ernie_moe(f: Facts) -> dict[str, object]:
    return {
        "use_bias": bool(f.having("attn_q.bias")),
        "moe_num_shared_experts": f.rows("ffn_up_shexp.weight", 0) // f.columns("ffn_down_exps.weight"),
        "moe_layer_start_index": f.first("ffn_down_exps.weight"),
        "moe_layer_interval": f.size("interleave_moe_layer_step", 1),
    }


def hunyuan_moe(f: Facts) -> dict[str, object]:
    return {"num_shared_expert": f.rows("ffn_up_shexp.weight") // f.columns("ffn_down_exps.weight")}


def granite_moe(f: Facts) -> dict[str, object]:
    """With a shared expert it is a Granite 4 that has attention only."""
    if not f.having("ffn_up_shexp.weight"):
        return {}
    return {
        "model_type": "granitemoehybrid",
        "shared_intermediate_size": f.rows("ffn_up_shexp.weight"),
        "layer_types": ["attention"] * f.layers,
        "position_embedding_type": "rope",
    }


def granite_hybrid(f: Facts) -> dict[str, object]:
    """The shared MLP is called a plain one where there are no experts; attention has no positions but in Bamba."""
    routed = bool(f.having("ffn_down_exps.weight"))
    return {
        **(experts("num_local_experts", "intermediate_size")(f) if routed else {"num_local_experts": 0}),
        "shared_intermediate_size": f.rows("ffn_up_shexp.weight" if routed else "ffn_up.weight"),
        "layer_types": recurrent(f, "mamba", "attention"),
        "mamba_expand": f.size("ssm.inner_size") // f.size("embedding_length"),
    }


def recurrent(f: Facts, state: str, attention: str) -> list[str]:
    """The kind of each layer: those without key-value heads keep a state."""
    return [attention if kv else state for kv in f.per_layer("attention.head_count_kv")]


def grouped_mamba2(f: Facts) -> dict[str, object]:
    """Mamba-2 under the keys of Falcon-H1 and Granite 4."""
    inner, heads = f.size("ssm.inner_size"), f.size("ssm.time_step_rank")
    return {
        "mamba_d_ssm": inner,
        "mamba_n_heads": heads,
        "mamba_d_head": inner // heads,
        "mamba_n_groups": f.size("ssm.group_count"),
        "mamba_d_state": f.size("ssm.state_size"),
        "mamba_d_conv": f.size("ssm.conv_kernel"),
        "mamba_conv_bias": bool(f.having("ssm_conv1d.bias")),
        "mamba_rms_norm": bool(f.having("ssm_norm.weight")),
    }


def mamba(f: Facts) -> dict[str, object]:
    return {
        "expand": f.size("ssm.inner_size") // f.size("embedding_length"),
        "state_size": f.size("ssm.state_size"),
        "conv_kernel": f.size("ssm.conv_kernel"),
        "use_conv_bias": bool(f.having("ssm_conv1d.bias")),
    }


def mamba2(f: Facts) -> dict[str, object]:
    heads = f.size("ssm.time_step_rank")
    return {"num_heads": heads, "head_dim": f.size("ssm.inner_size") // heads, "n_groups": f.size("ssm.group_count")}


def jamba(f: Facts) -> dict[str, object]:
    """Attention and experts come back periodically; without experts Jamba calls its MLP the one expert."""
    attends = [i for i, kv in enumerate(f.per_layer("attention.head_count_kv")) if kv]
    routed = f.having("ffn_down_exps.weight")
    return {
        **periodic(f, "attn_layer", attends),
        **periodic(f, "expert_layer", routed or [0]),
        "num_experts": f.size("expert_count") if routed else 1,
        "num_experts_per_tok": f.size("expert_used_count") if routed else 1,
        "intermediate_size": f.columns("ffn_down_exps.weight") if routed else f.columns("ffn_down.weight"),
        "mamba_d_state": f.size("ssm.state_size"),
        "mamba_d_conv": f.size("ssm.conv_kernel"),
        "mamba_dt_rank": f.size("ssm.time_step_rank"),
        "mamba_expand": f.size("ssm.inner_size") // f.size("embedding_length"),
        "mamba_conv_bias": bool(f.having("ssm_conv1d.bias")),
    }


def periodic(f: Facts, name: str, layers: list[int]) -> dict[str, object]:
    """Period and offset of evenly spaced `layers`."""
    period = layers[1] - layers[0] if len(layers) > 1 else f.layers
    if not layers or layers != list(range(layers[0], f.layers, period)):
        raise BadFile(f"{f.name}: {name}s of {f.arch} must be evenly spaced; they are {str(layers)[:80]}")
    return {f"{name}_period": period, f"{name}_offset": layers[0]}


def nemotron_h(f: Facts) -> dict[str, object]:
    """Each layer is one thing, told by the tensor that only it has."""
    tensors = {"ssm_in.weight": "mamba", "attn_q.weight": "attention", "ffn_down_exps.weight": "moe", "ffn_down.weight": "mlp"}
    kinds = {layer: kind for tensor, kind in tensors.items() for layer in f.having(tensor)}
    if len(kinds) < f.layers:
        raise BadFile(f"{f.name}: {f.layers - len(kinds)} of its {f.layers} layers are neither Mamba, attention, experts nor MLP")
    inner, heads = f.size("ssm.inner_size"), f.size("ssm.time_step_rank")
    config: dict[str, object] = {
        "layers_block_type": [kinds[i] for i in range(f.layers)],
        "mamba_num_heads": heads,
        "mamba_head_dim": inner // heads,
        "n_groups": f.size("ssm.group_count"),
        "ssm_state_size": f.size("ssm.state_size"),
        "conv_kernel": f.size("ssm.conv_kernel"),
        "use_conv_bias": bool(f.having("ssm_conv1d.bias")),
    }
    if "moe" in kinds.values():
        inside = f.rows("ffn_down_exps.weight")
        config |= experts("n_routed_experts")(f)
        config |= {"moe_shared_expert_intermediate_size": f.rows("ffn_up_shexp.weight")}
        config |= {"moe_latent_size": None if inside == f.size("embedding_length") else inside}
    return config


def lfm2(f: Facts) -> dict[str, object]:
    return {
        "layer_types": recurrent(f, "conv", "full_attention"),
        "conv_L_cache": f.size("shortconv.l_cache"),
        "block_auto_adjust_ff_dim": False,
    }


def lfm2_moe(f: Facts) -> dict[str, object]:
    return {"num_dense_layers": f.first("ffn_down_exps.weight"), "use_expert_bias": bool(f.having("exp_probs_b.bias"))}


def deci(f: Facts) -> dict[str, object]:
    """Each layer has its own key-value heads and MLP width, or lacks attention, has a linear in its place, or lacks the MLP."""
    heads, kv, ffn = (f.per_layer(key) for key in ("attention.head_count", "attention.head_count_kv", "feed_forward_length"))
    hidden = f.size("embedding_length")
    blocks = [
        {
            "attention": {"no_op": not h, "replace_with_linear": h > 0 and not k, "n_heads_in_group": h // k if k else None},
            "ffn": {"no_op": not width, "ffn_mult": 1.5 * width / hidden},  # of which the family takes 2/3
        }
        for h, k, width in zip(heads, kv, ffn, strict=True)
    ]
    return {"block_configs": blocks, "num_key_value_heads": None if max(kv) == 0 else max(kv)}


def olmo3(f: Facts) -> dict[str, object]:
    """OLMo 3 is olmo2 with a window."""
    return {"model_type": "olmo3" if f.maybe("attention.sliding_window") else "olmo2", **sliding(4)(f)}


def exaone4(f: Facts) -> dict[str, object]:
    """llama.cpp gives the 32B, which it tells by its 64 layers, a window of 4096 where the file has none."""
    return sliding(4, 4096 if f.layers == 64 else None)(f)


def mimo2(f: Facts) -> dict[str, object]:
    """Sliding layers have key-value heads of their own number. The window does not count the token itself."""
    slides, sparse = f.pattern("attention.sliding_window_pattern", 6), set(f.having("ffn_down_exps.weight"))
    return {
        "hybrid_layer_pattern": [int(s) for s in slides],
        "moe_layer_freq": [int(i in sparse) for i in range(f.layers)],
        "num_key_value_heads": kv_heads(f, slides, False),
        "swa_num_key_value_heads": kv_heads(f, slides, True),
        "v_head_dim": f.size("attention.value_length"),
        "sliding_window_size": f.size("attention.sliding_window"),
    }


def kv_heads(f: Facts, slides: list[bool], sliding: bool) -> int | None:
    """Key-value heads of the layers that slide, or of those that don't; None where there are none. BadFile where they differ."""
    found = {kv for kv, s in zip(f.per_layer("attention.head_count_kv"), slides, strict=True) if s == sliding}
    if len(found) > 1:
        raise BadFile(f"{f.name}: attention.head_count_kv of {f.arch} differs among layers of one kind")
    return found.pop() if found else None


def gemma3n(f: Facts) -> dict[str, object]:
    return {
        **per_layer_embeddings(f),
        "altup_num_inputs": f.size("altup.num_inputs"),
        "laurel_rank": f.rows("laurel_l.weight"),
    }


def gemma4(f: Facts) -> dict[str, object]:
    """Full layers have wider heads, of their own number, and in the larger models no values of their own; layers that share keys and
    values may have MLPs of twice the width."""
    slides = f.pattern("attention.sliding_window_pattern", 6)
    full = {i for i, s in enumerate(slides) if not s}
    routed = bool(f.having("ffn_down_exps.weight"))
    return {
        **(experts("num_experts", used="top_k_experts")(f) if routed else {}),
        **(per_layer_embeddings(f) if f.maybe("embedding_length_per_layer_input") else {"hidden_size_per_layer_input": 0}),
        "enable_moe_block": routed,
        "num_kv_shared_layers": f.maybe("attention.shared_kv_layers") or 0,
        "use_double_wide_mlp": len(set(f.per_layer("feed_forward_length"))) > 1,
        "head_dim": f.size("attention.key_length_swa"),
        "global_head_dim": f.size("attention.key_length"),
        "num_key_value_heads": kv_heads(f, slides, True),
        "num_global_key_value_heads": kv_heads(f, slides, False),
        "attention_k_eq_v": bool(full) and not full & set(f.having("attn_v.weight")),
    }


def per_layer_embeddings(f: Facts) -> dict[str, object]:
    """Gemma 3n's and 4's small embeddings for each layer, and how many of the last layers share keys and values."""
    return {
        "hidden_size_per_layer_input": f.size("embedding_length_per_layer_input"),
        "vocab_size_per_layer_input": f.rows("per_layer_token_embd.weight"),
        "num_kv_shared_layers": f.size("attention.shared_kv_layers", least=0),
    }


def bert(f: Facts) -> dict[str, object]:
    """BERT, RoBERTa and their like, or DistilBERT, which has no token types; without pooler and head, which llama.cpp does not run."""
    types = f.rows("token_types.weight", 0)
    return {"model_type": "bert" if types else "distilbert", "type_vocab_size": types or None, **positions(f)}


def t5(f: Facts) -> dict[str, object]:
    return {
        "d_kv": f.size("attention.key_length"),
        "num_decoder_layers": f.size("decoder_block_count", f.layers),
        "relative_attention_num_buckets": f.size("attention.relative_buckets_count"),
        "feed_forward_proj": "gated-gelu" if f.having("ffn_gate.weight") else "relu",
    }
