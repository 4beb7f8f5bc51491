"""The committed gpus.json: every figure plausible and sourced, the drivers' capacities exact, every name found."""

from collections import Counter

import pytest

from vramplan.catalog import gpus
from vramplan.catalog.gpus import all_gpus, anonymous_gpu, find_gpu, search_gpus
from vramplan.errors import BadInput, NotFound
from vramplan.units import GiB, MiB

GPUS = {gpu.id: gpu for gpu in all_gpus()}

NVIDIA_SMI = """
rtx-5090 32607, rtx-5080 16303, rtx-5070-ti 16303, rtx-5070 12227, rtx-5060-ti-16gb 16311, rtx-5060 8151, rtx-4090 24564,
rtx-4080 16376, rtx-4070-ti-super 16376, v100-sxm-32gb 32768, rtx-4070 12282, rtx-4070-ti 12282, rtx-4070-super 12282,
rtx-4060-ti-16gb 16380, rtx-a6000 49140, rtx-6000-ada 49140, rtx-a4000 16376, rtx-pro-6000-blackwell 97887, t4 15360, a10 23028, l4 23034,
l40s 46068, a100-pcie-40gb 40960, a100-sxm-40gb 40960, a100-pcie-80gb 81920, a100-sxm-80gb 81920, h100-sxm-80gb 81559, h100-pcie-80gb 81559,
h100-nvl-94gb 95830, h200-sxm-141gb 143771, gh200-96gb 97871, h20 97871, b200 183359, b300 275040, gb200 189471, gb300 284208
"""


@pytest.mark.parametrize(("id", "mib"), [pair.split() for pair in NVIDIA_SMI.replace("\n", " ").split(",")])
def test_capacity_is_what_nvidia_smi_prints(id: str, mib: str) -> None:
    assert GPUS[id].capacity == int(mib) * MiB
    assert "nvidia-smi" in GPUS[id].capacity_source


def test_capacities_that_other_drivers_print() -> None:
    assert GPUS["mi300x"].capacity == 206_141_652_992
    assert GPUS["dgx-spark-gb10"].capacity == 128_501_256_192


@pytest.mark.parametrize(
    ("id", "nbytes"),
    [
        ("rtx-5090", 33_677_180_928),
        ("h100-sxm-80gb", int(79.11 * GiB)),
        ("rtx-4070-laptop", 7805 * MiB),
        ("ryzen-ai-max-395-128gb", 63968 * MiB),
        ("rtx-4090", (24564 - 512) * MiB),
        ("tpu-v5e", int(15.75 * GiB)),
    ],
)
def test_usable_is_what_was_seen_or_half_a_gib_less(id: str, nbytes: int) -> None:
    assert abs(GPUS[id].usable - nbytes) < 1024


@pytest.mark.parametrize(("name", "gib"), [("m1 16gb", 11.84), ("m2 24gb", 17.76), ("m3 max 128gb", 107.52), ("m4 max 128 GB", 107.52)])
def test_apple_lets_metal_use_what_was_seen(name: str, gib: float) -> None:
    assert round(find_gpu(name).usable / GiB, 2) == gib


def test_every_figure_is_plausible_and_has_a_source() -> None:
    assert len(GPUS) == 181
    assert Counter(gpu.vendor for gpu in GPUS.values()) == {"nvidia": 114, "amd": 30, "apple": 20, "intel": 10, "google": 5, "aws": 2}
    for gpu in GPUS.values():
        assert gpu.capacity > gpu.usable > 0.4 * gpu.capacity, gpu.id
        assert gpu.capacity_source, gpu.id
        assert gpu.usable_source, gpu.id
        assert gpu.source, gpu.id
        assert 60e9 <= gpu.bandwidth <= 9e12, gpu.id
        assert all(1e12 < rate < 2e16 for rate in gpu.rates.values()), gpu.id
        assert 2016 <= gpu.year <= 2026, gpu.id
        assert gpu.tdp_w is None or 5 <= gpu.tdp_w <= 1500, gpu.id
        assert all(price.usd > 0 and price.source and price.date for price in gpu.prices), gpu.id
        assert (gpu.compute_capability is not None) == (gpu.vendor == "nvidia"), gpu.id
        assert (gpu.gfx is not None) == (gpu.vendor == "amd"), gpu.id


def test_narrower_numbers_are_not_slower() -> None:
    slow_int8 = {"b300", "gb300"}  # NVIDIA cut INT8 there
    for gpu in GPUS.values():
        rates = [gpu.rates[form] for form in ("bf16", "fp8", "fp4") if form in gpu.rates]
        assert rates == sorted(rates), gpu.id
        if "int8" in gpu.rates and "fp16" in gpu.rates:
            assert (gpu.rates["int8"] >= gpu.rates["fp16"]) != (gpu.id in slow_int8), gpu.id


# Data sheets of the makers (NVIDIA product pages and data sheets, AMD Instinct data brochures, Google Cloud TPU docs, Intel ARK), as read
# by hand: memory GB, GB/s, dense FP16 tensor TFLOPS (FP32 accumulate), watts.
DATA_SHEETS = """
rtx-5090 32 1792 209.5 575
rtx-5080 16 960 112.6 360
rtx-5070-ti 16 896 87.9 300
rtx-4090 24 1008 165.2 450
rtx-4080 16 717 97.5 320
rtx-4070 12 504 58.3 200
rtx-3090 24 936 71 350
rtx-3080 10 760 59.5 320
rtx-3060-12gb 12 360 25.5 170
rtx-2080-ti 11 616 53.8 250
rtx-a6000 48 768 154.8 300
rtx-a5000 24 768 111.1 230
rtx-a4000 16 448 76.7 140
rtx-6000-ada 48 960 364.2 300
rtx-4000-ada 20 360 106.9 130
rtx-pro-6000-blackwell 96 1792 504 600
t4 16 320 65 70
a10 24 600 125 150
a30 24 933 165 165
a40 48 696 149.7 300
a100-pcie-40gb 40 1555 312 250
a100-pcie-80gb 80 1935 312 300
a100-sxm-80gb 80 2039 312 400
l4 24 300 121 72
l40s 48 864 362 350
h100-sxm-80gb 80 3350 989.5 700
h100-pcie-80gb 80 2000 756 350
h100-nvl-94gb 94 3900 835.5 400
h200-sxm-141gb 141 4800 989.5 700
h20 96 4000 148 400
b200 180 7700 2250 1000
mi210 64 1638 181 300
mi300x 192 5300 1307.4 750
mi325x 256 6000 1307.4 1000
mi355x 288 8000 2516.6 1400
rx-7900-xtx 24 960 122.8 355
rx-9070-xt 16 640 195 304
arc-b580 12 456 116.7 190
gaudi-3 128 3700 1835 900
tpu-v5e 16 819 197 None
tpu-v5p 95 2765 459 None
"""


@pytest.mark.parametrize("row", DATA_SHEETS.strip().splitlines())
def test_data_sheets(row: str) -> None:
    id, memory, bandwidth, fp16, watts = row.split()
    gpu = GPUS[id]
    assert gpu.capacity == pytest.approx(float(memory) * GiB, rel=0.065)
    assert gpu.bandwidth == pytest.approx(float(bandwidth) * 1e9, rel=0.025)
    assert gpu.rates["fp16"] == pytest.approx(float(fp16) * 1e12, rel=0.02)
    assert str(gpu.tdp_w) == watts


MEANT = """
RTX 4090 | 4090 | rtx4090 | NVIDIA GeForce RTX 4090 | RTX 4090 24GB = rtx-4090
H100 80GB | h100 | NVIDIA H100 80GB HBM3 | H100 SXM = h100-sxm-80gb
NVIDIA H100 PCIe = h100-pcie-80gb
H100 94GB | NVIDIA H100 NVL = h100-nvl-94gb
A100-80GB | a100 | NVIDIA A100-SXM4-80GB = a100-sxm-80gb
a100 40gb | NVIDIA A100-SXM4-40GB = a100-sxm-40gb
Tesla V100-SXM2-16GB | v100 = v100-sxm-16gb
v100 32gb = v100-sxm-32gb
NVIDIA H200 | h200 141gb = h200-sxm-141gb
B200 192GB | NVIDIA B200 = b200
Tesla T4 = t4
NVIDIA L40S | l40s 48gb = l40s
NVIDIA RTX A6000 | a6000 = rtx-a6000
NVIDIA RTX 6000 Ada Generation | rtx 6000 ada = rtx-6000-ada
rtx pro 6000 | NVIDIA RTX PRO 6000 Blackwell Workstation Edition = rtx-pro-6000-blackwell
NVIDIA RTX PRO 6000 Blackwell Server Edition = rtx-pro-6000-blackwell-server
rtx 3060 = rtx-3060-12gb
3080 12gb = rtx-3080-12gb
RTX 4060 Ti 16GB = rtx-4060-ti-16gb
4070 ti super | 4070tis = rtx-4070-ti-super
NVIDIA GeForce RTX 4070 Laptop GPU = rtx-4070-laptop
m3 max 128gb | m3 max 64gb = apple-m3-max-40-core
m3 max 96gb = apple-m3-max-30-core
Apple M2 Ultra = apple-m2-ultra
AMD Instinct MI300X = mi300x
AMD Radeon RX 7900 XTX | 7900 xtx = rx-7900-xtx
NVIDIA GB10 | dgx spark | DGX Spark 128GB = dgx-spark-gb10
strix halo | ryzen ai max+ 395 | radeon 8060s = ryzen-ai-max-395-128gb
Intel Arc B580 = arc-b580
gaudi 3 = gaudi-3
tpu v5e = tpu-v5e
"""


@pytest.mark.parametrize(
    ("name", "id"),
    [(name.strip(), line.split("=")[1].strip()) for line in MEANT.strip().splitlines() for name in line.split("=")[0].split("|")],
)
def test_names(name: str, id: str) -> None:
    assert find_gpu(name).id == id


def test_memory_in_the_name_chooses_the_size() -> None:
    assert find_gpu("m3 max 64gb").capacity == 64 * GiB
    assert find_gpu("apple-m3-max-40-core").capacity == 128 * GiB
    assert find_gpu("m3 max 64gb").name == "Apple M3 Max (40-core GPU) 64 GB"


@pytest.mark.parametrize("name", ["4060 ti", "RTX 5060 Ti", "rtx 6000", "7900", "m3 max", "A100 PCIe"])
def test_a_name_of_several_is_refused_with_their_ids(name: str) -> None:
    with pytest.raises(BadInput, match=r"may mean several; name one of \S+, \S+"):
        find_gpu(name)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("rtx 4091", "did you mean 'rtx-4090'"),
        ("h1000", "'h100'"),
        ("4090 48gb", "no rtx-4090 with 48 GB"),
        ("", "not in"),
        ("é", "not in"),
    ],
)
def test_unknown_names(name: str, says: str) -> None:
    with pytest.raises(NotFound, match=says):
        find_gpu(name)


def test_a_huge_name_is_refused_in_a_line() -> None:
    with pytest.raises(BadInput) as caught:
        find_gpu("rtx " * 100_000)
    assert len(str(caught.value)) < 300


def test_no_two_gpus_share_an_id_an_alias_or_a_name() -> None:
    owners: dict[tuple[str, int | None], set[str]] = {}
    for pieces, size, row in gpus._handles():
        owners.setdefault(("".join(pieces), size), set()).add(row["id"])
    assert [names for names in owners.items() if len(names[1]) > 1] == []
    assert all(find_gpu(text).id == gpu.id for gpu in GPUS.values() for text in (gpu.id, *gpu.aliases, gpu.id.upper()))


def test_a_gpu_of_which_only_the_memory_is_given() -> None:
    gpu = anonymous_gpu(24 * GiB + 1)
    assert (gpu.capacity, gpu.usable, gpu.bandwidth, gpu.rates) == (24 * GiB + 1, 24 * GiB + 1, 0, {})
    assert gpu.usable_source == "given: 24.00 GiB"


def test_search() -> None:
    assert [gpu.id for gpu in search_gpus("5090")] == ["rtx-5090", "rtx-5090-d", "rtx-5090-laptop"]
    assert {gpu.vendor for gpu in search_gpus("amd datacenter")} == {"amd"}
    assert len(search_gpus()) == 181
    assert search_gpus("no such card") == []
