"""Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290): chosen and rejected in one pass, against a reference.

The reference's pass comes after the policy's and before its backward pass, so that what the policy saved is there too.
"""

from __future__ import annotations

from ....ops.fused_loss import trl
from .base import Objective

NAMES = ("dpo",)
OBJECTIVE = Objective(
    name="dpo",
    about="chosen and rejected in one pass; log-probabilities of the completions by a fused head",
    source="TRL 1.16 trainer/dpo_trainer.py, _compute_loss",
    sequences=2,
    end=trl,
    balances=True,
    references={False: ("model", "precomputed"), True: ("adapter-off", "model", "precomputed")},
)
