"""Step-3.7-Flash: one full layer to three sliding ones (with more heads, where the config says so), a gate on each head's output.

Three dense layers, then 288 experts beside a shared one, stored as one tensor per matrix. A vision tower whose layers have learnt scales,
and two strided convolutions that make 16 patches one token. The MTP layers that it ships, and which the config's lists may count, aren't
loaded. Copies of its config without `text_config` name only the layers' kinds and the window at the top: these are read, and no more.
"""

from __future__ import annotations

from ..dim import Dim
from ..errors import BadInput
from ..ops import add, attention, embed, experts, head, layer_norm, linear, multiply, rms_norm, rope, route, sigmoid
from ..tape import Tape
from ..tensors import Tensor
from .blocks import cache_kv, gated_mlp, plain_mlp
from .checks import multiple
from .config import Config, groups
from .vision import patch_conv, patch_grid

MODEL_TYPES = ("step3p7",)


def forward(t: Tape, c: Config) -> None:
    text = c.sub("text_config")
    hidden, vocab = text.size("hidden_size", 4096, label="hidden"), text.size("vocab_size", 128815, label="vocab")
    with t.tower("vision"):
        vision(t, c, hidden)
    with t.module("model"):
        x, tokens = embed(t, "embed_tokens", vocab, hidden)
        for (window, sparse), layers in groups(layer_kinds(c, text)):
            with t.layers("layers", layers, x) as x:
                x = add(t, x, self_attention(t, rms_norm(t, x, "input_layernorm"), text, window))
                y = rms_norm(t, x, "post_attention_layernorm")
                if sparse:
                    y = moe(t, y, text)
                else:
                    y = gated_mlp(t, y, text.size("intermediate_size", 11264, label="ffn"), bias=text.flag("mlp_bias"))
                x = add(t, x, y)
        x = rms_norm(t, x, "norm")
    tied = c.flag("tie_word_embeddings") or text.flag("tie_word_embeddings")
    head(t, x, "lm_head", vocab, tied=tokens if tied else None)


def layer_kinds(c: Config, text: Config) -> list[tuple[Dim | None, bool]]:
    """(window, has experts) of each layer; what the lists name beyond the last layer belongs to MTP."""
    n, kinds_from = text.layers(default=45), text if c.has("text_config") else c
    window = kinds_from.maybe("sliding_window", label="window")
    given = {key: items[:n] for key in ("layer_types", "mlp_layer_types") if (items := kinds_from.items(key)) is not None}
    trimmed = Config(given, kinds_from.path)
    kinds = trimmed.kinds("layer_types", n, ["full_attention"] * n, ("full_attention", "sliding_attention"))
    sparse = sparse_layers(text, n)
    mlps = trimmed.kinds("mlp_layer_types", n, ["sparse" if i in sparse else "dense" for i in range(n)], ("sparse", "dense"))
    if window is None and "sliding_attention" in kinds:
        raise BadInput(f"{kinds_from.path}: 'layer_types' names sliding layers, but 'sliding_window' is missing")
    return [(window if kind == "sliding_attention" else None, mlp == "sparse") for kind, mlp in zip(kinds, mlps, strict=True)]


def sparse_layers(c: Config, n: int) -> set[int]:
    """The layers with experts: `moe_layers_enum` ("3,4,5…" or a list), or all from the fourth."""
    given = c.raw.get("moe_layers_enum")
    if given is None:
        return set(range(3, n))
    items = given.split(",") if isinstance(given, str) else c.items("moe_layers_enum") or []
    if not all(str(item).strip().isdecimal() for item in items):
        raise BadInput(f"{c.path}: 'moe_layers_enum' must hold layer numbers")
    return {int(str(item).strip()[:9]) for item in items}


def self_attention(t: Tape, x: Tensor, c: Config, window: Dim | None) -> Tensor:
    """Grouped-query attention with norms on q's and k's heads and a sigmoid gate per head: [b, s, hidden] -> [b, s, hidden]."""
    heads, d, bias = c.size("num_attention_heads", 64, label="heads"), c.size("head_dim", 128), c.flag("attention_bias")
    if window:
        heads = c.size("num_sliding_attention_heads", c.sub("attention_other_setting").size("num_attention_heads", heads), label="heads")
    kv_heads = c.size("num_attention_groups" if c.has("num_attention_groups") else "num_key_value_heads", 8, label="kv_heads")
    multiple(c, heads, kv_heads)
    with t.module("self_attn", x, part="attention"):
        q = rms_norm(t, linear(t, x, "q_proj", heads * d, bias=bias), "q_norm", width=d)
        k = rms_norm(t, linear(t, x, "k_proj", kv_heads * d, bias=bias), "k_norm", width=d)
        v = linear(t, x, "v_proj", kv_heads * d, bias=bias)
        gate = linear(t, x, "g_proj", heads)
        q, k = rope(t, q, "q", d), rope(t, k, "k", d)
        cache_kv(t, kv_heads, d, window=window)
        y = attention(t, q, k, v, heads=heads, kv_heads=kv_heads, window=window)
        y = multiply(t, y, sigmoid(t, gate), "gated")
        return linear(t, y, "o_proj", x.shape[-1], bias=bias)


def moe(t: Tape, x: Tensor, c: Config) -> Tensor:
    """Routed experts in `moe`, and a shared one beside it: [b, s, hidden] -> [b, s, hidden]."""
    n_experts = c.size("n_routed_experts" if c.has("n_routed_experts") else "moe_num_experts", 288, label="experts")
    shared = gated_mlp(t, x, c.size("share_expert_dim", 1280, label="shared_ffn"), bias=c.flag("mlp_bias"), module="share_expert")
    with t.module("moe", x, part="experts"):
        probabilities = route(t, x, "gate", n_experts)
        t.weight("router_bias", (n_experts,), "buffer", dtype="fp32")
        y = experts(
            t,
            x,
            probabilities,
            ffn=c.size("moe_intermediate_size", 1280, label="moe_ffn"),
            n_experts=n_experts,
            top_k=c.size("num_experts_per_tok" if c.has("num_experts_per_tok") else "moe_top_k", 8, label="top_k"),
            up=("gate_proj.weight", "up_proj.weight"),
            down="down_proj.weight",
        )
    return add(t, y, shared, "shared")


def vision(t: Tape, c: Config, hidden: Dim) -> None:
    """The tower and the projector: an image of full size, [1, patches, width] -> [1, patches/16, hidden]."""
    v = c.sub("vision_config")
    width = v.size("width" if v.has("width") else "hidden_size", 1536, label="vision_hidden")
    heads = v.size("heads" if v.has("heads") else "num_attention_heads", 16, label="vision_heads")
    ffn = vision_ffn(v, width)
    patches, side = patch_grid(v, 728, 14)
    multiple(v, width, heads)
    with t.module("vision_model"):
        x = patch_conv(t, v, "conv1", width, patches, side, bias=False)
        x = t.op("positions", (x,), x.shape, weights=(t.weight("positional_embedding", (patches, width), "embed"),))
        x = layer_norm(t, x, "ln_pre")
        with t.module("transformer"), t.layers("resblocks", range(v.layers(default=47)), x) as x:
            y = packed_attention(t, layer_norm(t, x, "ln_1"), heads)
            x = add(t, x, t.op("ls_1", (y,), y.shape, weights=(t.weight("ls_1.gamma", (width,), "norm"),), saves=(y,)))
            y = plain_mlp(t, layer_norm(t, x, "ln_2"), ffn, names=("c_fc", "c_proj"))
            x = add(t, x, t.op("ls_2", (y,), y.shape, weights=(t.weight("ls_2.gamma", (width,), "norm"),), saves=(y,)))
        for i in (1, 2):
            channels = 2 * x.shape[-1]
            kernel = t.weight(f"vit_downsampler{i}.weight", (channels, x.shape[-1], 3, 3), "conv")
            weights = (kernel, t.weight(f"vit_downsampler{i}.bias", (channels,), "conv"))
            x = t.op(f"vit_downsampler{i}", (x,), (Dim(1), x.shape[1] // 4, channels), weights=weights, saves=(x,))
    linear(t, x, "vit_large_projector", hidden, bias=c.flag("projector_bias"))


def vision_ffn(v: Config, width: Dim) -> Dim:
    """Width of the tower's MLPs, `mlp_ratio` times the tower's own (8960/1536 by default), rounded down."""
    ratio = v.raw.get("mlp_ratio", 8960 / 1536)
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 1 / int(width) <= ratio <= 1024:
        raise BadInput(f"{v.path}: 'mlp_ratio' is {str(ratio)[:60]}; it must be a number above 0 and at most 1024")
    return Dim(int(int(width) * ratio), "vision_ffn")


def packed_attention(t: Tape, x: Tensor, heads: Dim) -> Tensor:
    """Attention among all patches, q, k and v in one matrix as in nn.MultiheadAttention: [1, patches, width] -> [1, patches, width]."""
    width = x.shape[-1]
    with t.module("attn", x):
        packed = t.weight("in_proj_weight", (3 * width, width), "linear"), t.weight("in_proj_bias", (3 * width,), "linear")
        qkv = t.op("in_proj", (x,), (*x.shape[:-1], 3 * width), weights=packed, saves=(x,))
        q, k = rope(t, t.view(qkv, x.shape), "q"), rope(t, t.view(qkv, x.shape), "k")
        y = attention(t, q, k, t.view(qkv, x.shape), heads=heads, kv_heads=heads, past=False)
        return linear(t, y, "out_proj", width, bias=True)
