"""Where a model comes from: the catalogue (offline, the default), this machine's files, the Hugging Face Hub, or a config given inline."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..errors import BadFile, BadInput, NotFound, VramplanError
from .model import Model

if TYPE_CHECKING:
    from .stored import Found

__all__ = ["resolve"]

_QUANTISED = re.compile(r"awq|gptq|fp8|nvfp4|mxfp4|int[48]|[248]-?bit|bnb|w[48]a\d+|exl[23]|hqq|gguf", re.IGNORECASE)


def resolve(model: str | Mapping[str, object]) -> Model:
    """The model that `model` names: a config as an object, a path, a catalogue id or short name, or a Hub repo id.

    A repo id may carry a revision and a GGUF file or quantisation (`org/name@revision`, `org/name:Q4_K_M`); `hf:` in front asks the Hub
    even for a model that the catalogue has. Raises NotFound with the nearest names, BadFile for damaged files, Unreachable without network.
    """
    if not isinstance(model, str):
        if not isinstance(model.get("model_type"), str):
            raise BadInput("an inline config needs its model_type, such as llama")
        return Model(id=f"inline {model['model_type']} config", config=model, origin="the config given inline")
    if _is_path(model):
        from pathlib import Path

        from .local import find

        return _found(find(Path(model).expanduser()))
    if model.startswith("hf:"):
        return _from_hub(model.removeprefix("hf:"))
    from ..catalog.models import find_model

    try:
        entry = find_model(model)
    except NotFound as unknown:
        if "/" not in model:
            raise
        try:
            return _from_hub(model)
        except VramplanError as error:
            raise type(error)(f"{unknown}; and on the Hub: {error}") from None
    notes = [entry.note] if entry.note else []
    if not entry.verbatim and _QUANTISED.search(entry.id) and not entry.config.get("quantization_config"):
        notes.append(
            f"{entry.id} is named like a quantised checkpoint, but the catalogue does not hold its quantisation: say it with --weights"
        )
    return Model(
        id=entry.id,
        config=entry.config,
        origin=f"catalogue, {entry.source}",
        context_length=entry.context_length or None,
        notes=tuple(notes),
    )


def _is_path(name: str) -> bool:
    """Whether `name` means this machine: it exists, or ends as a file does and cannot be `org/name/file.gguf` on the Hub."""
    if os.path.exists(os.path.expanduser(name)):
        return True
    on_hub = name.count("/") >= 2 and name.endswith((".gguf", ".safetensors")) and not name.startswith((".", "/", "~"))
    return name.endswith((".json", ".gguf", ".safetensors")) and not on_hub


def _from_hub(name: str) -> Model:
    from .hub import find

    return _found(find(name))


def _found(found: Found) -> Model:
    """A Model of what a file or the Hub holds: GGUF metadata become a config."""
    gguf = found.config is None
    if found.config is None:
        if found.header is None or not any(str(key).startswith("general.") for key in found.header.metadata):
            raise BadFile(f"{found.id}: a safetensors file says nothing of layers and heads: put its config.json beside it")
        from .gguf_config import config_of

        config: Mapping[str, object] = config_of(found.header, found.id)
    else:
        config = found.config
    if not isinstance(config.get("model_type"), str):
        raise BadFile(f"{found.id}: the config has no model_type")
    return Model(
        id=found.id,
        config=config,
        origin=found.origin,
        stored=found.header.tensors if found.header else None,
        gguf=gguf,
        context_length=_context_length(config),
    )


def _context_length(config: Mapping[str, object]) -> int | None:
    """Tokens that the model was made for, as its config says; YaRN's factor on its original length counts."""
    text = Model(id="", config=config, origin="").text
    lengths = [
        text.get(key) for key in ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "n_ctx", "max_seq_len")
    ]
    length = next((n for n in lengths if isinstance(n, int) and not isinstance(n, bool) and n > 0), None)
    rope = text.get("rope_scaling")
    if isinstance(rope, dict) and "yarn" in (rope.get("rope_type"), rope.get("type")):
        original, factor = rope.get("original_max_position_embeddings"), rope.get("factor")
        if isinstance(original, int) and isinstance(factor, int | float) and 0 < factor < 1e6 and 0 < original < 2**40:
            length = max(length or 0, int(original * factor))
    return length
