"""Headers of safetensors files, single or sharded: read by ranges, checked against the format, weights never touched.

Source of the format: README.md ("Format") and `safetensors/src/tensor.rs` of github.com/huggingface/safetensors at 0.8.0: eight bytes
with the header's length N, N bytes of JSON, then the tensors one after the other without holes. An empty tensor (a dimension of 0) is
allowed there and here: it takes no bytes. Fields beside dtype, shape and data_offsets are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import BadFile
from . import strict_json
from .choice import all_there
from .files import label, listed, opened, whole
from .stored import MAX_HEADER, MAX_TENSORS, Header, Read, StoredTensor, joined, refuse_pointer, shown

FIRST_READ = 65_536
"""Bytes of the first read: holds most headers whole, so that a remote file takes one request, at the price of at most this many bytes
of weights."""

MAX_INDEX = 100_000_000
"""Bytes of an index at most; that of DeepSeek-V3 (91,991 tensors) has 8.9 million."""

MAX_SHARDS = 10_000
"""Shards of an index at most; the largest published checkpoints have some hundreds."""

MAX_RANK = 64
"""Dimensions at most, as in torch."""

DTYPES = {
    "F64": ("fp64", 64), "F32": ("fp32", 32), "F16": ("fp16", 16), "BF16": ("bf16", 16), "C64": ("complex64", 64),
    "F8_E4M3": ("fp8_e4m3", 8), "F8_E5M2": ("fp8_e5m2", 8), "F8_E8M0": ("fp8_e8m0", 8),
    "F8_E4M3FNUZ": ("fp8_e4m3fnuz", 8), "F8_E5M2FNUZ": ("fp8_e5m2fnuz", 8),
    "F6_E2M3": ("fp6_e2m3", 6), "F6_E3M2": ("fp6_e3m2", 6), "F4": ("fp4", 4),
    "I64": ("int64", 64), "I32": ("int32", 32), "I16": ("int16", 16), "I8": ("int8", 8),
    "U64": ("uint64", 64), "U32": ("uint32", 32), "U16": ("uint16", 16), "U8": ("uint8", 8), "BOOL": ("bool", 8),
}  # fmt: skip
"""Name in the file -> our name and bits per element: all 22 of `enum Dtype` in tensor.rs, 0.8.0."""


class _Entry(NamedTuple):
    """One tensor of the JSON header, already checked by itself."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_safetensors(read: Read, size: int | None, name: str) -> Header:
    """The header of one safetensors file of `size` bytes (None if unknown), through a range reader, called `name` in messages.

    Raises BadFile for anything that the format forbids: a length beyond the file or 100 MB, repeated names, dimensions that are no
    non-negative integers, holes or overlaps between tensors, bytes that are not shape x dtype.
    """
    data = read(0, FIRST_READ)
    refuse_pointer(data, name)
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or (size is not None and length > size - 8):
        raise BadFile(f"{name}: not a safetensors file, or cut short: a header of {length:,} bytes does not fit in it")
    if length > MAX_HEADER:
        raise BadFile(
            f"{name}: not a safetensors file, or damaged: its header would have {length:,} bytes; the format allows {MAX_HEADER:,}"
        )
    missing = 8 + length - len(data)
    text = data[8 : 8 + length] + (read(len(data), missing) if missing > 0 else b"")
    if len(text) < length:
        raise BadFile(f"{name}: ends within its header of {length:,} bytes")
    return _parsed(text, None if size is None else size - 8 - length, name)


def _parsed(text: bytes, data_size: int | None, name: str) -> Header:
    if text.count(b'"data_offsets"') > MAX_TENSORS:
        raise BadFile(f"{name}: more than {MAX_TENSORS:,} tensors")
    fields = strict_json.loads(text, name, objects=_objects())
    metadata = fields.pop("__metadata__", {}) if isinstance(fields, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise BadFile(f"{name}: the header must be an object, and its __metadata__ one of strings")
    strangers = [key for key, value in fields.items() if not isinstance(value, _Entry)]
    if strangers:
        raise BadFile(f"{name}: tensor {shown(strangers[0])} must be an object with dtype, shape and data_offsets")
    _check_layout(fields, data_size, name)
    tensors = (StoredTensor(key, entry.dtype, entry.shape, entry.end - entry.begin) for key, entry in fields.items())
    return Header(tuple(tensors), metadata)


def _objects() -> Callable[[strict_json.Pairs], Any]:
    """Makes an `_Entry` of every tensor as soon as it is parsed, and lets only two other objects pass: __metadata__ and the header."""
    others = 0

    def make(pairs: strict_json.Pairs) -> Any:
        nonlocal others
        fields = strict_json.unique(pairs)
        if fields.keys() == {"dtype", "shape", "data_offsets"} and isinstance(fields["shape"], list):
            return _entry(fields["dtype"], fields["shape"], fields["data_offsets"])
        others += 1
        if others > 2:
            raise ValueError(f"a tensor must have dtype, shape and data_offsets, not {shown(list(fields))}")
        return fields

    return make


def _entry(dtype: object, shape: list[object], offsets: object) -> _Entry:
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"dtype {shown(dtype)} is none of {', '.join(DTYPES)}")
    if len(shape) > MAX_RANK or not all(type(n) is int and 0 <= n < 2**63 for n in shape):
        raise ValueError(f"shape {shown(shape)}: at most {MAX_RANK} dimensions, each an integer from 0 to 2^63 - 1")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int and 0 <= n < 2**63 for n in offsets):
        raise ValueError(f"data_offsets {shown(offsets)}: must be two integers, begin and end")
    name, bits = DTYPES[dtype]
    dims = tuple(n for n in shape if isinstance(n, int))
    begin, end = offsets
    if (end - begin) * 8 != prod(dims) * bits:
        raise ValueError(f"{dtype} {shown(shape)} does not take the {end - begin:,} bytes that its data_offsets say")
    return _Entry(name, dims, begin, end)


def _check_layout(entries: Mapping[str, _Entry], data_size: int | None, name: str) -> None:
    spans = sorted((entry.begin, entry.end) for entry in entries.values())
    if any(end != begin for (_, end), (begin, _) in pairwise([(0, 0), *spans])):
        raise BadFile(f"{name}: its tensors overlap, or leave holes between them")
    end = spans[-1][1] if spans else 0
    if data_size is not None and end != data_size:
        raise BadFile(f"{name}: holds {data_size:,} bytes of tensors, but its header describes {end:,}: cut short or damaged")


def open_safetensors(path: Path) -> Header:
    """The header of one local safetensors file. Raises NotFound or BadFile."""
    with opened(path) as (read, size):
        return read_safetensors(read, size, label(path))


def open_index(path: Path) -> Header:
    """The headers of all shards that a local `*.safetensors.index.json` names, joined. Raises NotFound or BadFile."""
    weight_map = read_index(whole(path, MAX_INDEX), label(path))
    shards = sorted(set(weight_map.values()))
    all_there(shards, listed(path.parent), label(path))
    return join_shards(weight_map, {shard: open_safetensors(path.parent / shard) for shard in shards}, label(path))


def read_index(data: bytes, name: str) -> dict[str, str]:
    """The weight map (tensor -> shard) of an index. Raises BadFile if a shard's name could lead out of the index's own folder."""
    index = strict_json.loads(data, name)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadFile(f"{name}: must hold a weight_map of tensor names to shards")
    shards = {shard if isinstance(shard, str) else shown(shard) for shard in weight_map.values()}
    if len(shards) > MAX_SHARDS:
        raise BadFile(f"{name}: {len(shards):,} shards; at most {MAX_SHARDS:,} are read")
    for shard in shards:
        if not shard.endswith(".safetensors") or shard.startswith(".") or not shard.isprintable() or set(shard) & set("/\\:"):
            raise BadFile(f"{name}: shard {shown(shard)} must be the plain name of a .safetensors file")
    return weight_map


def join_shards(weight_map: Mapping[str, str], shards: Mapping[str, Header], name: str) -> Header:
    """One header of the shards' headers. A tensor that is in several shards counts in the one that the weight map names; one that is
    not where the map says is refused (BadFile); one that the map does not know counts, since loaders read it too."""

    def counted(shard: str, tensors: Iterable[StoredTensor]) -> Iterator[StoredTensor]:
        return (tensor for tensor in tensors if weight_map.get(tensor.name, shard) == shard)

    header = joined((Header(tuple(counted(s, part.tensors)), part.metadata) for s, part in shards.items()), name)
    if missing := weight_map.keys() - {tensor.name for tensor in header.tensors}:
        example = min(missing)
        raise BadFile(f"{name}: {len(missing):,} tensors are not in their shards, such as {shown(example)} in {weight_map[example]}")
    return header
