"""Vision-language models judged by their own code on fake tensors: a step's peak and what it consists of, and what a tower alone takes.

The models are those of the catalogue with fewer layers. Their code checks that tokens and features are equally many; `smart_resize` and
its like are transformers' own functions, cut out of its source, as their modules need torchvision.
"""

from __future__ import annotations

import ast
import copy
import inspect
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vramplan import estimate
from vramplan.catalog.models import find_model
from vramplan.dim import Dim
from vramplan.families import walk
from vramplan.families.vision_images import FAR, rounded, shrunk
from vramplan.kernels import Kernels
from vramplan.scenario import scenario
from vramplan.tape import Tape

torch = pytest.importorskip("torch")
for extra in ("transformers", "peft", "bitsandbytes"):
    pytest.importorskip(extra)
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

CUT: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2-VL-2B-Instruct": {"vision_config": {"depth": 3}},
    "Qwen/Qwen2.5-VL-3B-Instruct": {"vision_config": {"depth": 3, "fullatt_block_indexes": [1]}},
    "Qwen/Qwen3-VL-2B-Instruct": {"vision_config": {"depth": 3, "deepstack_visual_indexes": [0, 1]}},
    "google/gemma-3-4b-it": {"vision_config": {"num_hidden_layers": 3}},
    "google/paligemma-3b-pt-224": {"vision_config": {"num_hidden_layers": 3}},
    "llava-hf/llava-1.5-7b-hf": {"vision_config": {"num_hidden_layers": 3}},
    "mistral-community/pixtral-12b": {"vision_config": {"num_hidden_layers": 3}},
    "mistralai/Mistral-Small-3.1-24B-Instruct-2503": {"vision_config": {"num_hidden_layers": 3}},
    "meta-llama/Llama-3.2-11B-Vision-Instruct": {
        "text_config": {"cross_attention_layers": [1, 2]},
        "vision_config": {"num_hidden_layers": 3, "num_global_layers": 2, "intermediate_layers_indices": [0, 0, 1, 2, 2]},
    },
}


def cut(model: str, layers: int = 3) -> dict[str, Any]:
    """The model's config with a few layers in its tower and in its text model."""
    config: dict[str, Any] = copy.deepcopy(dict(find_model(model).config))
    config.setdefault("text_config", config)["num_hidden_layers"] = layers
    for part, keys in CUT[model].items():
        config[part].update(keys)
    if config["text_config"] is config:
        del config["text_config"]
    return config


LORA: dict[str, Any] = {"method": "lora", "lora": {"rank": 16}}
STEPS: list[tuple[str, dict[str, Any]]] = [
    ("Qwen/Qwen2.5-VL-3B-Instruct", {"method": "full", "images": 2, "image_size": "672x448"}),
    ("Qwen/Qwen2.5-VL-3B-Instruct", {**LORA, "images": 2, "image_size": "672x448", "checkpointing": "full", "tower": "frozen"}),
    ("Qwen/Qwen2-VL-2B-Instruct", {**LORA, "images": 2, "image_size": "672x448", "attention": "eager"}),
    ("Qwen/Qwen3-VL-2B-Instruct", {"method": "full", "images": 2, "image_size": "672x448", "checkpointing": "full"}),
    ("google/gemma-3-4b-it", {"method": "full", "images": 2, "micro_batch": 2}),
    ("google/gemma-3-4b-it", {**LORA, "images": 2, "tower": "frozen"}),
    ("google/gemma-3-4b-it", {"method": "full", "images": 2, "precision": "bf16-mixed", "tower": "projector"}),
    ("google/paligemma-3b-pt-224", {**LORA, "images": 2, "micro_batch": 2, "checkpointing": "full"}),
    ("llava-hf/llava-1.5-7b-hf", {"method": "full", "images": 1, "micro_batch": 2, "tower": "projector"}),
    ("llava-hf/llava-1.5-7b-hf", {"method": "qlora", "images": 1, "checkpointing": "full"}),
    ("mistral-community/pixtral-12b", {**LORA, "images": 2, "image_size": "330x200"}),
    ("mistralai/Mistral-Small-3.1-24B-Instruct-2503", {"method": "full", "images": 2, "image_size": "672x448", "tower": "frozen"}),
    ("meta-llama/Llama-3.2-11B-Vision-Instruct", {"method": "full", "images": 1}),
    ("meta-llama/Llama-3.2-11B-Vision-Instruct", {**LORA, "images": 1, "checkpointing": "full"}),
]
SAME = {"cast weights": "saved activations", **dict.fromkeys(("temporaries", "recomputed activations", "workspace"), "activations")}
"""What the trace tells apart and the estimate does not."""


def named(case: tuple[str, dict[str, Any]]) -> str:
    model, keys = case
    words = ("method", "precision", "tower", "attention", "checkpointing")
    return "-".join([model.rpartition("/")[2], *(str(keys[word]) for word in words if word in keys)])


@pytest.mark.parametrize(("model", "keys"), STEPS, ids=map(named, STEPS))
def test_a_step_with_images(model: str, keys: dict[str, Any]) -> None:
    from vramplan.trace import trace_scenario

    asked = scenario({"model": cut(model), "task": "train", "sequence_length": 768, "attention": "sdpa", **keys})
    traced, answer = trace_scenario(asked, loop="trainer").steady, estimate(asked)
    ours = answer.facts["peak_allocated"]
    assert abs(ours / traced.nbytes - 1) <= 0.01, f"{ours:,} against {traced.nbytes:,}"
    moment, parts = answer.peak[0], Counter[str]()
    for item in answer.ledger.items:
        if moment in item.alive:
            parts[SAME.get(item.path[0], item.path[0])] += item.nbytes
    for name, nbytes in traced.categories.items():
        parts[SAME.get(name, name)] -= nbytes
    parts.pop("cuda context")
    assert all(abs(difference) <= 0.02 * traced.nbytes for difference in parts.values()), dict(parts)


NEXT: list[dict[str, Any]] = [
    {"method": "full"},
    {**LORA, "micro_batch": 2, "image_size": "480x640", "tower": "frozen"},
    {"method": "full", "micro_batch": 2, "image_size": "300x900", "checkpointing": "full"},
    {**LORA, "precision": "bf16-mixed"},
    {"method": "full", "attention": "eager", "image_size": "200x300"},
]


@pytest.mark.parametrize("keys", NEXT, ids=[named(("", keys)) for keys in NEXT])
def test_llava_next_and_its_tiles(keys: dict[str, Any]) -> None:
    from vramplan.trace import trace_scenario

    config = {**cut("llava-hf/llava-1.5-7b-hf"), "model_type": "llava_next", "architectures": ["LlavaNextForConditionalGeneration"]}
    asked = scenario(
        {"model": config, "task": "train", "sequence_length": 3072, "attention": "sdpa", "optimizer": "sgd", "images": 1, **keys}
    )
    traced = trace_scenario(asked, loop="trainer").steady.nbytes
    assert abs(estimate(asked).facts["peak_allocated"] / traced - 1) <= 0.0005


def test_the_texts_gradient_waits_while_the_tower_runs_backward() -> None:
    """The peak is in the tower, whose layers are widened: the embeddings' gradient, 64 MiB, is there until theirs is made."""
    from vramplan.trace import trace_scenario

    config = cut("llava-hf/llava-1.5-7b-hf", 1)
    config["text_config"].update(vocab_size=64, intermediate_size=256, pad_token_id=0)
    config["vision_config"]["intermediate_size"] = 131072
    config.update(image_token_index=5, pad_token_id=0)
    keys = {"method": "full", "images": 1, "micro_batch": 4, "sequence_length": 2048, "optimizer": "sgd", "checkpointing": "full"}
    asked = scenario({"model": config, "task": "train", "attention": "sdpa", **keys})
    traced, answer = trace_scenario(asked, loop="trainer").steady, estimate(asked)
    assert any("vision_tower" in item.why for item in answer.ledger.items if answer.peak[0] in item.alive)
    assert abs(answer.facts["peak_allocated"] - traced.nbytes) <= 1 << 20


# ---- a tower alone ---------------------------------------------------------------------------------------------------
TOWERS = [
    ("llava-hf/llava-1.5-7b-hf", None, 0.0),
    ("google/gemma-3-4b-it", None, 0.0),
    ("google/paligemma-3b-pt-224", None, 0.0),
    ("Qwen/Qwen2-VL-2B-Instruct", (448, 672), 0.002),
    ("Qwen/Qwen2.5-VL-3B-Instruct", (448, 672), 0.002),
    ("Qwen/Qwen3-VL-2B-Instruct", (448, 672), 0.002),
    ("mistral-community/pixtral-12b", (448, 672), 0.002),
    ("mistralai/Mistral-Small-3.1-24B-Instruct-2503", (448, 672), 0.002),
]
"""With sizes in pixels, how far the indices and ranges that the tape leaves out may make a difference."""


@pytest.mark.parametrize(("model", "size", "tolerance"), TOWERS, ids=[model.rpartition("/")[2] for model, *_ in TOWERS])
def test_the_most_that_a_tower_takes(model: str, size: tuple[int, int] | None, tolerance: float) -> None:
    """Without gradients, as in serving: the pixels, and what `get_image_features` makes of three images."""
    tape = Tape(Dim(1), Dim(8192), kernels=Kernels())
    tape.images, tape.image_size = 3, size
    ours = walk(tape, cut(model)).peak("vision")[0]
    assert abs(ours / traced_tower(cut(model), size) - 1) <= tolerance


def traced_tower(config: dict[str, Any], size: tuple[int, int] | None) -> int:
    from vramplan.trace.environment import modules, on_gpu
    from vramplan.trace.images import inputs
    from vramplan.trace.models import build
    from vramplan.trace.recipe import DEFAULT_GPU, Recipe
    from vramplan.trace.step import adopt
    from vramplan.trace.values import Values

    recipe = Recipe(config=config, images=3, image_size=size, sequence_length=8192)
    with on_gpu(*DEFAULT_GPU) as recorder:
        model = build(recipe).eval()
        recorder.mark("load")
        adopt(recorder, model)
        recorder.values, recorder.paused = Values(), False
        recorder.mark("forward")
        with modules(recorder), torch.no_grad():
            features = model.model.get_image_features
            wanted = inspect.signature(features).parameters
            features(**{name: given for name, given in inputs(recorder, recipe, model).items() if name in wanted})
        categories = recorder.result("tower").peak_of(0, "forward").categories
    return sum(nbytes for name, nbytes in categories.items() if name not in ("weights", "workspace"))


# ---- transformers' own functions ---------------------------------------------------------------------------------------
def cut_out(path: str, *names: str, **known: Any) -> Any:
    """Functions of transformers' source, run by themselves; the last one's."""
    import transformers

    tree = ast.parse((Path(transformers.__file__).parent / path).read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names]
    for function in functions:
        for argument in function.args.args:
            argument.annotation = None
    scope: dict[str, Any] = {"math": math, **known}
    exec(compile(ast.Module(body=functions, type_ignores=[]), path, "exec"), scope)
    return scope[names[-1]]


sides = st.integers(1, 20_000)


@settings(max_examples=500, deadline=None)
@given(sides, sides, st.sampled_from([(28, 56 * 56, 16384 * 28 * 28), (32, 256 * 256, 4096 * 4096)]))
def test_sizes_are_rounded_as_smart_resize_does(height: int, width: int, rule: tuple[int, int, int]) -> None:
    if max(height, width) <= FAR * min(height, width):
        theirs = cut_out("models/qwen2_vl/image_processing_qwen2_vl.py", "smart_resize")
        assert rounded((height, width), *rule) == theirs(height, width, *rule)


@settings(max_examples=500, deadline=None)
@given(sides, sides)
def test_sizes_are_shrunk_as_pixtral_does(height: int, width: int) -> None:
    names = ("_num_image_tokens", "get_resize_output_image_size")
    theirs = cut_out("models/pixtral/image_processing_pixtral.py", *names, get_image_size=lambda image, _: image)
    assert shrunk((height, width), 28, 1540) == theirs((height, width), (1540, 1540), (28, 28))
