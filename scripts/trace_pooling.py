"""Trace one pass of transformers' own encoders, rerankers and embedding models on fake tensors: the referee of pooling (extra `trace`).

`python scripts/trace_pooling.py data/traced/pooling.jsonl` appends the cases that the file lacks. The class is that of AutoModel, or of
AutoModelForSequenceClassification where the config names one; texts are as long as each other.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from traced_rows import append

MODELS = (
    "BAAI/bge-large-en-v1.5",
    "BAAI/bge-small-en-v1.5",
    "BAAI/bge-reranker-large",
    "sentence-transformers/all-mpnet-base-v2",
    "intfloat/multilingual-e5-large",
    "distilbert/distilbert-base-uncased",
    "answerdotai/ModernBERT-large",
    "Qwen/Qwen3-Embedding-0.6B",
    "Qwen/Qwen3-Embedding-8B",
    "intfloat/e5-mistral-7b-instruct",
)
SHAPES: tuple[dict[str, Any], ...] = (
    {"sequences": 32, "prompt_length": 512, "weights": "fp16"},
    {"sequences": 1, "prompt_length": 128, "weights": "fp32"},
    {"sequences": 8, "prompt_length": 256, "weights": "bf16", "attention": "eager"},
)
GPU = ("NVIDIA A100-SXM4-80GB", (8, 0), 80 << 30)


def cases() -> Iterator[dict[str, Any]]:
    """Every scenario of the matrix."""
    for model in MODELS:
        for shape in SHAPES:
            yield {"model": model, "engine": "transformers", "runner": "pooling", **shape}


def trace(asked: dict[str, Any]) -> dict[str, Any]:
    """The peak of one pass."""
    import torch
    import transformers
    from transformers.initialization import no_init_weights

    from vramplan.sources import resolve
    from vramplan.trace.environment import modules, on_gpu
    from vramplan.trace.step import adopt

    raw = dict(resolve(asked["model"]).config)
    kind = raw.pop("model_type")
    config = transformers.AutoConfig.for_model(kind, **raw)
    ranks = "ForSequenceClassification" in str(raw.get("architectures"))
    made = transformers.AutoModelForSequenceClassification if ranks else transformers.AutoModel
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[asked["weights"]]
    config._attn_implementation = asked.get("attention", "sdpa")
    with on_gpu(*GPU) as recorder:
        with no_init_weights():
            model = made.from_config(config, dtype=dtype).eval()
        recorder.mark("load")
        adopt(recorder, model)
        with modules(recorder), torch.no_grad():
            recorder.paused = False
            recorder.mark("pass")
            ids = torch.zeros((asked["sequences"], asked["prompt_length"]), dtype=torch.long)
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
        recorder.paused = True
        peak = recorder.result(asked["model"]).peak_of(moment="pass")
    return {"peak": peak.nbytes, "op": peak.op, "where": peak.module, "categories": dict(peak.categories)}


def versions(_: dict[str, Any]) -> dict[str, str]:
    """What makes the figures."""
    return {name: version(name) for name in ("torch", "transformers")}


if __name__ == "__main__":
    import torch  # noqa: F401  so that children need not import it again
    import transformers  # noqa: F401

    append(Path(sys.argv[1]), cases(), trace, versions)
