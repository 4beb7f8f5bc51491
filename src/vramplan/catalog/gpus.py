"""The GPUs of the catalogue: what the driver reports, what a process can use, how fast they are; found by id or by what people call them.

`gpus.json` holds the figures with their sources. Not here: what a context, NCCL or a desktop takes of the usable memory; those are line
items of an estimate.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from ..errors import BadInput, NotFound, nearest
from ..units import GiB, MiB, parse_size

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """US dollars `per` "card" (bought) or "hour" (rented), when, and who says so."""

    usd: float
    per: str
    date: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One device, or one size of it where memory is shared with the processor.

    `capacity` is what its driver reports and `usable` what one process can get of it, in bytes, each with where that is known from;
    `bandwidth` and `nvlink` (both directions together) are bytes/s; `rates` dense operations/s by number format ("fp16_acc16" accumulates
    in fp16; the others in fp32 or int32). Fields named in `approximate` are estimates of their source.
    """

    id: str
    name: str
    aliases: tuple[str, ...]
    vendor: str
    kind: str
    year: int
    memory_type: str
    memory_options: tuple[int, ...]
    capacity: int
    capacity_source: str
    usable: int
    usable_source: str
    unified: bool
    bandwidth: int
    rates: Mapping[str, float]
    compute_capability: str | None
    gfx: str | None
    nvlink: int | None
    pcie: str | None
    tdp_w: int | None
    prices: tuple[Price, ...]
    source: str
    approximate: tuple[str, ...]
    note: str | None


def capacity(vendor: str, kind: str, memory: Mapping[str, str]) -> tuple[int, str]:
    """Bytes that the driver reports, and where that is known from.

    Where no driver's figure is known it is the nominal size; NVIDIA's data-centre cards with GDDR memory give 1/16 of it to ECC, which is
    on by default (T4: 15,360 MiB of 16,384; L40S: 46,068 of 49,152).

    >>> capacity("nvidia", "datacenter", {"nominal": "48 GiB", "type": "GDDR6"})[0] / MiB
    46080.0
    """
    if "driver" in memory:
        return parse_size(memory["driver"]), memory["driver_source"]
    nominal = parse_size(memory["nominal"])
    if vendor == "nvidia" and kind == "datacenter" and memory["type"].startswith("GDDR"):
        return nominal * 15 // 16, "nominal size less 1/16 for ECC, which is on by default; the driver's figure is not known"
    return nominal, "nominal size; the driver's figure is not known"


def usable(vendor: str, capacity: int, memory: Mapping[str, str]) -> tuple[int, str]:
    """Bytes that a process can get of `capacity`, and where that is known from.

    What torch or the kernel was seen to give, where it was seen. On Apple silicon Metal's recommendedMaxWorkingSetSize: 74 % of the memory
    (seen: 11.84 GiB of 16, 17.76 of 24) and 84 % from 128 GB on (107.52 GiB of 128), both on newer macOS; `sysctl iogpu.wired_limit_mb`
    changes it (logs in llmfit#754, sglang#29949, antirez/ds4#893). Else 0.5 GiB less than the driver reports: torch
    sees 0.4 to 0.6 GiB less than nvidia-smi shows (RTX 5090: 490 MiB, H100: 553 MiB); for other vendors that is an assumption.

    >>> usable("nvidia", 24564 * MiB, {})[0] / MiB, round(usable("apple", 128 * GiB, {})[0] / GiB, 2)
    (24052.0, 107.52)
    """
    if "usable" in memory:
        return parse_size(memory["usable"]), memory["usable_source"]
    if vendor == "apple":
        percent = 84 if capacity >= 128 * GiB else 74
        return (
            capacity * percent // 100,
            f"recommendedMaxWorkingSetSize of newer macOS: {percent} % of the memory; iogpu.wired_limit_mb changes it",
        )
    return capacity - 512 * MiB, "0.5 GiB less than the capacity: torch was seen to get 0.4 to 0.6 GiB less than nvidia-smi shows"


@cache
def _file() -> Row:
    with open(os.path.join(os.path.dirname(__file__), "gpus.json"), encoding="utf-8") as file:
        return json.load(file)  # type: ignore[no-any-return]


@cache
def _rows() -> dict[str, Row]:
    """id -> entry, in the file's order."""
    return {row["id"]: row for row in _file()["gpus"]}


def _gpu(row: Row, gib: int | None = None) -> Gpu:
    """The device of an entry; with `gib`, the one with that much memory of those that its maker offers."""
    memory = row["memory"] if gib is None else row["memory"] | {"nominal": f"{gib} GiB"}
    total, total_source = capacity(row["vendor"], row["kind"], memory)
    free, free_source = usable(row["vendor"], total, memory)
    options = tuple(memory.get("options_gib", ()))
    sources = _file()["sources"]
    return Gpu(
        id=row["id"],
        name=f"{row['name']} {gib or options[-1]} GB" if options else row["name"],
        aliases=tuple(row["aliases"]),
        vendor=row["vendor"],
        kind=row["kind"],
        year=row["year"],
        memory_type=memory["type"],
        memory_options=options,
        capacity=total,
        capacity_source=total_source,
        usable=free,
        usable_source=free_source,
        unified=row.get("unified", False),
        bandwidth=round(row["bandwidth_gb_per_s"] * 1e9),
        rates={form: tera * 1e12 for form, tera in row["tflops"].items()},
        compute_capability=row.get("compute_capability"),
        gfx=row.get("gfx"),
        nvlink=round(row["nvlink_gb_per_s"] * 1e9) if "nvlink_gb_per_s" in row else None,
        pcie=row.get("pcie"),
        tdp_w=row.get("tdp_w"),
        prices=tuple(Price(**price) for price in row.get("prices", ())),
        source="; ".join(sources[word] for word in row["source"]),
        approximate=tuple(row.get("approximate", ())),
        note=row.get("note"),
    )


def all_gpus() -> list[Gpu]:
    """Every GPU of the catalogue, in the order of vendor, kind and age; where one comes in several sizes, the largest."""
    return [_gpu(row) for row in _rows().values()]


# How people write a GPU: "NVIDIA GeForce RTX 4090", "A100-SXM4-80GB", "m3 max 128gb".
_GENERIC = frozenset(
    (
        "nvidia",
        "geforce",
        "tesla",
        "amd",
        "radeon",
        "instinct",
        "intel",
        "apple",
        "google",
        "aws",
        "gpu",
        "graphics",
        "generation",
        "edition",
        "workstation",
        "hbm",
    )
)
_SIZE = r"(?<![a-z0-9])(\d{1,4})\s?(?:gib|gb|g)\b"


def _handle(text: str) -> tuple[tuple[str, ...], int | None]:
    """The telling pieces of a GPU's name, and the memory in GB that it names.

    >>> _handle("NVIDIA A100-SXM4-80GB")
    (('a', '100', 'sxm'), 80)
    """
    text = text.lower()
    size = re.search(_SIZE, text)
    text = re.sub(r"(sxm|hbm)\d", r"\1", re.sub(_SIZE, " ", text)).replace("hbme", "hbm").replace("mobile", "laptop")
    return tuple(piece for piece in re.findall(r"[a-z]+|\d+", text) if piece not in _GENERIC), int(size[1]) if size else None


@cache
def _handles() -> list[tuple[tuple[str, ...], int | None, Row]]:
    """The pieces and the size of every id, name and alias."""
    return [(*_handle(text), row) for row in _rows().values() for text in (row["id"], row["name"], *row["aliases"])]


def _has_size(row: Row, gb: int) -> bool:
    """Whether a GPU is sold with about this much memory: "192 GB" of HBM may be 180 GiB to the driver."""
    memory = row["memory"]
    offered = memory.get("options_gib") or [float(memory["nominal"].split()[0])]
    return any(abs(size - gb) <= 0.08 * gb for size in offered)


def _meant(name: str) -> list[Row]:
    """The entries that `name` may mean: by its own alias, by a name with other or no memory, by a longer name that holds its pieces."""
    pieces, gb = _handle(name)
    joined = "".join(pieces)
    exact = [row for has, size, row in _handles() if "".join(has) == joined and size == gb]
    same = [row for has, _, row in _handles() if "".join(has) == joined]
    holds = [row for has, _, row in _handles() if set(pieces) <= set(has)]
    for found in (exact, same, holds) if pieces else ():
        unique = {row["id"]: row for row in found if gb is None or _has_size(row, gb)}
        if unique:
            return list(unique.values())
    return []


@lru_cache(maxsize=256)
def find_gpu(name: str) -> Gpu:
    """The GPU that `name` means: an id, an alias, a name as drivers and people write it, with or without its memory.

    Apple silicon comes in several sizes: "m3 max 64gb" is one, the id alone the largest.

    >>> [find_gpu(name).id for name in ("4090", "NVIDIA H100 80GB HBM3", "A100-80GB", "m3 max 128gb")]
    ['rtx-4090', 'h100-sxm-80gb', 'a100-sxm-80gb', 'apple-m3-max-40-core']

    Raises BadInput for a name that several GPUs share, naming them, and NotFound with the nearest ids.
    """
    row = _rows().get(name)
    if row is not None:
        return _gpu(row)
    name = name[:200]
    found = _meant(name)
    if len(found) > 1:
        several = ", ".join(row["id"] for row in found[:8]) + (", …" if len(found) > 8 else "")
        raise BadInput(f"GPU {name[:80]!r}: may mean several; name one of {several}")
    gb = _handle(name)[1]
    if not found and gb is not None and (others := _meant(re.sub(_SIZE, " ", name.lower()))):
        raise NotFound(f"GPU {name[:80]!r}: no {' or '.join(row['id'] for row in others[:8])} with {gb} GB in the catalogue")
    if not found:
        handles = {text.lower() for row in _rows().values() for text in (row["id"], *row["aliases"])}
        raise NotFound(f"GPU {name[:80]!r}: not in the catalogue{nearest(name, handles)}")
    sizes = [size for size in found[0]["memory"].get("options_gib", ()) if size == gb]
    return _gpu(found[0], sizes[0] if sizes else None)


def find_gpus(name: str) -> tuple[Gpu, ...]:
    """The GPU called `name`, or those whose names it joins with `+`. Raises as `find_gpu`.

    >>> [gpu.id for gpu in find_gpus("rtx-4090 + 3060")], [gpu.id for gpu in find_gpus("AMD Ryzen AI MAX+ 395")]
    (['rtx-4090', 'rtx-3060-12gb'], ['ryzen-ai-max-395-128gb'])
    """
    parts = name.split("+")
    try:
        return (find_gpu(name),)
    except (NotFound, BadInput):
        if len(parts) < 2:
            raise
    return tuple(find_gpu(part.strip()) for part in parts)


def anonymous_gpu(memory: int) -> Gpu:
    """A GPU of which only the `memory` is given, in bytes, all of it usable; its speed is not known (bandwidth 0, no rates)."""
    given = f"given: {memory / GiB:.2f} GiB"
    row = {
        "id": "unnamed",
        "name": "unnamed GPU",
        "aliases": (),
        "vendor": "",
        "kind": "",
        "year": 0,
        "bandwidth_gb_per_s": 0,
        "tflops": {},
    }
    stated = {
        "nominal": f"{memory} B",
        "type": "",
        "driver": f"{memory} B",
        "driver_source": given,
        "usable": f"{memory} B",
        "usable_source": given,
    }
    return _gpu(row | {"memory": stated, "source": ()})


def search_gpus(query: str = "") -> list[Gpu]:
    """The GPUs whose id, names, vendor, kind, memory type or architecture hold every word of `query`."""
    words = query.lower().split()
    fields = ("id", "name", "vendor", "kind", "gfx")
    texts = (
        (row, " ".join([str(row.get(field, "")) for field in fields] + row["aliases"] + [row["memory"]["type"]]))
        for row in _rows().values()
    )
    return [_gpu(row) for row, text in texts if all(word in text.lower() for word in words)]
