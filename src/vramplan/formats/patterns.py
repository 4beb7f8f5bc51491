"""Lists of module names that a checkpoint's config leaves out of quantisation, or treats in its own way, matched as the libraries do.

Such lists come from strangers and name layers one by one (hundreds of entries). Entries that differ in the layer's number only are kept
as one, with the set of layers. Regular expressions ("re:...") are bounded: at most 300 characters, four open repeats, no repeat inside a
repeat, no back-references; and all matching of one list shares a budget of one second.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from time import monotonic
from typing import Literal
from warnings import catch_warnings, simplefilter

from ..errors import BadInput

Dialect = Literal["transformers", "glob", "compressed-tensors", "regex"]

MAX_ENTRIES = 100_000
MAX_LENGTH = 300
MAX_REPEATS = 4
MAX_SECONDS = 1.0

_NUMBER = re.compile(r"(?<=\.)\d{1,4}(?=\.|\*|$)")
_DIGITS_MATTER = re.compile(r"\d|\\d|\\D|\\w|\\W|\[")


class Patterns:
    """A list of entries of one dialect.

    `transformers` (`should_convert_module`): an entry matches a module and all below it, or the end of a name; `*` stands for anything.
    `glob` (ModelOpt's `ignore`, as vLLM reads it): fnmatch of the whole name or of a module above. `compressed-tensors`: a name, the end
    of one, or `re:` and a regular expression matched from the start. `regex` (GPTQModel's `dynamic`): that expression without `re:`.
    `cut_short`: only a sample of the list is known; an entry for one layer's module then stands for all layers.
    """

    def __init__(self, entries: Iterable[str], dialect: Dialect, *, cut_short: bool = False) -> None:
        self._anywhere: list[re.Pattern[str]] = []
        self._regexes: list[re.Pattern[str]] = []
        self._each_layer: list[re.Pattern[str]] = []
        self._at: list[tuple[re.Pattern[str], set[int] | None]] = []
        self._seconds = MAX_SECONDS
        at: dict[str, set[int] | None] = {}
        for count, entry in enumerate(dict.fromkeys(entries)):
            if count > MAX_ENTRIES or len(entry) > MAX_LENGTH:
                raise BadInput(f"list of modules: at most {MAX_ENTRIES:,} entries of at most {MAX_LENGTH} characters are accepted")
            if dialect == "regex" or entry.startswith("re:"):
                pattern = bounded(entry.removeprefix("re:"))
                (self._each_layer if _DIGITS_MATTER.search(pattern.pattern) else self._regexes).append(pattern)
                continue
            self._anywhere.append(re.compile(_expression(entry, dialect)))
            number = _NUMBER.search(entry)
            if number is None:
                continue
            rest = entry[number.end() :]
            template = _expression(f"{entry[: number.start()]}{{i}}{rest}", dialect)
            layers = at.setdefault(template, set())
            if cut_short and rest.strip(".*"):
                at[template] = None
            elif layers is not None:
                layers |= _beginning_with(number[0]) if rest.startswith("*") else {int(number[0])}
        self._at = [(re.compile(template), layers) for template, layers in at.items()]

    @property
    def layered(self) -> bool:
        """Whether a match can depend on the layer's number."""
        return bool(self._each_layer) or any(layers is not None for _, layers in self._at)

    def apart(self, module: str, layers: Collection[int]) -> Collection[int]:
        """Those of `layers` in which `module`, with `{i}` in its name, may match otherwise than in the rest."""
        if "{i}" not in module:
            return ()
        if self._each_layer:
            return layers
        return set().union(*(named for pattern, named in self._at if named and pattern.match(module)))

    def match(self, module: str, layer: int | None) -> bool:
        """Whether an entry matches `module` in `layer`."""
        start = monotonic()
        if any(p.match(module) for p in self._anywhere) or any(
            (layers is None or layer in layers) and p.match(module) for p, layers in self._at
        ):
            return True
        found = False
        if self._regexes or self._each_layer:
            name = module.replace("{i}", str(layer or 0))
            found = any(self._in_time(p, name, start) for p in (*self._regexes, *self._each_layer))
            self._seconds -= monotonic() - start
        return found

    def _in_time(self, pattern: re.Pattern[str], name: str, start: float) -> bool:
        if monotonic() - start > self._seconds:
            raise BadInput(f"list of modules: its regular expressions take more than {MAX_SECONDS:g} s to match; they are refused")
        return pattern.match(name) is not None


def _beginning_with(digits: str) -> set[int]:
    """The layers that `layers.1*` names: 1, 10 to 19, 100 to 199 and so on."""
    n = int(digits)
    return {0} if n == 0 else {k for more in (1, 10, 100, 1000) for k in range(n * more, (n + 1) * more)}


def _expression(entry: str, dialect: Dialect) -> str:
    """A regular expression for `re.match` that does what the library does with `entry`."""
    text = re.sub(r"\*+", "*", entry.replace(".*", "*") if dialect == "transformers" else entry)
    if text.count("*") > MAX_REPEATS:
        raise BadInput(f"list of modules: {entry[:60]!r} holds more than {MAX_REPEATS} wildcards")
    name = re.escape(text).replace(r"\*", ".*").replace(r"\?", ".")
    if dialect == "glob":
        return rf"{name}(?:\..*)?$"
    return rf"(?:{name}(?:\.|$)|.*{name}$)" if dialect == "transformers" else rf"(?:.*\.)?{name}$"


def bounded(text: str) -> re.Pattern[str]:
    """`text` compiled, if it cannot run away. Raises BadInput for one that might, or that is no regular expression.

    >>> bounded("(a+)+b")
    Traceback (most recent call last):
    ...
    vramplan.errors.BadInput: regular expression '(a+)+b': a repeat inside a repeat is refused (it could run for ever)
    """
    fault = _fault(re.sub(r"(?:\.\*)+\$?$", "", text))
    if fault:
        raise BadInput(f"regular expression {text[:60]!r}: {fault}")
    try:
        with catch_warnings():
            simplefilter("error")
            return re.compile(text)
    except (re.error, OverflowError, RecursionError, Warning) as error:
        raise BadInput(f"regular expression {text[:60]!r}: {str(error)[:80]}") from None


def _fault(text: str) -> str:
    """Why `text` might run away, or an empty string. A closing `.*` costs nothing and is not given."""
    if len(text) > MAX_LENGTH:
        return f"longer than {MAX_LENGTH} characters"
    if re.search(r"\\[1-9]|\(\?P=|\(\?\(", text):
        return "back-references and conditions are refused"
    groups, repeats, closed = [False], 0, False  # does the group hold a repeat, per depth
    for token in re.finditer(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|[*+]|\{\d*,?\d*\}|\?|[()]|.", text):
        match token[0][0], token[0]:
            case "(", _:
                groups.append(False)
            case ")", _ if len(groups) > 1:
                inner = groups.pop()
                groups[-1] |= inner
                closed = inner
                continue
            case "*" | "+", _:
                if closed:
                    return "a repeat inside a repeat is refused (it could run for ever)"
                groups[-1], repeats = True, repeats + 1
            case "{", counted if len(counted) > 1:
                if closed or any(int(n) > 64 for n in re.findall(r"\d{1,9}", counted)):
                    return "a repeat inside a repeat, or one of more than 64, is refused"
                groups[-1], repeats = True, repeats + 1
        closed = False
    return f"more than {MAX_REPEATS} open repeats" if repeats > MAX_REPEATS else ""
