"""What people say about memory, against our estimate: `data/claims.toml` read, measured, judged, and written as the page docs/claims.md.

A claim has cases. Each is a scenario with a quantity, and the range that the claim gives it; whether it holds is measured, never written
down. The verdict follows: `true` where every case holds, `false` where none does, else `depends`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vramplan import Estimate, estimate, inspect
from vramplan.ledger import Moment
from vramplan.scenario import scenario
from vramplan.units import GB, gib, parse_size

SAID = {"true": "True", "depends": "It depends", "false": "False"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One scenario: what it is, what the claim says of `quantity` (a range of sizes, either end open, or whether it fits), what we say."""

    what: str
    scenario: Mapping[str, Any]
    quantity: str
    claimed: tuple[str, str] | bool
    ours: str | bool

    def measure(self) -> int:
        """Our figure in bytes; for `fits` 1 or 0."""
        if self.quantity == "cache":
            return inspect(self.scenario["model"]).cache_nbytes(self.scenario["context_length"])
        answer = estimate(scenario(self.scenario))
        if self.quantity == "fits":
            return int(bool(answer.fits))
        if self.quantity == "saved":
            return answer.ledger.total("saved activations", moment=Moment.LOSS)
        return static(answer) if self.quantity == "static" else answer.quantities[self.quantity]

    def holds(self, measured: int) -> bool:
        """Whether `measured` is what the claim says."""
        if isinstance(self.claimed, bool):
            return bool(measured) == self.claimed
        low, high = self.claimed
        return (not low or parse_size(low) <= measured) and (not high or measured <= parse_size(high))

    @property
    def said(self) -> str:
        """The claim's figure, as the page prints it."""
        if isinstance(self.claimed, bool):
            return "fits" if self.claimed else "does not fit"
        low, high = self.claimed
        if low and high:
            return f"{low.removesuffix(' GB')} to {high}"
        return f"at least {low}" if low else f"at most {high}"

    def shown(self, measured: int) -> str:
        """Our figure, as the page prints it."""
        if self.quantity == "fits":
            return "fits" if measured else "does not fit"
        return f"{measured / GB:.2f} GB ({gib(measured)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What is said, who says it, our verdict and why."""

    says: str
    who: str
    verdict: str
    why: str
    cases: tuple[Case, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A way to hold a model: bytes per parameter of weights, gradients and optimizer states together, and of what the step adds."""

    name: str
    scenario: Mapping[str, Any]
    each: float
    step: float = 0.0


def static(answer: Estimate) -> int:
    """Bytes of weights, gradients and optimizer states when the optimizer steps."""
    return sum(answer.ledger.total(part, moment=Moment.STEP) for part in ("weights", "gradients", "optimizer states"))


def verdict(held: list[bool]) -> str:
    """What follows from the cases."""
    return "true" if all(held) else "depends" if any(held) else "false"


def read(path: Path) -> tuple[list[Claim], list[Recipe]]:
    """The claims and recipes of a file; a claim's scenario is shared by its cases."""
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    claims = []
    for claim in data["claim"]:
        shared = claim.pop("scenario", {})
        cases = [{"quantity": claim.get("quantity"), **case, "scenario": shared | case.get("scenario", {})} for case in claim.pop("case")]
        made = tuple(Case(**case | {"claimed": _range(case.get("claimed", claim.get("claimed")))}) for case in cases)
        claims.append(Claim(**{key: claim[key] for key in ("says", "who", "verdict", "why")}, cases=made))
    return claims, [Recipe(**recipe | {"scenario": data["recipes"] | recipe["scenario"]}) for recipe in data["recipe"]]


def _range(claimed: object) -> tuple[str, str] | bool:
    return claimed if isinstance(claimed, bool) else tuple(claimed)  # type: ignore[arg-type,return-value]


def page(path: Path, made: str) -> str:
    """docs/claims.md; `made` says that it is generated."""
    claims, recipes = read(path)
    listed, told = [], []
    for number, claim in enumerate(claims, 1):
        measured = [case.measure() for case in claim.cases]
        held = [case.holds(n) for case, n in zip(claim.cases, measured, strict=True)]
        said = SAID[verdict(held)]
        listed.append(f"| {number} | {claim.says} | {said} |\n")
        told.append(f"\n### {number}. {claim.says}\n\n**{said}.** Said by: {claim.who}.\n\n")
        told.append("| case | claimed | ours | holds |\n|---|---|---|---|\n")
        for case, n, holds in zip(claim.cases, measured, held, strict=True):
            told.append(f"| {case.what} | {case.said} | {case.shown(n)} | {'yes' if holds else 'no'} |\n")
        told.append(f"\n{claim.why.strip()}\n")
    return "".join([f"# Claims people repeat\n\n{made}{INTRO}", *listed, "\n", *_table(recipes), "\n## The claims\n", *told])


INTRO = """\
Numbers that go from page to page, each with scenarios that we evaluate when this page is made. GB are 10^9 bytes and GiB 2^30. *Process*
is what the GPU's tools show of one process: everything that torch allocates and the CUDA context. *Peak* is without the context.

| | claim | verdict |
|---|---|---|
"""


def _table(recipes: list[Recipe]) -> list[str]:
    """Bytes per parameter of a model, by recipe."""
    lines = [RULE]
    for recipe in recipes:
        answer = estimate(scenario(recipe.scenario))
        n = answer.quantities["parameters"]
        parts = [answer.ledger.total(part, moment=Moment.STEP) / n for part in ("weights", "gradients", "optimizer states")]
        step = answer.ledger.total("optimizer step", moment=Moment.STEP) / n
        cells = [f"{x:.2f}".rstrip("0").rstrip(".") for x in (*parts, sum(parts), step)]
        lines.append(f"| {recipe.name} | {' | '.join(cells)} | {sum(parts) * n / GB:.1f} GB |\n")
    return lines


RULE = """\
## Bytes per parameter

What does not depend on batch and length, of Llama-2-7B's 6,738,415,616 parameters (LoRA and QLoRA: rank 16 on all linear layers). Add
activations, and for the moment of the step what the optimizer makes and frees. Six calculators that were asked for one job (an 8B model,
full fine-tuning, AdamW, "bf16", 1 × 2,048 tokens, checkpointing) answered 56 to 161 GB: each took another line of this table without saying
which.

| recipe | weights | gradients | optimizer states | sum | + in the step | Llama-2-7B |
|---|---|---|---|---|---|---|
"""
