"""One repository of the Hugging Face Hub, through `huggingface_hub`: its listing, its small files (cached), ranges of its large ones.

The only place that opens a connection, and the only one that knows what `huggingface_hub` raises. Messages are our own: they hold no URL,
token or request id of the library's. Knows nothing of what the files mean.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadFile, BadInput, NotFound, Unreachable, VramplanError
from .stored import Read, shown

if TYPE_CHECKING:
    from huggingface_hub import HfApi

TIMEOUT = 10.0
"""Seconds that a server may take to begin an answer, and between two pieces of it: the default of huggingface_hub."""

DEADLINE = 60.0
"""Seconds that a server may take for one range."""

PAUSES = (0.5, 2.0)
"""Seconds to wait before asking again for a range that was not answered."""


class NoAnswer(Unreachable):
    """The Hub said nothing, or that it cannot answer now: a cached copy may still do."""


class Repository:
    """The model repository `id` at `revision` (a branch, tag or commit; None: main).

    `token`: None for the one that `huggingface_hub` finds (HF_TOKEN, or a login). `endpoint`: None for HF_ENDPOINT or huggingface.co.
    """

    def __init__(self, id: str, revision: str | None, token: str | None, endpoint: str | None) -> None:
        from huggingface_hub import HfApi

        self.id, self.revision = id, revision or "main"
        if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
            raise BadInput("the Hugging Face token holds a space or another character that no token has")
        self._api: HfApi = HfApi(endpoint=endpoint, token=token, library_name="vramplan")
        self._commit = self.revision

    def files(self) -> Mapping[str, int | None]:
        """Names and sizes in bytes (None if not told) of all files. From here on ranges are of the commit that was listed."""
        with self._asking():
            info = self._api.model_info(self.id, revision=self.revision, files_metadata=True, timeout=TIMEOUT)
            self._commit = info.sha or self.revision
            return {file.rfilename: file.size for file in info.siblings or ()}

    def fetch(self, name: str, size: int | None, limit: int) -> Path:
        """A small file's local copy, in the cache of `huggingface_hub`. Raises BadFile if it has more than `limit` bytes."""
        if size is not None and size > limit:
            raise BadFile(f"{self.id}/{name}: {size:,} bytes; at most {limit:,} are read")
        with self._asking(), _no_progress_bars():
            return Path(self._api.hf_hub_download(self.id, name, revision=self.revision, etag_timeout=TIMEOUT))

    def cached(self, name: str) -> Path | None:
        """The copy of a file in the cache, if there is one; asks nobody."""
        from huggingface_hub import try_to_load_from_cache

        with self._asking():
            path = try_to_load_from_cache(self.id, name, revision=self.revision)
        return Path(path) if isinstance(path, str) else None

    def reader(self, name: str) -> Read:
        """A range reader over a file; each range is one request, and asked for again if it is not answered."""
        from huggingface_hub import hf_hub_url

        with self._asking():
            url = hf_hub_url(self.id, name, revision=self._commit, endpoint=self._api.endpoint)

        def read(offset: int, length: int) -> bytes:
            for pause in PAUSES:
                try:
                    return self._range(url, offset, length)
                except NoAnswer:
                    time.sleep(pause)
            return self._range(url, offset, length)

        return read

    def _range(self, url: str, offset: int, length: int) -> bytes:
        from huggingface_hub import get_session, hf_raise_for_status
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, but not exported for mypy

        with self._asking():
            headers = build_hf_headers(token=self._api.token, library_name="vramplan")
            headers |= {"Range": f"bytes={offset}-{offset + length - 1}", "Accept-Encoding": "identity"}
            with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT) as response:
                if response.status_code == 416:  # the file ends before `offset`
                    return b""
                hf_raise_for_status(response)
                if offset and response.status_code != 206:
                    raise Unreachable(f"the Hub at {self._host} does not answer range requests, so headers cannot be read there")
                return self._body(response.iter_raw(), length)

    def _body(self, pieces: Iterator[bytes], length: int) -> bytes:
        """The first `length` bytes of an answer, however long it is."""
        start, body = time.monotonic(), bytearray()
        for piece in pieces:
            body += piece
            if len(body) >= length:
                break
            if time.monotonic() - start > DEADLINE:
                raise NoAnswer(f"the Hub at {self._host} took more than {DEADLINE:.0f} s for {length:,} bytes")
        return bytes(body[:length])

    @property
    def _host(self) -> str:
        """The server's name and port, without what else a private endpoint's address may hold."""
        from urllib.parse import urlsplit

        return urlsplit(self._api.endpoint).netloc.rpartition("@")[2]

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Turns whatever `huggingface_hub` or its HTTP library raises into one line of our own."""
        try:
            yield
        except VramplanError:
            raise
        except Exception as error:  # requests, httpx or httpx2, by version: their errors have no common root
            raise self._refusal(error) from None

    def _refusal(self, error: Exception) -> VramplanError:
        from huggingface_hub import errors

        status: Any = getattr(getattr(error, "response", None), "status_code", None)
        match error:
            case errors.HFValidationError():
                return BadInput(f"{shown(self.id)} is no repository id; one looks like meta-llama/Llama-3.1-8B")
            case errors.GatedRepoError():
                return Unreachable(
                    f"{self.id} is gated: accept its licence on its page at {self._host}, then set HF_TOKEN to a token of yours"
                )
            case errors.RevisionNotFoundError():
                return NotFound(f"{self.id} has no revision {shown(self.revision)} at {self._host}")
            case errors.RepositoryNotFoundError():
                return NotFound(f"no model {self.id} at {self._host}; if it is private, set HF_TOKEN to a token that may read it")
            case errors.RemoteEntryNotFoundError():
                return NotFound(f"{self.id} does not hold the file, at revision {shown(self.revision)}")
            case errors.OfflineModeIsEnabled():
                return NoAnswer(
                    f"{self.id} is not in the cache at revision {shown(self.revision)}, and HF_HUB_OFFLINE forbids to ask for it"
                )
        if status in (401, 403):
            return Unreachable(
                f"the Hub at {self._host} refuses access to {self.id} ({status}): is HF_TOKEN valid, and may it read this model?"
            )
        if status is not None:
            return NoAnswer(f"the Hub at {self._host} answered {status} when asked for {self.id}; try again later")
        reason = type(error.__cause__ or error).__name__
        return NoAnswer(f"cannot reach the Hub at {self._host} ({reason}), and {self.id} is not in the cache")


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars  # type: ignore[attr-defined]

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
