"""PyTorch's CUDA caching allocator, simulated: what a list of allocations and frees makes of `allocated` and `reserved` memory.

It follows c10/cuda/CUDACachingAllocator.cpp and c10/core/AllocatorConfig.h of PyTorch 2.13 with their default settings: sizes are rounded
to 512 bytes, blocks of up to 1 MiB live in segments of 2 MiB, larger ones in segments of 20 MiB or of their own size; the smallest free
block that is large enough is taken, split, and merged with its free neighbours when it is freed; where the device is full, cached segments
are given back and the allocation is tried again. `expandable=True` is `PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True`.

Each stream has its own cache: what is freed in one serves no other. It does not know: when a stream's work is done, CUDA graphs' private
pools, `max_split_size_mb`, `garbage_collection_threshold`, `roundup_power2_divisions`, and what the driver itself takes.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass

ALLOC, FREE, MARK, STREAM = 1, 0, 2, 4
Event = tuple[int, int, int]
"""(ALLOC, block number, bytes asked for), (FREE, block number, _), or (MARK, number of a phase, _). An allocation in another stream than
the first is (ALLOC + STREAM × its number, …)."""

MIN_BLOCK = 512
"""kMinBlockSize: every size is rounded up to a multiple of it."""
SMALL_SIZE = 1 << 20
"""kSmallSize: blocks up to this size live in the small pool."""
SMALL_BUFFER = 2 << 20
"""kSmallBuffer: the segments of the small pool."""
LARGE_BUFFER = 20 << 20
"""kLargeBuffer: the segments of large blocks below MIN_LARGE_ALLOC."""
MIN_LARGE_ALLOC = 10 << 20
"""kMinLargeAlloc: from here on a block gets a segment of its own size."""
ROUND_LARGE = 2 << 20
"""kRoundLarge: such a segment is rounded up to a multiple of it."""


class OutOfMemory(Exception):
    """The device has no room for an allocation, cached segments given back."""


def round_up(nbytes: int, to: int) -> int:
    """The least multiple of `to` that is not less than `nbytes`."""
    return -(-nbytes // to) * to


def block_size(nbytes: int) -> int:
    """Bytes of the block for a request of `nbytes` (round_size).

    >>> block_size(1), block_size(512), block_size(513)
    (512, 512, 1024)
    """
    return max(round_up(nbytes, MIN_BLOCK), MIN_BLOCK)


def segment_size(block: int) -> int:
    """Bytes asked of the driver for a block that no free block can hold (get_allocation_size).

    >>> [segment_size(n) >> 20 for n in (512, 1 << 20, (1 << 20) + 512, 10 << 20, 21 << 20)]
    [2, 2, 20, 10, 22]
    """
    if block <= SMALL_SIZE:
        return SMALL_BUFFER
    return LARGE_BUFFER if block < MIN_LARGE_ALLOC else round_up(block, ROUND_LARGE)


def unsplit(nbytes: int) -> int:
    """Bytes by which a fresh block in its own segment exceeds a request of `nbytes`: the rest of the segment is cut off above 1 MiB only.

    >>> unsplit(117_440_512), unsplit(12 * 2**20 + 1), unsplit(2**20)
    (0, 0, 0)
    >>> unsplit(33_030_144)
    524288
    """
    block = block_size(nbytes)
    rest = segment_size(block) - block
    return rest if block >= MIN_LARGE_ALLOC and rest <= SMALL_SIZE else 0


class Pool(list[tuple[int, int, "Block"]]):
    """Free blocks of a stream by size and address: those of up to 1 MiB, or the others."""

    def __init__(self, small: bool) -> None:
        super().__init__()
        self.small = small


@dataclass(slots=True, eq=False)
class Block:
    """A range of a segment, with its neighbours in it. Unmapped ranges exist in expandable segments only."""

    address: int
    size: int
    pool: Pool
    before: Block | None = None
    after: Block | None = None
    allocated: bool = False
    mapped: bool = True


class Allocator:
    """One device. `capacity` is what the driver can give in bytes; None is without end."""

    def __init__(self, capacity: int | None = None) -> None:
        self.capacity = capacity
        self.allocated = self.reserved = self.max_allocated = self.max_reserved = 0
        self.retries = 0
        self.blocks: dict[int, Block] = {}
        self.segments: dict[int, int] = {}
        """Address -> bytes of the segments (the mapped ranges of expandable ones are not listed)."""
        self.pools: dict[tuple[int, bool], Pool] = {}
        self._next_address = SMALL_BUFFER

    def malloc(self, number: int, nbytes: int, stream: int = 0) -> Block:
        """Allocate `nbytes` as block `number` in a stream. Raises OutOfMemory."""
        size = block_size(nbytes)
        pool = self._pool(stream, size <= SMALL_SIZE)
        block = self._best_fit(pool, size) or self._grow(pool, size)
        if self._splits(pool, block.size - size):
            rest = Block(block.address + size, block.size - size, pool, before=block, after=block.after)
            if rest.after:
                rest.after.before = rest
            block.after, block.size = rest, size
            self._cache(rest)
        block.allocated = True
        self.blocks[number] = block
        self.allocated += block.size
        self.max_allocated = max(self.max_allocated, self.allocated)
        return block

    def free(self, number: int) -> Block:
        """Free block `number`: it is merged with its free neighbours and cached. Returns it as it was."""
        block = self.blocks.pop(number)
        freed = Block(block.address, block.size, block.pool)
        self.allocated -= block.size
        block.allocated = False
        self._merge(block)
        self._cache(block)
        return freed

    def _pool(self, stream: int, small: bool) -> Pool:
        if (stream, small) not in self.pools:
            self.pools[stream, small] = Pool(small)
        return self.pools[stream, small]

    def _cache(self, block: Block) -> None:
        insort(block.pool, (block.size, block.address, block))

    def _uncache(self, block: Block) -> None:
        del block.pool[bisect_left(block.pool, (block.size, block.address))]

    def _merge(self, block: Block) -> None:
        """Let `block` swallow the free, mapped neighbours that it has (try_merge_blocks)."""
        before, after = block.before, block.after
        if before and not before.allocated and before.mapped:
            self._uncache(before)
            block.address, block.size, block.before = before.address, before.size + block.size, before.before
            if block.before:
                block.before.after = block
        if after and not after.allocated and after.mapped:
            self._uncache(after)
            block.size, block.after = block.size + after.size, after.after
            if block.after:
                block.after.before = block

    def _best_fit(self, pool: Pool, size: int) -> Block | None:
        """Take the smallest free block of at least `size` out of the cache (get_free_block)."""
        at = bisect_left(pool, (size, 0))
        return pool.pop(at)[2] if at < len(pool) else None

    def _splits(self, pool: Pool, rest: int) -> bool:
        """Whether what a block has beyond the request becomes a block of its own (should_split)."""
        return rest >= MIN_BLOCK if pool.small else rest > SMALL_SIZE

    def _grow(self, pool: Pool, size: int) -> Block:
        """A new segment, after giving back cached ones where the device is full (alloc_block, release_cached_blocks)."""
        nbytes = segment_size(size)
        if not self._room(nbytes):
            self.retries += 1
            self.empty_cache()
            if not self._room(nbytes):
                raise OutOfMemory(f"{nbytes} bytes asked of the driver, {self.reserved} of {self.capacity} reserved")
        address, self._next_address = self._next_address, self._next_address + nbytes + SMALL_BUFFER
        self.segments[address] = nbytes
        self._reserve(nbytes)
        return Block(address, nbytes, pool)

    def _room(self, nbytes: int) -> bool:
        return self.capacity is None or self.reserved + nbytes <= self.capacity

    def _reserve(self, nbytes: int) -> None:
        self.reserved += nbytes
        self.max_reserved = max(self.max_reserved, self.reserved)

    def empty_cache(self) -> None:
        """Give back every segment that is one free block (`torch.cuda.empty_cache`)."""
        for pool in self.pools.values():
            for entry in [e for e in pool if e[2].before is None and e[2].after is None]:
                pool.remove(entry)
                self.reserved -= self.segments.pop(entry[1])


class ExpandableAllocator(Allocator):
    """With expandable segments: each pool is one range of addresses, of which pages of 2 MiB (small) or 20 MiB (large) are mapped."""

    def __init__(self, capacity: int | None = None) -> None:
        super().__init__(capacity)
        self._first: dict[int, Block] = {}

    def _pool(self, stream: int, small: bool) -> Pool:
        pool = super()._pool(stream, small)
        if id(pool) not in self._first:
            self._first[id(pool)] = Block((len(self._first) + 1) << 50, 1 << 49, pool, mapped=False)
        return pool

    def _splits(self, pool: Pool, rest: int) -> bool:
        return rest >= MIN_BLOCK

    def _best_fit(self, pool: Pool, size: int) -> Block | None:
        """As before, but a block counts with the unmapped range behind it, into which it could grow."""
        at = bisect_left(pool, (size, 0))
        if at == len(pool):
            return None
        while at + 1 < len(pool) and _growable(pool[at + 1][2]) < _growable(pool[at][2]):
            at += 1
        return pool.pop(at)[2]

    def _grow(self, pool: Pool, size: int) -> Block:
        """Map pages at the lowest unmapped range with room, together with a free block before it (try_allocate_expandable_block)."""
        try:
            return self._extend(pool, size)
        except OutOfMemory:
            self.retries += 1
            self.empty_cache()
            return self._best_fit(pool, size) or self._extend(pool, size)

    def _extend(self, pool: Pool, size: int) -> Block:
        block = next(b for b in self._unmapped(pool) if _free_space(b, size) >= size)
        if not block.mapped:
            self._map(block, min(block.size, size))
        while block.size < size:
            assert block.after is not None
            block = block.after
            self._map(block, min(size - (block.before.size if block.before and not block.before.allocated else 0), block.size))
        self._uncache(block)
        return block

    def _unmapped(self, pool: Pool) -> Iterable[Block]:
        """Unmapped ranges by address, each from the free block before it on."""
        block: Block | None = self._first[id(pool)]
        while block:
            if not block.mapped:
                yield block.before if block.before and not block.before.allocated else block
            block = block.after

    def _map(self, block: Block, nbytes: int) -> None:
        """Map the first `nbytes` of an unmapped range, whole pages, and merge them with free neighbours (map_block)."""
        nbytes = round_up(nbytes, SMALL_BUFFER if block.pool.small else LARGE_BUFFER)
        if not self._room(nbytes):
            raise OutOfMemory(f"{nbytes} bytes asked of the driver, {self.reserved} of {self.capacity} reserved")
        self._reserve(nbytes)
        if block.size > nbytes:
            rest = Block(block.address + nbytes, block.size - nbytes, block.pool, before=block, after=block.after, mapped=False)
            if rest.after:
                rest.after.before = rest
            block.after, block.size = rest, nbytes
        block.mapped = True
        self._merge(block)
        self._cache(block)

    def _merge(self, block: Block) -> None:
        first = self._first[id(block.pool)]
        super()._merge(block)
        if block.address == first.address:
            self._first[id(block.pool)] = block

    def empty_cache(self) -> None:
        """Unmap the whole pages within free blocks (unmap_block)."""
        for pool in self.pools.values():
            page = SMALL_BUFFER if pool.small else LARGE_BUFFER
            for _, _, block in list(pool):
                base = self._first[id(pool)].address
                start = base + round_up(block.address - base, page)
                end = base + (block.address + block.size - base) // page * page
                if end > start:
                    self._uncache(block)
                    self._unmap(block, start, end)

    def _unmap(self, block: Block, start: int, end: int) -> None:
        self.reserved -= end - start
        cuts = [(block.address, start, True), (start, end, False), (end, block.address + block.size, True)]
        pieces = [Block(a, b - a, block.pool, mapped=mapped) for a, b, mapped in cuts if b > a]
        for left, right in zip([block.before, *pieces], [*pieces, block.after], strict=True):
            if left:
                left.after = right
            if right:
                right.before = left
        for piece in pieces:
            if piece.mapped:
                self._cache(piece)
        if block.before is None:
            self._first[id(block.pool)] = pieces[0]


def _growable(block: Block) -> int:
    return block.size + (block.after.size if block.after and not block.after.mapped else 0)


def _free_space(block: Block | None, enough: int) -> int:
    """Bytes of `block` and the free or unmapped ones behind it, counted until there are `enough`."""
    nbytes = 0
    while block and not block.allocated and nbytes < enough:
        nbytes, block = nbytes + block.size, block.after
    return nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What the allocator came to: bytes; `retries` counts returns of cached segments, `out_of_memory_at` the event that found no room."""

    max_allocated: int
    max_reserved: int
    retries: int
    out_of_memory_at: int | None


def replay(events: Iterable[Event], *, capacity: int | None = None, expandable: bool = False) -> Replay:
    """Replay `events` in their order; stops at the first allocation for which a device of `capacity` bytes has no room.

    >>> mib = 1 << 20
    >>> replay([(ALLOC, 0, 30 * mib), (ALLOC, 1, 30 * mib), (FREE, 0, 0), (ALLOC, 2, 10 * mib), (ALLOC, 3, 25 * mib)]).max_reserved // mib
    86
    """
    allocator = ExpandableAllocator(capacity) if expandable else Allocator(capacity)
    stopped = None
    for at, (kind, number, nbytes) in enumerate(events):
        if kind % STREAM == ALLOC:
            try:
                allocator.malloc(number, nbytes, kind // STREAM)
            except OutOfMemory:
                stopped = at
                break
        elif kind == FREE:
            allocator.free(number)
    return Replay(
        max_allocated=allocator.max_allocated,
        max_reserved=allocator.max_reserved,
        retries=allocator.retries,
        out_of_memory_at=stopped,
    )
