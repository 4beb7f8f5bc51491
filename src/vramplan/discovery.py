"""Files that are found by themselves: a package's modules, and the names that they declare, read from their text without importing them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache


@cache
def modules(package_file: str) -> tuple[str, ...]:
    """The modules beside a package's `__file__`, private ones left out."""
    names = os.listdir(os.path.dirname(package_file))
    return tuple(sorted(name[:-3] for name in names if name.endswith(".py") and not name.startswith("_")))


@cache
def declared(package_file: str, key: str) -> Mapping[str, str]:
    """Every name in a line `KEY = ("a", "b")` (which may run over several) of the package's modules, with the module's name.

    Raises RuntimeError where two modules declare the same name.
    """
    found: dict[str, str] = {}
    start = f"\n{key} = (".encode()
    for module in modules(package_file):
        with open(os.path.join(os.path.dirname(package_file), f"{module}.py"), "rb") as file:
            text = file.read()
        at = text.find(start)
        if at < 0:
            continue
        names = text[at + len(start) : text.index(b")", at)].decode().split('"')[1::2]
        for name in names:
            if name in found:
                raise RuntimeError(f"{key} {name!r} stands in {found[name]}.py and in {module}.py")
            found[name] = module
    return found
