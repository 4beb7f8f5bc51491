"""Traces of real models: the table that an earlier recorder gave, the kernels that a GPU would take, what bitsandbytes and PEFT hold.

The expected GiB are of a separate recorder with other patches (fake CUDA tensors on a CPU build; torch 2.13, transformers 5.23), which left
out cuBLAS's workspaces: 8,519,680 B for each of two threads, 0.016 GiB.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from vramplan.allocator import ALLOC, MARK
from vramplan.errors import BadInput, Unknown
from vramplan.scenario import scenario

torch = pytest.importorskip("torch")
for extra in ("transformers", "peft", "bitsandbytes"):
    pytest.importorskip(extra)
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

GiB = 1 << 30
CUBLAS = 2 * 8_519_680
LLAMA, SMALL_LLAMA = "meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.2-1B"


def trace(model: str, **keys: Any) -> Any:
    from vramplan.trace import trace_scenario

    choices = {name: keys.pop(name) for name in ("clip", "padded", "loop", "reentrant") if name in keys}
    return trace_scenario(scenario({"model": model, "task": "train", **keys}), **choices)


LORA = {"method": "lora", "lora": {"rank": 16}}
QLORA = {"method": "qlora", "quantization": "nf4", "double_quant": True}
GPT2 = {"micro_batch": 4, "sequence_length": 1024}
TABLE: list[tuple[str, dict[str, Any], float, str]] = [
    (LLAMA, {"optimizer": "adamw"}, 75.277, "step"),
    (LLAMA, {}, 60.619, "backward"),
    (LLAMA, {"checkpointing": "full"}, 60.335, "backward"),
    (LLAMA, {"precision": "bf16-mixed"}, 121.99, "backward"),
    (LLAMA, {"precision": "bf16-mixed", "checkpointing": "full"}, 120.181, "backward"),
    (LLAMA, LORA, 36.89, "backward"),
    (LLAMA, {**LORA, "checkpointing": "full"}, 19.38, "backward"),
    (LLAMA, {**QLORA, "checkpointing": "full"}, 9.737, "backward"),
    (LLAMA, {**QLORA, "checkpointing": "full", "kbit_preparation": True, "precision": "bf16-mixed"}, 13.17, "backward"),
    (LLAMA, QLORA, 27.24, "backward"),
    (LLAMA, {**QLORA, "checkpointing": "full", "sequence_length": 512}, 6.77, "backward"),
    ("Qwen/Qwen3-8B", {"checkpointing": "full"}, 61.62, "backward"),
    ("google/gemma-2-9b", {"checkpointing": "full", "attention": "eager"}, 73.25, "backward"),
    ("mistralai/Mixtral-8x7B-v0.1", {"checkpointing": "full"}, 348.24, "backward"),
    ("mistralai/Mixtral-8x7B-v0.1", {**LORA, "checkpointing": "full"}, 96.84, "backward"),
    ("openai-community/gpt2", {"precision": "fp32", **GPT2}, 8.495, "backward"),
    ("openai-community/gpt2", {"precision": "bf16-mixed", **GPT2}, 7.352, "backward"),
]


@pytest.mark.parametrize(("model", "keys", "expected", "moment"), TABLE, ids=lambda value: str(value)[:60])
def test_the_table_is_reproduced(model: str, keys: dict[str, Any], expected: float, moment: str) -> None:
    made = trace(model, **keys)
    assert (made.peak.nbytes - CUBLAS) / GiB == pytest.approx(expected, abs=0.006)
    assert made.peak.moment == moment
    assert made.peak.nbytes <= made.reserved.max_allocated <= made.reserved.max_reserved
    assert sum(made.peak.categories.values()) == sum(made.peak.modules.values()) == made.peak.nbytes


def test_weights_gradients_and_states_are_exact() -> None:
    """Llama-3.1-8B has 8,030,261,248 parameters; fused AdamW holds two states of their dtype and a step of 4 B for each of 291 tensors."""
    made = trace(LLAMA)
    at_the_step = made.ledger()
    from vramplan.ledger import Moment

    assert at_the_step.total("gradients", moment=Moment.STEP) == 2 * 8_030_261_248
    assert at_the_step.total("optimizer states", moment=Moment.STEP) == 4 * 8_030_261_248 + 291 * 512
    inverse_frequencies = 512 * 2
    assert at_the_step.total("weights", moment=Moment.STEP) == 2 * 8_030_261_248 + inverse_frequencies


def test_the_first_step_has_no_states_and_the_steady_one_has() -> None:
    made = trace(SMALL_LLAMA, sequence_length=512)
    assert "optimizer states" not in made.peak_of(0, "backward").categories
    assert made.steady.step == 1
    assert made.steady.categories["optimizer states"] > 2 * made.steady.categories["weights"] * 0.999


@pytest.mark.parametrize(
    ("gpu", "keys", "kernel"),
    [
        (None, {}, "flash"),
        (None, {"precision": "fp32"}, "efficient"),
        (None, {"padded": True, "micro_batch": 2}, "efficient"),
        ("h100-sxm", {}, "cudnn"),
        ("rtx-4090", {}, "flash"),
        ("t4", {"precision": "fp16"}, "efficient"),
        ("t4", {"precision": "bf16"}, "math"),
    ],
)
def test_attention_takes_the_gpus_kernel(gpu: str | None, keys: dict[str, Any], kernel: str) -> None:
    made = trace(SMALL_LLAMA, gpu=gpu, sequence_length=256, **keys)
    assert made.kernels == {kernel: 32}


def test_flash_attention_refuses_wide_heads_on_consumer_cards_only_where_the_kernel_does() -> None:
    from vramplan.trace.kernels import attention_kernel

    def kernel(head_dim: int, capability: tuple[int, int], dropout: float = 0.0) -> str:
        q = torch.empty(1, 2, 16, head_dim, dtype=torch.bfloat16, requires_grad=True)
        return attention_kernel(q, q, q, None, dropout=dropout, causal=True, capability=capability)

    assert kernel(256, (8, 0)) == kernel(256, (8, 9)) == "flash"
    assert kernel(256, (8, 9), dropout=0.1) == kernel(208, (8, 6)) == "efficient"
    assert kernel(257, (8, 0)) == "math"
    assert kernel(264, (8, 0)) == "efficient"


def test_the_list_of_autocast_is_that_of_the_installed_header() -> None:
    from vramplan.trace import kernels

    header = Path(torch.__file__).parent / "include/ATen/autocast_mode.h"
    text = header.read_text()
    lists = {}
    for name in ("AT_FORALL_FP32", "AT_FORALL_FP32_SET_OPT_DTYPE"):
        body = re.search(rf"#define {name}\(_\)\s*\\\n((?:.*\\\n)*.*\n)", text)
        assert body is not None
        lists[name] = {".".join(entry.split(", ")) for entry in re.findall(r"_\(([\w, ]+)\)", body[1])}
    assert set(kernels.FP32_UNDER_AUTOCAST) <= lists["AT_FORALL_FP32"]
    assert set(kernels.FP32_RESULT_UNDER_AUTOCAST) <= lists["AT_FORALL_FP32_SET_OPT_DTYPE"]


def test_flash_backwards_workspaces_follow_flash_api() -> None:
    """Llama-3.1-8B, 2,048 tokens, 32 heads over 8: 256 KiB of row sums, 32 MiB for dQ in fp32, 16 MiB each for dK and dV of every head."""
    made = trace(LLAMA, checkpointing="full", method="lora")
    taken = {
        b.op.partition(": ")[2]: b.nbytes
        for b in made.blocks
        if b.op.startswith("_scaled_dot_product_flash_attention_backward") and b.category
    }
    assert taken == {"softmax_d": 256 << 10, "dq_accum": 32 << 20, "dk_expanded": 16 << 20, "dv_expanded": 16 << 20}


def test_four_bits_hold_half_a_byte_and_their_scales() -> None:
    """nf4 with double quantisation: n/2 packed, n/64 scales of a byte, their scales 4 B for each 256 (bitsandbytes 0.50)."""
    made = trace(LLAMA, **QLORA, checkpointing="full", sequence_length=512)
    up = [b for b in made.blocks if b.module.endswith("layers.0.mlp.up_proj.base_layer") and b.op == "load"]
    n = 14336 * 4096
    assert sorted(b.nbytes for b in up)[-3:] == [n // 64 // 256 * 4, n // 64, n // 2]


SMALL = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 512,
}
WIDTHS = [(256, 256), (256, 128), (256, 128), (256, 256), (256, 512), (256, 512), (512, 256)]
"""In and out of a layer's linear layers."""


def loaded(made: Any, ends: str) -> list[int]:
    """Bytes of what was loaded of the modules whose names end so, the least first."""
    return sorted(b.nbytes for b in made.blocks if b.op == "load" and b.module.endswith(ends))


def test_eight_bits_hold_a_byte_and_a_scale_for_each_row() -> None:
    """LLM.int8(): the weight in int8 and SCB, fp32 for each output (bitsandbytes 0.50, Int8Params._quantize)."""
    made = trace(SMALL, method="qlora", quantization="int8", sequence_length=64)
    assert loaded(made, "layers.0.mlp.up_proj.base_layer") == [512 * 4, 512 * 256]


def test_preparation_makes_fp32_of_what_is_not_packed() -> None:
    plain, prepared = (trace(SMALL, **QLORA, kbit_preparation=flag, sequence_length=64) for flag in (False, True))
    assert loaded(plain, "model.embed_tokens") == [1000 * 256 * 2]
    assert loaded(prepared, "model.embed_tokens") == [1000 * 256 * 4]
    assert loaded(plain, "layers.1.mlp.up_proj.base_layer") == loaded(prepared, "layers.1.mlp.up_proj.base_layer")
    assert ["checkpointing full" in made.assumptions[0] for made in (plain, prepared)] == [False, True]


def test_dora_has_a_magnitude_for_each_output() -> None:
    dora, rslora, lora = (trace(SMALL, method=method, sequence_length=64) for method in ("dora", "rslora", "lora"))
    magnitudes = sum(b.nbytes for b in dora.blocks if b.op == "load" and "lora_magnitude_vector" in b.module)
    assert magnitudes == 2 * sum(out for _, out in WIDTHS) * 4
    assert rslora.peak.nbytes == lora.peak.nbytes < dora.peak.nbytes


def test_gpt2s_convolutions_are_packed_too() -> None:
    """transformers makes Linear4bit of Conv1D as well: c_attn's 768 × 2,304 in half a byte each, an fp32 scale for 64 of them."""
    made = trace("openai-community/gpt2", method="qlora", quantization="nf4", sequence_length=64)
    n = 768 * 2304
    assert loaded(made, "h.0.attn.c_attn.base_layer")[-2:] == [n // 64 * 4, n // 2]


def test_what_is_frozen_has_no_gradient() -> None:
    from vramplan.ledger import Moment

    whole, part = (trace(SMALL, frozen_modules=names, sequence_length=64).ledger() for names in (None, ["embed_tokens", "mlp"]))
    frozen = 1000 * 256 + 2 * 3 * 256 * 512
    for category, each in (("gradients", 2), ("optimizer states", 4)):
        found = [ledger.total(category, moment=Moment.STEP) for ledger in (whole, part)]
        assert found[0] - found[1] == pytest.approx(frozen * each, abs=512 * 2 * 7)


def test_grouped_products_of_fp32_run_as_on_cuda() -> None:
    """Under autocast an expert's stacked matrices stay fp32: torch._grouped_mm has a fallback for them on CUDA and none for CPUs."""
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "model_type": "olmoe"}
    made = trace({**SMALL, **experts}, precision="bf16-mixed", sequence_length=64)
    assert made.peak.nbytes > 0


EMBEDDINGS = 262_668_288 / 1_235_814_400
"""Their share of Llama-3.2-1B; for 8-bit optimizers, transformers' Trainer keeps their states in fp32."""


@pytest.mark.parametrize(
    ("optimizer", "per_parameter"),
    [
        ("sgd", 0),
        ("sgd-momentum", 2),
        ("adamw", 4),
        ("adamw-8bit", 2 + 2 * 4 / 256 + EMBEDDINGS * (8 - 2 - 2 * 4 / 256)),
        ("lion-8bit", 1 + 4 / 256 + EMBEDDINGS * (4 - 1 - 4 / 256)),
        ("lion", 4),
        ("paged-adamw-32bit", 0),
    ],
)
def test_optimizers_keep_what_they_keep(optimizer: str, per_parameter: float) -> None:
    """Llama-3.2-1B has 1,235,814,400 parameters; norms are below bitsandbytes' limits for 8 bits and for paging, and rounded to 512 B."""
    from vramplan.ledger import Moment

    made = trace(SMALL_LLAMA, optimizer=optimizer, sequence_length=128)
    assert made.ledger().total("optimizer states", moment=Moment.STEP) == pytest.approx(1_235_814_400 * per_parameter, abs=1 << 20)


def test_the_trainers_loop_lets_the_logits_and_the_batch_go() -> None:
    plain, trainer = (trace(LLAMA, optimizer="adamw", loop=loop) for loop in ("plain", "trainer"))
    assert plain.peak.nbytes - trainer.peak.nbytes == 2048 * 128256 * 2 + 2 * 2048 * 8


def test_adapters_are_put_where_they_are_asked_for() -> None:
    """Rank 8 on attention's four matrices of Llama-3.2-1B, in bf16: 8 × (in + out) × 2 B each, in 16 layers."""
    made = trace(SMALL_LLAMA, method="lora", lora={"rank": 8, "targets": "attention", "dtype": "bf16"}, sequence_length=128)
    wide, narrow = 2048 + 2048, 2048 + 512
    adapters = sum(b.nbytes for b in made.blocks if b.op == "load" and "lora_" in b.module)
    assert adapters == 16 * 8 * (2 * wide + 2 * narrow) * 2


@pytest.mark.parametrize(
    ("keys", "error", "says"),
    [
        ({"loss": "fused"}, Unknown, "script"),
        ({"checkpointing": "selective"}, Unknown, "none or full"),
        ({"attention": "flash", "precision": "fp32"}, BadInput, "fp16 and bf16 only"),
        ({"method": "lora", "lora": {"targets": ["q_prj"]}}, BadInput, "did you mean 'q_proj'"),
        ({"optimizer": "adam-fused"}, BadInput, "did you mean 'adamw-fused'"),
        ({"tensor_parallel": 2}, Unknown, "one GPU"),
        ({"gpu": "mi300x"}, Unknown, "NVIDIA"),
        ({"engine": "torchtune"}, Unknown, "script"),
    ],
)
def test_what_cannot_be_traced_is_refused_with_its_remedy(keys: dict[str, Any], error: Any, says: str) -> None:
    with pytest.raises(error, match=re.escape(says)):
        trace(SMALL_LLAMA, **keys)


def test_nothing_stays_patched() -> None:
    import transformers.utils.import_utils as import_utils

    before = torch.nn.Module._apply, torch.cuda.get_device_capability, import_utils.is_fake_tensor, torch.UntypedStorage.resize_
    trace(SMALL_LLAMA, sequence_length=64)
    assert before == (torch.nn.Module._apply, torch.cuda.get_device_capability, import_utils.is_fake_tensor, torch.UntypedStorage.resize_)
    q = torch.ones(1, 1, 4, 8)
    with torch.profiler.profile() as profile:
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
    assert any("flash_attention_for_cpu" in event.key for event in profile.key_averages())


def test_the_snapshot_is_read_by_pytorchs_own_viewer(tmp_path: Path) -> None:
    import pickle

    from torch.cuda import _memory_viz

    from vramplan.trace.snapshot import write

    made = trace("openai-community/gpt2", sequence_length=256)
    write(made, str(tmp_path / "snapshot.pickle"))
    data = pickle.loads((tmp_path / "snapshot.pickle").read_bytes())
    assert "total_reserved" in _memory_viz.segsum(data)
    assert f"{made.reserved.max_reserved / GiB:.1f}GiB" in _memory_viz.segsum(data)
    assert _memory_viz.trace(data).count(" = seg_") + _memory_viz.trace(data).count("cudaMalloc") > 0
    assert "MemoryViz.js" in _memory_viz.trace_plot(data)
    allocations = sum(1 for kind, _, _ in made.events if kind == ALLOC)
    assert sum(1 for entry in data["device_traces"][0] if entry["action"] == "alloc") == allocations
    assert any(kind == MARK for kind, _, _ in made.events)


def test_a_model_whose_code_fails_says_so_and_what_was_recorded() -> None:
    from vramplan.trace.recipe import Recipe
    from vramplan.trace.step import TraceFailed
    from vramplan.trace.step import trace as trace_recipe

    config = {"model_type": "gpt2", "n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 128, "n_positions": 32}
    failing = Recipe(config=config, name="small", sequence_length=64, optimizer="adamw-forloop", attention="eager", micro_batch=0)
    with pytest.raises(TraceFailed, match=r"small failed while it was traced: \w+: .*; recorded until then: .* in step 1") as caught:
        trace_recipe(failing)
    assert caught.value.trace.peak.categories["weights"] > 0


def test_a_model_without_sdpa_takes_eager_attention() -> None:
    assert trace("bigscience/bloom-560m", sequence_length=64).kernels == {}
    with pytest.raises(BadInput, match="does not support"):
        trace("bigscience/bloom-560m", sequence_length=64, attention="sdpa")
