"""Mamba (Gu & Dao 2023, arXiv:2312.00752) and Mamba-2 (Dao & Gu 2024, arXiv:2405.21060): no attention, no cache that grows.

A layer keeps the last columns of a short convolution and a state: [inner, d_state] in Mamba-1, [heads, head_dim, d_state] in Mamba-2. The
scan's kernels return it in fp32 (mamba-ssm's `selective_scan_fn`, `mamba_chunk_scan_combined`), and transformers' cache keeps it so. The
residual stream is in fp32 by default. The blocks below are Jamba's (mamba1), Falcon-H1's, Granite 4's and Nemotron-H's (mamba2) too.
"""

from __future__ import annotations

from ..dim import Dim
from ..errors import BadInput
from ..ops import activation, causal_conv, embed, head, linear, multiply, rms_norm, selective_scan
from ..ops.mamba_scan import Scan, chunked_scan
from ..ops.norm_fp32 import gated_rms_norm
from ..ops.token_scan import token_scan
from ..tape import Tape
from ..tensors import Tensor
from .checks import multiple
from .config import Config

MODEL_TYPES = ("mamba", "mamba2")


def forward(t: Tape, c: Config) -> None:
    first = c.text("model_type") == "mamba"
    hidden, vocab = (
        c.size("hidden_size", 768 if first else 4096, label="hidden"),
        c.size("vocab_size", 50280 if first else 32768, label="vocab"),
    )
    itemsize = 4 if c.flag("residual_in_fp32", True) else t.itemsize

    with t.module("backbone"):
        x, tokens = embed(t, "embeddings", vocab, hidden)
        if itemsize != x.itemsize:
            x = t.op("residual.float", (x,), x.shape, itemsize=itemsize)
        with t.layers("layers", range(c.layers(default=32 if first else 64)), x) as x:
            y = x if x.itemsize == t.itemsize else t.op("cast", (x,), x.shape)
            y = rms_norm(t, y, "norm")
            y = mamba1_mixer(t, y, c) if first else mamba2_mixer(t, y, c)
            x = t.op("residual", (x, y), x.shape, itemsize=itemsize)
        x = rms_norm(t, x, "norm_f")
    head(t, x, "lm_head", vocab, tied=tokens if c.flag("tie_word_embeddings", first) else None)


def mamba1_mixer(t: Tape, x: Tensor, c: Config) -> Tensor:
    """Mamba's own keys; its `intermediate_size` is always expand · hidden. Defaults: MambaConfig."""
    return mamba1(
        t,
        x,
        inner=c.size("expand", 2) * x.shape[-1],
        state=c.size("state_size", 16, label="d_state"),
        rank=time_step_rank(c, "time_step_rank", x.shape[-1]),
        kernel=c.size("conv_kernel", 4),
        conv_bias=c.flag("use_conv_bias", True),
        bias=c.flag("use_bias"),
        module="mixer",
    )


def mamba2_mixer(t: Tape, x: Tensor, c: Config) -> Tensor:
    """Mamba-2's own keys. Defaults: Mamba2Config. Raises BadInput where the heads do not make up expand · hidden."""
    heads, d = c.size("num_heads", 128, label="mamba_heads"), c.size("head_dim", 64, label="mamba_head_dim")
    inner_width(c, c.size("expand", 2) * x.shape[-1], heads, d)
    return mamba2(
        t,
        x,
        heads=heads,
        head_dim=d,
        groups=c.size("n_groups", 8, label="groups"),
        state=c.size("state_size", 128, label="d_state"),
        kernel=c.size("conv_kernel", 4),
        chunk=c.size("chunk_size", 256, label="chunk"),
        conv_bias=c.flag("use_conv_bias", True),
        bias=c.flag("use_bias"),
        module="mixer",
    )


def time_step_rank(c: Config, key: str, hidden: int) -> Dim:
    """The low rank of Δ: a number, or "auto" for hidden / 16, rounded up."""
    if c.raw.get(key, "auto") == "auto":
        return Dim(-(-int(hidden) // 16), "dt_rank")
    return c.size(key, label="dt_rank")


def inner_width(c: Config, inner: int, heads: Dim, d: Dim) -> None:
    """Raises BadInput where heads · d is not `inner`, as transformers' configuration classes do."""
    if int(inner) != int(heads) * int(d):
        raise BadInput(f"{c.path}: {int(heads)} Mamba heads of {int(d)} do not make up the inner width, {int(inner)}")


def mamba1(
    t: Tape, x: Tensor, *, inner: Dim, state: Dim, rank: Dim, kernel: Dim, conv_bias: bool, bias: bool, module: str, norms: bool = False
) -> Tensor:
    """[b, s, hidden] -> [b, s, hidden]; `norms`: Jamba's on Δ, B and C."""
    b, s, hidden = x.shape
    with t.module(module, x, part="mamba"):
        both = linear(t, x, "in_proj", 2 * inner, bias=bias)
        mixed, gate = t.view(both, (b, s, inner)), t.view(both, (b, s, inner))
        mixed = activation(t, causal_conv(t, mixed, "conv1d", kernel, bias=conv_bias))
        chosen = linear(t, mixed, "x_proj", rank + 2 * state)
        dt, b_in, c_out = t.view(chosen, (b, s, rank)), t.view(chosen, (b, s, state)), t.view(chosen, (b, s, state))
        if norms:
            dt, b_in, c_out = rms_norm(t, dt, "dt_layernorm"), rms_norm(t, b_in, "b_layernorm"), rms_norm(t, c_out, "c_layernorm")
        dt = linear(t, dt, "dt_proj", inner, bias=True)
        a_log = t.weight("A_log", (inner, state), "conv")  # a matrix that no linear layer holds: counted with the convolutions
        d = t.weight("D", (inner,), "norm")
        if t.kernels.recurrence == "composed" and int(s) > 1:
            y = token_scan(t, t.hold(mixed), t.hold(dt), (b_in, c_out), gate, (a_log, d), state_dtype="fp32")
        else:
            y = selective_scan(t, (mixed, dt, b_in, c_out, gate), (b, s, inner), (inner, state), state_dtype="fp32")
        return linear(t, y, "out_proj", hidden, bias=bias)


def mamba2(
    t: Tape,
    x: Tensor,
    *,
    heads: Dim,
    head_dim: Dim,
    groups: Dim,
    state: Dim,
    kernel: Dim,
    chunk: Dim,
    conv_bias: bool,
    bias: bool,
    module: str,
    out_bias: bool | None = None,
    norm: bool = True,
    gate_first: bool = True,
    scaled: bool = False,
    state_dtype: str | None = "fp32",
) -> Tensor:
    """[b, s, hidden] -> [b, s, hidden]; B and C [groups, d_state] pass the convolution with the values [heads, head_dim].

    `norm`: the gate goes into an RMSNorm, before it with `gate_first`; without it (Falcon-H1) it only multiplies. `scaled`: a buffer
    multiplies what is projected (Falcon-H1), which under autocast brings it back to fp32.
    """
    b, s, hidden = x.shape
    inner = heads * head_dim
    mixed_width = inner + 2 * groups * state
    with t.module(module, x, part="mamba"):
        projected = linear(t, x, "in_proj", inner + mixed_width + heads, bias=bias)
        if scaled:
            projected = t.op("scaled", (projected,), projected.shape, itemsize=t.itemsize)
        gate, dt = t.view(projected, (b, s, inner)), t.view(projected, (b, s, heads))
        mixed = activation(t, causal_conv(t, t.view(projected, (b, s, mixed_width)), "conv1d", kernel, bias=conv_bias))
        mixed = mixed if mixed.itemsize == projected.itemsize else t.op("mixed", (mixed,), mixed.shape, itemsize=projected.itemsize)
        dt_bias, a_log, d = (t.weight(name, (heads,), "norm") for name in ("dt_bias", "A_log", "D"))
        if t.kernels.recurrence == "composed" and int(s) > 1:
            sizes = Scan(heads=heads, head_dim=head_dim, groups=groups, state=state, chunk=chunk, dt_bias=dt_bias, a_log=a_log, d=d)
            y = chunked_scan(t, t.hold(mixed), dt, sizes, state_dtype=state_dtype)
        else:
            y = selective_scan(t, (mixed, dt), (b, s, inner), (heads, head_dim, state), state_dtype=state_dtype)
        if norm:
            y = gated_rms_norm(t, y, gate, "norm", gate_first=gate_first)
        else:
            y = multiply(t, y, activation(t, gate), "gated")
        y = y if y.itemsize == x.itemsize else t.op("cast", (y,), y.shape, itemsize=x.itemsize)
        return linear(t, y, "out_proj", hidden, bias=bias if out_bias is None else out_bias)


def grouped_mamba2(
    t: Tape,
    x: Tensor,
    c: Config,
    *,
    inner: Dim,
    heads: int,
    state: int,
    gated_norm: bool = True,
    gate_first: bool = True,
    out_bias: bool,
    scaled: bool = False,
) -> Tensor:
    """The block under the `mamba_…` keys that Falcon-H1 and Granite 4 share. Raises BadInput for sizes that do not fit."""
    n = c.size("mamba_n_heads", heads, label="mamba_heads")
    automatic = c.raw.get("mamba_d_head", "auto") in ("auto", None)
    d = Dim(int(multiple(c, inner, n)), "mamba_head_dim") if automatic else c.size("mamba_d_head", label="mamba_head_dim")
    inner_width(c, inner, n, d)
    return mamba2(
        t,
        x,
        heads=n,
        head_dim=d,
        groups=c.size("mamba_n_groups", 1, label="groups"),
        state=c.size("mamba_d_state", state, label="d_state"),
        kernel=c.size("mamba_d_conv", 4),
        chunk=c.size("mamba_chunk_size", 256, label="chunk"),
        conv_bias=c.flag("mamba_conv_bias", True),
        bias=c.flag("mamba_proj_bias"),
        out_bias=out_bias,
        norm=gated_norm,
        gate_first=gate_first,
        scaled=scaled,
        module="mamba",
    )
