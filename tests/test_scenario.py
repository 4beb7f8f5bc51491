"""Every key of a scenario: what it reads, what it refuses, and that a refusal names what is near or allowed."""

from __future__ import annotations

import pytest

from vramplan.errors import BadInput
from vramplan.scenario import ENGINES, Scenario, keys, scenario

READ = {  # key -> values as given and as read; every documented choice of docs/interface.md
    "task": [("infer", "infer"), ("TRAIN", "train")],
    "engine": [(name, name) for name in ENGINES["infer"]],
    "engine_version": [("0.19.0", "0.19.0"), (0.19, "0.19")],
    "gpu": [(" rtx-4090 ", "rtx-4090")],
    "gpu_count": [(8, 8), ("8", 8)],
    "gpu_memory": [("24GiB", 24 * 2**30), ("24GB", 24 * 10**9), (24 * 2**30, 24 * 2**30), ("24564 MiB", 24564 * 2**20)],
    "tensor_parallel": [(2, 2)],
    "pipeline_parallel": [(2, 2)],
    "context_parallel": [(2, 2)],
    "expert_parallel": [(2, 2)],
    "data_parallel": [(2, 2)],
    "block_size": [(32, 32)],
    "max_loras": [(4, 4)],
    "sharding": [(name, name) for name in ("none", "ddp", "zero1", "zero2", "zero3", "fsdp", "hsdp")],
    "reshard_after_forward": [(name, name) for name in ("default", "always", "never")],
    "fsdp_version": [(1, None), ("2", 2)],
    "gradient_as_bucket_view": [(True, None), (False, None)],
    "shard_size": [(8, None)],
    "loop": [("trainer", None), ("plain", None)],
    "virtual_pipeline": [(2, 2)],
    "pipeline_schedule": [(name, name) for name in ("1f1b", "interleaved", "gpipe", "zero-bubble")],
    "offload": [(["optimizer", "parameters"], ("optimizer", "parameters")), ("activations,kv_cache", ("activations", "kv_cache"))],
    "method": [("full", "full"), ("dora", "dora")],
    "objective": [("dpo", "dpo")],
    "reference": [(name, name) for name in ("model", "adapter-off", "precomputed", "none")],
    "group_size": [(8, 8)],
    "generation": [(name, name) for name in ("in-process", "vllm", "vllm-sleep", "server")],
    "precision": [(name, name) for name in ("fp32", "bf16", "fp16", "bf16-mixed", "fp16-mixed", "bf16-master", "fp8-mixed")],
    "quantization": [(name, name) for name in ("nf4", "fp4", "int8")],
    "double_quant": [(True, True), ("false", False)],
    "lora": [
        ({"rank": 16, "alpha": 32, "dropout": 0, "targets": "all-linear", "dtype": "fp32"}, None),
        ({"targets": ["q_proj"]}, {"targets": ("q_proj",)}),
    ],
    "optimizer": [("paged-adamw-8bit", "paged-adamw-8bit")],
    "optimizer_dtype": [("fp32", "fp32")],
    "optimizer_rank": [("1k", 1024)],
    "optimizer_in_backward": [(True, True)],
    "ema": [("yes", True)],
    "micro_batch": [(4, 4)],
    "sequence_length": [("4k", 4096)],
    "gradient_accumulation": [(1, 1)],
    "checkpointing": [(name, name) for name in ("none", "full", "selective")],
    "loss": [(name, name) for name in ("plain", "chunked", "fused")],
    "trained_modules": [(["embed_tokens"], ("embed_tokens",))],
    "head": [(name, name) for name in ("classification", "mlm")],
    "attention": [(name, name) for name in ("eager", "sdpa", "flash")],
    "compile": [("on", True), ("no", False)],
    "expandable_segments": [("on", True), ("no", False)],
    "weights": [("Q4_K_M", "Q4_K_M")],
    "kv_dtype": [("AUTO", "auto"), ({"k": "q8_0", "v": "Q4_0"}, {"k": "q8_0", "v": "q4_0"})],
    "context_length": [("32k", 32768), ("131,072", 131072), ("131_072", 131072), (1, 1)],
    "sequences": [("256", 256)],
    "runner": [("generate", "generate"), ("pooling", "pooling")],
    "prompt_length": [(1, 1)],
    "output_length": [(0, 0)],
    "num_beams": [(4, 4)],
    "cache_implementation": [("static", "static"), ("quanto-int4", "quanto-int4")],
    "device_map": [("auto", "auto"), ("balanced-low-0", "balanced-low-0")],
    "host_memory": [("64GiB", 64 << 30)],
    "draft_model": [("llama 3.2 1b", "llama 3.2 1b"), ({"model_type": "llama"}, {"model_type": "llama"})],
    "gpu_memory_utilization": [("0.95", 0.95), (1, 1.0)],
    "max_batched_tokens": [("8k", 8192)],
    "eager": [(False, False), ("YES", True)],
    "gpu_layers": [(-1, -1), ("99", 99)],
    "ubatch": [(512, 512)],
    "logical_batch": [(2048, 2048)],
    "outputs": [(4, 4)],
    "program": [("ollama", "ollama")],
    "flash_attention": [("off", False)],
    "cpu_moe_layers": [(0, 0)],
    "tensor_split": [([3, 1], (3.0, 1.0)), ("0,1", (0.0, 1.0))],
    "override_tensor": [("exps=CPU", ("exps=CPU",))],
    "split_mode": [("layer", None), ("NONE", "none")],
    "kv_unified": [(True, None)],
    "swa_full": [(True, None)],
    "kv_offload": [(False, None)],
    "op_offload": [(False, None)],
    "mmproj": [(True, None)],
    "backend": [("vulkan", None)],
    "host_bandwidth": [("90GB", 90_000_000_000)],
    "checkpoint_every": [(2, None)],
    "tower": [(name, name) for name in ("frozen", "projector", "trained")],
    "kernels": [(name, name) for name in ("native", "liger")],
    "images": [(0, 0), (3, 3)],
    "image_size": [(896, (896, 896)), ("1024x768", (768, 1024))],
    "kbit_preparation": [("yes", True)],
    "frozen_modules": [(["embed_tokens"], ("embed_tokens",))],
    "pipeline_layers": [([14, 13], (14, 13)), ("14,13", (14, 13))],
    "sequence_parallel": [("no", False)],
    "recompute_modules": [("moe_act,layernorm", ("moe_act", "layernorm"))],
    "recompute_layers": [("4", 4)],
    "expert_imbalance": [("1.5", 1.5), (1, 1.0)],
    "gradient_dtype": [("bf16", None)],
}


def test_every_key_is_read_here() -> None:
    assert set(READ) == set(keys())


@pytest.mark.parametrize(("key", "given", "read"), [(key, *pair) for key, pairs in READ.items() for pair in pairs])
def test_documented_values_are_read(key: str, given: object, read: object) -> None:
    made = scenario({"model": "m", key: given} | ({"task": "train"} if (key, given) == ("engine", "megatron") else {}))
    assert getattr(made, key) == (given if read is None else read)
    assert type(getattr(made, key)) is type(given if read is None else read)


@pytest.mark.parametrize("engine", ENGINES["train"])
def test_engines_that_train(engine: str) -> None:
    assert scenario({"model": "m", "task": "train", "engine": engine}).engine == engine


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"contxt_length": 1}, "unknown key 'contxt_length'; did you mean 'context_length'"),
        ({"lora": {"rnk": 1}}, "unknown key lora.'rnk'; did you mean 'rank'?"),
        ({"engine": "vlm"}, "did you mean 'vllm'?"),
        ({"engine": "torchtune"}, "engine 'torchtune' is not for task 'infer': allowed are vllm"),
        ({"task": "train", "engine": "vllm"}, "engine 'vllm' is not for task 'train'"),
        ({"precision": "bf16_mixed"}, "did you mean 'bf16-mixed'"),
        ({"offload": "optimiser"}, "did you mean 'optimizer'?"),
        ({"context_length": -1}, "context_length -1: must be an integer from 1 to 2147483647"),
        ({"context_length": 2**31}, "must be an integer from 1"),
        ({"context_length": True}, "context_length True"),
        ({"context_length": 8192.0}, "context_length 8192.0"),
        ({"context_length": "1e4"}, "context_length '1e4'"),
        ({"context_length": "٣"}, "context_length"),
        ({"context_length": "9" * 5000}, "must be an integer"),
        ({"gpu_memory": "0B"}, "must be at least 1 B"),
        ({"gpu_memory": "24"}, "write a number with its unit, such as 24GiB"),
        ({"gpu_memory": 24.5}, "gpu_memory 24.5: must be a size such as 24GiB"),
        ({"gpu_memory": True}, "gpu_memory True"),
        ({"gpu_memory_utilization": 0}, "must be a number above 0 and at most 1"),
        ({"gpu_memory_utilization": "nan"}, "must be a number above 0 and at most 1"),
        ({"gpu_memory_utilization": 10**400}, "must be a number"),
        ({"eager": 1}, "eager 1: must be true or false"),
        ({"eager": "maybe"}, "eager 'maybe': must be true or false"),
        ({"kv_dtype": {"k": "q8_0"}}, "must be a type, or"),
        ({"kv_dtype": {"k": 1.5, "v": []}}, "kv_dtype.v []: must be a short text"),
        ({"tensor_split": "a,b"}, "tensor_split 'a'"),
        ({"gpu": ["rtx-4090"]}, "gpu ['rtx-4090']: must be a short text"),
        ({"gpu": " "}, "gpu ' ': must be a short text"),
        ({"weights": "x" * 5000}, "must be a short text"),
        ({"lora": 16}, "must be an object with rank, alpha"),
        ({"model": 3.5, "x": 1}, "unknown key 'x'; allowed are model, task"),
        ({"model": []}, "model []: must be a short text"),
    ],
)
def test_anything_else_is_refused_in_one_line(given: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput) as refused:
        scenario({"model": "m", **given})
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 1500


def test_a_scenario_needs_a_model_and_none_means_left_out() -> None:
    with pytest.raises(BadInput, match="no model given"):
        scenario({"gpu": "rtx-4090", "model": None})
    assert scenario({"model": "m", "gpu": None}) == Scenario(model="m")
