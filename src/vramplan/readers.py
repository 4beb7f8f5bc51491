"""How a key's value is read: from JSON, or as people write it in a text. Each reader also says, as a JSON schema, what it takes.

Readers know no key's meaning. They raise BadInput with the key, what was given and what is allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .errors import BadInput, nearest
from .units import parse_size


class Reader(NamedTuple):
    """How a key's value is read, and as a JSON schema what it takes: the plain type first, then how people write it in text."""

    read: Callable[[str, Any], Any]
    schema: Mapping[str, Any]

    def __call__(self, key: str, value: object) -> Any:
        return self.read(key, value)


def _or_text(plain: Mapping[str, Any], pattern: str) -> Mapping[str, Any]:
    return {"anyOf": [plain, {"type": "string", "pattern": pattern}]}


def choice(*allowed: str) -> Reader:
    def read(key: str, value: object) -> str:
        if not isinstance(value, str) or value.lower() not in allowed:
            close = nearest(value, allowed) if isinstance(value, str) else ""
            raise BadInput(f"{key} {_short(value)}: must be one of {', '.join(allowed)}{close}")
        return value.lower()

    return Reader(read, {"type": "string", "enum": list(allowed)})


def integer(least: int = 1, most: int = 2**31 - 1) -> Reader:
    def read(key: str, value: object) -> int:
        if isinstance(value, str):
            text = value.strip().replace(",", "").replace("_", "").lower()
            scale = 1024 if text.endswith("k") else 1
            digits = text.removesuffix("k")
            value = int(digits) * scale if digits.lstrip("-").isascii() and digits.lstrip("-").isdigit() and len(digits) < 12 else value
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise BadInput(f"{key} {_short(value)}: must be an integer from {least} to {most}")
        return value

    return Reader(read, _or_text({"type": "integer", "minimum": least, "maximum": most}, r"^\s*-?[0-9][0-9,_]*[kK]?\s*$"))


def number(low: float, high: float) -> Reader:
    def read(key: str, value: object) -> float:
        try:
            number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else None
        except (ValueError, OverflowError):
            number = None
        if number is None or not low < number <= high:
            raise BadInput(f"{key} {_short(value)}: must be a number above {low:g} and at most {high:g}")
        return number

    return Reader(read, _or_text({"type": "number", "exclusiveMinimum": low, "maximum": high}, r"^\s*[-+0-9.eE_]+\s*$"))


def _read_flag(key: str, value: object) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "false", "on", "off", "yes", "no"):
        return value.lower() in ("true", "on", "yes")
    if not isinstance(value, bool):
        raise BadInput(f"{key} {_short(value)}: must be true or false")
    return value


FLAG = Reader(_read_flag, _or_text({"type": "boolean"}, "^([Tt][Rr][Uu][Ee]|[Ff][Aa][Ll][Ss][Ee]|[Oo][NnFf]+|[Yy][Ee][Ss]|[Nn][Oo])$"))


def _read_text(key: str, value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip() or len(value) > 4096:
        raise BadInput(f"{key} {_short(value)}: must be a short text")
    return value.strip()


TEXT = Reader(_read_text, {"anyOf": [{"type": "string", "minLength": 1, "maxLength": 4096, "pattern": r"\S"}, {"type": "number"}]})


def texts(*allowed: str) -> Reader:
    def read(key: str, value: object) -> tuple[str, ...]:
        entries = value.split(",") if isinstance(value, str) else value
        if not isinstance(entries, list | tuple) or len(entries) > 10_000:
            raise BadInput(f"{key} {_short(value)}: must be a list")
        return tuple(choice(*allowed)(key, entry) if allowed else TEXT(key, entry) for entry in entries)

    one = (choice(*allowed) if allowed else TEXT).schema
    return Reader(read, _or_text({"type": "array", "items": one, "maxItems": 10_000}, r"\S"))


def _read_numbers(key: str, value: object) -> tuple[float, ...]:
    entries = value.split(",") if isinstance(value, str) else value
    if not isinstance(entries, list | tuple) or len(entries) > 64:
        raise BadInput(f"{key} {_short(value)}: must be a list of numbers, such as 3,1")
    return tuple(number(-1e-9, 1e9)(key, entry) for entry in entries)


NUMBERS = Reader(
    _read_numbers,
    _or_text({"type": "array", "items": {"type": "number", "minimum": 0, "maximum": 1e9}, "maxItems": 64}, r"^[-+0-9.eE_,\s]+$"),
)


def _read_integers(key: str, value: object) -> tuple[int, ...]:
    entries = value.split(",") if isinstance(value, str) else value
    if not isinstance(entries, list | tuple) or len(entries) > 1024:
        raise BadInput(f"{key} {_short(value)}: must be a list of integers, such as 14,13")
    return tuple(integer()(key, entry) for entry in entries)


INTEGERS = Reader(
    _read_integers, _or_text({"type": "array", "items": {"type": "integer", "minimum": 1}, "maxItems": 1024}, r"^[0-9,_\s]+$")
)


def _read_pixels(key: str, value: object) -> tuple[int, int]:
    """Height and width, from `"896"` or `"1024x768"`, which is wide and then high."""
    sides = [side.strip() for side in str(value).lower().split("x")]
    if isinstance(value, bool) or len(sides) > 2 or not all(side.isascii() and side.isdigit() and 0 < len(side) < 6 for side in sides):
        raise BadInput(f"{key} {_short(value)}: must be pixels, such as 896, or width and height as 1024x768")
    width, height = int(sides[0]), int(sides[-1])
    if not (1 <= width <= 65536 and 1 <= height <= 65536):
        raise BadInput(f"{key} {_short(value)}: must be from 1 to 65536 pixels")
    return height, width


PIXELS = Reader(_read_pixels, _or_text({"type": "integer", "minimum": 1, "maximum": 65536}, r"^\s*[0-9]{1,5}\s*([xX]\s*[0-9]{1,5}\s*)?$"))


def size(least: int = 0) -> Reader:
    """Bytes, at least so many: an integer, or a text with its unit."""

    def read(key: str, value: object) -> int:
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise BadInput(f"{key} {_short(value)}: must be a size such as 24GiB")
        try:
            nbytes = parse_size(value)
        except BadInput as error:
            raise BadInput(f"{key}: {error}") from None
        if nbytes < least:
            raise BadInput(f"{key} {_short(value)}: must be at least {least} B")
        return nbytes

    pattern = r"^\s*[0-9]+(\.[0-9]+)?\s*([KkMmGgTt]?[Ii]?[Bb])\s*$"
    return Reader(read, _or_text({"type": "integer", "minimum": least}, pattern))


SIZE = size()


def _read_model(key: str, value: object) -> str | Mapping[str, object]:
    return value if isinstance(value, dict) else TEXT(key, value)


MODEL = Reader(_read_model, {"anyOf": [*TEXT.schema["anyOf"], {"type": "object"}]})


def _read_kv(key: str, value: object) -> str | Mapping[str, str]:
    if isinstance(value, dict):
        if set(value) != {"k", "v"}:
            raise BadInput(f'{key} {_short(value)}: must be a type, or {{"k": type, "v": type}}')
        return {side: TEXT(f"{key}.{side}", kind).lower() for side, kind in value.items()}
    return str(TEXT(key, value)).lower()


KV = Reader(
    _read_kv,
    {
        "anyOf": [
            *TEXT.schema["anyOf"],
            {
                "type": "object",
                "properties": {"k": TEXT.schema, "v": TEXT.schema},
                "required": ["k", "v"],
                "additionalProperties": False,
            },
        ]
    },
)


def _read_targets(key: str, value: object) -> object:
    return value if value in ("all-linear", "attention") else texts()(key, value)


_LORA: dict[str, Reader] = {
    "rank": integer(),
    "alpha": number(0, 1e6),
    "dropout": number(-1e-9, 1),
    "targets": Reader(_read_targets, texts().schema),
    "dtype": choice("fp32", "bf16", "fp16"),
    "variant": choice("lora", "rslora", "dora"),
}


def _read_lora(key: str, value: object) -> Mapping[str, object]:
    """An object, or on the command line `rank=16,dropout=0.05,targets=q_proj+v_proj`."""
    if isinstance(value, str):
        pairs = [part.partition("=") for part in value.split(",") if part.strip()]
        value = {name.strip(): _lora_text(name.strip(), text.strip()) for name, _, text in pairs}
    if not isinstance(value, dict):
        raise BadInput(f"{key} {_short(value)}: must be an object with {', '.join(_LORA)}")
    return {known_key(f"{key}.", name, _LORA): _LORA[name](f"{key}.{name}", entry) for name, entry in value.items()}


def _lora_text(name: str, text: str) -> object:
    return text.split("+") if name == "targets" and text not in ("all-linear", "attention") else text


LORA = Reader(
    _read_lora,
    _or_text(
        {"type": "object", "properties": {name: reader.schema for name, reader in _LORA.items()}, "additionalProperties": False},
        "^([^=,]+=[^,]*)?$",
    ),
)


def known_key(prefix: str, name: str, allowed: Mapping[str, object]) -> str:
    if name not in allowed:
        hint = nearest(str(name), allowed) or f"; allowed are {', '.join(allowed)}"
        raise BadInput(f"unknown key {prefix}{str(name)[:60]!r}{hint}")
    return name


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
