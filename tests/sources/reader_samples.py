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


CONFIG = (
    b'{"model_type": "llama", "hidden_size": 4096, "rms_norm_eps": 1e-05, "tie_word_embeddings": false, "rope_scaling": null, '
    b'"architectures": ["LlamaForCausalLM"], "text_config": {"layers": [1, 2], "name": "\\u00fc\\ud83d\\ude00"}}'
)
SAFETENSORS = safetensors(
    {"__metadata__": {"format": "pt"}, "w": tensor(), "v": tensor("BF16", [4], 24, 32), "e": tensor("U8", [0], 32, 32)}, 32
)
GGUF = gguf(
    (
        pair("general.architecture", 8, text("llama")),
        pair("general.alignment", 4, struct.pack("<I", 32)),
        pair("llama.block_count", 4, struct.pack("<I", 2)),
        pair("llama.rope", 6, struct.pack("<f", 1e4)),
        pair("flag", 7, b"\1"),
        pair("layers", 9, array(5, 2, bytes(8))),
        pair("tokenizer.ggml.tokens", 9, array(8, 3, text("a") + text("bc") + text(""))),
        pair("nested", 9, array(9, 1, array(0, 2, b"\1\2"))),
    ),
    (info("w", (8, 2)), info("v", (32,), 2, 64), info("s", (), 1, 96)),
    data=98,
)
BIG_ENDIAN = gguf(
    (pair("n", 10, struct.pack(">Q", 3), ">"), pair("t", 8, text("x", ">"), ">")), (info("w", (256,), 12, 0, ">"),), data=144, order=">"
)
SEEDS = {"config": [CONFIG, b"{}"], "safetensors": [SAFETENSORS, safetensors({})], "gguf": [GGUF, BIG_ENDIAN, gguf(version=2)]}
"""Well-formed files of each kind, to start fuzzing from."""
