"""Programs that run llama.cpp with defaults of their own, as its flags: Ollama, KoboldCpp. LM Studio's are not published.

Source: Ollama 0.33.2 `server/routes.go` (defaultNumCtx), `llm/llama_server.go` (-c is NumCtx times the slots); KoboldCpp 1.113.1
`koboldcpp.py` (--contextsize, --batchsize, --useswa, --noflashattention) and `gpttype_adapter.cpp` (gpttype_load_model).
"""

from __future__ import annotations

from dataclasses import replace

from ..scenario import Scenario
from ..units import GiB
from .job import Job

OLLAMA_CONTEXTS = ((47 * GiB, 262144), (23 * GiB, 32768))
"""From how much memory on Ollama's default context is longer than 4,096: server/routes.go."""
KOBOLD_CONTEXT, KOBOLD_BATCH = 8192, 512
"""Defaults of --contextsize and of --batchsize, which is both -b and -ub: koboldcpp.py."""
KOBOLD_MORE = 128
"""Cells that KoboldCpp adds to each context: extra_context_handle_fragmentation, gpttype_adapter.cpp."""


def with_defaults(s: Scenario) -> Scenario:
    """The flags that a program sets where the user sets none: KoboldCpp has one cache for all slots, and windows at full size."""
    if s.program != "koboldcpp":
        return s
    batch = s.ubatch or KOBOLD_BATCH
    return replace(
        s,
        context_length=s.context_length or KOBOLD_CONTEXT,
        ubatch=batch,
        logical_batch=batch,
        kv_unified=True,
        swa_full=s.swa_full is not False,
    )


def more_cells(s: Scenario) -> int:
    """Cells beyond the context that is asked for."""
    return KOBOLD_MORE if s.program == "koboldcpp" else 0


def contexts(s: Scenario) -> int:
    """How many of the contexts that a user asks for `-c` has: one, of Ollama one for each slot (num_ctx is a slot's)."""
    return (s.sequences or 1) if s.program == "ollama" else 1


def default_context(job: Job) -> int:
    """Tokens where none are asked for: the model's own; of Ollama by the memory of all GPUs."""
    own = job.model.context_length or 4096
    if job.scenario.program != "ollama" or job.gpu is None:
        return own
    gpus = [job.gpu_at(rank) or job.gpu for rank in range(job.scenario.gpu_count or 1)]
    memory = sum(gpu.capacity for gpu in gpus)
    return min(next((tokens for least, tokens in OLLAMA_CONTEXTS if memory >= least), 4096), own)


def program_remarks(s: Scenario) -> list[str]:
    """What is to be known of a program's defaults."""
    if s.program == "koboldcpp":
        return [
            f"KoboldCpp's defaults: one cache with {KOBOLD_MORE} cells more than the context, sliding windows at full size (no --useswa)"
        ]
    if s.program in ("lm-studio", "lmstudio") and None in (s.context_length, s.flash_attention):
        return ["LM Studio's own defaults are not known: llama.cpp's were taken; name its context length and flash attention"]
    return []
