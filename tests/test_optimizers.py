"""Optimizers by hand: what each keeps and makes for weights of known sizes, their other names, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vramplan import BadInput, Unknown, estimate
from vramplan.errors import NotFound
from vramplan.ledger import Moment
from vramplan.optimizers import ALIASES, UNDESCRIBED, named, optimizer, optimizer_names
from vramplan.optimizers.base import Locals, in_order
from vramplan.optimizers.clipping import clipping
from vramplan.optimizers.master import DEEPSPEED, MASTER, MEGATRON, MEGATRON_BF16, ZERO, ZERO_FP32, Master
from vramplan.tensors import Weight

N = 4096 * 4096
UP = Weight(name="up.weight", shape=(4096, 4096), kind="linear", part="mlp", layers=(0, 1, 2))
TALL = Weight(name="down.weight", shape=(8192, 1024), kind="linear", part="mlp", layers=(0, 1, 2))
EMBED = Weight(name="embed.weight", shape=(1024, 4096), kind="embed", part="embedding")
NORM = Weight(name="norm.weight", shape=(4095,), kind="norm", part="norms")
MODEL = "meta-llama/Llama-3.1-8B"
PARAMETERS = 8_030_261_248


@pytest.mark.parametrize("name", optimizer_names())
def test_every_optimizer_has_a_source_and_counts_whole_bytes(name: str) -> None:
    found = optimizer(name)
    assert found.source
    assert found.states(UP, 2) == 3 * sum(found.kept(UP, 2))
    assert all(isinstance(block, int) and block > 0 for weight in (UP, EMBED, NORM) for block in found.kept(weight, 2))
    assert found.temporary([UP], lambda _: 2) >= found.temporary_of(UP, 2) >= 0


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=8), st.sampled_from([2, 4]))
def test_a_loop_takes_at_least_its_largest_turn_and_at_most_all_of_them(sizes: list[int], itemsize: int) -> None:
    weights = [Weight(name=f"w{n}", shape=(size, 64), kind="linear", part="mlp") for n, size in enumerate(sizes)]
    for name in optimizer_names():
        found = optimizer(name)
        turns = [found.temporary_of(weight, itemsize) for weight in weights]
        assert max(turns) <= found.temporary(weights, lambda _: itemsize) <= sum(turns)


@pytest.mark.parametrize(
    ("name", "states", "temporary"),
    [
        ("adamw", 4 * N, 3 * 2 * N),
        ("adamw-fused", 4 * N + 512, 0),
        ("adamw-forloop", 4 * N, 3 * 2 * N),  # the turn before's denominator, a root and a quotient
        ("sgd", 0, 0),
        ("sgd-momentum", 2 * N, 0),
        ("adagrad", 2 * N, 3 * 2 * 2 * N),
        ("rmsprop", 2 * N, 3 * 2 * N),
        ("adafactor", 4 * 8192, 4 * 4 * N + 4 * N),  # fp32 gradient, weight, its square, sum; the update of the turn before
        ("adamw-8bit", 2 * N + 2 * 4 * N // 256, 0),
        ("adamw-32bit", 8 * N, 0),
        ("lion", 4 * N, 0),
        ("lion-8bit", N + 4 * N // 256, 0),
        ("ademamix-8bit", 3 * N + 3 * 4 * N // 256, 0),
        ("paged-adamw-8bit", 2 * 4 * N // 256, 0),
        ("paged-lion", 0, 0),
        ("adamw-8bit-torchao", 2 * (N + 4 * N // 256 + 1024), 8 * N + 2 * 4 * N // 256),
        ("adamw-4bit-torchao", 2 * (N // 2 + 4 * N // 128 + 512), 24 * N + 2 * 4 * N // 128),
        ("adamw-fp8-torchao", 2 * (N + 4 * N // 256), 2 * 4 * N // 256),
        ("muon", 2 * N, 2 * N + 2 * 2 * N + 2 * 2 * N),  # an update, the matrix twice, and two squares of its sides
        ("sophia", 4 * N, 4 * 2 * N),
        ("adamw-anyprecision", 8 * N, 3 * 4 * N),
        ("fused-adam", 8 * N, 0),
    ],
)
def test_a_square_matrix_in_16_bits_by_hand(name: str, states: int, temporary: int) -> None:
    """Three layers of 4096 × 4096: `states` of one, `temporary` of the whole step."""
    found = optimizer(name)
    assert found.states(UP, 2) == 3 * states
    assert found.temporary([UP], lambda _: 2) == temporary


def test_galore_keeps_low_rank_moments_and_a_projection() -> None:
    """Zhao et al. 2024, table 1: states of mn' + 2nr for m ≤ n; of fp32 gradients the projection is a view into all singular vectors."""
    found = optimizer("galore-adamw", rank=128)
    assert list(found.kept(TALL, 2)) == [2 * 128 * 1024, 2 * 8192 * 128, 2 * 8192 * 128]
    assert list(found.kept(TALL, 4)) == [4 * 1024 * 1024, 4 * 8192 * 128, 4 * 8192 * 128]
    assert found.states(EMBED, 2) == 4 * 1024 * 4096
    assert optimizer("galore-adamw-8bit-layerwise").in_backward
    assert sum(optimizer("galore-adamw-8bit").kept(TALL, 2)) == 2 * 128 * 1024 + 2 * (8192 * 128 + 4 * 8192 * 128 // 256)


def test_small_weights_and_embeddings_keep_wide_states() -> None:
    assert optimizer("adamw-8bit").states(NORM, 2) == 8 * 4095
    assert optimizer("adamw-8bit-torchao").states(NORM, 2) == 4 * 4095
    assert optimizer("adamw-8bit").states(EMBED, 2) == 2 * (1024 * 4096 + 4 * 1024 * 16)
    assert optimizer("adamw-8bit", wide_embeddings=True).states(EMBED, 2) == 8 * 1024 * 4096
    paged = optimizer("paged-adamw-32bit")
    assert (paged.states(UP, 2), paged.paged(UP, 2)) == (0, 3 * 8 * N)
    assert (paged.states(NORM, 2), paged.paged(NORM, 2)) == (8 * 4095, 0)


def test_the_dtype_of_states_is_a_choice_of_some() -> None:
    assert optimizer("fused-adam", dtype="bf16").states(UP, 2) == 3 * 2 * (2 * N + 512)
    assert optimizer("fused-adam", dtype="bf16").temporary([UP], lambda _: 2) == 0
    assert optimizer("fused-adam", dtype="fp16").temporary([UP], lambda _: 2) == 3 * 8 * N
    for name, choice in (("adamw", {"dtype": "fp32"}), ("adamw-8bit", {"rank": 8}), ("adamw-anyprecision", {"dtype": "int8"})):
        with pytest.raises(BadInput, match=r"optimizer_(dtype|rank)"):
            optimizer(name, **choice)


def test_other_names_are_of_optimizers_that_are_here() -> None:
    assert set(ALIASES.values()) <= set(optimizer_names())
    assert not set(ALIASES) & set(optimizer_names())
    assert named("adamw_torch_fused") == "adamw-fused"
    assert named("paged_adamw_8bit") == "paged-adamw-8bit"
    for name in UNDESCRIBED:
        with pytest.raises(Unknown, match="nearest that is"):
            optimizer(name.replace("-", "_"))
    with pytest.raises(NotFound, match="did you mean 'adamw'"):
        optimizer("adamm")


def test_locals_hold_until_they_are_bound_again() -> None:
    names = Locals()
    names.bind("a", 10, 5)
    names.bind("a", 20)
    names.use(1)
    assert (names.most, names.blocks, names.held) == (30, [10, 20], {"a": 20})
    names.free(20)
    names.use(25)
    assert names.most == 30


def test_two_layers_stand_for_all_and_vectors_come_last() -> None:
    assert [weight.name for weight in in_order([EMBED, NORM, UP, TALL])] == [
        *("embed.weight", "up.weight", "down.weight", "up.weight", "down.weight", "norm.weight")
    ]


def test_clipping_sums_norms_by_chunks_of_the_largest_weight() -> None:
    """Llama-3.1-8B: 291 tensors, 128,256 × 4,096 elements in 8,016 chunks of 65,536 (ForeachReduceOp.cu)."""
    weights = [Weight(name="w", shape=(4096,), kind="norm", part="norms", layers=tuple(range(290))), _big(128_256, 4096)]
    assert clipping(weights, lambda _: 2) == 291 * 8016 * 4 + 291 * 512
    assert clipping([], lambda _: 2) == 0


def _big(*shape: int) -> Weight:
    return Weight(name="head", shape=shape, kind="head", part="head")


@pytest.mark.parametrize(
    ("master", "ranks", "total"), [(MEGATRON, 1, 18), (MEGATRON_BF16, 1, 20), (MEGATRON, 4, 6 + 12 / 4), (MEGATRON_BF16, 4, 4 + 16 / 4)]
)
def test_megatrons_own_table_of_bytes_per_parameter(master: Master, ranks: int, total: float) -> None:
    """Megatron-LM docs, distributed optimizer: bf16 with fp32 gradients 18, sharded 6 + 12/d; 16-bit gradients 20 and 4 + 16/d."""
    step = master.step(1, 0)
    assert 2 + master.buffer + master.own + (MASTER + 8 + step) / ranks == total


@pytest.mark.parametrize(("master", "step"), [(DEEPSPEED, 8), (ZERO, 6), (ZERO_FP32, 0)])
def test_deepspeeds_step_makes_flat_fp32_gradients(master: Master, step: int) -> None:
    assert master.step(1000, 0) == 1000 * step
    assert master.step(1000, 10_000) == max(1000 * step, 10_000 + 1000 * (master.stepped - (0 if master.zeroed else master.own)))


def of(**keys: object):  # type: ignore[no-untyped-def]
    return estimate(MODEL, task="train", sequence_length=512, **keys)


def test_the_first_step_has_no_states_until_it_steps() -> None:
    answer = of(optimizer="adamw-fused")
    states = answer.ledger.total("optimizer states")
    before = max(answer.ledger.at(moment) for moment in (Moment.FORWARD, Moment.LOSS, Moment.BACKWARD)) - states
    outside = answer.ledger.total("cuda context")
    assert answer.facts["first_step"] == max(before, answer.ledger.at(Moment.STEP)) - outside
    assert of(optimizer="adagrad").facts["first_step"] == of(optimizer="adagrad").facts["peak_allocated"]


def test_a_step_inside_the_backward_pass_leaves_no_set_of_gradients() -> None:
    """SGD keeps nothing: what is left are the weights, activations, and one gradient at a time."""
    whole, inside = of(optimizer="sgd", checkpointing="full"), of(optimizer="sgd", checkpointing="full", optimizer_in_backward=True)
    assert whole.ledger.total("gradients", moment=Moment.STEP) == 2 * PARAMETERS
    assert inside.ledger.total("gradients") == 0
    assert whole.facts["peak_allocated"] - inside.facts["peak_allocated"] > 0.8 * 2 * PARAMETERS
    with pytest.raises(BadInput, match="gradient_accumulation"):
        of(optimizer_in_backward=True, gradient_accumulation=2)


def test_a_master_copy_and_an_average_are_there_all_the_time() -> None:
    answer = of(precision="bf16-master", optimizer="fused-adam", ema=True)
    for moment in (Moment.FORWARD, Moment.STEP):
        assert answer.ledger.total("weights", "fp32 master", moment=moment) == 4 * PARAMETERS
        assert answer.ledger.total("ema weights", moment=moment) == 2 * PARAMETERS
        assert answer.ledger.total("optimizer states", moment=moment) == 8 * PARAMETERS
    assert answer.ledger.total("optimizer step") == 8 * PARAMETERS
