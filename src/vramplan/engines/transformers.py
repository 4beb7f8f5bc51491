"""transformers' `generate`: the weights, a cache of any kind, and the working set of the larger of prefill and decode; on several GPUs and
the host by `device_map`.

Every allocation is torch's own: no pool, no graphs. `peak_allocated` is what `torch.cuda.max_memory_allocated()` shows after it has
loaded and generated, `process` adds the CUDA context. What it does not know: the caching allocator's slack, graphs of a compiled decode
(static caches), prefill in chunks, assistants that do not share the vocabulary; the caches of latent attention before PR #47761
(DeepSeek-V3) and #48761 (V3.2), which held the keys and values of all heads, and that of Falcon-40B and 180B, whose code repeats keys and
values to all heads before it caches them.
"""

from __future__ import annotations

from dataclasses import replace

from .job import MANY, Account, Job
from .pooling import account as pooling
from .pooling import pools
from .process import CUDA_CONTEXT
from .train.transformers_versions import behaviour
from .transformers_cache import generation
from .transformers_generate import allocated, context, device_items, draft_items, kernels, passes
from .transformers_loading import loading
from .transformers_split import split

NAMES = ("transformers",)
ABOUT = "dynamic, static, offloaded and quantised caches, beams, assistants, device maps over GPUs and host; not: allocator slack"
UNEQUAL = True
VERSION = "5.23"
_LOGITS = {"last": "the last token only", "all-fp32": "every token, and their fp32 copy"}


def account(job: Job) -> Account:
    """Weights, cache, and the tape's peak at prefill and at the last decode step, on the GPU that has least to spare."""
    s = job.scenario
    job.refuse(*(key for key in MANY if key not in ("gpu_count", "draft_model")), "compile")
    job.refuse_formats("mlx", "exl2", "exl3")
    job.kv_types("bf16", "fp16", "fp32")
    version = s.engine_version or VERSION
    did = behaviour(version, str(job.model.config.get("model_type")), trains=False)
    loads = loading(job, version, stacked=did.experts == "grouped")
    job = replace(job, scheme=loads.scheme)
    plain = kernels(job, did, version)
    run = generation(job, version)
    whole = passes(job, run, plain, loads)
    if pools(job, whole.prefill):
        return pooling(job, version, plain, loads.method)
    run.check(whole.prefill)
    answer = Account(
        tape=whole.prefill,
        items=[],
        room=job.gpu.usable if job.gpu else None,
        filled={"engine_version": version, "attention": plain.attention, **run.filled},
        assumptions=[
            f"transformers {version}: prefill of {run.prompt:,} tokens in one pass, logits of {_LOGITS[plain.logits]}",
            *loads.assumed,
        ],
        remarks=["torch's allocator keeps freed blocks: what nvidia-smi shows lies a few percent above these figures", *run.remarks],
    )
    if s.device_map or (s.gpu_count or 1) > 1:
        job.refuse("draft_model")
        split(job, run, loads, whole, answer)
    else:
        answer.items = [*device_items(job, run, loads, whole), *draft_items(job, run, plain)]
    peak = allocated(answer.items)
    answer.facts.update(peak_allocated=peak, process=peak + CUDA_CONTEXT)
    answer.items.append(context())
    return answer
