"""The audio towers of Gemma 3n and Gemma 4: a conformer (the Universal Speech Model's) over log-mel frames.

Two strided convolutions take 4 × 4 frames and frequencies to one token; a conformer layer is half a feed-forward, attention in chunks with
relative positions, a short depthwise convolution, half a feed-forward. The two releases name the same parts differently, and Gemma 4 clips
what goes into and out of most linears (four buffers each). Source: transformers 5.23 `models/gemma3n`, `models/gemma4`; Zhang et al. 2023
(arXiv:2303.01037).
"""

from __future__ import annotations

from ..dim import Dim
from ..errors import BadInput
from ..ops import activation, add, attention, linear
from ..ops.norm_fp32 import rms_norm_fp32
from ..tape import Tape
from ..tensors import Tensor
from .checks import multiple
from .config import Config

FRAMES = Dim(750, "audio_frames")
"""A conformer's steps for 30 s of sound: 3,000 frames of 10 ms, 4 to a step (Gemma 3n's 188 soft tokens are 4 steps each)."""


def projection(t: Tape, x: Tensor, name: str, out: int, clip: bool | None) -> Tensor:
    """A linear; in Gemma 4 (`clip` not None) in a module `linear`, with its input's and output's bounds as buffers where it clips."""
    if clip is None:
        return linear(t, x, name, out)
    if clip:
        for bound in ("input_min", "input_max", "output_min", "output_max"):
            t.weight(f"{name}.{bound}", (), "buffer")
    return linear(t, x, f"{name}.linear", out)


def gemma3n_audio(t: Tape, c: Config) -> Tensor:
    """Gemma 3n's, with its own keys (`conf_…`, `sscp_…`). Defaults: Gemma3nAudioConfig."""
    hidden, heads = c.size("hidden_size", 1536, label="audio_hidden"), c.size("conf_num_attention_heads", 8, label="audio_heads")
    d = multiple(c, hidden, heads)
    bins, kernel = int(c.size("input_feat_size", 128)), c.size("conf_conv_kernel_size", 5)
    with t.module("audio_tower"):
        x = subsample(t, conv_channels(c, "sscp_conv_channel_size"), ("conv_0", "conv_1"), bins, hidden)
        with t.layers("conformer", range(c.layers("conf_num_hidden_layers", 12)), x) as x:
            x = add(t, x, feed_forward(t, x, "ffw_layer_start"))
            with t.module("attention", x):
                y = rms_norm_fp32(t, x, "pre_attn_norm")
                with t.module("attn", y):
                    t.weight("per_dim_scale", (d,), "norm")
                    t.weight("relative_position_embedding.pos_proj.weight", (hidden, hidden), "linear")
                    q, k, v = (linear(t, y, name, hidden) for name in ("q_proj", "k_proj", "v_proj"))
                    y = attention(t, q, k, v, heads=heads, kv_heads=heads, past=False)
                x = add(t, x, rms_norm_fp32(t, linear(t, y, "post", hidden), "post_norm"))
            x = add(t, x, light_convolution(t, x, kernel))
            x = add(t, x, feed_forward(t, x, "ffw_layer_end"))
            return rms_norm_fp32(t, x, "norm")


def gemma4_audio(t: Tape, c: Config) -> Tensor:
    """Gemma 4's. Defaults: Gemma4AudioConfig."""
    hidden, heads = c.size("hidden_size", 1024, label="audio_hidden"), c.size("num_attention_heads", 8, label="audio_heads")
    d, clip = multiple(c, hidden, heads), c.flag("use_clipped_linears", True)
    kernel = c.size("conv_kernel_size", 5)
    with t.module("audio_tower"):
        channels = conv_channels(c, "subsampling_conv_channels")
        x = subsample(t, channels, ("layer0", "layer1"), int(channels[0]), hidden)
        with t.layers("layers", range(c.layers(default=12)), x) as x:
            x = add(t, x, feed_forward(t, x, "feed_forward1", clip))
            y = rms_norm_fp32(t, x, "norm_pre_attn")
            with t.module("self_attn", y):
                t.weight("per_dim_scale", (d,), "norm")
                t.weight("relative_k_proj.weight", (hidden, hidden), "linear")
                q, k, v = (projection(t, y, name, hidden, clip) for name in ("q_proj", "k_proj", "v_proj"))
                y = projection(t, attention(t, q, k, v, heads=heads, kv_heads=heads, past=False), "post", hidden, clip)
            x = add(t, x, rms_norm_fp32(t, y, "norm_post_attn"))
            x = add(t, x, light_convolution(t, x, kernel, clip))
            x = add(t, x, feed_forward(t, x, "feed_forward2", clip))
            x = rms_norm_fp32(t, x, "norm_out")
        return linear(t, x, "output_proj", c.size("output_proj_dims", 1536), bias=True)


def subsample(t: Tape, channels: tuple[Dim, Dim], names: tuple[str, str], bins: int, hidden: Dim) -> Tensor:
    """Two 3 × 3 convolutions of stride 2, each with a norm, then a linear over the channels of the frequencies that remain, `bins` / 4."""
    x = t.tensor("mel", (Dim(1), FRAMES, Dim(4 * bins, "mel")))
    with t.module("subsample_conv_projection"):
        for name, out, into in ((names[0], channels[0], 1), (names[1], channels[1], channels[0])):
            weights = t.weight(f"{name}.conv.weight", (out, into, 3, 3), "conv"), t.weight(f"{name}.norm.weight", (out,), "norm")
            x = t.op(name, (x,), (Dim(1), FRAMES, out * max(1, bins // 4)), weights=weights)
        return linear(t, x, "input_proj_linear", hidden)


def conv_channels(c: Config, key: str) -> tuple[Dim, Dim]:
    """The channels of the two convolutions, a list of two. Raises BadInput for another length."""
    given = c.items(key) or [128, 32]
    if len(given) != 2:
        raise BadInput(f"{c.path}: {key!r} has {len(given)} entries; it must have 2")
    each = Config({"0": given[0], "1": given[1]}, f"{c.path}.{key}")
    return each.size("0", label="channels"), each.size("1", label="channels")


def feed_forward(t: Tape, x: Tensor, module: str, clip: bool | None = None) -> Tensor:
    """A feed-forward four times as wide between two norms; `clip` None: plain linears (Gemma 3n)."""
    with t.module(module, x):
        y = projection(t, rms_norm_fp32(t, x, "pre_layer_norm"), "ffw_layer_1", 4 * x.shape[-1], clip)
        return rms_norm_fp32(t, projection(t, activation(t, y), "ffw_layer_2", x.shape[-1], clip), "post_layer_norm")


def light_convolution(t: Tape, x: Tensor, kernel: Dim, clip: bool | None = None) -> Tensor:
    """A gated linear, a depthwise convolution, a norm, a linear."""
    width = x.shape[-1]
    with t.module("lconv1d", x):
        y = projection(t, rms_norm_fp32(t, x, "pre_layer_norm"), "linear_start", 2 * width, clip)
        y = t.op("glu", (y,), x.shape, saves=(y,))
        weight = t.weight("depthwise_conv1d.weight", (width, 1, kernel), "conv")
        y = rms_norm_fp32(t, t.op("depthwise_conv1d", (y,), x.shape, weights=(weight,), saves=(y,)), "conv_norm")
        return projection(t, activation(t, y), "linear_end", width, clip)
