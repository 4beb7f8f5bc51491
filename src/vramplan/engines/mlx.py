"""MLX (mlx-lm): weights in unified memory, caches that grow by 256 tokens, prompts in chunks of 2,048.

Nothing is pooled. Plain caches grow by concatenation, so that one layer's old keys and values stand beside the new ones; windows rotate in
the models that mlx-lm runs so, and hold a chunk more during the prompt. Metal's kernel for attention has no scores but where heads are 192
or 256 wide; quantised caches always have them. Logits are of the last token (lazy evaluation never makes the others). What fits is the
recommended working set, to which mlx-lm sets its wired limit. Source: `models/cache.py`, `generate.py`, `models/base.py` of mlx-lm 0.32;
`mlx/backend/metal/scaled_dot_product_attention.cpp` of mlx. What it does not know: MLX on CUDA, several machines, drafts, images,
`max_kv_size`, latent attention that keeps all heads (DeepSeek-V2), chunked attention (Llama 4), buffers that Metal's allocator keeps.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from ..errors import BadInput, Unknown
from ..formats.kv import MLX
from ..kernels import Kernels
from ..ledger import Item, Moment
from ..tape import Tape
from ..tensors import Cache
from ..units import gib
from .job import MANY, Account, Job
from .lines import SERVING, cache_items, cache_nbytes, counted, kv_type, text_caches, weight_items

NAMES = ("mlx",)
ABOUT = (
    "mlx-lm on Apple silicon: affine, mxfp4, mxfp8, nvfp4 weights; growing, rotating and quantised caches; "
    "not: CUDA, several machines, drafts, images; not validated by measurement"
)
VERSION = "0.32"

CHUNK = 2048
"""`prefill_step_size`."""
STEP = 256
"""Tokens that a cache grows by."""
ROTATING = (
    "afmoe", "baichuan_m1", "cohere2", "exaone4", "exaone_moe", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text", "gemma4", "gemma4_text",
    "gemma4_unified", "gpt_oss", "iquestloopcoder", "laguna", "mellum", "mimo_v2_flash", "ministral3", "olmo3", "plamo2", "recurrent_gemma",
    "step3p5",
)  # fmt: skip
"""Models with RotatingKVCache for windows: `models/`; Llama's class has them where the config names `layer_types`."""
UNFUSED = (192, 256)
"""Widths of a head for which prompts take attention's plain form, with scores: `use_fallback` without M5's NAX."""
FUSED = (64, 72, 80, 96, 128)
CLOSE = 0.9
"""Share of the working set from which mlx-lm warns that it can be slow: `generate.py` wired_limit."""
KERNELS = Kernels(attention="flash", norm="fused", mlp="fused", rope="single", mla="absorbed", logits="last", frames="freed")


def account(job: Job) -> Account:
    """What `mlx_lm.generate` takes of unified memory."""
    s = job.scenario
    _checked(job)
    context = job.context(default=(s.prompt_length or 4096) + (s.output_length or 0))
    prompt = job.prompt(context)
    chunk = min(s.max_batched_tokens or CHUNK, max(prompt - 1, 1))
    sequences = s.sequences or 1
    tape = job.tape(sequences=sequences, tokens=chunk, past=max(prompt - 1 - chunk, 0), kernels=KERNELS, itemsize=job.itemsize)
    decode = job.tape(sequences=sequences, tokens=1, past=context - 1, kernels=KERNELS, itemsize=job.itemsize)
    towers = {weight.part for weight in tape.weights if weight.tower}
    weights = [item for item in weight_items(job, tape, SERVING) if item.path[1] not in towers]
    items = [
        *weights,
        *_caches(job, tape, sequences, prompt, chunk, context),
        *_forward(tape, decode, chunk),
        *_scores(job, tape, prompt, chunk),
    ]
    return Account(
        tape=tape,
        items=items,
        room=job.gpu.usable if job.gpu else None,
        filled={
            "engine_version": s.engine_version or VERSION,
            "sequences": sequences,
            "max_batched_tokens": chunk,
            "context_length": context,
            "prompt_length": prompt,
        },
        assumptions=[
            f"mlx-lm {s.engine_version or VERSION}: {counted(sequences, 'sequence')}, prompts in chunks of {chunk:,} tokens",
            *(
                ["a quantised cache from the first token on (quantized_kv_start 0; the command line's default is 5,000)"]
                if _packed(job)
                else []
            ),
        ],
        remarks=[*_remarks(job, sum(item.nbytes for item in weights))],
    )


def _checked(job: Job) -> None:
    """Raises BadInput as mlx-lm would refuse, and Unknown for what is not estimated."""
    job.refuse(*MANY, "gpu_memory_utilization")
    job.generates_only()
    job.only_formats("mlx", "mxfp4")
    job.kv_types("bf16", "fp16", "fp32", *MLX)
    kind = str(job.model.text.get("model_type"))
    if job.gpu is not None and job.gpu.vendor not in ("apple", ""):
        raise Unknown(f"gpu {job.gpu.name}: MLX on CUDA is not estimated by this version; it is for Apple's GPUs")
    if kind in ("deepseek_v2", "llama4", "llama4_text"):
        raise Unknown(f"{job.model.id}: how mlx-lm caches {kind} is not estimated by this version")
    if isinstance(job.scenario.kv_dtype, dict):
        raise BadInput("kv_dtype: MLX's --kv-bits is one for keys and values: auto, mlx-8bit, mlx-4bit")
    if _packed(job) and _rotates(job):
        raise BadInput(f"kv_dtype {job.scenario.kv_dtype!r}: RotatingKVCache Quantization NYI, says mlx-lm of this model's windows")


def _packed(job: Job) -> bool:
    return str(job.scenario.kv_dtype).startswith("mlx-")


def _rotates(job: Job) -> bool:
    """Whether windows have rotating caches."""
    kind = job.model.text.get("model_type"), job.model.config.get("model_type")
    listed = any(name in ROTATING for name in kind)
    return listed or (kind[0] in ("llama", "mistral") and "layer_types" in job.model.text)


def _remarks(job: Job, weights: int) -> Iterator[str]:
    if job.gpu and weights > CLOSE * job.gpu.usable:
        yield f"mlx-lm warns: weights of {gib(weights)} are close to the recommended working set of {gib(job.gpu.usable)}; this can be slow"
    yield "not validated by measurement: weights and cache follow mlx-lm's source"
    yield "Metal's allocator keeps freed buffers beside what is counted here, and gives them back where memory runs short"


# ---- caches ------------------------------------------------------------------------------------------------------------
def capacity(prompt: int, total: int, chunk: int) -> tuple[int, int]:
    """Tokens that a growing cache has room for once the prompt is in it, and when `total` tokens are.

    >>> capacity(1000, 1024, 2048), capacity(1000, 1025, 2048), capacity(1101, 1200, 1000)
    ((1024, 1024), (1024, 1280), (1256, 1256))
    """
    room = used = 0
    left = prompt - 1
    while left > 0:
        tokens = min(chunk, left)
        room, used, left = _grown(room, used, tokens), used + tokens, left - tokens
    room, used = _grown(room, used, 1), used + 1
    after = room
    while used < total:
        used = max(min(room, total), used + 1)
        room = _grown(room, used - 1, 1)
    return after, room


def _grown(room: int, used: int, tokens: int) -> int:
    """Room after `tokens` more: what is used (unfilled places are cut off where it is no multiple of 256), and whole steps for them."""
    if used + tokens <= room:
        return room
    return (room if used % STEP == 0 else used) + -(-tokens // STEP) * STEP


def _caches(job: Job, tape: Tape, sequences: int, prompt: int, chunk: int, context: int) -> Iterator[Item]:
    """The caches once the prompt is in, and at the end; what one layer's growth takes beside them."""
    caches, rotates = text_caches(tape), _rotates(job)
    source = "mlx-lm 0.32 models/cache.py KVCache, RotatingKVCache, QuantizedKVCache"
    rooms = capacity(prompt, context, chunk)
    for room, moment in zip(rooms, (Moment.PREFILL, Moment.DECODE), strict=True):
        held = partial(_held, sequences, room, rotates, (prompt, chunk, context), moment)
        alive = frozenset({moment})
        yield from cache_items(caches, held, kv_dtype=job.scenario.kv_dtype, default=job.dtype, alive=alive, source=source)
        grown = [cache_nbytes(cache, room, kv_type(job.scenario.kv_dtype, cache.side, job.dtype)) // len(cache.layers)
                 for cache in caches if cache.per == "token" and not (rotates and cache.window)]  # fmt: skip
        why = f"one layer's keys and values before they grew, {room:,} tokens"
        nbytes = sequences * sum(sorted(grown)[-2:])
        yield Item(path=("kv cache", "growth", moment.value), nbytes=nbytes, alive=alive, why=why, source=source)


def _held(sequences: int, room: int, rotates: bool, lengths: tuple[int, int, int], moment: Moment, cache: Cache) -> tuple[int, int, str]:
    prompt, chunk, context = lengths
    if cache.window is None or not rotates:
        return sequences, room // cache.stride, " of room"
    window = int(cache.window)
    if moment is Moment.DECODE:
        return sequences, min(window, -(-context // STEP) * STEP), " of a window"
    before = max(prompt - 1 - chunk, 0)
    return sequences, min(before, window - 1) + chunk, " of a window and a chunk"


# ---- working set -------------------------------------------------------------------------------------------------------
def _forward(tape: Tape, decode: Tape, chunk: int) -> Iterator[Item]:
    for made, moment, what in ((tape, Moment.PREFILL, f"a chunk of {chunk:,} tokens"), (decode, Moment.DECODE, "one decode step")):
        nbytes, where = made.peak()
        why = f"most alive at once in {what}, at {where or 'the end'}"
        path = ("activations", moment.value)
        yield Item(path=path, nbytes=nbytes, alive=frozenset({moment}), why=why, source="the tape's forward pass")


def _scores(job: Job, tape: Tape, prompt: int, chunk: int) -> Iterator[Item]:
    """Attention's scores of the last chunk where no kernel fuses them; with latents all heads' keys and values too."""
    text = job.model.text
    heads, keys = text.get("num_attention_heads"), max(prompt - 1, 1)
    caches = text_caches(tape)
    attention = [cache for cache in caches if cache.side == "k"]
    if not isinstance(heads, int) or not attention:
        return
    latent = any(cache.name == "latent" for cache in attention)
    widths = {int(cache.shape[-1]) for cache in attention}
    fused = not latent and not _packed(job) and all(width in FUSED for width in widths)
    if fused:
        return
    rows = heads * chunk * keys
    expanded = 0
    if latent:
        wide = [text.get(name) for name in ("qk_nope_head_dim", "v_head_dim")]
        expanded = heads * keys * sum(size for size in wide if isinstance(size, int))
    nbytes = int(tape.sequences) * (rows + expanded) * job.itemsize
    why = f"{heads} heads × {chunk:,} tokens × {keys:,} keys, in place through mask and softmax"
    source = "mlx-lm 0.32 models/base.py, deepseek_v3.py; mlx scaled_dot_product_attention.cpp use_fallback"
    yield Item(path=("activations", "scores"), nbytes=nbytes, alive=frozenset({Moment.PREFILL}), why=why, source=source)
