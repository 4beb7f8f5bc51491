"""`vramplan trace`: a real training step on fake tensors, of a model or of a script, every allocation recorded."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import click

from ..errors import BadInput
from .options import scenario_options, scenarios

if TYPE_CHECKING:
    from ..trace.result import Trace

EXTRA = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")


class WithScript(click.Command):
    """What follows a file that ends in .py belongs to that script, options included."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the script and its arguments aside."""
        at = next((n for n, text in enumerate(args) if text.endswith(".py") and not text.startswith("-")), len(args))
        ctx.meta["script"] = args[at:]
        return super().parse_args(ctx, args[:at])


@click.command("trace", cls=WithScript)
@scenario_options
@click.option("--clip", type=float, help="clip the gradients' norm to this")
@click.option("--padded", is_flag=True, help="the batch has padding, so that a mask is needed")
@click.option("--reentrant", is_flag=True, help="the re-entrant kind of checkpointing")
@click.option("--json", "as_json", is_flag=True, help="the result as JSON")
@click.option("--timeline", is_flag=True, help="how the memory goes up and down, phase by phase")
@click.option("--snapshot", metavar="FILE", help="write a PyTorch memory snapshot, which pytorch.org/memory_viz opens")
@click.pass_context
def command(ctx: click.Context, /, as_json: bool, timeline: bool, snapshot: str | None, **options: Any) -> int:
    """Trace a training step: the exact peak of real PyTorch code, without a GPU and without weights.

    MODEL is built by transformers, adapted by PEFT and trained for two steps on fake tensors. A file that ends in .py is run in its place,
    with the arguments that follow it; the options of this command stand before it. Needs: pip install 'vramplan[trace]'.
    """
    from ..report.trace import render, to_dict

    choices = {name: value for name in ("clip", "padded", "reentrant", "loop") if (value := options.pop(name))}
    script = ctx.meta["script"]
    gpus = options["gpu"]
    if len(gpus) > 1:
        raise BadInput("a trace is of one GPU: give --gpu once")
    gpu = gpus[0] if gpus else None
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        trace, name, usable = _script(script, gpu) if script else _model(options, choices)
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        raise BadInput(f"vramplan trace runs real PyTorch code, and {error.name} is not installed: pip install 'vramplan[trace]'") from None
    if snapshot is not None:
        from ..trace.snapshot import write

        write(trace, snapshot)
    click.echo(json.dumps(to_dict(trace), indent=1) if as_json else render(trace, gpu=name, usable=usable, timeline=timeline))
    return 0


def _script(script: list[str], gpu: str | None) -> tuple[Trace, str | None, int | None]:
    from ..trace.script import gpu_or_default, run

    name, _, usable = gpu_or_default(gpu)
    return run(script[0], script[1:], gpu=gpu), *((name, usable) if gpu else (None, None))


def _model(options: dict[str, Any], choices: dict[str, Any]) -> tuple[Trace, str | None, int | None]:
    from ..sources import resolve
    from ..trace.recipe import recipe
    from ..trace.step import trace

    options["task"] = "train"
    asked = scenarios(options)
    if len(asked) > 1:
        raise BadInput("a trace is of one scenario: give each option once")
    made = recipe(asked[0], resolve(asked[0].model), **choices)
    named = asked[0].gpu is not None or asked[0].gpu_memory is not None
    return trace(made), *((made.gpu, made.memory) if named else (None, None))
