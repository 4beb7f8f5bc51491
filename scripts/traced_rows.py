"""Rows of traced steps: each case in a process of its own, and a line for it in a file. Shared by the scripts that trace frameworks."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

PATIENCE = 300
"""Seconds that a case may take."""


def append(
    path: Path,
    cases: Iterable[dict[str, Any]],
    trace: Callable[[dict[str, Any]], Any],
    versions: Callable[[dict[str, Any]], Mapping[str, str]],
) -> None:
    """Trace the cases that the file at `path` lacks, and append them; `versions` says what made a row."""
    done = [json.loads(line)["scenario"] for line in path.read_text().splitlines()] if path.exists() else []
    context = multiprocessing.get_context("fork")
    with path.open("a") as file:
        for asked in cases:
            if asked in done:
                continue
            receiver, sender = context.Pipe(duplex=False)
            child = context.Process(target=_send, args=(trace, asked, sender))
            child.start()
            figures = receiver.recv() if receiver.poll(PATIENCE) else {"failed": f"no answer in {PATIENCE} s"}
            child.kill()
            child.join()
            file.write(json.dumps({"scenario": asked, **figures, "versions": versions(asked)}) + "\n")
            file.flush()
            print(
                *(f"{key} {value}" for key, value in asked.items()),
                figures.get("failed") or f"{figures['peak'] / 2**30:.3f} GiB",
                flush=True,
            )


def _send(trace: Callable[[dict[str, Any]], Any], asked: dict[str, Any], pipe: Any) -> None:
    """The figures that a trace has already, or those of its second step, which is the steady one, or what went wrong."""
    try:
        found = trace(asked)
        if isinstance(found, dict):
            pipe.send(found)
            return
        steady = found.steady
        pipe.send({"peak": steady.nbytes, "moment": steady.moment, "op": steady.op, "categories": steady.categories})
    except Exception as error:
        pipe.send({"failed": f"{type(error).__name__}: {error}"[:300]})
