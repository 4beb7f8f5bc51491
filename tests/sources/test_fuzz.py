"""Arbitrary and mutated files for the three readers: always a header or BadInput, and a header only of what is really there.

tests/fuzz/fuzz_readers.py fuzzes the same readers guided by coverage, for as long as one likes.
"""

import json
import struct
from pathlib import Path

import gguf as official_gguf
import pytest
import safetensors as official_safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reader_samples import SEEDS, facts, ranges, safetensors

from vramplan.errors import BadInput
from vramplan.sources.gguf import read_gguf
from vramplan.sources.local import parse_config
from vramplan.sources.safetensors import DTYPES, read_safetensors
from vramplan.sources.stored import Header

READERS = {"gguf": read_gguf, "safetensors": read_safetensors}

interesting = st.sampled_from([0, 1, 2, 3, 7, 8, 31, 32, 255, 256, 2**16, 2**31, 2**32 - 1, 2**60, 2**63, 2**64 - 1])
numbers = st.builds(
    lambda n, code: struct.pack(code, n & (2 ** (8 * struct.calcsize(code)) - 1)), interesting, st.sampled_from(["<I", "<Q", ">Q", "B"])
)
pieces = st.one_of(
    st.binary(max_size=12), numbers, st.sampled_from([b"{", b"}", b"[", b"]", b'"', b",", b"-", b"1e999", b"NaN", b"\\ud800", b"0" * 25])
)


@st.composite
def mutated(draw: st.DrawFn, kind: str) -> bytes:
    """A well-formed file with up to four places overwritten, filled in, cut out or doubled, and perhaps an end that is missing."""
    data = draw(st.sampled_from(SEEDS[kind]))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        piece, cut = draw(pieces), draw(st.integers(0, 12))
        overwritten, filled_in = data[:at] + piece + data[at + len(piece) :], data[:at] + piece + data[at:]
        cut_out, doubled = data[:at] + data[at + cut :], data[: at + cut] + data[at:]
        data = draw(st.sampled_from([overwritten, filled_in, cut_out, doubled]))
    return data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) and draw(st.booleans()) else data


def outcome(kind: str, data: bytes, *, sized: bool = True) -> Header | None:
    """The header, or None for a refusal in one printable line; any other exception fails the test."""
    try:
        header = READERS[kind](ranges(data), len(data) if sized else None, "x")
    except BadInput as error:
        refusal = str(error)
    else:
        return header
    assert refusal.startswith("x: ")
    assert refusal.isprintable()
    return None


def check(kind: str, data: bytes) -> Header | None:
    sized, unsized = outcome(kind, data), outcome(kind, data, sized=False)
    if sized is not None:
        assert sized == unsized or repr(sized) == repr(unsized)  # a NaN in the metadata is not equal to itself
        assert 0 <= sum(tensor.nbytes for tensor in sized.tensors) <= len(data)
        assert len({tensor.name for tensor in sized.tensors}) == len(sized.tensors)
    return sized


@pytest.mark.parametrize("kind", READERS)
@given(st.data())
def test_arbitrary_bytes(kind: str, data: st.DataObject) -> None:
    check(kind, data.draw(st.binary(max_size=200)))
    check(kind, SEEDS[kind][0][:8] + data.draw(st.binary(max_size=200)))


@settings(max_examples=300)
@given(mutated("safetensors"))
def test_what_we_accept_of_safetensors_the_official_reader_accepts(data: bytes) -> None:
    header = check("safetensors", data)
    if header is not None:
        theirs = dict(official_safetensors.deserialize(data))
        assert {name: (DTYPES[t["dtype"]][0], tuple(t["shape"]), len(t["data"])) for name, t in theirs.items()} == {
            t.name: (t.dtype, t.shape, t.nbytes) for t in header.tensors
        }


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=mutated("gguf"))
def test_what_we_accept_of_gguf_the_official_reader_reads_alike(data: bytes, tmp_path: Path) -> None:
    header = check("gguf", data)
    if header is not None:
        (tmp_path / "x.gguf").write_bytes(data)
        theirs = official_gguf.GGUFReader(tmp_path / "x.gguf").tensors
        assert facts(header) == [(t.name, t.tensor_type.name, tuple(reversed(t.shape.tolist())), t.n_bytes) for t in theirs]


trees = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9)
    | st.sampled_from(list(DTYPES)),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "w"]), inner)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=5) | st.just("__metadata__"), trees, max_size=4))
def test_any_json_as_a_safetensors_header(header: object) -> None:
    check("safetensors", safetensors(header))


entries = st.builds(
    lambda dtype, shape, begin, end: {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]},
    st.sampled_from(list(DTYPES)), st.lists(st.integers(0, 3), max_size=3), st.integers(0, 16), st.integers(0, 16),
)  # fmt: skip


@settings(max_examples=500)
@given(st.dictionaries(st.text(max_size=2), entries, max_size=2), st.integers(0, 16))
def test_small_safetensors_headers_are_accepted_exactly_when_the_official_reader_accepts(header: object, nbytes: int) -> None:
    data = safetensors(header, nbytes)
    try:
        official_safetensors.deserialize(data)
        accepted = True
    except official_safetensors.SafetensorError:
        accepted = False
    assert (check("safetensors", data) is not None) == accepted


@given(st.one_of(st.binary(max_size=100), mutated("config")))
def test_configs(data: bytes) -> None:
    try:
        config = parse_config(data, "x")
    except BadInput as error:
        refusal = str(error)
    else:
        refusal = ""
        assert config == json.loads(data)
        json.dumps(config, ensure_ascii=False, allow_nan=False).encode()
    assert refusal.isprintable()


@given(st.dictionaries(st.text(max_size=5), trees, max_size=5))
def test_ordinary_json_objects_are_read_as_they_are(config: dict[str, object]) -> None:
    data = json.dumps(config).encode()
    if max((len(word) for word in data.decode().replace(",", " ").replace("]", " ").split()), default=0) < 20:
        assert parse_config(data, "x") == config
