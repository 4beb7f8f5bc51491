"""Small files of each format, well-formed and not, made byte by byte."""

import json
import struct
from pathlib import Path

from vramplan.sources.stored import Header, Read


def safetensors(header: object, data: int = 0, length: int | None = None) -> bytes:
    """A file with `header` as its JSON (bytes: as they are), stating `length`, and `data` bytes of tensors."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(data)


def tensor(dtype: object = "F32", shape: object = (2, 3), begin: object = 0, end: object = 24) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def text(value: str | bytes, order: str = "<") -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack(f"{order}Q", len(data)) + data


def pair(key: str | bytes, kind: int, payload: bytes, order: str = "<") -> bytes:
    return text(key, order) + struct.pack(f"{order}I", kind) + payload


def array(kind: int, n: int, payload: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, n) + payload


def info(name: str | bytes, dims: tuple[int, ...], type_id: int = 0, offset: int = 0, order: str = "<") -> bytes:
    return text(name, order) + struct.pack(f"{order}I{len(dims)}QIQ", len(dims), *dims, type_id, offset)


def gguf(
    pairs: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    *,
    data: int = 0,
    version: int = 3,
    n_tensors: int | None = None,
    n_pairs: int | None = None,
    order: str = "<",
) -> bytes:
    counts = (len(tensors) if n_tensors is None else n_tensors, len(pairs) if n_pairs is None else n_pairs)
    head = b"GGUF" + struct.pack(f"{order}IQQ", version, *counts) + b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % 32 + data)


class Ranges:
    """A range reader over bytes that remembers what was asked."""

    def __init__(self, data: bytes) -> None:
        self.data, self.asked = data, list[tuple[int, int]]()

    def __call__(self, offset: int, length: int) -> bytes:
        assert offset >= 0
        assert length > 0
        self.asked.append((offset, length))
        return self.data[offset : offset + length]


def ranges(data: bytes) -> Read:
    return Ranges(data)


def facts(header: Header) -> list[tuple[str, str, tuple[int, ...], int]]:
    return [(t.name, t.dtype, t.shape, t.nbytes) for t in header.tensors]


def written(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
