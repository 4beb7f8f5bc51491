"""A user's own training code, traced: `recording()` around a loop, or a whole script as `vramplan trace script.py` runs it.

The code runs as it is, on fake tensors, with a GPU pretended. Phases are told by what it calls: `backward()`, an optimizer's step; weights
are the parameters of the modules that it calls. Checkpoints are not read: `from_pretrained` builds the model from its config.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from ..errors import NotFound
from .environment import modules, on_gpu
from .optimizers import states
from .pretend import pretend
from .recipe import DEFAULT_GPU, gpu_facts
from .recorder import Recorder
from .result import Trace
from .step import TraceFailed, adopt


class Recording:
    """What `recording()` gives: its `trace` can be asked for within the block and after it."""

    def __init__(self, recorder: Recorder, name: str) -> None:
        self._recorder, self._name = recorder, name

    @property
    def trace(self) -> Trace:
        """What was recorded until now."""
        return self._recorder.result(self._name)


@contextmanager
def recording(gpu: str | None = None, *, name: str = "recording") -> Iterator[Recording]:
    """Run the training code within on fake tensors, as on `gpu` (a name of the catalogue; an A100 of 80 GB if none is named).

    Raises NotFound and Unknown for a GPU that is not known or not traced.
    """
    called, capability, memory = gpu_or_default(gpu)
    with ExitStack() as stack:
        recorder = stack.enter_context(on_gpu(called, capability, memory))
        recorder.mark("load")
        stack.enter_context(pretend(recorder, memory))
        stack.enter_context(modules(recorder))
        stack.enter_context(_phases(recorder))
        stack.enter_context(_without_checkpoints(recorder))
        recorder.paused = False
        try:
            yield Recording(recorder, name)
        finally:
            recorder.paused = True


def run(path: str, arguments: Sequence[str] = (), *, gpu: str | None = None) -> Trace:
    """Trace the script at `path` as `python path arguments…` would run it.

    Raises NotFound where there is no such file, and TraceFailed for an error of the script's own.
    """
    script = Path(path)
    if not script.is_file():
        raise NotFound(f"{path}: no such script")
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(sys, "argv", [path, *arguments]))
        stack.enter_context(mock.patch.object(sys, "path", [str(script.resolve().parent), *sys.path]))
        recorded = stack.enter_context(recording(gpu, name=script.name))
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as error:
            if error.code not in (None, 0):
                raise TraceFailed(_place(script, error), error, recorded.trace) from error
        except Exception as error:
            raise TraceFailed(_place(script, error), error, recorded.trace) from error
    return recorded.trace


def _place(script: Path, error: BaseException) -> str:
    """The script and the last of its lines that the error came through."""
    line, at = 0, error.__traceback__
    while at is not None:
        if at.tb_frame.f_code.co_filename == str(script):
            line = at.tb_lineno
        at = at.tb_next
    return f"{script.name}, line {line}," if line else script.name


def gpu_or_default(gpu: str | None) -> tuple[str, tuple[int, int], int]:
    """Name, compute capability and usable bytes of the GPU named, or of an A100 of 80 GB."""
    if gpu is None:
        return DEFAULT_GPU
    return gpu_facts(gpu)


@contextmanager
def _phases(recorder: Recorder) -> Iterator[None]:
    """Mark where the backward pass and the optimizer's step begin and end; label gradients and states there."""
    import torch.optim.optimizer as optimizer

    backward = torch.autograd.backward

    def marked_backward(*args: Any, **kwargs: Any) -> None:
        if recorder.phases[-1][1] == "backward":
            return backward(*args, **kwargs)
        recorder.mark("backward")
        backward(*args, **kwargs)
        recorder.mark("forward")

    def before(stepper: Any, *_: Any) -> None:
        for group in stepper.param_groups:
            recorder.label(group["params"], "weights")
            recorder.label((p.grad for p in group["params"]), "gradients")
        recorder.mark("step")

    def after(stepper: Any, *_: Any) -> None:
        recorder.label(states(stepper), "optimizer states")
        recorder.step += 1
        recorder.mark("forward")

    hooks = [optimizer.register_optimizer_step_pre_hook(before), optimizer.register_optimizer_step_post_hook(after)]
    try:
        with mock.patch.object(torch.autograd, "backward", marked_backward):
            yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _without_checkpoints(recorder: Recorder) -> Iterator[None]:
    """`from_pretrained` of transformers' models builds from the config that vramplan finds under the name; quantised if asked."""
    import transformers
    from transformers.initialization import no_init_weights
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.auto_factory import _BaseAutoModelClass

    def from_name(cls: Any, name: Any, *args: Any, **kwargs: Any) -> Any:
        from ..sources import resolve

        given = dict(resolve(str(name)).config)
        given.pop("quantization_config", None)
        config = kwargs.get("config") or transformers.AutoConfig.for_model(given.pop("model_type"), **given)
        dtype = kwargs.get("dtype") or kwargs.get("torch_dtype") or config.dtype or torch.float32
        dtype = (config.dtype or torch.float32) if dtype == "auto" else getattr(torch, dtype) if isinstance(dtype, str) else dtype
        make = cls.from_config if issubclass(cls, _BaseAutoModelClass) else cls._from_config
        asked = kwargs.get("quantization_config")
        eager = kwargs.get("attn_implementation") == "eager"
        with no_init_weights(), recorder.uncounted():
            model = make(config, dtype=dtype, attn_implementation="eager" if eager else "sdpa")
            model.tie_weights()
            if asked is not None:
                _quantised(model, asked)
        if asked is not None or kwargs.get("device_map") is not None:
            adopt(recorder, model)
        return model.eval()

    autos = [kind for kind in vars(modeling_auto).values() if isinstance(kind, type) and issubclass(kind, _BaseAutoModelClass)]
    with ExitStack() as stack:
        for kind in (transformers.PreTrainedModel, *autos):
            stack.enter_context(mock.patch.object(kind, "from_pretrained", classmethod(from_name)))
        yield


def _quantised(model: Any, asked: Any) -> None:
    from .quantized import quantize

    kind = "int8" if asked.load_in_8bit else asked.bnb_4bit_quant_type
    quantize(model, kind, double=asked.bnb_4bit_use_double_quant, compute=asked.bnb_4bit_compute_dtype)
