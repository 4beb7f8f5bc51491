"""SGLang's drafts: EAGLE, EAGLE-3, the model's own MTP layers, another model (standalone), or n-grams.

A draft's weights and its cache, of as many tokens as the model's pool, come after the pools and out of what mem_fraction_static leaves; the
default leaves more for them. Both pools have places for tokens that are drafted and verified at once, beyond the fraction. What it does not
know: the graphs of drafting, `--speculative-num-steps` and its like, token maps, drafts beside recurrent states and in pipelines.
Source: SGLang 0.5.6 server_args.py (_handle_speculative_decoding, auto_choose_speculative_params, _handle_gpu_memory_settings),
model_runner.py (init_memory_pool), speculative/eagle_worker.py, speculative/standalone_worker.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import Unknown
from ..formats import weights_nbytes
from ..kernels import Kernels
from ..ledger import Item
from ..scenario import NGRAM
from ..units import MiB
from .drafts import draft, own_layers, passed
from .eagle import generation
from .job import Job
from .lines import SERVING, counted, item_of_share
from .ranks import Ranks, ranks
from .sglang_pools import RUNNING, Pools, pools

REQUESTS = 48
"""`max_running_requests` while drafting, where it isn't given."""
FEW = ("DeepseekV32ForCausalLM", "DeepseekV3ForCausalLM", "DeepseekV2ForCausalLM", "GptOssForCausalLM", "BailingMoeForCausalLM")
"""Architectures that draft 3 steps of one candidate and verify 4 tokens; others draft 5 of 4 and verify 8."""
RESERVED, RESERVED_STANDALONE = 2048 * MiB, 6144 * MiB
"""What the default of mem_fraction_static leaves for a draft and its graphs."""
VERIFIED = 12
"""Tokens that n-grams propose: `speculative_ngram_max_match_window_size`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafting:
    """A draft's weights on a rank, bytes of its cache a token, tokens drafted and verified at once for a request, and the reserve."""

    weights: list[Item]
    cell: int
    places: int
    verified: int
    reserve: int

    def headroom(self, requests: int) -> int:
        """Tokens that both pools have beyond their size."""
        return requests * self.places + 100 if self.places else 0

    def items(self, tokens: int, requests: int, own: Pools) -> list[Item]:
        """What runs beside the model's `own` pools of `tokens` tokens."""
        more = self.headroom(requests)
        if not more:
            return []
        source = "SGLang 0.5.6 model_executor/model_runner.py init_memory_pool"
        why = f"{counted(tokens + more, 'token')} × {self.cell:,} B"
        return [
            *self.weights,
            Item(path=("kv cache", "draft"), nbytes=(tokens + more) * self.cell, alive=RUNNING, why=why, source=source),
            Item(
                path=("buffers", "drafted tokens"), nbytes=own.nbytes(more), alive=RUNNING,
                why=f"{counted(more, 'token')} drafted and verified at once", source=source,
            ),
        ]  # fmt: skip


NONE = Drafting(weights=[], cell=0, places=0, verified=0, reserve=0)


def drafting(job: Job, split: Ranks, tokens: int, kernels: Kernels) -> Drafting:
    """What the scenario's draft takes; NONE without one. Raises Unknown beside states and in pipelines, and as drafts.py."""
    named = job.scenario.draft_model
    if named is None:
        return NONE
    if len(split.stages) > 1:
        raise Unknown("draft_model with pipeline_parallel: not estimated for engine 'sglang' by this version")
    if any(cache.side == "state" for cache in split.tape.caches):
        raise Unknown("draft_model: beside recurrent states, not estimated for engine 'sglang' by this version")
    if named == NGRAM:
        return replace(NONE, verified=VERIFIED)
    helper = draft(job)
    if helper is not None:
        share = ranks(helper, passed(helper, tokens, kernels), "SGLang").stages[0]
        scheme, alone = helper.scheme, not generation(helper.model)
    else:
        share, scheme, alone = own_layers(job, split.stages[0]), job.scheme, False
    items = [item_of_share(part, SERVING, (helper or job).model.origin) for part in weights_nbytes(share.weights, scheme)]
    steps, candidates, verified = (3, 1, 4) if alone or _few(job) else (5, 4, 8)
    return Drafting(
        weights=[replace(item, path=("weights", "draft", *item.path[1:])) for item in items],
        cell=pools(helper or job, share).cell,
        places=steps * candidates + verified,
        verified=verified,
        reserve=RESERVED_STANDALONE if alone else RESERVED,
    )


def _few(job: Job) -> bool:
    named = job.model.config.get("architectures")
    return isinstance(named, list) and any(name in FEW for name in named)
