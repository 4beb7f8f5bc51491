"""Models that see an image as tiles, judged by transformers' own code: processors for how many, real steps on a CPU for what they take.

Real, as which tiles are padding is asked of the pixels, which a fake tensor does not have. Compared is what a step allocates beside the
weights, by PyTorch's profiler. The processors' functions are cut out of their source, as their modules need torchvision.
"""

from __future__ import annotations

import ast
import copy
import gc
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vramplan import estimate, scenario
from vramplan.dim import Dim
from vramplan.families import anyres, internvl, walk
from vramplan.families.config import Config
from vramplan.families.idefics3 import tiles
from vramplan.ledger import Moment
from vramplan.tape import Tape

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SMOLVLM: dict[str, Any] = {
    "model_type": "smolvlm",
    "scale_factor": 2,
    "image_token_id": 999,
    "text_config": {
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 1000,
        "max_position_embeddings": 4096,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "vision_config": {
        "hidden_size": 192,
        "image_size": 128,
        "patch_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 768,
    },
}
INTERNVL: dict[str, Any] = {
    "model_type": "internvl",
    "image_token_id": 999,
    "tie_word_embeddings": True,
    "text_config": {
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 2432,
        "num_hidden_layers": 3,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
    },
    "vision_config": {
        "model_type": "internvl_vision",
        "image_size": [448, 448],
        "patch_size": [14, 14],
        "num_hidden_layers": 3,
        "attention_bias": True,
    },
}
"""InternVL3-1B with fewer layers and a smaller vocabulary."""
NORMED = {
    **INTERNVL,
    "vision_config": {**INTERNVL["vision_config"], "use_qk_norm": True, "norm_type": "rms_norm", "use_mean_pooling": False},
}
MODELS = {kind: {**SMOLVLM, "model_type": kind} for kind in ("smolvlm", "idefics3")}
RNG_STATE = 5056
"""Bytes of the CPU generator's state, which checkpointing saves for each layer."""


def functions(path: str, *names: str, **known: Any) -> SimpleNamespace:
    """Functions and methods of transformers' source, without what their module imports."""
    source = (Path(transformers.__file__).parent / path).read_text()
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef) and node.name in names]
    for node in found:
        node.decorator_list, node.returns = [], None
        for argument in (*node.args.args, *node.args.kwonlyargs):
            argument.annotation = None
        node.args.defaults = [ast.Constant(None)] * len(node.args.defaults)
    scope: dict[str, Any] = {"math": math, **known}
    exec(compile(ast.fix_missing_locations(ast.Module(body=list(found), type_ignores=[])), path, "exec"), scope)
    return SimpleNamespace(**{name: scope[name] for name in names})


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([364, 384, 512]))
def test_tiles_are_those_of_the_processor(height: int, width: int, tile: int) -> None:
    """Its sizes come of a picture's shape; a resize that only says which size it was asked for stands for its own."""
    sizes = SimpleNamespace(SizeDict=lambda **size: (size["height"], size["width"]))
    real = functions(
        "models/idefics3/image_processing_idefics3.py",
        "_resize_output_size_rescale_to_max_len",
        "_resize_output_size_scale_below_upper_bound",
        "resize_for_vision_encoder",
        SizeDict=sizes.SizeDict,
    )
    first = real._resize_output_size_rescale_to_max_len(height, width, min_len=1, max_len=4 * tile)
    first = real._resize_output_size_scale_below_upper_bound(*first, max_len=4096)
    asked = real.resize_for_vision_encoder(
        SimpleNamespace(resize=lambda image, size, resample: size), SimpleNamespace(size=lambda: (3, *first)), tile
    )
    assert tuple(side // tile for side in asked) == tiles((height, width), tile)


def held(run: Callable[[], object]) -> int:
    """Most bytes that the CPU allocator held at once while `run` ran, by torch's profiler."""
    gc.collect()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = [(event.start_ns(), event.nbytes()) for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for _, nbytes in sorted(events, key=lambda event: event[0]):
        now += nbytes
        most = max(most, now)
    return most


CASES: list[tuple[str, dict[str, Any]]] = [
    ("fp32", {}),
    ("fp32", {"checkpointing": "full"}),
    ("fp32", {"tower": "frozen"}),
    ("bf16", {"micro_batch": 2}),
    ("bf16", {"tower": "frozen"}),
]
"""Not in bf16 where the peak is in a product's backward pass, for which a CPU takes buffers. All heads have their own keys: with groups a
GPU's kernel for fp32 takes copies, and a CPU's none."""


@pytest.mark.parametrize(("precision", "keys"), CASES, ids=str)
@pytest.mark.parametrize("kind", MODELS)
def test_a_step_takes_what_transformers_takes(kind: str, precision: str, keys: dict[str, Any]) -> None:
    raw, batch, length = MODELS[kind], keys.get("micro_batch", 1), 256
    rows, columns = tiles((480, 640), 128)
    each = rows * columns + 1
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    model = transformers.AutoModelForImageTextToText.from_config(
        transformers.AutoConfig.for_model(**copy.deepcopy(raw)), dtype=dtype, attn_implementation="sdpa"
    ).train()
    if keys.get("tower") == "frozen":
        for part in (model.model.vision_model, model.model.connector):
            part.requires_grad_(False)
    if keys.get("checkpointing"):
        model.gradient_checkpointing_enable()
    places = torch.arange(length).expand(batch, length) < each * 16

    def step() -> None:
        ids = torch.where(places, 999, 3)
        given = {"input_ids": ids, "labels": ids.clone(), "pixel_values": torch.ones(batch, each, 3, 128, 128)}
        given["pixel_attention_mask"] = torch.ones(batch, each, 128, 128, dtype=torch.long)
        loss = model(**given, use_cache=False).loss
        del given, ids
        loss.backward()

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the CPU's attention takes a buffer for each thread
    step()
    model.zero_grad(set_to_none=True)
    real = held(step) - RNG_STATE * 6 * bool(keys.get("checkpointing"))
    torch.set_num_threads(threads)
    answer = estimate(raw, task="train", precision=precision, images=1, image_size="640x480", sequence_length=length, **keys)
    own = ("saved activations", "activations", "gradients")
    moments = (Moment.FORWARD, Moment.LOSS, Moment.BACKWARD)
    ours = max(sum(item.nbytes for item in answer.ledger.items if moment in item.alive and item.path[0] in own) for moment in moments)
    assert ours == pytest.approx(real, rel=0.01)


@pytest.mark.parametrize("raw", [*MODELS.values(), INTERNVL, NORMED], ids=lambda raw: raw["model_type"])
def test_weights_are_those_of_transformers(raw: dict[str, Any]) -> None:
    """In number, and by the names of the first layers where the checkpoint has the class's own."""
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(transformers.AutoConfig.for_model(**copy.deepcopy(raw)))
    tape = walk(Tape(Dim(1), Dim(1)), raw)
    assert tape.parameters == sum(parameter.numel() for parameter in model.parameters())
    if raw["model_type"] != "internvl":
        names = {name for name, _ in model.named_parameters() if not re.search(r"layers\.[1-9]", name)}
        assert {weight.name.replace("{i}", "0") for weight in tape.weights} == names


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([224, 448]))
def test_internvl_tiles_are_those_of_its_processor(height: int, width: int, tile: int) -> None:
    real = functions(
        "models/got_ocr2/image_processing_got_ocr2.py", "get_all_supported_aspect_ratios", "get_optimal_tiled_canvas"
    ).get_optimal_tiled_canvas
    columns, rows = real((height, width), (tile, tile), 1, 12)
    assert internvl.tiles((height, width), tile) == (rows, columns)


LORA: dict[str, Any] = {"method": "lora", "lora": {"rank": 16}}
STEPS: list[dict[str, Any]] = [
    {"method": "full"},
    {"method": "full", "micro_batch": 2, "checkpointing": "full"},
    {"method": "full", "precision": "bf16-mixed", "tower": "projector"},
    {**LORA, "tower": "frozen"},
    {**LORA, "attention": "eager", "checkpointing": "full"},
]


@pytest.mark.parametrize("keys", STEPS, ids=str)
def test_a_step_of_internvl(keys: dict[str, Any]) -> None:
    """On fake tensors, as its code asks nothing of pixels: two tiles and the whole image."""
    pytest.importorskip("peft")
    from vramplan.trace import trace_scenario

    asked = {"model": INTERNVL, "task": "train", "sequence_length": 1024, "images": 1, "image_size": "896x448", "attention": "sdpa"}
    found = scenario({**asked, "engine": "transformers", **keys})
    assert estimate(found).facts["peak_allocated"] == pytest.approx(trace_scenario(found, loop="trainer").steady.nbytes, rel=0.005)


@given(st.integers(40, 3000), st.integers(40, 3000))
def test_the_tiles_and_tokens_of_llava_next(height: int, width: int) -> None:
    """transformers' own choice of a size, and its own unpadding of the features of the tiles."""
    from transformers.image_processing_utils import select_best_resolution
    from transformers.models.llava_next.modeling_llava_next import unpad_image

    rows, columns = select_best_resolution((height, width), list(anyres.PINPOINTS))
    assert anyres.best((height, width), anyres.PINPOINTS) == (rows, columns)
    grid = rows // 14, columns // 14
    left = unpad_image(torch.empty((1, *grid)), (height, width)).shape[1:]
    assert anyres.unpadded((height, width), grid) == tuple(left)
    seen = anyres.picture(Config({}, "config.json"), (height, width), 336, 24)
    assert (seen.pixels[0], seen.tokens) == (1 + rows * columns // 336**2, 576 + left[0] * (left[1] + 1))
