"""Tensor parallelism: what a rank holds, against vLLM's and Megatron's own divisions."""

from __future__ import annotations

import pytest

from vramplan import BadInput
from vramplan.dim import Dim, numel
from vramplan.families import walk
from vramplan.parallel import expert_slices, tensor_parallel
from vramplan.parallel.tensor import part
from vramplan.sources import resolve
from vramplan.tape import Tape

MODELS = (
    "meta-llama/Llama-3.1-8B",
    "deepseek-ai/DeepSeek-V3",
    "Qwen/Qwen3-30B-A3B",
    "openai/gpt-oss-20b",
    "Qwen/Qwen3-Next-80B-A3B-Instruct",
    "nvidia/Nemotron-H-8B-Base-8K",
    "ibm-granite/granite-4.0-h-small",
    "MiniMaxAI/MiniMax-M2",
)
WHOLE = ("gate", "router", "layer", "shared_expert_gate", "q_a_proj", "kv_a_proj_with_mqa")
"""Matrices that every rank has whole: routers, and MLA's projections down (vLLM 0.21 ReplicatedLinear in models/deepseek_v2.py)."""


def tape(model: str) -> Tape:
    found = resolve(model)
    return walk(Tape(Dim(1, "sequences"), Dim(8, "tokens")), found.config, found.id)


@pytest.mark.parametrize("model", MODELS)
def test_one_rank_is_the_whole(model: str) -> None:
    whole = tape(model)
    assert tensor_parallel(whole, 1) is whole


@pytest.mark.parametrize("degree", [2, 4])
@pytest.mark.parametrize("model", MODELS)
def test_the_ranks_together_have_the_model(model: str, degree: int) -> None:
    """Each matrix is split exactly, but for copied kv heads, the padded vocabulary, and those that are whole on each rank."""
    whole = tape(model)
    for before, after in zip(whole.weights, tensor_parallel(whole, degree).weights, strict=True):
        module = before.name.removesuffix(".weight").rpartition(".")[2]
        if len(before.shape) < 2 or before.shape == after.shape:
            assert len(before.shape) < 2 or module in WHOLE or before.kind == "router", before.name
            continue
        copied = before.kind in ("embed", "head") or module.startswith(("k_", "v_", "qkv", "in_proj", "conv1d"))
        assert numel(after.shape) * degree == numel(before.shape) or copied, before.name


def test_kv_heads_are_copied_where_there_are_fewer_than_ranks() -> None:
    heads, kv_heads, head_dim = Dim(32, "heads"), Dim(8, "kv_heads"), Dim(128, "head_dim")
    assert part(kv_heads * head_dim, 16) == 128
    assert part((heads + 2 * kv_heads) * head_dim, 16) == (2 + 2) * 128


def test_the_cache_of_a_rank() -> None:
    """Llama's eight kv heads split; MLA's latent, which all heads share, is whole on every rank."""
    llama, deepseek = (tensor_parallel(tape(model), 8).caches for model in MODELS[:2])
    assert {numel(cache.shape) for cache in llama} == {128}
    assert {numel(cache.shape) for cache in deepseek} == {numel(cache.shape) for cache in tape(MODELS[1]).caches}


@pytest.mark.parametrize(("model", "degree"), [("tiiuae/falcon-7b", 2), ("microsoft/phi-4", 4)])
def test_heads_that_do_not_divide_are_told(model: str, degree: int) -> None:
    with pytest.raises(BadInput, match=f"tensor_parallel {degree}: .*heads"):
        tensor_parallel(tape(model), degree)


def test_a_vocabulary_that_does_not_divide_is_told() -> None:
    """Padded to a multiple of 64, then split: `divide` in vLLM 0.21 vocab_parallel_embedding.py."""
    assert part(Dim(151_936, "vocab"), 2) == 75_968
    with pytest.raises(BadInput, match="the vocabulary, 151,936 padded to 151,936, does not divide"):
        part(Dim(151_936, "vocab"), 5)


def test_slices_of_experts_over_all_replicas() -> None:
    """Without expert parallelism two replicas of two ranks have a quarter of each expert, and half of the rest."""
    whole = tape("Qwen/Qwen3-30B-A3B")
    mine = expert_slices(tensor_parallel(whole, 2), whole, 4)
    shares = {before.kind: numel(before.shape) // numel(after.shape) for before, after in zip(whole.weights, mine.weights, strict=True)}
    assert (shares["experts"], shares["head"], shares["router"]) == (4, 2, 1)
