"""Write src/vramplan/likelihood.json: how wrong estimates of each kind were, as quantiles, from the measurements in data/measured.

    python scripts/likelihood.py

A total is compared where one was measured (peak_allocated, peak_reserved, process); for engines that give what is left to a cache pool,
that pool, its error taken as one of everything else; llama.cpp's buffers one by one, as it logs them. Left out are ms-swift's rows, whose
sequences are known to be of other lengths than the scenario's (docs/accuracy.md), and rows of low confidence, which are not carried.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from vramplan import Estimate, estimate, scenario
from vramplan.errors import VramplanError
from vramplan.measured.validate import read

ROOT = Path(__file__).resolve().parent.parent
TOTALS = ("peak_allocated", "peak_reserved", "process")
POOLS = ("vllm", "sglang")
BUFFERS = ("weights", "kv_cache", "compute_buffer")
PATH = ROOT / "src" / "vramplan" / "likelihood.json"
STEPS = 20
"""Quantiles of 5 %."""


ABOUT = """
## How likely a verdict is

`likelihood` is the share of these errors with which the estimate would still fit (Laplace's rule of succession; an engine with few
measurements leans on its task's). ms-swift's rows are left out, whose sequences are of other lengths than the scenario's.

| kind, GPUs | n | least | 10 % | median | 90 % | largest |
|---|---|---|---|---|---|---|
"""


def error(row: dict[str, Any]) -> tuple[str, str, float] | None:
    """Engine, how many GPUs, and the signed error; None for what says nothing about a total."""
    given, seen = row["scenario"], row["observed"]
    engine, quantity, value = given["engine"], seen["quantity"], seen["value"]
    pool = engine in POOLS and quantity == "kv_cache"
    if not (quantity in TOTALS or pool or (engine == "llama.cpp" and quantity in BUFFERS)) or "ms-swift" in row["source"]:
        return None
    try:
        answer = estimate(scenario(given))
        ours = answer.quantities[quantity]
    except (VramplanError, KeyError):
        return None
    gpus = "several" if sum(share.count for share in answer.shares) > 1 else "one"
    if pool:
        if answer.room is None:
            return None
        used = answer.quantities["process"] - ours
        return engine, gpus, used / (used + ours - value) - 1
    return engine, gpus, ours / value - 1


def quantiles(errors: Iterable[float]) -> list[float]:
    """From the least to the largest, at equal steps, straight between two."""
    ordered = sorted(errors)
    found = []
    for step in range(STEPS + 1):
        at, part = divmod(step * (len(ordered) - 1) / STEPS, 1)
        low, high = ordered[int(at)], ordered[min(int(at) + 1, len(ordered) - 1)]
        found.append(round(low + part * (high - low), 4))
    return found


def text() -> str:
    """The file: the errors by kind and by task."""
    kinds: dict[str, list[float]] = {}
    for task, name in (("infer", "infer.jsonl"), ("train", "train.jsonl")):
        for row in read(ROOT / "data" / "measured" / name):
            if found := error(dict(row)):
                engine, gpus, value = found
                for kind in (f"{task} {gpus}", f"{task} {engine} {gpus}"):
                    kinds.setdefault(kind, []).append(value)
    made = {kind: {"n": len(errors), "errors": quantiles(errors)} for kind, errors in sorted(kinds.items())}
    lines = ",\n".join(f" {json.dumps(kind)}: {json.dumps(one)}" for kind, one in made.items())
    about = "estimate / measurement - 1, quantiles from the least to the largest in steps of 5 %; made by scripts/likelihood.py"
    return f'{{"about": {json.dumps(about)},\n"kinds": {{\n{lines}\n}}}}\n'


def page() -> str:
    """The section of the accuracy page."""
    lines = [ABOUT]
    for name, kind in json.loads(PATH.read_text(encoding="utf-8"))["kinds"].items():
        cells = [f"{100 * kind['errors'][step]:+.1f} %" for step in (0, 2, 10, 18, 20)]
        lines.append(f"| {name} | {kind['n']} | {' | '.join(cells)} |\n")
    facts = list(_facts())
    sure = [(fitted, answer) for fitted, answer in facts if not 0.1 < (answer.likelihood or 0) < 0.9]
    right = sum(fitted == answer.fits for fitted, answer in facts)
    surely = sum(fitted == ((answer.likelihood or 0) >= 0.9) for fitted, answer in sure)
    wrong = sum(not fitted and bool(answer.fits) and (answer.likelihood or 0) > 0.9 for fitted, answer in facts)
    lines.append(
        f"\nOf {len(facts)} runs that are known to fit or to run out of memory {right} are as the verdict says;"
        f" of the {len(sure)} of which it is\nat least nine in ten sure, {surely}."
        f" Ran out of memory though called likely above 0.9 to fit: {wrong}.\n"
    )
    return "".join(lines)


def _facts() -> Iterable[tuple[bool, Estimate]]:
    """Whether it fitted, and our answer, of the recorded runs that are estimated."""
    for name in ("train_fits.jsonl", "infer.jsonl"):
        for row in read(ROOT / "data" / "measured" / name):
            if row["observed"]["quantity"] == "fits":
                with suppress(VramplanError):
                    yield bool(row["observed"]["value"]), estimate(scenario(row["scenario"]))


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
