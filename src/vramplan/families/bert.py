"""BERT, RoBERTa, XLM-RoBERTa, MPNet, DistilBERT: encoders that see the whole text at once and so cache nothing.

Learned positions and token types on the embedding, norms after the branches, a plain MLP, biases everywhere, dropout in training. They
differ in names, in MPNet's relative positions (one table for all layers) and in the head: `architectures` says whether there is a pooler,
a masked language model's head (tied) or a classifier, unless the tape's `head` does. Names are those of that class: a bare `…Model` has
no prefix.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..dim import Dim
from ..errors import BadInput, nearest
from ..ops import activation, add, attention, dropout, embed, layer_norm, linear
from ..ops.logits import all_logits
from ..tape import Tape
from ..tensors import Kind, Tensor, Weight
from .config import Config
from .dense import Sizes, renamed, sizes

MODEL_TYPES = ("bert", "roberta", "xlm-roberta", "mpnet", "distilbert")


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """What a family's class and modules are called; `{i}` is filled in by the tape."""

    family: str
    prefix: str
    layers: str = "encoder.layer"
    qkv: tuple[str, str, str] = ("attention.self.query", "attention.self.key", "attention.self.value")
    out: str = "attention.output.dense"
    attention_norm: str = "attention.output.LayerNorm"
    mlp: tuple[str, str] = ("intermediate.dense", "output.dense")
    mlp_norm: str = "output.LayerNorm"


MPNET_QKV = ("attention.attn.q", "attention.attn.k", "attention.attn.v")
DISTIL_QKV = ("attention.q_lin", "attention.k_lin", "attention.v_lin")
NAMES = {
    "bert": Names(family="Bert", prefix="bert"),
    "roberta": Names(family="Roberta", prefix="roberta"),
    "xlm-roberta": Names(family="XLMRoberta", prefix="roberta"),
    "mpnet": Names(family="MPNet", prefix="mpnet", qkv=MPNET_QKV, out="attention.attn.o", attention_norm="attention.LayerNorm"),
    "distilbert": Names(
        family="DistilBert",
        prefix="distilbert",
        layers="transformer.layer",
        qkv=DISTIL_QKV,
        out="attention.out_lin",
        attention_norm="sa_layer_norm",
        mlp=("ffn.lin1", "ffn.lin2"),
        mlp_norm="output_layer_norm",
    ),
}
TASKS = ("Model", "ForMaskedLM", "ForPreTraining", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
HEADED = {"classification": "ForSequenceClassification", "mlm": "ForMaskedLM"}


def forward(t: Tape, c: Config) -> None:
    kind = c.text("model_type")
    names = NAMES[kind]
    task = HEADED[t.head] if t.head else task_of(c, names.family)
    base = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072, "vocab_size": 30522}
    common = renamed(c, dim="hidden_size", n_layers="num_hidden_layers", n_heads="num_attention_heads", hidden_dim="intermediate_size")
    s = sizes(Config({**base, **common.raw}, c.path), grouped=False, split=True)
    dropped = c.share("dropout" if kind == "distilbert" else "hidden_dropout_prob", 0.1)
    t.attention_dropout = c.share("attention_dropout" if kind == "distilbert" else "attention_probs_dropout_prob", 0.1)

    with t.module("" if task == "Model" else names.prefix):
        x, tokens = embeddings(t, c, s, types=kind not in ("mpnet", "distilbert"))
        x = t.hold(dropout(t, x, dropped))
        if kind == "mpnet":
            t.untold = "the bias of relative positions, a tensor [b, heads, s, s] that attention adds and that trains,"
            bias = t.weight("encoder.relative_attention_bias.weight", (c.size("relative_attention_num_buckets", 32), s.heads), "embed")
            if t.method is None:
                t.hold(t.op("encoder.position_bias", (x,), (t.sequences, s.heads, t.tokens, t.tokens), weights=(bias,)))
        with t.layers(names.layers, range(s.layers), x) as x:
            x = layer(t, x, s, names, (0.0 if kind == "distilbert" else dropped, dropped))
        first = pooled = t.view(x, (x.shape[0], Dim(1, "first token"), s.hidden))
        if has_pooler(kind, task):
            pooled = t.op("tanh", (linear(t, first, "pooler.dense", s.hidden, bias=True),), first.shape, saves_out=True)
    if task in ("ForMaskedLM", "ForPreTraining"):
        masked_lm(t, c, x, s, kind, tokens)
    if task == "ForPreTraining":
        linear(t, x, "cls.seq_relationship", 2, bias=True)
    if task.endswith(("Classification", "Answering")):
        single = task == "ForSequenceClassification"
        classify(t, c, pooled if single else x, s, kind, task, dropped)


def task_of(c: Config, family: str) -> str:
    """The task in the class's name: "ForMaskedLM" of `["BertForMaskedLM"]`. Raises BadInput for one that we do not know."""
    given = c.items("architectures") or [f"{family}Model"]
    task = str(given[0]).removeprefix(family)
    if task not in TASKS or (task == "ForPreTraining" and family != "Bert"):
        allowed = [family + task for task in TASKS]
        raise BadInput(f"{c.path}: 'architectures' names {str(given[0])[:60]!r}{nearest(str(given[0])[:60], allowed)}")
    return task


def has_pooler(kind: str, task: str) -> bool:
    """Whether the class pools the first token (transformers 5.23: `add_pooling_layer`)."""
    return kind != "distilbert" and (task in ("Model", "ForPreTraining") or (kind == "bert" and task == "ForSequenceClassification"))


def embeddings(t: Tape, c: Config, s: Sizes, *, types: bool) -> tuple[Tensor, Weight]:
    """Sum of the embeddings of tokens, positions and, with `types`, token types, normed: [b, s, hidden]."""
    with t.module("embeddings"):
        x, tokens = embed(t, "word_embeddings", s.vocab, s.hidden)
        places, _ = embed(t, "position_embeddings", c.size("max_position_embeddings", 512, label="positions"), s.hidden)
        x = add(t, x, places, "positions")
        if types:
            kinds, _ = embed(t, "token_type_embeddings", c.size("type_vocab_size", 2, label="types"), s.hidden)
            x = add(t, x, kinds, "types")
        return layer_norm(t, x, "LayerNorm"), tokens


def layer(t: Tape, x: Tensor, s: Sizes, names: Names, dropped: tuple[float, float]) -> Tensor:
    """Attention and MLP, each `dropped`, followed by its sum with the input and a norm: [b, s, hidden] -> [b, s, hidden]."""
    with t.module("", x, part="attention"):
        q, k, v = (linear(t, x, name, s.hidden, bias=True) for name in names.qkv)
        sdpa = names.family != "MPNet"
        y = attention(t, q, k, v, heads=s.heads, kv_heads=s.heads, past=False, masked=False, upcast=False, sdpa=sdpa)
        y = dropout(t, linear(t, y, names.out, s.hidden, bias=True), dropped[0])
    x = t.hold(layer_norm(t, add(t, y, x), names.attention_norm))
    with t.module("", x, part="mlp"):
        y = activation(t, linear(t, x, names.mlp[0], s.ffn, bias=True))
        y = dropout(t, linear(t, y, names.mlp[1], s.hidden, bias=True), dropped[1])
    return layer_norm(t, add(t, y, x), names.mlp_norm)


def masked_lm(t: Tape, c: Config, x: Tensor, s: Sizes, kind: str, tokens: Weight) -> None:
    """Dense, activation, norm, then logits of every position by the embedding's weight, with a bias: [b, s, vocab]."""
    dense, norm, decoder, bias_kind = HEADS.get(kind, ("lm_head.dense", "lm_head.layer_norm", "lm_head", "norm"))
    y = linear(t, x, dense, s.hidden, bias=True, kind="head" if kind in ("roberta", "xlm-roberta", "mpnet") else "linear")
    y = layer_norm(t, activation(t, y), norm)
    all_logits(t, y, decoder, s.vocab, tied=tokens if c.flag("tie_word_embeddings", True) else None, bias=bias_kind)


HEADS: dict[str, tuple[str, str, str, Kind]] = {
    "bert": ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions", "norm"),
    "distilbert": ("vocab_transform", "vocab_layer_norm", "vocab_projector", "linear"),
}


def classify(t: Tape, c: Config, x: Tensor, s: Sizes, kind: str, task: str, dropped: float) -> None:
    """A classifier of the first token (x is that one's), of every token, or of a span's two ends."""
    given = len(c.sub("id2label").raw) if c.has("id2label") else 2
    labels, share = c.size("num_labels", given or 2, label="labels"), c.share("classifier_dropout", dropped)
    if task == "ForQuestionAnswering":
        linear(t, x, "qa_outputs", 2, bias=True)
    elif task == "ForTokenClassification" or kind == "bert":
        linear(t, dropout(t, x, share), "classifier", labels, bias=True)
    elif kind == "distilbert":
        y = t.op("relu", (linear(t, x, "pre_classifier", s.hidden, bias=True),), x.shape, saves_out=True)
        linear(t, dropout(t, y, c.share("seq_classif_dropout", 0.2)), "classifier", labels, bias=True)
    else:
        y = linear(t, dropout(t, x, share), "classifier.dense", s.hidden, bias=True)
        y = t.op("tanh", (y,), x.shape, saves_out=True)
        linear(t, dropout(t, y, share), "classifier.out_proj", labels, bias=True)
