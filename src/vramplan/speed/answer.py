"""What is answered about speed: tokens per second and seconds, each a roof at its class's fitted efficiency."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import Unknown
from .efficiency import Efficiency, efficiency
from .roof import Roof
from .serving import decode, lengths, prefill
from .training import step

if TYPE_CHECKING:
    from ..estimate import Estimate

DIGITS = 5
"""Significant digits of a figure: more than the fit deserves, few enough to be the same on every machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How fast an estimated scenario runs: tokens per second of all sequences and GPUs together, and seconds.

    `decode` of so many `sequences` at once (the scenario's, or the engine's default, or what its pool of cache holds), and of one `alone`;
    `prefill` and `first_token` of its prompt; `step` and `tokens` of a training step of all GPUs. `bound` is bandwidth, compute,
    interconnect or overhead; `efficiency` the share of the roofline that is reached, the median of `rows` measurements of the class
    `fitted_on`, with their 10th and 90th percentile as `spread`; `why` says how it comes about.
    """

    decode: float | None = None
    prefill: float | None = None
    alone: float | None = None
    first_token: float | None = None
    step: float | None = None
    tokens: float | None = None
    sequences: int = 1
    bound: str
    efficiency: float
    spread: tuple[float, float]
    rows: int
    fitted_on: str
    why: str

    @property
    def numbers(self) -> Mapping[str, float]:
        """Its figures under the names of the machine interface, rounded; those that there are."""
        named = {
            "decode_tokens_per_second": self.decode,
            "decode_tokens_per_second_per_sequence": self.decode and self.decode / self.sequences,
            "decode_tokens_per_second_alone": self.alone,
            "prefill_tokens_per_second": self.prefill,
            "time_to_first_token_s": self.first_token,
            "step_seconds": self.step,
            "training_tokens_per_second": self.tokens,
        }
        return {name: float(f"{value:.{DIGITS}g}") for name, value in named.items() if value is not None}


def speed(estimate: Estimate) -> Speed | None:
    """How fast `estimate` runs; None without a GPU, or where `told` raises a reason why its speed is not known."""
    try:
        return told(estimate)
    except Unknown:
        return None


def told(estimate: Estimate) -> Speed:
    """How fast `estimate` runs. Raises Unknown with the reason where that is not known."""
    if estimate.gpu is None:
        raise Unknown("no GPU named")
    if any(share.gpu != estimate.shares[0].gpu for share in estimate.shares[1:]):
        raise Unknown(f"gpu {estimate.scenario.gpu}: speed over GPUs of several kinds is not estimated by this version")
    return _training(estimate) if estimate.scenario.task == "train" else _serving(estimate)


def _serving(answer: Estimate) -> Speed:
    sequences, prompt, depth = lengths(answer)
    first_roof, fed = prefill(answer, 1, prompt), efficiency(answer, "prefill")
    first = first_roof.seconds(fed.value)
    if not answer.tape.caches:
        return _speed(first_roof, fed, f"{prompt:,} tokens", prefill=prompt / first)
    roof, reached = decode(answer, sequences, depth), efficiency(answer, "decode")
    what = f"{sequences} × 1 token after {depth:,}" if sequences > 1 else f"a token after {depth:,}"
    all_prompts = sequences * prompt / prefill(answer, sequences, prompt).seconds(fed.value)
    together, alone = (some.seconds(reached.value, reached.launch) for some in (roof, decode(answer, 1, depth)))
    figures = {"decode": sequences / together, "alone": 1 / alone, "prefill": all_prompts, "first_token": first}
    return _speed(roof, reached, what, sequences=sequences, **figures)


def _training(answer: Estimate) -> Speed:
    roof, tokens = step(answer)
    reached = efficiency(answer, "training")
    taken = roof.seconds(reached.value)
    return _speed(roof, reached, f"a step of {tokens:,} tokens", step=taken, tokens=tokens / taken)


def _speed(roof: Roof, reached: Efficiency, what: str, *, sequences: int = 1, **figures: float) -> Speed:
    low, high = reached.spread
    bound = roof.bound(reached.value, reached.launch)
    parts = {"memory": roof.bandwidth, "operations": roof.compute, "link": roof.link, "launches": roof.launches * reached.launch}
    took = ", ".join(f"{name} {seconds * 1e3:.3g} ms" for name, seconds in parts.items() if seconds)
    of = f"the median of {reached.rows} rows of {reached.name}, of which 80 % lie from {low:.0%} to {high:.0%}"
    return Speed(
        **figures,
        sequences=sequences,
        bound=bound,
        efficiency=reached.value,
        spread=reached.spread,
        rows=reached.rows,
        fitted_on=reached.name,
        why=f"{what} takes at the least {took}; {reached.value:.0%} of the roofline is reached, {of}",
    )
