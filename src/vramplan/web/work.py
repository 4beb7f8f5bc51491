"""Work in a few threads: bounded in number, in what waits, and in time."""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from threading import Lock, get_ident
from typing import Generic, TypeVar

from .problems import Busy

T = TypeVar("T")


class Stopped(BaseException):
    """Raised in a thread whose answer is waited for no longer; no error of ours, so that no search takes it for a refusal."""


class Job(Generic[T]):
    """What a thread makes, and which thread it is while it does."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make, self._lock = make, Lock()
        self._thread: int | None = None

    def __call__(self) -> T:
        self._thread = get_ident()
        try:
            return self._make()
        finally:
            with self._lock:  # whoever stops it holds this, so that it is stopped here at the latest, and never another job in its place
                self._thread = None

    def stop(self) -> None:
        """Raise Stopped where it is, at the next step of Python."""
        with self._lock:
            if self._thread is not None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread), ctypes.py_object(Stopped))


class Work:
    """At most `threads` answers are made at once and `waiting` more wait; one that takes longer than `seconds` is stopped."""

    def __init__(self, threads: int = 2, waiting: int = 512, seconds: float = 10.0) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="answer")
        self._places, self._seconds = threads + waiting, seconds

    async def run(self, make: Callable[[], T]) -> T:
        """What `make` gives. Raises Busy where no place is left or it takes too long, and whatever `make` raises."""
        if not self._places:
            raise Busy("too much is asked at once; ask again in a moment")
        self._places -= 1
        loop, job = asyncio.get_running_loop(), Job(make)
        made = self._pool.submit(copy_context().run, job)
        made.add_done_callback(lambda _: loop.call_soon_threadsafe(self._left))
        try:
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(made)), self._seconds)
        except TimeoutError:
            if not made.cancel():
                job.stop()
            raise Busy(f"no answer within {self._seconds:g} seconds; ask for less") from None

    def _left(self) -> None:
        self._places += 1
