"""Kimi K3: three layers of Kimi delta attention to one of latent attention, 896 experts in a narrower space, attention over depth.

Kimi delta attention (KDA, arXiv:2510.26692) keeps a state [heads, d, d] per sequence, decayed channel by channel, and three short
convolutions; the latent layers have no positions and a gate on their output. The routed experts work on `routed_expert_hidden_size`
numbers, behind one projection down and one up; two shared ones on the whole width. Before each attention and each MLP, a learnt query
attends to the sums of earlier blocks of `attn_res_block_size` layers (attention residuals, arXiv:2603.15031), which all stay alive.
MoonViT without biases, with RMSNorms. `A_log` is stored padded to `head_dim`, 128, though a layer has 96 heads. Not in transformers 5.23:
names and shapes as public ports of the checkpoint have them (llama.cpp pull request 26185, NVIDIA-NeMo/Megatron-Bridge 5130,
pytorch/torchtitan `models/kimi_k3`); with the routing bias the sum meets the published 2,779,931,837,184.
"""

from __future__ import annotations

from ..dim import Dim, numel
from ..errors import BadInput
from ..ops import (
    activation,
    add,
    attention,
    causal_conv,
    embed,
    experts,
    gated_delta_rule,
    head,
    linear,
    multiply,
    rms_norm,
    rope,
    route,
    sigmoid,
)
from ..tape import Tape
from ..tensors import Tensor
from .blocks import gated_mlp, plain_mlp
from .checks import multiple
from .config import Config, groups
from .kimi_k25 import size
from .mla import Latent, latent_attention
from .vision import patch_conv

MODEL_TYPES = ("kimi_k3",)


def forward(t: Tape, c: Config) -> None:
    text = c.sub("text_config")
    hidden, vocab = text.size("hidden_size", label="hidden"), text.size("vocab_size", label="vocab")
    n, per_block = text.layers(), text.size("attn_res_block_size", label="block")
    blocks = Dim(-(-n // int(per_block)) + 1, "blocks")
    latent = Latent(text, text.size("num_attention_heads", label="heads"))
    with t.tower("vision"):
        vision(t, c.sub("vision_config"), hidden)
    with t.module("language_model"):
        with t.module("model"):
            x, tokens = embed(t, "embed_tokens", vocab, hidden)
            past = t.hold(t.op("blocks", (x,), (*x.shape[:-1], blocks, hidden)))
            for (linear_attention, sparse), layers in groups(layer_kinds(text, n)):
                with t.layers("layers", layers, x) as x:
                    y = rms_norm(t, depth_attention(t, x, past, "self_attention_res"), "input_layernorm")
                    y = delta_attention(t, y, text) if linear_attention else latent_attention(t, y, latent)
                    x = add(t, x, y)
                    y = rms_norm(t, depth_attention(t, x, past, "mlp_res"), "post_attention_layernorm")
                    y = latent_moe(t, y, text) if sparse else gated_mlp(t, y, text.size("intermediate_size", label="ffn"))
                    x = add(t, x, y)
            x = rms_norm(t, depth_attention(t, x, past, "output_attn_res"), "norm")
        head(t, x, "lm_head", vocab, tied=tokens if text.flag("tie_word_embeddings") else None)


def layer_kinds(c: Config, n: int) -> list[tuple[bool, bool]]:
    """(KDA, has experts) of each layer; the config counts the layers from 1."""
    listed = c.sub("linear_attn_config")
    kda, full = listed.items("kda_layers") or [], listed.items("full_attn_layers") or []
    if not all(isinstance(i, int) for i in kda + full) or {*kda, *full} != {*range(1, n + 1)} or len(kda) + len(full) != n:
        raise BadInput(f"{listed.path}: 'kda_layers' and 'full_attn_layers' must hold the layers 1 to {n}, each once")
    dense, linear_layers = c.size("first_k_dense_replace", 0, least=0), set(kda)
    return [(i + 1 in linear_layers, i >= dense) for i in range(n)]


def depth_attention(t: Tape, x: Tensor, past: Tensor, name: str) -> Tensor:
    """A learnt query over the blocks before and the sum so far: [b, s, hidden] -> [b, s, hidden]."""
    query, norm = t.weight(f"{name}_proj.weight", (Dim(1), x.shape[-1]), "linear"), t.weight(f"{name}_norm.weight", (x.shape[-1],), "norm")
    values = t.op(f"{name}.values", (past, x), past.shape)
    keys = t.op(f"{name}.keys", (values,), past.shape, weights=(norm,), saves=(values,))
    flops = 2 * numel(past.shape)
    weights = t.op(f"{name}.weights", (keys,), past.shape[:-1], itemsize=4, weights=(query,), flops=flops, saves=(keys,), saves_out=True)
    return t.op(name, (values, weights), x.shape, flops=flops)


def delta_attention(t: Tape, x: Tensor, c: Config) -> Tensor:
    """KDA: [b, s, hidden] -> [b, s, hidden]; state [heads, d, d] in fp32 and three convolutions per sequence."""
    sizes = c.sub("linear_attn_config")
    heads, d, kernel = (
        sizes.size("num_heads", label="kda_heads"),
        sizes.size("head_dim", label="kda_dim"),
        sizes.size("short_conv_kernel_size", 4),
    )
    if not sizes.flag("use_full_rank_gate"):
        raise BadInput(f"{sizes.path}: only KDA with 'use_full_rank_gate' is known")
    wide = heads * d
    with t.module("self_attn", x, part="attention"):
        q, k, v = (activation(t, causal_conv(t, linear(t, x, f"{n}_proj", wide), f"{n}_conv1d", kernel, bias=False)) for n in "qkv")
        decay = linear(t, linear(t, x, "f_a_proj", d), "f_b_proj", wide)
        stored = t.weight("A_log", (d,), "norm", dtype="fp32"), t.weight("dt_bias", (wide,), "norm", dtype="fp32")
        decay = t.op("decay", (decay,), decay.shape, itemsize=4, weights=stored, saves=(decay,))
        beta = activation(t, linear(t, x, "b_proj", heads), "beta")
        y = gated_delta_rule(t, (q, k, v, decay, beta), (*x.shape[:-1], wide), (heads, d, d), state_dtype="fp32")
        y = rms_norm(t, y, "o_norm", width=d)
        y = multiply(t, y, sigmoid(t, linear(t, x, "g_proj", wide)), "gated")
        return linear(t, y, "o_proj", x.shape[-1])


def latent_moe(t: Tape, x: Tensor, c: Config) -> Tensor:
    """Routed experts between a projection down and one up, shared experts on the whole width: [b, s, hidden] -> [b, s, hidden]."""
    n_experts, ffn = c.size("num_experts", label="experts"), c.size("moe_intermediate_size", label="moe_ffn")
    with t.module("block_sparse_moe", x, part="experts"):
        probabilities = route(t, x, "gate", n_experts)
        t.weight("gate.e_score_correction_bias", (n_experts,), "buffer", dtype="fp32")
        y = experts(
            t,
            linear(t, x, "routed_expert_down_proj", c.size("routed_expert_hidden_size", label="latent")),
            probabilities,
            ffn=ffn,
            n_experts=n_experts,
            top_k=c.size("num_experts_per_token", label="top_k"),
            up=("experts.{e}.w1.weight", "experts.{e}.w3.weight"),
            down="experts.{e}.w2.weight",
        )
        if c.flag("latent_moe_use_norm"):
            y = rms_norm(t, y, "routed_expert_norm")
        y = linear(t, y, "routed_expert_up_proj", x.shape[-1])
        return add(t, y, gated_mlp(t, x, ffn * c.size("num_shared_experts", label="shared_experts"), module="shared_experts"), "shared")


def vision(t: Tape, c: Config, hidden: Dim) -> None:
    """MoonViT and the projector: an image of the stored grid's size, [1, patches, width] -> [1, patches/4, hidden]."""
    width, ffn = size(c, "hidden_size", 1024, "vision_hidden"), size(c, "intermediate_size", 4096, "vision_ffn")
    heads, inner = size(c, "num_attention_heads", 12, "vision_heads"), c.size("qkv_hidden_size", 1536)
    multiple(c, inner, heads)
    rows, columns = c.size("init_pos_emb_height", 64), c.size("init_pos_emb_width", 64)
    with t.module("vision_tower"):
        with t.module("patch_embed"):
            x = patch_conv(t, c, "proj", width, Dim(rows * columns, "patches"), c.size("patch_size", 14), bias=False)
            x = t.op("pos_emb", (x,), x.shape, weights=(t.weight("pos_emb.weight", (rows, columns, width), "norm"),))
        with t.module("encoder"):
            with t.layers("blocks", range(c.layers("vt_num_hidden_layers", 27)), x) as x:
                qkv = linear(t, rms_norm(t, x, "norm0"), "wqkv", 3 * inner)
                part = (*x.shape[:-1], inner)
                q, k = rope(t, t.view(qkv, part), "q"), rope(t, t.view(qkv, part), "k")
                y = attention(t, q, k, t.view(qkv, part), heads=heads, kv_heads=heads, past=False)
                x = add(t, x, linear(t, y, "wo", width))
                x = add(t, x, plain_mlp(t, rms_norm(t, x, "norm1"), ffn, bias=False, names=("fc0", "fc1")))
            x = rms_norm(t, x, "final_layernorm")
    with t.module("mm_projector"):
        x = t.view(x, (x.shape[0], x.shape[1] // 4, 4 * width))
        x = linear(t, activation(t, linear(t, x, "proj.0", 4 * width)), "proj.2", hidden)
        rms_norm(t, x, "post_norm")
