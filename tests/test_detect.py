"""`detect` with a driver that is not there, NVML and AMD's files made up, and `--gpu auto`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from harness import Run
from vramplan import BadInput, estimate
from vramplan.planner.largest import maximum
from vramplan.sources import machine
from vramplan.units import GiB, MiB


def nvml(*gpus: tuple[str, int, int]) -> Any:
    """NVML as nvidia-ml-py 13 has it, of name, total and free bytes; of each GPU one process holds a GiB and one does not say."""
    made = ModuleType("pynvml")
    running = [SimpleNamespace(pid=42, usedGpuMemory=GiB), SimpleNamespace(pid=43, usedGpuMemory=None)]

    def process(pid: int) -> str:
        if pid == 43:
            raise PermissionError
        return "/usr/bin/python3"

    vars(made).update(
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: len(gpus),
        nvmlDeviceGetHandleByIndex=lambda n: gpus[n],
        nvmlDeviceGetName=lambda gpu: gpu[0],
        nvmlDeviceGetMemoryInfo=lambda gpu: SimpleNamespace(total=gpu[1], free=gpu[2]),
        nvmlDeviceGetComputeRunningProcesses=lambda gpu: running,
        nvmlSystemGetProcessName=process,
    )
    return made


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without any GPU."""
    monkeypatch.setattr(machine, "DRM", tmp_path)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(machine, "find_spec", lambda name: None)


def two(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = nvml(("NVIDIA GeForce RTX 4090", 24564 * MiB, 20 * GiB), ("NVIDIA GeForce RTX 4090", 24564 * MiB, 18 * GiB))
    monkeypatch.setitem(sys.modules, "pynvml", cards)


def test_no_gpu_is_said_plainly(run: Run) -> None:
    done = run("detect")
    assert (done.status, done.out) == (0, "No GPU found on this machine: NVIDIA's need pip install 'vramplan[detect]'.\n")
    assert json.loads(run("detect", "--json").out) == {"gpus": []}


def test_auto_without_a_gpu_is_one_line(run: Run) -> None:
    for verb in ("estimate", "max", "fix", "plan"):
        done = run(verb, "Qwen/Qwen2.5-0.5B", "--gpu", "auto")
        assert done.status == 2
        assert done.err.startswith("vramplan: gpu 'auto': no GPU found on this machine")
        assert done.err.count("\n") == 1


def test_nvml(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    two(monkeypatch)
    found = machine.detect()
    assert [(one.index, one.id, one.used) for one in found] == [
        (0, "rtx-4090", 24564 * MiB - 20 * GiB),
        (1, "rtx-4090", 24564 * MiB - 18 * GiB),
    ]
    assert [(who.pid, who.name, who.nbytes) for who in found[0].holders] == [(42, "python3", GiB), (43, "?", None)]
    out = run("detect").out
    assert "GPU 0: process 42 (python3) holds 1.00 GiB" in out
    assert "GPU 1: process 43 (?) holds an unknown amount" in out


def test_auto_is_what_is_free_now_on_all_that_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    two(monkeypatch)
    answer = estimate("Qwen/Qwen2.5-0.5B", gpu="auto", task="train")
    assert (answer.scenario.gpu, answer.scenario.gpu_count, answer.room) == ("rtx-4090", 2, 18 * GiB)
    assert (
        maximum("Qwen/Qwen2.5-0.5B", gpu="auto").value
        == maximum("Qwen/Qwen2.5-0.5B", gpu="rtx-4090", gpu_memory=18 * GiB, gpu_count=2).value
    )


def test_a_card_that_the_catalogue_has_not_is_its_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml(("NVIDIA Imaginary 9", 30 * GiB, 29 * GiB)))
    answer = estimate("Qwen/Qwen2.5-0.5B", gpu="auto", engine="llama.cpp")
    assert answer.room == 29 * GiB


def test_amd_by_its_drivers_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device = tmp_path / "card1" / "device"
    device.mkdir(parents=True)
    (device / "mem_info_vram_total").write_text(f"{24 * GiB}\n")
    (device / "mem_info_vram_used").write_text(f"{2 * GiB}\n")
    (device / "product_name").write_text("AMD Radeon RX 7900 XTX\n")
    (tmp_path / "card2" / "device").mkdir(parents=True)
    (tmp_path / "card2" / "device" / "mem_info_vram_total").write_text("nonsense")
    (only,) = machine.detect()
    assert (only.id, only.total, only.free, only.holders) == ("rx-7900-xtx", 24 * GiB, 22 * GiB, ())


def test_apple_by_sysctl(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"machdep.cpu.brand_string": "Apple M2", "hw.memsize": str(16 * GiB), "hw.pagesize": "16384"}
    answers |= {f"vm.page_{kind}_count": str(n) for n, kind in zip((65536, 0, 0, 65536), machine.FREE_PAGES, strict=True)}
    monkeypatch.setattr(machine, "_sysctl", answers.__getitem__)
    monkeypatch.setattr(sys, "platform", "darwin")
    (only,) = machine.detect()
    assert (only.id, only.total, only.free, only.unified) == ("apple m2 16gb", 16 * GiB, 2 * GiB, True)
    answer = estimate("Qwen/Qwen2.5-0.5B", gpu="auto", engine="llama.cpp")
    assert answer.gpu is not None
    assert (answer.gpu.id, answer.gpu.usable) == ("apple-m2", 2 * GiB)


def test_a_driver_that_fails_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = nvml()

    def fails() -> None:
        raise RuntimeError("NVML_ERROR_LIBRARY_NOT_FOUND")

    broken.nvmlInit = fails
    monkeypatch.setitem(sys.modules, "pynvml", broken)
    monkeypatch.setattr(machine, "find_spec", lambda name: broken)
    assert machine.detect() == []
    with pytest.raises(BadInput, match="neither NVIDIA's driver nor AMD's answered"):
        estimate("Qwen/Qwen2.5-0.5B", gpu="auto")
