"""transformers' `generate` on fake tensors: the prefill of a prompt and the last steps of the decode, every allocation recorded.

The loop is transformers' own. Two runs make one answer: one that starts from the prompt and one that starts three tokens before the end, so
that a long output needs no long trace. A static cache is not compiled here, as it would be on a GPU; an offloaded one goes where nothing is
counted. It knows one GPU, and no streams: a copy is there as soon as it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from unittest import mock

import torch
from transformers import StoppingCriteria
from transformers.cache_utils import CacheLayerMixin

from ..errors import BadInput, Unknown
from ..scenario import Scenario
from .environment import modules, on_gpu
from .models import build
from .recipe import DEFAULT_GPU, Recipe, gpu_facts
from .recorder import Recorder
from .result import Trace
from .step import TraceFailed, adopt

STEPS = 3
"""Tokens that each run makes: the first step of the decode frees what only the prefill needed, the last is like all others."""
DRAFTED = 20
"""Tokens that an assistant makes for each pass of the model (`num_assistant_tokens`, transformers' default)."""
QUANTIZED: Mapping[str, Mapping[str, Any]] = {
    "quanto-int4": {"backend": "quanto", "nbits": 4, "residual_length": STEPS - 1},
    "quanto-int2": {"backend": "quanto", "nbits": 2, "residual_length": STEPS - 1},
    **{f"hqq-int{bits}": {"backend": "hqq", "nbits": bits, "residual_length": STEPS - 1} for bits in (8, 4, 3, 2, 1)},
    "fp8": {"backend": "fp8"},
}
"""`cache_config` of each; quanto's and HQQ's are packed anew in the last step of the trace."""


def trace_generate(asked: Scenario) -> tuple[Trace, Trace]:
    """What `generate` takes from the prompt on, and at its end: the phases are load, prefill, first and decode, of which count `prefill`
    and `first` in the first trace and `decode` in the second.

    Raises Unknown for what is not traced, and TraceFailed where the model's own code cannot run without values.
    """
    from ..sources import resolve

    if asked.task != "infer" or asked.engine not in (None, "transformers"):
        raise BadInput("a trace of generate is of task infer and engine transformers")
    model = resolve(asked.model)
    name, capability, memory = gpu_facts(asked.gpu) if asked.gpu else DEFAULT_GPU
    recipe = Recipe(
        config=model.config,
        name=model.id,
        precision=asked.weights if asked.weights in ("bf16", "fp16", "fp32") else "bf16",
        quantization=asked.weights if asked.weights in ("nf4", "fp4", "int8") else None,
        attention=asked.attention or "auto",
        gpu=name,
        capability=capability,
        memory=memory,
    )
    prompt, output = asked.prompt_length or 1024, asked.output_length or 256
    end = STEPS if asked.draft_model is None else 2 * STEPS + DRAFTED + 2
    if output <= end:
        raise Unknown(f"output_length {output}: a trace needs more than {end} tokens")
    return _run(asked, recipe, prompt, output), _run(asked, recipe, prompt + output - end, end)


def _run(asked: Scenario, recipe: Recipe, prompt: int, output: int) -> Trace:
    """`generate` of `output` tokens after `prompt`, of which STEPS are made."""
    cache = _cache(asked)
    with on_gpu(recipe.gpu, recipe.capability, recipe.memory) as recorder:
        model = build(recipe).eval()
        model.config.use_cache = True
        recorder.mark("load")
        adopt(recorder, model)
        draft = _draft(asked, recorder)
        beams = asked.num_beams or 1
        loop = _Loop(recorder, model, last=prompt + STEPS * (2 if draft else 1), goes_on=beams > 1)
        if draft:
            loop.drafts(draft["assistant_model"])
        with modules(recorder), torch.no_grad(), _offloading(recorder), _packing(), _hqq():
            try:
                recorder.paused = False
                ids = torch.zeros((asked.sequences or 1, prompt), dtype=torch.long)
                model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=output,
                    num_beams=beams,
                    do_sample=False,
                    stopping_criteria=[loop],
                    pad_token_id=0,
                    eos_token_id=None,
                    disable_compile=True,
                    **cache,
                    **draft,
                )
            except Exception as error:
                raise TraceFailed(recipe.name, error, recorder.result(recipe.name)) from error
        recorder.paused = True
        return recorder.result(recipe.name)


def _draft(asked: Scenario, recorder: Recorder) -> Mapping[str, Any]:
    """The assistant, whose weights are there too; its every pass belongs to the phase that the model is in."""
    if asked.draft_model is None:
        return {}
    from ..sources import resolve

    found = resolve(asked.draft_model)
    draft = build(Recipe(config=found.config, name=found.id)).eval()
    draft.config.use_cache = True
    adopt(recorder, draft)
    return {"assistant_model": draft}


def _cache(asked: Scenario) -> Mapping[str, Any]:
    """What `generate` is told of its cache. Raises Unknown for one that is not traced."""
    kind = asked.cache_implementation or "dynamic"
    if kind in QUANTIZED:
        return {"cache_implementation": "quantized", "cache_config": dict(QUANTIZED[kind])}
    return {} if kind == "dynamic" else {"cache_implementation": kind.replace("-", "_")}


class _Loop(StoppingCriteria):
    """Marks each forward pass of `model`, and ends the loop when a sequence has `last` tokens: what `bool()` is answered with is turned
    round, which beam search reads as `goes_on`.
    """

    def __init__(self, recorder: Recorder, model: Any, *, last: int, goes_on: bool) -> None:
        self.recorder, self.last, self.goes_on, self.passes = recorder, last, goes_on, 0
        self.model = model
        model.register_forward_pre_hook(self.enter)

    def enter(self, model: Any, _: Any) -> None:
        """A pass begins; from the decode on, experts are computed as on a GPU (`_optimize_model_for_decode`)."""
        self.recorder.truth = True
        self.recorder.mark(("prefill", "first", "decode")[min(self.passes, 2)])
        self.passes += 1
        if self.passes == 2 and "grouped_mm" in (kinds := model.get_experts_implementation()).values():
            model.set_experts_implementation({k: "batched_mm" if kind == "grouped_mm" else kind for k, kind in kinds.items()})

    def drafts(self, draft: Any) -> None:
        """The assistant stops when it has made its `DRAFTED` tokens, of which one is taken to be right."""
        made = 0

        def begins(*_: Any) -> None:
            self.recorder.truth = True

        def ends(*_: Any) -> None:
            nonlocal made
            made += 1
            self.recorder.truth = made % DRAFTED == 0

        draft.register_forward_pre_hook(begins)
        draft.register_forward_hook(ends)

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        ends = input_ids.shape[1] >= self.last
        self.recorder.truth = ends is not self.goes_on
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


@contextmanager
def _packing() -> Iterator[None]:
    """quanto packs a quantised tensor that is a plain one: fake ones are."""
    try:
        tensor = import_module("optimum.quanto.tensor.packed").PackedTensor
        quantised = import_module("optimum.quanto.tensor.weights.qbits").WeightQBitsTensor
    except ImportError:
        yield
        return
    plain = quantised.__init__

    def packed(self: Any, qtype: Any, axis: int, group: int, size: Any, stride: Any, data: Any, *rest: Any, **more: Any) -> None:
        data = data if isinstance(data, tensor) else tensor.pack(data, qtype.bits)
        plain(self, qtype, axis, group, size, stride, data, *rest, **more)

    with mock.patch.object(quantised, "__init__", packed):
        yield


@contextmanager
def _hqq() -> Iterator[None]:
    """HQQ's optimiser in fp16, as on a GPU, and outside of inference mode, where operators come undivided; it makes all of its passes."""
    try:
        optimize, quantizer = import_module("hqq.core.optimize"), import_module("hqq.core.quantize").Quantizer
    except ImportError:
        yield
        return
    plain = optimize.optimize_weights_proximal_legacy.__wrapped__
    with (
        mock.patch.object(optimize, "float32", torch.float16),
        mock.patch.object(quantizer, "optimize_weights", staticmethod(plain)),
    ):
        yield


@contextmanager
def _offloading(recorder: Recorder) -> Iterator[None]:
    """Layers of a cache that go to the host and come back: copies, of which those on the host are not counted. An assistant's inputs are
    copied in depth, which fake tensors cannot be.
    """

    def offload(layer: Any) -> None:
        if layer.is_initialized:
            with recorder.uncounted():
                layer.keys, layer.values = layer.keys.clone(), layer.values.clone()
            layer.away = True

    def prefetch(layer: Any) -> None:
        if getattr(layer, "away", False):
            layer.keys, layer.values, layer.away = layer.keys.clone(), layer.values.clone(), False

    with (
        mock.patch.object(torch.Tensor, "__deepcopy__", lambda tensor, _: tensor.clone()),
        mock.patch.object(CacheLayerMixin, "offload", offload),
        mock.patch.object(CacheLayerMixin, "prefetch", prefetch),
        mock.patch.object(torch, "Stream"),
        mock.patch.object(torch.cuda, "default_stream"),
    ):
        yield
