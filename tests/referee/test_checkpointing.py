"""Checkpointing judged by torch's own: every layer, every second one, with attention's outputs kept.

A small Llama of transformers on fake tensors; torch.utils.checkpoint around its layers. Needs the extra `trace`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from vramplan.dim import Dim
from vramplan.families import walk
from vramplan.kernels import Kernels
from vramplan.methods import Full
from vramplan.ops.loss import cross_entropy
from vramplan.runs import Checkpointing
from vramplan.sweep import sweep
from vramplan.tape import Tape
from vramplan.tensors import Op

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

LLAMA = {
    "hidden_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "intermediate_size": 3584,
    "vocab_size": 2000,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
BATCH, TOKENS = 2, 2048


def attends(op: Op) -> bool:
    return op.name.endswith("self_attn.attention")


def keep_attention(_: Any, operator: Any, *args: Any, **kwargs: Any) -> Any:
    from torch.utils.checkpoint import CheckpointPolicy

    kept = operator is torch.ops.aten._scaled_dot_product_flash_attention.default
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def wrap(layer: Any, **keys: Any) -> None:
    from torch.utils.checkpoint import checkpoint

    layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, **keys)


def traced(kind: str) -> int:
    """Most bytes of one forward and backward pass, without kernels' workspaces."""
    from torch.utils.checkpoint import create_selective_checkpoint_contexts

    from vramplan.trace import recording

    with recording() as recorded:
        config = transformers.LlamaConfig(**LLAMA, attn_implementation="sdpa", use_cache=False)
        model = transformers.LlamaForCausalLM._from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").to("cuda").train()
        for number, layer in enumerate(model.model.layers):
            if kind == "selective":
                wrap(layer, context_fn=partial(create_selective_checkpoint_contexts, keep_attention))
            elif kind == "full" or (kind == "every second" and number % 2):
                wrap(layer)
        ids = torch.zeros(BATCH, TOKENS, dtype=torch.long, device="cuda")
        model(input_ids=ids, labels=ids).loss.backward()
    peak = recorded.trace.peak
    return peak.nbytes - peak.categories.get("workspace", 0)


def ours(checkpointing: Checkpointing | None) -> int:
    tape = Tape(Dim(BATCH, "batch"), Dim(TOKENS, "tokens"), kernels=Kernels(logits="all"))
    tape.method = Full()
    walk(tape, {"model_type": "llama", **LLAMA})
    cross_entropy(tape, tape.ops[-1].writes[0])
    for op in tape.ops:
        op.backward_workspace = 0
    swept = sweep(tape, gradient_itemsize=lambda weight: 2, checkpointing=checkpointing)
    return 2 * tape.parameters + max(swept.forward.nbytes, swept.backward.nbytes)


@pytest.mark.parametrize(
    ("kind", "checkpointing"),
    [
        ("none", None),
        ("full", Checkpointing()),
        ("every second", Checkpointing(every=2)),
        ("selective", Checkpointing(keeps=attends)),
    ],
)
def test_peak(kind: str, checkpointing: Checkpointing | None) -> None:
    assert ours(checkpointing) == pytest.approx(traced(kind), rel=0.01)
