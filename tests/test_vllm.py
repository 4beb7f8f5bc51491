"""vLLM's account: its budget, pages and groups, versions, logs of others, advice, refusals; published/vllm.toml has more."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from vramplan import BadInput, Estimate, Unknown, estimate, scenario
from vramplan.ledger import Moment
from vramplan.measured.validate import read, replay
from vramplan.units import GiB, MiB

LLAMA = "meta-llama/Llama-3.1-8B"


def vllm(model: Any = LLAMA, **more: Any) -> Estimate:
    return estimate(model, engine="vllm", **{"gpu_memory": 80 * GiB, "context_length": 8192, **more})


ROWS = [row for row in read(Path(__file__).parent.parent / "data" / "measured" / "infer.jsonl") if row["scenario"].get("engine") == "vllm"]
TARGETS = {"weights": (0.0025, 0.01), "kv_cache": (0.005, 0.03), "kv_tokens": (0.005, 0.03), "activation_peak": (0.01, 0.05)}
"""Median and 95th percentile; the issue asks for 10 % of the activation peak."""


@pytest.mark.parametrize("quantity", TARGETS)
def test_what_it_logs(quantity: str) -> None:
    """Every log that we carry, of each release: nothing refused, errors within the targets."""
    answers = [replay(row) for row in ROWS if row["observed"]["quantity"] == quantity]
    assert [answer.refused for answer in answers if answer.refused] == []
    errors = sorted(abs(answer.error) for answer in answers if answer.error is not None)
    middle, most = TARGETS[quantity]
    assert len(errors) > 30
    assert errors[-1] < 2 * most
    assert median(errors) < middle
    assert errors[len(errors) * 95 // 100] < most


def test_starts_that_failed() -> None:
    """One had no room for a sequence; gpt-oss-20b at 0.95 ran out of memory as the sampler warmed up, its graphs outside the budget; two of
    gpt-oss-120b after its experts were laid out anew, one of which started in the release before (vllm#33155), one in that after (#41268).
    """
    answers = {row["id"]: replay(row) for row in ROWS if row["observed"]["quantity"] == "fits"}
    assert len(answers) == 6
    assert not [name for name, answer in answers.items() if answer.error]


def test_starts_that_did_not_fail() -> None:
    """Every other log is of a server that started."""
    failed = [row["scenario"] for row in ROWS if row["observed"] == {"quantity": "fits", "value": False}]
    started = {json.dumps(row["scenario"]): row for row in ROWS if "FAILED" not in row["id"] and row["scenario"] not in failed}
    assert len(started) > 40
    assert [row["id"] for row in started.values() if not estimate(scenario(row["scenario"])).fits] == []


@pytest.mark.parametrize(
    ("version", "tensor", "left"), [("0.19.0", 1, 1.932), ("0.19.0", 2, 1.387), ("0.16.0", 1, 0.453), ("0.12.0", 1, 0)]
)
def test_what_repacked_experts_leave(version: str, tensor: int, left: float) -> None:
    """vLLM's own layouts on fake tensors, with all of gpt-oss-20b's weights, replayed as torch's allocator would: GiB reserved beyond them.

    We replay the experts alone, which is up to 0.11 GiB less.
    """
    answer = vllm("openai/gpt-oss-20b", gpu="h100-sxm-80gb", gpu_memory=None, engine_version=version, tensor_parallel=tensor)
    assert left - 0.11 <= answer.ledger.total("allocator") / GiB <= left


def test_gpt_oss_120b_on_one_h100() -> None:
    """While 0.17 to 0.20 lay its experts out anew, an H100 is full; triton_kernels 3.5, and whole blocks since 0.21, leave room."""
    given = {"gpu": "h100-sxm-80gb", "gpu_memory": None, "gpu_memory_utilization": 0.97, "context_length": 4096, "sequences": 64}
    answers = {
        version: vllm("openai/gpt-oss-120b", engine_version=version, **given) for version in ("0.13.0", "0.19.0", "0.20.2", "0.21.0")
    }
    assert [version for version, answer in answers.items() if "lays out experts anew" in str(answer)] == ["0.19.0", "0.20.2"]
    assert answers["0.21.0"].fits
    assert answers["0.21.0"].ledger.total("allocator") == 0


def test_loaded_scales_of_mxfp4_go_since_0_25() -> None:
    """vllm#46549: a byte for each 32 of the experts' values, 3 × 2,880 × 2,880 of 24 layers × 32; triton_kernels 3.5.1 since 0.22."""
    twice, once = (vllm("openai/gpt-oss-20b", gpu="h100-sxm-80gb", engine_version=v).quantities["weights"] for v in ("0.24.0", "0.25.0"))
    assert twice - once == 24 * 32 * 3 * 2880 * 2880 // 32


def test_activations_lie_in_what_repacked_experts_leave_where_they_are_small() -> None:
    """128 rows of fp32 logits are 98 MiB, which the holes of 129.4 less 5.7 MiB hold; 256 rows are not."""
    given = {"gpu": "h100-sxm-80gb", "gpu_memory": None, "engine_version": "0.19.0"}
    many, few = (vllm("openai/gpt-oss-20b", sequences=n, **given).ledger for n in (256, 128))
    assert few.total("allocator") == max(many.total("allocator") - few.total("activations"), 0)


@pytest.mark.parametrize(("version", "inside"), [("0.19.1", False), ("0.20.0", True), ("0.21.0", True), ("1.0", True)])
def test_the_pool_is_what_the_budget_leaves(version: str, inside: bool) -> None:
    """pool = utilisation × memory − weights − activations − non-torch, and − graphs since 0.20; the rest lies outside the budget."""
    answer = vllm(engine_version=version, gpu_memory_utilization=0.95)
    budget = int(0.95 * 80 * GiB)
    q = answer.quantities
    graphs, context = q["cuda_graphs"], answer.ledger.total("cuda context")
    assert q["kv_cache"] == budget - q["weights"] - q["activation_peak"] - q["non_torch"] - inside * graphs
    assert q["process"] == budget + context + (not inside) * graphs
    assert answer.room == min(budget + context + (not inside) * graphs, 80 * GiB)
    assert q["kv_tokens"] == q["kv_cache"] // (16 * 131072) * 16, "pages of 16 tokens × 2 × 32 layers × 8 heads × 128 × 2 B"


def test_it_fits_exactly_if_the_pool_holds_one_sequence() -> None:
    given = {"sequences": 256, "max_batched_tokens": 2048, "gpu_memory_utilization": 0.5, "eager": True}
    whole = vllm(**given)
    need = whole.peak[1] - whole.ledger.total("cuda context")
    exact, less = vllm(**given, gpu_memory=2 * need), vllm(**given, gpu_memory=2 * need - 1)
    assert (exact.fits, exact.headroom, exact.quantities["kv_tokens"]) == (True, 0, 8192)
    assert (less.fits, less.headroom, less.quantities["kv_tokens"]) == (False, -1, 8176)


def test_a_share_beyond_what_is_free_does_not_start() -> None:
    """0.54 GiB of context are taken when it looks: 0.994 of 80 GiB are more than the rest. Advice is to ask for less."""
    answer = vllm(gpu_memory_utilization=0.994)
    assert not answer.fits
    assert answer.headroom == 80 * GiB - answer.ledger.total("cuda context") - int(0.994 * 80 * GiB)
    assert any("free memory" in remark for remark in answer.remarks)
    assert answer.remarks[-1] == "the smallest change that makes it start: --gpu-memory-utilization 0.99"
    assert vllm(gpu_memory_utilization=0.99).fits


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


def test_attention_s_pages_grow_until_they_hold_a_state() -> None:
    """Qwen3-Next: a state of 2,146,304 B (32 × 128 × 128 and 3 × 8,192, 2 B each) in pages of 1,056 tokens × 2,048 B, charged once each.

    36 linear layers are 3 groups of 12, as many as attend: "Setting attention block size to …" in its logs.
    """
    assert 2 * (32 * 128 * 128 * 2 + 3 * 8192) == 2_146_304
    short, long = (vllm("Qwen/Qwen3-Next-80B-A3B-Instruct", context_length=n).ledger for n in (1056, 4 * 1056))
    assert short.total("kv cache", "state") == long.total("kv cache", "state") == 36 * 1056 * 2048
    assert long.total("kv cache", "full attention") == 4 * short.total("kv cache", "full attention") == 4 * 12 * 1056 * 2048


def test_pages_of_two_widths_have_one_size() -> None:
    """Gemma 4: 8 heads × 256 in a window, 2 × 512 elsewhere; `unify_kv_cache_spec_page_size` gives the latter twice the tokens."""
    ledger = vllm("google/gemma-4-26B-A4B-it", context_length=8192).ledger
    assert ledger.total("kv cache", "full attention") == 5 * (8192 // 32) * 131072
    assert ledger.total("kv cache", "window") == 25 * (8192 // 16 + 1) * 131072


@pytest.mark.parametrize(
    ("version", "tokens"), [("0.20.0", lambda blocks: blocks // 2 * 16), ("0.21.0", lambda blocks: int(blocks / 1025 * 8192))]
)
def test_how_tokens_are_printed(version: str, tokens: Any) -> None:
    """gpt-oss: two groups of 12 layers. Blocks over groups, and since 0.21 requests (512 + 513 blocks) times their length."""
    q = vllm("openai/gpt-oss-20b", engine_version=version, max_batched_tokens=8192).quantities
    assert q["kv_tokens"] == tokens(q["kv_cache"] // (12 * 16 * 2048))


def test_latents_are_cached_once() -> None:
    """MLA: 27 layers × (512 + 64) × 2 B, the figure of the logs for DeepSeek-V2-Lite."""
    assert vllm("deepseek-ai/DeepSeek-V2-Lite-Chat").quantities["kv_bytes_per_token"] == 31104


@pytest.mark.parametrize(
    ("version", "each", "rows"),
    [("0.6.4", 38, 0), ("0.16.0", 38, 0), ("0.17.0", 14, 132), ("0.21.0", 14, 0)],
)
def test_the_sampler_is_the_peak_of_large_vocabularies(version: str, each: int, rows: int) -> None:
    """Bytes a logit while top-k and top-p are taken, cuBLAS's 32 MiB, the hidden state, and twice its last rows."""
    answer = vllm(engine_version=version, sequences=1024, max_batched_tokens=8192, gpu="h100-sxm-80gb", gpu_memory=None)
    hidden = 8192 * 4096 * 2 + 2 * 1024 * 4096 * 2
    remainders = 3 * MiB  # blocks of 501 MiB take 502, and one of 1,503 takes 1,504
    assert answer.ledger.total("activations", "sampler") == (each * 1024 + 4 * rows) * 128256 + hidden + remainders
    assert answer.quantities["activation_peak"] == answer.ledger.total("activations", "sampler") + 32 * MiB


def test_the_forward_pass_is_the_peak_of_small_ones() -> None:
    """Gate, up and product; the residual; attention's output and the residual before, held by the compiled piece; 50 MiB of L2 cleared."""
    answer = vllm("codellama/CodeLlama-7b-hf", max_batched_tokens=8192)
    assert answer.ledger.total("activations", "forward") == 8192 * (3 * 11008 + 3 * 4096) * 2 + 50 * MiB
    eager = vllm("codellama/CodeLlama-7b-hf", max_batched_tokens=8192, eager=True)
    assert eager.ledger.total("activations", "forward") == 8192 * (3 * 11008 + 4 * 4096) * 2


def test_experts_workspaces_stay() -> None:
    """DeepSeek-V2-Lite: 8,192 × 6 rows of 2,048 and of 2 × 1,408, kept since 0.13, added to the sampler's peak."""
    lite = {"model": "deepseek-ai/DeepSeek-V2-Lite-Chat", "sequences": 1024, "max_batched_tokens": 8192}
    kept, freed = (vllm(**lite, engine_version=version).ledger for version in ("0.19.0", "0.12.0"))
    assert kept.total("activations", "expert workspaces") == 8192 * 6 * (2048 + 2816) * 2
    assert freed.total("activations", "expert workspaces") == 0


def test_pictures_are_held_through_the_profile_run() -> None:
    """Gemma 3: 32 pictures of 256 tokens fill a pass of 8,192; 3 × 896 × 896 pixels and 256 × 5,376 each, in bf16."""
    answer = vllm("google/gemma-3-27b-it", max_batched_tokens=8192)
    assert answer.ledger.total("activations", "pictures") == 32 * (3 * 896 * 896 + 256 * 5376) * 2


@pytest.mark.parametrize(
    ("gpu", "version", "grown"),
    [("h100-sxm-80gb", "0.19.0", "triton"), ("b200", "0.21.0", 3072 * 3072), ("rtx-4090", "0.19.0", 2944 * 3072)],
)
def test_mxfp4_is_padded(gpu: str, version: str, grown: Any) -> None:
    """gpt-oss-20b, 24 layers × 32 experts of 3 × 2,880 × 2,880: FlashInfer's and Marlin's sizes, and Triton's on Hopper."""
    per_expert = vllm("openai/gpt-oss-20b", gpu=gpu, gpu_memory=None, engine_version=version).ledger.total("weights", "padding") / (24 * 32)
    if grown == "triton":  # values to 64 × 64, scales twice, those laid out anew to 256 rows; biases in fp32
        values = 1472 * 5760 + 1472 * 2880 - 3 * 1440 * 2880
        grown_bytes = values + 90 * (5888 + 3072) + 2 * (5760 + 2880)
    else:
        grown_bytes = 3 * (grown - 2880 * 2880) * 17 // 32
    assert per_expert == grown_bytes


def test_mxfp4_with_adapters_is_marlin_s() -> None:
    """`is_lora_enabled` takes Marlin in fused_moe/oracle/mxfp4.py: 3,072 × 2,944 a matrix, and nothing laid out anew for Triton."""
    given = {"gpu": "h100-sxm-80gb", "gpu_memory": None, "engine_version": "0.19.0"}
    answer = vllm("openai/gpt-oss-20b", lora={"rank": 16}, **given)
    assert answer.ledger.total("weights", "padding") == 24 * 32 * 3 * (3072 * 2944 - 2880 * 2880) * 17 // 32
    assert answer.ledger.total("allocator") == 0


def test_slots_for_adapters() -> None:
    """Llama-3.1-8B, rank 32, 4 slots: A and B of q, k, v, o, gate, up and down of 32 layers, in bf16."""
    plain, lora = vllm(), vllm(lora={"rank": 32}, max_loras=4)
    widths = (4096 + 4096) * 2 + (4096 + 1024) * 2 + (4096 + 14336) * 3
    assert lora.quantities["weights"] - plain.quantities["weights"] == 4 * 32 * 32 * widths * 2


def test_a_draft_has_weights_and_cache() -> None:
    alone, drafting = vllm(), vllm(draft_model="meta-llama/Llama-3.2-1B-Instruct")
    assert drafting.ledger.total("kv cache") - alone.ledger.total("kv cache") == 8192 * 16 * 2 * 8 * 64 * 2
    assert drafting.ledger.total("weights", "draft") > 1_235_814_400 * 2
    assert (
        drafting.ledger.total("activations", "sampler") - alone.ledger.total("activations", "sampler") == 4 * 1024 * 128256 + MiB
    )  # a block of 501 MiB takes 502


LAYER: dict[str, object] = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
    "num_hidden_layers": 1, "vocab_size": 128256, "max_position_embeddings": 2048,
}  # fmt: skip
"""One layer as Llama-3.1-8B's, which EAGLE's drafts for it have."""
PLAIN = 4096 * (4096 + 1024 + 1024 + 4096) + 3 * 4096 * 14336


@pytest.mark.parametrize(
    ("config", "elements", "states"),
    [
        ({**LAYER, "architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": 32000}, "third", 3),
        (
            {
                "architectures": ["Eagle3Speculator"], "model_type": "speculator_model", "speculators_model_type": "eagle3",
                "draft_vocab_size": 32000, "transformer_layer_config": LAYER,
            },
            "third",
            3,
        ),
        ({"architectures": ["EAGLEModel"], "model_type": "eagle", "model": {**LAYER, "architectures": ["LlamaForCausalLM"]}}, "first", 0),
    ],
)  # fmt: skip
def test_eagle_drafts(config: dict[str, object], elements: str, states: int) -> None:
    """vLLM 0.21.0 models/llama_eagle3.py, llama_eagle.py: what the checkpoint has, without the embedding that is the model's."""
    alone, drafting = vllm(), vllm(draft_model=config)
    first = PLAIN + 2 * 4096 * 4096 + 4096
    third = PLAIN + 4096 * (4096 + 1024 + 1024) + 3 * 4096 * 4096 + 32000 * 4096 + 4 * 4096
    table = 2048 * 128 * 2
    weights = drafting.ledger.total("weights", "draft") - table - drafting.ledger.total("weights", "draft", "block remainders")
    assert weights == (2 * third + 8 * 32000 if elements == "third" else 2 * first)
    assert drafting.ledger.total("kv cache") * 32 == alone.ledger.total("kv cache") * 33
    small = {"sequences": 8, "gpu_memory_utilization": 0.5}
    forward = [vllm(**small, **more).ledger.total("activations", "forward") for more in ({}, {"draft_model": config})]
    assert forward[1] - forward[0] == states * 8192 * 4096 * 2


def test_a_rank_has_a_slice_of_an_eagle() -> None:
    """fc is whole on each rank (ReplicatedLinear), projections and the head are not."""
    config = {**LAYER, "architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": 32000}
    one, two = (vllm(draft_model=config, tensor_parallel=n).ledger for n in (1, 2))
    assert two.total("weights", "draft", "projection") == one.total("weights", "draft", "projection") == 3 * 4096 * 4096 * 2
    assert 2 * two.total("weights", "draft", "mlp") == one.total("weights", "draft", "mlp")


def test_its_own_layers_draft() -> None:
    """DeepSeek-V3 on a rank of eight: a 62nd layer of 14 GB with 256 experts, and [7,168, 14,336] in bf16; MLA's cache once more."""
    given = {"model": "deepseek-ai/DeepSeek-V3", "tensor_parallel": 8}
    alone, drafting = vllm(**given), vllm(**given, draft_model="mtp")
    assert drafting.ledger.total("weights", "draft", "projection") == 7168 * 14336 * 2
    layer = alone.ledger.total("weights", "experts") / 58
    assert drafting.ledger.total("weights", "draft", "experts") == layer
    assert drafting.ledger.total("kv cache") * 61 == alone.ledger.total("kv cache") * 62


@pytest.mark.parametrize(
    ("model", "gpu", "nbytes"),
    [("deepseek-ai/DeepSeek-V2-Lite-Chat", "h100-sxm-80gb", 65536 * 576 * 2), (LLAMA, "b200", 394 * MiB), (LLAMA, "h100-sxm-80gb", 0)],
)
def test_attention_s_workspace_is_outside_the_budget(model: str, gpu: str, nbytes: int) -> None:
    assert vllm(model, gpu=gpu, gpu_memory=None).ledger.total("attention workspace", "outside the budget") == nbytes


def test_n_grams_take_the_sampler_only() -> None:
    alone, drafting = vllm(), vllm(draft_model="ngram")
    assert drafting.quantities["weights"] == alone.quantities["weights"]
    assert drafting.quantities["activation_peak"] > alone.quantities["activation_peak"]


def test_replicas_share_experts() -> None:
    """DeepSeek-V3 on 8 GPUs, attention whole on each: an eighth of the experts, or a slice of each."""
    spread = vllm("deepseek-ai/DeepSeek-V3", data_parallel=8, expert_parallel=8)
    sliced = vllm("deepseek-ai/DeepSeek-V3", data_parallel=8)
    one = vllm("deepseek-ai/DeepSeek-V3")
    assert [(share.rank, share.count) for share in spread.shares] == [(0, 8)]
    assert spread.ledger.total("weights", "attention") == one.ledger.total("weights", "attention")
    assert spread.ledger.total("weights", "experts") < one.ledger.total("weights", "experts") / 7
    assert sliced.ledger.total("weights", "experts") == pytest.approx(spread.ledger.total("weights", "experts"), rel=0.01)


@pytest.mark.parametrize(
    ("more", "first"),
    [
        ({"gpu": "rtx-4090", "context_length": 42000}, "--gpu-memory-utilization 0.92"),
        ({"gpu": "rtx-4090", "context_length": 131072}, "--max-model-len 39936"),
        ({"gpu": "rtx-4060-ti-16gb", "context_length": 8192}, "--quantization fp8"),
        ({"model": "Qwen/Qwen3-235B-A22B", "gpu": "h200-sxm-141gb"}, "--tensor-parallel-size 4"),
    ],
)
def test_the_smallest_change_that_makes_it_start(more: dict[str, Any], first: str) -> None:
    answer = vllm(**{"gpu_memory": None, "context_length": None, **more})
    assert not answer.fits
    assert answer.remarks[-1].startswith(f"the smallest change that makes it start: {first}")


def test_each_advised_flag_starts() -> None:
    given = {"gpu": "rtx-4090", "gpu_memory": None, "context_length": 42000}
    advised = vllm(**given).remarks[-1]
    changes: dict[str, dict[str, Any]] = {
        "--gpu-memory-utilization 0.92": {"gpu_memory_utilization": 0.92},
        "--max-num-seqs 128": {"sequences": 128},
        "--kv-cache-dtype fp8": {"kv_dtype": "fp8"},
        "--max-model-len 39936": {"context_length": 39936},
        "--enforce-eager": {"eager": True},
        "--tensor-parallel-size 2": {"tensor_parallel": 2},
    }
    for flag, change in changes.items():
        assert flag in advised
        assert vllm(**{**given, **change}).fits
    assert not vllm(**{**given, "gpu_memory_utilization": 0.91}).fits
    assert not vllm(**{**given, "context_length": 39937}).fits


def test_an_fp8_cache_holds_twice_the_tokens() -> None:
    bf16, fp8 = vllm().quantities["kv_tokens"], vllm(kv_dtype="fp8").quantities["kv_tokens"]
    assert fp8 in (2 * bf16, 2 * bf16 + 16), "but for half a page"


def test_the_peak_holds_the_cache_of_one_sequence() -> None:
    answer = vllm()
    assert answer.peak[0] is Moment.DECODE
    assert answer.ledger.total("kv cache") == GiB


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"engine_version": "0.4.3"}, Unknown, "before 0.5"),
        ({"engine_version": "0.7.0", "model": "deepseek-ai/DeepSeek-V3"}, Unknown, "MLA"),
        ({"engine_version": "newest"}, BadInput, "write it as 0.19.0"),
        ({"tensor_parallel": 3}, BadInput, r"--tensor-parallel-size\): total number of attention heads \(32\)"),
        ({"tensor_parallel": 5, "model": "Qwen/Qwen3-14B"}, BadInput, "kv_heads 8 does not divide"),
        ({"max_batched_tokens": 128, "sequences": 256}, BadInput, r"greater than or equal to max_num_seqs \(256\)"),
        ({"block_size": 24}, BadInput, "--block-size"),
        ({"kv_dtype": "q4_0"}, BadInput, "no cache type of vllm"),
        ({"gpu_count": 4, "tensor_parallel": 2}, BadInput, "takes 2 GPUs"),
        ({"expert_parallel": 2, "tensor_parallel": 2}, BadInput, "no experts"),
        ({"pipeline_parallel": 64}, BadInput, "32 layers"),
        ({"draft_model": "Qwen/Qwen3-0.6B"}, BadInput, "vocabulary"),
        ({"draft_model": "mtp"}, BadInput, "no layers for multi-token prediction"),
        ({"draft_model": {**LAYER, "architectures": ["MedusaModel"]}}, Unknown, "EAGLE and EAGLE-3 are"),
        ({"draft_model": {**LAYER, "speculators_model_type": "mlp"}}, Unknown, "EAGLE and EAGLE-3 are"),
        ({"draft_model": {**LAYER, "model_type": "mixtral", "architectures": ["Eagle3Mixtral"]}}, Unknown, "EAGLE's layers"),
        ({"draft_model": LLAMA, "pipeline_parallel": 2}, Unknown, "draft_model"),
        ({"context_parallel": 2}, Unknown, "context_parallel"),
        ({"context_length": 131073}, BadInput, "VLLM_ALLOW_LONG_MAX_MODEL_LEN"),
    ],
)
def test_what_it_does_not_know_is_refused(more: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        vllm(**more)


def test_v0_swaps_to_the_host() -> None:
    assert vllm(engine_version="0.6.4").host.total("swap space") == 4 * GiB
    assert vllm(engine_version="0.8.5").host.total("swap space") == 0


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


def test_whole_graphs_are_no_larger_than_the_sequences() -> None:
    """A log of 0.11.0 on A100, with 256 sequences: "mixed prefill-decode, PIECEWISE" of 67, "decode, FULL" of 35 (QwenLM/Qwen3-VL#1684)."""
    answer = vllm("Qwen/Qwen3-14B", engine_version="0.11.0", gpu="a100-sxm-80gb")
    why = next(item.why for item in answer.ledger.items if item.path[0] == "cuda graphs")
    assert why.startswith(f"{67 + 35} graphs of up to 512 tokens")


def test_gpt_oss_captures_batches_up_to_1024() -> None:
    """PIECEWISE=83 and FULL=83 (largest=1024) in the log of 0.19.0; others 51 each, to 512."""
    for model, count, largest in (("openai/gpt-oss-20b", 166, 1024), ("Qwen/Qwen3-30B-A3B", 102, 512)):  # with 1,024 sequences
        answer = estimate(model, engine="vllm", engine_version="0.19.0", gpu="h100-sxm-80gb", context_length=8192)
        why = next(item.why for item in answer.ledger.items if item.path[0] == "cuda graphs")
        assert why.startswith(f"{count} graphs of up to {largest} tokens")
