"""The roofline: seconds that the hardware needs at the least, part by part, and what they come to at an efficiency.

Williams, Waterman and Patterson 2009, "Roofline: an insightful visual performance model" (CACM 52-4): work takes the longer of its bytes
over the bandwidth and its operations over their rate. Beside it stand what an engine's launches take for each layer, and the link.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Roof:
    """Least seconds of some work: its `bandwidth` and `compute`, of which `ideal` is what both together take at the least, and its `link`.

    `launches` counts layers that an engine starts one after the other: between the work of two, or, where it is `eager`, ahead of it, so
    that the longer of both counts. A link that is `hidden` runs while the GPU computes.
    """

    bandwidth: float
    compute: float
    ideal: float
    link: float = 0.0
    launches: int = 0
    eager: bool = False
    hidden: bool = False

    def seconds(self, efficiency: float, launch: float = 0.0) -> float:
        """Seconds where `efficiency` of the ideal is reached and a layer takes `launch` seconds to start."""
        work, started = self.ideal / efficiency, self.launches * launch
        busy = max(work, started) if self.eager else work + started
        return max(busy, self.link) if self.hidden else busy + self.link

    def bound(self, efficiency: float, launch: float = 0.0) -> str:
        """What takes longest: bandwidth, compute, interconnect or overhead."""
        parts = {
            "bandwidth" if self.bandwidth >= self.compute else "compute": self.ideal / efficiency,
            "interconnect": self.link,
            "overhead": self.launches * launch,
        }
        return max(parts, key=lambda name: parts[name])

    def efficiency(self, seconds: float, launch: float = 0.0) -> float | None:
        """The efficiency that gives `seconds`; None where launches and link alone take as long (within 15 % where it is eager)."""
        left, started = seconds - (0.0 if self.hidden else self.link), self.launches * launch
        if self.eager:
            return self.ideal / left if left > 1.15 * started else None
        return self.ideal / (left - started) if left > started else None
