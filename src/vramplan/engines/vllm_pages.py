"""vLLM's cache: pages, what a request is charged in each kind of layer, and how many tokens a pool is said to hold.

Layers of one kind share a window and bytes a token. A page is a block of tokens in one layer; where kinds differ all pages have one size,
layers go into groups of one size, and every group has block tables of its own. What it does not know: DeepSeek-V4's groups, chunks of
Llama 4 apart from windows (a page more), prefix caching of states, context parallelism.
Sources: vLLM 0.21.0 v1/core/kv_cache_utils.py, v1/kv_cache_interface.py, platforms/interface.py `update_block_size_for_backend`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, lcm

from ..ledger import Item, Moment
from ..tape import Tape
from ..tensors import Cache
from .job import Job
from .lines import cache_nbytes, counted, kv_type, text_caches
from .sparse import is_sparse, sparse_token

BLOCK = 16
"""Tokens per page on CUDA: vllm/config/cache.py `DEFAULT_BLOCK_SIZE`."""
BY_REQUESTS = (0, 21)
"""Since then "GPU KV cache size" is requests × their length; before, blocks over groups times tokens: `_report_kv_cache_config`."""
ONE_KIND = (0, 8)
"""Before V1 every layer has a page for every block: no groups, no windows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Layers alike: their caches, `token` bytes of a token (or a sequence's state) in one layer, `block` tokens a page of `page` bytes."""

    caches: tuple[Cache, ...]
    layers: int
    window: int | None
    state: bool
    token: int
    block: int
    page: int

    def pages(self, context: int, batched: int) -> int:
        """Pages of one layer for a request of `context` tokens; a window needs those of a pass besides, and one where it begins."""
        if self.state:
            return 1
        if self.window is None:
            return ceil(context / self.block)
        return ceil(min(self.window - 1 + batched, context) / self.block) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Pages:
    """The kinds of a rank; in groups of `group` layers where kinds differ, else (0) in one."""

    kinds: tuple[Kind, ...]
    group: int
    batched: int
    running: tuple[int, int]

    def need(self, context: int) -> int:
        """Bytes that a request of `context` tokens is charged."""
        return sum(self.charged(kind, context) for kind in self.kinds)

    def charged(self, kind: Kind, context: int) -> int:
        """The same for one kind, padding layers included."""
        return kind.pages(context, self.batched) * kind.page * self.layers(kind)

    def layers(self, kind: Kind) -> int:
        """Layers that are charged: whole groups."""
        return ceil(kind.layers / self.group) * self.group if self.group else kind.layers

    def tokens(self, pool: int, context: int) -> int:
        """Tokens that `pool` bytes are said to hold: "GPU KV cache size"."""
        need = self.need(context)
        if pool <= 0 or not need:
            return 0
        block = self.kinds[0].page * self.group if self.group else sum(kind.page * kind.layers for kind in self.kinds)
        blocks, attention = pool // block, [kind for kind in self.kinds if not kind.state]
        if self.running >= BY_REQUESTS or not attention or (not self.group and any(kind.state for kind in self.kinds)):
            return int(blocks / ceil(need / block) * context)
        groups = sum(self.layers(kind) // self.group for kind in self.kinds) if self.group else 1
        return blocks // groups * min(kind.block for kind in attention)

    def fits(self, pool: int, most: int) -> int:
        """The longest request, of at most `most` tokens, that `pool` bytes hold; 0 where none is."""
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.need(middle) <= pool else (low, middle - 1)
        return low

    def items(self, context: int) -> list[Item]:
        """What one request of `context` tokens is charged, by kind of layer and cache."""
        return [item for kind in self.kinds for item in self._items(kind, context)]

    def _items(self, kind: Kind, context: int) -> list[Item]:
        total, layers, pages = self.charged(kind, context), self.layers(kind), kind.pages(context, self.batched)
        added = f" ({layers - kind.layers} of them padding)" if layers > kind.layers else ""
        size = f"{kind.block} tokens, {kind.page:,} B" if not kind.state else f"{kind.page:,} B"
        why = f"1 sequence × {counted(layers, 'layer')}{added} × {counted(pages, 'page')} of {size}"
        name = "state" if kind.state else "full attention" if kind.window is None else "window"
        source = "vLLM 0.21.0 v1/core/kv_cache_utils.py: equal groups, pages of one size"
        path = ("kv cache", name, " and ".join(dict.fromkeys(cache.name for cache in kind.caches)))
        return [Item(path=path, nbytes=total, alive=frozenset({Moment.DECODE}), why=why, source=source)]


def pages(job: Job, tape: Tape, batched: int, running: tuple[int, int]) -> Pages:
    """The kinds of layers on `tape`, with pages of one size where they differ."""
    block = job.scenario.block_size or BLOCK
    kinds = _kinds(job, tape, running, block)
    strided = any(cache.stride > 1 for kind in kinds for cache in kind.caches)
    if strided or len({(kind.window, kind.state) for kind in kinds}) <= 1:
        return Pages(kinds=tuple(kinds), group=0, batched=batched, running=running)
    kinds = _unified(kinds, block)
    low, high = min(kind.layers for kind in kinds), max(kind.layers for kind in kinds)
    return Pages(kinds=tuple(kinds), group=high if high < 1.5 * low else low, batched=batched, running=running)


def _kinds(job: Job, tape: Tape, running: tuple[int, int], block: int) -> list[Kind]:
    """Caches of the same layers together (keys and values, a latent and its indexer's keys), then layers alike."""
    caches = text_caches(tape)
    if any(cache.stride > 1 for cache in caches):
        return [_strided(job, cache, block) for cache in caches]
    by_layers: dict[tuple[int, ...], list[Cache]] = {}
    for cache in caches:
        by_layers.setdefault(cache.layers, []).append(cache)
    sparse = is_sparse(caches)
    alike: dict[tuple[int | None, bool, int], list[tuple[tuple[int, ...], list[Cache]]]] = {}
    for layers, caches in by_layers.items():
        state = all(cache.side == "state" for cache in caches)
        window = None if running < ONE_KIND else max((int(c.window) for c in caches if c.window is not None), default=None)
        token = sum(_token(job, cache, sparse) for cache in caches if state or cache.side != "state")
        alike.setdefault((window, state, token), []).append((layers, caches))
        if not state and any(cache.side == "state" for cache in caches):
            states = [cache for cache in caches if cache.side == "state"]
            alike.setdefault((None, True, sum(_token(job, cache, False) for cache in states)), []).append((layers, states))
    return [
        Kind(
            caches=tuple(cache for _, caches in same for cache in caches),
            layers=sum(len(layers) for layers, _ in same),
            window=window,
            state=state,
            token=token,
            block=block,
            page=token if state else token * block,
        )
        for (window, state, token), same in alike.items()
        if token
    ]


def _token(job: Job, cache: Cache, sparse: bool) -> int:
    """Bytes of a token in one layer, or of a sequence's state."""
    dtype = (cache.dtype or job.dtype) if cache.side == "state" else kv_type(job.scenario.kv_dtype, cache.side, job.dtype)
    nbytes = cache_nbytes(cache, 1, dtype) // len(cache.layers)
    return sparse_token(job, cache, nbytes) if sparse else nbytes


def _strided(job: Job, cache: Cache, block: int) -> Kind:
    """A cache that keeps one of `stride` tokens, in pages of as many tokens at least; not joined with others."""
    state, tokens = cache.side == "state", lcm(block, cache.stride)
    page = _token(job, cache, False) * (1 if state else tokens // cache.stride)
    window = None if cache.window is None else int(cache.window)
    return Kind(caches=(cache,), layers=len(cache.layers), window=window, state=state, token=page, block=tokens, page=page)


def _unified(kinds: list[Kind], block: int) -> list[Kind]:
    """Pages of one size: attention's blocks grow until a page holds a state, and smaller pages take more tokens."""
    largest = max((kind.token for kind in kinds if kind.state), default=0)
    grown = [replace(k, block=block * max(ceil(largest / (block * k.token)), 1)) for k in kinds if not k.state]
    most = max((kind.block * kind.token for kind in grown), default=largest)
    return [replace(k, page=most, block=k.block if k.state else most // k.token // block * block) for k in kinds]
