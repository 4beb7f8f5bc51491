"""ExLlamaV2: weights, a cache of all tokens allocated at load, and one scratch buffer that attention, MLP and head share.

The scratch holds the largest module's need: the hidden state of a chunk, the MLP's two intermediates, and a matrix unpacked to fp16 (at
most 512 Mi elements; the head's is the largest). Loading runs each module once over a whole chunk, with 448 MiB reserved, and makes logits
of all its tokens: on one GPU that is often the peak. Quantised caches keep keys and values of one layer in fp16 beside them. Windows do
not shorten the cache. Source: `model.py` (load_autosplit), `attn.py`, `mlp.py`, `moe_mlp.py`, `linear.py` (scratch_space_fixed),
`cache.py`, `device.py` of exllamav2 0.3.2. What it does not know: what exllama.py says, and FP8 caches' lack of the dynamic generator.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..dim import numel
from ..errors import BadInput
from ..formats import weights_nbytes
from ..kernels import Kernels
from ..ledger import Item, Moment
from ..tape import Tape
from ..units import MiB
from .exllama import ALWAYS, CHUNK, answer, cache_tokens, fitted, matrices, weights
from .job import Account, Job
from .lines import cache_items, text_caches

NAMES = ("exllamav2",)
ABOUT = (
    "EXL2, GPTQ, fp16; cache fp16, fp8, q4, q6, q8; scratch, load peak; GPUs filled in turn; not: TP, drafts, LoRA; "
    "not validated by measurement, weights and cache follow its source"
)
VERSION = "0.3.2"

UNPACKED = 512 * 1024**2
"""Most elements of a matrix that are unpacked at once: `config.py` max_dq_size."""
RESERVED, RESERVED_LATER, MINIMUM = 192 * MiB, 64 * MiB, 256 * MiB
"""Held free while it loads: reserve_vram's default on the first device and on others, and minimum_reserve_vram on each."""
ALIGNED = 128
"""Added to each slice of the scratch."""
SOURCE = "exllamav2 0.3.2 scratch_space_fixed"
KERNELS = Kernels(attention="flash", norm="fused", mlp="plain", rope="inplace", qkv="split", gate_up="split", tied=False, frames="freed")
ARCHITECTURES = (
    "LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM", "LlavaForConditionalGeneration", "Mistral3ForConditionalGeneration",
    "YiForCausalLM", "OrionForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM", "Qwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration", "GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForConditionalGeneration", "Gemma3ForCausalLM",
    "Starcoder2ForCausalLM", "GemmoeForCausalLM", "CohereForCausalLM", "Cohere2ForCausalLM", "DbrxForCausalLM", "Phi3ForCausalLM",
    "GPTBigCodeForCausalLM", "GPT2LMHeadModel", "MiniCPMForCausalLM", "InternLM2ForCausalLM", "IndexForCausalLM", "GraniteForCausalLM",
    "Glm4ForCausalLM",
)  # fmt: skip
"""What it runs: `architecture.py`, whose others load as Llama with a warning."""


def account(job: Job) -> Account:
    """What a process takes that loads the model and its cache."""
    s = job.scenario
    job = fitted(job, "exl2", "gptq", vendors=("nvidia", "amd", ""))
    job.only_architectures(*ARCHITECTURES)
    kept = _cache_type(job)
    context = job.context(default=job.model.context_length or CHUNK)
    chunk = min(s.max_batched_tokens or CHUNK, context)
    tape = job.tape(sequences=1, tokens=chunk, kernels=KERNELS)
    if not matrices(tape, "attention") or any(cache.side == "state" for cache in text_caches(tape)):
        raise BadInput(f"{job.model.id}: ExLlamaV2 runs transformers with attention in every layer only")
    packed = job.scheme.name.split("-")[0] in ("exl2", "gptq")
    shared = [_rotary(job, tape, context), *_forward(tape, chunk), *([_scratch(tape, chunk)] if packed else [])]

    def build(part: Tape, number: int, last: bool) -> list[Item]:
        device, _ = weights(job, part)
        cache = _cache(part, cache_tokens(job, context), kept)
        return [*device, *cache, *shared, *([_groups(job, part)] if packed else []), *_loading(tape, chunk, number, last)]

    return answer(job, tape, build, version=s.engine_version or VERSION, context=context, chunk=chunk)


def _cache_type(job: Job) -> dict[str, str]:
    """The types that keys and values are kept in: Q6 has keys in 8 bits and values in 4. Raises BadInput for one that it lacks."""
    job.kv_types("fp16", "fp8", "q4", "q6", "q8")
    named = job.scenario.kv_dtype or "auto"
    if not isinstance(named, str):
        raise BadInput("kv_dtype: ExLlamaV2's cache has one type for keys and values: fp16, fp8, q4, q6, q8")
    kept = "fp16" if named in ("auto", "float16") else named
    return {"k": "q8", "v": "q4"} if kept == "q6" else {"k": kept, "v": kept}


def _cache(tape: Tape, tokens: int, kept: dict[str, str]) -> Iterator[Item]:
    """Keys and values of all tokens in every layer, and those of one layer in fp16 where they are quantised."""
    caches = text_caches(tape)
    source = "exllamav2 0.3.2 cache.py"
    yield from cache_items(caches, lambda _: (1, tokens, ""), kv_dtype=kept, default="fp16", alive=ALWAYS, source=source)
    if kept["k"] != "fp16":
        wide = [max((numel(cache.shape) for cache in caches if cache.side == side), default=0) for side in ("k", "v")]
        why = f"one layer in fp16: {tokens:,} tokens × ({wide[0]:,} + {wide[1]:,}) × 2 B"
        yield Item(path=("kv cache", "unpacked layer"), nbytes=2 * tokens * sum(wide), alive=ALWAYS, why=why, source=source)


def _rotary(job: Job, tape: Tape, context: int) -> Item:
    """Sines and cosines of every position in fp16, of each base."""
    tables, width = 2 if "rope_local_base_freq" in job.model.text else 1, max(tape.rotated, default=0)
    why = f"{tables} × 2 × {context:,} positions × {width} × 2 B"
    source = "exllamav2 0.3.2 device.py prepare_sincos"
    return Item(path=("buffers", "rotary"), nbytes=tables * 2 * context * width * 2, alive=ALWAYS, why=why, source=source)


def _groups(job: Job, tape: Tape) -> Item:
    """EXL2's map of rows to groups, made at load: two 16-bit numbers for each row of its packed matrix [in, out]."""
    shares = [share for share in weights_nbytes(tape.weights, job.scheme) if share.format.name.startswith("exl2")]
    rows = sum(int(share.weight.shape[1]) * share.weight.copies * len(share.layers or (0,)) for share in shares)
    source = "exllamav2 0.3.2 ext.py make_group_map"
    return Item(path=("weights", "group maps"), nbytes=4 * rows, alive=ALWAYS, why=f"{rows:,} rows × 4 B", source=source)


def _scratch(tape: Tape, chunk: int) -> Item:
    """The largest need of a module: hidden state, intermediates of the MLP, a matrix in fp16."""
    needs = {part: need for part in ("attention", "mlp", "experts", "head") if (need := _need(tape, part, chunk))}
    part = max(needs, key=lambda name: needs[name])
    why = f"the largest module's, {part}: a chunk of {chunk:,} tokens and a matrix in fp16"
    return Item(path=("buffers", "scratch"), nbytes=needs[part], alive=ALWAYS, why=why, source=SOURCE)


def _need(tape: Tape, part: str, chunk: int) -> int:
    found, hidden = matrices(tape, part), _hidden(tape)
    if not found:
        return 0
    unpacked = 2 * min(max(numel(w.shape) for w in found), UNPACKED)
    widest = max(max(w.shape) for w in found)
    if part == "head":
        return unpacked
    if part == "attention":
        return 2 * chunk * widest + ALIGNED + unpacked
    if part == "mlp":
        return 2 * chunk * hidden + 2 * 2 * chunk * widest + 3 * ALIGNED + unpacked
    one = min(numel(w.shape) for w in found)
    routed = max(w.copies for w in found)
    return 2 * chunk * (2 * hidden + 2 * (one // hidden) + routed) + 5 * ALIGNED + 2 * min(one, UNPACKED)


def _hidden(tape: Tape) -> int:
    return int(next(w.shape[1] for w in tape.weights if w.kind == "embed" and w.tower is None))


def _forward(tape: Tape, chunk: int) -> Iterator[Item]:
    """Hidden state, queries, new keys and values, and attention's output of a chunk."""
    hidden = _hidden(tape)
    kv = sum(max((numel(cache.shape) for cache in text_caches(tape) if cache.side == side), default=0) for side in ("k", "v"))
    heads = int(matrices(tape, "attention")[0].shape[0])
    why = f"{chunk:,} tokens × ({hidden:,} + 2 × {heads:,} + {kv:,}) × 2 B"
    source = "exllamav2 0.3.2 attn.py forward_paged"
    yield Item(
        path=("activations", "chunk"), nbytes=2 * chunk * (hidden + 2 * heads + kv), alive=frozenset({Moment.LOAD, Moment.PREFILL}),
        why=why, source=source,
    )  # fmt: skip


def _loading(tape: Tape, chunk: int, number: int, last: bool) -> Iterator[Item]:
    """What is held while it loads: the reserve, and with the head logits of every token of the trial pass."""
    alive, source = frozenset({Moment.LOAD}), "exllamav2 0.3.2 model.py load_autosplit_gen"
    reserved = RESERVED if number == 0 else RESERVED_LATER
    yield Item(path=("load", "reserve"), nbytes=reserved + MINIMUM, alive=alive, why="kept free on this device", source=source)
    vocabulary = max((int(w.shape[0]) for w in matrices(tape, "head")), default=0)
    if last:
        why = f"{chunk:,} tokens × {vocabulary:,} × 2 B"
        yield Item(path=("load", "logits"), nbytes=2 * chunk * vocabulary, alive=alive, why=why, source=source)
