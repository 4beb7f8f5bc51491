"""Reward modelling (Stiennon et al. 2020, arXiv:2009.01325): chosen and rejected in one pass of a model with a score for its head."""

from __future__ import annotations

from ....ops.preference import score
from .base import Objective

NAMES = ("reward",)
OBJECTIVE = Objective(
    name="reward",
    about="chosen and rejected in one pass; one score for each, no logits",
    source="TRL 1.16 trainer/reward_trainer.py, compute_loss",
    sequences=2,
    end=lambda tape, scored: score(tape),
    references={False: ("none",), True: ("none",)},
)
