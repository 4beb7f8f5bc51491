"""Speed: tokens per second and the seconds of a step, from the same tape as memory; what bounds them, and how sure that is."""

from .answer import Speed, speed, told
from .runs import Run, Served, concurrency, run

__all__ = ["Run", "Served", "Speed", "concurrency", "run", "speed", "told"]
