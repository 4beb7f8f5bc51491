"""`device_map="auto"` judged by transformers' own `infer_auto_device_map`, on models of the meta device: equal bytes on every place."""

from __future__ import annotations

from multiprocessing import get_context
from typing import Any

import pytest

from vramplan.engines.job import Job
from vramplan.engines.transformers_devices import device_map, limits, modules
from vramplan.formats import scheme
from vramplan.kernels import Kernels
from vramplan.sources import resolve
from vramplan.units import GiB

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

HOST = 200 * GiB
CASES = [
    ("meta-llama/Llama-3.2-1B", (1.5,), "auto"),
    ("meta-llama/Llama-3.2-1B", (1, 1, 1), "auto"),
    ("meta-llama/Llama-3.2-1B", (3,), "sequential"),
    ("meta-llama/Llama-3.1-8B", (24,), "auto"),
    ("meta-llama/Llama-3.1-8B", (12,), "auto"),
    ("meta-llama/Llama-3.1-8B", (12, 12), "auto"),
    ("meta-llama/Llama-3.1-8B", (6, 6), "auto"),
    ("meta-llama/Llama-3.1-8B", (8, 24), "balanced-low-0"),
    ("meta-llama/Llama-3.1-8B", (10, 4, 6), "sequential"),
    ("meta-llama/Llama-3.1-70B", (80, 80), "auto"),
    ("meta-llama/Llama-3.1-70B", (24, 24, 24, 24), "auto"),
    ("meta-llama/Llama-3.1-70B", (40, 40, 40, 40, 40, 40, 40, 40), "auto"),
    ("meta-llama/Llama-3.1-70B", (80, 80), "balanced-low-0"),
    ("Qwen/Qwen2.5-7B", (8, 8), "auto"),
    ("Qwen/Qwen3-0.6B", (1, 0.5), "auto"),
    ("Qwen/Qwen3-30B-A3B", (24, 24, 24), "auto"),
    ("Qwen/Qwen3-30B-A3B", (24,), "auto"),
    ("mistralai/Mixtral-8x7B-v0.1", (48, 48), "auto"),
    ("mistralai/Mixtral-8x7B-v0.1", (24, 24), "sequential"),
    ("google/gemma-2-9b", (10, 10), "auto"),
    ("google/gemma-2-27b", (24, 24, 24), "auto"),
    ("microsoft/Phi-3-mini-4k-instruct", (4, 6), "auto"),
    ("openai-community/gpt2", (0.15, 0.3), "auto"),
    ("EleutherAI/pythia-1b", (1, 1), "auto"),
    ("bigcode/starcoder2-3b", (3, 3), "auto"),
    ("deepseek-ai/DeepSeek-V2-Lite", (16, 16), "auto"),
    ("allenai/OLMoE-1B-7B-0924", (8, 8), "balanced-low-0"),
]


def real(name: str, gpus: tuple[int, ...], kind: str) -> dict[Any, int]:
    """Bytes of parameters on each place, where nothing but these limits is given."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.integrations import accelerate as own

    raw = dict(resolve(name).config)
    raw.pop("quantization_config", None)
    config = AutoConfig.for_model(raw.pop("model_type"), **raw)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    free = {**dict(enumerate(gpus)), "cpu": HOST}
    given = {key: int(room * 0.9) if key == "cpu" else room for key, room in free.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own, "get_max_memory", lambda asked=None: dict(given) if asked is None else dict(asked))
        found = own._get_device_map(model, {"balanced-low-0": "balanced_low_0"}.get(kind, kind), None, None)
    on: dict[Any, int] = {}
    for key, parameter in model.named_parameters():
        place = own.get_device(found, key)
        on[place] = on.get(place, 0) + parameter.numel() * parameter.element_size()
    return on


def ours(name: str, gpus: tuple[int, ...], kind: str) -> dict[Any, int]:
    form = scheme("bf16")
    model = resolve(name)
    job = Job(engine="transformers", scenario=None, model=model, gpu=None, scheme=form)  # type: ignore[arg-type]
    tree = modules(job.tape(sequences=1, tokens=1, kernels=Kernels()), form)
    found = device_map(tree, limits(kind, tree, gpus, HOST, form))
    on: dict[Any, int] = {}

    def count(module: Any) -> None:
        if module.name in found:
            on[found[module.name]] = on.get(found[module.name], 0) + module.nbytes
        else:
            for part in module.parts():
                count(part)

    count(tree)
    return {place: nbytes for place, nbytes in on.items() if nbytes}


def limits_of(sizes: tuple[float, ...]) -> tuple[int, ...]:
    return tuple(int(size * GiB) for size in sizes)


@pytest.fixture(scope="module")
def places() -> list[dict[Any, int]]:
    """transformers' own, in a process of their own: models that were built before may leave marks on the classes that all share."""
    with get_context("spawn").Pool(1) as pool:
        return pool.starmap(real, [(name, limits_of(sizes), kind) for name, sizes, kind in CASES])


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: f"{CASES[number][0]}-{number}")
def test_bytes_on_each_place(number: int, places: list[dict[Any, int]]) -> None:
    name, sizes, kind = CASES[number]
    assert ours(name, limits_of(sizes), kind) == places[number]
