"""SGLang's account: the default of mem_fraction_static, cells and pools by exact arithmetic, start-up logs of others, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vramplan import BadInput, Estimate, Unknown, estimate
from vramplan.engines.sglang_pools import Pools
from vramplan.ledger import Moment
from vramplan.measured.validate import read, replay
from vramplan.tensors import Cache
from vramplan.units import GiB, MiB

LLAMA = "meta-llama/Llama-3.1-8B"
CACHE = Cache(name="keys", side="k", shape=(1,), layers=(0,))
ROWS = [
    row for row in read(Path(__file__).parent.parent / "data" / "measured" / "infer.jsonl") if row["scenario"].get("engine") == "sglang"
]
TOLERANCE = {"kv_tokens": 0.03, "kv_cache": 0.03, "weights": 0.02, "state_pool": 0.02, "process": 0.03, "cuda_graphs": 0.1}
"""The issue's 3 % of tokens; graphs are no more than an order (two digits are printed)."""


def sglang(model: Any = LLAMA, **more: Any) -> Estimate:
    return estimate(model, engine="sglang", **{"gpu": "h100-sxm-80gb", "context_length": 8192, **more})


# ---- drafts and adapters ------------------------------------------------------------------------------------------------
EAGLE3: dict[str, object] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLMEagle3"], "hidden_size": 4096, "intermediate_size": 14336,
    "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 1, "vocab_size": 128256, "draft_vocab_size": 32000,
}  # fmt: skip


@pytest.mark.parametrize(
    ("draft", "reserve", "layers", "places"),
    [(EAGLE3, 2048, 1, 5 * 4 + 8), ("meta-llama/Llama-3.2-1B", 6144, 8, 3 * 1 + 4)],  # 16 layers of heads half as wide
)
def test_a_draft_runs_beside_the_pools(draft: Any, reserve: int, layers: int, places: int) -> None:
    """SGLang 0.5.6: the default leaves 2 or 6 GiB more; 48 requests; both pools hold the tokens of the pool and what is drafted at once."""
    alone, drafting = sglang(), sglang(draft_model=draft)
    share = [answer.scenario.gpu_memory_utilization or 0 for answer in (alone, drafting)]
    assert share[0] - share[1] == pytest.approx(reserve / (80 * 1024), abs=0.0011)
    assert drafting.scenario.sequences == 48
    more = 48 * places + 100
    assert drafting.ledger.total("buffers", "drafted tokens") == more * 131072
    assert drafting.ledger.total("kv cache", "draft") == (drafting.quantities["kv_tokens"] + more) * layers * 4096
    assert drafting.ledger.total("buffers", "request table") == 4 * 48 * (8192 + 4 + places - (20 if reserve == 2048 else 3))
    assert drafting.quantities["kv_tokens"] < alone.quantities["kv_tokens"]


def test_its_own_layers_draft() -> None:
    """DeepSeek-V3 on eight ranks: a layer's latents of every token of the pool once more, 3 steps and 4 verified."""
    given = {"model": "deepseek-ai/DeepSeek-V3", "gpu_count": 8, "gpu": "b200"}
    drafting = sglang(**given, draft_model="mtp")
    more = 48 * 7 + 100
    assert drafting.ledger.total("kv cache", "draft") == (drafting.quantities["kv_tokens"] + more) * 576 * 2
    assert drafting.ledger.total("weights", "draft", "projection") == 7168 * 14336 * 2


def test_n_grams_need_no_draft() -> None:
    alone, drafting = sglang(), sglang(draft_model="ngram")
    assert drafting.scenario.sequences == 48
    assert drafting.ledger.total("weights") == alone.ledger.total("weights")
    assert drafting.scenario.gpu_memory_utilization == alone.scenario.gpu_memory_utilization


@pytest.mark.parametrize(("tensor", "columns"), [(1, 1), (2, 2)])
def test_slots_for_adapters_come_before_the_pools(tensor: int, columns: int) -> None:
    """LoRAMemoryPool.init_buffers: 8 slots of A and B; a rank has columns of q, k, v, gate and up's B, rows of o and down's A."""
    alone, lora = (sglang(tensor_parallel=tensor, **more) for more in ({}, {"lora": {"rank": 16}}))
    split = (4096 + 2 * 1024 + 2 * 14336) // columns + (4096 + 14336) // columns
    whole = 5 * 4096 + 2 * 4096
    nbytes = 8 * 16 * 32 * (split + whole) * 2
    assert lora.ledger.total("weights", "adapters") == nbytes
    assert (alone.quantities["kv_tokens"] - lora.quantities["kv_tokens"]) * 131072 / tensor == pytest.approx(nbytes, abs=131072)


# ---- logs of others -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row["id"]))
def test_what_it_logs(row: dict[str, Any]) -> None:
    answer = replay(row)
    assert answer.refused is None
    assert answer.error == pytest.approx(0, abs=TOLERANCE[answer.quantity])


def per_token(model: str, **more: Any) -> int:
    return sglang(model, **more).quantities["kv_bytes_per_token"]


@pytest.mark.parametrize(
    ("model", "more", "tokens", "printed"),
    [
        ("deepseek-ai/DeepSeek-V3", {"gpu_count": 8}, 161_488, 10.57),  # 61 layers of latents, whole on each of 8 ranks
        ("Qwen/Qwen3-30B-A3B", {}, 1_669_816, 152.88),
        ("zai-org/GLM-5-FP8", {"gpu_count": 8, "kv_dtype": "fp8"}, 3_262_823, 186.77),  # 512 + 16 + 128 and 128 + 4 B in 78 layers
        ("Qwen/Qwen3-235B-A22B-FP8", {"gpu_count": 4}, 367_404, 16.46),
    ],
)
def test_cells_times_tokens_is_the_printed_pool(model: str, more: dict[str, Any], tokens: int, printed: float) -> None:
    """ "KV Cache is allocated": keys and values together, each rounded to 0.01 GiB."""
    assert per_token(model, gpu="b200", **more) * tokens / GiB == pytest.approx(printed, abs=0.011)


def test_the_pool_of_windows() -> None:
    """MiMo-V2-Flash with four ranks: 375,360 tokens and 300,288 in windows, 13.97 GiB of these (sglang#18039, pages of 64)."""
    mimo = sglang("XiaomiMiMo/MiMo-V2-Flash", gpu_count=4, context_length=375_360 // 2)
    full, window = (mimo.ledger.total("kv cache", kind) for kind in ("full attention", "window"))
    assert window * 2 / GiB == pytest.approx(13.97, abs=0.011)
    assert (full, window) == (187_680 * 9 * 1 * (192 + 128) * 2, 150_144 * 39 * 2 * (192 + 128) * 2)


# ---- mem_fraction_static ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("gpu", "more", "reserved", "chunk"),
    [
        ("rtx-5080", {}, 512 + 1.5 * 2048 + 2 * 8 + 128, 2048),
        ("rtx-4090", {}, 512 + 1.5 * 2048 + 2 * 24 + 128, 2048),
        ("rtx-4090", {"gpu_count": 4}, 512 + 1.5 * 2048 + 2 * 80 + 512, 2048),
        ("h100-sxm-80gb", {}, 512 + 1.5 * 8192 + 2 * 256 + 128, 8192),
        ("h100-sxm-80gb", {"gpu_count": 8}, 512 + 1.5 * 8192 + 2 * 512 + 1024, 8192),
        ("h100-sxm-80gb", {"tensor_parallel": 2, "pipeline_parallel": 2}, 512 + 1.5 * 8192 + 2 * 256 + 512, 8192),
        ("h100-sxm-80gb", {"max_batched_tokens": 2048}, 10240, 2048),  # 10 GiB at least on a card above 60 GB
        ("b200", {}, 512 + 1.5 * 16384 + 2 * 512 + 128, 16384),
        ("rtx-5080", {"engine_version": "0.5.2"}, (2.8 + 1 / 10) * 1024, 2048),
        ("h100-sxm-80gb", {"engine_version": "v0.5.2.post1", "gpu_count": 2}, (9.5 + 2 / 2) * 1024, 8192),
        ("h200-sxm-141gb", {"engine_version": "0.5"}, (12 + 1 / 2) * 1024, 8192),
        ("b200", {"engine_version": "0.5.2"}, 32 * 1024, 16384),
    ],
)
def test_the_default_follows_from_the_card(gpu: str, more: dict[str, Any], reserved: float, chunk: int) -> None:
    """server_args.py: (memory − reserved) / memory in MiB, rounded to 3 digits; by size of the card alone before 0.5.3."""
    answer = sglang(gpu=gpu, **more)
    assert answer.gpu is not None
    memory = answer.gpu.capacity / MiB
    assert answer.scenario.gpu_memory_utilization == round((memory - reserved) / memory, 3)
    assert answer.scenario.max_batched_tokens == chunk


def test_a_vision_tower_lowers_the_default() -> None:
    """adjust_mem_fraction_for_vlm: 0.95 × (1 − 0.1 × (27 · 1,152² / (24 · 1,024²) − 1)) with SigLIP."""
    plain = sglang("google/gemma-3-1b-it").scenario.gpu_memory_utilization
    towered = sglang("google/gemma-3-4b-it").scenario.gpu_memory_utilization
    assert plain is not None
    assert towered == pytest.approx(plain * 0.95 * (1.1 - 0.1 * 27 * 1152**2 / (24 * 1024**2)))


def test_a_card_that_the_reserve_fills() -> None:
    with pytest.raises(BadInput, match="leaves nothing"):
        sglang(gpu=None, gpu_memory=3 * GiB)


def test_without_a_card() -> None:
    """server_args.py's fallback: 0.88, chunks of 4,096, batches to 160."""
    answer = sglang(gpu=None)
    assert (answer.fits, answer.scenario.gpu_memory_utilization, answer.scenario.max_batched_tokens) == (None, 0.88, 4096)
    assert answer.quantities["cuda_graphs"] == 2 * MiB * 160


# ---- pools --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("kv_dtype", "cell"), [("auto", 131072), ("fp8", 65536)])
def test_the_pool_is_what_the_weights_leave(kv_dtype: str, cell: int) -> None:
    answer = sglang(gpu=None, gpu_memory=80 * GiB, gpu_memory_utilization=0.8, kv_dtype=kv_dtype)
    free = 80 * GiB - answer.ledger.total("cuda context")
    tokens = (int(free * 0.8) - answer.quantities["weights"]) // cell
    assert (answer.quantities["kv_tokens"], answer.quantities["kv_cache"]) == (tokens, tokens * cell)


def test_it_fits_exactly_if_the_pool_holds_one_sequence() -> None:
    given = {"gpu": None, "gpu_memory_utilization": 0.5, "context_length": 131072}
    whole = sglang(**given, gpu_memory=80 * GiB)
    static = whole.quantities["weights"] + whole.ledger.total("kv cache")
    least = 2 * static + whole.ledger.total("cuda context")
    exact, less = sglang(**given, gpu_memory=least), sglang(**given, gpu_memory=least - 2)
    assert (exact.fits, exact.headroom, exact.quantities["kv_tokens"]) == (True, 0, 131072)
    assert (less.fits, less.headroom, less.quantities["kv_tokens"]) == (False, -1, 131071)


def test_what_runs_must_fit_beside_the_pools() -> None:
    """The pool takes its share whatever runs: a share of 0.99 leaves too little for the chunk, a smaller one starts."""
    full, some = (sglang(gpu_memory_utilization=share) for share in (0.99, 0.8))
    assert (full.fits, some.fits) == (False, True)
    assert any("what runs beside the pools exceeds what they leave" in remark for remark in full.remarks)
    advised = full.remarks[-1].split("--mem-fraction-static ")[1].split()[0].rstrip(")")
    assert sglang(gpu_memory_utilization=float(advised)).fits
    assert not sglang(gpu_memory_utilization=float(advised) + 0.01).fits
    assert full.gpu is not None
    assert full.headroom == full.gpu.usable - full.quantities["process"] < 0


def test_too_little_for_one_token() -> None:
    answer = sglang(gpu="rtx-4080", gpu_memory_utilization=0.5)
    assert (answer.fits, answer.quantities["kv_tokens"]) == (False, 0)
    assert answer.remarks[0] == "SGLang would not start: Not enough memory. Please try to increase --mem-fraction-static."


def test_states_and_cache_share_what_the_weights_leave() -> None:
    """Qwen3-Next: 0.9 / 1.9 for states, conv in bf16 and delta in fp32 of 36 layers; a third as many requests as slots."""
    answer = sglang("Qwen/Qwen3-Next-80B-A3B-Instruct", gpu="h200-sxm-141gb", weights="fp8", gpu_memory_utilization=0.8)
    assert answer.gpu is not None
    free = answer.gpu.usable - answer.ledger.total("cuda context")
    rest = int(free * 0.8) - answer.quantities["weights"]
    slot = 36 * ((2 * 16 * 128 + 32 * 128) * 3 * 2 + 32 * 128 * 128 * 4)
    slots = int(rest * 0.9 / 1.9 // slot)
    assert answer.quantities["state_pool"] == (slots + 1) * slot
    assert answer.quantities["kv_tokens"] == (rest - slots * slot) // (12 * 2 * 2 * 256 * 2)
    assert answer.scenario.sequences == slots // 3


@pytest.mark.parametrize("tokens", [1, 900, 6000, 60_000, 600_000])
def test_a_hybrid_s_request_takes_the_fewest_bytes_that_hold_it(tokens: int) -> None:
    """Bytes are shared as the engine does (`int(rest * 0.9 / 1.9 // slot)` slots, the rest to tokens): fewer bytes do not hold both."""
    hybrid = Pools(full=[(CACHE, 700)], window=[], state=[(CACHE, 100_003)])

    def holds(rest: int) -> bool:
        slots = int(rest * 0.9 / (1 + 0.9) // hybrid.slot)
        return slots >= 3 and (rest - slots * hybrid.slot) // 700 >= tokens

    need = sum(item.nbytes for item in hybrid.request(tokens))
    assert holds(need + 1)
    assert not any(holds(rest) for rest in range(0, need - 1, need // 20_000 + 1))


@pytest.mark.parametrize(
    ("more", "first"),
    [
        ({"gpu": "rtx-4090", "context_length": 131072}, "--context-length 37297"),
        ({"gpu": "rtx-4060-ti-16gb"}, "--quantization fp8"),
        ({"model": "Qwen/Qwen3-30B-A3B", "gpu": "rtx-4090"}, "--tp-size 4"),
    ],
)
def test_the_smallest_change_that_makes_it_start(more: dict[str, Any], first: str) -> None:
    answer = sglang(**more)
    assert not answer.fits
    assert answer.remarks[-1].startswith(f"the smallest change that makes it start: {first}")


def test_windows_get_a_pool_of_their_own_where_sglang_knows_them() -> None:
    """gpt-oss: 0.8 places in 12 layers of windows for each in 12 full ones; Gemma 3 keeps every token in every layer."""
    oss = sglang("openai/gpt-oss-20b").ledger
    assert oss.total("kv cache", "full attention") == 8192 * 12 * 2 * 8 * 64 * 2
    assert oss.total("kv cache", "window") == int(0.8 * 8192) * 12 * 2 * 8 * 64 * 2
    gemma = sglang("google/gemma-3-4b-it").ledger
    assert gemma.total("kv cache", "full attention") == 8192 * 34 * 2 * 4 * 256 * 2
    assert gemma.total("kv cache", "window") == 0


def test_experts_are_padded_on_blackwell() -> None:
    """gpt-oss: both sizes of MXFP4 experts from 2,880 to 3,072 (mxfp4.py): 24 · 32 · 3 matrices of 17/32 B an element."""
    blackwell, hopper = (sglang("openai/gpt-oss-20b", gpu=gpu).quantities["weights"] for gpu in ("b200", "h100-sxm-80gb"))
    assert blackwell - hopper == 24 * 32 * 3 * (3072**2 - 2880**2) * 17 // 32


# ---- what runs ----------------------------------------------------------------------------------------------------------
def test_the_table_of_requests() -> None:
    """memory_pool.py ReqToTokenPool: an int32 for each request and place, 4 places spare; 2,048 to 4,096 requests by default."""
    assert sglang(context_length=131072).ledger.total("buffers", "request table") == 2048 * 131076 * 4
    assert sglang(context_length=8192).ledger.total("buffers", "request table") == 4096 * 8196 * 4
    assert sglang(sequences=10).ledger.total("buffers", "request table") == 10 * 8196 * 4


@pytest.mark.parametrize(("gpu", "workspace"), [("rtx-4090", 384), ("h100-sxm-80gb", 0), ("b200", 512), ("mi300x", 0)])
def test_the_workspace_follows_the_backend(gpu: str, workspace: int) -> None:
    assert sglang(gpu=gpu).ledger.total("buffers", "attention workspace") == workspace * MiB


def test_graphs() -> None:
    assert sglang().quantities["cuda_graphs"] == 2 * MiB * 256
    assert sglang(sequences=100).quantities["cuda_graphs"] == 2 * MiB * 100
    assert sglang(sequences=8).quantities["cuda_graphs"] == GiB // 10
    assert sglang(eager=True).quantities["cuda_graphs"] == 0


def test_the_peak_is_a_prefill_chunk() -> None:
    large, small = sglang(), sglang(max_batched_tokens=2048)
    assert large.peak[0] is Moment.PREFILL
    assert large.quantities["activation_peak"] > 3 * small.quantities["activation_peak"]


# ---- several GPUs -------------------------------------------------------------------------------------------------------
def test_the_last_stages_have_a_layer_more() -> None:
    """distributed/utils.py get_pp_indices: 34 layers in four stages."""
    answer = sglang("google/gemma-3-4b-it", pipeline_parallel=4)
    kept = {share.rank: share.ledger.total("kv cache") // (8192 * 2 * 4 * 256 * 2) for share in answer.shares}
    assert kept == {0: 8, 1: 8, 2: 9, 3: 9}


def test_the_stage_with_fewest_tokens_counts_for_all() -> None:
    """Llama's stages have eight layers each; the last holds norm and head beside them, and all take its tokens."""
    answer = sglang(pipeline_parallel=4, gpu_memory_utilization=0.8)
    assert answer.gpu is not None
    last = next(share.ledger for share in answer.shares if share.rank == 3)
    rest = int((answer.gpu.usable - last.total("cuda context")) * 0.8) - last.total("weights")
    assert answer.quantities["kv_tokens"] == rest // (131072 // 4)


def test_four_ranks_keep_a_quarter() -> None:
    one, four = sglang(), sglang(gpu_count=4)
    assert four.ledger.total("kv cache") * 4 == one.ledger.total("kv cache")
    assert [(share.rank, share.count) for share in four.shares] == [(0, 4)]


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"engine_version": "0.4.9"}, Unknown, "before 0.5"),
        ({"engine_version": "newest"}, BadInput, "engine_version"),
        ({"tensor_parallel": 3}, BadInput, r"--tp-size\): the number of attention heads \(32\)"),
        ({"gpu_count": 4, "tensor_parallel": 2}, BadInput, "takes 2 GPUs"),
        ({"expert_parallel": 2, "tensor_parallel": 2}, BadInput, "no experts"),
        ({"expert_parallel": 2, "tensor_parallel": 4}, Unknown, "expert_parallel 2"),
        ({"expert_parallel": 3, "tensor_parallel": 2}, BadInput, "SGLang spreads experts"),
        ({"pipeline_parallel": 64}, BadInput, "32 layers"),
        ({"draft_model": LLAMA, "pipeline_parallel": 2}, Unknown, "draft_model"),
        ({"model": "Qwen/Qwen3-Next-80B-A3B-Instruct", "draft_model": "ngram", "gpu": "b200"}, Unknown, "recurrent states"),
        ({"lora": {}}, BadInput, "--max-lora-rank"),
        ({"model": "Qwen/Qwen3-30B-A3B", "lora": {"rank": 8}}, Unknown, "experts"),
        ({"context_length": 131073}, BadInput, "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN"),
        ({"kv_dtype": "fp16"}, BadInput, "no cache type of sglang"),
        ({"kv_dtype": {"k": "fp8", "v": "bf16"}}, BadInput, "one for keys and values"),
        ({"gpu": "apple-m4-max-40-core"}, BadInput, "Apple"),
        ({"model": "state-spaces/mamba-130m-hf"}, Unknown, "keeps no tokens"),
    ],
)
def test_what_it_does_not_know_is_refused(more: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sglang(**more)
