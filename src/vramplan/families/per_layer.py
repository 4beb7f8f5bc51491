"""What Gemma 3n and Gemma 4 share: per-layer embeddings, and layers that read the keys and values of earlier ones.

Per-layer embeddings: a second table gives each token 256 numbers per *layer*, added to a projection of its embedding, and each layer lets
them in through a gate. The table is large (half of Gemma-3n-E2B) and a token reads one row. KV sharing: the last `num_kv_shared_layers`
layers have no keys and values; they read those of the last layer of their kind before, and cache nothing.
"""

from __future__ import annotations

from ..dim import Dim
from ..errors import BadInput
from ..ops import activation, add, linear, multiply
from ..ops.norm_fp32 import rms_norm_fp32
from ..ops.scale import scale
from ..tape import Tape
from ..tensors import Tensor
from .config import Config
from .dense import every

FULL, SLIDING = "full_attention", "sliding_attention"


def per_layer_inputs(t: Tape, x: Tensor, c: Config, n: int, d: Dim) -> Tensor:
    """[b, s, n · d] for all layers, kept until the last one: the tokens' own, and a normed projection of their embeddings x."""
    width, rows = Dim(n, "layers") * d, c.size("vocab_size_per_layer_input", 262144, label="vocab_per_layer")
    table = t.weight("embed_tokens_per_layer.weight", (rows, width), "embed")
    own = t.op("embed_tokens_per_layer", (), (*x.shape[:-1], width), weights=(table,))
    own = scale(t, own, "embed_tokens_per_layer.scaled")
    projected = linear(t, x, "per_layer_model_projection", width)
    projected = rms_norm_fp32(t, projected, "per_layer_projection_norm", width=d)
    return t.hold(scale(t, add(t, projected, own, "per_layer_sum"), "per_layer_inputs"))


def per_layer_gate(t: Tape, x: Tensor, inputs: Tensor, d: Dim) -> Tensor:
    """This layer's slice of `inputs` through a gate that x opens: [b, s, hidden] -> [b, s, hidden]."""
    slice_ = t.view(inputs, (*inputs.shape[:-1], d))
    y = multiply(t, activation(t, linear(t, x, "per_layer_input_gate", d)), slice_, "per_layer_gated")
    return rms_norm_fp32(t, linear(t, y, "per_layer_projection", x.shape[-1]), "post_per_layer_input_norm")


def attention_kinds(c: Config, n: int, period: int) -> list[str]:
    """`sliding_attention` or `full_attention` for each layer; every `period`-th is full by default."""
    return c.kinds("layer_types", n, every(n, period), (SLIDING, FULL))


def shared_layers(c: Config, kinds: list[str], default: int) -> int:
    """How many layers at the end share keys and values. Raises BadInput where a kind of theirs has no layer before to read from."""
    shared, n = int(c.size("num_kv_shared_layers", default, least=0)), len(kinds)
    if shared and (shared >= n or set(kinds[n - shared :]) - set(kinds[: n - shared])):
        raise BadInput(f"{c.path}: 'num_kv_shared_layers' is {shared}; of {n} layers one of each kind before those must keep its own keys")
    return shared
