"""Load on a server of one's own: `vramplan serve --workers 2`, asked for a minute; the figures go to docs/benchmarks.md.

    python scripts/load.py [--url http://127.0.0.1:8000] [--rate 300] [--seconds 60]

Requests of /api/v1/estimate leave at the rate that is named, whatever comes back (an open loop), over connections that stay open.
Before that the page, and the update after a moved control, one at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import statistics
import time
from collections import Counter
from urllib.parse import quote, urlsplit

SCENARIOS = (
    {"model": "meta-llama/Llama-3.1-8B", "gpu": "rtx-4090"},
    {"model": "Qwen/Qwen3-30B-A3B", "gpu": "rtx-3090", "engine": "llama.cpp", "weights": "Q4_K_M"},
    {"model": "google/gemma-3-27b-it", "gpu": "h100-sxm-80gb"},
    {"model": "meta-llama/Llama-3.1-8B", "gpu": "a100-sxm-80gb", "engine": "transformers"},
)
TRAINING = "/answer?moving=1&model=meta-llama/Llama-3.1-8B&task=train&method=qlora&gpu=rtx-4090&checkpointing=full&sequence_length="
SERVING = "/answer?model=meta-llama/Llama-3.1-8B&gpu=rtx-4090&context_length="
IDLE = 5.0
"""Seconds after which a connection is not used again; the server closes them after 15."""


class Connection:
    """One connection that stays open."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port, self.used = host, port, 0.0
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Status and body of one request; a connection that lay idle until the server closed it is opened anew."""
        if self.streams is None or time.perf_counter() - self.used > IDLE:
            self.streams = await asyncio.open_connection(self.host, self.port)
        self.used = time.perf_counter()
        reader, writer = self.streams
        head = f"{'POST' if body else 'GET'} {quote(path, safe='/?&=%:,.-_')} HTTP/1.1\r\nhost: {self.host}\r\naccept-encoding: gzip\r\n"
        writer.write(f"{head}content-length: {len(body or b'')}\r\n\r\n".encode() + (body or b""))
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        length = next(int(line.partition(":")[2]) for line in lines if line.startswith("content-length:"))
        return int(lines[0].split()[1]), await reader.readexactly(length)


def scenario(number: int) -> bytes:
    """The scenario of a number, of which no two are alike."""
    return json.dumps({**SCENARIOS[number % len(SCENARIOS)], "context_length": 1024 + number % 30_000}).encode()


async def steady(host: str, port: int, rate: int, seconds: int, distinct: int) -> None:
    """Ask at a rate."""
    idle, statuses, times, late = [Connection(host, port) for _ in range(64)], Counter[object](), list[float](), 0
    running: set[asyncio.Task[None]] = set()

    async def one(number: int, due: float) -> None:
        connection = idle.pop() if idle else Connection(host, port)
        try:
            status, _ = await connection.ask("/api/v1/estimate", scenario(number % distinct))
            statuses[status] += 1
            times.append(time.perf_counter() - due)
            idle.append(connection)
        except (OSError, asyncio.IncompleteReadError) as error:
            statuses[type(error).__name__] += 1

    start = time.perf_counter()
    for number in range(rate * seconds):
        due = start + number / rate
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        else:
            late += 1
        task = asyncio.create_task(one(number, due))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    took = time.perf_counter() - start
    cuts = statistics.quantiles(times, n=100)
    print(f"/api/v1/estimate: {len(times) / took:,.0f} answers/s of {rate} asked for {seconds} s, {distinct:,} distinct; {dict(statuses)}")
    print(f"  median {1e3 * cuts[49]:.1f} ms, 95 % {1e3 * cuts[94]:.1f} ms, 99 % {1e3 * cuts[98]:.1f} ms, from when each was due")


async def single(host: str, port: int, name: str, paths: list[str]) -> None:
    """Ask one after the other."""
    connection, times, sizes, plain = Connection(host, port), list[float](), list[int](), 0
    for path in paths:
        start = time.perf_counter()
        status, body = await connection.ask(path)
        times.append(time.perf_counter() - start)
        sizes.append(len(body))
        plain = len(gzip.decompress(body)) if body[:2] == b"\x1f\x8b" else len(body)
        assert status == 200, (path, status)
    median = 1e3 * statistics.median(times)
    print(f"{name}: first {1e3 * times[0]:.1f} ms, median of {len(times)} {median:.1f} ms; {max(sizes):,} bytes sent of {plain:,}")


async def main() -> None:
    """Measure all."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--url", default="http://127.0.0.1:8000")
    options.add_argument("--rate", type=int, default=300)
    options.add_argument("--seconds", type=int, default=60)
    options.add_argument("--distinct", type=int, default=1000, help="scenarios that the requests are of, each asked again and again")
    asked = options.parse_args()
    at = urlsplit(asked.url)
    host, port = at.hostname or "127.0.0.1", at.port or 80
    await single(host, port, "first page", ["/"] * 20)
    await single(
        host, port, "a page with its answer", [f"/?model=meta-llama/Llama-3.1-8B&gpu=rtx-4090&context_length={1000 + n}" for n in range(40)]
    )
    await single(host, port, "an update, serving", [SERVING + str(1000 + n) for n in range(100)])
    await single(host, port, "an update, training", [TRAINING + str(512 + 8 * n) for n in range(100)])
    await steady(host, port, asked.rate, asked.seconds, asked.distinct)


if __name__ == "__main__":
    asyncio.run(main())
