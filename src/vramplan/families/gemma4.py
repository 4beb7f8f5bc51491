"""Gemma 4: Gemma 3's alternation of sliding and full attention, with heads twice as wide where attention is full.

Unusual: full layers have `global_head_dim` 512 and their own number of kv heads, and in the larger models no value projection
(`attention_k_eq_v`: values are the keys before their norm and rotation; both are cached; where all three are `joined` in one, as Megatron
does, it makes values too that nobody reads). The small ones have per-layer embeddings and KV
sharing (per_layer.py), with MLPs twice as wide in the sharing layers; 26B-A4B has routed experts *beside* the MLP. Each layer ends in a
scalar that is a buffer. Vision by a ViT of its own, sound by a conformer (gemma_audio.py); "unified" models have no towers, only embedders
of raw patches and waveforms. Defaults: transformers 5.23 `models/gemma4`, `models/gemma4_unified`.
"""

from __future__ import annotations

from ..dim import Dim
from ..errors import BadInput
from ..ops import activation, add, attention, embed, experts, head, layer_norm, linear, multiply, rope, route
from ..ops.norm_fp32 import rms_norm_fp32
from ..ops.scale import scale, softcap
from ..tape import Tape
from ..tensors import Tensor
from .blocks import cache_kv, gated_mlp
from .checks import at_most, few, multiple
from .config import Config, groups
from .gemma_audio import gemma4_audio, projection
from .per_layer import FULL, attention_kinds, per_layer_gate, per_layer_inputs, shared_layers

MODEL_TYPES = ("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text")


def forward(t: Tape, c: Config) -> None:
    kind, tied = c.text("model_type"), c.flag("tie_word_embeddings", True)
    unified = kind.startswith("gemma4_unified")
    if kind.endswith("_text"):
        decoder(t, c, "model", unified, tied=tied)
        return
    text = c.sub("text_config")
    hidden = text.size("hidden_size", 2304, label="hidden")
    if c.has("vision_config"):
        with t.tower("vision"), t.module("model"):
            x = (raw_patches if unified else vision)(t, c.sub("vision_config"))
            embedder(t, x, "embed_vision", hidden)
    if c.has("audio_config"):
        with t.tower("audio"), t.module("model"):
            embedder(t, waveform(t, c.sub("audio_config")) if unified else gemma4_audio(t, c.sub("audio_config")), "embed_audio", hidden)
    decoder(t, text, "model.language_model", unified, tied=tied)


def embedder(t: Tape, x: Tensor, module: str, hidden: Dim) -> None:
    """Soft tokens into the text model's width, behind a norm without a weight."""
    with t.module(module, x):
        linear(t, rms_norm_fp32(t, x, "embedding_pre_projection_norm", weight=False), "embedding_projection", hidden)


def decoder(t: Tape, c: Config, module: str, unified: bool, *, tied: bool) -> None:
    """The text model and its head."""
    hidden, vocab = c.size("hidden_size", 2304, label="hidden"), c.size("vocab_size", 262144, label="vocab")
    n, ffn = c.layers(default=30), c.size("intermediate_size", 9216, label="ffn")
    kinds = attention_kinds(c, n, 6)
    kinds[-1] = FULL
    own = n - shared_layers(c, kinds, 0)
    wide, sparse = c.flag("use_double_wide_mlp"), c.flag("enable_moe_block")
    per_layer = c.size("hidden_size_per_layer_input", 0 if unified else 256, label="per_layer", least=0)
    keys: dict[str, tuple[Tensor, Tensor]] = {}

    with t.module(module):
        x, tokens = embed(t, "embed_tokens", vocab, hidden)
        x = scale(t, x, "scaled")
        inputs = per_layer_inputs(t, x, c, n, per_layer) if per_layer else x
        for (kind, shared, d, kv_heads), layers in groups(
            (kinds[i], i >= own, d, kv) for i, (d, kv) in enumerate(head_shapes(c, kinds, unified))
        ):
            with t.layers("layers", layers, x) as x:
                y = rms_norm_fp32(t, x, "input_layernorm")
                y = self_attention(t, y, c, kind, d, kv_heads, keys, shared=shared, unified=unified)
                x = add(t, x, rms_norm_fp32(t, y, "post_attention_layernorm"))
                y = gated_mlp(t, rms_norm_fp32(t, x, "pre_feedforward_layernorm"), 2 * ffn if wide and shared else ffn)
                if sparse:
                    y = rms_norm_fp32(t, y, "post_feedforward_layernorm_1")
                    y = add(t, y, rms_norm_fp32(t, routed(t, x, c), "post_feedforward_layernorm_2"), "mlp_and_experts")
                x = add(t, x, rms_norm_fp32(t, y, "post_feedforward_layernorm"))
                if per_layer:
                    x = add(t, x, per_layer_gate(t, x, inputs, per_layer))
                scalar = t.weight("layer_scalar", (1,), "buffer")
                x = t.op("layer_scalar", (x,), x.shape, weights=(scalar,))
        x = rms_norm_fp32(t, x, "norm")
    logits = head(t, x, "lm_head", vocab, tied=tokens if tied else None)
    if c.raw.get("final_logit_softcapping") is not None:
        softcap(t, logits, "logits")


def head_shapes(c: Config, kinds: list[str], unified: bool) -> list[tuple[Dim, Dim]]:
    """Head width and kv heads of each layer: `per_layer_config` by layer number, else the global ones where attention is full."""
    d, kv_heads = c.size("head_dim", 256), c.size("num_key_value_heads", 4, label="kv_heads")
    shapes = [(d, kv_heads)] * len(kinds)
    if c.has("per_layer_config"):
        given = c.sub("per_layer_config")
        for key in given.raw:
            if not str(key).isdecimal() or len(str(key)) > 5 or int(key) >= len(kinds):
                raise BadInput(f"{given.path}: {str(key)[:60]!r} is none of the layers 0 to {len(kinds) - 1}")
            layer = given.sub(key)
            shapes[int(key)] = layer.size("head_dim", int(d)), layer.size("num_key_value_heads", int(kv_heads), label="kv_heads")
        few(c, "per_layer_config", shapes)
        return shapes
    own_heads = c.maybe("num_global_key_value_heads", label="kv_heads") if c.flag("attention_k_eq_v") else None
    wide = c.size("global_head_dim", 512, label="head_dim"), own_heads or kv_heads
    return [wide if kind == FULL else shape for kind, shape in zip(kinds, shapes, strict=True)]


def self_attention(
    t: Tape, x: Tensor, c: Config, kind: str, d: Dim, kv_heads: Dim, keys: dict[str, tuple[Tensor, Tensor]], *, shared: bool, unified: bool
) -> Tensor:
    """Grouped-query attention with norms on q, k and v; a `shared` layer reads the keys and values that its kind left in `keys`."""
    heads, bias = c.size("num_attention_heads", 8, label="heads"), c.flag("attention_bias")
    multiple(c, heads, kv_heads)
    causal = c.raw.get("use_bidirectional_attention") != "all"
    window = c.size("sliding_window", 1024 if unified else 512, label="window")
    window = window if causal else window // 2 + 1
    seen = None if kind == FULL else window
    with t.module("self_attn", x, part="attention"):
        q = rope(t, rms_norm_fp32(t, linear(t, x, "q_proj", heads * d, bias=bias), "q_norm", width=d), "q", d)
        if not shared:
            raw = linear(t, x, "k_proj", kv_heads * d, bias=bias)
            same = kind == FULL and c.flag("attention_k_eq_v")
            v = raw if same and t.kernels.qkv != "joined" else linear(t, x, "v_proj", kv_heads * d, bias=bias)
            v = raw if same else v
            k = rope(t, rms_norm_fp32(t, raw, "k_norm", width=d), "k", d)
            v = rms_norm_fp32(t, v, "v_norm", weight=False)
            if causal:
                cache_kv(t, kv_heads, d, window=seen)
            keys[kind] = k, v
        k, v = keys[kind]
        y = attention(t, q, k, v, heads=heads, kv_heads=kv_heads, window=seen, past=causal)
        return linear(t, y, "o_proj", x.shape[-1], bias=bias)


def routed(t: Tape, x: Tensor, c: Config) -> Tensor:
    """26B-A4B's experts, on the stream before the MLP's norm; the router scales its own normed input."""
    n = c.size("num_experts", label="experts")
    top_k = at_most(c, c.size("top_k_experts", label="top_k"), n)
    with t.module("router", x, part="experts"):
        scales = t.weight("scale", (x.shape[-1],), "router"), t.weight("per_expert_scale", (n,), "router")
        y = t.op("scaled", (rms_norm_fp32(t, x, "norm", weight=False),), x.shape, weights=scales)
        probabilities = route(t, y, "proj", n)
    y = rms_norm_fp32(t, x, "pre_feedforward_layernorm_2")
    with t.module("", y, part="experts"):
        ffn = c.size("moe_intermediate_size", label="expert_ffn")
        up, down = ("experts.gate_up_proj",), "experts.down_proj"
        return experts(t, y, probabilities, ffn=ffn, n_experts=n, top_k=top_k, up=up, down=down, fused_up=True)


def vision(t: Tape, c: Config) -> Tensor:
    """A ViT with Gemma's four norms per layer and two tables of positions; 3 × 3 patches make a token. Defaults: Gemma4VisionConfig."""
    width, d, clip = c.size("hidden_size", 768, label="vision_hidden"), c.size("head_dim", 64), c.flag("use_clipped_linears")
    heads, kv_heads = c.size("num_attention_heads", 12, label="vision_heads"), c.size("num_key_value_heads", 12, label="kv_heads")
    multiple(c, heads, kv_heads)
    pool, side = c.size("pooling_kernel_size", 3), c.size("patch_size", 16)
    patches = Dim(280 * int(pool * pool), "patches")  # `default_output_length`, 280 tokens
    with t.module("vision_tower"):
        x = t.tensor("pixel_values", (Dim(1), patches, 3 * side * side))
        x = linear(t, x, "patch_embedder.input_proj", width)
        table = t.weight("patch_embedder.position_embedding_table", (2, c.size("position_embedding_size", 10240), width), "embed")
        x = t.op("positions", (x,), x.shape, weights=(table,))
        with t.module("encoder"), t.layers("layers", range(c.layers(default=16)), x) as x:
            y = rms_norm_fp32(t, x, "input_layernorm")
            with t.module("self_attn", y):
                q = rms_norm_fp32(t, projection(t, y, "q_proj", heads * d, clip), "q_norm", width=d)
                k = rms_norm_fp32(t, projection(t, y, "k_proj", kv_heads * d, clip), "k_norm", width=d)
                v = rms_norm_fp32(t, projection(t, y, "v_proj", kv_heads * d, clip), "v_norm", weight=False)
                y = projection(t, attention(t, q, k, v, heads=heads, kv_heads=kv_heads, past=False), "o_proj", width, clip)
            x = add(t, x, rms_norm_fp32(t, y, "post_attention_layernorm"))
            x = add(t, x, rms_norm_fp32(t, clipped_mlp(t, x, c, clip), "post_feedforward_layernorm"))
        if c.flag("standardize"):
            t.weight("std_bias", (width,), "buffer")
            t.weight("std_scale", (width,), "buffer")
    return t.op("pooled", (x,), (Dim(1), x.shape[1] // (pool * pool), width))


def clipped_mlp(t: Tape, x: Tensor, c: Config, clip: bool) -> Tensor:
    """The tower's gated MLP, whose linears may clip."""
    ffn, y = c.size("intermediate_size", 3072, label="vision_ffn"), rms_norm_fp32(t, x, "pre_feedforward_layernorm")
    with t.module("mlp", y):
        gate = activation(t, projection(t, y, "gate_proj", ffn, clip))
        return projection(t, multiply(t, gate, projection(t, y, "up_proj", ffn, clip), "gated"), "down_proj", x.shape[-1], clip)


def raw_patches(t: Tape, c: Config) -> Tensor:
    """The unified models' vision: norm, linear, norm, positions, norm over 48 × 48 patches. Defaults: Gemma4UnifiedVisionConfig."""
    side, width = c.size("patch_size", 16) * c.size("pooling_kernel_size", 3), c.size("mm_embed_dim", 3840, label="vision_hidden")
    with t.module("vision_embedder"):
        x = t.tensor("pixel_values", (Dim(1), Dim(280, "image_tokens"), 3 * side * side))
        x = layer_norm(t, linear(t, layer_norm(t, x, "patch_ln1"), "patch_dense", width, bias=True), "patch_ln2")
        table = t.weight("pos_embedding", (c.size("mm_posemb_size", 1120), 2, width), "embed")
        return layer_norm(t, t.op("positions", (x,), x.shape, weights=(table,)), "pos_norm")


def waveform(t: Tape, c: Config) -> Tensor:
    """The unified models' sound: a token is `audio_embed_dim` samples, and nothing more."""
    return t.tensor("input_features", (Dim(1), Dim(750, "audio_frames"), c.size("audio_embed_dim", 640, label="samples")))
