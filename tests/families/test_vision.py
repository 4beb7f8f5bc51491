"""What models make of images: tokens, patches, what of a tower trains and is kept, and what is refused.

Tokens are those that the models' own papers or cards name: LLaVA-1.5 576 (arXiv:2310.03744, 336² pixels, 14² patches), Gemma 3 256
(arXiv:2503.19786, section 2.1), PaliGemma 256, 1,024 and 4,096 (arXiv:2407.07726), Qwen2-VL a token for each 28 × 28 pixels
(arXiv:2409.12191, section 2.1), Llama 3.2 Vision four tiles of 1,601 (config and code). The real models judge memory in tests/trace.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vramplan import BadInput, Unknown, estimate
from vramplan.catalog.models import find_model
from vramplan.dim import Dim
from vramplan.families import walk
from vramplan.families.vision_images import FAR, rounded, shrunk
from vramplan.kernels import Kernels
from vramplan.methods import Adapters, Full
from vramplan.runs import Checkpointing
from vramplan.sweep import sweep
from vramplan.tape import Tape

LLAVA, GEMMA, PIXTRAL = "llava-hf/llava-1.5-7b-hf", "google/gemma-3-4b-it", "mistral-community/pixtral-12b"
QWEN2, QWEN25, QWEN3 = "Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen3-VL-2B-Instruct"
MISTRAL, MLLAMA = "mistralai/Mistral-Small-3.1-24B-Instruct-2503", "meta-llama/Llama-3.2-11B-Vision-Instruct"
PALIGEMMA = "google/paligemma-3b-pt-224"
SEERS = (LLAVA, GEMMA, PIXTRAL, QWEN2, QWEN25, QWEN3, "Qwen/Qwen3.5-4B", MISTRAL, MLLAMA, PALIGEMMA)


def tape(model: str, *, images: int = 1, size: tuple[int, int] | None = None, tokens: int = 8192, batch: int = 1, **more: Any) -> Tape:
    made = Tape(Dim(batch, "batch"), Dim(tokens, "tokens"), 0, 2, Kernels(logits="all", **more.pop("kernels", {})))
    made.images, made.image_size, made.method = images, size, more.pop("method", None)
    config = {**find_model(model).config, **more}
    return walk(made, config)


@pytest.mark.parametrize(
    ("model", "size", "tokens", "grid"),
    [
        (LLAVA, None, 576, (24, 24)),
        (LLAVA, (200, 900), 576, (24, 24)),
        (GEMMA, None, 256, (64, 64)),
        (PALIGEMMA, None, 256, (16, 16)),
        (QWEN2, (28 * 30, 28 * 40), 1200, (60, 80)),
        (QWEN25, (1024, 1024), 37 * 37, (74, 74)),
        (QWEN25, (10_000, 10_000), 127 * 127, (254, 254)),
        (QWEN25, (20, 20), 4, (4, 4)),
        (QWEN3, (1024, 1024), 32 * 32, (64, 64)),
        (QWEN3, (64, 64), 64, (16, 16)),
        (PIXTRAL, None, 64 * 64, (64, 64)),
        (PIXTRAL, (512, 2048), 16 * 64, (16, 64)),
        (MISTRAL, None, 55 * 55, (110, 110)),
        (MLLAMA, None, 1, (40, 40)),
    ],
)
def test_tokens_of_an_image(model: str, size: tuple[int, int] | None, tokens: int, grid: tuple[int, int]) -> None:
    seen = tape(model, size=size, tokens=20_000).picture
    assert seen is not None
    assert (seen.tokens, seen.grid) == (tokens, grid)


def test_the_keys_and_values_of_llama_vision_are_four_tiles() -> None:
    caches = [cache for cache in tape(MLLAMA).caches if cache.name.startswith("image")]
    assert {cache.shape[0] for cache in caches} == {4 * (40 * 40 + 1)}


sides = st.integers(1, 20_000)


@given(sides, sides)
def test_rounded_sizes_are_multiples_within_their_bounds(height: int, width: int) -> None:
    if max(height, width) > FAR * min(height, width):
        with pytest.raises(BadInput):
            rounded((height, width), 28, 56 * 56, 1280 * 28 * 28)
        return
    tall, wide = rounded((height, width), 28, 56 * 56, 1280 * 28 * 28)
    assert tall % 28 == wide % 28 == 0 < min(tall, wide)
    assert 56 * 56 <= tall * wide <= 1280 * 28 * 28


@given(sides, sides)
def test_shrunk_sizes_are_multiples_and_not_beyond_the_longest(height: int, width: int) -> None:
    tall, wide = shrunk((height, width), 28, 1540)
    assert tall % 28 == wide % 28 == 0
    assert max(tall, wide) <= 1540


# ---- what trains, and what is kept ---------------------------------------------------------------------------------
def of_tower(made: Tape) -> int:
    """Bytes kept of what the vision tower's ops make."""
    within = made.towers["vision"]
    return sum(tensor.nbytes * tensor.saved for tensor in made.tensors if tensor.born in within and tensor.name != "image_mask")


@pytest.mark.parametrize("model", SEERS)
def test_a_frozen_tower_runs_and_keeps_nothing(model: str) -> None:
    made = tape(model, method=Full(towers="frozen"), tokens=2048, size=(448, 448))
    assert {weight.trained for weight in made.weights if weight.tower} == {False}
    kept = of_tower(made)
    if model == MLLAMA:  # what its cross-attention layers ask: their keys' and values' weights train
        states = 4 * 1601 * 4096 * 2
        kept -= states
    assert kept == 0
    assert made.peak("vision")[0] > 0


@pytest.mark.parametrize("model", SEERS)
def test_the_projector_alone(model: str) -> None:
    made = tape(model, method=Full(towers="projector"), tokens=2048, size=(448, 448))
    trained = {weight.part for weight in made.weights if weight.tower and weight.trained}
    assert trained == {"projector"}
    assert 0 < of_tower(made) < of_tower(tape(model, method=Full(), tokens=2048, size=(448, 448)))


@pytest.mark.parametrize("model", SEERS)
def test_text_only_is_as_if_there_were_no_tower(model: str) -> None:
    made = tape(model, images=0, method=Full(), tokens=512)
    assert made.picture is None
    assert made.towers == {}
    assert not any(weight.trained for weight in made.weights if weight.tower)
    assert made.parameters == tape(model, tokens=8192).parameters


def test_layers_of_which_nothing_comes_do_not_train() -> None:
    """LLaVA takes the states before CLIP's last layer, which runs all the same and gets no gradient."""
    made = tape(LLAVA, method=Full())
    idle = {weight.layers for weight in made.weights if ".encoder.layers." in weight.name and not weight.trained}
    assert idle == {(23,)}
    ops = [op for op in made.ops if op.name.startswith("vision_tower") and not op.writes[0].grad and op.in_layers]
    assert len(ops) == 14
    assert not any(op.keeps for op in ops)


def test_adapters_on_all_linear_layers_are_on_the_towers_too() -> None:
    """PEFT's all-linear takes every nn.Linear but the head: a block of Qwen2.5-VL's tower has five, its merger two."""
    adapters = {"rank": 16, "dtype": "fp32"}
    for towers, expected in (("trained", 7), ("projector", 2), ("frozen", 0)):
        made = tape(QWEN25, method=Adapters(**adapters, towers=towers), size=(448, 448))
        names = {weight.name for weight in made.weights if weight.part == "adapters" and weight.name.startswith("visual.")}
        assert len(names) == 2 * expected, towers


def test_checkpointing_over_a_tower_without_gradients_keeps_nothing_of_it() -> None:
    """Qwen3-VL's patches are not asked for gradients (its class names no input embeddings), those of Qwen2.5-VL are."""
    for model, kept in ((QWEN3, False), (QWEN25, True)):
        method = Adapters(rank=16, dtype="fp32", towers="frozen", checkpointing=True)
        made = tape(model, method=method, size=(448, 448), tokens=1024)
        swept = sweep(made, gradient_itemsize=lambda _: 2, checkpointing=Checkpointing())
        blocks = [run.kept for run, _ in swept.runs if run.ops[0].name.startswith(("visual.blocks", "model.visual.blocks"))]
        assert all(bool(kept_bytes) is kept for kept_bytes in blocks), model


@given(st.integers(1, 6), st.sampled_from([LLAVA, QWEN2, GEMMA]))
def test_more_images_take_more(images: int, model: str) -> None:
    less, more = (tape(model, images=n, size=(448, 448), method=Full(), tokens=4096) for n in (images, images + 1))
    assert less.saved_bytes < more.saved_bytes
    assert less.peak("vision")[0] < more.peak("vision")[0]


def test_the_tower_alone_can_be_asked_for_its_peak() -> None:
    """CLIP on one image of 577 patches of 1,024 in 16 bits: most is alive in quick_gelu, at 4 · 1,024 for each of three tensors a patch.

    That is fc1's output, 1.702 times it and the sigmoid; and held: the layer's input, the stream after attention and its norm; the fp32
    pixels, in 588 numbers for each of 576 patches.
    """
    peak, where = tape(LLAVA).peak("vision")
    wide, narrow, pixels = 577 * 4096 * 2, 577 * 1024 * 2, 576 * 588 * 4
    assert where.endswith("mlp.act_fn.sigmoid")
    stats = 577 * 2 * 4
    assert 0 <= peak - (3 * wide + 3 * narrow + pixels) <= 2 * stats + narrow
    assert tape(LLAVA, images=3).peak("vision")[0] == 3 * peak


# ---- through the front door ----------------------------------------------------------------------------------------
TRAIN: dict[str, Any] = {"task": "train", "sequence_length": 1024}


def test_the_answer_says_what_is_seen() -> None:
    answer = estimate(GEMMA, **TRAIN, images=2, tower="frozen")
    assert any(
        "2 images among each sequence's tokens: 64 × 64 patches, 256 tokens each; the tower is frozen" in s for s in answer.assumptions
    )
    assert any(s.startswith("text only") for s in estimate(GEMMA, **TRAIN).assumptions)


def test_a_trained_tower_takes_its_states_and_activations() -> None:
    frozen, trained = (estimate(LLAVA, **TRAIN, images=1, tower=tower) for tower in ("frozen", "trained"))
    idle = 12_596_224 + 2048  # the parameters of CLIP's last layer and of its last norm, to which no gradient comes
    tower = 303_507_456 + 4096 * 1025 + 4096 * 4097 - idle
    assert trained.facts["trainable_parameters"] - frozen.facts["trainable_parameters"] == tower
    states = {name: answer.ledger.total("optimizer states", moment=answer.peak[0]) for name, answer in (("f", frozen), ("t", trained))}
    tensors = 23 * 16 + 5 + 4  # each has a count of its steps too, in a block of 512 bytes
    assert states["t"] - states["f"] == 4 * tower + 512 * tensors


@pytest.mark.parametrize(
    ("model", "keys", "error", "words"),
    [
        ("meta-llama/Llama-3.2-1B", {"images": 1}, BadInput, "has no vision tower"),
        ("moonshotai/Kimi-K2.5", {"images": 1}, Unknown, "not estimated"),
        (GEMMA, {"images": 5}, BadInput, "256 tokens each, 1,280 together; a sequence has 1,024"),
        (GEMMA, {"image_size": "896"}, BadInput, "there are no images"),
        (GEMMA, {"images": 1, "engine": "litgpt"}, Unknown, "estimated for engine 'transformers' only"),
        (GEMMA, {"images": 1, "objective": "dpo"}, Unknown, "only texts are estimated"),
        (QWEN25, {"images": 1, "image_size": "28x6000"}, BadInput, "one side may be at most 200 times the other"),
        (QWEN25, {"images": 1, "image_size": "big"}, BadInput, "must be pixels"),
        (QWEN25, {"images": 1, "image_size": "0x10"}, BadInput, "must be from 1"),
        (QWEN25, {"images": -1}, BadInput, "must be an integer"),
        (QWEN25, {"images": 1, "tower": "warm"}, BadInput, "must be one of frozen, projector, trained"),
    ],
)
def test_what_cannot_be_seen_is_refused(model: str, keys: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)) as caught:
        estimate(model, **TRAIN, **keys)
    assert "\n" not in str(caught.value)


def test_images_in_serving_are_refused() -> None:
    with pytest.raises(Unknown, match="images"):
        estimate(GEMMA, images=1)


def test_wide_before_high() -> None:
    """A size is given as people write it, width first."""
    answer = estimate(QWEN25, **TRAIN, images=1, image_size="560x280")
    assert any("20 × 40 patches" in said for said in answer.assumptions)


def test_several_states_of_a_tower_are_refused_with_images_only() -> None:
    assert tape(LLAVA, images=0, vision_feature_layer=[-2, -5]).parameters
    with pytest.raises(Unknown, match="names 2 layers"):
        tape(LLAVA, vision_feature_layer=[-2, -5])
    with pytest.raises(BadInput, match="the tower's hidden states are 0 to 24"):
        tape(LLAVA, images=0, vision_feature_layer=99)
