"""Reading a GGUF header from its start to its end: a window over a range reader that grows as the header does, so that few reads do.

Knows how numbers and strings are stored, and nothing of what a header holds.
"""

from __future__ import annotations

import struct
from typing import Any

from ..errors import BadFile
from .stored import MAX_HEADER, Read, refuse_pointer, shown

FIRST_WINDOW, LARGEST_WINDOW = 262_144, 4_194_304
"""Bytes: a header of 8 MB (a vocabulary of 128,000 with its merges) is read in 4 requests, that of a split file's later part in 1."""


class Cursor:
    """A position in the header of the file `name`, of `size` bytes if known. Everything raises BadFile where the header ends early."""

    def __init__(self, read: Read, size: int | None, name: str) -> None:
        self.name, self.size = name, size
        self._read, self._order, self._next = read, "<", FIRST_WINDOW
        self._window, self._base, self._at = b"", 0, 0  # the position is _base + _at; _base is where the window starts
        self._limit = MAX_HEADER if size is None else min(size, MAX_HEADER)

    @property
    def position(self) -> int:
        """Bytes from the start of the file."""
        return self._base + self._at

    def start(self) -> int:
        """Reads magic, byte order and version, and returns the version."""
        self._need(24)  # magic, version and both counts: the shortest header
        head = self._window[:24]
        refuse_pointer(head, self.name)
        if head[:4] != b"GGUF":
            raise BadFile(f"{self.name}: not a GGUF file: it starts with {shown(head[:4])}")
        if head[4:6] == b"\0\0":  # versions are small numbers, so the two high bytes came first
            self._order = ">"
        self.take(4)
        version: int = self.number("I")
        return version

    def take(self, n: int) -> bytes:
        """The next `n` bytes."""
        self._need(n)
        data = self._window[self._at : self._at + n]
        self._at += n
        return data

    def number(self, code: str) -> Any:
        """The next scalar, by its code in the struct module; a bool must be 0 or 1."""
        return self.numbers(code, 1)[0]

    def numbers(self, code: str, n: int) -> tuple[Any, ...]:
        """The next `n` scalars."""
        data = self.take(n * struct.calcsize(code))
        if code == "?" and data.strip(b"\0\1"):
            raise BadFile(f"{self.name}: a bool must be 0 or 1, not {shown(data)}")
        return struct.unpack(f"{self._order}{n}{code}", data)

    def text(self, longest: int, *, strict: bool = True) -> str:
        """The next string, of at most `longest` bytes; strict: BadFile if it is not UTF-8."""
        length = self.number("Q")
        if length > longest:
            raise BadFile(f"{self.name}: a string of {length:,} bytes at {self.position:,}; at most {longest:,} are read there")
        data = self.take(length)
        try:
            return data.decode("utf-8", "strict" if strict else "replace")
        except UnicodeDecodeError:
            raise BadFile(f"{self.name}: name {shown(data)} is not UTF-8") from None

    def skip(self, n: int) -> None:
        """Moves on by `n` bytes without reading those that are not in the window."""
        self._within(n)
        self._at += n
        if self._at > len(self._window):
            self._base, self._at, self._window = self.position, 0, b""

    def skip_numbers(self, code: str, n: int) -> None:
        """Moves over `n` scalars."""
        self.skip(n * struct.calcsize(code))

    def skip_strings(self, n: int) -> None:
        """Moves over `n` strings; the one tight loop of the reader, since vocabularies have hundreds of thousands."""
        self._within(8 * n)
        length_at = struct.Struct(f"{self._order}Q").unpack_from
        for _ in range(n):
            if self._at + 8 > len(self._window):
                self._need(8)
            (length,) = length_at(self._window, self._at)
            self._at += 8 + length
            if self._at > len(self._window):
                self._at -= length
                self.skip(length)

    def _within(self, n: int) -> None:
        if self.position + n > self._limit:
            end = "the file ends" if self._limit == self.size else "a header may end"
            raise BadFile(f"{self.name}: {n:,} bytes wanted at {self.position:,}, but {end} at {self._limit:,}")

    def _need(self, n: int) -> None:
        """Lets the window hold the next `n` bytes."""
        have = len(self._window) - self._at
        if have >= n:
            return
        self._within(n)
        start = self.position
        wanted = min(max(n - have, self._next), self._limit - start - have)
        self._window = self._window[self._at :] + self._read(start + have, wanted)
        self._base, self._at = start, 0
        self._next = min(4 * self._next, LARGEST_WINDOW)
        if len(self._window) < n:
            raise BadFile(f"{self.name}: ends within its header, at {start + len(self._window):,}")
