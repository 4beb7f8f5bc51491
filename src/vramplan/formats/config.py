"""Reading a quantization_config with suspicion: typed look-ups, and the lists of modules that it leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import BadInput
from . import Format
from .patterns import Dialect, Patterns

MAX_INTEGER = 1 << 20
"""No group, block or bit width of any format comes near."""


def integer(value: object, key: str, default: int | None = None, *, least: int = 1) -> int:
    """`value` if it is an integer from `least` to 2^20, `default` if it is None. Raises BadInput otherwise."""
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MAX_INTEGER:
        raise BadInput(f"quantization_config: {key!r} is {str(value)[:40]!r}; it must be an integer from {least} to {MAX_INTEGER}")
    return value


def mapping(value: object, key: str) -> Mapping[str, object]:
    """`value` if it is an object, an empty one if it is None. Raises BadInput otherwise."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise BadInput(f"quantization_config: {key!r} is {str(value)[:40]!r}; it must be an object")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class ListOfNames:
    """The modules that a config leaves out. `given`: it says so at all; `cut_short`: only a sample of the list is known.

    Catalogues shorten lists of hundreds of entries to `KEY_sample` or the first few of `KEY`, beside `KEY_count`.
    """

    entries: tuple[str, ...] = ()
    given: bool = False
    cut_short: bool = False

    @classmethod
    def of(cls, config: Mapping[str, object], *keys: str) -> ListOfNames:
        """The list under the first of `keys` that is there. Raises BadInput where it is no list of strings."""
        for key in keys:
            entries = config.get(key, config.get(f"{key}_sample"))
            if entries is None:
                continue
            if not isinstance(entries, (list, tuple)) or not all(isinstance(entry, str) for entry in entries):
                raise BadInput(f"quantization_config: {key!r} must be a list of strings")
            count = config.get(f"{key}_count")
            return cls(entries=tuple(entries), given=True, cut_short=isinstance(count, int) and count > len(entries))
        return cls()

    @property
    def note(self) -> str:
        """What is assumed where the list is cut short."""
        if not self.cut_short:
            return ""
        return (
            "only a sample of the checkpoint's list of unquantised modules is known: a module that it names in one layer is taken as "
            "unquantised in all, the head and the towers as unquantised"
        )


def left_out(names: ListOfNames, dialect: Dialect) -> tuple[tuple[Patterns, Format | None], ...]:
    """`names` as a rule of a Selective scheme."""
    entries = (*names.entries, *_unseen(names.entries)) if names.cut_short else names.entries
    return ((Patterns(entries, dialect, cut_short=names.cut_short), None),) if entries else ()


def _unseen(entries: tuple[str, ...]) -> list[str]:
    """What lists with such a beginning go on to name: full attention beside linear attention, the other dense layers beside the first.

    Checked against the published totals of Qwen3.5-122B-A10B-NVFP4 and GLM-5.1-NVFP4, which the lists then give to the element.
    """
    more = [entry.replace("linear_attn", "self_attn") for entry in entries if "linear_attn" in entry]
    if any(entry.rstrip("*.")[-1:].isdigit() for entry in entries) and any("shared_expert" in entry for entry in entries):
        more += [f"*.mlp.{name}_proj" for name in ("gate", "up", "down")]
    return more
