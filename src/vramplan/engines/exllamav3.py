"""ExLlamaV3: weights padded to multiples of 128, a cache of all tokens in 16 or 2 to 8 bits, rings for windows, and a chunk's tensors.

The residual stream is in fp32; a chunk of more than 144 tokens unpacks each matrix to fp16 (32,768 outputs at a time) for its product. The
loader runs each module over a chunk and keeps half a gigabyte free. Windows have a ring of the window and 512 tokens for each sequence in
the architectures that run them so; elsewhere they keep all tokens. Recurrent states are fp32, their convolutions bf16. Source:
`modules/linear.py`, `modules/quant/exl3.py` (reconstruct_hgemm), `modules/sliding_attn.py`, `cache/quant.py`, `cache/mla.py`,
`model/model_ls.py` of exllamav3 1.4.1. What it does not know: what exllama.py says, graphs, experts' own buffers, experts on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from ..errors import BadInput
from ..formats import weights_nbytes
from ..formats.kv import EXLLAMA
from ..kernels import Kernels
from ..ledger import Item, Moment
from ..tape import Tape
from ..tensors import Cache
from ..units import GiB
from .exllama import ALWAYS, CHUNK, PAGE, answer, cache_tokens, fitted, matrices, weights
from .job import Account, Job
from .lines import cache_items, text_caches

NAMES = ("exllamav3",)
ABOUT = (
    "EXL3, fp16; cache fp16 or q2 to q8, windows, MLA, states; GPUs filled in turn; not: TP, drafts, LoRA; "
    "weights by three published sizes, the rest not validated by measurement"
)
VERSION = "1.4.1"

PADDED = 128
"""What sizes of matrices are rounded up to: `modules/linear.py` pad_to."""
SLICE = 32768
"""Outputs of a matrix that are unpacked at once: `modules/quant/exl3.py` MAX_RECONSTRUCT_SLICE_N."""
RESERVED = GiB // 2
"""Kept free on each device while it loads: `model/model.py` reserve_per_device."""
OVERHANG = 2 * PAGE
"""Tokens beyond the window that a ring has: `modules/sliding_attn.py` sliding_window_overp."""
RINGS = ("Gemma4ForConditionalGeneration", "Gemma4UnifiedForConditionalGeneration", "GptOssForCausalLM", "LagunaForCausalLM",
         "Step3p5ForCausalLM", "Step3p7ForConditionalGeneration")  # fmt: skip
"""Architectures that build SlidingAttention: `architecture/`."""
ARCHITECTURES = (
    "AfmoeForCausalLM", "ApertusForCausalLM", "ArceeForCausalLM", "CohereForCausalLM", "Cohere2ForCausalLM", "DeciLMForCausalLM",
    "DeepseekV3ForCausalLM", "DeepseekV4ForCausalLM", "Dots1ForCausalLM", "Ernie4_5_ForCausalLM", "Ernie4_5_MoeForCausalLM",
"Exaone4ForCausalLM", "Gemma2ForCausalLM", "Gemma3ForConditionalGeneration", "Gemma3ForCausalLM",
    "Gemma4ForConditionalGeneration", "Gemma4UnifiedForConditionalGeneration", "Glm4ForCausalLM", "Glm4MoeForCausalLM",
    "Glm4vForConditionalGeneration", "Glm4vMoeForConditionalGeneration", "GptOssForCausalLM", "HCXVisionV2ForCausalLM",
    "HYV3ForCausalLM", "HyperCLOVAXForCausalLM", "IQuestCoderForCausalLM", "LagunaForCausalLM", "Lfm2MoeForCausalLM", "LlamaForCausalLM",
    "MiMoForCausalLM", "MiniMaxM2ForCausalLM", "Ministral3ForCausalLM", "MistralForCausalLM", "Mistral3ForConditionalGeneration",
    "MixtralForCausalLM", "NanoChatForCausalLM", "NemotronHForCausalLM", "Olmo3ForCausalLM", "OlmoHybridForCausalLM", "Phi3ForCausalLM",
    "Qwen2ForCausalLM", "Qwen2_5_VLForConditionalGeneration", "Qwen3ForCausalLM", "Qwen3_5ForConditionalGeneration", "Qwen3_5ForCausalLM",
    "Qwen3_5MoeForConditionalGeneration", "Qwen3_5MoeForCausalLM", "Qwen3MoeForCausalLM", "Qwen3NextForCausalLM",
    "Qwen3VLForConditionalGeneration", "Qwen3VLMoeForConditionalGeneration", "SeedOssForCausalLM", "SmolLM3ForCausalLM",
    "SolarOpenForCausalLM", "Step3p5ForCausalLM", "Step3p7ForConditionalGeneration",
)  # fmt: skip
"""What it runs: `architecture/`, drafts left out."""
KERNELS = Kernels(
    attention="flash", norm="fused", mlp="plain", rope="inplace", mla="absorbed", qkv="split", gate_up="split", tied=False, frames="freed"
)


def account(job: Job) -> Account:
    """What a process takes that loads the model and its cache."""
    s = job.scenario
    job = fitted(job, "exl3")
    job.only_architectures(*ARCHITECTURES)
    kept = _cache_type(job)
    context = job.context(default=8192)
    chunk = min(s.max_batched_tokens or CHUNK, -(-context // PAGE) * PAGE)
    tape = job.tape(sequences=1, tokens=chunk, kernels=KERNELS)
    if not matrices(tape, "attention"):
        raise BadInput(f"{job.model.id}: ExLlamaV3 runs models with attention only")
    held = partial(_held, _rings(job), cache_tokens(job, context), s.sequences or 1)
    passing = _forward(tape, chunk)

    def build(part: Tape, _: int, __: bool) -> list[Item]:
        return [*weights(job, part)[0], _padding(job, part), *_caches(job, part, held, kept), passing, _reserve()]

    return answer(job, tape, build, version=s.engine_version or VERSION, context=context, chunk=chunk)


def _caches(job: Job, tape: Tape, held: Callable[[Cache], tuple[int, int, str]], kept: dict[str, str]) -> Iterator[Item]:
    """Caches of all tokens in the type that is asked for, rings in fp16."""
    source = "exllamav3 1.4.1 cache/fp16.py, quant.py, mla.py, modules/sliding_attn.py"
    caches = text_caches(tape)
    for some, kv_dtype in (([c for c in caches if not _ring(job, c)], kept), ([c for c in caches if _ring(job, c)], "fp16")):
        yield from cache_items(some, held, kv_dtype=kv_dtype, default="fp16", alive=ALWAYS, source=source)


def _cache_type(job: Job) -> dict[str, str]:
    """Types of keys and values. Raises BadInput for one that it lacks."""
    job.kv_types("fp16", *EXLLAMA)
    named = job.scenario.kv_dtype or "auto"
    sides = named if isinstance(named, Mapping) else {"k": named, "v": named}
    kept = {side: "fp16" if name in ("auto", "float16") else name for side, name in sides.items()}
    if (kept["k"] == "fp16") != (kept["v"] == "fp16"):
        raise BadInput(f"kv_dtype {kept['k']!r} and {kept['v']!r}: ExLlamaV3 quantises both or neither, -cq 8,4")
    return kept


def _rings(job: Job) -> bool:
    named = job.model.config.get("architectures")
    own = isinstance(named, list) and any(name in RINGS for name in named)
    return own or job.model.text.get("model_type") in ("gpt_oss", "gemma4_text", "step3p5")


def _ring(job: Job, cache: Cache) -> bool:
    return cache.window is not None and _rings(job)


def _held(rings: bool, tokens: int, sequences: int, cache: Cache) -> tuple[int, int, str]:
    """Sequences and tokens of each: one cache for all of them, but a ring or a state for each."""
    if cache.side == "state" or cache.per == "sequence":
        return sequences, 1, ""
    if cache.window is not None and rings:
        return sequences, -(-(int(cache.window) + OVERHANG) // PAGE) * PAGE, " of a ring"
    return 1, tokens // cache.stride, ""


def _padding(job: Job, tape: Tape) -> Item:
    """What sizes that are no multiples of 128 grow by."""
    grown = 0
    for weight, form, layers, nbytes in weights_nbytes(tape.weights, job.scheme):
        if form.name.startswith("exl3"):
            rows, cols = (_up(int(size)) for size in weight.shape)
            if "gate_up" in weight.name:  # one tensor in the checkpoint, two here
                ffn = max(int(size) for size in weight.shape) // 2
                rows, cols = 2 * _up(ffn), _up(min(int(size) for size in weight.shape))
            grown += form.nbytes(rows, cols, weight.copies * len(layers or (0,))) - nbytes
    source = "exllamav3 1.4.1 modules/linear.py"
    nbytes = 0 if job.stored else grown
    return Item(path=("weights", "padding"), nbytes=nbytes, alive=ALWAYS, why="sizes rounded up to 128", source=source)


def _up(size: int) -> int:
    return -(-size // PADDED) * PADDED


def _forward(tape: Tape, chunk: int) -> Item:
    """The larger of attention and MLP over a chunk: residual and result in fp32, the rest in fp16, and the largest matrix unpacked."""
    hidden = int(next(w.shape[1] for w in tape.weights if w.kind == "embed" and w.tower is None))
    needs = {}
    for part in ("attention", "mlp", "experts"):
        found = matrices(tape, part)
        if found:
            unpacked = max(2 * int(w.shape[1]) * min(int(w.shape[0]), SLICE) for w in found)
            inner = sum(sorted({w.name: int(w.shape[0]) for w in found}.values(), reverse=True)[:3])
            rows = chunk * (8 * hidden + 2 * hidden + 2 * inner) if part != "experts" else chunk * 10 * hidden
            needs[part] = rows + unpacked
    part = max(needs, key=lambda name: needs[name])
    why = f"{part} over {chunk:,} tokens: hidden states in fp32 and fp16, projections, a matrix unpacked"
    source = "exllamav3 1.4.1 modules/quant/exl3.py reconstruct_hgemm"
    return Item(path=("activations", "chunk"), nbytes=needs[part], alive=frozenset({Moment.LOAD, Moment.PREFILL}), why=why, source=source)


def _reserve() -> Item:
    source = "exllamav3 1.4.1 model/model.py reserve_per_device"
    return Item(path=("load", "reserve"), nbytes=RESERVED, alive=frozenset({Moment.LOAD}), why="0.5 GB kept free", source=source)
