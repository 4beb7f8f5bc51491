"""EAGLE's drafts as vLLM loads them: a layer or few of a Llama's kind that read the model's hidden states beside the last token.

EAGLE joins them with the embedding, [hidden, 2 · hidden]; EAGLE-3 joins three layers' states, [hidden, 3 · hidden], and its first layer's
queries, keys and values read that and the embedding. The embedding is the model's (vLLM shares what is equal, and checkpoints copy it), so
is EAGLE's head; EAGLE-3 has its own of `draft_vocab_size` tokens, with a table of what they are to the model (d2t, int64).
Configs are EAGLE's own, vLLM's (`model`), and those of speculators (`transformer_layer_config`). What it does not know: drafts of other
families' layers (DeepSeek's, Llama 4's, MiniCPM's), heads that equal the model's, parallel drafting, DFlash, Medusa, MLP speculators.
Source: vLLM 0.21.0 models/llama_eagle.py, models/llama_eagle3.py, transformers_utils/configs/{eagle,speculators/algos}.py,
config/speculative.py, v1/spec_decode/llm_base_proposer.py `_maybe_share_embeddings`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..dim import Dim
from ..errors import Unknown
from ..sources.model import Model
from ..tape import Tape
from ..tensors import Weight

STATES = 3
"""Layers whose hidden states EAGLE-3 reads."""


def generation(model: Model) -> int:
    """1 or 3 for EAGLE and EAGLE-3; 0 for another model. Raises Unknown for other heads that are trained for one model."""
    config, name = model.config, model.id.lower()
    named = config.get("architectures")
    first = str(named[0]).lower() if isinstance(named, list) and named else ""
    kind = config.get("speculators_model_type")
    if kind not in (None, "eagle3") or "dflash" in first or "medusa" in first:
        raise Unknown(f"draft_model {model.id}: drafts of this kind are not estimated by this version; EAGLE and EAGLE-3 are")
    if kind == "eagle3" or "eagle3" in first or "eagle3" in name:
        return 3
    return 1 if "eagle" in first or config.get("model_type") == "eagle" or "eagle-" in name else 0


def states(draft: Model) -> int:
    """How many layers' hidden states a pass of the model keeps for the draft, beside its own."""
    return STATES if generation(draft) == 3 and not _without(draft) else 0


def _without(draft: Model) -> bool:
    """Whether an EAGLE-3 draft reads the last hidden state only (`use_aux_hidden_state`)."""
    own = draft.config.get("eagle_config")
    return isinstance(own, dict) and own.get("use_aux_hidden_state") is False


def as_llama(model: Model) -> Model:
    """The draft with the config of its layers, as vLLM reads it. Raises Unknown where these are no Llama's."""
    inner = next((found for key in ("transformer_layer_config", "model") if isinstance(found := model.config.get(key), dict)), {})
    outer = {key: value for key, value in model.config.items() if key not in ("model_type", "transformer_layer_config", "model")}
    config = {"model_type": model.config.get("model_type"), **outer, **inner}
    if config["model_type"] not in ("llama", "qwen2", "qwen3"):
        raise Unknown(f"draft_model {model.id}: EAGLE's layers of type {config['model_type']!r} are not estimated by this version")
    own = {1: "EagleLlamaForCausalLM", 3: "Eagle3LlamaForCausalLM"}[generation(model)]
    return replace(model, config={**config, "model_type": "llama", "architectures": [own], "tie_word_embeddings": False})


def in_place(tape: Tape, draft: Model) -> Tape:
    """`tape`, a Llama's pass with the draft's layers, with the weights that EAGLE has in their place."""
    hidden = Dim(next(int(weight.shape[-1]) for weight in tape.weights if weight.part == "embedding"), "hidden")
    if generation(draft) == 1:
        return replace(tape, weights=list(_first(tape.weights, hidden)))
    named, vocab = draft.config.get("target_hidden_size"), draft.config.get("draft_vocab_size")
    read = states(draft) * (named if isinstance(named, int) else hidden)
    return replace(tape, weights=list(_third(tape.weights, hidden, read, vocab)))


def _first(weights: list[Weight], hidden: Dim) -> Iterator[Weight]:
    """The first layer has no norm before its attention, the last none after it."""
    for weight in weights:
        layers = (weight.layers or ())[1:] if weight.name.endswith("input_layernorm.weight") else weight.layers
        if weight.part not in ("embedding", "head") and layers:
            yield replace(weight, layers=layers)
    yield _matrix("fc", hidden, 2 * hidden)


def _third(weights: list[Weight], hidden: Dim, read: int, vocab: object) -> Iterator[Weight]:
    for weight in weights:
        if weight.part == "attention" and weight.shape[-1] == hidden and "o_proj" not in weight.name and len(weight.shape) == 2:
            first, *rest = weight.layers or (0,)
            yield replace(weight, layers=(first,), shape=(weight.shape[0], 2 * hidden))
            weight = replace(weight, layers=tuple(rest))
        elif weight.part == "head" and isinstance(vocab, int):
            weight = replace(weight, shape=(Dim(vocab, "draft_vocab"), hidden))
        if weight.part != "embedding" and weight.layers != ():
            yield weight
    yield Weight(name="hidden_norm.weight", shape=(hidden,), kind="norm", part="norms")
    if read:
        yield _matrix("fc", hidden, read)
    if isinstance(vocab, int):
        yield Weight(name="d2t", shape=(Dim(vocab, "draft_vocab"),), kind="norm", part="head", dtype="int64")


def _matrix(name: str, rows: Dim, cols: int) -> Weight:
    """Whole on each rank, in the model's dtype."""
    return Weight(name=f"{name}.weight", shape=(rows, cols), kind="norm", part="projection")
