"""Models on the Hugging Face Hub: the config and the headers of the weights, by range requests; the weights are never fetched.

A model is named `org/name`, `org/name:Q4_K_M` (the GGUF file of that quantisation) or `org/name/file.gguf`, with `@revision` after the
name. Where the Hub does not answer, or HF_HUB_OFFLINE is set, the cache of `huggingface_hub` is read in its place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import BadInput, NotFound
from . import local
from .choice import CONFIG, INDEX, QUANT_CONFIG, all_there, gguf_file, parts_of, safetensors_files
from .files import whole
from .gguf import join_parts, read_gguf
from .hub_client import NoAnswer, Repository
from .safetensors import MAX_INDEX, join_shards, read_index, read_safetensors
from .stored import Found, Header, Read, joined, shown

THREADS = 16
"""Headers that are read at a time."""

ADDRESS = re.compile(
    r"(?P<repo>[\w.-]{1,100}(?:/[\w.-]{1,100})?)(?:/(?P<file>[^:@]{1,300}\.(?:gguf|safetensors)))?"
    r"(?:@(?P<revision>[\w./-]{1,200}))?(?::(?P<quant>[\w.-]{1,40}))?",
    re.ASCII,
)

Sizes = Mapping[str, int | None]


def find(model: str, *, revision: str | None = None, token: str | None = None, endpoint: str | None = None) -> Found:
    """The model that `model` names on the Hub, at a branch, tag or commit (None: the one in the name, else main).

    Raises BadInput for a name of another form or an open choice between GGUF files, NotFound, Unreachable (no network, gated), BadFile.
    """
    address = ADDRESS.fullmatch(model)
    if address is None or (address["file"] and address["quant"]):
        raise BadInput(
            f"{shown(model)} names no model on the Hub; write org/name, org/name@revision, org/name:Q4_K_M or org/name/file.gguf"
        )
    repo = Repository(address["repo"], revision or address["revision"], token, endpoint)
    try:
        sizes = repo.files()
    except NoAnswer as error:
        found = _cached(repo, address["file"], address["quant"])
        if found is None:
            raise error
        return found
    config, header = _read(repo, sizes, address["file"], address["quant"])
    return Found(id=repo.id, config=config, header=header, origin=f"Hugging Face Hub {repo.id} at revision {repo.revision}")


def _read(repo: Repository, sizes: Sizes, file: str | None, quant: str | None) -> tuple[dict[str, Any] | None, Header | None]:
    if file is None and quant is None:
        config, header = _config(repo, sizes), _safetensors(repo, sizes, safetensors_files(sizes, repo.id))
        if config is not None or header is not None:
            return config, header
    if file is None:
        file = gguf_file(sizes, quant, repo.id)
    if file is None:
        raise NotFound(f"{repo.id} at revision {repo.revision} holds {'no .gguf' if quant else 'no config.json, .safetensors or .gguf'}")
    parts = all_there(parts_of(file), sizes, repo.id)
    if file.endswith(".gguf"):
        headers = _headers(repo, sizes, parts, read_gguf)
        return None, headers[0] if len(parts) == 1 else join_parts(headers, f"{repo.id}/{file}")
    return _config(repo, sizes), _safetensors(repo, sizes, parts)


def _config(repo: Repository, sizes: Sizes) -> dict[str, Any] | None:
    if CONFIG not in sizes:
        return None
    config = local.read_config(_small(repo, sizes, CONFIG, local.MAX_CONFIG))
    if "quantization_config" in config or QUANT_CONFIG not in sizes:
        return config
    quant_config = local.read_config(_small(repo, sizes, QUANT_CONFIG, local.MAX_CONFIG))
    return local.with_modelopt(config, quant_config, f"{repo.id}/{QUANT_CONFIG}")


def _safetensors(repo: Repository, sizes: Sizes, files: Sequence[str]) -> Header | None:
    if not files:
        return None
    if list(files) != [INDEX]:
        return joined(_headers(repo, sizes, files, read_safetensors), repo.id)
    weight_map = read_index(whole(_small(repo, sizes, INDEX, MAX_INDEX), MAX_INDEX), f"{repo.id}/{INDEX}")
    shards = all_there(sorted(set(weight_map.values())), sizes, repo.id)
    return join_shards(weight_map, dict(zip(shards, _headers(repo, sizes, shards, read_safetensors), strict=True)), repo.id)


def _small(repo: Repository, sizes: Sizes, name: str, limit: int) -> Path:
    return repo.fetch(name, sizes[name], limit)


def _headers(repo: Repository, sizes: Sizes, files: Sequence[str], parse: Callable[[Read, int | None, str], Header]) -> list[Header]:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(min(THREADS, len(files))) as pool:
        return list(pool.map(lambda file: parse(repo.reader(file), sizes[file], f"{repo.id}/{file}"), files))


def _cached(repo: Repository, file: str | None, quant: str | None) -> Found | None:
    """What the cache holds of the repository: the file that was asked for, or config.json and, if they are all there, the weights."""
    path = None if quant else repo.cached(file or CONFIG)
    if path is None:
        return None
    try:
        found = local.find(path if file else path.parent)
    except NotFound:  # not all weights are there
        if file:
            raise
        found = local.find(path)
    return replace(found, id=repo.id, origin=f"cache of the Hugging Face Hub, {repo.id} at revision {repo.revision}")
