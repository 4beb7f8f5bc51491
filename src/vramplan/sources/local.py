"""Models on this machine: a config.json, a model folder, a .safetensors or its index, a .gguf. Reads headers, never weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import BadFile, BadInput, NotFound
from . import strict_json
from .choice import CONFIG, INDEX, QUANT_CONFIG, all_there, gguf_file, parts_of, safetensors_files
from .files import label, listed, whole
from .gguf import open_gguf
from .safetensors import open_index, open_safetensors
from .stored import Found, Header, joined, shown

MAX_CONFIG = 10_000_000
"""Bytes of a config.json at most; published ones have up to about 100,000."""

MAX_DEPTH = 100
"""Lists and objects of a config.json nested in one another at most."""


def find(path: Path) -> Found:
    """The model at `path`. Raises NotFound, BadFile, or BadInput where it is none of the kinds above or a choice is left open."""
    name = label(path)
    if os.path.isdir(path):
        return _folder(path)
    if path.name.endswith(".gguf"):
        return Found(id=name, config=None, header=open_gguf(path), origin=f"file {name}")
    if path.name.endswith((".safetensors", ".safetensors.index.json")):
        header = _parts(path) if path.name.endswith(".safetensors") else open_index(path)
        return Found(id=name, config=_config_in(path.parent), header=header, origin=f"file {name}")
    if path.name.endswith(".json"):
        return Found(id=name, config=_with_quantization(read_config(path), path.parent), header=None, origin=f"file {name}")
    if not os.path.exists(path):
        raise NotFound(f"{name}: no such file or folder")
    raise BadInput(f"{name}: must be a config.json, a model folder, a .safetensors or a .gguf")


def read_config(path: Path) -> dict[str, Any]:
    """The object in a local JSON file. Raises NotFound, or BadFile for one that is no strict JSON object, too large or too deep."""
    return parse_config(whole(path, MAX_CONFIG), label(path))


def parse_config(data: bytes, name: str) -> dict[str, Any]:
    """The object that a config.json holds, called `name` in messages. Raises BadFile as `read_config`."""
    config = strict_json.loads(data, name)
    if not isinstance(config, dict):
        raise BadFile(f"{name}: must hold an object, not {shown(config)}")
    if strict_json.depth(config) > MAX_DEPTH:
        raise BadFile(f"{name}: JSON nested more than {MAX_DEPTH} deep")
    return config


def with_modelopt(config: Mapping[str, Any], quant_config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """`config` with the quantisation that ModelOpt wrote beside it, in hf_quant_config.json, unless it has its own.

    >>> with_modelopt({}, {"producer": {}, "quantization": {"quant_algo": "FP8"}}, "x")
    {'quantization_config': {'quant_method': 'modelopt', 'quant_algo': 'FP8'}}
    """
    quantization = quant_config.get("quantization")
    if not isinstance(quantization, dict):
        raise BadFile(f"{name}: must hold an object named quantization")
    return {"quantization_config": {"quant_method": "modelopt", **quantization}, **config}


def _folder(path: Path) -> Found:
    config, header = _config_in(path), _weights_in(path)
    if config is None and header is None:
        raise NotFound(f"{label(path)}: holds no config.json, no .safetensors and no .gguf")
    return Found(id=label(path), config=config, header=header, origin=f"folder {label(path)}")


def _config_in(folder: Path) -> dict[str, Any] | None:
    path = folder / CONFIG
    return _with_quantization(read_config(path), folder) if os.path.exists(path) else None


def _with_quantization(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    path = folder / QUANT_CONFIG
    if "quantization_config" in config or not os.path.exists(path):
        return config
    return with_modelopt(config, read_config(path), label(path))


def _weights_in(folder: Path) -> Header | None:
    """The weights that a loader takes from a folder; safetensors before GGUF."""
    names = listed(folder)
    files = safetensors_files(names, label(folder))
    if files == [INDEX]:
        return open_index(folder / INDEX)
    if files:
        return joined([open_safetensors(folder / file) for file in files], label(folder))
    file = gguf_file(names, None, label(folder))
    return open_gguf(folder / file) if file else None


def _parts(path: Path) -> Header:
    """The header of a .safetensors file, with all its parts if it is named as one of several."""
    names = parts_of(path.name)
    if len(names) > 1:
        all_there(names, listed(path.parent), label(path))
    return joined([open_safetensors(path.parent / name) for name in names], label(path))
