"""Gemma 3n: a model for phones, with most of its weights in tables that a token hardly reads.

Unusual: *per-layer embeddings* and *KV sharing* (per_layer.py); *AltUp*, four copies of the stream of which a layer computes one and
predicts and corrects the others; *Laurel*, a low-rank path beside attention; *MatFormer*, an MLP width per layer. Vision by MobileNet-V5
(mobilenet.py), sound by a conformer (gemma_audio.py), each with its own small vocabulary. Checkpoints also hold keys and values of the
shared layers, which nothing reads. Source: transformers 5.23 `models/gemma3n`; Baykal et al. 2023 (AltUp, arXiv:2301.13310).
"""

from __future__ import annotations

from ..dim import Dim
from ..errors import BadInput
from ..ops import activation, add, attention, embed, head, linear, rope
from ..ops.norm_fp32 import rms_norm_fp32
from ..ops.scale import scale, softcap
from ..tape import Tape
from ..tensors import Tensor
from .blocks import cache_kv, gated_mlp
from .checks import few, multiple
from .config import Config, groups
from .gemma_audio import gemma3n_audio
from .mobilenet import mobilenet_v5
from .per_layer import FULL, attention_kinds, per_layer_gate, per_layer_inputs, shared_layers

MODEL_TYPES = ("gemma3n", "gemma3n_text")

KeysValues = dict[str, tuple[Tensor, Tensor]]


def forward(t: Tape, c: Config) -> None:
    tied = c.flag("tie_word_embeddings", True)
    if c.text("model_type") == "gemma3n_text":
        decoder(t, c, "model", tied=tied)
        return
    text = c.sub("text_config")
    towers(t, c.sub("vision_config"), c.sub("audio_config"), text.size("hidden_size", 2048, label="hidden"))
    decoder(t, text, "model.language_model", tied=tied)


def towers(t: Tape, vision: Config, audio: Config, hidden: Dim) -> None:
    """Both towers and their embedders, which also embed the modality's own tokens."""
    architecture = vision.text("architecture", "mobilenetv5_300m_enc")
    if architecture != "mobilenetv5_300m_enc":
        raise BadInput(f"{vision.path}: 'architecture' is {architecture[:60]!r}; known is mobilenetv5_300m_enc")
    with t.tower("vision"), t.module("model"):
        with t.module("vision_tower.timm_model"):
            x = mobilenet_v5(t)
        embedder(t, x, vision, "embed_vision", hidden)
    with t.tower("audio"), t.module("model"):
        embedder(t, gemma3n_audio(t, audio), audio, "embed_audio", hidden)


def embedder(t: Tape, x: Tensor, c: Config, module: str, hidden: Dim) -> None:
    """Soft tokens from the tower, hard ones from a table: each normed, then projected into the text model."""
    with t.module(module, x):
        t.weight("embedding.weight", (c.size("vocab_size", 128), x.shape[-1]), "embed")
        t.weight("hard_embedding_norm.weight", (x.shape[-1],), "norm")
        y = linear(t, rms_norm_fp32(t, x, "soft_embedding_norm"), "embedding_projection", hidden)
        rms_norm_fp32(t, y, "embedding_post_projection_norm", weight=False)


def decoder(t: Tape, c: Config, module: str, *, tied: bool) -> None:
    """The text model and its head. Defaults: Gemma3nTextConfig."""
    hidden, vocab = c.size("hidden_size", 2048, label="hidden"), c.size("vocab_size", 262400, label="vocab")
    copies, d = Dim(c.layers("altup_num_inputs", 4), "altup"), c.size("hidden_size_per_layer_input", 256, label="per_layer")
    n = c.layers(default=35)
    kinds = attention_kinds(c, n, 5)
    own = n - shared_layers(c, kinds, 15)
    keys: KeysValues = {}

    with t.module(module):
        x, tokens = embed(t, "embed_tokens", vocab, hidden)
        x = scale(t, x, "scaled")
        inputs = per_layer_inputs(t, x, c, n, d)
        x = altup_spread(t, x, copies)
        for (kind, shared, ffn), layers in groups((kinds[i], i >= own, ffn) for i, ffn in enumerate(ffn_widths(c, n))):
            with t.layers("layers", layers, x) as x:
                predicted, active = altup_predict(t, x, copies)
                y = t.hold(rms_norm_fp32(t, active, "input_layernorm"))
                side = laurel(t, y, c.size("laurel_rank", 64))
                y = rms_norm_fp32(t, self_attention(t, y, c, kind, keys, shared), "post_attention_layernorm")
                y = scale(t, add(t, add(t, active, y), side, "laurel_sum"), "attn_laurel")
                z = gated_mlp(t, rms_norm_fp32(t, y, "pre_feedforward_layernorm"), Dim(ffn, "ffn"))
                y = add(t, y, rms_norm_fp32(t, z, "post_feedforward_layernorm"))
                x = altup_correct(t, predicted, y, copies, c.flag("altup_correct_scale", True))
                first = scale(t, t.view(x, y.shape), "first_prediction")
                x = add(t, x, per_layer_gate(t, first, inputs, d), "corrected_predictions")
        x = rms_norm_fp32(t, altup_merge(t, x), "norm")
    softcap(t, head(t, x, "lm_head", vocab, tied=tokens if tied else None), "logits")


def ffn_widths(c: Config, n: int) -> list[int]:
    """MatFormer's MLP width of each layer: a list, or one for all."""
    if not isinstance(c.raw.get("intermediate_size"), list):
        return [int(c.size("intermediate_size", 16384, label="ffn"))] * n
    given = c.items("intermediate_size") or []
    if len(given) != n:
        raise BadInput(f"{c.path}: 'intermediate_size' names {len(given)} layers, the model has {n}")
    each = Config({str(i): width for i, width in enumerate(given)}, f"{c.path}.intermediate_size")
    widths = [int(each.size(str(i))) for i in range(n)]
    few(c, "intermediate_size", widths)
    return widths


def altup_spread(t: Tape, x: Tensor, copies: Dim) -> Tensor:
    """[b, s, hidden] -> [altup, b, s, hidden]: the embedding and its projections, rescaled to its magnitude."""
    with t.layers("altup_projections", range(int(copies) - 1), x) as first:
        scale(t, linear(t, first, "weight", x.shape[-1], suffix=""), "rescaled")
    return t.op("altup.stack", (x,), (copies, *x.shape))


def altup_merge(t: Tape, x: Tensor) -> Tensor:
    """[altup, b, s, hidden] -> [b, s, hidden]: the mean of the first stream and the others' projections."""
    with t.layers("altup_unembed_projections", range(int(x.shape[0]) - 1), t.view(x, x.shape[1:])) as other:
        scale(t, linear(t, other, "weight", x.shape[-1], suffix=""), "rescaled")
    return t.op("altup.mean", (x,), x.shape[1:])


def altup_modalities(t: Tape, x: Tensor, copies: Dim, name: str) -> Tensor:
    """How much of each stream a token wants: [b, s, hidden] -> [b, s, altup]. Its weights are noted once, by the first of two calls."""
    normed = rms_norm_fp32(t, x, "router_norm", kind="router") if name == "predict" else rms_norm_fp32(t, x, "router_norm", weight=False)
    if name == "predict":
        return activation(t, linear(t, normed, "modality_router", copies, kind="router"), "tanh")
    return t.op("modality_router", (normed,), (*x.shape[:-1], copies), saves=(normed,))


def altup_predict(t: Tape, x: Tensor, copies: Dim) -> tuple[Tensor, Tensor]:
    """All streams predicted from all, by coefficients of the active one; returns them and the active one."""
    active = t.view(x, x.shape[1:])
    with t.module("altup", x):
        modalities = altup_modalities(t, active, copies, "predict")
        coefficients = linear(t, modalities, "prediction_coefs", copies * copies)
        mixed = t.op("predictions.matmul", (x, coefficients), (*x.shape[1:], copies), saves=(x, coefficients))
        predicted = t.op("predictions", (mixed,), x.shape)
    return t.hold(predicted), t.view(predicted, x.shape[1:])


def altup_correct(t: Tape, predicted: Tensor, activated: Tensor, copies: Dim, scaled: bool) -> Tensor:
    """All streams corrected by what the layer found out about the active one."""
    with t.module("altup", predicted, activated):
        modalities = altup_modalities(t, activated, copies, "correct")
        coefficients = linear(t, modalities, "correction_coefs", copies)
        innovation = t.op("innovation", (activated, predicted), predicted.shape)
        t.weight("correct_output_scale", (activated.shape[-1],), "norm")
        corrected = t.op("corrected", (innovation, coefficients), predicted.shape, saves=(innovation, coefficients))
        return scale(t, corrected, "correct_output_scale") if scaled else corrected


def laurel(t: Tape, x: Tensor, rank: Dim) -> Tensor:
    """x plus a normed low-rank map of x."""
    with t.module("laurel", x):
        y = linear(t, linear(t, x, "linear_left", rank), "linear_right", x.shape[-1])
        return add(t, x, rms_norm_fp32(t, y, "post_laurel_norm"))


def self_attention(t: Tape, x: Tensor, c: Config, kind: str, keys: KeysValues, shared: bool) -> Tensor:
    """Grouped-query attention with norms on q, k and v; a `shared` layer reads the keys and values that its kind left in `keys`."""
    heads, kv_heads = c.size("num_attention_heads", 8, label="heads"), c.size("num_key_value_heads", 2, label="kv_heads")
    multiple(c, heads, kv_heads)
    d, bias = c.size("head_dim", 256), c.flag("attention_bias")
    window = None if kind == FULL else c.size("sliding_window", 512, label="window")
    with t.module("self_attn", x, part="attention"):
        q = rope(t, rms_norm_fp32(t, linear(t, x, "q_proj", heads * d, bias=bias), "q_norm", width=d), "q", d)
        if not shared:
            k = rope(t, rms_norm_fp32(t, linear(t, x, "k_proj", kv_heads * d, bias=bias), "k_norm", width=d), "k", d)
            v = rms_norm_fp32(t, linear(t, x, "v_proj", kv_heads * d, bias=bias), "v_norm", weight=False)
            cache_kv(t, kv_heads, d, window=window)
            keys[kind] = k, v
        k, v = keys[kind]
        return linear(t, attention(t, q, k, v, heads=heads, kv_heads=kv_heads, window=window), "o_proj", x.shape[-1], bias=bias)
