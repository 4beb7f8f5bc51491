"""Headers of GGUF files, versions 2 and 3, of either byte order, whole or split: metadata and tensors, weights never touched.

Token lists and other long values are skipped, and only their length kept (`ArrayLength`). Knows the format and none of its keys except
`general.alignment`, `split.*` and that `tokenizer.*` is long.

Source of the format: docs/gguf.md of github.com/ggml-org/ggml, and `ggml/src/gguf.cpp` of github.com/ggml-org/llama.cpp at 067d44f6,
whose checks (unique names, at most 4 dimensions, rows of whole blocks, tensors one after the other) are made here too. Unlike there,
a dimension of 0 is refused, and arrays of arrays are skipped rather than refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from ..errors import BadFile
from ..formats.ggml import BLOCKS, TYPE_IDS
from .choice import all_there, parts_of
from .files import label, listed, opened
from .gguf_cursor import Cursor
from .stored import MAX_TENSORS, Header, Read, StoredTensor, joined, repeated, shown

MAX_PAIRS = 4096
"""Metadata pairs at most; published files have fewer than 100."""

MAX_NAME = 65_535
"""Bytes of a key at most (docs/gguf.md), used for tensor names too, of which llama.cpp takes 63."""

LONGEST_KEPT = 1024
"""Elements of an array that is kept rather than skipped: enough for one value per layer."""

LONGEST_STRING_KEPT = 65_536
"""Bytes of a string that is kept rather than skipped; chat templates have up to about 20,000."""

MAX_NESTING, MAX_INNER_ARRAYS = 4, 100_000
"""Depth and number of arrays within arrays; no file is known to have any."""

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""`enum gguf_metadata_value_type` of docs/gguf.md -> code of the struct module; the other two are these:"""
STRING, ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class ArrayLength:
    """In place of a long array its number of elements, in place of a long string its bytes."""

    n: int

    def __len__(self) -> int:
        return self.n


def read_gguf(read: Read, size: int | None, name: str) -> Header:
    """The header of one GGUF file of `size` bytes (None if unknown), through a range reader, called `name` in messages.

    Metadata values are int, float, bool, str, tuples of them, or `ArrayLength`; shapes are outermost first, the reverse of the file's.
    Raises BadFile for whatever is not a well-formed header, and for tensors that would lie beyond the file's end.
    """
    cursor = Cursor(read, size, name)
    version = cursor.start()
    if version == 1:
        raise BadFile(f"{name}: GGUF version 1, which llama.cpp reads no longer; versions 2 and 3 are read")
    if version not in (2, 3):
        raise BadFile(f"{name}: GGUF version {version}; versions 2 and 3 are read")
    n_tensors, n_pairs = cursor.number("Q"), cursor.number("Q")
    if n_tensors > MAX_TENSORS or n_pairs > MAX_PAIRS:
        raise BadFile(f"{name}: {n_tensors:,} tensors and {n_pairs:,} metadata pairs; at most {MAX_TENSORS:,} and {MAX_PAIRS:,} are read")
    metadata = _metadata(cursor, n_pairs)
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise BadFile(f"{name}: general.alignment {shown(alignment)} must be a power of two")
    return Header(_tensors(cursor, n_tensors, alignment), metadata)


def _metadata(cursor: Cursor, n: int) -> dict[str, object]:
    metadata: dict[str, object] = {}
    for _ in range(n):
        key = cursor.text(MAX_NAME)
        if key in metadata:
            raise BadFile(f"{cursor.name}: metadata key {shown(key)} is there twice")
        metadata[key] = _value(cursor, key, cursor.number("I"))
    return metadata


def _value(cursor: Cursor, key: str, kind: int) -> object:
    if kind in SCALARS:
        return cursor.number(SCALARS[kind])
    if kind == STRING:
        length = cursor.number("Q")
        if length <= LONGEST_STRING_KEPT:
            return cursor.take(length).decode("utf-8", "replace")
        cursor.skip(length)
        return ArrayLength(length)
    if kind == ARRAY:
        return _Array(cursor, key).value()
    raise BadFile(f"{cursor.name}: metadata {shown(key)} is of type {kind}, which GGUF does not have")


class _Array:
    """One metadata array: kept as a tuple if short, else skipped. Counts the arrays within it."""

    def __init__(self, cursor: Cursor, key: str) -> None:
        self._cursor, self._key, self._inner = cursor, key, 0

    def value(self, depth: int = 1) -> tuple[object, ...] | ArrayLength:
        cursor, key = self._cursor, self._key
        kind, n = cursor.number("I"), cursor.number("Q")
        keep = n <= LONGEST_KEPT and depth == 1 and not key.startswith("tokenizer.")
        if kind in SCALARS:
            if keep:
                return cursor.numbers(SCALARS[kind], n)
            cursor.skip_numbers(SCALARS[kind], n)
        elif kind == STRING:
            if keep:
                return tuple(cursor.text(LONGEST_STRING_KEPT, strict=False) for _ in range(n))
            cursor.skip_strings(n)
        elif kind == ARRAY:
            self._inner += n
            if depth == MAX_NESTING or self._inner > MAX_INNER_ARRAYS:
                raise BadFile(f"{cursor.name}: metadata {shown(key)} holds too many arrays in arrays")
            inner = tuple(self.value(depth + 1) for _ in range(n))
            if keep:
                return inner
        else:
            raise BadFile(f"{cursor.name}: metadata {shown(key)} is an array of type {kind}, which GGUF does not have")
        return ArrayLength(n)


def _tensors(cursor: Cursor, n: int, alignment: int) -> tuple[StoredTensor, ...]:
    tensors: list[StoredTensor] = []
    end = next_offset = 0
    for _ in range(n):
        tensor, offset = _tensor(cursor)
        if offset != next_offset:
            raise BadFile(
                f"{cursor.name}: tensor {shown(tensor.name)} lies at {offset:,}, but the tensors before it end at {next_offset:,}"
            )
        tensors.append(tensor)
        end = offset + tensor.nbytes
        next_offset = -(-end // alignment) * alignment
    if (twice := repeated(tensor.name for tensor in tensors)) is not None:
        raise BadFile(f"{cursor.name}: tensor {shown(twice)} is there twice")
    data = -(-cursor.position // alignment) * alignment
    if n and cursor.size is not None and data + end > cursor.size:
        raise BadFile(f"{cursor.name}: its tensors end at byte {data + end:,}, but the file at {cursor.size:,}: cut short?")
    return tuple(tensors)


def _tensor(cursor: Cursor) -> tuple[StoredTensor, int]:
    """The next tensor's description, and its offset in bytes from the start of the tensor data."""
    name = cursor.text(MAX_NAME)
    rank = cursor.number("I")
    if rank > 4:
        raise BadFile(f"{cursor.name}: tensor {shown(name)} has {rank} dimensions; GGUF allows 4")
    dims, type_id, offset = cursor.numbers("Q", rank), cursor.number("I"), cursor.number("Q")
    if 0 in dims or prod(dims) >= 2**63:
        raise BadFile(f"{cursor.name}: tensor {shown(name)} of shape {shown(dims)}: 1 to 2^63 - 1 elements are allowed")
    dtype = TYPE_IDS.get(type_id)
    if dtype is None:
        raise BadFile(f"{cursor.name}: tensor {shown(name)} is of ggml type {type_id}, which is not among the {len(TYPE_IDS)} that we know")
    elements, nbytes = BLOCKS[dtype]
    row = dims[0] if dims else 1
    if row % elements:
        raise BadFile(f"{cursor.name}: tensor {shown(name)}: rows of {row:,} are not whole blocks of {elements} ({dtype})")
    return StoredTensor(name, dtype, tuple(reversed(dims)), prod(dims) // elements * nbytes), offset


def part_names(name: str, header: Header) -> list[str]:
    """The names of all parts of a split file, of which `name` is one and has this header; just `name` if it is whole.

    Raises BadFile where the name does not say the same as the header's split.count.
    """
    count = header.metadata.get("split.count", 1)
    if count in (0, 1):
        return [name]
    names = parts_of(name)
    if len(names) != count or name not in names:
        raise BadFile(f"{shown(name)}: one of {shown(count)} parts, and must be named as one, such as model-00001-of-00002.gguf")
    return names


def join_parts(parts: Sequence[Header], name: str) -> Header:
    """One header of all parts of a split file, in order. Raises BadFile if a part is not the one that its place says."""
    for no, part in enumerate(parts):
        if (part.metadata.get("split.no"), part.metadata.get("split.count")) != (no, len(parts)):
            raise BadFile(f"{name}: part {no + 1} of {len(parts)} says that it is another part")
    header = joined(parts, name)
    total = header.metadata.get("split.tensors.count", len(header.tensors))
    if total != len(header.tensors):
        raise BadFile(f"{name}: its parts hold {len(header.tensors):,} tensors, but should hold {shown(total)}")
    return header


def open_gguf(path: Path) -> Header:
    """The header of a local GGUF file, with all parts of a split one, which must lie beside it. Raises NotFound or BadFile."""
    header = _open_part(path)
    names = part_names(path.name, header)
    if len(names) == 1:
        return header
    all_there(names, listed(path.parent), label(path))
    return join_parts([_open_part(path.parent / name) for name in names], label(path))


def _open_part(path: Path) -> Header:
    with opened(path) as (read, size):
        return read_gguf(read, size, label(path))
