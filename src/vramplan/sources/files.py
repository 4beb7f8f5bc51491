"""Local files by ranges. Opens regular files only: never a device, a pipe or a folder, which could block or never end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import BadFile, NotFound
from .stored import Read, shown


def label(path: Path) -> str:
    """`path` as a one-line message shows it."""
    text = str(path)
    return text if text.isprintable() else shown(text)


@contextmanager
def opened(path: Path) -> Iterator[tuple[Read, int]]:
    """A range reader over the file at `path`, and its size in bytes. Raises NotFound or BadFile."""
    import stat

    name = label(path)
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise BadFile(f"{name}: not a regular file")
        with open(path, "rb", buffering=0) as file:

            def read(offset: int, length: int) -> bytes:
                file.seek(offset)
                return file.read(length)

            yield read, status.st_size
    except FileNotFoundError:
        raise NotFound(f"{name}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise BadFile(f"{name}: cannot be read: {getattr(error, 'strerror', None) or 'not a path'}") from None


def whole(path: Path, limit: int) -> bytes:
    """All bytes of a file of at most `limit` bytes. Raises NotFound or BadFile."""
    with opened(path) as (read, size):
        if size > limit:
            raise BadFile(f"{label(path)}: {size:,} bytes; at most {limit:,} are read")
        return read(0, limit)
