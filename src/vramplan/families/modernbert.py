"""ModernBERT: an encoder with rotary positions, pre-norms without bias, a gated MLP and windows in two layers of three; it caches nothing.

The first layer has no norm before attention. A window of 128 reaches 64 tokens to each side. `architectures` decides the head.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..dim import Dim
from ..errors import BadInput, nearest
from ..ops import activation, add, dropout, embed, layer_norm, linear, rope
from ..ops.logits import all_logits
from ..tape import Tape
from ..tensors import Tensor
from .config import Config, groups
from .dense import attend, fused_mlp, qkv_width, sizes, split, windows

MODEL_TYPES = ("modernbert",)

TASKS = ("ModernBertModel", "ModernBertForMaskedLM", "ModernBertForSequenceClassification", "ModernBertForTokenClassification")
HEADED = {"mlm": TASKS[1], "classification": TASKS[2]}


def forward(t: Tape, c: Config) -> None:
    s = sizes(c, grouped=False, split=True)
    bias, norm_bias = c.flag("attention_bias"), c.flag("norm_bias")
    task = HEADED[t.head] if t.head else str((c.items("architectures") or TASKS)[0])[:60]
    if task not in TASKS:
        raise BadInput(f"{c.path}: 'architectures' names {task!r}; allowed are {', '.join(TASKS)}{nearest(task, TASKS)}")

    with t.module("" if task == "ModernBertModel" else "model"):
        with t.module("embeddings"):
            x, tokens = embed(t, "tok_embeddings", s.vocab, s.hidden)
            x = dropout(t, layer_norm(t, x, "norm", bias=norm_bias), c.share("embedding_dropout"))
        t.hold(x)  # what the masks are made for
        for (window, first), layers in groups(layer_kinds(c, s.layers)):
            with t.layers("layers", layers, x) as x:
                y = x if first else layer_norm(t, x, "attn_norm", bias=norm_bias)
                with t.module("attn", y, part="attention"):
                    q, k, v = split(t, linear(t, y, "Wqkv", qkv_width(s), bias=bias), s)
                    q, k = rotate(t, q, "q", s.head_dim), rotate(t, k, "k", s.head_dim)
                    y = linear(t, attend(t, q, k, v, s, window=window, rotary=False, cached=False), "Wo", s.hidden, bias=bias)
                t.hold(y)
                x = add(t, x, dropout(t, y, t.attention_dropout))
                y = layer_norm(t, x, "mlp_norm", bias=norm_bias)
                x = add(t, x, fused_mlp(t, y, s.ffn, bias=c.flag("mlp_bias"), names=("Wi", "Wo"), dropped=c.share("mlp_dropout")))
        x = layer_norm(t, x, "final_norm", bias=norm_bias)
    if task == "ModernBertModel":
        return
    if task == "ModernBertForSequenceClassification":
        x = pool(t, x, c.text("classifier_pooling", "cls"))
    x = activation(t, linear(t, x, "head.dense", s.hidden, bias=c.flag("classifier_bias")))
    x = layer_norm(t, x, "head.norm", bias=norm_bias)
    if task == "ModernBertForMaskedLM":
        tied = tokens if c.flag("tie_word_embeddings", True) else None
        all_logits(t, x, "decoder", s.vocab, tied=tied, bias="linear" if c.flag("decoder_bias", True) else None)
    else:
        x = dropout(t, x, c.share("classifier_dropout"))
        linear(t, x, "classifier", c.size("num_labels", len(c.sub("id2label").raw) or 2, label="labels"), bias=True)


def rotate(t: Tape, x: Tensor, name: str, head_dim: int) -> Tensor:
    """Rotary positions, in fp32 until the result (transformers 5.23 `models/modernbert/modeling_modernbert.py`): same shape."""
    if t.kernels.frames == "freed" or x.itemsize == 4:
        return rope(t, x, name, head_dim)
    wide = rope(t, t.op(f"{name}.float", (x,), x.shape, itemsize=4), name, head_dim)
    return t.op(f"{name}.cast", (wide,), x.shape, itemsize=x.itemsize)


def pool(t: Tape, x: Tensor, how: str) -> Tensor:
    """The first token of x, or the `mean` over those that are no padding: [b, s, hidden] -> [b, 1, hidden]."""
    shape = (x.shape[0], Dim(1, "pooled"), x.shape[-1])
    return t.view(x, shape) if how == "cls" else t.op("pooled", (t.op("unpadded", (x,), x.shape),), shape)


def layer_kinds(c: Config, n: int) -> Iterable[tuple[int | None, bool]]:
    """Of each layer: how many tokens a token sees (None: all), and whether it is the first."""
    period = int(c.size("global_attn_every_n_layers", 3))
    default = ["sliding_attention" if i % period else "full_attention" for i in range(n)]
    seen = 2 * (c.size("local_attention", 128, label="window") // 2) + 1
    return [(window, i == 0) for i, window in enumerate(windows(c, seen, default))]
