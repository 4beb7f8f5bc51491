"""What an objective is: how its trainer in TRL differs from plain training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ....tape import Tape


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """One of TRL's trainers, by what of it takes memory.

    A pass holds `sequences` sequences for each of the micro-batch, which counts at least `least`. `end` notes what follows the model's last
    hidden states: on a tape that has walked the model, for so many scored tokens at the end of each sequence. `references` are what the
    policy may be compared with, by whether adapters train: the first is TRL's default. Only with `dropout` does the model's own stay on.
    One that `balances` adds a mixture's loss of its routers (`router_aux_loss_coef`).
    A scenario that names no lengths has `length` tokens, or with `output` as many scored ones after a prompt as long.
    """

    name: str
    about: str
    source: str
    sequences: int
    end: Callable[[Tape, int], object]
    references: Mapping[bool, tuple[str, ...]]
    least: int = 1
    dropout: bool = False
    balances: bool = False
    length: int = 1024
    output: int | None = None
