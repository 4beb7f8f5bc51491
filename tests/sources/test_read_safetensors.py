"""safetensors headers: equal to what the official package writes and reads, and refused where the format is broken."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors as official
from reader_samples import Ranges, facts, safetensors, tensor, written
from safetensors.numpy import save_file

from vramplan.errors import BadFile, NotFound
from vramplan.sources.safetensors import DTYPES, FIRST_READ, open_index, open_safetensors, read_safetensors
from vramplan.sources.stored import MAX_TENSORS

BITS_BY_HAND = {"fp64": 64, "fp32": 32, "fp16": 16, "bf16": 16, "fp8_e4m3": 8, "fp6_e2m3": 6, "fp4": 4, "int64": 64, "uint8": 8, "bool": 8}


def read(data: bytes, size: int | None = -1) -> object:
    return read_safetensors(Ranges(data), len(data) if size == -1 else size, "x.safetensors")


def test_equals_the_official_writer(tmp_path: Path) -> None:
    shapes = [(3, 5), (7,), (), (0,), (2, 0, 3), (1, 2, 3, 4)]
    types = ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool", "complex64"]
    arrays = {f"{dtype}.{i}": np.zeros(shape, dtype) for dtype in types for i, shape in enumerate(shapes)}
    save_file(arrays, tmp_path / "x.safetensors", metadata={"format": "np"})
    header = open_safetensors(tmp_path / "x.safetensors")
    ours = {name: (dtype.replace("fp", "float"), shape, nbytes) for name, dtype, shape, nbytes in facts(header)}
    assert ours == {name: (str(array.dtype), array.shape, array.nbytes) for name, array in arrays.items()}
    assert header.metadata == {"format": "np"}


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_is_sized_as_the_official_reader_sizes_it(tmp_path: Path, name: str) -> None:
    """The official reader refuses a file whose offsets are not its own idea of the tensor's size."""
    dtype, bits = DTYPES[name]
    assert BITS_BY_HAND.get(dtype, bits) == bits
    nbytes = 3 * 8 * bits // 8
    path = written(tmp_path / "x.safetensors", safetensors({"w": tensor(name, [3, 8], 0, nbytes)}, nbytes))
    assert facts(open_safetensors(path)) == [("w", dtype, (3, 8), nbytes)]
    with official.safe_open(path, framework="np") as file:
        assert (file.get_slice("w").get_dtype(), file.get_slice("w").get_shape()) == (name, [3, 8])


def test_every_official_dtype_is_known() -> None:
    with pytest.raises(official.SafetensorError, match="unknown variant") as refusal:
        official.deserialize(safetensors({"w": tensor("F5", [1], 0, 1)}, 1))
    named = set(str(refusal.value).split("expected one of ")[-1].replace("`", "").split(" at line")[0].split(", "))
    assert named <= set(DTYPES)
    assert len(named) >= 15


@pytest.mark.parametrize("n", [1, 400, 3000])
def test_reads_the_header_and_never_the_weights(n: int) -> None:
    entries = {f"layer.{i}.weight": tensor("U8", [1000], 1000 * i, 1000 * (i + 1)) for i in range(n)}
    data = safetensors(entries)
    ranges = Ranges(data + bytes(FIRST_READ))
    header = read_safetensors(ranges, len(data) + 1000 * n, "x")
    assert len(header.tensors) == n
    asked = sorted(ranges.asked)
    assert asked[0] == (0, FIRST_READ)
    assert asked[1:] == ([(FIRST_READ, len(data) - FIRST_READ)] if len(data) > FIRST_READ else [])


def test_a_file_of_unknown_size_is_read_too() -> None:
    data = safetensors({"w": tensor()}, 24)
    assert read(data, None) == read(data)


BROKEN = {
    "empty": b"",
    "seven bytes": b"\x01\0\0\0\0\0\0",
    "length 2^60": safetensors({}, length=2**60),
    "length 2^64 - 1": safetensors({}, length=2**64 - 1),
    "length beyond the file": safetensors({"w": tensor()}, 24, length=500),
    "length of 100 MB + 1": safetensors({}, length=100_000_001),
    "not JSON": safetensors(b"{'w': 1}"),
    "not UTF-8": safetensors(b'{"\xff": {}}'),
    "UTF-16": safetensors('{"w": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}'.encode("utf-16")),
    "half a surrogate pair": safetensors(b'{"\\ud800": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}'),
    "a list": safetensors([]),
    "a number": safetensors(b"3"),
    "null": safetensors(b"null"),
    "is itself a tensor": safetensors(tensor(), 24),
    "a tensor that is a number": safetensors({"w": 3}),
    "a tensor that is a string": safetensors({"w": "F32"}),
    "a tensor that is null": safetensors({"w": None}),
    "a tensor without a name that is null": safetensors({"": None}),
    "a tensor in a tensor": safetensors({"w": {"w": tensor()}}, 24),
    "no dtype": safetensors({"w": {"shape": [1], "data_offsets": [0, 4]}}, 4),
    "an unknown dtype": safetensors({"w": tensor("F5")}, 24),
    "a dtype that is a number": safetensors({"w": tensor(32)}, 24),
    "a dtype that is a list": safetensors({"w": tensor(["F32"])}, 24),
    "a shape that is a string": safetensors({"w": tensor(shape="2,3")}, 24),
    "strings for dimensions": safetensors({"w": tensor(shape=["2", "3"])}, 24),
    "negative dimensions": safetensors({"w": tensor(shape=[-2, -3])}, 24),
    "bools for dimensions": safetensors({"w": tensor("F32", [True, 6])}, 24),
    "floats for dimensions": safetensors({"w": tensor(shape=[2.0, 3.0])}, 24),
    "null for a dimension": safetensors({"w": tensor(shape=[None, 3])}, 24),
    "a dimension of 2^63": safetensors({"w": tensor("U8", [2**63], 0, 2**63)}),
    "a dimension of 2^70": safetensors({"w": tensor("U8", [2**70], 0, 2**70)}),
    "a dimension of a million digits": safetensors(b'{"w": {"dtype": "U8", "shape": [1%s], "data_offsets": [0, 0]}}' % (b"0" * 10**6)),
    "a million dimensions": safetensors({"w": tensor("U8", [1] * 10**6, 0, 1)}, 1),
    "huge dimensions times zero bytes": safetensors({"w": tensor("U8", [2**62] * 64, 0, 0)}),
    "three offsets": safetensors({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, 8),
    "offsets that are strings": safetensors({"w": tensor(begin="0", end="24")}, 24),
    "offsets that are floats": safetensors({"w": tensor(begin=0.0, end=24.0)}, 24),
    "offsets that are an object": safetensors({"w": {"dtype": "F32", "shape": [6], "data_offsets": {"begin": 0, "end": 24}}}, 24),
    "negative offsets": safetensors({"w": tensor(begin=-24, end=0)}),
    "the end before the beginning": safetensors({"w": tensor(begin=24, end=0)}, 24),
    "bytes that are not shape x dtype": safetensors({"w": tensor(end=25)}, 25),
    "half a byte": safetensors({"w": tensor("F4", [3], 0, 1)}, 1),
    "a hole before the first": safetensors({"w": tensor(begin=4, end=28)}, 28),
    "a hole between": safetensors({"a": tensor(), "b": tensor(begin=28, end=52)}, 52),
    "an overlap": safetensors({"a": tensor(), "b": tensor(begin=20, end=44)}, 44),
    "the same bytes twice": safetensors({"a": tensor(), "b": tensor()}, 24),
    "a name twice": safetensors(
        b'{"w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "w": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}', 2
    ),
    "a key twice": safetensors(b'{"w": {"dtype": "U8", "dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}', 1),
    "an unknown field": safetensors({"w": {**tensor(), "colour": "red"}}, 24),
    "metadata that is a list": safetensors({"__metadata__": ["pt"]}),
    "metadata that is a number": safetensors({"__metadata__": {"format": 1}}),
    "metadata that is a tensor": safetensors({"__metadata__": tensor()}, 24),
    "NaN": safetensors(b'{"w": NaN}'),
    "an infinite number": safetensors(b'{"w": 1e999}'),
    "infinity for a dimension": safetensors(b'{"w": {"dtype": "U8", "shape": [Infinity], "data_offsets": [0, Infinity]}}'),
    "infinity for a tensor": safetensors(b'{"w": Infinity}'),
    "lists nested 100,000 deep": safetensors(b"[" * 100_000),
    "objects nested 100,000 deep": safetensors(b'{"a":' * 100_000),
    "a million empty lists": safetensors(b'{"w": [' + b"[]," * 1_000_000 + b"[]]}"),
    "a million empty objects": safetensors(b'{"w": [' + b"{}," * 1_000_000 + b"{}]}"),
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("known", [True, False])
def test_broken_files_are_refused_in_one_line(data: bytes, known: bool) -> None:
    with pytest.raises(BadFile) as refusal:
        read(data, len(data) if known else None)
    assert str(refusal.value).startswith("x.safetensors: ")
    assert len(str(refusal.value)) < 400
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("data", [23, 25])
def test_tensor_bytes_must_be_those_described_where_the_size_is_known(data: int) -> None:
    with pytest.raises(BadFile, match=f"holds {data} bytes of tensors, but its header describes 24"):
        read(safetensors({"w": tensor()}, data))


def test_more_than_a_million_tensors_are_refused() -> None:
    entry = b'"%d":{"dtype":"U8","shape":[],"data_offsets":[0,1]}'
    with pytest.raises(BadFile, match="more than 1,000,000 tensors"):
        read(safetensors(b"{" + b",".join(entry % i for i in range(MAX_TENSORS + 1)) + b"}", 1))


def test_empty_tensors_and_scalars_are_allowed_as_the_format_says() -> None:
    entries = {"a": tensor(shape=[0], end=0), "b": tensor(shape=[], end=4), "c": tensor("F16", [4, 0], 4, 4)}
    header = read_safetensors(Ranges(safetensors(entries, 4)), None, "x")
    assert facts(header) == [("a", "fp32", (0,), 0), ("b", "fp32", (), 4), ("c", "fp16", (4, 0), 0)]


@pytest.mark.parametrize("cut", range(150))
def test_truncation_at_every_byte(cut: int) -> None:
    data = safetensors({"w": tensor(), "v": tensor("U8", [3], 24, 27)}, 27)
    assert read(data)
    with pytest.raises(BadFile):
        read(data[: min(cut, len(data) - 1)])


def sharded(folder: Path, weight_map: dict[str, object], shards: dict[str, bytes]) -> Path:
    for name, data in shards.items():
        written(folder / name, data)
    return written(folder / "model.safetensors.index.json", json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}).encode())


A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
ONE, OTHER = safetensors({"a": tensor()}, 24), safetensors({"b": tensor("BF16", [5], 0, 10)}, 10)


def test_an_index_joins_its_shards(tmp_path: Path) -> None:
    index = sharded(tmp_path, {"a": A, "b": B}, {A: ONE, B: OTHER})
    assert facts(open_index(index)) == [("a", "fp32", (2, 3), 24), ("b", "bf16", (5,), 10)]


def test_a_tensor_counts_once_in_the_shard_that_the_index_names(tmp_path: Path) -> None:
    both = safetensors({"a": tensor("F16", [1], 0, 2), "b": tensor("BF16", [5], 2, 12)}, 12)
    index = sharded(tmp_path, {"a": A, "b": B}, {A: ONE, B: both})
    assert facts(open_index(index)) == [("a", "fp32", (2, 3), 24), ("b", "bf16", (5,), 10)]


def test_a_tensor_that_the_index_forgot_counts(tmp_path: Path) -> None:
    both = safetensors({"c": tensor("F16", [1], 0, 2), "b": tensor("BF16", [5], 2, 12)}, 12)
    assert {t.name for t in open_index(sharded(tmp_path, {"a": A, "b": B}, {A: ONE, B: both})).tensors} == {"a", "b", "c"}


@pytest.mark.parametrize(
    "shard",
    ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "a\\b.safetensors", "C:x.safetensors", "..", "", ".safetensors",
     "x.bin", "x\0.safetensors", "x\n.safetensors", 3, None, ["x.safetensors"], {"x": "y"}],
)  # fmt: skip
def test_shard_names_that_are_no_plain_file_names_are_refused(tmp_path: Path, shard: object) -> None:
    written(tmp_path / "x.safetensors", ONE)
    with pytest.raises(BadFile, match="must be the plain name"):
        open_index(sharded(tmp_path / "model", {"a": shard}, {}))


@pytest.mark.parametrize(
    ("index", "message"),
    [(b"[]", "weight_map"), (b"{}", "weight_map"), (b'{"weight_map": []}', "weight_map"), (b'{"weight_map": {}}', "weight_map"),
     (b'{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "twice"), (b"", "not valid JSON")],
)  # fmt: skip
def test_broken_indexes(tmp_path: Path, index: bytes, message: str) -> None:
    with pytest.raises(BadFile, match=message):
        open_index(written(tmp_path / "model.safetensors.index.json", index))


def test_an_index_must_tell_the_truth(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=r"1 tensors are not in their shards, such as 'z' in model-00001"):
        open_index(sharded(tmp_path, {"a": A, "z": A}, {A: ONE}))
    with pytest.raises(NotFound, match=r"1 of the model's 2 files are not there, such as 'model-00002-of-00002.safetensors'"):
        open_index(sharded(tmp_path, {"a": A, "b": B}, {A: ONE}))
    with pytest.raises(BadFile, match="10,001 shards"):
        open_index(sharded(tmp_path, {str(i): f"{i}.safetensors" for i in range(10_001)}, {}))
