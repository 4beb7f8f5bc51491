"""Layer norms without a bias that stay in fp32 to the end: Cohere's, and OLMo's, which has no weight either."""

from __future__ import annotations

from ..dim import Dim
from ..tape import Tape
from ..tensors import Tensor


def layer_norm_fp32(t: Tape, x: Tensor, name: str, *, shape: tuple[int, ...] | None = None, weight: bool = True) -> Tensor:
    """(x − mean) / std · w in fp32, cast last: [..., width] -> [..., width]; the weight is `shape` ([width], or [heads, head_dim]).

    `upcast`, with a weight: transformers' CohereLayerNorm, element by element, which makes x − mean twice and keeps both, the reciprocal
    deviation, the normed x and w, all fp32 (5.23 `models/cohere/modeling_cohere.py`). Without one: `aten::native_layer_norm` on x in fp32,
    which it keeps, with its statistics (OlmoLayerNorm, 5.23 `models/olmo/modeling_olmo.py`). `fused` kernels do as `layer_norm`.
    """
    weights = (t.weight(f"{name}.weight", shape or (x.shape[-1],), "norm"),) if weight else ()
    if t.kernels.norm == "fused":
        stats = t.tensor(f"{name}.stats", (*x.shape[:-1], Dim(2)), itemsize=4)
        return t.op(name, (x,), x.shape, weights=weights, saves=(x, stats), extra=(stats,), always=True)
    upcast = t.op(f"{name}.float", (x,), x.shape, itemsize=4)
    if not weight:
        stats = t.tensor(f"{name}.stats", (*x.shape[:-1], Dim(2)), itemsize=4)
        normed = t.op(f"{name}.normed", (upcast,), x.shape, itemsize=4, saves=(upcast, stats), extra=(stats,))
        return t.op(name, (normed,), x.shape)
    first = t.op(f"{name}.centred", (upcast,), x.shape, itemsize=4, saves_out=True)
    rstd = t.op(f"{name}.rstd", (first,), (*x.shape[:-1], Dim(1)), itemsize=4, saves_out=True)
    second = t.op(f"{name}.centred_again", (upcast,), x.shape, itemsize=4, saves_out=True)
    normed = t.op(f"{name}.normed", (second, rstd), x.shape, itemsize=4)
    gain = t.tensor(f"{name}.gain", shape or (x.shape[-1],), itemsize=4)
    scaled = t.op(f"{name}.scaled", (normed,), x.shape, itemsize=4, weights=weights, saves=(normed, gain), extra=(gain,))
    return t.op(name, (scaled,), x.shape)
