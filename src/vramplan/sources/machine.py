"""The GPUs of this machine: total, free and used memory, and which processes hold it.

NVIDIA by NVML (`nvidia-ml-py` 13, the extra `detect`), AMD by the files of its Linux driver (`/sys/class/drm/card*/device/mem_info_vram_*`,
kernel Documentation/gpu/amdgpu), Apple by `sysctl`. What it does not know: who holds an AMD GPU's memory, Intel's GPUs, GPUs behind MIG.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..catalog.gpus import find_gpu
from ..errors import BadInput
from ..scenario import Scenario

DRM = Path("/sys/class/drm")
FREE_PAGES = ("free", "speculative", "purgeable", "pageable_external")
"""Of macOS, what it gives at once: free pages and those that only cache files or may be thrown away."""
EXTRA = "pip install 'vramplan[detect]'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A process on a GPU and the bytes that it holds; None where the driver does not say."""

    pid: int
    name: str
    nbytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A GPU of this machine: its catalogue `id`, None where it is not in the catalogue; bytes in `total` and `free`."""

    index: int
    name: str
    id: str | None
    total: int
    free: int
    unified: bool
    holders: tuple[Holder, ...]

    @property
    def used(self) -> int:
        """Bytes that are taken, the driver's own among them."""
        return self.total - self.free

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        return {**asdict(self), "used": self.used, "holders": [asdict(one) for one in self.holders]}


def detect() -> list[Found]:
    """The GPUs of this machine; none is no error."""
    found = [*_nvidia(), *_amd(DRM), *(_apple() if sys.platform == "darwin" else ())]
    return [replace(one, index=n) for n, one in enumerate(found)]


def here(asked: Scenario) -> Scenario:
    """A scenario for `gpu` "auto": this machine's GPU with most memory free, or all that are alike, with what is free now.

    Raises BadInput where there is none.
    """
    found = detect()
    if not found:
        raise BadInput(f"gpu 'auto': no GPU found on this machine ({why_none()}); name one with --gpu")
    best = max(found, key=lambda one: one.free)
    alike = [one for one in found if one.name == best.name] if best.id else [best]
    free = min(one.free for one in alike)
    memory = min(find_gpu(best.id).usable, free) if best.id else free
    count = asked.gpu_count or (len(alike) if len(alike) > 1 else None)
    return replace(asked, gpu=best.id, gpu_memory=asked.gpu_memory or memory, gpu_count=count)


def why_none() -> str:
    """What was looked for in vain."""
    if find_spec("pynvml") is None:
        return f"NVIDIA's need {EXTRA}"
    return "neither NVIDIA's driver nor AMD's answered"


def _id(name: str) -> str | None:
    """The catalogue's id of a driver's name."""
    with suppress(BadInput):
        return find_gpu(name).id
    return None


def _nvidia() -> Iterator[Found]:
    """By NVML; nothing where the driver or the extra is not there."""
    try:
        import pynvml as nvml

        nvml.nvmlInit()
    except Exception:  # NVML has an error class for each status, made when it is loaded
        return
    try:
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            name, memory = _text(nvml.nvmlDeviceGetName(handle)), nvml.nvmlDeviceGetMemoryInfo(handle)
            holders = tuple(_holders(nvml, handle))
            yield Found(
                index=index, name=name, id=_id(name), total=int(memory.total), free=int(memory.free), unified=False, holders=holders
            )
    finally:
        nvml.nvmlShutdown()


def _holders(nvml: Any, handle: Any) -> Iterator[Holder]:
    """The processes that compute on a GPU."""
    for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle):
        name = "?"
        with suppress(Exception):
            name = _text(nvml.nvmlSystemGetProcessName(process.pid)).rpartition("/")[2]
        held = process.usedGpuMemory
        yield Holder(pid=int(process.pid), name=name, nbytes=None if held is None else int(held))


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _amd(drm: Path) -> Iterator[Found]:
    """By the files of the amdgpu driver."""
    for device in sorted(path.parent for path in drm.glob("card[0-9]*/device/mem_info_vram_total")):
        with suppress(OSError, ValueError):
            total, used = (int((device / f"mem_info_vram_{what}").read_text()) for what in ("total", "used"))
            product = device / "product_name"
            name = product.read_text().strip() if product.exists() else ""
            yield Found(
                index=0, name=name or "AMD GPU", id=_id(name) if name else None, total=total, free=total - used, unified=False, holders=()
            )


def _apple() -> Iterator[Found]:
    """By sysctl: the chip, the memory, and what is free of what Metal gives a process."""
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        chip, total = _sysctl("machdep.cpu.brand_string"), int(_sysctl("hw.memsize"))
        name = f"{chip} {total >> 30}gb"
        free = sum(int(_sysctl(f"vm.page_{kind}_count")) for kind in FREE_PAGES) * int(_sysctl("hw.pagesize"))
        yield Found(index=0, name=chip, id=_id(name) and name.lower(), total=total, free=min(free, total), unified=True, holders=())


def _sysctl(key: str) -> str:
    done = subprocess.run(["/usr/sbin/sysctl", "-n", key], capture_output=True, text=True, check=True, timeout=5)
    return done.stdout.strip()
