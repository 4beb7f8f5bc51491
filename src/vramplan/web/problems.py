"""What went wrong, as a status and as problem+json (RFC 9457). Every message is one that vramplan made for its users."""

from __future__ import annotations

from http import HTTPStatus

from ..errors import BadInput, NotFound, Unknown, Unreachable, VramplanError


class TooLarge(BadInput):
    """A request's body or address is longer than what is read."""


class Busy(VramplanError):
    """Too much is asked at once, or an answer takes too long."""


STATUS: tuple[tuple[type[VramplanError], int], ...] = (
    (TooLarge, 413), (NotFound, 404), (BadInput, 400), (Unknown, 422), (Unreachable, 503), (Busy, 503),
)  # fmt: skip
"""The kinds of errors, the narrower first, and the status of each."""


def status(error: VramplanError) -> int:
    """The HTTP status of an error.

    >>> status(NotFound("no such GPU")), status(BadInput("no model given"))
    (404, 400)
    """
    return next((code for kind, code in STATUS if isinstance(error, kind)), 500)


def problem(code: int, detail: str) -> dict[str, object]:
    """The body of a refusal."""
    return {"type": "about:blank", "title": HTTPStatus(code).phrase, "status": code, "detail": detail}
