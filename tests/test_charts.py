"""Charts: areas are as large as the numbers, and colours are told apart and read by all eyes."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from vramplan import estimate
from vramplan.ledger import Moment
from vramplan.report import charts
from vramplan.report.parts import PARTS, by_part, ink, look, luminance
from vramplan.units import gib

ANSWERS = [
    estimate("meta-llama/Llama-3.1-8B", gpu="rtx-4090", context_length=8192),
    estimate("meta-llama/Llama-3.1-8B", gpu="rtx-4090", task="train", method="qlora"),
    estimate("meta-llama/Llama-3.1-8B", gpu="h100-sxm-80gb", task="train", method="full", optimizer="adamw"),
    estimate("Qwen/Qwen3-30B-A3B", gpu="rtx-3090", engine="llama.cpp", weights="Q4_K_M", context_length=32768),
    estimate("deepseek-ai/DeepSeek-V3", gpu="h100-sxm-80gb", gpu_count=8, tensor_parallel=8),
    estimate("openai-community/gpt2", engine="transformers"),
]


def simulated(colour: str, kind: str) -> tuple[float, ...]:
    """A colour as eyes of a kind see it, in CIE L*a*b* (Machado, Oliveira and Fernandes 2009, table 1 at severity 1, on linear RGB)."""
    matrices = {
        "normal": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
        "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
        "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
        "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
    }
    raw = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in raw]
    red, green, blue = (min(max(sum(w * c for w, c in zip(row, linear, strict=True)), 0), 1) for row in matrices[kind])
    x = (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.9505
    y = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    z = (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.089
    fx, fy, fz = (c ** (1 / 3) if c > 0.008856 else 7.787 * c + 16 / 116 for c in (x, y, z))
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


@pytest.mark.parametrize("kind", ["normal", "protanopia", "deuteranopia", "tritanopia"])
def test_neighbours_in_a_bar_are_told_apart_by_all_eyes(kind: str) -> None:
    """Parts that stand side by side in some answer differ by 10 or more, where 2.3 is just noticed (CIE 1976)."""
    pairs = {pair for answer in ANSWERS for parts in [list(by_part(answer.ledger))] for pair in pairwise(parts)}
    for left, right in pairs:
        apart = zip(simulated(look(left).fill, kind), simulated(look(right).fill, kind), strict=True)
        assert sum((a - b) ** 2 for a, b in apart) ** 0.5 > 10, (left, right)


def test_letters_are_read_on_their_colours() -> None:
    for part, (letter, _, fill) in PARTS.items():
        over, under = sorted((luminance(fill), luminance(ink(fill))))
        assert (under + 0.05) / (over + 0.05) >= 4.5, part
        assert f">{letter}</text>" in charts.swatch(part)


def test_a_bar_is_as_long_as_its_parts() -> None:
    for answer in ANSWERS:
        parts = by_part(answer.ledger)
        svg = charts.bar(parts, answer.room)
        widths = [float(width) for width in re.findall(r'width="([\d.]+)%" height="34" fill="#', svg)]
        whole = max(sum(parts.values()), answer.room or 0)
        assert widths == pytest.approx([100 * nbytes / whole for nbytes in parts.values()], abs=1e-3)
        assert ("stroke-dasharray" in svg) == bool(answer.room and sum(parts.values()) > answer.room)


def test_columns_of_moments_are_as_high_as_what_is_alive() -> None:
    for answer in ANSWERS:
        svg = charts.moments(answer.ledger, answer.room)
        heights = [float(height) for height in re.findall(r'height="([\d.]+)" fill="#', svg)]
        seen = [moment for moment in Moment if any(moment in item.alive for item in answer.ledger.items)]
        most = max([answer.ledger.at(moment) for moment in seen] + [answer.room or 0])
        assert sum(heights) == pytest.approx(sum(146 * answer.ledger.at(moment) / most for moment in seen), abs=0.2)
        assert f"{seen[0].value} {gib(answer.ledger.at(seen[0]))}" in svg


def test_a_frontier_doubles_at_each_step() -> None:
    svg = charts.frontier([(512, 15), (1024, 7), (2048, 3)], (600, 3), ("length", "batch"))
    heights = [float(height) for height in re.findall(r'height="([\d.]+)" fill="#', svg)]
    assert heights == pytest.approx([130, 97.5, 65], abs=0.06)
    assert "1,024 length: 7 batch" in svg
    assert ">2k</text>" in svg
