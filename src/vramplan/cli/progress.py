"""How far a long search is, on standard error where that is a terminal; interrupted, a search goes on with what it has."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

Row = TypeVar("Row")
AFTER = 0.5
"""Seconds before anything is shown, and between two updates a fifth of it."""


class Progress:
    """A line that counts `what`, gone at the end. Called with the count."""

    def __init__(self, what: str) -> None:
        self.what, self.began, self.shown = what, time.monotonic(), 0.0

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if sys.stderr.isatty() and now - self.began > AFTER and now - self.shown > AFTER / 5:
            self.shown = now
            print(f"\r{done:,} {self.what} (Ctrl-C: the best so far)", end="", file=sys.stderr, flush=True)

    def through(self, rows: Iterable[Row]) -> Iterator[Row]:
        """`rows`, counted, until they end or Ctrl-C."""
        try:
            for done, row in enumerate(rows, 1):
                self(done)
                yield row
        except KeyboardInterrupt:
            return

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
