"""Make data/llama_cpp/cases.jsonl: what llama.cpp's own planner says each device holds, of GGUF files with real dimensions and no contents.

    python scripts/llama_cpp_matrix.py --patch SOURCE
    python scripts/llama_cpp_matrix.py BIN OUT.jsonl [part of a model's name ...]

BIN holds `llama-fit-params` and `ggml-rpc-server` of llama.cpp (SOURCE, from the sdist of llama-cpp-python 0.3.36 on PyPI), built with
CMake's `GGML_RPC=ON LLAMA_BUILD_TOOLS=ON LLAMA_BUILD_SERVER=OFF` after `--patch`, which changes three things: the planner prints bytes in
place of MiB, it reads KV_UNIFIED from the environment for want of a flag, and an RPC device takes operations over host weights as CUDA's
does (`ggml_backend_cuda_device_offload_op`), for RPC servers stand here for GPUs. The files are sparse: a header made of the catalogue's
config (tests/sources/gguf_samples.py), and a hole in place of the tensors. Half a second a case; needs the `gguf` package.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "sources"))

from gguf_samples import ARCHS, DEFAULTS, language_model, metadata_of, tape_of, tensors_of  # noqa: E402

from vramplan.formats import scheme as named_scheme  # noqa: E402
from vramplan.named import gguf_facts  # noqa: E402
from vramplan.sources import resolve  # noqa: E402

VERSION = "0.5.0-dev, as in llama-cpp-python 0.3.36"
TYPES = {t.name: t for t in gguf.GGMLQuantizationType}
ALIGNMENT = 32
Scenario = dict[str, Any]

MODELS = [
    ("llama", "meta-llama/Llama-3.1-8B"),
    ("llama", "meta-llama/Llama-3.2-1B"),
    ("llama", "meta-llama/Llama-3.1-70B"),
    ("llama", "mistralai/Mixtral-8x7B-v0.1"),
    ("llama4", "meta-llama/Llama-4-Scout-17B-16E-Instruct"),
    ("deci", "nvidia/Llama-3_3-Nemotron-Super-49B-v1"),
    ("mistral3", "mistralai/Ministral-3-8B-Base-2512"),
    ("smollm3", "HuggingFaceTB/SmolLM3-3B"),
    ("seed_oss", "ByteDance-Seed/Seed-OSS-36B-Instruct"),
    ("arcee", "arcee-ai/AFM-4.5B"),
    ("apertus", "swiss-ai/Apertus-8B-2509"),
    ("ernie4_5", "unsloth/ERNIE-4.5-0.3B-PT"),
    ("ernie4_5-moe", "baidu/ERNIE-4.5-21B-A3B-PT"),
    ("qwen2", "Qwen/Qwen2.5-7B"),
    ("qwen2moe", "Qwen/Qwen1.5-MoE-A2.7B"),
    ("qwen3", "Qwen/Qwen3-0.6B"),
    ("qwen3", "Qwen/Qwen3-32B"),
    ("qwen3moe", "Qwen/Qwen3-30B-A3B"),
    ("qwen3moe", "Qwen/Qwen3-235B-A22B"),
    ("qwen3next", "Qwen/Qwen3-Next-80B-A3B-Instruct"),
    ("qwen35", "Qwen/Qwen3.5-0.8B"),
    ("qwen35moe", "Qwen/Qwen3.5-35B-A3B"),
    ("gemma", "google/gemma-7b"),
    ("gemma2", "google/gemma-2-9b"),
    ("gemma3", "google/gemma-3-1b-pt"),
    ("gemma3", "google/gemma-3-27b-it"),
    ("gemma3n", "google/gemma-3n-E4B-it"),
    ("gemma4", "google/gemma-4-E2B-it"),
    ("gemma4", "google/gemma-4-26B-A4B-it"),
    ("gemma4", "google/gemma-4-31B-it"),
    ("phi2", "microsoft/phi-2"),
    ("phi3", "microsoft/Phi-3-mini-4k-instruct"),
    ("phimoe", "microsoft/Phi-3.5-MoE-instruct"),
    ("falcon", "tiiuae/falcon-7b"),
    ("falcon", "tiiuae/falcon-40b"),
    ("falcon-h1", "tiiuae/Falcon-H1-0.5B-Instruct"),
    ("gpt2", "openai-community/gpt2"),
    ("starcoder", "bigcode/starcoder"),
    ("starcoder2", "bigcode/starcoder2-3b"),
    ("gptneox", "EleutherAI/pythia-1b"),
    ("bloom", "bigscience/bloom-560m"),
    ("stablelm", "stabilityai/stablelm-2-1_6b"),
    ("olmo", "allenai/OLMo-1B-hf"),
    ("olmo2", "allenai/OLMo-2-1124-7B"),
    ("olmo2", "allenai/Olmo-3-7B-Instruct"),
    ("olmoe", "allenai/OLMoE-1B-7B-0924"),
    ("command-r", "CohereLabs/c4ai-command-r-plus"),
    ("cohere2", "CohereLabs/c4ai-command-r7b-12-2024"),
    ("dbrx", "databricks/dbrx-base"),
    ("deepseek2", "deepseek-ai/DeepSeek-V3"),
    ("deepseek2", "deepseek-ai/DeepSeek-V2-Lite"),
    ("deepseek2", "zai-org/GLM-4.7-Flash"),
    ("glm-dsa", "zai-org/GLM-5"),
    ("chatglm", "zai-org/glm-4-9b-hf"),
    ("glm4", "zai-org/GLM-4-9B-0414"),
    ("glm4moe", "zai-org/GLM-4.5-Air"),
    ("granite", "ibm-granite/granite-3.3-2b-base"),
    ("granitehybrid", "ibm-granite/granite-4.0-h-tiny"),
    ("granitehybrid", "ibm-granite/granite-4.0-h-micro"),
    ("mamba", "state-spaces/mamba-130m-hf"),
    ("jamba", "ai21labs/AI21-Jamba-Mini-1.6"),
    ("jamba", "ai21labs/AI21-Jamba-Reasoning-3B"),
    ("nemotron", "OpenLLM-France/Luciole-1B-Base"),
    ("nemotron_h", "nvidia/Nemotron-H-8B-Base-8K"),
    ("nemotron_h_moe", "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"),
    ("lfm2", "LiquidAI/LFM2-1.2B"),
    ("lfm2moe", "LiquidAI/LFM2-8B-A1B"),
    ("hunyuan-dense", "tencent/Hunyuan-7B-Instruct"),
    ("hunyuan-moe", "tencent/Hunyuan-A13B-Pretrain"),
    ("exaone4", "LGAI-EXAONE/EXAONE-4.0-32B"),
    ("minimax-m2", "MiniMaxAI/MiniMax-M2"),
    ("gpt-oss", "openai/gpt-oss-20b"),
    ("mimo2", "XiaomiMiMo/MiMo-V2-Flash"),
]
"""llama.cpp's architecture and a model of the catalogue that has it."""


# ---- the cases -----------------------------------------------------------------------------------------------------------
def cases(number: int, layers: int, moe: bool, windows: bool, own: int) -> Iterator[Scenario]:
    """Seven or eight scenarios of the `number`-th model, of `layers` layers: each changes several things, in turn from model to model."""
    types = ("Q4_K_M", "Q8_0", "Q6_K", "IQ4_XS", "Q5_K_M", "F16", "Q4_0", "Q3_K_M")
    caches = ("q8_0", "fp16", "q4_0", "bf16", "q5_1", "fp32", "iq4_nl")

    def case(turn: int, context: int, **keys: Any) -> Scenario:
        return {"weights": types[(number + turn) % len(types)], "context_length": min(context, own), **keys}

    yield case(0, 8192, flash_attention=True)
    yield case(1, (4096, 8192, 16384)[number % 3], flash_attention=False, ubatch=(512, 256, 128)[number % 3])
    yield case(2, 32768, flash_attention=True, sequences=(2, 4)[number % 2], kv_dtype=caches[number % len(caches)])
    yield case(
        3, 4096, flash_attention=True, gpu_count=2, tensor_split=((3, 1), (1, 1), (1, 2))[number % 3], ubatch=(512, 1024)[number % 2]
    )
    yield case(4, 8192, flash_attention=bool(number % 2), gpu_layers=max(1, layers * (number % 5 + 1) // 6))
    if moe:
        yield case(5, 16384, flash_attention=True, cpu_moe_layers=max(1, layers * (number % 4 + 1) // 5))
        yield case(6, 8192, flash_attention=True, gpu_count=2, tensor_split=(1, 1), override_tensor=("ffn_(up|gate)_exps=CPU",))
    else:
        yield case(5, 8192, flash_attention=True, override_tensor=(rf"blk\.[0-{number % 9}]\.ffn_down=CPU",))
    yield case(
        7, 8192, flash_attention=bool(number % 3), gpu_count=3 + number % 2, tensor_split=(2, 1, 3, 2)[: 3 + number % 2],
        sequences=3, kv_unified=True,
    )  # fmt: skip
    if windows:
        yield case(4, 16384, flash_attention=True, swa_full=True, sequences=2)


def arguments(s: Scenario, servers: list[str]) -> list[str]:
    """The flags that mean a scenario."""
    kinds = {"fp16": "f16", "fp32": "f32"}
    kv = kinds.get(s.get("kv_dtype", "fp16"), s.get("kv_dtype", "f16"))
    flags: dict[str, Any] = {
        "-c": s["context_length"],
        "-ub": s.get("ubatch"),
        "-b": max(s.get("ubatch", 512), 2048),
        "-fa": "on" if s["flash_attention"] else "off",
        "-ctk": kv,
        "-ctv": kv,
        "-np": s.get("sequences", 1),
        "-ngl": s.get("gpu_layers", 999),
        "-ncmoe": s.get("cpu_moe_layers"),
        "-ot": ",".join(s["override_tensor"]) if "override_tensor" in s else None,
        "-ts": ",".join(str(n) for n in s["tensor_split"]) if "tensor_split" in s else None,
        "--rpc": ",".join(servers[: s.get("gpu_count", 1)]),
    }
    switches = ["--swa-full"] * s.get("swa_full", False)
    pairs = [[flag, str(value)] for flag, value in flags.items() if value is not None]
    return [*(word for pair in pairs for word in pair), *switches, "-fit", "off", "-fitp", "on", "--no-repack"]


# ---- the file ---------------------------------------------------------------------------------------------------------------
def config_of(model: str) -> dict[str, Any]:
    """The config of the language model of `model`, with what its class has where the config is silent."""
    config = language_model(model)
    return {**DEFAULTS.get(config["model_type"], {}), **config}


Tensor = tuple[str, tuple[int, ...], str]


def tensors(model: str, arch: str, config: Mapping[str, Any], weights: str) -> Iterator[Tensor]:
    """Name, shape and type of each tensor of the file: rows first, as numpy has it."""
    tape = tape_of(config)
    layers = 1 + max(i for w in tape.weights for i in w.layers or (0,))
    names = gguf.get_tensor_name_map(ARCHS[arch], layers)
    scheme = named_scheme(weights, facts=gguf_facts(resolve(model)))
    for w in tape.weights:
        for layer in w.layers or (None,):
            types = scheme.format_of(w, layer).name.split(" and ")
            one = w if layer is None else replace(w, layers=(layer,))
            for i, (name, shape) in enumerate(tensors_of(one, names, config)):
                yield reshaped(name, shape, config, types[min(i, len(types) - 1)])
    if arch == "gemma4":
        yield "rope_freqs.weight", (config["global_head_dim"] // 2,), "F32"


def reshaped(name: str, shape: tuple[int, ...], c: Mapping[str, Any], kind: str) -> Tensor:
    """The shape that conversion gives a tensor, where it is not that of the checkpoint."""
    if name.endswith(("ssm_conv1d.weight", "shortconv.conv.weight")):
        shape = (shape[0], shape[-1])
    elif name.endswith((".ssm_a", ".ssm_d")) and len(shape) == 1 and c["model_type"] in MAMBA_2:
        shape = (shape[0], 1)
    elif name.endswith("ssm_norm.weight") and c["model_type"] in MAMBA_2:
        groups = c.get("mamba_n_groups") or c.get("n_groups", 1)
        shape = (groups, shape[0] // groups)
    elif name.endswith("attn_k_b.weight"):
        shape = (c["num_attention_heads"], c["kv_lora_rank"], c["qk_nope_head_dim"])
    elif name.endswith("attn_v_b.weight"):
        shape = (c["num_attention_heads"], c["v_head_dim"], c["kv_lora_rank"])
    elif c["model_type"] == "qwen3_next" and re.search(r"attn_(qkv|gate)\.weight$", name) and "linear_num_key_heads" in c:
        values = c["linear_num_value_heads"] * c["linear_value_head_dim"]
        shape = (values + (2 * c["linear_num_key_heads"] * c["linear_key_head_dim"] if "qkv" in name else 0), shape[1])
        shape = (shape[0] if "qkv" in name else values, shape[1])
    elif name == "per_layer_token_embd.weight":
        shape = (c["vocab_size"], shape[1])
    if len(shape) == 2 and shape[0] == 1 and name.endswith("ffn_gate_inp_shexp.weight"):
        shape = shape[1:]
    return name, shape, kind


MAMBA_2 = ("mamba2", "falcon_h1", "granitemoehybrid", "nemotron_h", "bamba")


def write_gguf(path: str, model: str, arch: str, weights: str) -> None:
    """A GGUF of `model`'s dimensions, its tensors a hole."""
    config = config_of(model)
    tape = tape_of(config)
    layers = 1 + max(i for w in tape.weights for i in w.layers or (0,))
    vocab = next(int(w.shape[0]) for w in tape.weights if w.kind == "embed")
    writer = gguf.GGUFWriter(path, arch)
    keys = {
        "vocab_size": vocab,
        "context_length": resolve(model).context_length or 2**17,
        **required(config, layers, any(w.kind == "buffer" for w in tape.weights)),
        **{key: value for key, value in metadata_of(arch, config, layers).items() if value is not None},
        "leading_dense_block_count": min((i for w in tape.weights if w.kind == "experts" for i in w.layers or ()), default=None),
    }
    for key, value in keys.items():
        if value is not None:
            add(writer, f"{arch}.{key}", value)
    for key in ("alpha_n", "alpha_p", "beta", "eps") if arch == "apertus" else ():
        writer.add_array(f"xielu.{key}", [1.0] * layers)
    writer.add_tokenizer_model("none")
    size = 0
    for name, shape, kind in tensors(model, arch, config, weights):
        if kind == "F32" or not shape or len(shape) == 1:
            kind = "F32"
        block, nbytes = gguf.GGML_QUANT_SIZES[TYPES[kind]]
        total = prod(shape) // block * nbytes
        stored = (*shape[:-1], shape[-1] // block * nbytes)
        if kind == "F32":
            writer.add_tensor_info(name, shape, np.dtype(np.float32), total)
        else:
            writer.add_tensor_info(name, stored, np.dtype(np.uint8), total, raw_dtype=TYPES[kind])
        size += -(-total // ALIGNMENT) * ALIGNMENT
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, -(-os.path.getsize(path) // ALIGNMENT) * ALIGNMENT + size)


def add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """A metadata value by its Python type."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_array(key, [v if isinstance(v, bool) else int(v) for v in value])


def required(c: Mapping[str, Any], n: int, biased: bool) -> dict[str, Any]:
    """Keys that llama.cpp wants and the config's reader does not; those that an architecture does not know it does not read."""
    widths = ("moe_intermediate_size", "expert_ffn_hidden_size")
    ffn = next((c[key] for key in widths if isinstance(c.get(key), int)), c.get("intermediate_size"))
    shared = c.get("shared_expert_intermediate_size") or c.get("moe_shared_expert_intermediate_size") or c.get("shared_intermediate_size")
    count = next((c[key] for key in ("n_shared_experts", "moe_num_shared_experts", "num_shared_expert") if c.get(key)), None)
    count = count[0] if isinstance(count, list) else count
    slides = [kind == "sliding_attention" for kind in c.get("layer_types") or []]
    return {
        "feed_forward_length": 4 * int(c.get("hidden_size") or c.get("n_embd") or 0) or None,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.layer_norm_epsilon": 1e-5,
        "expert_feed_forward_length": ffn[0] if isinstance(ffn, list) else ffn,
        "expert_shared_feed_forward_length": shared,
        "expert_shared_count": count,
        "expert_gating_func": 2 if biased else 1,
        "interleave_moe_layer_step": c.get("interleave_moe_layer_step", c.get("moe_layer_interval", 1)),
        "attention.sliding_window_pattern": slides if any(slides) else None,
        "attention.clamp_kqv": 8.0,
        "logit_scale": 1.0,
        "residual_scale": 1.0,
        "embedding_scale": 1.0,
        "attention.scale": 0.1,
        "rope.dimension_sections": [11, 11, 10, 0],
        "rope.scaling.finetuned": False
        if c["model_type"] == "granitemoehybrid" and c.get("position_embedding_type", "nope") == "nope"
        else None,
        "use_parallel_residual": c.get("use_parallel_residual", True),
    }


# ---- the programs ---------------------------------------------------------------------------------------------------------------
def serve(folder: Path, count: int) -> tuple[list[str], list[subprocess.Popen[bytes]]]:
    """`count` RPC servers in place of GPUs."""
    addresses, running = [], []
    for _ in range(count):
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        running.append(
            subprocess.Popen(
                [folder / "ggml-rpc-server", "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        )
        addresses.append(f"127.0.0.1:{port}")
    time.sleep(1)
    return addresses, running


def measured(folder: Path, path: str, s: Scenario, servers: list[str]) -> dict[str, list[list[int]] | list[int]]:
    """Model, cache and compute bytes of each device and of the host. Raises ValueError with the program's last words."""
    command = [str(folder / "llama-fit-params"), "-m", path, *arguments(s, servers)]
    environment = {"RPC_OFFLOAD": "1", **({"KV_UNIFIED": "1"} if s.get("kv_unified") else {})}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    rows = re.findall(r"^(RPC\d+|Host)\S* (\d+) (\d+) (\d+)", done.stdout, re.M)
    if done.returncode or not rows:
        raise ValueError((done.stderr + done.stdout).strip()[-1500:])
    figures = [(name, [int(n) for n in numbers]) for name, *numbers in rows]
    return {"devices": [n for name, n in figures if name != "Host"], "host": next(n for name, n in figures if name == "Host")}


def patch(source: Path) -> None:
    """See the module's docstring."""
    fit, rpc = source / "common" / "fit.cpp", source / "ggml" / "src" / "ggml-rpc" / "ggml-rpc.cpp"
    head, found, tail = fit.read_text().partition("void common_fit_print(")
    fit.write_text(head + found + tail.replace("/1024/1024", ""))
    fitting = source / "tools" / "fit-params" / "fit-params.cpp"
    start = "    llama_backend_init();\n"
    fitting.write_text(fitting.read_text().replace(start, f'    params.kv_unified = getenv("KV_UNIFIED") != NULL;\n{start}', 1))
    text = rpc.read_text().replace("static ggml_backend_event_t ggml_backend_rpc_device_event_new(", OFFLOAD, 1)
    field = "/* .offload_op           = */ NULL,\n    /* .event_new            = */ ggml_backend_rpc"
    rpc.write_text(text.replace(field, field.replace("NULL", "ggml_backend_rpc_device_offload_op"), 1))


OFFLOAD = """static bool ggml_backend_rpc_device_offload_op(ggml_backend_dev_t dev, const struct ggml_tensor * op) {
    GGML_UNUSED(dev);
    if (getenv("RPC_OFFLOAD") == NULL) { return false; }
    switch (op->op) {
        case GGML_OP_GET_ROWS:   return false;
        case GGML_OP_MUL_MAT:    return op->ne[1] >= 32;
        case GGML_OP_MUL_MAT_ID:
        case GGML_OP_ROPE:
        case GGML_OP_ROPE_BACK:  return op->ne[2] >= 32;
        default:                 return ggml_nrows(op) >= 32;
    }
}

static ggml_backend_event_t ggml_backend_rpc_device_event_new("""


def main(folder: Path, out: Path, *only: str) -> None:
    servers, running = serve(folder, 4)
    try:
        with out.open("w") as file, tempfile.TemporaryDirectory() as scratch:
            for number, (arch, model) in enumerate(MODELS):
                if only and not any(part in model for part in only):
                    continue
                config = config_of(model)
                tape = tape_of(config)
                layers = 1 + max(i for w in tape.weights for i in w.layers or (0,))
                moe = any(w.kind == "experts" for w in tape.weights)
                windows = any(c.window is not None for c in tape.caches)
                for s in cases(number, layers, moe, windows, resolve(model).context_length or 2**20):
                    path = f"{scratch}/model.gguf"
                    write_gguf(path, model, arch, s["weights"])
                    try:
                        row = {"arch": arch, "model": model, **s, **measured(folder, path, s, servers), "version": VERSION}
                    except ValueError as error:
                        print(f"{arch} {model} {s}: {error}", file=sys.stderr)
                        continue
                    file.write(json.dumps(row) + "\n")
                    file.flush()
    finally:
        for server in running:
            server.terminate()


if __name__ == "__main__":
    if sys.argv[1] == "--patch":
        patch(Path(sys.argv[2]))
    else:
        main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
