"""Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv:2402.01306): single completions, against a reference.

Two more passes, of the policy and of the reference over other completions, give the KL term. Neither keeps anything: the first, before the
training pass, takes less than that, and the second as much as the reference's other one.
"""

from __future__ import annotations

from ....ops.fused_loss import trl
from .base import Objective

NAMES = ("kto",)
OBJECTIVE = Objective(
    name="kto",
    about="one completion for each prompt; log-probabilities by a fused head",
    source="TRL 1.16 trainer/kto_trainer.py, _compute_loss and _compute_kl_logps",
    sequences=1,
    end=trl,
    balances=True,
    references={False: ("model", "precomputed"), True: ("adapter-off", "model", "precomputed")},
    least=2,
)
