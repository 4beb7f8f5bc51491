"""Llama 4: three layers of four attend within chunks of 8,192 tokens, with rotary positions; every fourth attends to all, without.

Each expert layer (`interleave_moe_layer_step`, or `moe_layers`) has fused experts of which a token visits one, and a shared expert beside
them; the other layers are dense, with twice the width. q and k are L2-normed after their rotation where `use_qk_norm` says so. A vision
tower with a class token, whose patches are shuffled 4 to 1. transformers' own experts run all tokens through all experts, each scaled by
its router's score: this tape notes the tokens routed, as engines do.
"""

from __future__ import annotations

from ..dim import Dim
from ..errors import BadInput
from ..ops import activation, add, attention, embed, experts, head, layer_norm, linear, rms_norm, rope, route
from ..tape import Tape
from ..tensors import Tensor
from .blocks import cache_kv, gated_mlp, plain_mlp, self_attention
from .checks import multiple
from .config import Config, groups
from .vision import patch_grid, sizes

MODEL_TYPES = ("llama4", "llama4_text")


def forward(t: Tape, c: Config) -> None:
    if c.text("model_type") == "llama4_text":
        return text(t, c)
    with t.tower("vision"):
        vision(t, c.sub("vision_config"), c.sub("text_config").size("hidden_size", 5120, label="hidden"))
    with t.module("language_model"):
        text(t, c.sub("text_config"))


def text(t: Tape, c: Config) -> None:
    """The text model."""
    hidden, vocab = c.size("hidden_size", 5120, label="hidden"), c.size("vocab_size", 202048, label="vocab")
    with t.module("model"):
        x, tokens = embed(t, "embed_tokens", vocab, hidden)
        for (chunk, rotary, sparse), layers in groups(layer_kinds(c)):
            with t.layers("layers", layers, x) as x:
                x = add(t, x, attend(t, rms_norm(t, x, "input_layernorm"), c, chunk, rotary))
                y = rms_norm(t, x, "post_attention_layernorm")
                if sparse:
                    y = moe(t, y, c)
                else:
                    y = gated_mlp(t, y, c.size("intermediate_size_mlp", 16384, label="ffn"), module="feed_forward")
                x = add(t, x, y)
        x = rms_norm(t, x, "norm")
    head(t, x, "lm_head", vocab, tied=tokens if c.flag("tie_word_embeddings") else None)


def layer_kinds(c: Config) -> list[tuple[Dim | None, bool, bool]]:
    """(chunk size, rotary, has experts) of each layer."""
    n, interval = c.layers(default=48), c.size("no_rope_layer_interval", 4)
    rotary = c.items("no_rope_layers") or [(i + 1) % interval != 0 for i in range(n)]
    if len(rotary) < n:
        raise BadInput(f"{c.path}: 'no_rope_layers' names {len(rotary)} layers, the model has {n}")
    default = ["chunked_attention" if r else "full_attention" for r in rotary[:n]]
    kinds = c.kinds("layer_types", n, default, ("chunked_attention", "full_attention"))
    step, named = c.size("interleave_moe_layer_step", 1), c.items("moe_layers")
    sparse = {i for i in (range(step - 1, n, step) if named is None else named) if isinstance(i, int)}
    chunk = c.size("attention_chunk_size", 8192, label="chunk")
    return [(chunk if kind == "chunked_attention" else None, bool(rotary[i]), i in sparse) for i, kind in enumerate(kinds)]


def attend(t: Tape, x: Tensor, c: Config, chunk: Dim | None, rotary: bool) -> Tensor:
    """Grouped-query attention: [b, s, hidden] -> [b, s, hidden]. A layer without positions scales q by a temperature, where tuned."""
    heads, kv_heads = c.size("num_attention_heads", 40, label="heads"), c.size("num_key_value_heads", 8, label="kv_heads")
    multiple(c, heads, kv_heads)
    d, bias = c.size("head_dim", 128), c.flag("attention_bias")
    with t.module("self_attn", x, part="attention"):
        q, k = linear(t, x, "q_proj", heads * d, bias=bias), linear(t, x, "k_proj", kv_heads * d, bias=bias)
        v = linear(t, x, "v_proj", kv_heads * d, bias=bias)
        if rotary:
            q, k = rope(t, q, "q", d), rope(t, k, "k", d)
            if c.flag("use_qk_norm", True):
                q, k = rms_norm(t, q, "q_norm", weight=False), rms_norm(t, k, "k_norm", weight=False)
        elif c.flag("attn_temperature_tuning", True):
            q = t.op("temperature", (q,), q.shape)
        cache_kv(t, kv_heads, d, window=chunk)
        y = attention(t, q, k, v, heads=heads, kv_heads=kv_heads, window=chunk)
        return linear(t, y, "o_proj", x.shape[-1], bias=bias)


def moe(t: Tape, x: Tensor, c: Config) -> Tensor:
    """Fused experts stored as [in, out], and a shared one: [b, s, hidden] -> [b, s, hidden]."""
    ffn, n_experts = c.size("intermediate_size", 8192, label="moe_ffn"), c.size("num_local_experts", 16, label="experts")
    with t.module("feed_forward", x, part="experts"):
        y = experts(
            t,
            x,
            route(t, x, "router", n_experts),
            ffn=ffn,
            n_experts=n_experts,
            top_k=c.size("num_experts_per_tok", 1, label="top_k"),
            up=("experts.gate_up_proj",),
            down="experts.down_proj",
            transposed=True,
            fused_up=True,
        )
        return add(t, y, gated_mlp(t, x, ffn, module="shared_expert"), "shared")


def vision(t: Tape, c: Config, hidden: Dim) -> None:
    """The tower and the projector: an image tile, [1, patches + 1, width] -> [1, patches/4, hidden]."""
    width, ffn, heads = sizes(c, 768, 5632, 16)
    patches, side = patch_grid(c, 448, 14)
    mid, out = c.size("projector_input_dim", 4096), c.size("projector_output_dim", 4096)
    d = Dim(multiple(c, width, heads), "vision_head_dim")
    with t.module("vision_model"):
        pixels = t.tensor("pixel_values", (Dim(1), patches, c.size("num_channels", 3) * side * side))
        x = linear(t, pixels, "patch_embedding.linear", width)
        tables = t.weight("class_embedding", (width,), "norm"), t.weight("positional_embedding_vlm", (patches + 1, width), "norm")
        x = layer_norm(t, t.op("positions", (x,), (Dim(1), patches + 1, width), weights=tables), "layernorm_pre")
        with t.layers("model.layers", range(c.layers(default=34)), x) as x:
            y = layer_norm(t, x, "input_layernorm")
            x = add(t, x, self_attention(t, y, heads=heads, kv_heads=heads, head_dim=d, bias=True, out_bias=True, cached=False))
            x = add(t, x, plain_mlp(t, layer_norm(t, x, "post_attention_layernorm"), ffn))
        x = layer_norm(t, x, "layernorm_post")
        x = t.view(x, (Dim(1), patches // 4, ffn))
        with t.module("vision_adapter.mlp"):
            x = activation(t, linear(t, activation(t, linear(t, x, "fc1", mid)), "fc2", out))
    linear(t, x, "multi_modal_projector.linear_1", hidden)
