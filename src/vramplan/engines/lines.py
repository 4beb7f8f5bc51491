"""Line items that every engine has: weights, caches, working set. Each with its formula, values and source."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache

from ..allocator import unsplit
from ..dim import numel, shape_label
from ..errors import Unknown
from ..formats import Share, weights_nbytes
from ..formats.kv import kv_bytes
from ..ledger import Item, Moment
from ..sources.model import Model
from ..sources.stored import StoredTensor
from ..tape import Tape
from ..tensors import Cache, Weight
from .job import Job

SERVING = frozenset({Moment.PROFILE, Moment.PREFILL, Moment.DECODE})
"""Weights and caches are there at each of these."""


def weight_items(job: Job, tape: Tape, alive: frozenset[Moment]) -> Iterator[Item]:
    """The weights that load: from the file's header where there is one (and no other format is asked for), else from the tape."""
    if job.stored:
        yield from _stored_items(job.model, tape, alive)
        return
    for share in weights_nbytes(tape.weights, job.scheme):
        yield item_of_share(share, alive, job.model.origin)


def item_of_share(share: Share, alive: frozenset[Moment], origin: str) -> Item:
    """The line of a weight's layers that share a format."""
    weight, form, layers, nbytes = share
    why = f"{_times(weight, layers)}{shape_label(weight.shape)} in {form.layout}"
    return Item(path=_path(weight), nbytes=nbytes, alive=alive, why=why, source=f"shapes: {origin}")


def block_rest_item(job: Job, tape: Tape, alive: frozenset[Moment]) -> Item:
    """What torch's allocator counts beyond the weights: a weight of 10 MiB or more has a block of its own, up to 1 MiB too large."""
    if job.stored:
        sizes = [(tensor.nbytes, 1) for tensor in job.model.stored or ()]
    else:
        sizes = [(share.nbytes // (n := len(share.layers or (0,))), n) for share in weights_nbytes(tape.weights, job.scheme)]
    nbytes = sum(unsplit(size) * n for size, n in sizes)
    why = "blocks are rounded up to 2 MiB, and what is over is cut off only above 1 MiB"
    source = "pytorch c10/cuda/CUDACachingAllocator.cpp, should_split"
    return Item(path=("allocator", "block remainders"), nbytes=nbytes, alive=alive, why=why, source=source)


def _path(weight: Weight) -> tuple[str, ...]:
    leaf = weight.name.removesuffix(".weight").rpartition(".")[2]
    return ("weights", weight.part, leaf)


def _times(weight: Weight, layers: tuple[int, ...] | None) -> str:
    parts = [f"{counted(len(layers), 'layer')} × "] if layers is not None else []
    return "".join([*parts, f"{weight.copies} experts × " if weight.copies > 1 else ""])


def counted(n: int, noun: str) -> str:
    """`n` of a thing.

    >>> counted(1, "layer"), counted(1024, "layer")
    ('1 layer', '1,024 layers')
    """
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


# ---- weights as a file's header states them ---------------------------------------------------------------------------
_INDEX = re.compile(r"\.\d+(?=\.|$)")
_STORAGE = re.compile(
    r"\.(weight|bias|qweight|qzeros|scales|g_idx|weight_packed|weight_shape|weight_scale|weight_scale_2|weight_scale_inv|weight_global_scale"
    r"|input_scale|input_global_scale|weight_zero_point|biases|SCB|absmax|quant_map|nested_absmax|nested_quant_map|trellis|suh|svh|q_weight"
    r"|q_scale|q_scale_max|q_groups|q_invperm|q_perm)$|_(blocks|scales|bias)$"
)
_GGUF_PARTS = (
    (re.compile(r"^token_embd|^position_embd|^token_types|per_layer_token_embd"), "embedding"),
    (re.compile(r"^output\."), "head"),
    (re.compile(r"_exps\.|_shexp\.|ffn_gate_inp"), "experts"),
    (re.compile(r"\.ffn_"), "mlp"),
    (re.compile(r"attn|indexer"), "attention"),
    (re.compile(r"\.ssm_|shortconv"), "state"),
    (re.compile(r"^(v|mm|a)\."), "vision tower"),
)


def loaded(model: Model, tape: Tape) -> tuple[dict[str, list[StoredTensor]], list[StoredTensor]]:
    """The file's tensors by part of the model, and those that do not load: layers beyond the model's own (multi-token prediction)."""
    parts: dict[str, list[StoredTensor]] = {}
    skipped = []
    known = {_tail(weight.name.replace("{i}", "0").replace("{e}", "0")): weight.part for weight in tape.weights}
    depth = max((max(weight.layers) + 1 for weight in tape.weights if weight.layers and not weight.tower), default=0)
    for tensor in model.stored or ():
        part = known.get(_tail(tensor.name))
        beyond = _layer(tensor.name) >= depth > 0 and not (part or "").endswith(" tower")
        if beyond or (part is None and (tensor.name.startswith("mtp.") or ".mtp." in tensor.name)):
            skipped.append(tensor)
            continue
        if part is None:
            part = next((name for pattern, name in _GGUF_PARTS if pattern.search(tensor.name)), "other") if model.gguf else "other"
        parts.setdefault(part, []).append(tensor)
    return parts, skipped


@lru_cache(maxsize=200_000)
def _tail(name: str) -> str:
    """A tensor's module without indices, storage suffix and what stands before the layer list: checkpoints vary in their prefixes.

    >>> _tail("model.language_model.layers.12.mlp.experts.3.up_proj.weight_scale_inv"), _tail("layers.0.mlp.experts.0.up_proj.weight")
    ('layers.mlp.experts.up_proj', 'layers.mlp.experts.up_proj')
    """
    bare = _STORAGE.sub("", name)
    for prefix in ("language_model.", "model.", "transformer.", "backbone."):
        bare = bare.replace(prefix, "")
    return _INDEX.sub("", bare)


def _layer(name: str) -> int:
    match = re.search(r"(?:^|\.)(?:layers|blk|h|blocks)\.(\d{1,6})\.", name)
    return int(match[1]) if match and "vis" not in name else -1


def _stored_items(model: Model, tape: Tape, alive: frozenset[Moment]) -> Iterator[Item]:
    parts, _ = loaded(model, tape)
    for part, tensors in parts.items():
        by_type: dict[str, list[StoredTensor]] = {}
        for tensor in tensors:
            by_type.setdefault(tensor.dtype, []).append(tensor)
        for dtype, same in by_type.items():
            nbytes = sum(tensor.nbytes for tensor in same)
            elements = sum(numel(tensor.shape) for tensor in same)
            why = f"{len(same)} tensors of {elements:,} elements in {dtype}, as the file's header states them"
            yield Item(path=("weights", part, dtype), nbytes=nbytes, alive=alive, why=why, source=model.origin)


# ---- caches ------------------------------------------------------------------------------------------------------------
def text_caches(tape: Tape) -> list[Cache]:
    """The caches of the language model, towers left out."""
    return [cache for cache in tape.caches if cache.tower is None]


def kv_type(kv_dtype: object, side: str, default: str) -> str:
    """The cache's number format for `side` (k or v) from the scenario's `kv_dtype`; `auto` or nothing is the model's own."""
    named = kv_dtype.get(side, "auto") if isinstance(kv_dtype, dict) else kv_dtype
    return default if named in (None, "auto") else str(named)


def cache_nbytes(cache: Cache, kept: int, dtype: str) -> int:
    """Bytes of `kept` tokens of one sequence in the layers of `cache`, in whole blocks of the format."""
    elements, nbytes = kv_bytes(dtype)
    total = cache.elements(kept)
    if total % elements:
        raise Unknown(f"kv_dtype {dtype!r}: its blocks of {elements} elements do not divide the cache's {shape_label(cache.shape)}")
    return total // elements * nbytes


def cache_items(
    caches: Iterable[Cache],
    held: Callable[[Cache], tuple[int, int, str]],
    *,
    kv_dtype: object,
    default: str,
    state_dtype: str | None = None,
    alive: frozenset[Moment],
    source: str,
) -> Iterator[Item]:
    """One item per cache and kind of layer. `held(cache)` gives the sequences, the tokens kept of each, and a word on how that came."""
    for cache in caches:
        state = cache.side == "state"
        dtype = (state_dtype or cache.dtype or default) if state else kv_type(kv_dtype, cache.side, default)
        sequences, kept, how = held(cache)
        elements, nbytes = kv_bytes(dtype)
        size = f"{nbytes} B" if elements == 1 else f"{nbytes} B per {elements}"
        tokens = "" if cache.per == "sequence" else f"{kept:,} tokens{how} × "
        layers = f"{counted(sequences, 'sequence')} × {counted(len(cache.layers), 'layer')}"
        why = f"{layers} × {tokens}{shape_label(cache.shape)} × {size} ({dtype})"
        kind = "window" if cache.window is not None else "state" if state else "full attention"
        path = ("kv cache", kind, cache.name)
        yield Item(path=path, nbytes=sequences * cache_nbytes(cache, kept, dtype), alive=alive, why=why, source=source)
