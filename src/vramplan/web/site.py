"""A static copy of the site: its pages as files, and Python with all it needs, which answers in the visitor's browser. No server is left.

Pages of the menu, documents and cards are made here; whatever else has an address, `static/site.js` asks `browser.reply` for, which runs
in a worker (`static/worker.js`) by Pyodide. Nothing is fetched from other hosts, here or there. Two copies are equal to the byte.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import distribution
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from ..catalog.gpus import all_gpus
from ..errors import BadInput
from . import documents, pages
from .browser import rebased

MANIFEST = "site.json"
"""The list of all files of a copy, with what its script needs to know; its mark, too."""
PYODIDE = ("pyodide.mjs", "pyodide.asm.mjs", "pyodide.asm.wasm", "python_stdlib.zip", "pyodide-lock.json", "package.json", "README.md")
"""What Pyodide loads, of its npm package; the last two say what it is and where its source is, as its licence (MPL-2.0) asks."""
PACKAGES = ("jinja2", "markupsafe", "markdown-it-py", "mdurl")
"""The distributions that pages are made with: Jinja, markdown-it, and what they need."""
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; worker-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'"
)
"""The server's content security policy, as far as a page can say it of itself, and the worker's script."""
NEEDS_SCRIPT = (
    '<noscript><p class="note">This copy of the page has no server: it answers in your browser, with JavaScript. Its documents and '
    "its tables of cards are here without.</p></noscript>\n"
)


def paths() -> tuple[str, ...]:
    """The addresses that are made into files: the menu's, the documents', the cards'."""
    cards = (f"/cards/{gpu.id}" for gpu in all_gpus())
    return tuple(dict.fromkeys([*(href for href, _ in pages.MENU), *map(documents.home, documents.names()), *cards]))


def files(pyodide: Path, base: str = "/") -> Iterator[tuple[str, bytes]]:
    """All files of a copy that stands at `base` of its host, by name; `pyodide` is the folder of the npm package. Takes a minute.

    Raises BadInput where Pyodide is not in its folder, or `base` is no path of a folder.
    """
    if not re.fullmatch(r"/([\w.~-]+/)*", base):
        raise BadInput(f"base {base[:80]!r}: must be the path of a folder on its host, such as /vramplan/")
    python = _pyodide(pyodide)
    packages = _packages()
    archive = f"python/packages-{hashlib.sha256(packages).hexdigest()[:10]}.zip"
    loaded = {archive: packages, **{name: python[name] for name in python if name.endswith((".wasm", ".zip"))}}
    nbytes = sum(map(len, loaded.values()))
    return _all(base, python | {archive: packages}, {"packages": archive, "bytes": nbytes})


def _all(base: str, python: Mapping[str, bytes], about: Mapping[str, object]) -> Iterator[tuple[str, bytes]]:
    found = {**python, **{f"static/{path.name}": path.read_bytes() for path in pages.STATIC.iterdir()}}
    yield from found.items()
    for address in paths():
        yield file_of(address), copied(pages.page(address).html, base).encode()
    yield "404.html", copied(pages.page("/404").html, base, missing=True).encode()
    names = sorted([*found, *map(file_of, paths()), "404.html", MANIFEST])
    yield MANIFEST, json.dumps({**about, "files": names}, indent=1).encode() + b"\n"


def file_of(path: str) -> str:
    """The file of a page.

    >>> file_of("/"), file_of("/cards/a100")
    ('index.html', 'cards/a100/index.html')
    """
    return f"{path[1:]}/index.html".removeprefix("/")


def copied(html: str, base: str, *, missing: bool = False) -> str:
    """A page of the server as one of a copy at `base`; `missing` for the one that stands in for pages that are no files."""
    policy = f'<meta http-equiv="content-security-policy" content="{POLICY}">\n<meta name="referrer" content="no-referrer">\n'
    script = f'<script src="{pages.asset("site.js")}"{" data-missing" if missing else ""}></script>\n'
    html = html.replace('<meta name="viewport"', policy + '<meta name="viewport"', 1).replace("<script ", script + "<script ", 1)
    return rebased(html.replace("<main ", NEEDS_SCRIPT + "<main ", 1), base)


def write(folder: Path, pyodide: Path, base: str = "/") -> Iterator[str]:
    """Write a copy into `folder`, and give the names of the files as they are written; an earlier copy's other files are removed.

    Raises BadInput where `folder` holds anything but an earlier copy, beside files whose names begin with a dot.
    """
    before = _before(folder)
    return _written(folder, files(pyodide, base), before)


def _written(folder: Path, made: Iterator[tuple[str, bytes]], before: set[str]) -> Iterator[str]:
    for name, data in made:
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        before.discard(name)
        yield name
    for name in before:
        (folder / name).unlink(missing_ok=True)


def _before(folder: Path) -> set[str]:
    """The files of an earlier copy in `folder`."""
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder} is a file: name a folder")
    if not folder.is_dir() or not any(path for path in folder.iterdir() if not path.name.startswith(".")):
        return set()
    try:
        listed = json.loads((folder / MANIFEST).read_bytes())["files"]
        return {name for name in listed if (folder / name).resolve().is_relative_to(folder.resolve())}
    except (OSError, ValueError, TypeError, KeyError):
        raise BadInput(f"{folder} is not empty and holds no copy of the site: name another folder") from None


def _pyodide(folder: Path) -> dict[str, bytes]:
    """Pyodide's files by their names in a copy."""
    missing = [name for name in PYODIDE if not (folder / name).is_file()]
    if missing:
        raise BadInput(f"{folder} has no {missing[0]}: `npm install pyodide` makes a node_modules/pyodide, which --pyodide names")
    return {f"python/{name}": (folder / name).read_bytes() for name in PYODIDE}


def _packages() -> bytes:
    """An archive of this package with its documents, and of PACKAGES as far as they are pure Python."""
    found = {f"vramplan/docs/{name}.md": documents.folder() / f"{name}.md" for name in documents.names()}
    for path in documents.PACKAGE.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            found[f"vramplan/{path.relative_to(documents.PACKAGE).as_posix()}"] = path
    data = {name: path.read_bytes() for name, path in found.items()}
    version = distribution("vramplan").version
    data[f"vramplan-{version}.dist-info/METADATA"] = (
        f"Metadata-Version: 2.4\nName: vramplan\nVersion: {version}\nLicense-Expression: Apache-2.0\n".encode()
    )
    for package in PACKAGES:
        for file in distribution(package).files or ():
            if ".." not in file.parts and (file.suffix == ".py" or file.name == "METADATA" or file.name.startswith("LICENSE")):
                data[file.as_posix()] = Path(str(file.locate())).read_bytes()
    archive = io.BytesIO()
    with ZipFile(archive, "w") as zipped:
        for name in sorted(data):
            zipped.writestr(ZipInfo(name), data[name], ZIP_DEFLATED, 9)
    return archive.getvalue()
