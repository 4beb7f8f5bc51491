"""The caches of transformers' `generate`: what each kind holds on the GPU, in the prefill and in the decode, and beside the tape's peak.

A dynamic cache grows by concatenation, which the tape has (`Kernels.cache`); what else a kind makes is here. Source: transformers 5.23
`cache_utils.py`; optimum-quanto 0.2.7 and HQQ 0.2.8 for the quantised ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from ..errors import BadInput, Unknown
from ..ledger import Item, Moment
from ..tape import Tape
from ..tensors import Cache
from .job import Job
from .lines import cache_items, text_caches

SOURCE = "transformers 5.23 cache_utils.py"
PACKED = {"quanto-int4": 32, "quanto-int2": 16, "hqq-int8": 64, "hqq-int4": 32, "hqq-int3": 28, "hqq-int2": 16, "hqq-int1": 8, "fp8": 64}
"""Bytes that 64 elements are packed into: of HQQ's three bits ten come into an int32 (hqq 0.2.8 `core/bitpack.py`, `pack_3bit_32`)."""
DRAFTED = 20
"""Tokens that an assistant makes for each pass (`num_assistant_tokens`, `generation/configuration_utils.py`)."""
GROUP, RESIDUAL = 64, 128
"""QuantizedLayer's defaults: elements that share a scale and a zero point, tokens that are kept as they are."""
PREFILL, DECODE = frozenset({Moment.PREFILL}), frozenset({Moment.DECODE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What `generate` is asked: `rows` are sequences times beams, `context` the longest sequence, `kind` the cache's; `drafted` tokens of
    an assistant come with each pass."""

    job: Job
    sequences: int
    beams: int
    prompt: int
    context: int
    kind: str
    version: str
    drafted: int = 0

    @property
    def rows(self) -> int:
        return self.sequences * self.beams

    @property
    def update(self) -> Literal["kept", "grown", "static"]:
        """How the tape has a new token come to the cache."""
        return "static" if self.static else "kept" if self.kind in PACKED else "grown"

    @property
    def static(self) -> bool:
        return self.kind in ("static", "offloaded-static")

    @property
    def packing(self) -> int:
        """Bytes for 64 elements while a layer of the prompt is packed: with HQQ more than the rest of the pass may take. A copy in order,
        too, as keys and values are laid out token by token.
        """
        return _hqq(self.job.itemsize) + GROUP * self.job.itemsize if self.kind.startswith("hqq") else 0

    @property
    def offloaded(self) -> bool:
        return self.kind in ("offloaded", "offloaded-static")

    @property
    def filled(self) -> dict[str, object]:
        """The scenario's keys that this settled."""
        beams = {"num_beams": self.beams} if self.beams > 1 else {}
        return {
            "sequences": self.sequences,
            "context_length": self.context,
            "prompt_length": self.prompt,
            "cache_implementation": self.kind,
            **beams,
        }

    @property
    def remarks(self) -> list[str]:
        """What a user should know beside the numbers."""
        compiled = "a static cache has transformers compile the decode: the pools of its CUDA graphs are not counted"
        return [compiled] if self.static else []

    def items(self, prefill: Tape, decode: Tape) -> Iterator[Item]:
        """The cache's lines at both moments."""
        for tape, alive in ((prefill, PREFILL), (decode, DECODE)):
            caches = [_as_cached(cache) for cache in text_caches(tape)]
            there = [cache for cache in caches if self._stays(cache)]
            yield from self._plain(there, alive)
            away = [cache for cache in caches if not self._stays(cache)]
            if self.offloaded:
                yield from self._plain(_layers(away, 1 if alive is PREFILL else 2), alive)
            else:
                yield from self._quantised(away, alive)

    def check(self, tape: Tape) -> None:
        """Raise BadInput where `generate` would refuse the cache for this model."""
        if self.kind in PACKED and any(cache.window is not None or cache.side == "state" for cache in text_caches(tape)):
            what = "QuantizedCache is for models with only full attention layers; choose dynamic or offloaded"
            raise BadInput(f"cache_implementation {self.kind!r}: transformers' {what}")

    def _stays(self, cache: Cache) -> bool:
        """Whether a cache is on the GPU as it is: recurrent states always, and sliding windows of a static cache that is offloaded
        (`StaticCache(offload_only_non_sliding=True)`, of DynamicCache False).
        """
        if cache.side == "state" or self.kind in ("dynamic", "static"):
            return True
        return cache.window is not None and self.kind == "offloaded-static"

    def _plain(self, caches: list[Cache], alive: frozenset[Moment]) -> Iterator[Item]:
        held = partial(_static if self.static else _prefilled if alive is PREFILL else _decoded, self)
        s = self.job.scenario
        yield from cache_items(caches, held, kv_dtype=s.kv_dtype, default=self.job.dtype, alive=alive, source=SOURCE)

    def _quantised(self, caches: list[Cache], alive: frozenset[Moment]) -> Iterator[Item]:
        """Packed elements, and for each group of 64 a scale and a zero point in the model's precision; what a step makes of one layer.

        In the decode a layer's keys and values are unpacked, then joined with the new ones; every 128 tokens they are packed anew, by way
        of two more copies of one of them (quanto) or what HQQ takes, while other layers have their new tokens unpacked yet. fp8 has one
        scale for all, and appends.
        """
        tokens = self.prompt if alive is PREFILL else self.context
        packed, size = PACKED.get(self.kind, 0), self.job.itemsize
        why = f"{packed * 8 / GROUP:g} bits" + (f" and {2 * size} B for {GROUP} elements" if self.kind != "fp8" else "")
        for cache in caches:
            n = self.rows * cache.elements(tokens)
            nbytes = n * packed // GROUP + (n // GROUP * 2 * size if self.kind != "fp8" else 0)
            path = ("kv cache", "quantised", cache.name)
            yield Item(path=path, nbytes=nbytes, alive=alive, why=f"{n:,} elements in {why}", source="QuantizedLayer")
        if alive is DECODE and caches:
            layer = {cache.side: self.rows * cache.elements(tokens) for cache in _layers(caches, 1)}
            tail = sum(self.rows * cache.elements(RESIDUAL - 1) for cache in caches) * size
            unpacked = sum(layer.values()) * size
            if self.kind == "fp8":
                nbytes, why = layer["k"] * size + layer.get("v", 0) * 8, "a layer's keys unpacked, and its values, in fp32 twice"
            else:
                largest = max(layer.values())
                nbytes = 2 * unpacked + (largest // GROUP * _hqq(size) if self.packing else unpacked)
                why = "a layer unpacked, joined with what is new, and packed anew"
                new = "tokens that are not yet packed, in every layer"
                yield Item(path=("kv cache", "residual"), nbytes=tail, alive=alive, why=new, source="QuantizedLayer.update")
            yield Item(path=("kv cache", "unpacked"), nbytes=nbytes, alive=alive, why=why, source="QuantizedLayer.update")


def generation(job: Job, version: str) -> Generation:
    """What the scenario asks of `generate`. Raises BadInput as `generate` would, Unknown for what is not described."""
    s = job.scenario
    kind = s.cache_implementation or "dynamic"
    context = job.context(default=(s.prompt_length or 4096) + (s.output_length or 0))
    run = Generation(
        job=job,
        sequences=s.sequences or 1,
        beams=s.num_beams or 1,
        prompt=job.prompt(context),
        context=context,
        kind=kind,
        version=version,
        drafted=DRAFTED if job.draft else 0,
    )
    if s.draft_model and job.draft is None:
        raise Unknown(f"draft_model {s.draft_model!r}: not estimated for engine 'transformers', which takes a model's name")
    if run.drafted and run.rows > 1:
        key = "num_beams" if run.beams > 1 else "sequences"
        raise BadInput(f"{key} {run.rows}: transformers' assisted generation is for one sequence and no beams; leave out draft_model")
    if run.drafted and kind != "dynamic":
        raise BadInput(f"cache_implementation {kind!r}: transformers' assisted generation needs a dynamic cache, which it can crop")
    return run


def _hqq(itemsize: int) -> int:
    """Bytes for 64 elements that HQQ takes to pack them: a copy in fp32 and nine in fp16, of which it finds the group's zero point; five
    numbers of the group in fp32 and two in fp16. Source: hqq 0.2.8 `core/quantize.py`, `core/optimize.py`
    (optimize_weights_proximal_legacy).
    """
    return GROUP * ((4 if itemsize < 4 else 0) + 9 * 2) + 5 * 4 + 2 * 2


def _as_cached(cache: Cache) -> Cache:
    """Convolutions keep `kernel` columns, one more than the next step needs (`LinearAttentionLayer.update_conv_state`)."""
    return replace(cache, shape=(cache.shape[0], cache.shape[1] + 1)) if cache.name == "conv state" else cache


def _layers(caches: list[Cache], count: int) -> list[Cache]:
    """`count` layers of each: of different kinds one kind has its turn at a time, so those of the largest."""
    largest = max((sum(c.elements(1) // len(c.layers) for c in caches if c.layers == some.layers) for some in caches), default=0)
    kind = next((c.layers for c in caches if sum(o.elements(1) // len(o.layers) for o in caches if o.layers == c.layers) == largest), ())
    return [replace(cache, layers=cache.layers[:count]) for cache in caches if cache.layers == kind]


def _prefilled(run: Generation, cache: Cache) -> tuple[int, int, str]:
    """A sliding layer keeps its last window − 1 tokens as a view, so that until its next step those of the whole prompt stay allocated."""
    return run.rows, run.prompt // cache.stride, ""


def _decoded(run: Generation, cache: Cache) -> tuple[int, int, str]:
    """In decode a sliding layer's view is of window − 1 kept tokens and the new one (`DynamicSlidingWindowLayer.update`)."""
    kept = cache.kept(run.context)
    return run.rows, kept, f" of {run.context:,}" if kept < run.context else ""


def _static(run: Generation, cache: Cache) -> tuple[int, int, str]:
    """As long as it will be, or its window, from the first token on (`StaticLayer.lazy_initialization`)."""
    return run.rows, cache.kept(run.context), " from the first on"
