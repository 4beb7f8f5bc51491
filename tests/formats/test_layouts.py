"""The layouts of single matrices, against figures measured or published by others."""

from __future__ import annotations

from fractions import Fraction

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vramplan.errors import BadInput, NotFound
from vramplan.formats import Extra, Format, Scheme, scheme, scheme_names, weights_nbytes
from vramplan.formats.aqlm import aqlm
from vramplan.formats.bitsandbytes import INT8, four_bit
from vramplan.formats.compressed_tensors import integers, packed
from vramplan.formats.dtypes import dtype_name
from vramplan.formats.exl import average
from vramplan.formats.fp8 import per_block, per_channel, per_tensor
from vramplan.formats.ggml import BLOCKS, TYPE_IDS, block_type
from vramplan.formats.gptq import awq, gptq
from vramplan.formats.hqq import hqq
from vramplan.formats.kv import kv_bytes
from vramplan.formats.mlx import affine
from vramplan.formats.modelopt import nvfp4
from vramplan.formats.mx import MXFP4, MXFP8
from vramplan.tensors import Weight

SIDE = 4096
N = SIDE * SIDE


@pytest.mark.parametrize(
    ("form", "nbytes"),
    [
        # bitsandbytes 0.50.2 on a 4096 × 4096 tensor, measured
        (four_bit("nf4"), N // 2 + N // 16 + 64),
        (four_bit("nf4", double_quant=True), N // 2 + N // 64 + N // 4096 + 1024 + 4 + 64),
        (INT8, N + 4 * SIDE),
        # ModelOpt, DeepSeek, OCP MX
        (per_tensor(), N + 4),
        (per_channel(), N + 4 * SIDE),
        (per_block(), N + 4 * 32 * 32),
        (nvfp4(), N * 9 // 16 + 8),
        (MXFP4, N * 17 // 32),
        (MXFP8, N * 33 // 32),
        (integers(), N + 4 * SIDE),
        # ExLlamaV3 doc/exl3.md; AQLM 1x16 g8: 2 bits, a codebook of 1 MiB, a scale per row
        (average("exl3", Fraction(3)), N * 3 // 8 + 2 * 2 * SIDE + 4),
        (average("exl2", Fraction("4.25")), N * 17 // 32),
        (aqlm(1, 16, 8), N // 4 + 2**20 + 2 * SIDE),
    ],
)
def test_bytes_of_a_square_matrix(form: Format, nbytes: int) -> None:
    assert form.nbytes(SIDE, SIDE) == nbytes


def bpw(form: Format, *, stored: bool = True) -> float:
    return form.nbytes(SIDE, SIDE, stored=stored) * 8 / N


@pytest.mark.parametrize(("bits", "group", "expected"), [(4, 128, 4.15625), (4, 64, 4.3125), (4, 32, 4.625), (8, 128, 8.1875)])
def test_gptq_stores_bits_and_groups_and_an_index(bits: int, group: int, expected: float) -> None:
    """bits + (16 + bits)/g + 32/out; a symmetric one keeps bits + 16/g in memory (Marlin)."""
    assert bpw(gptq(bits, group)) == expected + 32 / SIDE
    assert bpw(gptq(bits, group), stored=False) == bits + 16 / group
    assert bpw(gptq(bits, group, symmetric=False), stored=False) == expected + 32 / SIDE


def test_packed_integers_of_other_libraries() -> None:
    assert bpw(awq()) == 4.15625
    assert bpw(awq(4, 64)) == 4.3125
    assert bpw(packed(4, 128), stored=False) == 4.125
    assert bpw(packed(4, 128, symmetric=False), stored=False) == 4.15625
    assert packed(4, 32).nbytes(SIDE, SIDE, stored=True) - packed(4, 32).nbytes(SIDE, SIDE) == 16
    assert [bpw(hqq(4, g)) for g in (64, 128)] == [4.5, 4.25]
    assert bpw(hqq(3, 64)) == pytest.approx(3.2 + 0.5, abs=1e-5)
    assert [bpw(affine(*bg)) for bg in ((4, 64), (6, 64), (8, 64), (4, 32), (3, 128))] == [4.5, 6.5, 8.5, 5.0, 3.25]


def test_fp8_blocks_round_up() -> None:
    """kv_a_proj_with_mqa of DeepSeek-V3, 576 × 7168: 5 × 56 blocks, the last row of them half empty."""
    assert per_block().nbytes(576, 7168) == 576 * 7168 + 4 * 5 * 56


def test_ggml_block_types_are_those_of_the_gguf_package() -> None:
    theirs = {t.name: size for t, size in gguf.GGML_QUANT_SIZES.items()}
    ids = {int(t): t.name for t in gguf.GGML_QUANT_SIZES}
    ours = {name: size for name, size in BLOCKS.items() if name in theirs}
    assert ours == theirs | {"Q8_1": (32, 36)}  # ggml-common.h; gguf-py says 40
    assert {k: v for k, v in TYPE_IDS.items() if v in theirs} == ids
    assert set(TYPE_IDS.values()) == set(BLOCKS)


@settings(deadline=None)
@given(st.sampled_from(sorted(BLOCKS)), st.integers(1, 64), st.integers(1, 32))
def test_a_gguf_tensor_is_whole_blocks(name: str, rows: int, blocks: int) -> None:
    block, nbytes = BLOCKS[name]
    assert block_type(name).nbytes(rows, blocks * block) == rows * blocks * nbytes


FORMATS = [
    four_bit("nf4"), four_bit("fp4", double_quant=True), INT8, per_tensor(static=True), per_channel(), per_block(), nvfp4(), MXFP4, MXFP8,
    gptq(), gptq(3, 0), awq(), packed(8, 0), hqq(3, 64), affine(5, 32), average("exl3", Fraction("3.5")), aqlm(2, 8), block_type("Q6_K"),
]  # fmt: skip


@settings(deadline=None)
@given(st.sampled_from(FORMATS), st.integers(1, 300), st.integers(1, 3000), st.integers(1, 5))
def test_more_of_a_matrix_never_takes_less(form: Format, rows: int, cols: int, matrices: int) -> None:
    nbytes = form.nbytes(rows, cols)
    assert nbytes * 8 >= form.bits * rows * cols * (1 - 1e-12)
    assert form.nbytes(rows + 1, cols) >= nbytes
    assert form.nbytes(rows, cols + 1) >= nbytes
    assert form.nbytes(rows, cols, matrices) == matrices * nbytes
    assert form.nbytes(rows, cols, stored=True) >= nbytes


def test_the_layout_names_what_is_loaded_and_its_bytes() -> None:
    assert gptq().layout == "gptq 4-bit g128, 4/8 B + scales 2 B per 1 × 128"


def test_an_extra_counts_flat_or_by_tile() -> None:
    """bitsandbytes' blocks run on across rows, GPTQ's groups do not."""
    assert Extra(what="absmax", nbytes=4, tile=(0, 64), flat=True).count(3, 96) == 5
    assert Extra(what="scales", nbytes=2, tile=(1, 64)).count(3, 96) == 6


@pytest.mark.parametrize(
    ("name", "block"),
    [("auto", (1, 2)), ("bf16", (1, 2)), ("fp16", (1, 2)), ("fp32", (1, 4)), ("fp8", (1, 1)), ("fp8_e4m3", (1, 1)), ("f16", (1, 2)),
     ("q8_0", (32, 34)), ("q5_1", (32, 24)), ("q5_0", (32, 22)), ("q4_1", (32, 20)), ("Q4_0", (32, 18)), ("iq4_nl", (32, 18))],
)  # fmt: skip
def test_cache_types(name: str, block: tuple[int, int]) -> None:
    assert kv_bytes(name) == block


def test_auto_cache_is_of_the_models_dtype() -> None:
    assert kv_bytes("auto", auto="fp32") == (1, 4)
    with pytest.raises(NotFound, match="did you mean 'q8_0'"):
        kv_bytes("q8_1")
    with pytest.raises(NotFound, match="q6_k"):
        kv_bytes("q6_k")


def matrix_weight(name: str = "model.layers.{i}.mlp.up_proj.weight", **more: object) -> Weight:
    return Weight(**{"name": name, "shape": (SIDE, SIDE), "kind": "linear", "part": "mlp", "layers": (0,)} | more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "bits"),
    [("bf16", 16), ("FP16", 16), ("fp32", 32), ("mxfp4", 4.25), ("mxfp8", 8.25), ("gptq-8bit", 8.125), ("gptq-4bit-g32", 4.5),
     ("gptq-asym", 4.15625 + 32 / SIDE), ("awq-g64", 4.3125), ("w4a16", 4.125), ("w4a16-g32", 4.5), ("hqq-8bit-g128", 8.25),
     ("exl2-4.0bpw", 4.0), ("mlx-4bit", 4.5), ("mlx-8bit-g32", 9.0), ("mlx-mxfp4", 4.25), ("mlx-nvfp4", 4.5), ("MLX-MXFP8", 8.25)],
)  # fmt: skip
def test_names_with_options(name: str, bits: float) -> None:
    weight = matrix_weight()
    assert scheme(name).format_of(weight, 0).nbytes(SIDE, SIDE) * 8 / N == bits


@pytest.mark.parametrize(
    ("name", "words"),
    [("gtpq", "did you mean 'gptq'"), ("Q4_K_X", "did you mean"), ("", "known are"), ("x" * 10_000, "no such format")],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, words: str) -> None:
    with pytest.raises(NotFound, match=words) as error:
        scheme(name)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700


@pytest.mark.parametrize(
    "name",
    ["gptq-9bit", "gptq-4but", "nf4-g64", "int8-double", "fp8-row", "exl3", "exl3-99bpw", "exl2-0.2bpw", "mlx-7bit", "mlx-4bit-g65",
     "hqq-5bit", "bf16-x", "w8a8-g1", "nvfp4-4bit", "awq-0bit", "Q4_K_M"],
)  # fmt: skip
def test_an_unknown_option_is_refused(name: str) -> None:
    with pytest.raises(BadInput):
        scheme(name)


def test_names_are_found_in_the_files() -> None:
    names = scheme_names()
    assert {"bf16", "nf4", "gptq", "awq", "exl3", "mlx", "Q4_K_M", "IQ2_XXS", "MXFP4_MOE", "fp8", "w4a16"} <= set(names)
    assert len(set(names)) == len({name.lower() for name in names})


TOUCHED = {  # weight -> the schemes that leave it 16-bit; formats.md, "what each scheme touches"
    "embed": ("nf4", "int8", "gptq", "awq", "fp8-block", "nvfp4", "mxfp4", "exl3-4bpw", "hqq"),
    "head": ("nf4", "int8", "gptq", "awq", "fp8-block", "nvfp4", "mxfp4", "hqq"),
    "router": ("nf4", "int8", "gptq", "awq", "fp8-block", "nvfp4", "mxfp4", "hqq", "exl3-4bpw"),
    "norm": ("nf4", "int8", "gptq", "awq", "fp8-block", "nvfp4", "mxfp4", "mlx", "hqq", "exl3-4bpw"),
}


@pytest.mark.parametrize("kind", TOUCHED)
def test_who_stays_unquantised(kind: str) -> None:
    shape = (SIDE,) if kind == "norm" else (SIDE, SIDE)
    weight = matrix_weight(kind=kind, shape=shape)
    everything = {s for kinds in TOUCHED.values() for s in kinds}
    for name in everything:
        rule: Scheme = scheme(name)
        assert (rule.format_of(weight, 0).name == "bf16") == (name in TOUCHED[kind]), name


def test_a_weights_own_dtype_and_the_default_speak() -> None:
    rule = scheme("awq", dtype="fp16")
    assert rule.format_of(matrix_weight(shape=(8,), kind="norm"), 0).name == "fp16"
    assert rule.format_of(matrix_weight(shape=(8,), kind="buffer", dtype="fp32"), 0).name == "fp32"
    assert dtype_name("torch.float16") == "fp16"


def test_towers_are_reached_by_bitsandbytes_alone() -> None:
    weight = matrix_weight("visual.blocks.{i}.attn.qkv.weight", tower="vision")
    assert scheme("nf4").format_of(weight, 0).name == "nf4"
    assert {scheme(n).format_of(weight, 0).name for n in ("gptq", "awq", "fp8", "mlx", "nvfp4", "exl2-4bpw")} == {"bf16"}


def test_bitsandbytes_leaves_fused_experts() -> None:
    one = matrix_weight("model.layers.{i}.mlp.experts.{e}.up_proj.weight", kind="experts", copies=8)
    fused = matrix_weight("model.layers.{i}.mlp.experts.gate_up_proj", kind="experts", copies=8)
    assert [scheme("nf4").format_of(w, 0).name for w in (one, fused)] == ["nf4", "bf16"]


def test_mlx_needs_whole_groups() -> None:
    assert scheme("mlx-4bit").format_of(matrix_weight(shape=(64, 4304)), 0).name == "bf16"


@pytest.mark.parametrize(("shape", "nbytes"), [((), 2), ((7,), 14), ((3, 5), 30), ((3, 5, 2), 60)])
def test_any_number_of_dimensions(shape: tuple[int, ...], nbytes: int) -> None:
    weight = matrix_weight(shape=shape, kind="norm", layers=None)
    assert [share.nbytes for share in weights_nbytes([weight], scheme("nf4"))] == [nbytes]
