"""Two real training steps on fake tensors: forward, loss, backward, optimizer; every allocation recorded."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch

from ..errors import VramplanError
from ..scenario import Scenario
from ..units import gib
from .environment import modules, on_gpu
from .images import inputs
from .models import build
from .optimizers import optimizer, states
from .recipe import Recipe, recipe
from .recorder import Recorder
from .result import Trace
from .values import Values


class TraceFailed(VramplanError):
    """The traced code raised an error of its own; `trace` is what had been recorded."""

    def __init__(self, what: str, error: BaseException, trace: Trace) -> None:
        peak = trace.peak
        recorded = f"{len(trace.blocks):,} allocations, peak {gib(peak.nbytes)} in step {peak.step + 1}, {peak.moment}"
        text = " ".join(str(error).split())[:400]
        super().__init__(f"{what} failed while it was traced: {type(error).__name__}: {text}; recorded until then: {recorded}")
        self.trace = trace


def trace_scenario(asked: Scenario, **choices: Any) -> Trace:
    """Trace the training step of a scenario; `choices` are fields of Recipe that a scenario does not have.

    Raises BadInput, NotFound and Unknown, as `recipe` and `resolve` do, and TraceFailed as `trace` does.
    """
    from ..sources import resolve

    return trace(recipe(asked, resolve(asked.model), **choices))


def trace(asked: Recipe) -> Trace:
    """Trace the training steps of a recipe. Raises TraceFailed where the model's own code cannot run without values."""
    with on_gpu(asked.gpu, asked.capability, asked.memory) as recorder:
        model = build(asked)
        recorder.mark("load")
        adopt(recorder, model)
        with modules(recorder):
            try:
                run_steps(recorder, asked, model)
            except Exception as error:
                raise TraceFailed(asked.name, error, recorder.result(asked.name, asked.assumptions)) from error
        return recorder.result(asked.name, asked.assumptions)


def adopt(recorder: Recorder, model: Any) -> None:
    """Count what the model holds, as if it had been loaded tensor by tensor."""
    from .quantized import states as quantised

    parameters = [(name.rpartition(".")[0], p) for name, p in model.named_parameters()]
    recorder.adopt(((name, p) for name, p in parameters if not p.requires_grad), "weights")
    recorder.adopt(quantised(model), "weights")
    recorder.adopt(((name, p) for name, p in parameters if p.requires_grad), "weights")
    recorder.adopt(((name.rpartition(".")[0], b) for name, b in model.named_buffers()), "weights")


def _mark_loss(recorder: Recorder, model: Any) -> None:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    compute = inner.loss_function

    def loss_function(*args: Any, **kwargs: Any) -> Any:
        recorder.mark("loss")
        recorder.enter("loss")
        try:
            return compute(*args, **kwargs)
        finally:
            recorder.leave()

    inner.loss_function = loss_function


def run_steps(recorder: Recorder, asked: Recipe, model: Any) -> None:
    """Forward, loss, backward and optimizer, as often as the recipe says, with the phases marked."""
    trained = [p for p in model.parameters() if p.requires_grad]
    stepper = optimizer(asked.optimizer, model, recorder.uncounted, in_backward=asked.optimizer_in_backward)
    recorder.adopt((("", state) for state in states(stepper)), "optimizer states")
    _mark_loss(recorder, model)
    low = torch.float16 if asked.precision == "fp16-mixed" else torch.bfloat16
    recorder.values = Values() if asked.images else None
    recorder.paused, recorder.truth = False, not asked.padded
    for _ in range(asked.steps):
        for _ in range(asked.gradient_accumulation):
            recorder.mark("forward")
            ids = torch.zeros((asked.micro_batch, asked.sequence_length), dtype=torch.long)
            labels = torch.zeros(asked.micro_batch, dtype=torch.long) if asked.head == "classification" else torch.zeros_like(ids)
            batch = {"input_ids": ids, "labels": labels, **(inputs(recorder, asked, model) if asked.images else {})}
            if asked.padded:
                batch["attention_mask"] = torch.ones_like(ids)
            recorder.label(batch.values(), "inputs")
            with torch.autocast("cpu", dtype=low) if asked.mixed else nullcontext():
                output = model(**batch, **({} if asked.head else {"use_cache": False}))
                loss = output.loss / asked.gradient_accumulation if asked.gradient_accumulation > 1 else output.loss
            if asked.loop == "trainer":
                del output, batch, ids, labels
            recorder.mark("backward")
            loss.backward()
            recorder.label((p.grad for p in trained), "gradients")
        recorder.mark("step")
        if asked.clip is not None:
            torch.nn.utils.clip_grad_norm_(trained, asked.clip, foreach=True)
        stepper.step()
        recorder.label(states(stepper), "optimizer states")
        stepper.zero_grad(set_to_none=True)
        output = loss = None
        recorder.step += 1
    recorder.paused = True
