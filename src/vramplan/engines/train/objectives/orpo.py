"""Odds-ratio preference optimisation (Hong et al. 2024, arXiv:2403.07691): chosen and rejected in one pass, all logits, no reference."""

from __future__ import annotations

from ....ops.preference import odds_ratio
from .base import Objective

NAMES = ("orpo",)
OBJECTIVE = Objective(
    name="orpo",
    about="chosen and rejected in one pass; all logits, cross-entropy of the chosen, log-probabilities of both",
    source="TRL 1.16 experimental/orpo/orpo_trainer.py, concatenated_forward",
    sequences=2,
    end=lambda tape, scored: odds_ratio(tape),
    references={False: ("none",), True: ("none",)},
)
