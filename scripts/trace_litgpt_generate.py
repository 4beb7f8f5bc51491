"""Trace LitGPT's own model with its cache on fake tensors, a prompt and the last step, and write their peaks: the estimate's referee.

`python scripts/trace_litgpt_generate.py data/traced/litgpt_generate.jsonl` appends the cases that the file lacks. It needs what
`trace_litgpt.py` needs. The passes are those of LitGPT 0.5.13, `generate/base.py`; the mask, which is no buffer of the model, is added.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trace_litgpt import GPU, NAMES, PRECISIONS
from traced_rows import append

LENGTHS = ((512, 768, "bf16"), (2000, 2048, "bf16"), (16, 1024, "fp32"))


def cases() -> Iterator[dict[str, Any]]:
    """Every model of the matrix, with short and long prompts."""
    for model in NAMES:
        for prompt, context, dtype in LENGTHS:
            yield {"model": model, "engine": "litgpt", "weights": dtype, "prompt_length": prompt, "context_length": context}


def trace(asked: dict[str, Any]) -> dict[str, Any]:
    """The peaks of both passes."""
    import lightning
    import torch
    from litgpt import GPT, Config

    from vramplan.trace.environment import modules, on_gpu
    from vramplan.trace.step import adopt

    prompt, context = asked["prompt_length"], asked["context_length"]
    fabric = lightning.Fabric(accelerator="cpu", devices=1, precision=PRECISIONS[asked["weights"]])
    with on_gpu(*GPU) as recorder:
        with fabric.init_module(empty_init=True):
            model = GPT(Config.from_name(NAMES[asked["model"]]))
        with fabric.init_tensor():
            model.max_seq_length = context
            model.set_kv_cache(batch_size=1)
        model = fabric.setup_module(model.eval())
        mask = model.mask_cache.nbytes
        recorder.mark("load")
        adopt(recorder, model.module)
        with modules(recorder), torch.inference_mode():
            recorder.paused = False
            for moment, first, tokens in (("prefill", 0, prompt), ("decode", context - 1, 1)):
                recorder.mark(moment)
                places = torch.arange(first, first + tokens, dtype=torch.int64)
                logits = model(torch.zeros((1, tokens), dtype=torch.int64), places, input_pos_maxp1=first + tokens)
                del logits
        recorder.paused = True
        result = recorder.result(asked["model"])
    peaks = {moment: result.peak_of(moment=moment).nbytes + mask for moment in ("prefill", "decode")}
    return {"peak": max(peaks.values()), **peaks}


if __name__ == "__main__":
    import lightning  # noqa: F401  so that children need not import it again
    import litgpt  # noqa: F401
    import torch  # noqa: F401

    append(Path(sys.argv[1]), cases(), trace, lambda _: {name: version(name) for name in ("torch", "litgpt", "lightning")})
