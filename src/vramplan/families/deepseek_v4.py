"""DeepSeek-V4: one key that is also the value, a window of 128 tokens, and beyond it the past compressed 4- or 128-fold.

Each layer slides over `sliding_window` tokens. A layer of ratio 128 (heavily compressed) sees one entry for each 128 tokens before; one of
ratio 4 (compressed sparse) has an entry for each 4, of which an indexer, with compressed keys of its own, picks `index_topk`; one of ratio
0 only slides. The residual is `hc_mult` parallel streams, mixed by small learned matrices (manifold-constrained hyper-connections). The
first `num_hash_layers` choose experts by token id from a stored table. The checkpoint has DeepSeek's own names. `deepseek_ref` is what
some FP8 copies call the same model. Its MTP layer isn't loaded. Sizes and order: transformers 5.23 `models/deepseek_v4`.
"""

from __future__ import annotations

from ..dim import Dim, numel
from ..errors import BadInput
from ..ops import add, attention, embed, experts, gated, head, linear, rms_norm, rope, route
from ..ops.indexer import index_scores
from ..tape import Tape
from ..tensors import Tensor
from .checks import multiple
from .config import Config, groups

MODEL_TYPES = ("deepseek_v4", "deepseek_ref")

RATES = {"sliding_attention": 0, "compressed_sparse_attention": 4, "heavily_compressed_attention": 128}


def forward(t: Tape, c: Config) -> None:
    hidden, vocab = c.size("hidden_size", 4096, label="hidden"), c.size("vocab_size", 129280, label="vocab")
    streams = c.size("hc_mult", 4, label="streams")

    x, tokens = embed(t, "embed", vocab, hidden)
    x = t.op("expand_streams", (x,), (*x.shape[:-1], streams * hidden))
    for (kind, hashed), layers in groups(layer_kinds(c)):
        with t.layers("layers", layers, x) as x:
            mix, y = collapse(t, x, "hc_attn", streams)
            x = expand(t, self_attention(t, rms_norm(t, y, "attn_norm"), c, kind), x, mix)
            mix, y = collapse(t, x, "hc_ffn", streams)
            x = expand(t, moe(t, rms_norm(t, y, "ffn_norm"), c, vocab, hashed), x, mix)
    _, x = collapse(t, x, "hc_head", streams, final=True)
    x = rms_norm(t, x, "norm")
    head(t, x, "head", vocab, tied=tokens if c.flag("tie_word_embeddings") else None)


def layer_kinds(c: Config) -> list[tuple[str, bool]]:
    """(attention, whether experts are chosen by token id) of each layer; what is listed beyond the last layer belongs to MTP."""
    n = c.layers(default=43)
    hash_layers = c.size("num_hash_layers", 3, least=0)
    default = ["heavily_compressed_attention" if i < 2 or i % 2 == 0 else "compressed_sparse_attention" for i in range(n)]
    if (ratios := c.items("compress_ratios")) is not None:
        names = {ratio: name for name, ratio in RATES.items()}
        default = [names.get(r, "") if isinstance(r, int) else "" for r in ratios[:n]]
        if "" in default:
            raise BadInput(f"{c.path}: 'compress_ratios' holds something else than {', '.join(map(str, names))}")
    kinds = c.kinds("layer_types", n, default, RATES)
    mlps = c.kinds("mlp_layer_types", n, ["hash_moe" if i < hash_layers else "moe" for i in range(n)], ("hash_moe", "moe"))
    return [(kind, mlp == "hash_moe") for kind, mlp in zip(kinds, mlps, strict=True)]


def collapse(t: Tape, x: Tensor, name: str, streams: Dim, *, final: bool = False) -> tuple[Tensor, Tensor]:
    """Streams [b, s, streams·hidden] -> mixing weights in fp32, and the block's input [b, s, hidden].

    The weights are a linear map of all streams in fp32: one to collapse, one to expand, streams² to mix (at the end only the first).
    """
    outs = streams if final else (2 + streams) * streams
    hidden = x.shape[-1] // streams
    fn = t.weight(f"{name}_fn", (outs, x.shape[-1]), "conv", dtype="fp32")
    base = t.weight(f"{name}_base", (outs,), "norm", dtype="fp32")
    scale = t.weight(f"{name}_scale", (Dim(1 if final else 3),), "norm", dtype="fp32")
    flat = t.op(f"{name}.float", (x,), x.shape, itemsize=4)
    normed = t.op(f"{name}.normed", (flat,), x.shape, itemsize=4, saves=(flat,))
    flops = 2 * numel(x.shape) * int(outs)
    mix = t.op(name, (normed,), (*x.shape[:-1], outs), itemsize=4, weights=(fn, base, scale), flops=flops, saves=(normed,))
    weighted = t.op(f"{name}.weighted", (x, mix), x.shape, itemsize=4, saves=(x, mix))
    return mix, t.op(f"{name}.collapsed", (weighted,), (*x.shape[:-1], hidden))


def expand(t: Tape, y: Tensor, x: Tensor, mix: Tensor) -> Tensor:
    """The block's output spread over the streams, plus the mixed streams: -> [b, s, streams·hidden]."""
    spread = t.op("spread", (y, mix), x.shape, saves=(y, mix))
    mixed = t.op("mixed", (x, mix), x.shape, flops=2 * numel(mix.shape[:-1]) * int(mix.shape[-1]) * int(y.shape[-1]), saves=(x, mix))
    return add(t, spread, mixed)


def self_attention(t: Tape, x: Tensor, c: Config, kind: str) -> Tensor:
    """One shared key-value head with sinks, over a window and the compressed past: [b, s, hidden] -> [b, s, hidden]."""
    heads, d = c.size("num_attention_heads", 64, label="heads"), c.size("head_dim", 512)
    q_rank, window = c.size("q_lora_rank", 1024, label="q_rank"), c.size("sliding_window", 128, label="window")
    groups_out, rank_out = c.size("o_groups", 8), c.size("o_lora_rank", 1024, label="o_rank")
    per_group = multiple(c, heads * d, groups_out)
    with t.module("attn", x, part="attention"):
        t.weight("attn_sink", (heads,), "norm", dtype="fp32")
        q_latent = rms_norm(t, linear(t, x, "wq_a", q_rank), "q_norm")
        q = rope(t, rms_norm(t, linear(t, q_latent, "wq_b", heads * d), "q_b_norm", weight=False), "q")
        kv = rope(t, rms_norm(t, linear(t, x, "wkv", d), "kv_norm"), "kv")
        t.cache("window", "k", (d,), window=window)
        seen = Dim(x.shape[1] + min(t.past, window - 1), "keys")
        if kind != "sliding_attention":
            rate = c.sub("compress_rates").size(kind, RATES[kind], label="rate")
            entries = compress(t, x, d, rate, kind, "compressed keys")
            chosen = index(t, x, q_latent, c, rate, kind) if kind == "compressed_sparse_attention" else entries.shape[1]
            kv = t.op("kv_and_compressed", (kv, entries), (x.shape[0], seen + entries.shape[1], d))
            window = window + min(chosen, entries.shape[1])
        y = attention(t, q, kv, kv, heads=heads, kv_heads=Dim(1, "kv_heads"), window=window, past=False, sdpa=False)
        y = rope(t, y, "output")
        weight = t.weight("wo_a.weight", (groups_out * rank_out, per_group), "linear")
        y = t.op(
            "wo_a", (y,), (*x.shape[:-1], groups_out * rank_out), weights=(weight,), flops=2 * numel(y.shape) * int(rank_out), saves=(y,)
        )
        return linear(t, y, "wo_b", x.shape[-1])


def compress(t: Tape, x: Tensor, d: Dim, rate: Dim, kind: str, name: str) -> Tensor:
    """Each `rate` tokens to one entry, a softmax-weighted sum: [b, s, hidden] -> [b, entries so far, d], which is cached as `name`.

    A sparse layer's entries overlap: two series per token, one for this window's entry and one for the next. Between steps it keeps what no
    full window has taken yet, keys and gates: at most rate − 1 tokens, and with overlap the last window's first series.
    """
    overlap = kind == "compressed_sparse_attention"
    series = 2 if overlap else 1
    with t.module("compressor", x, part="compressor"):
        kv, gate = linear(t, x, "wkv", series * d), linear(t, x, "wgate", series * d)
        t.weight("ape", (rate, series * d), "conv", dtype="fp32")
        new = (x.shape[0], x.shape[1] // rate, series * rate, d)
        windows = t.op("windows", (kv,), new)
        gates = t.op("gates", (gate,), new)
        softmax = t.op("softmax", (gates,), new, itemsize=4, saves_out=True)
        weighted = t.op("weighted", (windows, softmax), new, saves=(windows,))
        entries = t.op("sum", (weighted,), (x.shape[0], new[1], d))
        entries = rope(t, rms_norm(t, entries, "norm"), "entries")
        t.cache(name, "k", (d,), stride=rate)
        t.cache(f"{name}, open window", "state", (2, 3 * rate - 2 if overlap else rate - 1, d), per="sequence")
    if not t.past:
        return entries
    return t.op("compressed", (entries,), (x.shape[0], Dim((x.shape[1] + t.past) // rate, "entries"), d))


def index(t: Tape, x: Tensor, q_latent: Tensor, c: Config, rate: Dim, kind: str) -> int:
    """Small heads score the compressed past. Returns how many entries each token then sees."""
    heads, d = c.size("index_n_heads", 64, label="index_heads"), c.size("index_head_dim", 128, label="index_dim")
    with t.module("indexer", x, q_latent, part="indexer"):
        keys = compress(t, x, d, rate, kind, "indexer keys")
        q = rope(t, linear(t, q_latent, "wq_b", heads * d), "q")
        weights = linear(t, x, "weights_proj", heads)
        scores = index_scores(t, q, keys, weights, heads=heads, keys=keys.shape[1])
        topk = Dim(min(c.size("index_topk", 512), keys.shape[1]), "index_topk")
        t.op("topk", (scores,), (*x.shape[:-1], topk), itemsize=8)
    return topk


def moe(t: Tape, x: Tensor, c: Config, vocab: Dim, hashed: bool) -> Tensor:
    """Routed experts and a shared one: [b, s, hidden] -> [b, s, hidden]; with hashing a table says which experts each token id visits."""
    ffn, n_experts = c.size("moe_intermediate_size", 2048, label="moe_ffn"), c.size("n_routed_experts", 256, label="experts")
    top_k = c.size("num_experts_per_tok", 6, label="top_k")
    with t.module("ffn", x, part="experts"):
        probabilities = route(t, x, "gate", n_experts)
        if hashed:
            t.weight("gate.tid2eid", (vocab, top_k), "buffer", dtype="int64")
        else:
            t.weight("gate.bias", (n_experts,), "buffer", dtype="fp32")
        up, down = ("experts.{e}.w1.weight", "experts.{e}.w3.weight"), "experts.{e}.w2.weight"
        y = experts(t, x, probabilities, ffn=ffn, n_experts=n_experts, top_k=top_k, up=up, down=down)
        with t.module("shared_experts", x):
            s = linear(t, gated(t, x, "w1", "w3", ffn), "w2", x.shape[-1])
        return add(t, y, s, "shared")
