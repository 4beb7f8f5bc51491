"""Megatron's selective recomputation: parts of a layer whose tensors go after the forward pass, and are made again for the backward pass.

`core_attn`, `mlp`, `moe` and `shared_experts` keep what they start from; `layernorm`, `moe_act` and `mla_up_proj` are cheap enough that
what they make goes too (Megatron-Core 0.19 `core/tensor_parallel/random.py`, CheckpointWithoutOutput;
`core/transformer/transformer_config.py`, recompute_modules).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...tape import Tape
from ...tensors import Op

PARTS = {
    "core_attn": r"\.attention$",
    "layernorm": r"layers\.\{i\}\.[^.]*norm[^.]*$",
    "mla_up_proj": r"\.(kv_b_proj|q_proj|q_b_proj|q|k|q\.rope|k\.rope|attention\.[kv]\.dense)$",
    "moe_act": r"\.experts\.act$",
    "mlp": r"\.mlp\.(gate_up|act_and_mul|act_fn|fc1|up_proj|down_proj)$",
    "moe": r"\.(experts|shared_experts?|gate|block_sparse_moe)\.",
    "shared_experts": r"\.shared_experts?\.",
}
"""Which ops belong to a part, by their names."""
OUTPUTS_TOO = ("layernorm", "mla_up_proj", "moe_act")


def recomputed(tape: Tape, parts: Sequence[str]) -> Tape:
    """The tape where backward keeps nothing that `parts` make inside; the first op that needs it makes all of it again for a moment."""
    for name in parts:
        pattern = re.compile(PARTS[name])
        regions: dict[int, list[Op]] = {}
        for op in tape.ops:
            if op.in_layers and pattern.search(op.name):
                regions.setdefault(op.region, []).append(op)
        for ops in regions.values():
            _drop(tape, ops, name in OUTPUTS_TOO)
    return tape


def _drop(tape: Tape, ops: Sequence[Op], outputs: bool) -> None:
    """What `ops` make and hand to each other is not kept, nor, with `outputs`, what they hand on; the last of them makes it again."""
    here = {id(op) for op in ops}
    made = {id(t.storage): t.storage for op in ops for t in op.writes if t.storage.saved}
    if not outputs:
        for op in tape.ops:
            for t in op.keeps if id(op) not in here else ():
                made.pop(id(t.storage), None)
    needing = [op for op in tape.ops if any(id(t.storage) in made for t in op.keeps)]
    for op in needing:
        op.keeps = tuple(t for t in op.keeps if id(t.storage) not in made)
    for t in made.values():
        t.saved = 0
    if needing:
        needing[-1].backward_workspace += sum(t.nbytes for t in made.values())
