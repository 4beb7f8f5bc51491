"""Measure how fast vramplan is and write docs/benchmarks.md: cold starts, warm estimates, look-ups, all families, a remote checkpoint.

    python scripts/bench.py

Needs the extra `test` and pip's index, for the cold starts are those of a wheel in a virtual environment of their own. Times are medians;
what is compared is measured in turns, in the same run.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter, process_time, sleep
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
FIRST_COMMAND = ("estimate", "meta-llama/Llama-3.1-8B", "--gpu", "rtx-4090", "--context", "8192")
WARM = (
    ("dense", "meta-llama/Llama-3.1-8B", "rtx-4090", None, 1.0),
    ("dense, Q4_K_M by tensor", "meta-llama/Llama-3.1-8B", "rtx-4090", "Q4_K_M", 1.0),
    ("mixture of experts", "Qwen/Qwen3-235B-A22B", "h200", None, 2.0),
    ("hybrid, windows", "google/gemma-3-27b-it", "h100-sxm-80gb", None, 2.0),
    ("hybrid, delta rule", "Qwen/Qwen3-Next-80B-A3B-Instruct", "h200", None, 2.0),
    ("hybrid, Mamba-2", "nvidia/Nemotron-H-8B-Base-8K", "rtx-4090", None, 2.0),
    ("latent attention", "deepseek-ai/DeepSeek-V3", "h200", None, 2.0),
)
"""Kind, model, GPU, number format, and the most milliseconds that a warm estimate should take."""
TRAINING = (
    ("full, bf16", "meta-llama/Llama-3.1-8B", {"method": "full"}),
    ("LoRA", "meta-llama/Llama-3.1-8B", {"method": "lora"}),
    ("QLoRA, checkpointing", "meta-llama/Llama-3.1-8B", {"method": "qlora", "checkpointing": "full"}),
    ("full, mixture of experts", "Qwen/Qwen3-30B-A3B", {"method": "full"}),
    ("LoRA, windows", "google/gemma-3-27b-it", {"method": "lora"}),
)
"""Kind, model and keys; a warm estimate of a step should take at most 3 ms, and a trace of Llama's LoRA step 15 s."""
SHARDS, DELAY = 160, 0.05
"""The remote checkpoint's files, and the seconds that the server waits before each answer, as a network would."""

Row = tuple[str, ...]


def seconds(call: Callable[[], object], times: int) -> list[float]:
    """How long each of `times` calls took."""
    taken = []
    for _ in range(times):
        start = perf_counter()
        call()
        taken.append(perf_counter() - start)
    return taken


def milliseconds(value: float) -> str:
    return f"{value * 1e3:,.2f} ms" if value < 0.01 else f"{value * 1e3:,.0f} ms"


def verdict(value: float, most: float) -> str:
    return f"{'met' if value <= most else 'missed'} (at most {milliseconds(most)})"


def environment(folder: Path) -> Path:
    """A virtual environment with the wheel of this checkout, compiled to bytecode; its folder of programs."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    subprocess.run([programs / "python", "-m", "pip", "install", "--quiet", "--compile", ROOT], check=True, stderr=subprocess.DEVNULL)
    return programs


def cold_starts(programs: Path) -> Iterable[Row]:
    """Whole processes, from start to exit."""
    python = str(programs / "python")
    commands = {
        "the environment's own `python -c pass`": [python, "-c", "pass"],
        "`python -c pass` as a shell finds it, through a version manager where there is one": ["python", "-c", "pass"],
        "`python -c 'import dataclasses, json'`, the standard library's share": [python, "-c", "import dataclasses, json"],
        "`python -c 'import click'`": [python, "-c", "import click"],
        "`python -c 'import vramplan'`": [python, "-c", "import vramplan"],
        f"`vramplan {' '.join(FIRST_COMMAND)}`": [str(programs / "vramplan"), *FIRST_COMMAND],
    }
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(31):
        for name, command in commands.items():
            taken[name] += seconds(lambda command=command: subprocess.run(command, check=True, stdout=subprocess.PIPE, env=clean), 1)  # type: ignore[misc]
    middle = {name: median(times[1:]) for name, times in taken.items()}  # the first run reads from the disk
    bare, found, *_, ours = middle.values()
    for name, value in middle.items():
        target = ""
        if value == ours:
            ratios = [
                f"{'met' if ours <= 2.5 * one else 'missed'} against {which}" for one, which in ((bare, "the first"), (found, "the second"))
            ]
            target = f"at most 2.5 ×: {', '.join(ratios)}; {'under' if ours <= 0.15 else 'over'} 0.15 s"
        yield name, milliseconds(value), f"{value / bare:.1f} ×", target


def lookups(programs: Path) -> Iterable[Row]:
    """Loading the catalogue and finding a model, each in a process of its own, imports left out."""
    timed = "t = now(); find_model({!r}); print(now() - t)"
    code = f"from time import perf_counter as now\nfrom vramplan.catalog.models import find_model\n{timed}"
    for what, name in (("repository id", "Qwen/Qwen3-30B-A3B"), ("short name", "qwen3-30b-a3b"), ("words", "llama 3.1 8b")):
        command = [str(programs / "python"), "-c", code.format(name)]
        value = median(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(15))
        yield what, f"`{name}`", milliseconds(value), verdict(value, 0.015)


def warm_estimates() -> Iterable[Row]:
    """`vramplan.estimate` for a model that was asked for before."""
    from vramplan import estimate

    for kind, model, gpu, weights, most in WARM:
        keys: dict[str, Any] = {"gpu": gpu, "context_length": 8192} | ({"weights": weights} if weights else {})
        first = seconds(lambda model=model, keys=keys: estimate(model, **keys), 1)[0]  # type: ignore[misc]
        warm = median(seconds(lambda model=model, keys=keys: estimate(model, **keys).peak, 200))  # type: ignore[misc]
        yield kind, f"{model}{f' in {weights}' if weights else ''}", milliseconds(first), milliseconds(warm), verdict(warm, most / 1e3)


def training() -> Iterable[Row]:
    """A training step: its peak from the sweep, and what the allocator's simulation takes beside it."""
    from vramplan import estimate

    for kind, model, given in TRAINING:
        keys: dict[str, Any] = {"task": "train", "sequence_length": 2048, **given}
        estimate(model, **keys)
        warm = median(seconds(lambda model=model, keys=keys: estimate(model, **keys).peak, 100))  # type: ignore[misc]
        answer = median(seconds(lambda model=model, keys=keys: estimate(model, **keys).quantities, 5))  # type: ignore[misc]
        yield kind, model, milliseconds(warm), verdict(warm, 3e-3), milliseconds(answer)


def planner() -> Iterable[Row]:
    """The planner's questions, each warm, in time of the process; and the scenarios that a search decides in a second."""
    import vramplan
    from vramplan.planner.largest import frontier

    model, big = "meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-70B"
    qlora: dict[str, Any] = {"task": "train", "gpu": "rtx-4090", "method": "qlora", "checkpointing": "full"}
    questions: tuple[tuple[str, Callable[[], Any]], ...] = (
        ("plan, training", lambda: vramplan.plan(model, task="train", gpu="rtx-4090").points),
        ("plan, 8 GPUs, training 70B", lambda: vramplan.plan(big, task="train", gpu="h100-sxm-80gb", gpu_count=8, global_batch=64).points),
        ("plan, 30 users", lambda: vramplan.plan("Qwen/Qwen3-32B", gpu="h200", sequences=30, context_length=16384).points),
        ("buy, serving", lambda: len(vramplan.buy(big, weights="Q4_K_M", context_length=8192)) and None),
        ("buy, training", lambda: len(vramplan.buy(model, task="train", method="lora", checkpointing="full")) and None),
        ("fix, training", lambda: len(vramplan.fix(model, task="train", gpu="rtx-4090").alone) and None),
        ("max, context", lambda: vramplan.maximum(model, gpu="rtx-4090").value),
        ("max, micro-batch of QLoRA", lambda: vramplan.maximum(model, **qlora).value),
        ("frontier of batch and length", lambda: sum(batch for _, batch in frontier(model, gpu="h100-sxm-80gb"))),
    )
    for what, ask in questions:
        decided = ask()
        start = process_time()
        ask()
        taken = process_time() - start
        yield what, milliseconds(taken), verdict(taken, 1), f"{decided / taken:,.0f}" if decided else ""


def tracing() -> Iterable[Row]:
    """The real step on fake tensors, once; nothing without the extra `trace`."""
    try:
        from vramplan.trace import trace_scenario
    except ModuleNotFoundError:
        return
    from vramplan import scenario

    for kind, model, given in TRAINING[1:3]:
        asked = scenario({"model": model, "task": "train", "sequence_length": 2048, **given})
        value = seconds(lambda asked=asked: trace_scenario(asked), 1)[0]  # type: ignore[misc]
        yield kind, model, milliseconds(value), verdict(value, 15)


def families() -> Iterable[Row]:
    """Walking one model of each model type: the tape alone."""
    from vramplan.catalog.models import all_models
    from vramplan.dim import Dim
    from vramplan.families import walk
    from vramplan.tape import Tape

    configs = {str(entry.config["model_type"]): entry.config for entry in all_models()}

    def every() -> list[Tape]:
        return [walk(Tape(Dim(1, "sequences"), Dim(4096, "tokens")), config) for config in configs.values()]

    every()
    each = {name: median(seconds(lambda config=config: walk(Tape(Dim(1), Dim(4096)), config), 20)) for name, config in configs.items()}  # type: ignore[misc]
    slowest = max(each, key=lambda name: each[name])
    yield f"all {len(configs)} model types", milliseconds(median(seconds(every, 10)))
    yield "the median one", milliseconds(median(each.values()))
    yield f"the slowest, `{slowest}`", milliseconds(each[slowest])


class Delay:
    """In place of the server's barrier: every range request waits."""

    def wait(self, timeout: float) -> None:
        sleep(DELAY)


def remote() -> Iterable[Row]:
    """Headers of a sharded checkpoint, from the tests' server on the loopback through the real client."""
    with tempfile.TemporaryDirectory() as home:
        os.environ.update(HF_HOME=home, HF_HUB_OFFLINE="0", HF_HUB_DISABLE_TELEMETRY="1")
        sys.path.insert(0, str(ROOT / "tests" / "sources"))
        from http.server import ThreadingHTTPServer

        from loopback_hub import Hub, Repo
        from test_hub import shards

        from vramplan.sources import hub

        ThreadingHTTPServer.request_queue_size = 2 * hub.THREADS  # of five, connections would be dropped and tried again after a second
        with Hub({"org/model": Repo({"main": shards(SHARDS)})}) as server:
            hub.find("org/model", endpoint=server.url)  # imports, and the small files that are kept
            for delay in (None, Delay()):
                server.slow = delay  # type: ignore[assignment]
                for threads in (1, hub.THREADS):
                    hub.THREADS, before = threads, hub.THREADS
                    value = median(seconds(lambda: hub.find("org/model", endpoint=server.url), 3 if delay else 5))
                    hub.THREADS = before
                    yield (f"{DELAY * 1e3:.0f} ms before each answer" if delay else "no delay"), str(threads), milliseconds(value)


def table(header: Row, rows: Iterable[Row]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    named = (
        [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        if cpuinfo.exists()
        else []
    )
    return f"{named[0] if named else platform.machine()}, {os.cpu_count()} cores"


def page() -> str:
    with tempfile.TemporaryDirectory() as folder:
        programs = environment(Path(folder) / "venv")
        cold = table(("process", "median of 30", "against bare", "target"), cold_starts(programs))
        found = table(("by", "name", "median of 15", "target"), lookups(programs))
    about = f"{platform.python_implementation()} {platform.python_version()}, click {version('click')}, {platform.system()}, {processor()}"
    return f"""# Benchmarks

*Generated by `python scripts/bench.py` on {date.today()}; do not edit. {about}.*

## Cold start

A wheel in a fresh virtual environment, bytecode compiled, whole processes in turns.

{cold}
## Finding a model

Loading the catalogue and one look-up, in a new process each, imports left out.

{found}
## A warm estimate

`vramplan.estimate(...)` and its peak, the median of 200; the first call reads the catalogue and imports the family.

{table(("kind", "model", "first", "warm", "target"), warm_estimates())}
## A training step

2,048 tokens. The peak is the sweep's; with the reserved memory, all quantities go through the allocator's simulation.

{table(("kind", "model", "peak, warm", "target", "all quantities"), training())}
The same steps traced with real code on fake tensors (extra `trace`):

{table(("kind", "model", "time", "target"), tracing())}
## The planner

Time of the process on one core; a search decides whole ranges of scenarios by a few estimates.

{table(("question", "time", "target", "scenarios decided in a second"), planner())}
## The tape alone

A forward pass of 4,096 tokens.

{table(("walked", "time"), families())}
## A remote checkpoint

The headers of {SHARDS} safetensors files by range requests, through `huggingface_hub`, from a server on the loopback.

{table(("server", "threads", "time"), remote())}"""


if __name__ == "__main__":
    text = page()
    PAGE.write_text(text, encoding="utf-8")
    print(text)
