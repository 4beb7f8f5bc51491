"""`vramplan fix`: what makes a scenario fit that does not."""

from __future__ import annotations

import json
from typing import Any

import click

from .options import scenario_options, single


@click.command("fix")
@scenario_options
@click.option("--json", "as_json", is_flag=True, help="as JSON")
def command(as_json: bool, **options: Any) -> int:
    """Tell what makes MODEL fit: the smallest set of remedies, the cheapest first, and what each saves alone.

    Classes: free; time (slower); quality (a little); more (less of what was asked, or more hardware).
    """
    from ..planner.fix import fix
    from ..report.plan import fix as render

    found = fix(single(options))
    click.echo(json.dumps(found.to_dict(), indent=1, ensure_ascii=False) if as_json else render(found))
    return 0
