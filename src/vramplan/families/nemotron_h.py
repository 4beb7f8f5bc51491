"""Nemotron-H and Nemotron 3: each layer is *one* thing, a Mamba-2 mixer, attention, an MLP or a mixture of experts, by a pattern string.

Unusual: `hybrid_override_pattern` spells the layers (M mamba, * attention, - MLP, E experts); MLPs and experts are not gated (relu²); the
larger ones route in a smaller latent space (`moe_latent_size`); no positions. The multi-token-prediction layers are shipped and not loaded.
Source: NVIDIA 2025 (arXiv:2504.03624); transformers 5.23 `models/nemotron_h`.
"""

from __future__ import annotations

from ..errors import BadInput
from ..ops import add, embed, experts, head, linear, route
from ..ops.norm_fp32 import rms_norm_fp32
from ..tape import Tape
from ..tensors import Tensor
from .blocks import plain_mlp, self_attention
from .checks import at_most, multiple
from .config import MAX_LAYERS, Config, groups
from .mamba import mamba2

MODEL_TYPES = ("nemotron_h",)

LETTERS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
KINDS = {"mamba": "mamba", "linear_attention": "mamba", "attention": "attention", "full_attention": "attention", "mlp": "mlp", "moe": "moe"}
STATE_DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def forward(t: Tape, c: Config) -> None:
    hidden, vocab = c.size("hidden_size", 4096, label="hidden"), c.size("vocab_size", 131072, label="vocab")
    heads, d = c.size("num_attention_heads", 32, label="heads"), c.size("head_dim", 128)
    kv_heads = c.size("num_key_value_heads", 8, label="kv_heads")
    multiple(c, heads, kv_heads)

    with t.module("backbone"):
        x, tokens = embed(t, "embeddings", vocab, hidden)
        for kind, layers in groups(layer_kinds(c)):
            with t.layers("layers", layers, x) as x:
                y = rms_norm_fp32(t, x, "norm", gain=False)
                if kind == "mamba":
                    y = mixer(t, y, c)
                elif kind == "attention":
                    y = self_attention(t, y, heads=heads, kv_heads=kv_heads, head_dim=d, rotary=False, module="mixer")
                elif kind == "mlp":
                    ffn = c.size("intermediate_size", 21504, label="ffn")
                    y = plain_mlp(t, y, ffn, bias=c.flag("mlp_bias"), names=("up_proj", "down_proj"), module="mixer")
                else:
                    y = sparse_mlp(t, y, c)
                x = add(t, x, y)
        x = rms_norm_fp32(t, x, "norm_f", gain=False)
    head(t, x, "lm_head", vocab, tied=tokens if c.flag("tie_word_embeddings") else None)


def layer_kinds(c: Config) -> list[str]:
    """What each layer is. Raises BadInput for an unknown letter, or a number of layers other than `num_hidden_layers`."""
    given = c.items("layers_block_type")
    if given is None:
        pattern = c.text("hybrid_override_pattern")
        unknown = set(pattern) - set(LETTERS)
        if unknown or not 0 < len(pattern) <= MAX_LAYERS:
            raise BadInput(
                f"{c.path}: 'hybrid_override_pattern' is {pattern!r:.80}; it must be 1 to {MAX_LAYERS} letters of {''.join(LETTERS)}"
            )
        return c.kinds("layers_block_type", c.layers(default=len(pattern)), [LETTERS[letter] for letter in pattern], KINDS)
    return [KINDS[kind] for kind in c.kinds("layers_block_type", c.layers(default=len(given)), (), KINDS)]


def mixer(t: Tape, x: Tensor, c: Config) -> Tensor:
    """A Mamba-2 layer; its inner width is heads · head_dim, whatever `expand` says."""
    return mamba2(
        t,
        x,
        heads=c.size("mamba_num_heads", 128, label="mamba_heads"),
        head_dim=c.size("mamba_head_dim", 64),
        groups=c.size("n_groups", 8, label="groups"),
        state=c.size("ssm_state_size", 128, label="d_state"),
        kernel=c.size("conv_kernel", 4),
        chunk=c.size("chunk_size", 128, label="chunk"),
        conv_bias=c.flag("use_conv_bias", True),
        bias=c.flag("use_bias"),
        module="mixer",
        state_dtype=STATE_DTYPES.get(c.text("mamba_ssm_cache_dtype", "float32")),
    )


def sparse_mlp(t: Tape, x: Tensor, c: Config) -> Tensor:
    """Routed experts, in a latent space where there is one, and a shared expert beside them: [b, s, hidden] -> [b, s, hidden]."""
    n = c.size("n_routed_experts", 8, label="experts")
    top_k = at_most(c, c.size("num_experts_per_tok", 2, label="top_k"), n)
    latent, bias = c.maybe("moe_latent_size", label="latent"), c.flag("mlp_bias")
    with t.module("mixer", x, part="experts"):
        probabilities = route(t, x, "gate", n)
        t.weight("gate.e_score_correction_bias", (n,), "buffer", dtype="fp32")
        y = linear(t, x, "fc1_latent_proj", latent, bias=bias) if latent else x
        y = experts(
            t,
            y,
            probabilities,
            ffn=c.size("moe_intermediate_size", 7688, label="expert_ffn"),
            n_experts=n,
            top_k=top_k,
            up=("experts.{e}.up_proj.weight",),
            down="experts.{e}.down_proj.weight",
        )
        y = linear(t, y, "fc2_latent_proj", x.shape[-1], bias=bias) if latent else y
        shared_ffn = c.size("moe_shared_expert_intermediate_size", 7688, label="shared_ffn")
        return add(t, y, plain_mlp(t, x, shared_ffn, bias=bias, names=("up_proj", "down_proj"), module="shared_experts"), "shared")
