"""Which of a folder's files are the model, by their names alone; the same rules for a local folder and a repository on the Hub."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from ..errors import BadInput, NotFound, nearest
from .stored import shown

CONFIG, QUANT_CONFIG = "config.json", "hf_quant_config.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

PART = re.compile(r"(?P<prefix>.+)-(?P<no>[0-9]{5})-of-(?P<count>[0-9]{5})(?P<suffix>\.gguf|\.safetensors)", re.DOTALL)
"""How transformers and llama.cpp (`llama_split_path`) name the parts of a model, from 00001."""

QUANT = re.compile(r"(?<![A-Za-z0-9])(?:UD-)?(?:I?Q[0-9]|TQ[0-9]|MXFP4|NVFP4|BF16|F16|F32)(?:_[A-Za-z0-9]+)*(?![A-Za-z0-9])", re.IGNORECASE)
"""The quantisation in the name of a GGUF file, as llama.cpp's and Unsloth's conversions write it."""


def parts_of(name: str) -> list[str]:
    """All parts of the model that the file `name` is a part of; just `name` if it is none.

    >>> parts_of("x-00002-of-00002.gguf"), parts_of("x.gguf")
    (['x-00001-of-00002.gguf', 'x-00002-of-00002.gguf'], ['x.gguf'])
    """
    match = PART.fullmatch(name)
    count = int(match["count"]) if match else 1
    if match is None or count < 2:
        return [name]
    return [f"{match['prefix']}-{no:05d}-of-{count:05d}{match['suffix']}" for no in range(1, count + 1)]


def all_there(wanted: Sequence[str], names: Collection[str], where: str) -> Sequence[str]:
    """`wanted`, if all of them are among `names`; else NotFound."""
    there = set(names)
    if missing := [name for name in wanted if name not in there]:
        raise NotFound(f"{where}: {len(missing)} of the model's {len(wanted)} files are not there, such as {shown(missing[0])}")
    return wanted


def safetensors_files(names: Collection[str], where: str) -> list[str]:
    """The file that a loader takes from a folder: model.safetensors, else the index, else all .safetensors in it; empty if there is none.

    Raises NotFound if parts are missing.
    """
    for name in (SINGLE, INDEX):
        if name in names:
            return [name]
    files = sorted(name for name in names if name.endswith(".safetensors") and "/" not in name)
    return sorted({part for file in files for part in all_there(parts_of(file), files, where)})


def gguf_file(names: Collection[str], quant: str | None, where: str) -> str | None:
    """The one GGUF file among `names` (the first part of a split one), of quantisation `quant` if given; None if there is no GGUF at all.

    Vision projectors (mmproj) are passed over. Raises BadInput if several files, or none, are of that quantisation.
    """
    files = sorted(n for n in names if n.endswith(".gguf") and "mmproj" not in n.lower() and parts_of(n)[0] == n)
    if not files:
        return None
    fitting = files if quant is None else _of(quant.upper(), files) or _of(f"UD-{quant.upper()}", files)
    if len(fitting) == 1:
        return fitting[0]
    known = sorted({q for file in files for q in _quants(file)})
    if quant is not None and not fitting:
        raise BadInput(f"{where}: no GGUF file of {shown(quant)}; there are {_listed(known or files)}{nearest(quant.upper(), known)}")
    names_enough = quant is None and len(known) == len(files)
    raise BadInput(f"{where}: holds {len(fitting)} GGUF files; name one of {_listed(known if names_enough else fitting)}")


def _of(quant: str, files: Sequence[str]) -> list[str]:
    return [file for file in files if quant in _quants(file)]


def _listed(names: Sequence[str]) -> str:
    listing = ", ".join(name if name.isprintable() else shown(name) for name in names)
    return listing if len(listing) <= 400 else f"{listing[:400]} ..."


def _quants(file: str) -> set[str]:
    return {match.upper() for match in QUANT.findall(file)}
