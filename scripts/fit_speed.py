"""Fit the efficiencies of `src/vramplan/speed/fitted.json` on `data/measured/speed.jsonl`; `--judge` tells the errors on rows left out.

Rows with `held_out` are a third of all configurations (model, engine, GPU, number format), chosen by a hash; the fit never sees them. An
efficiency is the median of roof / measured of a class. What an engine takes to start a layer is the one number, of a grid, with which its
decode rows deviate least from the medians of their classes; an engine with fewer than 10 rows has none.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from math import log
from pathlib import Path
from statistics import mean, median, quantiles
from typing import Any, NamedTuple

from vramplan.errors import VramplanError
from vramplan.estimate import estimate
from vramplan.measured.validate import read
from vramplan.scenario import scenario
from vramplan.speed.efficiency import ENGINES_OWN, Phase, classes, engine_name
from vramplan.speed.hardware import gpu_class
from vramplan.speed.roof import Roof
from vramplan.speed.serving import decode, lengths, prefill
from vramplan.speed.training import step

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data" / "measured" / "speed.jsonl"
FITTED = ROOT / "src" / "vramplan" / "speed" / "fitted.json"
ROWS = 3
ENGINE_ROWS = 10
GRID = (0, 5, 10, 15, 20, 25, 30, 40, 50, 60, 80, 100, 130, 160, 200, 250, 300, 400, 500, 600, 800, 1000, 1200, 1500)
"""Microseconds."""


class Seen(NamedTuple):
    """A row with its roof, the seconds measured, and the classes that it belongs to."""

    id: str
    phase: Phase
    engine: str
    kind: str
    classes: tuple[str, ...]
    roof: Roof
    seconds: float
    sequences: int
    held: bool


def seen(row: Mapping[str, Any]) -> Seen | None:
    """A row of the file; None where we do not estimate its scenario."""
    quantity, value = row["observed"]["quantity"], row["observed"]["value"]
    try:
        answer = estimate(scenario(row["scenario"]))
        if quantity == "training_tokens_per_second":
            roof, tokens = step(answer)
            phase: Phase = "training"
            sequences = 1
        else:
            sequences, prompt, depth = lengths(answer)
            phase = "decode" if quantity.startswith("decode") else "prefill"
            roof = decode(answer, sequences, depth) if phase == "decode" else prefill(answer, sequences, prompt)
            tokens = sequences if phase == "decode" else sequences * prompt
    except VramplanError as error:
        print(f"left out: {row['id']}: {error}", file=sys.stderr)
        return None
    assert answer.gpu is not None
    names = classes(answer, phase)
    held = bool(row.get("held_out"))
    return Seen(row["id"], phase, engine_name(answer), gpu_class(answer.gpu), names, roof, tokens / value, sequences, held)


def reached(row: Seen, launch: float) -> float | None:
    """The efficiency of a row, None where launches took its time; at most 1 in decoding, where nothing else bounds it."""
    found = row.roof.efficiency(row.seconds, launch)
    return min(found or 1.0, 1.0) if row.phase == "decode" and not row.roof.eager else found


def launches(rows: Sequence[Seen]) -> dict[str, float]:
    """For each engine with rows enough the seconds that it takes to start a layer."""
    decoding: dict[str, list[Seen]] = defaultdict(list)
    for row in rows:
        if row.phase == "decode":
            decoding[row.engine].append(row)
    return {name: best for name, some in sorted(decoding.items()) if len(some) >= ENGINE_ROWS and (best := launch_of(some))}


def launch_of(rows: Sequence[Seen]) -> float:
    """The number of the grid with which `rows` deviate least."""
    return min((micro / 1e6 for micro in GRID if possible(rows, micro / 1e6)), key=lambda launch: deviation(rows, launch), default=0.0)


def possible(rows: Sequence[Seen], launch: float) -> bool:
    """Whether at most a tenth of `rows` would need over 10 % more than the memory's bandwidth if layers took so long to start."""
    return rows[0].roof.eager or sum(1.1 * row.seconds < row.roof.seconds(1.0, launch) for row in rows) * 10 <= len(rows)


def deviation(rows: Sequence[Seen], launch: float) -> float:
    """The mean deviation of `rows` from the medians of their classes, as a logarithm."""
    by_class: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if found := reached(row, launch):
            by_class[row.classes[1]].append(found)
    middle = {name: median(values) for name, values in by_class.items()}
    return mean(abs(log(row.roof.seconds(middle.get(row.classes[1], 1.0), launch) / row.seconds)) for row in rows)


def fit(rows: Sequence[Seen]) -> dict[str, Any]:
    """Launches by engine, and for each class with rows enough its median, 10th and 90th percentile and count."""
    launch = launches(rows)
    by_class: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for level, name in enumerate(row.classes):
            if row.phase == "decode" and level >= ENGINES_OWN and row.roof.eager:
                continue  # what its Python takes says nothing of other engines
            own = row.phase == "decode" and level < ENGINES_OWN
            if found := reached(row, launch.get(row.engine, 0.0) if own else 0.0):
                by_class[name].append(found)
    fitted = {}
    for name, values in sorted(by_class.items()):
        if len(values) >= ROWS:
            tenths = quantiles(values, n=10, method="inclusive")
            fitted[name] = [round(median(values), 4), round(tenths[0], 4), round(tenths[-1], 4), len(values)]
    return {"launch": {name: round(seconds, 6) for name, seconds in launch.items()}, "classes": fitted}


def error(row: Seen, fitted: Mapping[str, Any]) -> float:
    """Estimated speed over measured speed - 1."""
    level, name = next((level, name) for level, name in enumerate(row.classes) if name in fitted["classes"])
    launch = fitted["launch"].get(row.engine, 0.0) if row.phase == "decode" and level < ENGINES_OWN else 0.0
    return row.seconds / row.roof.seconds(fitted["classes"][name][0], launch) - 1


def judge(rows: Sequence[Seen], fitted: Mapping[str, Any]) -> Iterator[tuple[str, int, float, float, float]]:
    """Of rows left out by phase, engine and kind of GPU: how many, median and 90th percentile of |error|, median error."""
    groups: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for row in rows:
        if row.held:
            phase = "decode, several sequences" if row.phase == "decode" and row.sequences > 1 else row.phase
            for width in (1, 2, 3):
                groups[(phase, row.engine, row.kind)[:width]].append(error(row, fitted))
    for group, errors in sorted(groups.items()):
        sizes = sorted(map(abs, errors))
        yield " · ".join(group), len(sizes), median(sizes), sizes[min(len(sizes) * 9 // 10, len(sizes) - 1)], median(errors)


PAGE = """
## Speed

Configurations that the fit of `src/vramplan/speed/fitted.json` has not seen (`held_out` in `data/measured/speed.jsonl`): tokens per second,
estimate / measurement - 1. The aim is a median of 20 % in decoding and of 25 % for prompts and training.

| phase, engine, GPUs | n | median abs. | 90 % | median signed |
|---|---|---|---|---|
"""


def page() -> str:
    """The judgement as a section of docs/accuracy.md."""
    rows = [found for row in read(DATA) if (found := seen(row))]
    fitted = json.loads(FITTED.read_text(encoding="utf-8"))
    lines = (f"| {name} | {n} | {mid:.0%} | {p90:.0%} | {signed:+.0%} |\n" for name, n, mid, p90, signed in judge(rows, fitted))
    return PAGE + "".join(lines)


def main() -> None:
    """Write the file, or judge what the file would hold."""
    rows = [found for row in read(DATA) if (found := seen(row))]
    fitted = fit([row for row in rows if not row.held])
    if "--judge" in sys.argv:
        print(f"{'rows left out':60} {'n':>4} {'median |e|':>10} {'p90':>6} {'signed':>7}")
        for name, n, middle, p90, signed in judge(rows, fitted):
            print(f"{name:60} {n:4} {middle:10.0%} {p90:6.0%} {signed:+7.0%}")
        return
    text = json.dumps(fitted["classes"], ensure_ascii=False).replace("], ", "],\n  ").replace("{", "{\n  ", 1).replace("]}", "]\n }")
    FITTED.write_text(f'{{\n "launch": {json.dumps(fitted["launch"], ensure_ascii=False)},\n "classes": {text}\n}}\n', encoding="utf-8")
    print(f"{len(fitted['classes'])} classes of {sum(not row.held for row in rows)} rows; {sum(row.held for row in rows)} left out")


if __name__ == "__main__":
    main()
