"""Qwen3-Next and Qwen3.5: three gated delta nets, then one full attention, and so on.

Unusual: only every fourth layer has a cache that grows (`full_attention_interval`); the others keep a state of fixed size (delta.py). The
full attention's query projection is twice as wide, its second half a sigmoid gate on the output. Norms stay in fp32 and scale by 1 + w.
Feed-forward: an MLP, or routed experts beside one gated shared expert. Qwen3.5 has Qwen3-VL's vision tower without deepstack; its
multi-token-prediction layer is shipped and not loaded.
"""

from __future__ import annotations

from ..dim import Dim
from ..ops import add, attention, embed, experts, head, linear, multiply, rope, route, sigmoid
from ..ops.delta_rule import Heads
from ..ops.norm_fp32 import rms_norm_fp32
from ..tape import Tape
from ..tensors import Tensor
from .blocks import cache_kv, gated_mlp
from .checks import at_most, layer_set, multiple
from .config import Config, groups
from .delta import gated_delta_net
from .qwen_vision import merging, qwen3_vl_tower

MODEL_TYPES = ("qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text")


def forward(t: Tape, c: Config) -> None:
    kind = c.text("model_type")
    composite = kind in ("qwen3_5", "qwen3_5_moe")
    text = c.sub("text_config") if composite else c
    if composite:
        merging(t, lambda: qwen3_vl_tower(t, c.sub("vision_config"), deepstack=False))
    decoder(t, text, kind, "model.language_model" if composite else "model", tied=c.flag("tie_word_embeddings"))


def decoder(t: Tape, c: Config, kind: str, module: str, *, tied: bool) -> None:
    """The text model and its head. Defaults are those of Qwen3NextConfig, Qwen3_5TextConfig and Qwen3_5MoeTextConfig."""
    sparse = kind not in ("qwen3_5", "qwen3_5_text")
    hidden, vocab = c.size("hidden_size", 2048 if sparse else 4096, label="hidden"), c.size("vocab_size", 248320, label="vocab")
    key_heads, value_heads = (
        c.size("linear_num_key_heads", 16, label="key_heads"),
        c.size("linear_num_value_heads", 32, label="value_heads"),
    )
    multiple(c, value_heads, key_heads)
    key_dim, value_dim = c.size("linear_key_head_dim", 128, label="key_dim"), c.size("linear_value_head_dim", 128, label="value_dim")
    heads = Heads(keys=key_heads, values=value_heads, key_dim=key_dim, value_dim=value_dim)
    kernel, fused = c.size("linear_conv_kernel_dim", 4), kind == "qwen3_next"

    with t.module(module):
        x, tokens = embed(t, "embed_tokens", vocab, hidden)
        for (mixer, routed), layers in groups(layer_kinds(c, sparse)):
            with t.layers("layers", layers, x) as x:
                y = rms_norm_fp32(t, x, "input_layernorm")
                if mixer == "linear_attention":
                    y = gated_delta_net(t, y, heads, kernel=kernel, fused=fused)
                else:
                    y = gated_attention(t, y, c, sparse)
                x = add(t, x, y)
                y = rms_norm_fp32(t, x, "post_attention_layernorm")
                y = sparse_mlp(t, y, c, fused=not fused) if routed else gated_mlp(t, y, c.size("intermediate_size", 12288, label="ffn"))
                x = add(t, x, y)
        x = rms_norm_fp32(t, x, "norm")
    head(t, x, "lm_head", vocab, tied=tokens if tied else None)


def layer_kinds(c: Config, sparse: bool) -> list[tuple[str, bool]]:
    """Each layer's mixer, and whether its feed-forward is routed (Qwen3-Next: `mlp_only_layers` and `decoder_sparse_step`)."""
    n = c.layers(default=40 if sparse else 32)
    interval = int(c.size("full_attention_interval", 4))
    default = ["full_attention" if (i + 1) % interval == 0 else "linear_attention" for i in range(n)]
    mixers = c.kinds("layer_types", n, default, ("linear_attention", "full_attention"))
    step, dense = int(c.size("decoder_sparse_step", 1)), layer_set(c, "mlp_only_layers")
    return [(mixer, sparse and i not in dense and (i + 1) % step == 0) for i, mixer in enumerate(mixers)]


def gated_attention(t: Tape, x: Tensor, c: Config, sparse: bool) -> Tensor:
    """Grouped-query attention whose output a sigmoid gate scales; a quarter of each head is rotated: [b, s, hidden] -> [b, s, hidden]."""
    heads = c.size("num_attention_heads", 16, label="heads")
    kv_heads, d = c.size("num_key_value_heads", 2 if sparse else 4, label="kv_heads"), c.size("head_dim", 256)
    multiple(c, heads, kv_heads)
    bias, width = c.flag("attention_bias"), heads * d
    with t.module("self_attn", x, part="attention"):
        both = linear(t, x, "q_proj", 2 * width, bias=bias)
        gate = t.hold(t.op("gate", (both,), (*x.shape[:-1], width), itemsize=both.itemsize))
        q = rms_norm_fp32(t, t.view(both, (*x.shape[:-1], width)), "q_norm", width=d)
        k = rms_norm_fp32(t, linear(t, x, "k_proj", kv_heads * d, bias=bias), "k_norm", width=d)
        v = linear(t, x, "v_proj", kv_heads * d, bias=bias)
        q, k = rope(t, q, "q", d // 4), rope(t, k, "k", d // 4)
        cache_kv(t, kv_heads, d)
        y = attention(t, q, k, v, heads=heads, kv_heads=kv_heads, by_head=True)
        y = multiply(t, y, sigmoid(t, gate), "gated")
        return linear(t, y, "o_proj", x.shape[-1], bias=bias)


def sparse_mlp(t: Tape, x: Tensor, c: Config, *, fused: bool) -> Tensor:
    """Routed experts beside a shared one with a sigmoid gate; `fused`: all experts in one 3-D tensor (Qwen3.5), else one by one."""
    n = c.size("num_experts", 256 if fused else 512, label="experts")
    top_k = at_most(c, c.size("num_experts_per_tok", 8 if fused else 10, label="top_k"), n)
    each = ("experts.{e}.gate_proj.weight", "experts.{e}.up_proj.weight"), "experts.{e}.down_proj.weight"
    up, down = (("experts.gate_up_proj",), "experts.down_proj") if fused else each
    with t.module("mlp", x, part="experts"):
        shared = gated_mlp(t, x, c.size("shared_expert_intermediate_size", 512, label="shared_ffn"), module="shared_expert")
        probabilities = route(t, x, "gate", n)
        ffn = c.size("moe_intermediate_size", 512, label="expert_ffn")
        normalised = fused or c.flag("norm_topk_prob", True)
        y = experts(t, x, probabilities, ffn=ffn, n_experts=n, top_k=top_k, up=up, down=down, fused_up=fused, normalised=normalised)
        share = linear(t, x, "shared_expert_gate", Dim(1))
        gate = sigmoid(t, share, "shared_expert_gate.sigmoid")
        return add(t, y, t.op("shared_gated", (shared, gate), x.shape, saves=(shared, gate)), "shared")
