"""What a scenario asks of an objective: lengths, batch, reference, generation, with TRL's defaults and its own refusals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import gcd
from typing import TYPE_CHECKING

from ....errors import BadInput, Unknown
from ....kernels import Kernels
from ....methods import ADAPTERS, packed_as
from ....ops.balance import balance
from ....scenario import Scenario
from ....tape import Tape
from ...job import Job
from . import TRL, Objective, objective
from .grpo import GROUP
from .routers import balanced

if TYPE_CHECKING:
    from ..recipe import Framework, Recipe

KEYS = {"reference": "dpo, kto and grpo", "group_size": "grpo", "generation": "grpo"}
"""Keys that belong to some objectives only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """An objective in a scenario. A sequence of `length` tokens ends in `scored` ones; `group` and `generation` are GRPO's, else None."""

    objective: Objective
    batch: int
    passes: int
    length: int
    scored: int
    reference: str
    group: int | None
    generation: str | None

    @property
    def sequences(self) -> int:
        """Sequences of one pass."""
        return self.batch * self.objective.sequences

    @property
    def generated(self) -> int:
        """Sequences that are generated together: those of all passes of a step (TRL's `steps_per_generation`)."""
        return self.batch * self.passes

    @property
    def filled(self) -> Mapping[str, object]:
        """The scenario's keys with what they come to."""
        own = {"objective": self.objective.name, "micro_batch": self.batch, "output_length": self.scored, "reference": self.reference}
        return {**own, "group_size": self.group, "generation": self.generation} if self.group else own


def aimed(job: Job, framework: Framework, method: str) -> Goal | None:
    """What the scenario asks, None for plain training. Raises Unknown for other objectives, BadInput for what TRL refuses."""
    s, plain = job.scenario, job.scenario.objective in (None, "sft")
    for key, owners in KEYS.items():
        if getattr(s, key) is not None and (s.objective or "sft") not in owners:
            raise BadInput(f"{key}: objective {s.objective or 'sft'!r} has none; it is for {owners}")
    if plain:
        return None
    if not framework.objectives:
        raise Unknown(f"objective {s.objective!r}: estimated for engine 'transformers', as TRL {TRL} runs it, not for {framework.name!r}")
    aim = objective(str(s.objective))
    if aim.name == "orpo" and packed_as(method, s.quantization) and method in ADAPTERS:
        raise Unknown(
            f"method {method!r} with objective 'orpo': its trainer prepares the model and casts parts of it back; try lora, or dpo"
        )
    if s.images:
        raise Unknown(f"images with objective {aim.name!r}: only texts are estimated; leave images out")
    batch = s.micro_batch or aim.least
    if batch < aim.least:
        raise BadInput(
            f"micro_batch {batch}: TRL's {aim.name} trainer takes {aim.least} or more, as it compares the completions of a batch"
        )
    group = (s.group_size or GROUP) if aim.name == "grpo" else None
    whole = group // gcd(group, batch) if group else 1
    passes = s.gradient_accumulation or whole
    if passes % whole:
        raise BadInput(
            f"group_size {group}: a step's {batch * passes} completions (micro_batch × gradient_accumulation) are no whole groups, "
            f"which TRL refuses; set gradient_accumulation to {whole}"
        )
    length, scored = _lengths(job, aim)
    return Goal(
        objective=aim,
        batch=batch,
        passes=passes,
        length=length,
        scored=scored,
        reference=_reference(s, aim, method in ADAPTERS),
        group=group,
        generation=(s.generation or "in-process") if group else None,
    )


def _lengths(job: Job, aim: Objective) -> tuple[int, int]:
    """Tokens of a sequence and how many of them are scored: those of the completion; without a word on it, all but the first."""
    s, own = job.scenario, job.model.context_length
    output = s.output_length or aim.output
    both = s.prompt_length + output if s.prompt_length and output else None
    length = s.sequence_length or both or (2 * aim.output if aim.output else aim.length)
    if own and not (s.sequence_length or both):
        length = min(length, own)
    if own and length > own:
        raise BadInput(f"sequence_length {length:,}: beyond what {job.model.id} was made for, {own:,} tokens")
    if both and both > length:
        raise BadInput(f"prompt_length {s.prompt_length:,} and output_length {output:,}: more than sequence_length, {length:,} tokens")
    scored = output or length - (s.prompt_length or 1)
    if not 0 < scored < length:
        raise BadInput(f"sequence_length {length:,}: no room for a prompt and a completion of {max(scored, 0):,} tokens")
    return length, scored


def _reference(s: Scenario, aim: Objective, adapters: bool) -> str:
    allowed = aim.references[adapters]
    chosen = s.reference or allowed[0]
    if chosen not in allowed:
        how = "with adapters" if adapters else "in full training"
        raise BadInput(f"reference {chosen!r}: TRL's {aim.name} trainer takes {' or '.join(allowed)} {how}")
    return chosen


def trl(framework: Framework, goal: Goal, job: Job) -> Framework:
    """`framework` with the objective's loss and TRL's defaults.

    TRL 1.16: `trainer/base_config.py` checkpoints, and computes under autocast; most of its trainers switch dropout off (`disable_dropout`)
    and bring adapters over a quantised base to bf16 (`trainer/dpo_trainer.py`).
    """
    packed = packed_as("", job.scenario.quantization) or job.scenario.method == "qlora"

    def kernels(recipe: Recipe) -> Kernels:
        return replace(framework.kernels(recipe), dropout=goal.objective.dropout)

    def ends(tape: Tape, recipe: Recipe) -> None:
        goal.objective.end(tape, goal.scored)
        if goal.objective.balances and balanced(job.model.config, job.model.id):
            balance(tape)

    def assumes(recipe: Recipe) -> list[str]:
        lengths = f"of {goal.length:,} tokens each, the last {goal.scored:,} are the completion"
        lines = [*framework.assumes(recipe), f"{goal.objective.name} as TRL {TRL} runs it: {goal.objective.about}; {lengths}"]
        if goal.group:
            lines.append(f"{goal.generated} completions a step, {goal.group} for each prompt, generated together: {goal.generation}")
        return lines

    return replace(
        framework,
        kernels=kernels,
        losses={"plain": ends},
        loss="plain",
        checkpointing="full",
        encoders=False,
        adapter_dtype="bf16" if packed else framework.adapter_dtype,
        assumes=assumes,
    )
