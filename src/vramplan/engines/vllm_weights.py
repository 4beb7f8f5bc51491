"""What vLLM logs as weights ("Model loading took …"): parameters as its kernels want them, tables, copies, and rests of torch's blocks.

What it does not know: kernels that pad or repack other formats (Marlin's workspace, block scales of DeepGEMM), AMD's layouts, and what
torch reserves beyond them once they were repacked.
Sources: vLLM 0.19.0 layers/rotary_embedding/, layers/attention/mla_attention.py, layers/fused_moe/oracle/mxfp4.py, lora/layers/.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..allocator import unsplit
from ..dim import numel
from ..formats import Share, weights_nbytes
from ..ledger import Item
from ..tape import Tape
from .job import Job
from .lines import SERVING, item_of_share, weight_items
from .mxfp4 import FLASHINFER, MARLIN, Layout, grown, triton
from .mxfp4_repack import VENDORED, WHOLE, repack
from .slots import adapter_slots
from .vllm_graphs import OUTSIDE

JOINED = {
    "q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "gate_up", "up_proj": "gate_up", "w1": "gate_up", "w3": "gate_up",
    "q_a_proj": "qkv_a", "kv_a_proj_with_mqa": "qkv_a",
}  # fmt: skip
"""Projections that vLLM loads as one matrix: QKVParallelLinear, MergedColumnParallelLinear, and experts' w13."""
LORA_RANK = 16
"""`max_lora_rank`'s default: vllm/config/lora.py."""


def weights(job: Job, tape: Tape, whole: Tape, running: tuple[int, int]) -> list[Item]:
    """The items of a rank with the weights of `tape`; `whole` is the pass before it was split."""
    if job.stored:
        return [*weight_items(job, tape, SERVING), _rotary(job, whole), *_adapters(job, tape)]
    shares = list(weights_nbytes(tape.weights, job.scheme))
    items = [item_of_share(share, SERVING, job.model.origin) for share in shares]
    return [*items, _rotary(job, whole), *_padding(job, shares, running), *_latents(job, shares), *_rests(shares), *_adapters(job, tape)]


def _item(name: str, nbytes: int, why: str, source: str) -> Item:
    return Item(path=("weights", name), nbytes=nbytes, alive=SERVING, why=why, source=source)


def _rotary(job: Job, tape: Tape) -> Item:
    """Cosines and sines of every position, whole on each rank: [positions, rotated].

    A table for each kind of layer that rotates its own way. Positions are the model's own, times the factor of linear scaling, the original
    ones times the factor of YaRN, four times as many where they are multimodal (mrope.py `cache_max_position_num`); DeepSeek's in fp32.
    """
    text = job.model.text
    ropes = text.get("rope_parameters") or text.get("rope_scaling")
    kinds = [rope for rope in ropes.values() if isinstance(rope, Mapping)] if isinstance(ropes, Mapping) else []
    kinds = kinds or [ropes if isinstance(ropes, Mapping) else {}]
    if "rope_local_base_freq" in text:
        kinds = [*kinds, {}]
    own = _size(text, "max_position_embeddings") or job.model.context_length or 0
    positions, width = sum(_positions(rope, own) for rope in kinds), sum(tape.rotated)
    itemsize = 4 if any(cache.name == "latent" for cache in tape.caches) else job.itemsize
    why = f"{positions:,} positions × {width} × {itemsize} B"
    return _item("rotary table", positions * width * itemsize, why, "vLLM 0.19.0 layers/rotary_embedding/")


def _positions(rope: Mapping[str, object], own: int) -> int:
    kind, factor = rope.get("rope_type", rope.get("type")), rope.get("factor")
    factor = factor if isinstance(factor, int | float) and not isinstance(factor, bool) else 1
    if "mrope_section" in rope:
        return 4 * own
    if kind in ("yarn", "deepseek_yarn"):
        return int((_size(rope, "original_max_position_embeddings") or own / factor) * factor)
    return int(own * factor) if kind == "linear" else own


def _size(config: Mapping[str, object], key: str) -> int:
    value = config.get(key)
    return value if isinstance(value, int) else 0


def _padding(job: Job, shares: list[Share], running: tuple[int, int]) -> Iterator[Item]:
    """What experts in MXFP4 grow by in the layout of the GPU's kernels."""
    layout = _layout(job, running)
    nbytes = grown(shares, layout)
    if nbytes:
        yield _item("padding", nbytes, f"experts in the layout of {layout.name}", "vLLM 0.19.0 layers/fused_moe/oracle/mxfp4.py")


def _layout(job: Job, running: tuple[int, int]) -> Layout:
    """Triton's on Hopper (where nothing is known, too), FlashInfer's on B200, Marlin's on others, with LoRA, and everywhere before 0.11.

    triton_kernels are 3.5 from 0.13, 3.6 from 0.17, 3.5.1 from 0.22 (cmake/external_projects/triton_kernels.cmake); loaded scales go
    since 0.25.
    """
    capability = (job.gpu.compute_capability if job.gpu else None) or "9.0"
    if job.scenario.lora is not None:
        return MARLIN
    if capability.startswith("10."):
        return FLASHINFER
    if capability != "9.0" or running < (0, 11):
        return MARLIN
    return triton(aligned=(0, 17) <= running < (0, 22), twice=running < (0, 25))


def repacked(job: Job, tape: Tape, running: tuple[int, int], peak: int, largest: int, taken: int) -> tuple[list[Item], int]:
    """What torch keeps reserved, unused, once experts in MXFP4 were laid out anew (no part of the weights or the budget), and the most
    bytes while they are; `taken` is what others have of the GPU before.

    Activations of `peak` bytes lie in what is unused where the `largest` of them does.
    """
    if job.scheme.name != "mxfp4" or job.stored or running < VENDORED:
        return [], 0
    shares = list(weights_nbytes(tape.weights, job.scheme))
    before = taken + sum(share.nbytes for share in shares if share.format.name != "mxfp4")
    done = repack(shares, _layout(job, running), job.gpu.usable - before if job.gpu else None, whole=running >= WHOLE)
    nbytes = done.unused - (min(done.unused, peak) if largest <= done.hole else 0)
    why = "segments that are partly used after experts' matrices were padded and packed, by torch's allocator simulated"
    source = "vLLM 0.19.0 third_party/triton_kernels/tensor_details/layout_details/hopper_value.py"
    items = [Item(path=("allocator", "repacked experts", OUTSIDE), nbytes=nbytes, alive=SERVING, why=why, source=source)]
    return items if nbytes else [], before + done.peak if done.peak else 0


def _latents(job: Job, shares: list[Share]) -> Iterator[Item]:
    """MLA's up-projections of latents once more in the model's dtype, as products of them are absorbed into queries and outputs.

    Of quantised ones by `get_and_maybe_dequant_weights`; of plain ones too, as the log of DeepSeek-V2-Lite in 0.19.0 has it.
    """
    mine = [share.weight for share in shares if share.weight.name.endswith("kv_b_proj.weight")]
    nbytes = sum(numel(weight.shape) * weight.repeats for weight in mine) * job.itemsize
    if nbytes:
        yield _item("latents' projections", nbytes, "W_UK and W_UV beside kv_b_proj", "vLLM 0.19.0 layers/attention/mla_attention.py")


def _rests(shares: list[Share]) -> Iterator[Item]:
    """What torch counts beyond the matrices: a block of 10 MiB or more is up to 1 MiB too large. Packed formats are laid out anew."""
    sizes: dict[tuple[str, tuple[int, ...] | None], int] = {}
    for share in shares:
        if share.format.block == 1 and not share.format.extras:
            prefix, _, leaf = share.weight.name.removesuffix(".weight").rpartition(".")
            key = f"{prefix}.{JOINED.get(leaf, leaf)}", share.layers
            sizes[key] = sizes.get(key, 0) + share.nbytes // len(share.layers or (0,))
    nbytes = sum(unsplit(size) * len(layers or (0,)) for (_, layers), size in sizes.items())
    yield _item("block remainders", nbytes, "blocks are rounded up to 2 MiB, cut only above 1 MiB", "pytorch CUDACachingAllocator.cpp")


def _adapters(job: Job, tape: Tape) -> Iterator[Item]:
    """Slots of the largest rank allowed."""
    lora, slots = job.scenario.lora, job.scenario.max_loras or 1
    if lora is None:
        return
    named = lora.get("rank")
    rank = named if isinstance(named, int) else LORA_RANK
    yield adapter_slots(job, tape, slots, rank, "vLLM 0.19.0 lora/layers/base_linear.py create_lora_weights")
