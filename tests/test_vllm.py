"""vLLM's account: the arithmetic of its budget, pages and groups, versions, refusals. Figures of its logs are in published/vllm.toml."""

from __future__ import annotations

from typing import Any

import pytest

from vramplan import BadInput, Estimate, Unknown, estimate, scenario
from vramplan.ledger import Moment
from vramplan.units import GiB

LLAMA = "meta-llama/Llama-3.1-8B"


def vllm(model: Any = LLAMA, **more: Any) -> Estimate:
    return estimate(model, engine="vllm", **{"gpu_memory": 80 * GiB, "context_length": 8192, **more})


@pytest.mark.parametrize(("version", "inside"), [("0.20.2", False), ("0.21.0", True), ("1.0", True)])
def test_the_pool_is_what_the_budget_leaves(version: str, inside: bool) -> None:
    """pool = utilisation × memory − weights − activations − non-torch, and − graphs since 0.21; the rest lies outside the budget."""
    answer = vllm(engine_version=version, gpu_memory_utilization=0.95)
    budget = int(0.95 * 80 * GiB)
    q = answer.quantities
    graphs, context = q["cuda_graphs"], answer.ledger.total("cuda context")
    assert q["kv_cache"] == budget - q["weights"] - q["activation_peak"] - q["non_torch"] - inside * graphs
    assert q["process"] == budget + context + (not inside) * graphs
    assert answer.room == min(budget + context + (not inside) * graphs, 80 * GiB)
    assert q["kv_tokens"] == q["kv_cache"] // 131072, "2 × 32 layers × 8 heads × 128 × 2 B a token"


def test_it_fits_exactly_if_the_pool_holds_one_sequence() -> None:
    given = {"sequences": 256, "max_batched_tokens": 2048, "gpu_memory_utilization": 0.5}
    whole = vllm(**given)
    need = whole.peak[1] - whole.ledger.total("cuda context")
    exact, less = vllm(**given, gpu_memory=2 * need), vllm(**given, gpu_memory=2 * need - 1)
    assert (exact.fits, exact.headroom, exact.quantities["kv_tokens"]) == (True, 0, 8192)
    assert (less.fits, less.headroom, less.quantities["kv_tokens"]) == (False, -1, 8191)


def test_a_pool_below_nothing_is_empty() -> None:
    answer = vllm(gpu_memory=8 * GiB)
    assert (answer.fits, answer.quantities["kv_cache"], answer.quantities["kv_tokens"]) == (False, 0, 0)
    assert answer.quantities["process"] > 8 * GiB


def test_pages_are_whole() -> None:
    assert vllm(context_length=8185).ledger.total("kv cache") == vllm(context_length=8192).ledger.total("kv cache")
    assert vllm(context_length=8176).ledger.total("kv cache") == 8176 * 131072


def test_eager_has_no_graphs() -> None:
    assert vllm(eager=True).quantities["cuda_graphs"] == 0
    assert vllm(eager=True).quantities["kv_cache"] - vllm().quantities["kv_cache"] == vllm().quantities["cuda_graphs"]


@pytest.mark.parametrize(
    ("gpu", "sequences", "batched"), [("h100-sxm-80gb", 1024, 8192), ("a100-sxm-80gb", 256, 2048), ("rtx-4090", 256, 2048)]
)
def test_defaults_follow_the_gpu(gpu: str, sequences: int, batched: int) -> None:
    """vllm/engine/arg_utils.py: larger batches from 70 GiB on, but not on an A100."""
    filled = estimate(LLAMA, engine="vllm", gpu=gpu).scenario
    assert (filled.sequences, filled.max_batched_tokens, filled.gpu_memory_utilization, filled.eager) == (sequences, batched, 0.9, False)
    assert (filled.engine_version, filled.context_length) == ("0.21.0", 131072)


def layered(kinds: list[str], window: int = 1024) -> dict[str, object]:
    """A Gemma-3 text model with layers of these kinds, a key and a value of 256 each."""
    return {
        "model_type": "gemma3_text", "num_hidden_layers": len(kinds), "layer_types": kinds, "hidden_size": 512, "intermediate_size": 512,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 1024, "sliding_window": window,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("full", "sliding", "slots_full", "slots_sliding"),
    [
        (10, 52, 10, 60),  # Gemma-3-27B: groups of 10, the last of 2 is padded to 10
        (8, 40, 8, 40),
        (5, 29, 5, 30),
        (12, 12, 12, 12),
        (10, 13, 13, 13),  # counts that differ by less than 1.5 ×: one group of the larger count each
        (10, 15, 10, 20),
        (0, 6, 0, 6),
        (6, 0, 6, 0),
    ],
)
def test_layers_of_several_kinds_go_into_groups_of_one_size(full: int, sliding: int, slots_full: int, slots_sliding: int) -> None:
    """vllm/v1/core/kv_cache_utils.py; a full layer is charged 32,768 / 16 pages, a sliding one (1,023 + 8,192) / 16 and one more."""
    config = layered(["full_attention"] * full + ["sliding_attention"] * sliding)
    ledger = vllm(config, context_length=32768, max_batched_tokens=8192).ledger
    page = 16 * 256 * 2 * 2
    assert ledger.total("kv cache", "full attention") == slots_full * 2048 * page
    assert ledger.total("kv cache", "window") == slots_sliding * (576 + 1) * page


def test_a_window_saves_nothing_while_a_pass_covers_the_context() -> None:
    charged = vllm(layered(["sliding_attention"] * 4), context_length=8192, max_batched_tokens=8192).ledger.total("kv cache")
    assert charged == 4 * (512 + 1) * 16 * 256 * 2 * 2


def test_states_cost_one_page_a_layer_and_sequence_at_any_length() -> None:
    short, long = (vllm("Qwen/Qwen3-Next-80B-A3B-Instruct", context_length=n).ledger for n in (4096, 65536))
    assert short.total("kv cache", "state") == long.total("kv cache", "state") > 36 * 32 * 128 * 128 * 2
    assert long.total("kv cache", "full attention") == 16 * short.total("kv cache", "full attention")


def test_latents_are_cached_once() -> None:
    """MLA: 27 layers × (512 + 64) × 2 B, the figure of the logs for DeepSeek-V2-Lite."""
    assert vllm("deepseek-ai/DeepSeek-V2-Lite-Chat").quantities["kv_bytes_per_token"] == 31104


@pytest.mark.parametrize(("version", "per_logit"), [("0.16.9", 38.0), ("0.17.0", 14.49)])
def test_the_sampler_is_the_peak_of_large_vocabularies(version: str, per_logit: float) -> None:
    answer = vllm(engine_version=version, sequences=1024, max_batched_tokens=8192)
    assert answer.quantities["activation_peak"] == int(per_logit * 1024 * 128256 + 2.34 * 8192 * 4096 + 0.042 * GiB)
    assert answer.ledger.total("activations", "sampler")


def test_the_forward_pass_is_the_peak_of_small_ones() -> None:
    answer = vllm("codellama/CodeLlama-7b-hf", sequences=64, max_batched_tokens=8192)
    assert answer.ledger.total("activations", "forward") == answer.quantities["activation_peak"]


def test_an_fp8_cache_holds_twice_the_tokens() -> None:
    assert vllm(kv_dtype="fp8").quantities["kv_tokens"] in (2 * vllm().quantities["kv_tokens"] + n for n in (0, 1))


def test_the_peak_holds_the_cache_of_one_sequence() -> None:
    answer = vllm()
    assert answer.peak[0] is Moment.DECODE
    assert answer.ledger.total("kv cache") == GiB


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"engine_version": "0.10.2"}, Unknown, "before 0.11"),
        ({"engine_version": "newest"}, BadInput, "write it as 0.19.0"),
        ({"tensor_parallel": 3}, BadInput, "heads 32 does not divide"),
        ({"gpu_count": 4, "tensor_parallel": 2}, BadInput, "takes 2 GPUs"),
        ({"expert_parallel": 2, "tensor_parallel": 2}, BadInput, "no experts"),
        ({"pipeline_parallel": 64}, BadInput, "32 layers"),
        ({"draft_model": LLAMA}, Unknown, "draft_model"),
        ({"context_length": 131073}, BadInput, "131,072 tokens"),
    ],
)
def test_what_it_does_not_know_is_refused(more: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        vllm(**more)


def test_neutral_values_of_refused_keys_are_accepted() -> None:
    assert vllm(tensor_parallel=1, gpu_count=1).fits


def test_a_rank_of_four() -> None:
    """Weights and cache of Llama-3.1-8B at TP4 as vLLM 0.19.0 logs them: 3.77 GiB (llm-d-planner, tp4pp1dp1), a quarter of the cache."""
    one, four = vllm(), vllm(gpu_count=4)
    assert four.quantities["weights"] / GiB == pytest.approx(3.77, abs=0.005)
    assert four.ledger.total("kv cache") * 4 == one.ledger.total("kv cache")
    assert [(share.rank, share.count) for share in four.shares] == [(0, 4)]


def test_stages_of_a_pipeline_differ() -> None:
    """Embedding first, norm and head last: of four stages the outer two are fuller (Llama: equal but for the norm)."""
    shares = vllm(pipeline_parallel=4).shares
    weights = {share.rank: share.ledger.total("weights") for share in shares}
    assert len(shares) == 4
    assert weights[1] == weights[2] < weights[0] < weights[3]
    assert weights[3] - weights[0] == 4096 * 2


def test_experts_are_whole_on_their_rank() -> None:
    mixture = {"model": "Qwen/Qwen3-30B-A3B", "engine": "vllm", "tensor_parallel": 8}
    split, spread = estimate(scenario(mixture)), estimate(scenario({**mixture, "expert_parallel": 8}))
    assert split.ledger.total("weights", "experts") == spread.ledger.total("weights", "experts")
