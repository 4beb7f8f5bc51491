"""What `import vramplan` offers, and that every module that is found by itself says what it is."""

from __future__ import annotations

import inspect as python_inspect
from importlib import import_module
from pathlib import Path

import pytest

import vramplan
from vramplan import engines, families, formats
from vramplan.cli import Verbs
from vramplan.discovery import modules

FOUND = [
    f"vramplan.{package.__name__.rpartition('.')[2]}.{module}"
    for package in (engines, families, formats)
    for module in modules(str(package.__file__))
]
FOUND += [f"vramplan.cli.{name.replace('-', '_')}" for name in Verbs().list_commands(None)]  # type: ignore[arg-type]


def test_all_is_sorted_and_everything_in_it_exists_and_is_documented() -> None:
    assert sorted(vramplan.__all__) == vramplan.__all__
    for name in vramplan.__all__:
        assert python_inspect.getdoc(getattr(vramplan, name)), name


def test_nothing_public_is_left_out_of_all() -> None:
    """But submodules, which are named as such, and what is imported for types; the planner's functions come when they are asked for."""
    public = {name for name, value in vars(vramplan).items() if not name.startswith("_") and not python_inspect.ismodule(value)}
    assert public - {"annotations", "Any", "TYPE_CHECKING"} | set(vramplan._PLANNER) == set(vramplan.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        vramplan.__getattr__("nothing")


@pytest.mark.parametrize("name", FOUND)
def test_every_module_that_is_found_says_what_it_knows(name: str) -> None:
    doc = import_module(name).__doc__ or ""
    assert len(doc.split()) >= 5, name


@pytest.mark.parametrize("package", [engines, families])
def test_public_functions_of_packages_are_documented(package: object) -> None:
    for name in package.__all__:  # type: ignore[attr-defined]
        assert python_inspect.getdoc(getattr(package, name)), name


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(str(vramplan.__file__)).parent / "py.typed").exists()
