"""An Inspection for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..dim import shape_label
from ..units import count, gib
from .text import table, wrapped

if TYPE_CHECKING:
    from ..inspect import Inspection

LENGTHS = (8192, 32768, 131072)


def render(found: Inspection, *, tensors: bool = False) -> str:
    """Parameters by part, caches by kind of layer, what the file holds; with `tensors` every weight."""
    model, tape = found.model, found.tape
    context = f"{model.context_length:,} tokens" if model.context_length else "not stated"
    active = f"{count(tape.active_parameters)} active per token"
    lines = [
        *wrapped(f"{model.id}: {tape.parameters:,} parameters ({count(tape.parameters)}), {active}.", ""),
        "",
        f"type     {model.config['model_type']}",
        *wrapped(model.origin, "from     "),
        f"context  {context}",
        *(line for n, parts in found.layers for line in wrapped(parts, f"layers   {n:>3} of ")),
        *([f"MTP      {model.mtp_layers}, in the checkpoint but not loaded, and not counted here"] if model.mtp_layers else []),
        f"FLOPs    {tape.flops / 1e9:,.2f} G per token, attention to an empty cache",
        "",
        table(["part", "parameters"], [[part, f"{n:,}"] for part, n in sorted(found.parts.items(), key=lambda kv: -kv[1])]),
    ]
    if found.caches:
        layers: dict[str, int] = {}
        for cache in found.caches:
            window = f", window of {int(cache.window):,}" if cache.window is not None else ""
            kept = f"{cache.name} {shape_label(cache.shape)} per {cache.per}{window}, in {cache.dtype or 'the KV type'}"
            layers[kept] = layers.get(kept, 0) + len(cache.layers)
        lines += ["", *(line for kept, n in layers.items() for line in wrapped(kept, f"kept     {n:>3} × ")), ""]
        lines += [f"{gib(found.cache_nbytes(tokens)):>12} for one sequence of {tokens:,} tokens in bf16" for tokens in LENGTHS]
    else:
        lines += ["", "keeps nothing between steps"]
    if found.stored is not None:
        lines += ["", table(["stored as", "bytes"], [[kind, gib(n)] for kind, n in found.stored.items()])]
        number, nbytes = found.skipped
        if number:
            lines += [f"{number} tensors ({gib(nbytes)}) of multi-token prediction are in the file but do not load"]
    lines += [line for note in model.notes for line in wrapped(note, "note: ")]
    if tensors:
        rows = [[w.name, shape_label(w.shape), str(w.repeats), str(w.copies)] for w in tape.weights]
        lines += ["", table(["weight", "shape", "layers", "experts"], rows)]
    return "\n".join(lines)
