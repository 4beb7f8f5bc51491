"""What a model is made of: layers by kind, parameters by part, what its file holds, what it keeps per token and per sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .dim import Dim, numel
from .engines.lines import loaded, text_caches
from .families import walk
from .formats.kv import kv_bytes
from .sources import resolve
from .sources.model import Model
from .tape import Tape
from .tensors import Cache


@dataclass(frozen=True)
class Inspection:
    """A model and one token's walk through it."""

    model: Model
    tape: Tape

    @property
    def parts(self) -> Mapping[str, int]:
        """Parameters by part of the model, buffers left out."""
        parts: dict[str, int] = {}
        for weight in self.tape.weights:
            if weight.kind != "buffer":
                parts[weight.part] = parts.get(weight.part, 0) + weight.numel
        return parts

    @property
    def layers(self) -> list[tuple[int, str]]:
        """Layers of the language model by kind: how many, and what they consist of, with windows and state named."""
        kinds: dict[tuple[int, ...], dict[str, None]] = {}
        for weight in self.tape.weights:
            if weight.layers is not None and weight.tower is None:
                kinds.setdefault(weight.layers, {})[weight.part] = None
        for cache in self.caches:
            if cache.window is not None:
                kinds.setdefault(cache.layers, {})[f"window of {int(cache.window):,}"] = None
            elif cache.side == "state":
                kinds.setdefault(cache.layers, {})["state"] = None
        return [(len(layers), ", ".join(part for part in parts if part != "norms")) for layers, parts in kinds.items()]

    @property
    def caches(self) -> list[Cache]:
        """What its language model keeps between steps, by kind of layer."""
        return text_caches(self.tape)

    def cache_nbytes(self, tokens: int, dtype: str = "bf16") -> int:
        """Bytes that one sequence of `tokens` tokens keeps, windows as the model defines them; states in their own dtype."""
        total = 0
        for cache in self.caches:
            elements, nbytes = kv_bytes((cache.dtype or dtype) if cache.side == "state" else dtype)
            total += cache.elements(cache.kept(tokens)) * nbytes // elements
        return total

    @property
    def stored(self) -> Mapping[str, int] | None:
        """Bytes of the file's tensors by type; None where no file was read."""
        if self.model.stored is None:
            return None
        types: dict[str, int] = {}
        for tensor in self.model.stored:
            types[tensor.dtype] = types.get(tensor.dtype, 0) + tensor.nbytes
        return types

    @property
    def skipped(self) -> tuple[int, int]:
        """Tensors of the file that do not load (multi-token prediction), and their bytes."""
        _, skipped = loaded(self.model, self.tape)
        return len(skipped), sum(tensor.nbytes for tensor in skipped)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        return {
            "id": self.model.id,
            "origin": self.model.origin,
            "model_type": self.model.config["model_type"],
            "context_length": self.model.context_length,
            "parameters": self.tape.parameters,
            "active_parameters": self.tape.active_parameters,
            "layers": [{"count": n, "of": parts} for n, parts in self.layers],
            "mtp_layers": self.model.mtp_layers,
            "flops_per_token": self.tape.flops,
            "parts": dict(self.parts),
            "caches": [
                {
                    "name": cache.name,
                    "layers": len(cache.layers),
                    "per": cache.per,
                    "elements": numel(cache.shape),
                    "window": None if cache.window is None else int(cache.window),
                    "dtype": cache.dtype,
                }
                for cache in self.caches
            ],
            "stored": None if self.stored is None else dict(self.stored),
            "weights": [
                {"name": w.name, "shape": [int(d) for d in w.shape], "kind": w.kind, "layers": w.repeats, "experts": w.copies}
                for w in self.tape.weights
            ],
            "notes": list(self.model.notes),
        }


def inspect(model: str | Mapping[str, object]) -> Inspection:
    """Look a model up and walk one token through it. Raises as `sources.resolve` and `families.walk`."""
    found = resolve(model)
    return Inspection(found, walk(Tape(Dim(1, "sequences"), Dim(1, "tokens")), found.config, found.id))
