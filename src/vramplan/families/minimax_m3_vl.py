"""MiniMax-M3: block-sparse attention in all layers but the first, 128 experts and a shared one, and a vision tower like CLIP's.

A sparse layer's indexer scores every key with a few small heads and keeps, for each key-value head, the `sparse_topk_blocks` best blocks of
`sparse_block_size` keys; keys and values of all tokens stay cached, and the indexer's own key. The tower has no class token, rotary
positions in three dimensions, and patches over two frames; 2 × 2 of its tokens become one. The MTP module that it ships isn't loaded.
"""

from __future__ import annotations

from ..dim import Dim
from ..ops import activation, add, attention, embed, head, layer_norm, linear, rms_norm, rope
from ..ops.indexer import index_scores
from ..tape import Tape
from ..tensors import Tensor
from .blocks import cache_kv, gated_mlp, moe
from .checks import multiple
from .config import Config, groups
from .vision import encoder_layer, patch_grid, sizes

MODEL_TYPES = ("minimax_m3_vl",)


def forward(t: Tape, c: Config) -> None:
    text = c.sub("text_config")
    hidden, vocab = text.size("hidden_size", 6144, label="hidden"), text.size("vocab_size", 200064, label="vocab")
    with t.tower("vision"):
        vision(t, c, hidden)
    with t.module("language_model"):
        with t.module("model"):
            x, tokens = embed(t, "embed_tokens", vocab, hidden)
            for (block_sparse, has_experts), layers in groups(layer_kinds(text)):
                with t.layers("layers", layers, x) as x:
                    x = add(t, x, self_attention(t, rms_norm(t, x, "input_layernorm"), text, block_sparse))
                    y = rms_norm(t, x, "post_attention_layernorm")
                    if has_experts:
                        y = sparse_mlp(t, y, text)
                    else:
                        y = gated_mlp(t, y, text.size("dense_intermediate_size", 12288, label="ffn"))
                    x = add(t, x, y)
            x = rms_norm(t, x, "norm")
        tied = c.flag("tie_word_embeddings") or text.flag("tie_word_embeddings")
        head(t, x, "lm_head", vocab, tied=tokens if tied else None)


def layer_kinds(c: Config) -> list[tuple[bool, bool]]:
    """(block-sparse, has experts) of each layer: transformers' names, or the released config's lists of 0 and 1."""
    n = c.layers(default=60)
    attention_freq, moe_freq = c.sub("sparse_attention_config").items("sparse_attention_freq"), c.items("moe_layer_freq")
    default = ["minimax_m3_sparse" if f else "full_attention" for f in attention_freq or [0] * n]
    kinds = c.kinds("layer_types", n, default, ("minimax_m3_sparse", "full_attention"))
    mlps = c.kinds("mlp_layer_types", n, ["sparse" if f else "dense" for f in moe_freq or [1] * n], ("sparse", "dense"))
    return [(kind == "minimax_m3_sparse", mlp == "sparse") for kind, mlp in zip(kinds, mlps, strict=True)]


def self_attention(t: Tape, x: Tensor, c: Config, block_sparse: bool) -> Tensor:
    """Grouped-query attention with a norm on each head of q and k: [b, s, hidden] -> [b, s, hidden]."""
    heads, kv_heads = c.size("num_attention_heads", 64, label="heads"), c.size("num_key_value_heads", 4, label="kv_heads")
    multiple(c, heads, kv_heads)
    d = c.size("head_dim", 128)
    with t.module("self_attn", x, part="attention"):
        q = rope(t, rms_norm(t, linear(t, x, "q_proj", heads * d), "q_norm", width=d), "q", d)
        k = rope(t, rms_norm(t, linear(t, x, "k_proj", kv_heads * d), "k_norm", width=d), "k", d)
        v = linear(t, x, "v_proj", kv_heads * d)
        cache_kv(t, kv_heads, d)
        y = attention(t, q, k, v, heads=heads, kv_heads=kv_heads, window=index(t, x, c) if block_sparse else None)
        return linear(t, y, "o_proj", x.shape[-1])


def index(t: Tape, x: Tensor, c: Config) -> int:
    """Score all keys, and keep the best blocks of them. Returns how many keys a token then sees."""
    sparse = c.sub("sparse_attention_config")
    heads = sparse.size("sparse_num_index_heads", c.size("index_n_heads", 4), label="index_heads")
    d = sparse.size("sparse_index_dim", c.size("index_head_dim", 128), label="index_dim")
    block = sparse.size("sparse_block_size", c.size("index_block_size", 128), label="block")
    topk = sparse.size("sparse_topk_blocks", c.size("index_topk_blocks", 16), label="blocks")
    q = rope(t, rms_norm(t, linear(t, x, "index_q_proj", heads * d), "index_q_norm", width=d), "index_q", d)
    k = rope(t, rms_norm(t, linear(t, x, "index_k_proj", d), "index_k_norm"), "index_k", d)
    t.cache("indexer keys", "k", (d,))
    keys = Dim(x.shape[1] + t.past, "keys") if t.past else x.shape[1]
    scores = index_scores(t, q, k, None, heads=heads, keys=keys)
    t.op("indexer.blocks", (scores,), (x.shape[0], heads, x.shape[1], Dim(-(-int(keys) // int(block)), "blocks")), itemsize=4)
    return topk * block


def sparse_mlp(t: Tape, x: Tensor, c: Config) -> Tensor:
    """Routed experts and a shared one: [b, s, hidden] -> [b, s, hidden]."""
    return moe(
        t,
        x,
        ffn=c.size("intermediate_size", 3072, label="moe_ffn"),
        n_experts=c.size("num_local_experts", 128, label="experts"),
        top_k=c.size("num_experts_per_tok", 4, label="top_k"),
        shared_ffn=c.size("shared_intermediate_size", 3072, label="shared_ffn"),
        up=("experts.{e}.w1.weight", "experts.{e}.w3.weight"),
        down="experts.{e}.w2.weight",
        correction="e_score_correction_bias",
        module="block_sparse_moe",
    )


def vision(t: Tape, c: Config, hidden: Dim) -> None:
    """The tower, the projector and the merger: an image of full size, [1, patches, width] -> [1, patches/4, hidden]."""
    v = c.sub("vision_config")
    width, ffn, heads = sizes(v, 1280, 5120, 16)
    patches, side = patch_grid(v, 2016, 14)
    frames, merge = v.size("temporal_patch_size", 2), v.size("spatial_merge_size", 2)
    middle = c.size("projector_hidden_size", 6144)
    with t.module("vision_tower.vision_model"):
        kernel = (width, v.size("num_channels", 3), frames, side, side)
        pixels = t.tensor("pixel_values", (Dim(1), patches, kernel[1] * frames * side * side))
        patch = t.weight("embeddings.patch_embedding.weight", kernel, "conv")
        x = t.op("embeddings.patch_embedding", (pixels,), (Dim(1), patches, width), weights=(patch,), saves=(pixels,))
        x = layer_norm(t, x, "pre_layrnorm")
        with t.module("encoder"), t.layers("layers", range(v.layers(default=32)), x) as x:
            x = encoder_layer(t, x, heads, ffn)
    with t.module("multi_modal_projector"):
        x = linear(t, activation(t, linear(t, x, "linear_1", middle, bias=True)), "linear_2", hidden, bias=True)
    x = t.view(x, (Dim(1), patches // (merge * merge), hidden * merge * merge))
    with t.module("patch_merge_mlp"):
        linear(t, activation(t, linear(t, x, "linear_1", middle, bias=True)), "linear_2", hidden, bias=True)
