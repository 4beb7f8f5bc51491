"""A Hub on this machine's loopback: it speaks the paths, headers and errors of huggingface.co that `huggingface_hub` relies on.

GET /api/models/{id}[/revision/{rev}] lists a repository; HEAD and GET /{id}/resolve/{rev}/{file} serve a file, whole or by range, and
redirect to another host (/cdn/...) for large ones, as the Hub does. A file may be `Sparse`: a head, then zeros that are never
stored. Every request is remembered.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar


@dataclass
class Sparse:
    """A file of `size` bytes that starts with `head`; what follows is zeros."""

    head: bytes
    size: int

    def part(self, begin: int, end: int) -> bytes:
        return self.head[begin:end].ljust(end - begin, b"\0")


@dataclass
class Repo:
    """Files by revision. `token`: needed for the files (gated), or, if `private`, for everything."""

    revisions: Mapping[str, Mapping[str, bytes | Sparse]]
    token: str | None = None
    private: bool = False
    cdn: str | None = None

    def commit(self, revision: str) -> str | None:
        commits = {sha1(name.encode()).hexdigest(): name for name in self.revisions}
        return revision if revision in commits else next((c for c, name in commits.items() if name == revision), None)

    def files(self, commit: str) -> Mapping[str, bytes | Sparse]:
        return next(files for name, files in self.revisions.items() if sha1(name.encode()).hexdigest() == commit)


@dataclass
class Request:
    method: str
    path: str
    range: str | None
    token: str | None
    sent: int = 0


@dataclass
class Hub:
    """A running server. `failures`: this many of the next range requests are answered with 503."""

    repos: dict[str, Repo]
    requests: list[Request] = field(default_factory=list)
    failures: int = 0
    ranges: bool = True
    slow: threading.Barrier | None = None
    url: str = ""

    def __enter__(self) -> Hub:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def of(self, file: str) -> list[Request]:
        """The requests that sent bytes of a file."""
        return [r for r in self.requests if r.path.endswith(file) and r.method == "GET" and r.sent]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: ClassVar[Hub]

    def do_GET(self) -> None:
        request = Request(self.command, self.path, self.headers["Range"], self.headers["Authorization"])
        self.hub.requests.append(request)
        path = self.path.partition("?")[0]
        if listing := re.fullmatch(r"/api/models/(.+?)(?:/revision/([^/]+))?", path):
            self._list(listing[1], listing[2] or "main")
        elif file := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path):
            self._resolve(request, *file.groups())
        elif file := re.fullmatch(r"/cdn/([^/]+/[^/]+)/([^/]+)/(.+)", path):
            self._serve(request, self.hub.repos[file[1]].files(file[2])[file[3]], {})
        else:
            self._error(404)

    do_HEAD = do_GET

    def _allowed(self, repo: Repo | None, revision: str, *, content: bool) -> bool:
        authorised = repo is not None and self.headers["Authorization"] == f"Bearer {repo.token}"
        if repo is None or (repo.private and not authorised):
            self._error(401 if not self.headers["Authorization"] else 404, "RepoNotFound", "Repository not found")
        elif content and repo.token and not authorised:
            self._error(403 if self.headers["Authorization"] else 401, "GatedRepo", "Access to this model is restricted. Secret: hf_leak")
        elif repo.commit(revision) is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return True
        return False

    def _list(self, id: str, revision: str) -> None:
        repo = self.hub.repos.get(id)
        if self._allowed(repo, revision, content=False):
            assert repo is not None
            commit = repo.commit(revision)
            assert commit is not None
            siblings = [{"rfilename": name, "size": _size(file)} for name, file in repo.files(commit).items()]
            self._answer(200, json.dumps({"id": id, "modelId": id, "sha": commit, "siblings": siblings, "tags": []}).encode(), {})

    def _resolve(self, request: Request, id: str, revision: str, name: str) -> None:
        repo = self.hub.repos.get(id)
        if not self._allowed(repo, revision, content=True):
            return
        assert repo is not None
        commit = repo.commit(revision)
        assert commit is not None
        file = repo.files(commit).get(name)
        if file is None:
            return self._error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_etag(file)}"', "Accept-Ranges": "bytes"}
        if name.endswith((".safetensors", ".gguf")):
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(_size(file))}
            headers["Location"] = f"{repo.cdn or self.hub.url.replace('127.0.0.1', 'localhost')}/cdn/{id}/{commit}/{name}"
            return self._answer(302, b"", headers)
        self._serve(request, file, headers)

    def _serve(self, request: Request, file: bytes | Sparse, headers: dict[str, str]) -> None:
        if self.hub.slow is not None and request.range:
            self.hub.slow.wait(10)
        if self.hub.failures and request.range:
            self.hub.failures -= 1
            return self._error(503)
        size, match = _size(file), re.fullmatch(r"bytes=(\d+)-(\d+)", request.range or "") if self.hub.ranges else None
        if match is None:
            return self._send(request, 200, file if isinstance(file, bytes) else file.part(0, min(size, 2**22)), headers, size)
        begin, end = int(match[1]), min(int(match[2]) + 1, size)
        if begin >= size:
            return self._error(416)
        body = file[begin:end] if isinstance(file, bytes) else file.part(begin, end)
        self._send(request, 206, body, headers | {"Content-Range": f"bytes {begin}-{end - 1}/{size}"})

    def _send(self, request: Request, status: int, body: bytes, headers: Mapping[str, str], size: int | None = None) -> None:
        """Answer with a file's bytes; they are noted before they go, so that a client that has them finds them noted."""
        request.sent = 0 if self.command == "HEAD" else len(body)
        self._answer(status, body, headers, size)

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str], size: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if size is None else size))
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            self.wfile.write(body)
        except OSError:  # the client had enough
            self.close_connection = True

    def _error(self, status: int, code: str = "", message: str = "", headers: Mapping[str, str] | None = None) -> None:
        named = {"X-Error-Code": code, "X-Error-Message": message} if code else {}
        self._answer(status, json.dumps({"error": message}).encode(), {**named, **(headers or {}), "X-Request-Id": "Root=1-secret"})

    def log_message(self, format: str, *args: object) -> None:
        pass


def _size(file: bytes | Sparse) -> int:
    return file.size if isinstance(file, Sparse) else len(file)


def _etag(file: bytes | Sparse) -> str:
    return sha1(b"%d%s" % (file.size, file.head) if isinstance(file, Sparse) else file).hexdigest()
