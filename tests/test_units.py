"""Sizes at the edge: GiB is never GB, and no unit is ever guessed."""

from __future__ import annotations

import pytest

from vramplan.errors import BadInput
from vramplan.units import count, gib, parse_size


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("1B", 1),
        ("3 KiB", 3072),
        ("3kb", 3000),
        ("24GiB", 24 * 2**30),
        ("24 gib", 24 * 2**30),
        ("24GB", 24 * 10**9),
        ("1.5 MiB", 3 * 2**19),
        ("0.1GB", 10**8),
        ("2TiB", 2**41),
        ("2TB", 2 * 10**12),
        (" 80GiB ", 80 * 2**30),
        (17, 17),
        (0, 0),
    ],
)
def test_sizes_are_read_to_the_byte(text: str | int, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize(
    "text", ["24", "24 G", "GiB", "", "-1GiB", "1e9B", "24GiBs", "1,5GB", "٣GB", "nan GB", "1" * 30 + "GB", True, -1, 1.5, None]
)
def test_anything_else_is_refused(text: object) -> None:
    with pytest.raises(BadInput, match="size"):
        parse_size(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (57 * 2**20, "57.0 MiB"),
        (100 * 2**20, "0.10 GiB"),
        (1500 * 2**30, "1,500.00 GiB"),
        (-3 * 2**30, "-3.00 GiB"),
    ],
)
def test_sizes_print_with_their_unit(nbytes: int, text: str) -> None:
    assert gib(nbytes) == text


def test_counts_print_as_people_say_them() -> None:
    assert [count(n) for n in (999, 1000, 124_439_808, 8_030_261_248, 1_026_408_232_448)] == [
        "999",
        "1.00 k",
        "124.4 M",
        "8.03 B",
        "1.03 T",
    ]
