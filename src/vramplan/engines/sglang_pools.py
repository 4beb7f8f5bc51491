"""SGLang's pools of a rank: places for tokens, a second pool for windows, slots for recurrent states, and how bytes are shared out.

Source: `get_cell_size_per_token`, `handle_max_mamba_cache`, `set_num_tokens_hybrid_swa` in model_runner.py of SGLang 0.5.6 (later
model_runner_kv_cache_mixin.py). What it does not know: pages of more than one token, fp4 caches, caches compressed in steps (DeepSeek-V4).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from ..ledger import Item, Moment
from ..tape import Tape
from ..tensors import Cache
from .job import Job
from .lines import cache_nbytes, counted, kv_type, text_caches
from .sparse import is_sparse, sparse_token

TWO_POOLS = ("Llama4ForConditionalGeneration", "GptOssForCausalLM", "MiMoV2FlashForCausalLM", "Step3p5ForCausalLM")
"""Architectures whose windows have a pool of their own; others keep all tokens in all layers. `is_hybrid_swa_model`, model_config.py."""
WINDOW_SHARE = 0.8
"""Tokens in the pool of windows for each token of the other: `swa_full_tokens_ratio`."""
STATE_SHARE = 0.9
"""Bytes of states for each byte of cache: `mamba_full_memory_ratio`."""
SLOTS = 3
"""Slots for states that a running request needs while prefixes are cached: MAMBA_CACHE_SIZE_MAX_RUNNING_REQUESTS_RATIO."""
RUNNING = frozenset({Moment.PREFILL, Moment.DECODE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Pools:
    """The caches of a rank with what they take: bytes a token (`full`, and `window` in a pool of its own), bytes a slot (`state`)."""

    full: list[tuple[Cache, int]]
    window: list[tuple[Cache, int]]
    state: list[tuple[Cache, int]]

    @property
    def cell(self) -> int:
        """Bytes of one token in every layer."""
        return sum(nbytes for _, nbytes in [*self.full, *self.window])

    @property
    def slot(self) -> int:
        """Bytes of one sequence's state in every layer."""
        return sum(nbytes for _, nbytes in self.state)

    def nbytes(self, tokens: int) -> int:
        """Bytes of the pools of `tokens` tokens; a pool of windows holds 0.8 for each."""
        return sum(nbytes for _, nbytes in self.full) * tokens + sum(nbytes for _, nbytes in self.window) * int(WINDOW_SHARE * tokens)

    def size(self, rest: int, slots: int) -> int:
        """Tokens that `rest` bytes hold beside `slots` states: any number where no layer keeps tokens."""
        left = rest - slots * self.slot
        share = sum(nbytes for _, nbytes in self.full) + WINDOW_SHARE * sum(nbytes for _, nbytes in self.window)
        return max(int(left / share), 0) if share else 1 << 62

    def slots(self, rest: int) -> int:
        """States that get their share of `rest` bytes."""
        return max(int(rest * STATE_SHARE / (1 + STATE_SHARE) // self.slot), 0) if self.slot else 0

    def request(self, context: int) -> list[Item]:
        """What the pools must have for one sequence of `context` tokens: its tokens, and the states that they get beside these."""
        kinds = [("full attention", context, self.full), ("window", int(WINDOW_SHARE * context), self.window)]
        source = "SGLang 0.5.6 get_cell_size_per_token"
        items = [
            _item(kind, cache, tokens * nbytes, f"{tokens:,} tokens × {nbytes:,} B", source)
            for kind, tokens, caches in kinds
            for cache, nbytes in caches
        ]
        if self.slot:
            slots, beside = self._slots_for(self.nbytes(context))
            source = "SGLang 0.5.6 handle_max_mamba_cache"
            items += [
                _item(
                    "state", cache, beside * nbytes // self.slot, f"{counted(slots, 'slot')} × {nbytes:,} B and what no slot fills", source
                )
                for cache, nbytes in self.state
            ]
        return items

    def _slots_for(self, tokens: int) -> tuple[int, int]:
        """Slots, and the bytes beside the `tokens` bytes of a sequence, of the fewest bytes that hold both.

        Bytes from 19/9 · k slots' worth on give k slots, at least 3, and the rest to tokens: the least k with tokens + k < 19/9 · (k + 1).
        """
        share = STATE_SHARE / (1 + STATE_SHARE)
        slots = max(SLOTS, int((tokens / self.slot * share - 1) / (1 - share)) + 1)
        return slots, max(ceil(slots * self.slot / share) - tokens, slots * self.slot)


def _item(kind: str, cache: Cache, nbytes: int, why: str, source: str) -> Item:
    why = f"{why} of {counted(len(cache.layers), 'layer')}"
    return Item(path=("kv cache", kind, cache.name), nbytes=nbytes, alive=RUNNING, why=why, source=source)


def pools(job: Job, tape: Tape) -> Pools:
    """The caches by pool."""
    caches = text_caches(tape)
    attention = [cache for cache in caches if cache.side != "state"]
    named = job.model.config.get("architectures")
    apart = isinstance(named, list) and any(name in TWO_POOLS for name in named)
    sparse = is_sparse(attention)
    sizes = [(cache, _cell(cache, job, sparse) * len(cache.layers)) for cache in attention]
    states = [
        (cache, cache_nbytes(cache, 1, "bf16" if cache.name == "conv state" else "fp32")) for cache in caches if cache.side == "state"
    ]
    return Pools(
        full=[pair for pair in sizes if pair[0].window is None or not apart],
        window=[pair for pair in sizes if pair[0].window is not None and apart],
        state=states,
    )


def _cell(cache: Cache, job: Job, sparse: bool) -> int:
    """Bytes of a token in one layer."""
    nbytes = cache_nbytes(cache, 1, kv_type(job.scenario.kv_dtype, cache.side, job.dtype)) // len(cache.layers)
    return sparse_token(job, cache, nbytes) if sparse else nbytes
