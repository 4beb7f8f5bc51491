"""Where a model comes from: the catalogue (offline, the default), this machine's files, the Hugging Face Hub, or a config given inline."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from ..errors import BadFile, BadInput, NotFound, VramplanError
from .model import Model

if TYPE_CHECKING:
    from .stored import Found

__all__ = ["model_of", "only", "resolve", "sent"]

_QUANTISED = re.compile(r"awq|gptq|fp[48]|int[48]|[2-8]-?bit|bnb|w[48]a\d+|exl[23]|hqq|gguf", re.IGNORECASE)
_NAMED = ("nvfp4", "mxfp8", "mxfp4", "fp8", "awq", "gptq", "w4a16", "w8a16", "w8a8")
"""Formats (`formats.scheme_names`) that a repository's name tells by a word of its own."""


_REACH: ContextVar[frozenset[str]] = ContextVar("reach", default=frozenset({"files", "hub"}))


@contextmanager
def only(*places: str) -> Iterator[None]:
    """Here models come from the catalogue, from inline configs and from those of "files" and "hub" that are named; for a server."""
    token = _REACH.set(frozenset(places))
    try:
        yield
    finally:
        _REACH.reset(token)


def resolve(model: str | Mapping[str, object]) -> Model:
    """The model that `model` names: a config as an object, a path, a catalogue id or short name, or a Hub repo id.

    A repo id may carry a revision and a GGUF file or quantisation (`org/name@revision`, `org/name:Q4_K_M`); `hf:` in front asks the Hub
    even for a model that the catalogue has. Raises NotFound with the nearest names, BadFile for damaged files, Unreachable without network.
    """
    if not isinstance(model, str):
        if not isinstance(model.get("model_type"), str):
            raise BadInput("an inline config needs its model_type, such as llama")
        return Model(id=f"inline {model['model_type']} config", config=model, origin="the config given inline")
    if "files" in _REACH.get() and _is_path(model):
        from pathlib import Path

        from .local import find

        return model_of(find(Path(model).expanduser()))
    if model.startswith("hf:"):
        return _from_hub(model.removeprefix("hf:"))
    from ..catalog.models import find_model

    try:
        entry = find_model(model)
    except NotFound as unknown:
        if "/" not in model or "hub" not in _REACH.get():
            raise
        try:
            return _from_hub(model)
        except VramplanError as error:
            raise type(error)(f"{unknown}; and on the Hub: {error}") from None
    notes = [entry.note] if entry.note else []
    named = None
    if _QUANTISED.search(entry.id) and not any(_quantised(c) for c in (entry.config, entry.config.get("text_config"))):
        named = _named_format(entry.id)
        taken = f"taken as {named}, as it is named; --weights says otherwise" if named else "taken as unquantised: say it with --weights"
        notes.append(f"the catalogue does not hold the quantization_config of {entry.id}: {taken}")
    return Model(
        id=entry.id,
        config=entry.config,
        origin=f"catalogue, {entry.source}",
        context_length=entry.context_length or None,
        notes=tuple(notes),
        named_format=named,
    )


def _quantised(config: object) -> bool:
    return isinstance(config, Mapping) and bool(config.get("quantization_config") or config.get("quantization"))


def _named_format(id: str) -> str | None:
    """The number format that a repository's name tells, the last one if several.

    >>> _named_format("nvidia/Qwen3-8B-FP8"), _named_format("org/bf16-from-fp8-bf16"), _named_format("org/Fp8ish")
    ('fp8', None, None)
    """
    words = re.split(r"[^a-z0-9]+", id.lower())
    return None if "bf16" in words else next((word for word in reversed(words) if word in _NAMED), None)


def _is_path(name: str) -> bool:
    """Whether `name` means this machine: it exists, or ends as a file does and cannot be `org/name/file.gguf` on the Hub."""
    if os.path.exists(os.path.expanduser(name)):
        return True
    on_hub = name.count("/") >= 2 and name.endswith((".gguf", ".safetensors")) and not name.startswith((".", "/", "~"))
    return name.endswith((".json", ".gguf", ".safetensors")) and not on_hub


def sent(data: bytes, name: str) -> Found:
    """What somebody sends in place of a file: a config.json, or the first bytes of a GGUF or safetensors file with its whole header.

    Nothing is opened. Raises BadFile for what is none of them, or damaged.
    """
    from .stored import Found

    def read(offset: int, length: int) -> bytes:
        return data[offset : offset + length]

    if data.startswith(b"GGUF"):
        from .gguf import read_gguf

        return Found(id=name, config=None, header=read_gguf(read, None, name), origin=f"the header of {name}")
    if data[8:9] == b"{":
        from .safetensors import read_safetensors

        return Found(id=name, config=None, header=read_safetensors(read, None, name), origin=f"the header of {name}")
    from .local import parse_config

    return Found(id=name, config=parse_config(data, name), header=None, origin=f"the config {name}")


def _from_hub(name: str) -> Model:
    if "hub" not in _REACH.get():
        raise BadInput(f"model {name[:80]!r}: the Hub is not asked here; name a model of the catalogue, or give its config")
    from .hub import find

    return model_of(find(name))


def model_of(found: Found) -> Model:
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
