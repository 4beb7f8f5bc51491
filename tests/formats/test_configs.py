"""Checkpoints' own quantization_config: those of released models against their published totals, and the others' shapes by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vramplan.dim import Dim
from vramplan.errors import BadInput, Unknown, VramplanError
from vramplan.families import model_types, walk
from vramplan.formats import Scheme, matrix, scheme, scheme_from_config, weights_nbytes
from vramplan.formats.gguf_facts import ModelFacts
from vramplan.tape import Tape
from vramplan.tensors import Weight

Walked = Callable[[str], tuple[Tape, ModelFacts]]

# Source: config.json of each repository, where long lists of modules are cut to KEY_sample beside KEY_count; `published_total` is the
# parameter count of its safetensors metadata, `parameters` the model's own.
CHECKPOINTS: dict[str, dict[str, Any]] = {
    row["id"]: row for row in map(json.loads, (Path(__file__).parent / "quantised_checkpoints.jsonl").read_text().splitlines())
}


def quantisation(model: str) -> dict[str, Any]:
    config = CHECKPOINTS[model]["config"]
    found = config.get("quantization_config") or config["text_config"]["quantization_config"]
    assert isinstance(found, dict)
    return found


def walked_checkpoint(model: str) -> Tape:
    config = CHECKPOINTS[model]["config"]
    if config["model_type"] not in model_types():
        pytest.skip(f"no family for {config['model_type']}")
    return walk(Tape(Dim(1, "sequences"), Dim(1, "tokens")), config)


@pytest.mark.parametrize("model", CHECKPOINTS)
def test_every_released_config_is_read(model: str) -> None:
    """Experts are quantised in each, norms in none."""
    rule = scheme_from_config(quantisation(model))
    expert = Weight(name="model.layers.{i}.mlp.experts.{e}.up_proj.weight", shape=(512, 512), kind="experts", part="", layers=(9,))
    norm = Weight(name="model.layers.{i}.input_layernorm.weight", shape=(512,), kind="norm", part="", layers=(9,))
    assert rule.format_of(expert, 9).bits < 16
    assert rule.format_of(norm, 9).name == "bf16"
    cut = any(quantisation(model).get(f"{k}_count", 0) > len(quantisation(model).get(k, quantisation(model).get(f"{k}_sample", ())))
              for k in ("ignore", "modules_to_not_convert"))  # fmt: skip
    assert bool(rule.note) == (cut or quantisation(model).get("quant_algo") == "MIXED_PRECISION")


@pytest.mark.parametrize(
    "model",
    ["nvidia/MiniMax-M2.5-NVFP4", "nvidia/MiniMax-M2.7-NVFP4", "nvidia/MiniMax-M3-NVFP4", "nvidia/Qwen3.5-122B-A10B-NVFP4",
     "nvidia/Qwen3.6-27B-NVFP4", "nvidia/Qwen3.6-35B-A3B-NVFP4", "nvidia/GLM-5.1-NVFP4"],
)  # fmt: skip
def test_4_bit_weights_of_published_checkpoints(model: str) -> None:
    """A published total counts two packed weights as one, so it says how many are packed: parameters less half of them.

    Buffers of routing biases (a few thousand elements) count in some totals.
    """
    row, tape = CHECKPOINTS[model], walked_checkpoint(model)
    packed = 2 * (row["parameters"] - row["published_total"])
    buffers = sum(w.numel for w in tape.weights if w.kind == "buffer")
    ours = 0
    for share in weights_nbytes(tape.weights, scheme_from_config(quantisation(model))):
        if share.format.name == "nvfp4":
            rows, cols = matrix(share.weight)
            ours += rows * cols * share.weight.copies * len(share.layers or (0,))
    assert ours - packed in (0, 2 * buffers)


def scales(tape: Tape, rule: Scheme) -> int:
    return sum(
        extra.count(*matrix(share.weight)) * share.weight.copies * len(share.layers or (0,))
        for share in weights_nbytes(tape.weights, rule)
        for extra in share.format.extras
    )


@pytest.mark.parametrize("model", ["Qwen/Qwen3-30B-A3B-FP8", "Qwen/Qwen3-235B-A22B-FP8"])
def test_fp8_scales_of_published_checkpoints(model: str) -> None:
    """What a block-FP8 checkpoint publishes beyond the model's parameters are its scales."""
    row = CHECKPOINTS[model]
    assert scales(walked_checkpoint(model), scheme_from_config(quantisation(model))) == row["published_total"] - row["parameters"]


def test_fp8_scales_of_small_and_large(walked: Walked) -> None:
    """Qwen3-0.6B-FP8 has 26,880. DeepSeek-V3's 41,540,496 hold those of its MTP layer, which is not loaded: 256 experts of
    3 × 16 × 56 blocks, a shared one, and attention of 672 + 2304 + 280 + 1024 + 7168."""
    assert scales(walked("Qwen/Qwen3-0.6B")[0], scheme("fp8-block")) == 26_880
    mtp = 257 * 3 * 16 * 56 + 672 + 2304 + 280 + 1024 + 7168
    assert (
        scales(walked("deepseek-ai/DeepSeek-V3")[0], scheme_from_config(quantisation("deepseek-ai/DeepSeek-V3-0324"))) == 41_540_496 - mtp
    )


@pytest.mark.parametrize(
    ("model", "name", "nbytes"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "mlx-8bit", 142_955_136),
        ("meta-llama/Llama-3.2-1B-Instruct", "mlx-4bit", 695_242_752),
        ("meta-llama/Llama-3.2-3B-Instruct", "mlx-4bit", 1_807_423_488),
        ("meta-llama/Llama-3.1-8B-Instruct", "mlx-4bit", 4_517_404_672),
        ("zai-org/GLM-4.7-Flash", "mlx-4bit", 16_852_202_496),
        ("Qwen/Qwen3-Coder-30B-A3B-Instruct", "mlx-4bit", 17_180_913_664),
        ("meta-llama/Llama-3.3-70B-Instruct", "mlx-4bit", 39_688_355_840),
        ("Qwen/Qwen3-Coder-Next", "mlx-4bit", 44_844_060_160),
    ],
)
def test_sizes_of_mlx_checkpoints(walked: Walked, model: str, name: str, nbytes: int) -> None:
    """Source: `storage_size` of exo's model cards of mlx-community's conversions, at pinned revisions (exo-explore/exo)."""
    tape, facts = walked(model)
    assert sum(share.nbytes for share in weights_nbytes(tape.weights, scheme(name, facts=facts))) == nbytes


def linear(name: str = "model.layers.{i}.self_attn.q_proj.weight", **more: Any) -> Weight:
    return Weight(**({"name": name, "shape": (1024, 1024), "kind": "linear", "part": "", "layers": (0, 1)} | more))


HEAD = linear("lm_head.weight", kind="head", layers=None)
DOWN = linear("model.layers.{i}.mlp.down_proj.weight")


def names(config: dict[str, Any], *weights: Weight, layer: int = 0) -> list[str]:
    rule = scheme_from_config(config)
    return [rule.format_of(weight, layer if weight.layers else None).name for weight in weights]


def test_gptq_and_its_overrides() -> None:
    base = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
    assert names(base, linear(), HEAD) == ["gptq 4-bit g128", "bf16"]
    assert names(base | {"lm_head": True}, HEAD) == ["gptq 4-bit g128"]
    dynamic = {r"-:.*self_attn.*": {}, r"+:.*\.1\..*down.*": {"bits": 8, "group_size": 32}}
    assert names(base | {"dynamic": dynamic}, linear(), DOWN) == ["bf16", "gptq 4-bit g128"]
    assert names(base | {"dynamic": dynamic}, DOWN, layer=1) == ["gptq 8-bit g32"]
    assert names(base | {"group_size": -1}, linear()) == ["gptq 4-bit gin"]


def test_auto_round_names_modules() -> None:
    extra = {"model.layers.0.self_attn.q_proj": {"bits": 8}, "lm_head": {"bits": 16}}
    config = {"quant_method": "auto-round", "bits": 4, "group_size": 128, "extra_config": extra}
    assert names(config, linear(), DOWN, HEAD) == ["gptq 8-bit g128", "gptq 4-bit g128", "bf16"]
    assert names(config, linear(), layer=1) == ["gptq 4-bit g128"]
    assert names({**config, "packing_format": "auto_round:auto_awq"}, DOWN) == ["awq 4-bit g128"]


def test_awq_and_its_exceptions() -> None:
    config = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "modules_to_not_convert": ["down_proj"]}
    assert names(config, linear(), DOWN) == ["awq 4-bit g64", "bf16"]
    assert names({"quant_method": "awq", "w_bit": 4, "q_group_size": 128}, linear()) == ["awq 4-bit g128"]


def test_bitsandbytes() -> None:
    nf4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    assert names(nf4, linear(), HEAD) == ["nf4 double-quantised", "bf16"]
    assert names({"load_in_8bit": True, "llm_int8_skip_modules": ["q_proj"]}, linear(), DOWN) == ["bf16", "int8"]
    with pytest.raises(BadInput, match="nf5"):
        scheme_from_config(nf4 | {"bnb_4bit_quant_type": "nf5"})


def compressed(form: str, weights: dict[str, Any], **more: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    return {"quant_method": "compressed-tensors", "format": form, "ignore": ["lm_head"], "config_groups": {"group_0": group | more}}


def quark(weight: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"quant_method": "quark", "global_quant_config": {"weight": weight} | more, "exclude": []}


def torchao(kind: str, **data: Any) -> dict[str, Any]:
    return {"quant_method": "torchao", "quant_type": {"default": {"_type": kind, "_data": data}}}


INT, FLOAT = {"type": "int"}, {"type": "float"}
N, ROWS = 2**20, 2**10
LAYOUTS: list[tuple[dict[str, Any], int]] = [
    (compressed("pack-quantized", INT | {"num_bits": 4, "strategy": "group", "group_size": 128, "symmetric": True}), N // 2 + 2 * N // 128),
    (compressed("pack-quantized", INT | {"num_bits": 8, "strategy": "channel", "symmetric": True}), N + 2 * ROWS),
    (compressed("int-quantized", INT | {"num_bits": 8, "strategy": "channel"}), N + 2 * ROWS),
    (compressed("float-quantized", FLOAT | {"num_bits": 8, "strategy": "channel"}), N + 2 * ROWS),
    (compressed("float-quantized", FLOAT | {"num_bits": 8, "strategy": "tensor"}), N + 4),
    (compressed("float-quantized", FLOAT | {"num_bits": 8, "strategy": "block", "block_structure": [128, 128]}), N + 2 * 64),
    (
        compressed("nvfp4-pack-quantized", FLOAT | {"num_bits": 4, "group_size": 16}, input_activations={"num_bits": 4}),
        N // 2 + N // 16 + 8,
    ),
    (compressed("mxfp4-pack-quantized", FLOAT | {"num_bits": 4, "group_size": 32}), N // 2 + N // 32),
    ({"quant_method": "fbgemm_fp8", "modules_to_not_convert": []}, N + 4 * ROWS),
    ({"quant_method": "fp8", "activation_scheme": "static"}, N + 8),
    ({"quant_method": "fp8", "weight_block_size": [64, 128]}, N + 4 * 16 * 8),
    ({"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64}}}, N // 2 + 4 * N // 64),
    (torchao("Int4WeightOnlyConfig", group_size=128), N // 2 + 4 * N // 128),
    ({"quant_method": "torchao", "quant_type": "int8_weight_only"}, N + 2 * ROWS),
    (torchao("Float8DynamicActivationFloat8WeightConfig", granularity=[{"_type": "PerRow"}]), N + 4 * ROWS),
    (quark({"dtype": "fp8_e4m3", "qscheme": "per_tensor"}, input_tensors={"is_dynamic": False}), N + 8),
    (quark({"dtype": "fp4", "qscheme": "per_group", "group_size": 32}), N // 2 + N // 32),
    ({"quant_method": "exl2", "bits": 4.25, "head_bits": 6}, N * 17 // 32),
    ({"quant_method": "exl3", "bits": 3.0, "head_bits": 6}, N * 3 // 8 + 2 * 2 * ROWS),
    ({"quant_method": "aqlm", "num_codebooks": 1, "nbits_per_codebook": 16, "in_group_size": 8}, N // 4 + 2**20 + 2 * ROWS),
    ({"group_size": 64, "bits": 4}, N // 2 + 4 * N // 64),
    ({"group_size": 32, "bits": 4, "mode": "mxfp4"}, N // 2 + N // 32),
    ({"quant_algo": "NVFP4", "exclude_modules": ["lm_head"]}, N // 2 + N // 16 + 8),
    ({"quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}, "producer": {"name": "modelopt"}}, N + 8),
]


@pytest.mark.parametrize(("config", "nbytes"), LAYOUTS)
def test_the_layout_that_a_config_states(config: dict[str, Any], nbytes: int) -> None:
    """A 1024 × 1024 matrix."""
    assert scheme_from_config(config).format_of(linear(), 0).nbytes(1024, 1024) == nbytes


def test_compressed_tensors_groups_by_target() -> None:
    config = compressed("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"})
    config["config_groups"]["group_0"]["targets"] = [r"re:.*self_attn\.(q|k|v)_proj$"]
    config["config_groups"]["group_1"] = {
        "targets": ["model.layers.1.mlp.down_proj"],
        "weights": {"num_bits": 4, "type": "float", "group_size": 16},
    }
    assert names(config, linear(), DOWN, HEAD) == ["fp8 per channel", "bf16", "bf16"]
    assert names(config, DOWN, layer=1) == ["nvfp4"]


def test_modelopt_names_layers_of_a_mixture() -> None:
    layers = {"model.layers.0.self_attn.q_proj": {"quant_algo": "FP8"}, "model.layers.1.self_attn.q_proj": {"quant_algo": "NVFP4"}}
    config = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": layers, "ignore": []}
    assert names(config, linear(), DOWN) == ["fp8 per tensor", "bf16"]
    assert names(config, linear(), layer=1) == ["nvfp4"]


def test_mlx_overrides_modules() -> None:
    config = {"group_size": 64, "bits": 4, "lm_head": False, "model.layers.1.mlp.down_proj": {"group_size": 64, "bits": 8}}
    assert names(config, linear(), DOWN, HEAD) == ["mlx 4-bit g64", "mlx 4-bit g64", "bf16"]
    assert names(config, DOWN, layer=1) == ["mlx 8-bit g64"]


def test_a_head_that_no_list_leaves_out_is_quantised() -> None:
    """transformers leaves the head out by itself only where a config has no list."""
    fp8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    assert names(fp8, HEAD) == ["bf16"]
    assert names(fp8 | {"modules_to_not_convert": ["gate"]}, HEAD) == ["fp8 128×128"]
    assert names(fp8 | {"modules_to_not_convert": ["lm_head"]}, HEAD) == ["bf16"]


def test_deepseek_v4_packs_its_experts_in_4_bits() -> None:
    expert = linear("layers.{i}.ffn.experts.{e}.w1.weight", kind="experts")
    config = {"quant_method": "fp8", "weight_block_size": [128, 128], "expert_dtype": "fp4"}
    assert names(config, linear(), expert) == ["fp8 128×128", "mxfp4"]
    with pytest.raises(BadInput, match="fp6"):
        scheme_from_config(config | {"expert_dtype": "fp6"})


@pytest.mark.parametrize(
    "config", [{"quant_method": "quip"}, {"quant_method": "modelopt", "quant_algo": "INT3"}, {"quant_method": "bitnet"}]
)
def test_an_unknown_method_is_refused_with_the_known(config: dict[str, Any]) -> None:
    with pytest.raises(Unknown, match="known are"):
        scheme_from_config(config)


DAMAGED: list[dict[str, Any]] = [
    {},
    {"quant_method": 3},
    {"quant_method": "gptq", "bits": "4"},
    {"quant_method": "gptq", "bits": True},
    {"quant_method": "gptq", "group_size": 2**60},
    {"quant_method": "fp8", "weight_block_size": 128},
    {"quant_method": "fp8", "weight_block_size": [0, 128]},
    {"quant_method": "fp8", "modules_to_not_convert": "lm_head"},
    {"quant_method": "fp8", "modules_to_not_convert": [1]},
    {"quant_method": "compressed-tensors"},
    {"quant_method": "compressed-tensors", "config_groups": [1]},
    {"quant_method": "exl2", "bits": "x"},
    {"quant_method": "exl3", "bits": float("nan")},
    {"quant_method": "hqq", "nbits": 99},
    {"group_size": 64, "bits": 7},
]


@pytest.mark.parametrize("config", DAMAGED)
def test_a_damaged_config_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(BadInput) as error:
        scheme_from_config(config)
    assert "\n" not in str(error.value)


KEYS = (
    "quant_method", "bits", "group_size", "config_groups", "weights", "targets", "ignore", "modules_to_not_convert", "quant_algo",
    "quantized_layers", "dynamic", "extra_config", "weight_block_size", "quant_config", "quant_type", "global_quant_config", "num_bits",
)  # fmt: skip
METHODS = (
    "fp8",
    "gptq",
    "awq",
    "auto-round",
    "modelopt",
    "compressed-tensors",
    "bitsandbytes",
    "hqq",
    "torchao",
    "quark",
    "exl3",
    "aqlm",
    "mlx",
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["re:(.*)+x", "Linear", "FP8"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.sampled_from(METHODS), st.dictionaries(st.sampled_from(KEYS), values, max_size=6))
def test_no_config_does_worse_than_a_refusal(method: str, config: dict[str, Any]) -> None:
    with suppress(VramplanError):
        rule = scheme_from_config(config | {"quant_method": method})
        rule.format_of(linear(), 1).nbytes(1024, 1024)


def test_long_lists_take_no_time() -> None:
    """A list for each module of each of 100 layers, as ModelOpt writes them."""
    ignore = [f"model.layers.{i}.{m}*" for i in range(100) for m in ("self_attn", "mlp.shared_experts", "mlp.gate", "input_layernorm")]
    weights = [
        linear(f"model.layers.{{i}}.{m}.weight", layers=tuple(range(100))) for m in ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj")
    ]
    start = perf_counter()
    rule = scheme_from_config({"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ignore})
    shares = list(weights_nbytes(weights, rule))
    assert perf_counter() - start < 1
    assert [share.format.name for share in shares] == ["bf16", "nvfp4", "nvfp4"]
