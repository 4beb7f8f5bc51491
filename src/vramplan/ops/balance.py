"""What a mixture of experts adds to a loss, so that its routers use all experts alike (Fedus et al. 2021, arXiv:2101.03961)."""

from __future__ import annotations

from ..dim import Dim, numel
from ..tape import Tape
from ..tensors import Tensor


def balance(t: Tape) -> Tensor:
    """The balancing loss of all routers, added to a loss that is the tape's end: scores [b, s, experts] of each layer -> [1].

    Each layer's scores outlive it; their place is taken, as large, by their gradient, which backward makes before the layers' own.
    Their softmax, in fp32 under autocast, is kept; it is multiplied by the mask of padding (fp32), layer after layer. The choice of
    experts, a few numbers for each token, is left out.
    Source: transformers 5.23 `models/mixtral/modeling_mixtral.py` load_balancing_loss_func; TRL 1.16 `trainer/utils.py` add_fused_lm_head.
    """
    loss = t.ops[-1].writes[0]
    routers = {f"{op.name}.probabilities" for op in t.ops if any(weight.kind == "router" for weight in op.weights)}
    made, workspace, backward = [], 0, 0
    for op in t.ops:
        if op.name in routers:
            scores = op.reads[0].storage
            scores.pinned, op.pins = True, (scores,)
            size = 4 if t.autocast else scores.itemsize
            made.append(t.tensor("loss.router_probabilities", (Dim(op.repeats, "layers"), *scores.shape), size))
            workspace = max(workspace, numel(scores.shape) * 4 * (1 + (size < 4)))
            backward = max(backward, numel(scores.shape) * (4 + size))
    made.append(t.tensor("loss.mask", (t.sequences, t.tokens), 4))
    kept = tuple(made)
    return t.op("loss.balance", (loss,), loss.shape, itemsize=4, saves=kept, extra=kept, workspace=workspace, backward_workspace=backward)
