"""What a checkpoint's header says: its tensors by name, stored type, shape and bytes. Knows no file format and no model.

Stored types: floats and integers are named as in `safetensors.DTYPES` ("bf16", "fp8_e4m3"); GGUF's types in upper case, as llama.cpp
names them ("Q4_K", "BF16"), with their sizes in `vramplan.formats.ggml`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ..errors import BadFile

Read = Callable[[int, int], bytes]
"""`read(offset, length)`: up to `length` bytes of a file from `offset`; fewer only where the file ends."""

MAX_HEADER = 100_000_000
"""Bytes of a header that we read at most: the limit of safetensors (`MAX_HEADER_SIZE` in its `tensor.rs`, 0.8.0), used for GGUF too."""

MAX_TENSORS = 1_000_000
"""Tensors of a checkpoint at most. DeepSeek-V3, among the largest published ones, has 91,991."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as a file holds it. `shape` is outermost first, as in torch, and counts elements also where the type packs them."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """All tensors of a checkpoint, in the order of its files, and what else its header says."""

    tensors: tuple[StoredTensor, ...]
    metadata: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A model as its source describes it. `config` is None for GGUF, whose metadata takes its place; `header` is None without weights."""

    id: str
    config: Mapping[str, object] | None
    header: Header | None
    origin: str


def joined(headers: Iterable[Header], name: str) -> Header:
    """One header of the headers of several files (at least one), with the metadata of the first. Raises BadFile for a repeated tensor."""
    parts = tuple(headers)
    tensors = tuple(tensor for part in parts for tensor in part.tensors)
    if len(tensors) > MAX_TENSORS:
        raise BadFile(f"{name}: {len(tensors):,} tensors; at most {MAX_TENSORS:,} are read")
    if (twice := repeated(tensor.name for tensor in tensors)) is not None:
        raise BadFile(f"{name}: tensor {shown(twice)} is there twice")
    return Header(tensors, parts[0].metadata)


def refuse_pointer(data: bytes, name: str) -> None:
    """BadFile if `data`, the start of a file, is that of a Git LFS pointer: what a clone without LFS holds in place of the weights."""
    if data.startswith(b"version https://git-lfs"):
        raise BadFile(f"{name}: a Git LFS pointer, not the file itself; fetch it with `git lfs pull`")


def repeated(names: Iterable[str]) -> str | None:
    """The first of `names` that comes a second time.

    >>> repeated(["a", "b", "a"]), repeated("ab")
    ('a', None)
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def shown(value: object) -> str:
    """`value` from an untrusted file for a one-line message: its repr, cut short.

    >>> shown("a\\nb"), shown([1] * 99)
    ("'a\\\\nb'", '[1, 1, 1, 1, 1, 1, ...]')
    """
    from reprlib import Repr

    short = Repr()
    short.maxstring = short.maxother = 80
    return short.repr(value)
