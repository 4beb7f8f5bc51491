"""A GGUF header as a config.json: `model_type` and the keys that the family's forward pass reads (families/).

Architectures and what is special about each stand in gguf_archs.py. Knows what nearly all share: where the sizes of a plain decoder are.
Tensors decide over metadata: a width is that of the matrix, biases and a tied head are what tensors are there or not.
Not said by a GGUF, and not needed for memory: activations, multipliers, rotary bases.
"""

from __future__ import annotations

from ..errors import BadFile, Unknown, nearest
from .gguf_archs import ARCHS
from .gguf_facts import Facts
from .stored import Header, shown


def config_of(header: Header, name: str) -> dict[str, object]:
    """The config of the model whose header this is, of the file called `name` in messages.

    Raises Unknown with the nearest architectures for one that no family describes, BadFile for metadata or tensors that do not fit.
    """
    arch = header.metadata.get("general.architecture")
    if isinstance(arch, str) and arch and arch not in ARCHS:
        raise Unknown(
            f"{name}: GGUF architecture {shown(arch)} is none of the {len(ARCHS)} that we know{nearest(arch[:60], ARCHS)}; "
            "a plain decoder can be described by hand: --layers --hidden --heads --kv-heads --ffn --vocab"
        )
    facts = Facts(header, name)
    model_type, *parts = ARCHS[facts.arch]
    config: dict[str, object] = {"model_type": model_type, **plain(facts)}
    for part in parts:
        config.update(part(facts))
    if config.get("num_attention_heads") and not config["num_key_value_heads"]:
        raise BadFile(f"{name}: attention.head_count_kv of {facts.arch} must be the same in all layers that attend")
    return config


def plain(f: Facts) -> dict[str, object]:
    """What a plain decoder's config holds; None where the file says nothing. Without heads (Mamba) none of their keys are there.

    Source of the keys: `TextModel.set_gguf_parameters` of llama.cpp's `conversion/base.py`.
    """
    hidden = f.size("embedding_length")
    heads = f.common("attention.head_count", 0)
    config: dict[str, object] = {
        "num_hidden_layers": f.layers,
        "hidden_size": hidden,
        "vocab_size": f.rows("token_embd.weight"),
        "max_position_embeddings": f.maybe("context_length"),
        "intermediate_size": f.ffn,
        "tie_word_embeddings": "output.weight" not in f.tensors,
    }
    if heads:
        config |= {
            "num_attention_heads": heads,
            "num_key_value_heads": f.common("attention.head_count_kv", heads),
            "head_dim": f.maybe("attention.key_length") or hidden // heads,
            "attention_bias": bool(f.having("attn_q.bias") or f.having("attn_qkv.bias")),
            "mlp_bias": bool(f.having("ffn_up.bias")),
        }
    return config
