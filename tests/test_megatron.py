"""Megatron: Korthikanti's, Narayanan's and Qi's forms on a rank's tape, bytes of a parameter, its own estimator, and refusals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vramplan import estimate
from vramplan.dim import Dim
from vramplan.engines.nccl import CHANNEL
from vramplan.engines.train.megatron import KERNELS, STYLE
from vramplan.engines.train.megatron_recompute import recomputed
from vramplan.engines.train.megatron_stage import delayed_bytes
from vramplan.errors import BadInput, Unknown
from vramplan.families import walk
from vramplan.kernels import Kernels
from vramplan.ledger import Ledger, Moment
from vramplan.methods import Full
from vramplan.ops import activation, add, attention, dropout, embed, layer_norm, linear
from vramplan.ops.loss import vocabulary_parallel_cross_entropy
from vramplan.parallel.expert import spread_experts
from vramplan.parallel.mesh import Mesh
from vramplan.parallel.schedule import passes
from vramplan.parallel.sequence import sequence_parallel
from vramplan.parallel.stage import stage_of
from vramplan.parallel.tensor import tensor_parallel
from vramplan.runs import Checkpointing
from vramplan.speed.training import step
from vramplan.sweep import sweep
from vramplan.tape import Tape

ROWS = [json.loads(line) for line in (Path(__file__).parents[1] / "data/traced/megatron.jsonl").read_text().splitlines()]
LLAMA: dict[str, Any] = {
    "model": "meta-llama/Llama-3.1-8B",
    "task": "train",
    "engine": "megatron",
    "gpu": "h100-sxm-80gb",
    "sequence_length": 8192,
}
QWEN: dict[str, Any] = {**LLAMA, "model": "Qwen/Qwen3-30B-A3B", "sequence_length": 4096}
TP = given(t=st.sampled_from([1, 2, 4, 8]), b=st.integers(1, 4), s=st.sampled_from([8, 64, 256]), d=st.sampled_from([8, 16]))


def layers(b: int, s: int, a: int, d: int, n: int = 2) -> Tape:
    """Korthikanti's GPT (arXiv:2205.05198, figure 2) of `n` layers, `a` heads of `d`, with the names by which sizes are split."""
    tape = Tape(Dim(b, "sequences"), Dim(s, "tokens"), 0, 2, Kernels(attention="eager", softmax="fused"))
    tape.method, tape.attention_dropout = Full(), 0.1
    h, heads = Dim(a * d, "hidden"), Dim(a, "heads")
    wide = heads * Dim(d, "head_dim")
    x, _ = embed(tape, "embedding", Dim(128, "vocab"), h)
    with tape.layers("layer", range(n), x) as x:
        y = layer_norm(tape, x, "norm_1")
        q, k, v = (linear(tape, y, name, wide, bias=True) for name in "qkv")
        y = attention(tape, q, k, v, heads=heads, kv_heads=heads, past=False, upcast=False)
        x = add(tape, x, dropout(tape, linear(tape, y, "out", h, bias=True), 0.1, "out_dropout"))
        y = activation(tape, linear(tape, layer_norm(tape, x, "norm_2"), "up", Dim(4 * a * d, "ffn"), bias=True))
        add(tape, x, dropout(tape, linear(tape, y, "down", h, bias=True), 0.1, "mlp_dropout"))
    return tape


def kept(tape: Tape) -> int:
    """Bytes that one layer keeps, the norms' statistics, 16·s·b, and the shared mask left out."""
    return sum(t.nbytes for t in tape.tensors if t.repeats > 1 and t.saved == t.repeats and "stats" not in t.name)


# ---- Korthikanti et al. 2022: equations 1, 2, 4 and table 2 ------------------------------------
@TP
def test_tensor_parallelism_keeps_10_sbh_and_a_part_of_24(t: int, b: int, s: int, d: int) -> None:
    a, h = 8, 8 * d
    tape = tensor_parallel(layers(b, s, a, d), t, vocabulary=128)
    assert kept(tape) == s * b * h * 10 + (24 * s * b * h + 5 * a * s * s * b) // t


@TP
def test_sequence_parallelism_keeps_a_part_of_all(t: int, b: int, s: int, d: int) -> None:
    a, h = 8, 8 * d
    tape = sequence_parallel(layers(b, s, a, d), t, STYLE)
    assert kept(tape) * t == 34 * s * b * h + 5 * a * s * s * b


@TP
def test_selective_and_full_recomputation(t: int, b: int, s: int, d: int) -> None:
    """Table 2: 34 sbh / t without the attention's core, and of full recomputation a layer's input, 2 sbh / t with sequence parallelism."""
    a, h = 8, 8 * d
    tape = sequence_parallel(layers(b, s, a, d), t, STYLE)
    for op in tape.ops:
        op.name = op.name.replace("attention", ".attention")
    flash = sum(
        x.nbytes
        for x in recomputed(tape, ["core_attn"]).tensors
        if x.saved > 1 and x.nbytes * t >= s * b * h and "attention." not in x.name
    )
    assert flash * t == 34 * s * b * h
    full = sweep(sequence_parallel(layers(b, s, a, d), t, STYLE), gradient_itemsize=lambda _: 0, checkpointing=Checkpointing())
    assert full.saved - 8 * s * b == 2 * 2 * s * b * h // t


# ---- Megatron-Core itself, on a fake process group ---------------------------------------------
@pytest.mark.parametrize(
    "row",
    ROWS,
    ids=lambda row: "-".join(map(str, [row["layers"], row["tensor"], row["sequence"], len(row["config"]), *row.get("recompute", ())])),
)
def test_a_rank_keeps_what_megatron_core_keeps(row: dict[str, Any]) -> None:
    """To the byte, outside the attention's core: but for targets and masks of the loss and the embedding, which are left out.

    Of a mixture the permutation's own maps are another kernel's there.
    """
    c, b, s, t = row["config"], row["batch"], row["tokens"], row["tensor"]
    mixture = "num_experts" in c
    kind = {"model_type": "mixtral", "num_local_experts": c["num_experts"]} if mixture else {"model_type": "llama"}
    ffn = c["moe_intermediate_size" if mixture else "intermediate_size"]
    tape = Tape(Dim(b, "batch"), Dim(s, "tokens"), 0, 2, KERNELS)
    tape.method = Full()
    walk(tape, {**c, **kind, "intermediate_size": ffn, "num_hidden_layers": row["layers"], "tie_word_embeddings": False})
    vocabulary_parallel_cross_entropy(tape, tape.ops[-1].writes[0])
    tape = sequence_parallel(tape, t, STYLE) if row["sequence"] else tensor_parallel(tape, t, vocabulary=128)
    tape = recomputed(tape, row.get("recompute", ()))
    maps = ("attention", "probabilities", "weights", "permute")
    ours = {id(x): x for op in tape.ops if not op.name.endswith(maps) for x in op.keeps}
    masks = 9 * b * s + (b * s if t > 1 else 0)
    router = row["layers"] * 2 * b * s * c["hidden_size"] if mixture and "recompute" not in row else 0  # kept in moe_utils.py
    theirs = sum(nbytes for name, nbytes in row["kept"].items() if name != "moe_utils.py") + router
    assert sum(x.nbytes * x.saved for x in ours.values()) + masks == theirs


# ---- pipelines: Narayanan et al. 2021, Korthikanti section 4.2.3, Qi et al. 2024 ---------------
@given(p=st.integers(1, 8), m=st.integers(1, 32), stage=st.integers(0, 7))
def test_1f1b_holds_as_many_as_stages_are_left(p: int, m: int, stage: int) -> None:
    stage = min(stage, p - 1)
    assert max(sum(one.others) + 1 for one in passes("1f1b", stage, p, m)) == min(p - stage, m)
    assert max(sum(one.others) + 1 for one in passes("gpipe", stage, p, m)) == m


@given(p=st.integers(2, 8), v=st.integers(2, 4), rounds=st.integers(2, 6))
def test_interleaving_holds_more_by_its_factor(p: int, v: int, rounds: int) -> None:
    """The first stage of L layers: L (1 + (p − 1) / (p v)) of them at once, in chunks of L / (p v)."""
    held = max(sum(one.others) + 1 for one in passes("interleaved", 0, p, rounds * p, v))
    assert held == p * v + p - 1


@pytest.mark.parametrize("p", [2, 4, 8])
def test_stages_of_a_tape_make_the_whole(p: int) -> None:
    """Their parameters, what they keep of a micro-batch, and their operations; and the stage of all layers is the tape."""
    whole, n = layers(2, 64, 8, 16, n=8), 8 // p
    parts = [stage_of(whole, range(n * r, n * r + n), first=r == 0, last=r == p - 1) for r in range(p)]
    assert sum(part.parameters for part in parts) == whole.parameters
    assert sum(part.flops for part in parts) == whole.flops
    masks = sum(t.nbytes for t in whole.tensors if t.repeats == 1 and t.saved and "mask" in t.name)
    assert sum(part.saved_bytes for part in parts) - (p - 1) * masks == whole.saved_bytes
    alone = stage_of(whole, range(8), first=True, last=True)
    peaks = [sweep(tape, gradient_itemsize=lambda _: 2) for tape in (whole, alone)]
    assert (peaks[0].forward, peaks[0].backward, peaks[0].saved) == (peaks[1].forward, peaks[1].backward, peaks[1].saved)


def test_a_delayed_gradient_of_weights_holds_32_sbh() -> None:
    """Qi et al., table 1: what W of a layer needs."""
    b, s, a, d = 2, 64, 8, 16
    middle = stage_of(layers(b, s, a, d, n=8), range(2, 6), first=False, last=False)
    assert delayed_bytes(middle) == 4 * 32 * s * b * a * d


def ledger_of(stage: int, **keys: Any) -> Ledger:
    """What a rank of `stage` holds."""
    answer = estimate(**{**LLAMA, **keys})
    shares = sorted(answer.shares, key=lambda share: share.rank)
    return shares[stage].ledger


def test_stages_hold_fewer_micro_batches_each() -> None:
    keys: dict[str, Any] = {"gpu_count": 4, "pipeline_parallel": 4, "gradient_accumulation": 8}
    saved = [ledger_of(stage, **keys).total("saved activations", moment=Moment.BACKWARD) for stage in (1, 2)]
    assert 2 * saved[0] == 3 * saved[1]
    answer = estimate(**LLAMA, **keys)
    assert sum(share.count for share in answer.shares) == 4
    assert answer.peak[1] == max(share.ledger.peak()[1] for share in answer.shares)


# ---- the optimizer: ZeRO (arXiv:1910.02054) section 3, Megatron's docs/dist_optimizer ----------
def states(ledger: Ledger) -> int:
    """Weights, gradients, masters and states at the step."""
    return sum(ledger.total(name, moment=Moment.STEP) for name in ("weights", "gradients", "optimizer states"))


@pytest.mark.parametrize("d", [1, 2, 4, 8, 64])
def test_18_bytes_of_a_parameter_or_6_and_12_over_d(d: int) -> None:
    n = 8_030_261_248
    assert states(ledger_of(0, gpu_count=d, sharding="zero1")) == pytest.approx(6 * n + 12 * n / d, abs=1024)
    assert states(ledger_of(0, gpu_count=d, sharding="ddp")) == pytest.approx(18 * n, abs=2e5)  # step counters, a block for each tensor


def test_experts_are_spread_over_their_own_copies() -> None:
    """Megatron-Bridge's Qwen3-30B-A3B on 16 GPUs (TP2, PP2, EP4): a steady 47.2 GB allocated (skills/nemo-mbridge-perf-cpu-offloading).

    Dense weights are in 4 copies, experts in 2.
    """
    answer = estimate(**QWEN, gpu_count=16, tensor_parallel=2, pipeline_parallel=2, expert_parallel=4, checkpointing="full", loss="fused")
    steady = max(states(share.ledger) + share.ledger.total("workspace", "empty gradients") for share in answer.shares)
    assert steady == pytest.approx(47.2e9, rel=0.01)


@given(tensor=st.sampled_from([1, 2, 4]), pipeline=st.sampled_from([1, 2]), data=st.sampled_from([1, 2, 4]))
def test_the_parts_of_the_optimizer_make_the_whole(tensor: int, pipeline: int, data: int) -> None:
    mesh = Mesh(ranks=tensor * pipeline * data, tensor=tensor, pipeline=pipeline)
    weights = layers(1, 8, 8, 16).weights
    parts = sum(part.numel for part in mesh.optimizer_part(weights))
    assert 0 <= parts * data - sum(weight.numel for weight in weights) < data


def test_degree_one_is_the_identity() -> None:
    tape = layers(1, 8, 8, 16)
    assert spread_experts(tape, 1) is tape
    assert sequence_parallel(tape, 1, STYLE) is tape
    one: dict[str, Any] = dict.fromkeys(
        ("tensor_parallel", "pipeline_parallel", "context_parallel", "expert_parallel", "gpu_count", "virtual_pipeline"), 1
    )
    assert estimate(**LLAMA, **one).quantities == estimate(**LLAMA).quantities


def test_megatrons_own_estimator_of_weights_and_optimizer() -> None:
    """Its rank with most (megatron/training/theoretical_memory_usage.py, 0.19) is our first stage, but for a part of the final norm."""
    t, p, d = 2, 4, 2
    embedding, final = 128_256 * 4096, 4096
    layer = 2 * 4096 * 4096 * 1.25 + 3 * 4096 * 14_336
    theirs = ((32 * layer / p + embedding) / t + (32 * 2 * 4096 + final) / p) * (6 + 12 / d)
    ours = states(ledger_of(0, gpu_count=t * p * d, tensor_parallel=t, pipeline_parallel=p))
    assert ours - theirs == pytest.approx(-(6 + 12 / d) * final / p, abs=1024)


@pytest.mark.parametrize(
    ("model", "hidden", "depth", "theirs", "ours"),
    [
        ("meta-llama/Llama-3.1-8B", 4096, 32, 18 + 4 * 3.5, 34.0),
        ("Qwen/Qwen2.5-7B", 3584, 28, 18 + 4 * 18_944 / 3584, 44.3),
    ],
)
def test_megatrons_own_estimator_of_activations_is_low(model: str, hidden: int, depth: int, theirs: float, ours: float) -> None:
    """Its 18 + 4·ffn/h of sbh is a GeLU's MLP: gate, up and their product take 6·ffn/h, and fewer heads of keys less."""
    keys = {"model": model, "gpu_count": 4, "pipeline_parallel": 4, "gradient_accumulation": 4}
    kept = ledger_of(2, **keys).total("saved activations", moment=Moment.BACKWARD) / (2 * depth // 4 * 8192 * hidden)
    assert kept == pytest.approx(ours, abs=0.05)
    assert kept > theirs


# ---- refusals ------------------------------------------------------------------------------------
REFUSED: list[tuple[Mapping[str, Any], type[Exception], str]] = [
    ({"gpu_count": 8, "pipeline_parallel": 3}, BadInput, "pipeline_parallel 3 takes a multiple of 3 GPUs; the nearest is 6"),
    ({"gpu_count": 6, "pipeline_parallel": 6}, BadInput, "32 layers do not divide by it; 4 stages would|32 layers do not divide by it; 8"),
    ({"gpu_count": 3, "tensor_parallel": 3}, BadInput, "tensor_parallel 3: .* does not divide by it"),
    ({"gpu_count": 4, "expert_parallel": 4}, BadInput, "expert_parallel 4: the model has no experts"),
    (
        {"gpu_count": 4, "pipeline_parallel": 4, "virtual_pipeline": 2, "gradient_accumulation": 6},
        BadInput,
        "a multiple of pipeline_parallel 4",
    ),
    ({"virtual_pipeline": 2}, BadInput, "there is no pipeline to interleave"),
    ({"gpu_count": 2, "pipeline_parallel": 2, "pipeline_layers": [17, 16]}, BadInput, "must be 2 numbers that make 32 layers"),
    ({"method": "qlora"}, Unknown, "method 'qlora'"),
    ({"precision": "fp32"}, Unknown, "precision 'fp32'"),
    ({"sharding": "fsdp", "gpu_count": 2}, Unknown, "sharding 'fsdp'"),
    ({"optimizer_dtype": "bf16", "sharding": "ddp", "gpu_count": 2}, BadInput, "precision-aware optimizer is the distributed one"),
    ({"expert_imbalance": 0.5}, BadInput, "it is at least 1"),
    ({"recompute_layers": 4}, BadInput, "it is what checkpointing full recomputes"),
    ({"checkpointing": "full", "recompute_modules": "mlp"}, BadInput, "they are what selective recomputes"),
]


@pytest.mark.parametrize(("keys", "error", "text"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_megatron_refuses(keys: Mapping[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        estimate(**{**LLAMA, **keys})


def test_experts_that_do_not_divide() -> None:
    with pytest.raises(BadInput, match=r"expert_parallel 3: 128 experts do not divide by it; the nearest is [24]"):
        estimate(**{**QWEN, "gpu_count": 3, "expert_parallel": 3})
    with pytest.raises(BadInput, match="Megatron wants it with tensor and expert parallelism together"):
        estimate(**{**QWEN, "gpu_count": 4, "expert_parallel": 2, "tensor_parallel": 2, "sequence_parallel": False})


# ---- the block method ----------------------------------------------------------------------------
def test_the_block_method_recomputes_the_first_layers_of_a_stage() -> None:
    """Each layer beyond them keeps what one keeps without recomputation; all of them are the full method (`core/recompute.py`)."""
    keys: dict[str, Any] = {"gpu_count": 4, "pipeline_parallel": 4, "gradient_accumulation": 8}

    def kept(**more: Any) -> int:
        """Of one micro-batch on a stage of 8 layers."""
        saved = [ledger_of(n, **keys, **more).total("saved activations", moment=Moment.FORWARD) for n in (1, 2)]
        return saved[0] - saved[1]

    none, full = kept(), kept(checkpointing="full")
    for n in (1, 3, 8, 100):
        assert 8 * kept(checkpointing="full", recompute_layers=n) == min(n, 8) * full + max(8 - n, 0) * none


# ---- experts' imbalance ---------------------------------------------------------------------------
def test_a_rank_that_gets_half_as_many_rows_again_keeps_them() -> None:
    """Sorted rows, gate and up, and the product in bf16, the weights in fp32: of b·s·top_k rows."""
    keys: dict[str, Any] = {**QWEN, "gpu_count": 8, "expert_parallel": 8}
    ledgers = [estimate(**keys, expert_imbalance=f).ledger for f in (1, 1.5, 2)]
    saved = [ledger.total("saved activations", moment=Moment.LOSS) for ledger in ledgers]
    row = 2 * (2048 + 3 * 768) + 4
    assert saved[1] - saved[0] == saved[2] - saved[1] == 48 * 4096 * 8 // 2 * row
    with pytest.raises(Unknown, match="expert_imbalance"):
        estimate(**{**QWEN, "engine": "transformers", "expert_imbalance": 1.5})


# ---- NCCL ------------------------------------------------------------------------------------------
def test_what_nccl_takes_is_said_for_the_groups_of_a_rank() -> None:
    """A channel: 8 lines · 512 threads · 8 steps · 16 B, 120 · 640 · 8 · 8 B and 4 MiB, in pieces of 2 MiB (NCCL 2.30.7)."""
    protocols = 8 * 512 * 8 * 16 + 120 * 640 * 8 * 8 + (4 << 20)
    assert (-(-protocols // (2 << 20)) + 1) * (2 << 20) == CHANNEL  # and one for the sender's flags
    assert Mesh(ranks=16, tensor=2, pipeline=2, expert=4).groups == 5
    assert any("2 groups" in line for line in estimate(**LLAMA, gpu_count=4, tensor_parallel=2).assumptions)
    assert not any("NCCL" in line for line in estimate(**LLAMA).assumptions)


# ---- speed: Narayanan et al. 2021 section 2.2, Shoeybi et al. 2019 section 3 ----------------------
def test_a_pipeline_waits_for_its_bubble() -> None:
    """(p − 1) / (m v) of the work of p stages; tokens are those of a copy of the model."""
    alone, tokens = step(estimate(**LLAMA, gradient_accumulation=8))
    keys: dict[str, Any] = {"gpu_count": 8, "pipeline_parallel": 4, "gradient_accumulation": 8}
    for chunks in (1, 2):
        split, more = step(estimate(**LLAMA, **keys, virtual_pipeline=chunks))
        assert split.compute == pytest.approx(alone.compute / 4 * (1 + 3 / (8 * chunks)))
        assert more == 2 * tokens


def test_tensor_parallel_ranks_add_up_four_times_a_layer() -> None:
    roof, _ = step(estimate(**LLAMA, gpu_count=8, tensor_parallel=8))
    assert roof.link * 450e9 == pytest.approx(4 * 32 * 2 * 7 / 8 * 8192 * 4096 * 2)


# ---- LoRA: Megatron-Bridge's PEFT ----------------------------------------------------------------
GEMMA: dict[str, Any] = {
    "model": "google/gemma-4-26B-A4B-it",
    "task": "train",
    "engine": "megatron",
    "method": "lora",
    "gpu": "h100-sxm-80gb",
    "sequence_length": 4096,
}


def test_a_rank_has_as_many_adapters_as_megatron_bridge_counts() -> None:
    """22,272,000 on a rank of TP2 EP4 (Megatron-Bridge 0.6 `examples/model_verification_cards/gemma-4-26b-a4b-it/card.yaml`)."""
    ledger = estimate(**GEMMA, gpu_count=4, tensor_parallel=2, expert_parallel=4).ledger
    assert ledger.total("gradients", moment=Moment.STEP) == 4 * 22_272_000


def lora_of(rank: int, **keys: Any) -> Ledger:
    return ledger_of(0, method="lora", lora={"rank": rank}, attention="flash", **keys)


@pytest.mark.parametrize("t", [1, 2, 4, 8])
def test_adapters_are_split_as_their_layers_are(t: int) -> None:
    """Of Llama-3.1-8B: every A and B is in even parts, by the rank or by what the layer takes or makes."""
    h, kv, f, r, n = 4096, 1024, 14_336, 16, 32
    whole = r * (h + h + 2 * kv) + r * (h + h) + r * (h + 2 * f) + r * (f + h)
    ledger = lora_of(r, gpu_count=t, tensor_parallel=t)
    assert ledger.total("gradients", moment=Moment.STEP) * t == 4 * n * whole
    assert ledger.total("weights", "adapters", moment=Moment.STEP) * t == 2 * n * whole


def test_adapters_keep_the_gathered_input() -> None:
    """With sequence parallelism a layer keeps, for its adapters, both norms' outputs of all tokens
    (`return_layernorm_output_gathered`), the MLP's product, and A's four outputs; frozen layers keep no input of their own.
    """
    s, h, kv, f, r, n = 8192, 4096, 1024, 14_336, 16, 32
    for t in (2, 4):
        saved = {}
        for stage in (1, 2):
            keys: dict[str, Any] = {"gpu_count": 4 * t, "pipeline_parallel": 4, "tensor_parallel": t, "gradient_accumulation": 8}
            made = estimate(**{**LLAMA, **keys, "method": "lora", "lora": {"rank": r}})
            shares = sorted(made.shares, key=lambda share: share.rank)
            saved[stage] = shares[stage].ledger.total("saved activations", moment=Moment.BACKWARD)
        layer = 2 * s * (2 * h + 4 * r) + 2 * s * (2 * h + h + h + 2 * kv + 3 * f) // t
        stats = 2 * 4 * s // t + 4 * s * 32 // t
        assert saved[1] - saved[2] == n // 4 * (layer + stats)


def test_what_adapters_are_refused() -> None:
    for lora, text in (
        ({"targets": ["q_proj"]}, "Megatron has q_proj, k_proj, v_proj in one layer"),
        ({"targets": ["linear_qvk"]}, "has adapters for linear_qkv"),
        ({"dtype": "fp32"}, "adapters are in bf16"),
    ):
        with pytest.raises(BadInput, match=text):
            estimate(**{**LLAMA, "method": "lora", "lora": lora})
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    all_of_them = estimate(**{**LLAMA, "method": "lora", "lora": {"rank": 8, "targets": names}})
    assert all_of_them.peak == estimate(**{**LLAMA, "method": "lora", "lora": {"rank": 8}}).peak
