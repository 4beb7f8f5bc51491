"""Group-relative policy optimisation (Shao et al. 2024, arXiv:2402.03300): a step's completions are generated, then trained on.

The passes without gradients that score them, by the policy as it was and by a reference, come before the training pass, hold the same
sequences and keep nothing: they take less than it does. TRL compares with no reference unless `beta` is set.
"""

from __future__ import annotations

from ....ops.fused_loss import trl
from .base import Objective

NAMES = ("grpo",)
GROUP = 8
"""Generations for each prompt: TRL 1.16 `trainer/grpo_config.py` num_generations."""
OBJECTIVE = Objective(
    name="grpo",
    about="generated completions; their log-probabilities by a fused head",
    source="TRL 1.16 trainer/grpo_trainer.py, _compute_loss and _get_per_token_logps_and_entropies",
    sequences=1,
    end=trl,
    references={False: ("none", "model"), True: ("none", "adapter-off")},
    dropout=True,
    balances=True,
    output=512,
)
