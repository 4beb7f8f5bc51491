"""GGUF headers: equal to what the `gguf` package writes and reads, and refused where the format is broken."""

import struct
from collections.abc import Sequence
from pathlib import Path

import gguf as official
import numpy as np
import pytest
from reader_samples import Ranges, array, facts, gguf, info, pair, text, written

from vramplan.errors import BadFile, NotFound
from vramplan.formats.ggml import BLOCKS
from vramplan.sources.gguf import ArrayLength, open_gguf, read_gguf
from vramplan.sources.gguf_cursor import FIRST_WINDOW
from vramplan.sources.stored import Header

LITTLE, BIG = official.GGUFEndian.LITTLE, official.GGUFEndian.BIG
OFFICIAL = sorted({kind.name for kind in official.GGML_QUANT_SIZES} - {"Q8_1"})  # Q8_1: gguf-py says 40 bytes, ggml 36; no file has it


def read(data: bytes, *, sized: bool = True) -> Header:
    return read_gguf(Ranges(data), len(data) if sized else None, "x.gguf")


def official_facts(reader: official.GGUFReader) -> list[tuple[str, str, tuple[int, ...], int]]:
    return [(t.name, t.tensor_type.name, tuple(reversed(t.shape.tolist())), t.n_bytes) for t in reader.tensors]


def write(path: Path, endianess: official.GGUFEndian = LITTLE) -> Path:
    writer = official.GGUFWriter(path, "llama", endianess=endianess)
    add = writer.add_key_value
    types = official.GGUFValueType
    for kind, value in [
        (types.UINT8, 255), (types.INT8, -128), (types.UINT16, 65535), (types.INT16, -32768), (types.UINT32, 2**32 - 1),
        (types.INT32, -(2**31)), (types.UINT64, 2**64 - 1), (types.INT64, -(2**63)), (types.FLOAT32, 0.5), (types.FLOAT64, 1e300),
        (types.BOOL, True), (types.STRING, "ünï"),
    ]:  # fmt: skip
        add(f"x.{kind.name}", value, kind)
    writer.add_array("x.layers", [1, 2, 3])
    writer.add_array("x.flags", [True, False])
    writer.add_array("x.names", ["a", "b"])
    writer.add_array("x.long", list(range(2000)))
    writer.add_token_list([f"token{i}" for i in range(500)])
    writer.add_token_scores([0.0] * 500)
    writer.add_array("x.nested", [[1, 2], [3]])
    writer.add_string("x.after", "still in step")
    for i, shape in enumerate([(3, 5), (7,), (2, 3, 4), (2, 1, 3, 4)]):
        writer.add_tensor(f"t{i}", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("endianess", [LITTLE, BIG])
def test_equals_the_official_writer(tmp_path: Path, endianess: official.GGUFEndian) -> None:
    header = open_gguf(write(tmp_path / "x.gguf", endianess))
    assert header.metadata == {
        "general.architecture": "llama", "x.UINT8": 255, "x.INT8": -128, "x.UINT16": 65535, "x.INT16": -32768, "x.UINT32": 2**32 - 1,
        "x.INT32": -(2**31), "x.UINT64": 2**64 - 1, "x.INT64": -(2**63), "x.FLOAT32": 0.5, "x.FLOAT64": 1e300, "x.BOOL": True,
        "x.STRING": "ünï", "x.layers": (1, 2, 3), "x.flags": (True, False), "x.names": ("a", "b"), "x.long": ArrayLength(2000),
        "tokenizer.ggml.tokens": ArrayLength(500), "tokenizer.ggml.scores": ArrayLength(500),
        "x.nested": (ArrayLength(2), ArrayLength(1)), "x.after": "still in step",
    }  # fmt: skip
    assert facts(header) == [
        ("t0", "F32", (3, 5), 60), ("t1", "F32", (7,), 28), ("t2", "F32", (2, 3, 4), 96), ("t3", "F32", (2, 1, 3, 4), 96)
    ]  # fmt: skip


@pytest.mark.parametrize("name", OFFICIAL)
def test_every_block_type_is_sized_as_the_official_package_sizes_it(tmp_path: Path, name: str) -> None:
    kind = official.GGMLQuantizationType[name]
    elements, nbytes = official.GGML_QUANT_SIZES[kind]
    writer = official.GGUFWriter(tmp_path / "x.gguf", "llama")
    for i, (rows, blocks) in enumerate([(3, 2), (1, 7)]):
        writer.add_tensor(f"w{i}", np.zeros((rows, blocks * nbytes), np.uint8), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ours = facts(open_gguf(tmp_path / "x.gguf"))
    assert ours == official_facts(official.GGUFReader(tmp_path / "x.gguf"))
    assert ours == [("w0", name, (3, 2 * elements), 6 * nbytes), ("w1", name, (1, 7 * elements), 7 * nbytes)]


def test_every_official_block_type_is_known() -> None:
    assert {*OFFICIAL, "Q8_1"} <= set(BLOCKS)
    assert len(OFFICIAL) >= 30


def test_a_real_model(real_gguf: Path) -> None:
    header = open_gguf(real_gguf)
    reader = official.GGUFReader(real_gguf)
    assert facts(header) == official_facts(reader)
    assert len(header.tensors) == 236
    assert sum(tensor.nbytes for tensor in header.tensors) == 246_587_904
    assert header.metadata["general.architecture"] == "gemma3"
    assert header.metadata["tokenizer.ggml.tokens"] == ArrayLength(262_144)
    for key, value in header.metadata.items():
        theirs = reader.fields[key]
        if isinstance(value, ArrayLength):
            assert len(theirs.data) == value.n
        else:
            assert theirs.contents() == (list(value) if isinstance(value, tuple) else value)


def test_a_real_header_takes_few_requests_and_no_weights(real_gguf: Path) -> None:
    data = real_gguf.read_bytes()
    ranges = Ranges(data)
    read_gguf(ranges, len(data), "x")
    first_weight = len(data) - 246_587_904
    assert len(ranges.asked) <= 5
    assert max(offset for offset, _ in ranges.asked) < first_weight
    assert sum(length for _, length in ranges.asked) < first_weight + 4 * 2**20


def test_version_2_is_read_and_others_are_refused_by_name() -> None:
    assert read(gguf(version=2)) == read(gguf()) == Header((), {})
    with pytest.raises(BadFile, match=r"version 1, which llama\.cpp reads no longer"):
        read(gguf(version=1))
    with pytest.raises(BadFile, match="version 4; versions 2 and 3 are read"):
        read(gguf(version=4, order=">"))


def test_a_small_file_is_one_request_and_a_long_list_of_numbers_is_not_read() -> None:
    n = 2**24
    data = gguf((pair("tokenizer.ggml.scores", 9, array(6, n, bytes(4 * n))),), (info("w", (4,)),), data=16)
    ranges = Ranges(data)
    assert read_gguf(ranges, len(data), "x").metadata == {"tokenizer.ggml.scores": ArrayLength(n)}
    assert ranges.asked[0] == (0, FIRST_WINDOW)
    assert len(ranges.asked) == 2
    small = Ranges(gguf((), (info("w", (4,)),), data=16))
    assert len(read_gguf(small, len(small.data), "x").tensors) == 1
    assert len(small.asked) == 1


@pytest.mark.parametrize("lengths", [[0], [FIRST_WINDOW - 100, 3, 2 * FIRST_WINDOW, 0, 5], [7] * 60_000, list(range(900))])
def test_strings_are_skipped_wherever_the_window_ends(lengths: Sequence[int]) -> None:
    tokens = pair("tokenizer.ggml.tokens", 9, array(8, len(lengths), b"".join(text(bytes(n)) for n in lengths)))
    data = gguf((tokens, pair("after", 4, struct.pack("<I", 5))))
    assert read(data).metadata == {"tokenizer.ggml.tokens": ArrayLength(len(lengths)), "after": 5}


def test_long_strings_are_skipped() -> None:
    data = gguf((pair("long", 8, text("x" * 70_000)), pair("short", 8, text("x" * 60_000))))
    assert read(data).metadata == {"long": ArrayLength(70_000), "short": "x" * 60_000}


def test_alignment_places_the_tensors() -> None:
    data = gguf((pair("general.alignment", 4, struct.pack("<I", 8)),), (info("a", (1,)), info("b", (1,), 0, 8)), data=12)
    assert facts(read(data)) == [("a", "F32", (1,), 4), ("b", "F32", (1,), 4)]


U32 = struct.pack("<I", 7)
BROKEN = {
    "empty": b"",
    "another format": b"PK\x03\x04" + bytes(100),
    "only the magic": b"GGUF",
    "version 0": gguf(version=0),
    "version 2^31": gguf(version=2**31),
    "2^60 tensors": gguf(n_tensors=2**60),
    "a million and one tensors": gguf(n_tensors=1_000_001),
    "2^64 - 1 pairs": gguf(n_pairs=2**64 - 1),
    "5,000 pairs": gguf(n_pairs=5000),
    "more pairs than there are": gguf((pair("a", 4, U32),), n_pairs=9),
    "more tensors than there are": gguf((), (info("w", (4,)),), n_tensors=9, data=16),
    "a key of 2^60 bytes": gguf((struct.pack("<Q", 2**60) + b"key",), n_pairs=1),
    "a key of 70,000 bytes": gguf((pair("k" * 70_000, 4, U32),)),
    "a key that is not UTF-8": gguf((pair(b"\xff\xfe", 4, U32),)),
    "a key twice": gguf((pair("a", 4, U32), pair("a", 4, U32))),
    "a value of type 13": gguf((pair("a", 13, U32),)),
    "a value of type 2^32 - 1": gguf((pair("a", 2**32 - 1, U32),)),
    "a bool of 2": gguf((pair("a", 7, b"\x02"),)),
    "a string of 2^60 bytes": gguf((pair("a", 8, struct.pack("<Q", 2**60)),)),
    "a string of 2^64 - 1 bytes": gguf((pair("a", 8, struct.pack("<Q", 2**64 - 1)),)),
    "an array of 2^60 numbers": gguf((pair("a", 9, array(4, 2**60)),)),
    "an array of 2^64 - 1 numbers": gguf((pair("a", 9, array(10, 2**64 - 1)),)),
    "an array of 2^60 strings": gguf((pair("a", 9, array(8, 2**60)),)),
    "an array of 2^60 arrays": gguf((pair("a", 9, array(9, 2**60)),)),
    "an array of type 13": gguf((pair("a", 9, array(13, 1)),)),
    "a string of 2^60 bytes in an array": gguf((pair("a", 9, array(8, 2000, struct.pack("<Q", 2**60) + bytes(16_000))),)),
    "arrays nested 5 deep": gguf((pair("a", 9, array(9, 1, array(9, 1, array(9, 1, array(9, 1, array(4, 0)))))),)),
    "arrays nested 10,000 deep": gguf((pair("a", 9, b"".join([array(9, 1)] * 10_000)),)),
    "200,000 arrays in arrays": gguf((pair("a", 9, array(9, 200_000, array(4, 0) * 200_000)),)),
    "an alignment of 0": gguf((pair("general.alignment", 4, struct.pack("<I", 0)),)),
    "an alignment of 24": gguf((pair("general.alignment", 4, struct.pack("<I", 24)),)),
    "a negative alignment": gguf((pair("general.alignment", 5, struct.pack("<i", -32)),)),
    "an alignment that is a string": gguf((pair("general.alignment", 8, text("32")),)),
    "an alignment that is a bool": gguf((pair("general.alignment", 7, b"\x01"),)),
    "an alignment that is a float": gguf((pair("general.alignment", 6, struct.pack("<f", 32.0)),)),
    "an alignment that is a list": gguf((pair("general.alignment", 9, array(4, 1, U32)),)),
    "5 dimensions": gguf((), (info("w", (1, 1, 1, 1, 1)),), data=4),
    "2^32 - 1 dimensions": gguf((), (text("w") + struct.pack("<I", 2**32 - 1) + bytes(100),)),
    "a dimension of 0": gguf((), (info("w", (4, 0)),)),
    "a dimension of 2^64 - 1": gguf((), (info("w", (2**64 - 1,)),)),
    "2^63 elements": gguf((), (info("w", (2**31, 2**32)),)),
    "2^252 elements": gguf((), (info("w", (2**63,) * 4),)),
    "an unknown type": gguf((), (info("w", (4,), 4),), data=16),
    "a type of 2^32 - 1": gguf((), (info("w", (4,), 2**32 - 1),), data=16),
    "rows of half a block": gguf((), (info("w", (16, 2), 2),), data=18),
    "a single element of a block type": gguf((), (info("w", (), 2),), data=18),
    "a tensor's name that is not UTF-8": gguf((), (info(b"\xff", (4,)),), data=16),
    "a tensor's name of 2^60 bytes": gguf((), (struct.pack("<Q", 2**60) + bytes(100),)),
    "a tensor twice": gguf((), (info("w", (8,)), info("w", (8,), 0, 32)), data=64),
    "a tensor without a name twice": gguf((), (info("", (8,)), info("", (8,), 0, 32)), data=64),
    "the first tensor not at 0": gguf((), (info("w", (8,), 0, 32),), data=64),
    "tensors that overlap": gguf((), (info("a", (8,)), info("b", (8,), 0, 0)), data=64),
    "a hole between tensors": gguf((), (info("a", (8,)), info("b", (8,), 0, 64)), data=96),
    "a tensor that is not aligned": gguf((), (info("a", (1,)), info("b", (1,), 0, 4)), data=8),
    "an offset of 2^64 - 1": gguf((), (info("w", (8,), 0, 2**64 - 1),), data=64),
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("sized", [True, False])
def test_broken_files_are_refused_in_one_line(data: bytes, sized: bool) -> None:
    with pytest.raises(BadFile) as refusal:
        read(data, sized=sized)
    assert str(refusal.value).startswith("x.gguf: ")
    assert len(str(refusal.value)) < 300
    assert str(refusal.value).isprintable()


def test_tensors_must_lie_within_the_file_where_its_size_is_known() -> None:
    data = gguf((), (info("w", (8,)),), data=31)
    assert len(read(data, sized=False).tensors) == 1
    with pytest.raises(BadFile, match=r"its tensors end at byte 96, but the file at 95: cut short\?"):
        read(data)


@pytest.mark.parametrize("order", ["<", ">"])
def test_truncation_at_every_byte(order: str) -> None:
    pairs = (pair("a", 4, struct.pack(f"{order}I", 7), order), pair("b", 8, text("text", order), order))
    data = gguf(pairs, (info("w", (8,), 0, 0, order), info("v", (32,), 2, 32, order)), data=50, order=order)
    assert facts(read(data)) == [("w", "F32", (8,), 32), ("v", "Q4_0", (32,), 18)]
    for cut in range(len(data)):
        with pytest.raises(BadFile):
            read(data[:cut])


def part(no: int, count: int, name: str, total: int = 3) -> bytes:
    numbers = {"split.no": (2, struct.pack("<H", no)), "split.count": (2, struct.pack("<H", count))}
    pairs = [pair(key, *value) for key, value in numbers.items()] + [pair("split.tensors.count", 5, struct.pack("<i", total))]
    return gguf((*pairs, pair("general.name", 8, text(f"part {no}"))), (info(name, (8,)),), data=32)


@pytest.mark.parametrize("named", [1, 3])
def test_a_split_file_is_read_whole_whichever_part_is_named(tmp_path: Path, named: int) -> None:
    for no, name in enumerate("abc"):
        written(tmp_path / f"m-{no + 1:05d}-of-00003.gguf", part(no, 3, name))
    header = open_gguf(tmp_path / f"m-{named:05d}-of-00003.gguf")
    assert [tensor.name for tensor in header.tensors] == ["a", "b", "c"]
    assert header.metadata["general.name"] == "part 0"


def test_the_official_writer_splits_as_we_read(tmp_path: Path) -> None:
    writer = official.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=2)
    for i in range(5):
        writer.add_tensor(f"w{i}", np.zeros((2, 3), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert facts(open_gguf(tmp_path / "m-00001-of-00003.gguf")) == [(f"w{i}", "F16", (2, 3), 12) for i in range(5)]


def test_split_files_must_be_complete_and_in_their_places(tmp_path: Path) -> None:
    first = written(tmp_path / "m-00001-of-00002.gguf", part(0, 2, "a", 2))
    with pytest.raises(NotFound, match=r"1 of the model's 2 files are not there, such as 'm-00002-of-00002.gguf'"):
        open_gguf(first)
    second = written(tmp_path / "m-00002-of-00002.gguf", part(0, 2, "b", 2))
    with pytest.raises(BadFile, match="part 2 of 2 says that it is another part"):
        open_gguf(first)
    written(second, part(1, 2, "a", 2))
    with pytest.raises(BadFile, match="tensor 'a' is there twice"):
        open_gguf(first)
    written(first, part(0, 2, "a", 99))
    written(second, part(1, 2, "b", 99))
    with pytest.raises(BadFile, match="hold 2 tensors, but should hold 99"):
        open_gguf(first)
    with pytest.raises(BadFile, match="one of 2 parts, and must be named as one"):
        open_gguf(written(tmp_path / "renamed.gguf", part(0, 2, "a")))
    with pytest.raises(BadFile, match="one of 2 parts"):
        open_gguf(written(tmp_path / "m-00001-of-00009.gguf", part(0, 2, "a")))
