"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1), and the indexer that makes it sparse (DeepSeek-V3.2).

Keys and values of all heads come from one latent of `kv_lora_rank` numbers per token, and one rotary key that the heads share: these two
are the cache. transformers caches the latents and expands those of all tokens, past ones too, to per-head keys and values in every pass
(5.23 `models/deepseek_v3`, `expand_kv`); serving engines do so in prefill, and in decode absorb the expansion into the query and the
output (vLLM `v1/attention/backends/mla/common.py`), so that attention runs on the latents with one key-value head. Kimi K3's has no
rotation, and a gate on its output.
"""

from __future__ import annotations

from ..dim import Dim, numel
from ..ops import attention, layer_norm, linear, multiply, rms_norm, rope, sigmoid
from ..ops.indexer import index_scores
from ..ops.linear import project
from ..tape import Tape
from ..tensors import Tensor, Weight
from .config import Config


class Latent:
    """The sizes of a latent attention; the arguments are what the family's config class says where the config doesn't.

    With `index_heads` it is sparse. The defaults of `kv_lora_rank`, `qk_rope_head_dim`, `index_head_dim` and `index_topk` are those of all.
    """

    def __init__(self, c: Config, heads: Dim, q_rank: int = 1536, nope: int = 128, v: int = 128, index_heads: int = 0) -> None:
        self.heads = heads
        self.q_rank = c.maybe("q_lora_rank", label="q_rank") if "q_lora_rank" in c.raw else Dim(q_rank, "q_rank")
        self.rank = c.size("kv_lora_rank", 512, label="kv_rank")
        self.rope = c.size("qk_rope_head_dim", 64, label="rope_dim")
        self.nope = c.size("qk_nope_head_dim", nope, label="nope_dim")
        self.v = c.size("v_head_dim", v, label="v_dim")
        self.bias = c.flag("attention_bias")
        self.rotary = not c.flag("mla_use_nope")
        self.gated = c.flag("mla_use_output_gate")
        self.index_heads = c.size("index_n_heads", index_heads, label="index_heads") if index_heads else None
        self.index_dim = c.size("index_head_dim", 128, label="index_dim")
        self.topk = c.size("index_topk", 2048, label="index_topk")


def latent_attention(t: Tape, x: Tensor, m: Latent, *, indexer: bool = False) -> Tensor:
    """[b, s, hidden] -> [b, s, hidden]; caches [kv_rank + rope_dim] per token, and [index_dim] more where the layer has an `indexer`.

    Sparse attention sees the `index_topk` keys that this layer's indexer chose, or that of the last layer before it that has one.
    """
    with t.module("self_attn", x, part="attention"):
        if m.q_rank:
            q_latent = rms_norm(t, linear(t, x, "q_a_proj", m.q_rank, bias=m.bias), "q_a_layernorm")
            q = linear(t, q_latent, "q_b_proj", m.heads * (m.nope + m.rope))
        else:
            q_latent, q = x, linear(t, x, "q_proj", m.heads * (m.nope + m.rope))
        both = linear(t, x, "kv_a_proj_with_mqa", m.rank + m.rope, bias=m.bias)
        latent = rms_norm(t, t.view(both, (*x.shape[:-1], m.rank)), "kv_a_layernorm")
        k_rope = t.view(both, (*x.shape[:-1], m.rope))
        if m.rotary:
            q_rope = rope(t, t.view(q, (*x.shape[:-1], m.heads * m.rope)), "q", m.rope)
            q, k_rope = t.op("q", (q, q_rope), q.shape), rope(t, k_rope, "k", m.rope)
        t.cache("latent", "k", (m.rank + m.rope,))
        if indexer and m.index_heads:
            index(t, x, q_latent, m, m.index_heads)
        expansion = t.weight("kv_b_proj.weight", (m.heads * (m.nope + m.v), m.rank), "linear")
        attend = absorbed if t.past and t.kernels.mla == "absorbed" else expanded
        y = attend(t, q, latent, k_rope, expansion, m, m.topk if m.index_heads else None)
        if m.gated:
            y = multiply(t, y, sigmoid(t, linear(t, x, "g_proj", m.heads * m.v)), "gated")
        return linear(t, y, "o_proj", x.shape[-1], bias=m.bias)


def expanded(t: Tape, q: Tensor, latent: Tensor, k_rope: Tensor, expansion: Weight, m: Latent, topk: int | None) -> Tensor:
    """Attention over keys and values of all heads, made from the latents of all tokens: -> [b, s, heads·v]."""
    b, s = q.shape[0], q.shape[1]
    keys = Dim(s + t.past, "keys") if t.past else s
    wide = (b, keys, m.heads * (m.nope + m.v))
    flops = 2 * numel(wide) * int(m.rank)
    if t.past:
        kv = t.op("kv_b_proj", (latent,), wide, weights=(expansion,), flops=flops, saves=(latent,))
    else:
        kv = project(t, latent, "kv_b_proj", wide[-1], (expansion,))
    k = t.op("k", (kv, k_rope), (b, keys, m.heads * (m.nope + m.rope)))
    v = t.view(kv, (b, keys, m.heads * m.v))
    return attention(t, q, k, v, heads=m.heads, kv_heads=m.heads, window=topk, past=False)


def absorbed(t: Tape, q: Tensor, latent: Tensor, k_rope: Tensor, expansion: Weight, m: Latent, topk: int | None) -> Tensor:
    """Attention over the latents themselves, with one key-value head: -> [b, s, heads·v]."""
    b, s = q.shape[0], q.shape[1]
    rows = int(b) * int(s) * int(m.heads) * 2 * int(m.rank)
    q = t.op("absorb_q", (q,), (b, s, m.heads * (m.rank + m.rope)), weights=(expansion,), flops=rows * int(m.nope))
    k = t.op("latent", (latent, k_rope), (b, s, m.rank + m.rope))
    y = attention(t, q, k, t.view(k, (b, s, m.rank)), heads=m.heads, kv_heads=Dim(1, "kv_heads"), window=topk)
    return t.op("absorb_v", (y,), (b, s, m.heads * m.v), weights=(expansion,), flops=rows * int(m.v))


def index(t: Tape, x: Tensor, q_latent: Tensor, m: Latent, heads: Dim) -> None:
    """DeepSeek sparse attention's indexer: small heads score all keys, the best `index_topk` are attended to."""
    with t.module("indexer", x, q_latent, part="indexer"):
        q = rope(t, linear(t, q_latent, "wq_b", heads * m.index_dim), "q")
        k = rope(t, layer_norm(t, linear(t, x, "wk", m.index_dim), "k_norm"), "k")
        t.cache("indexer keys", "k", (m.index_dim,))
        weights = linear(t, x, "weights_proj", heads)
        keys = Dim(x.shape[1] + t.past, "keys") if t.past else x.shape[1]
        scores = index_scores(t, q, k, weights, heads=heads, keys=keys)
        t.op("topk", (scores,), (*x.shape[:-1], Dim(min(m.topk, keys), "index_topk")), itemsize=4)
