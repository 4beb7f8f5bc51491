"""Local files by ranges. Opens regular files only: never a device, a pipe or a folder, which could block or never end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import BadFile, BadInput, NotFound
from .stored import Read, shown


def label(path: Path) -> str:
    """`path` as a one-line message shows it."""
    text = str(path)
    return text if text.isprintable() else shown(text)


@contextmanager
def opened(path: Path) -> Iterator[tuple[Read, int]]:
    """A range reader over the file at `path`, and its size in bytes. Raises NotFound or BadFile."""
    import stat

    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise BadFile(f"{label(path)}: not a regular file")
        file = open(path, "rb")  # noqa: SIM115 (closed by the `with` below)
    except (OSError, ValueError) as error:
        raise _refusal(path, error) from None

    def read(offset: int, length: int) -> bytes:
        try:
            file.seek(offset)
            return file.read(length)
        except OSError as error:
            raise _refusal(path, error) from None

    with file:
        yield read, status.st_size


def _refusal(path: Path, error: OSError | ValueError) -> BadInput:
    if isinstance(error, FileNotFoundError):
        return NotFound(f"{label(path)}: no such file or folder")
    reason = error.strerror if isinstance(error, OSError) else "not a path"  # ValueError: a NUL in it
    return BadFile(f"{label(path)}: cannot be read: {reason}")


def listed(folder: Path) -> list[str]:
    """The names in `folder`. Raises NotFound or BadFile."""
    try:
        return os.listdir(folder)
    except (OSError, ValueError) as error:
        raise _refusal(folder, error) from None


def whole(path: Path, limit: int) -> bytes:
    """All bytes of a file of at most `limit` bytes. Raises NotFound or BadFile."""
    with opened(path) as (read, size):
        if size > limit:
            raise BadFile(f"{label(path)}: {size:,} bytes; at most {limit:,} are read")
        return read(0, limit)
