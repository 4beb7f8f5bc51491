"""What a checkpoint's header says: its tensors by name, stored type, shape and bytes. Knows no file format and no model.

Stored types are named once for all formats: floats and integers as in `DTYPE_BITS`; GGUF block types in upper case as llama.cpp names
them ("Q4_K", "BF16"), whose sizes are in `vramplan.formats.ggml`.
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
    """One header of several files' headers, with the metadata of the first. Raises BadFile for a tensor that is in two of them."""
    parts = tuple(headers)
    tensors = {tensor.name: tensor for part in parts for tensor in part.tensors}
    if len(tensors) < sum(len(part.tensors) for part in parts):
        seen: set[str] = set()
        twice = next(t.name for part in parts for t in part.tensors if t.name in seen or seen.add(t.name))  # type: ignore[func-returns-value]
        raise BadFile(f"{name}: tensor {shown(twice)} is in two of its files")
    if len(tensors) > MAX_TENSORS:
        raise BadFile(f"{name}: {len(tensors):,} tensors; at most {MAX_TENSORS:,} are read")
    return Header(tuple(tensors.values()), parts[0].metadata if parts else {})


def shown(value: object) -> str:
    """`value` from an untrusted file for a one-line message: its repr, cut short.

    >>> shown("a\\nb"), shown([1] * 99)
    ("'a\\\\nb'", '[1, 1, 1, 1, 1, 1, ...]')
    """
    from reprlib import Repr

    short = Repr()
    short.maxstring = short.maxother = 80
    return short.repr(value)
