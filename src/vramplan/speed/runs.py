"""What speed comes to: the time and the price of so many tokens, and what more users at once cost each of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import BadInput, Unknown
from .answer import told
from .efficiency import efficiency
from .serving import decode, lengths, prefill

if TYPE_CHECKING:
    from ..estimate import Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The `seconds` that `tokens` take, `between` which they lie for 80 % of the class's rows, and `usd` for them."""

    tokens: int
    seconds: float
    between: tuple[float, float]
    usd: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """So many `sequences` at once: tokens per second in `total` and `each`; all sent together, seconds to the last one's `first_token`."""

    sequences: int
    total: float
    each: float
    first_token: float


def run(estimate: Estimate, *, tokens: int, price: float | None = None) -> Run:
    """Time and money for `tokens`: trained on, or generated; `price` is US dollars an hour of one GPU.

    Of N examples in E epochs those are N · E · sequence_length where they are packed or padded to it. Raises BadInput for no tokens or a
    negative price, Unknown where the speed is not known.
    """
    if tokens < 1 or (price is not None and price < 0):
        raise BadInput(f"tokens {tokens}, price {price}: tokens must be 1 or more, and a price not negative")
    found = told(estimate)
    rate = found.tokens or found.decode or found.prefill
    if not rate:
        raise Unknown("no tokens per second are known")
    seconds = tokens / rate
    low, high = (seconds * found.efficiency / share for share in found.spread)
    gpus = sum(share.count for share in estimate.shares)
    return Run(tokens=tokens, seconds=seconds, between=(high, low), usd=None if price is None else seconds / 3600 * price * gpus)


def concurrency(estimate: Estimate) -> Iterator[Served]:
    """Serving at 1, 2, 4 … up to the scenario's sequences. Raises Unknown where the speed is not known, and for training."""
    if estimate.gpu is None or estimate.scenario.task == "train" or not estimate.tape.caches:
        raise Unknown("concurrency: of a model that generates, on a GPU")
    most, prompt, depth = lengths(estimate)
    fed, reached = efficiency(estimate, "prefill"), efficiency(estimate, "decode")
    for sequences in sorted({most, *(2**i for i in range(most.bit_length()))}):
        taken = decode(estimate, sequences, depth).seconds(reached.value, reached.launch)
        first = prefill(estimate, sequences, prompt).seconds(fed.value)
        yield Served(sequences=sequences, total=sequences / taken, each=1 / taken, first_token=first)
