"""Hostile files cost little memory and time, whatever they claim and however large they are. Peaks are of Python's allocations."""

import json
import struct
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress

import pytest
from reader_samples import array, gguf, info, pair, ranges, safetensors, tensor, text

from vramplan.errors import BadFile
from vramplan.sources.gguf import read_gguf
from vramplan.sources.gguf_cursor import LARGEST_WINDOW
from vramplan.sources.local import parse_config
from vramplan.sources.safetensors import FIRST_READ, read_safetensors

MB = 10**6


def peak(run: Callable[[], object]) -> int:
    """Bytes that `run` allocates at most at a time; a refusal is fine."""
    tracemalloc.start()
    try:
        with suppress(BadFile):
            run()
    finally:
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return most


def endless(head: bytes) -> Callable[[int, int], bytes]:
    """A file that starts with `head` and goes on with zeros for as long as somebody reads."""
    return lambda offset, length: head[offset : offset + length].ljust(length, b"\0")


CLAIMS = {
    "2^60 tensors": gguf(n_tensors=2**60),
    "a million tensors that are not there": gguf(n_tensors=10**6),
    "2^60 pairs": gguf(n_pairs=2**60),
    "a key of 2^60 bytes": gguf((struct.pack("<Q", 2**60),), n_pairs=1),
    "a string of 2^60 bytes": gguf((pair("a", 8, struct.pack("<Q", 2**60)),)),
    "2^60 numbers": gguf((pair("a", 9, array(12, 2**60)),)),
    "2^60 strings": gguf((pair("a", 9, array(8, 2**60)),)),
    "2^60 arrays": gguf((pair("a", 9, array(9, 2**60)),)),
    "2^32 - 1 dimensions": gguf((), (text("w") + struct.pack("<I", 2**32 - 1),)),
    "2^252 elements": gguf((), (info("w", (2**63 - 1,) * 4),)),
}


@pytest.mark.parametrize("data", CLAIMS.values(), ids=CLAIMS)
@pytest.mark.parametrize("size", [None, 2**62])
def test_a_gguf_that_claims_much_costs_no_more_than_the_windows(data: bytes, size: int | None) -> None:
    with pytest.raises(BadFile):
        read_gguf(endless(data), size, "x")
    assert peak(lambda: read_gguf(endless(data), size, "x")) < 4 * LARGEST_WINDOW


@pytest.mark.parametrize("length", [2**60, 2**64 - 1, 100 * MB + 1])
@pytest.mark.parametrize("size", [None, 2**62])
def test_a_safetensors_file_that_claims_much_costs_no_more_than_the_first_read(length: int, size: int | None) -> None:
    assert peak(lambda: read_safetensors(endless(struct.pack("<Q", length)), size, "x")) < 4 * FIRST_READ


FLOODS = {
    "lists": (b"[],", 30),
    "objects": (b"{},", 35),
    "integers": (b"99999,", 12),
    "floats": (b"1.5,", 12),
    "strings": (b'"xyz",', 15),
    "one string": (b"x", 8),
    "names": (b'"%07d":1,', 30),
}


@pytest.mark.parametrize(("unit", "times"), FLOODS.values(), ids=FLOODS)
def test_json_costs_a_small_multiple_of_its_bytes(unit: bytes, times: int) -> None:
    n = 2 * MB // len(unit)
    body = b"".join(unit % i for i in range(n)) if b"%" in unit else unit * n
    inner = b"{%s}" % body[:-1] if b":" in unit else b'"%s"' % body if unit == b"x" else b"[%s]" % body[:-1]
    data = b'{"w": %s}' % inner
    assert json.loads(data)
    assert peak(lambda: parse_config(data, "x")) < times * len(data)
    assert peak(lambda: read_safetensors(ranges(safetensors(data)), None, "x")) < times * len(data)


def test_a_legitimate_header_costs_a_small_multiple_of_its_bytes() -> None:
    """At most 1.2 GB for the 100 MB that the format allows."""
    data = safetensors({f"model.layers.{i}.mlp.weight": tensor("BF16", [64, 64], 8192 * i, 8192 * (i + 1)) for i in range(20_000)})
    assert peak(lambda: read_safetensors(ranges(data), None, "x")) < 12 * len(data)


KEPT = array(2, 1024, b"\xff\x7f" * 1024)


def test_metadata_that_is_kept_is_bounded() -> None:
    """The costliest of all: arrays as long as may be kept, of the shortest numbers that are objects of their own in Python.
    4,096 of them, the most that are read, take 8.4 MB of a file."""
    data = gguf(tuple(pair(f"k{i}", 9, KEPT) for i in range(512)))
    assert peak(lambda: read_gguf(ranges(data), len(data), "x")) < 25 * len(data)


@pytest.mark.slow
@pytest.mark.parametrize(
    "head",
    [
        gguf((pair("a", 9, array(8, 12_400_000)),)),  # as many empty strings as a header can hold
        gguf((pair("a", 9, array(9, 99_999)),)),  # as many arrays in an array as are read
        gguf((), tuple(info(f"{i:07}", (32,), 24, 32 * i) for i in range(10**6))),  # as many tensors as are read
    ],
    ids=["strings", "arrays", "tensors"],
)
def test_the_longest_gguf_headers_take_seconds(head: bytes) -> None:
    start = time.process_time()
    with suppress(BadFile):
        read_gguf(endless(head), None, "x")
    assert time.process_time() - start < 20


@pytest.mark.slow
def test_a_million_tensors_take_seconds() -> None:
    data = safetensors({f"{i:07}": tensor("U8", [4, 8], 32 * i, 32 * (i + 1)) for i in range(10**6)})
    start = time.process_time()
    assert len(read_safetensors(ranges(data), None, "x").tensors) == 10**6
    assert time.process_time() - start < 30


@pytest.mark.slow
@pytest.mark.parametrize(
    "unit", [b"[],", b"{},", b"1,", b'"a":1,', b'"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]},', b"9" * 4000 + b","]
)
def test_the_longest_safetensors_headers_take_seconds(unit: bytes) -> None:
    body = unit * (100 * MB // len(unit) - 1)
    text = (b"{%s" if b":" in unit else b'{"w": [%s') % body
    start = time.process_time()
    with pytest.raises(BadFile):
        read_safetensors(ranges(safetensors(text)), None, "x")
    assert time.process_time() - start < 20
