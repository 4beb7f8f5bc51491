"""LLaVA-NeXT's pictures: cut into tiles of the tower's size, whose padding is taken out again, and one more tile with the whole picture.

Rows of patches end in a learnt token. Sources: transformers 5.23 `image_processing_utils.py` select_best_resolution and
`models/llava_next/modeling_llava_next.py` pack_image_features, unpad_image.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import BadInput
from ..tensors import Picture
from .config import Config

MADE_FOR = (1024, 1024)
"""A picture where nothing says which: it takes any size."""
PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
"""Sizes that a picture may be brought to where the config names none (LlavaNextConfig's `image_grid_pinpoints`)."""


def picture(c: Config, size: tuple[int, int] | None, side: int, along: int) -> Picture:
    """What one picture of `size` is, in tiles of `side` × `side` pixels and `along` × `along` patches.

    Raises BadInput where a tile is larger than the size that the picture is brought to.
    """
    size = size or MADE_FOR
    high, wide = best(size, pinpoints(c))
    rows, columns = high // side, wide // side
    if not rows * columns * along:
        raise BadInput(f"{c.path}: a tile of {side} pixels does not go into {high} × {wide}, a size of 'image_grid_pinpoints'")
    tall, broad = unpadded(size, (rows * along, columns * along))
    tokens = along * along + tall * (broad + 1)
    return Picture(pixels=(1 + rows * columns, 3, side, side), grid=(rows * along, columns * along), tokens=tokens)


def pinpoints(c: Config) -> Sequence[tuple[int, int]]:
    """The sizes that a picture may be brought to, (height, width). Raises BadInput for what is no list of such."""
    named = c.raw.get("image_grid_pinpoints") or PINPOINTS
    if not isinstance(named, list | tuple) or not all(
        isinstance(one, list | tuple) and len(one) == 2 and all(isinstance(n, int) and n > 0 for n in one) for one in named
    ):
        raise BadInput(f"{c.path}: 'image_grid_pinpoints' is no list of heights and widths")
    return [(high, wide) for high, wide in named]


def best(size: tuple[int, int], allowed: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Of the `allowed` sizes that which shows most of the picture, and of such that with least around it.

    >>> best((480, 640), PINPOINTS), best((300, 900), PINPOINTS)
    ((672, 672), (336, 1008))
    """

    def shown(one: tuple[int, int]) -> tuple[int, int]:
        scale = min(one[1] / size[1], one[0] / size[0])
        seen = min(int(size[1] * scale) * int(size[0] * scale), size[0] * size[1])
        return seen, seen - one[0] * one[1]

    return max(allowed, key=shown)


def unpadded(size: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
    """Of a `grid` of patches those rows and columns that the picture covers.

    >>> unpadded((480, 640), (48, 48))
    (36, 48)
    """
    (height, width), (rows, columns) = size, grid
    if width / height > columns / rows:
        return rows - 2 * ((rows - int(round(height * (columns / width), 7))) // 2), columns
    return rows, columns - 2 * ((columns - int(round(width * (rows / height), 7))) // 2)
