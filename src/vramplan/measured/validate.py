"""Replay measurements (a JSON object a line, as the machine interface says) with signed errors. Refused rows are counted, not dropped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ..errors import BadFile, VramplanError
from ..estimate import Estimate, estimate
from ..scenario import scenario
from ..speed import told

MAX_LINE = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measurement and our answer: `predicted` is None where we refuse, with the reason; `error` = predicted / observed − 1."""

    id: str
    group: str
    quantity: str
    confidence: str
    observed: float
    predicted: float | None
    refused: str | None

    @property
    def error(self) -> float | None:
        """Signed relative error; for `fits` 0 where the verdict is right and 1 where it is wrong."""
        if self.predicted is None:
            return None
        if self.quantity == "fits":
            return float(self.predicted != self.observed)
        return self.predicted / self.observed - 1 if self.observed else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Of a group of rows: how many, how many refused, and the errors of the others."""

    n: int
    refused: int
    median_abs: float | None
    p90_abs: float | None
    median_signed: float | None
    under: int

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Summary:
        """Summarise `rows`; `under` counts those that predict more than 5 % too little."""
        rows = list(rows)
        errors = [row.error for row in rows if row.error is not None]
        sizes = sorted(abs(error) for error in errors)
        return cls(
            n=len(rows),
            refused=sum(row.predicted is None for row in rows),
            median_abs=median(sizes) if sizes else None,
            p90_abs=sizes[min(len(sizes) * 9 // 10, len(sizes) - 1)] if sizes else None,
            median_signed=median(errors) if errors else None,
            under=sum(error < -0.05 for error in errors),
        )


def read(path: Path) -> Iterator[Mapping[str, Any]]:
    """The measurements of a file. Raises BadFile for a line that is no measurement."""
    from ..sources import strict_json

    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), 1):
            name = f"{path.name} line {number}"
            if len(line) > MAX_LINE:
                raise BadFile(f"{name}: longer than {MAX_LINE:,} bytes")
            if line.strip():
                yield _checked(strict_json.loads(line, name), name)


def _checked(row: object, name: str) -> Mapping[str, Any]:
    if not isinstance(row, dict) or not isinstance(row.get("scenario"), dict) or not isinstance(row.get("observed"), dict):
        raise BadFile(f"{name}: a measurement needs id, scenario and observed")
    value, quantity = row["observed"].get("value"), row["observed"].get("quantity")
    if not isinstance(value, int | float) or not isinstance(quantity, str):
        raise BadFile(f"{name}: observed needs a quantity and a number as its value")
    return row


def replay(measurement: Mapping[str, Any]) -> Row:
    """Our answer to one measurement."""
    given, seen = measurement["scenario"], measurement["observed"]
    predicted, refused = None, None
    try:
        answer = estimate(scenario(given))
        value = answer.fits if seen["quantity"] == "fits" else _figure(answer, seen["quantity"])
        predicted = None if value is None else float(value)
        refused = None if value is not None else f"the estimate has no {seen['quantity']}"
    except VramplanError as error:
        refused = str(error)
    return Row(
        id=str(measurement.get("id")),
        group=f"{given.get('engine', 'default engine')} {seen['quantity']}",
        quantity=seen["quantity"],
        confidence=str(measurement.get("confidence", "")),
        observed=float(seen["value"]),
        predicted=predicted,
        refused=refused,
    )


def _figure(answer: Estimate, quantity: str) -> float | None:
    """Bytes or a count of `answer`, or a figure of its speed. Raises Unknown for one of speed where that is not known."""
    found = answer.quantities.get(quantity)
    return told(answer).numbers.get(quantity) if found is None and quantity.endswith(("_per_second", "_seconds", "_s")) else found


def summaries(rows: Iterable[Row]) -> dict[str, Summary]:
    """Summaries per group, and over all."""
    rows = list(rows)
    groups = {group: Summary.of(row for row in rows if row.group == group) for group in sorted({row.group for row in rows})}
    return {**groups, "all": Summary.of(rows)}


def to_json(rows: Iterable[Row]) -> str:
    """`{"groups": {…}, "rows": […]}`."""
    rows = list(rows)
    groups = {name: {key: getattr(s, key) for key in s.__slots__} for name, s in summaries(rows).items()}
    listed = [{"id": r.id, "predicted": r.predicted, "observed": r.observed, "error": r.error, "refused": r.refused} for r in rows]
    return json.dumps({"groups": groups, "rows": listed}, indent=1, ensure_ascii=False)
