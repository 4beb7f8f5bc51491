"""Lightning indexers: cheap scores that pick the keys (or blocks of keys) to which sparse attention then attends."""

from __future__ import annotations

from ..dim import Dim, numel
from ..tape import Tape
from ..tensors import Tensor


def index_scores(t: Tape, q: Tensor, k: Tensor, weights: Tensor | None, *, heads: Dim, keys: int, name: str = "indexer") -> Tensor:
    """Σ_h w_h · relu(q_h kᵀ): q [b, s, heads·d], k [b, keys, d] (this pass and the cache), weights [b, s, heads] -> [b, s, keys] in fp32.

    Without weights the heads' scores stay apart, [b, heads, s, keys] (MiniMax-M3's). transformers 5.23 (`DeepseekV32Indexer.forward`,
    `models/deepseek_v32`) makes them for each head in fp32, then their relu; serving engines' kernels (`fp8_mqa_logits` of DeepGEMM)
    write the sum only. FLOPs: 2 · b · heads · s · keys · d (DeepSeek-AI 2025, DeepSeek-V3.2-Exp, equation 1). Nothing is kept for backward:
    the choice is made without gradients.
    """
    b, s, d = q.shape[0], q.shape[1], q.shape[-1] // heads
    each, out = (b, heads, s, keys), (b, s, keys) if weights else (b, heads, s, keys)
    flops = 2 * numel(each) * int(d)
    reads = (q, k) if weights is None else (q, k, weights)
    if t.kernels.mla == "absorbed" or weights is None:
        return t.op(f"{name}.scores", reads, out, itemsize=4, flops=flops)
    scores = t.op(f"{name}.head_scores", (q, k), each, itemsize=4, flops=flops)
    relu = t.op(f"{name}.relu", (scores,), each, itemsize=4)
    return t.op(f"{name}.scores", (relu, weights), out, itemsize=4, flops=2 * numel(each))
