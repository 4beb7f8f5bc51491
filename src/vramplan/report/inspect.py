"""An Inspection for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..tape import shape_label
from ..units import count, gib
from .text import table

if TYPE_CHECKING:
    from ..inspect import Inspection

LENGTHS = (8192, 32768, 131072)


def render(found: Inspection, *, tensors: bool = False) -> str:
    """Parameters by part, caches by kind of layer, what the file holds; with `tensors` every weight."""
    model, tape = found.model, found.tape
    context = f"{model.context_length:,} tokens" if model.context_length else "not stated"
    lines = [
        f"{model.id}: {tape.parameters:,} parameters ({count(tape.parameters)}), {count(tape.active_parameters)} active per token.",
        "",
        f"type     {model.config['model_type']}",
        f"from     {model.origin}",
        f"context  {context}",
        *(f"layers   {n:>3} of {parts}" for n, parts in found.layers),
        *([f"MTP      {model.mtp_layers}, in the checkpoint but not loaded, and not counted here"] if model.mtp_layers else []),
        f"FLOPs    {tape.flops / 1e9:,.2f} G per token, attention to an empty cache",
        "",
        table(["part", "parameters"], [[part, f"{n:,}"] for part, n in sorted(found.parts.items(), key=lambda kv: -kv[1])]),
    ]
    if found.caches:
        rows = []
        for cache in found.caches:
            window = f"{int(cache.window):,}" if cache.window is not None else "-"
            rows.append(
                [cache.name, str(len(cache.layers)), f"per {cache.per}", shape_label(cache.shape), window, cache.dtype or "KV type"]
            )
        lines += ["", table(["kept", "layers", "", "shape", "window", "dtype"], rows), ""]
        lines += [f"{gib(found.cache_nbytes(tokens)):>12} for one sequence of {tokens:,} tokens in bf16" for tokens in LENGTHS]
    else:
        lines += ["", "keeps nothing between steps"]
    if found.stored is not None:
        lines += ["", table(["stored as", "bytes"], [[kind, gib(n)] for kind, n in found.stored.items()])]
        number, nbytes = found.skipped
        if number:
            lines += [f"{number} tensors ({gib(nbytes)}) of multi-token prediction are in the file but do not load"]
    lines += [f"note: {note}" for note in model.notes]
    if tensors:
        rows = [[w.name, shape_label(w.shape), str(w.repeats), str(w.copies)] for w in tape.weights]
        lines += ["", table(["weight", "shape", "layers", "experts"], rows)]
    return "\n".join(lines)
