"""The families judged by transformers: every real class of the catalogue, built on the meta device, has our weights.

Counted: the unique parameters. Compared: the names and shapes of what `save_pretrained` would write, which are those of the published
checkpoints because transformers undoes its own conversions (experts in one tensor, renamed modules). Of each model type and class the
smallest model, and a few large ones. Needs the extra `trace`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from vramplan.catalog.models import ModelEntry, all_models, find_model
from vramplan.dim import Dim
from vramplan.families import walk
from vramplan.tape import Tape

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

LARGE = (
    "deepseek-ai/DeepSeek-V3",
    "google/gemma-3-27b-it",
    "meta-llama/Llama-3.1-405B",
    "meta-llama/Llama-4-Maverick-17B-128E",
    "mistralai/Mixtral-8x22B-v0.1",
    "openai/gpt-oss-120b",
    "Qwen/Qwen3-235B-A22B",
    "Qwen/Qwen3-Next-80B-A3B-Instruct",
)
OTHER_NAMES = {
    "dbrx": "stores all experts of a layer in one matrix, [experts · ffn, hidden]",
    "deepseek_v4": "the checkpoint has the names of DeepSeek's own code, which transformers does not write",
    "kimi_k25": "undoing the renaming of the tower's blocks, transformers renames the text model's layers too",
    "qwen3_5_moe": "the checkpoint holds a layer's experts in one tensor, transformers writes one for each",
    "qwen3_vl_moe": "the checkpoint holds its experts as [in, out], transformers writes [out, in]",
}
"""Model types whose checkpoints differ from what transformers 5.23 writes; their parameters are counted all the same."""


def tape(config: Mapping[str, object]) -> Tape:
    return walk(Tape(Dim(1, "sequences"), Dim(1, "tokens")), config)


def architecture(entry: ModelEntry) -> str:
    named = entry.config.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else ""


def chosen() -> list[ModelEntry]:
    """The smallest model of each model type and class, and the large ones."""
    smallest: dict[tuple[str, str], tuple[int, ModelEntry]] = {}
    counted: dict[int, int] = {}
    for entry in all_models():
        size = counted.get(id(entry.config)) or counted.setdefault(id(entry.config), tape(entry.config).parameters)
        key = str(entry.config["model_type"]), architecture(entry)
        if key not in smallest or size < smallest[key][0]:
            smallest[key] = size, entry
    return [*(entry for _, entry in smallest.values()), *(find_model(id) for id in LARGE)]


def real_model(entry: ModelEntry) -> Any:
    """The model's class without weights; skips what this version of transformers does not have, or needs a package for."""
    try:
        config = transformers.AutoConfig.for_model(**entry.config)
    except ValueError:
        pytest.skip(f"transformers {transformers.__version__} has no {entry.config['model_type']}")
    made = getattr(transformers, architecture(entry), None)
    mappings = (transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, transformers.MODEL_FOR_CAUSAL_LM_MAPPING)
    made = made or next((mapping[type(config)] for mapping in mappings if type(config) in mapping), None)
    if made is None:
        pytest.skip(f"transformers {transformers.__version__} has no class {architecture(entry)}")
    try:
        with torch.device("meta"):
            return made._from_config(config)
    except ImportError as error:
        pytest.skip(" ".join(str(error).split())[:100])


def our_tensors(config: Mapping[str, object]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every stored tensor; experts without a place in the name lie in one tensor."""
    found = {}
    for weight in tape(config).weights:
        stacked = (weight.copies,) if weight.kind == "experts" and "{e}" not in weight.name else ()
        for layer in weight.layers or (0,):
            for expert in range(1 if stacked else weight.copies):
                name = weight.name.replace("{i}", str(layer)).replace("{e}", str(expert))
                found[name] = (*stacked, *map(int, weight.shape))
    return found


def real_tensors(model: Any) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that `save_pretrained` writes."""
    from transformers.core_model_loading import revert_weight_conversion

    state = {name: tensor for name, tensor in model.state_dict().items() if name not in (model.all_tied_weights_keys or {})}
    return {name: tuple(tensor.shape) for name, tensor in revert_weight_conversion(model, state).items()}


def comparable(tensors: Mapping[str, tuple[int, ...]]) -> set[tuple[str, tuple[int, ...]]]:
    """Two things aside: a number is as good as (1,), and transformers does not write the `vision_model` that it drops when it loads."""
    return {(name.replace("vision_tower.vision_model.", "vision_tower."), shape or (1,)) for name, shape in tensors.items()}


@pytest.mark.parametrize("entry", chosen(), ids=lambda entry: f"{entry.config['model_type']}-{entry.id}")
def test_every_class_has_our_weights(entry: ModelEntry) -> None:
    model = real_model(entry)
    assert tape(entry.config).parameters == sum(weight.numel() for weight in model.parameters())
    if entry.config["model_type"] not in OTHER_NAMES:
        ours, theirs = comparable(our_tensors(entry.config)), comparable(real_tensors(model))
        assert sorted(ours - theirs)[:3] == sorted(theirs - ours)[:3] == []


def test_the_reasons_are_those_of_known_families() -> None:
    assert set(OTHER_NAMES) <= {str(entry.config["model_type"]) for entry in all_models()}
