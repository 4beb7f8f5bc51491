"""Model families: a config.json in, a tape out. One file per family or close group, each with `MODEL_TYPES` and `forward(tape, config)`.

A file is found by the `MODEL_TYPES = (...)` line that names the config's `model_type`; nothing else needs to know that it exists.
A family never sees a GPU, an engine, a number format or a scenario.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module

from ..dim import Dim
from ..discovery import declared
from ..errors import Unknown, nearest
from ..tape import Tape
from .config import Config

__all__ = ["Config", "encoder", "forward_of", "model_types", "walk"]


def model_types() -> Mapping[str, str]:
    """Every `model_type` that we know, with the name of the file that describes it."""
    return declared(__file__, "MODEL_TYPES")


def forward_of(model_type: str) -> Callable[[Tape, Config], None]:
    """The forward pass of `model_type`. Raises Unknown with the nearest families for one that we do not know."""
    try:
        module = model_types()[model_type]
    except KeyError:
        raise Unknown(
            f"model_type {model_type[:60]!r} is none of the {len(model_types())} known{nearest(model_type, model_types())}; a plain "
            'decoder can be described by hand: --layers --hidden --heads --kv-heads --ffn --vocab, or an inline config of type "llama"'
        ) from None
    forward: Callable[[Tape, Config], None] = import_module(f".{module}", __name__).forward
    return forward


def walk(tape: Tape, raw: Mapping[str, object], name: str = "config") -> Tape:
    """Run the forward pass that `raw` (a config.json, called `name` in errors) describes on `tape`, and return the tape."""
    config = Config(raw, name)
    text = config.sub("text_config") if config.has("text_config") else config
    tape.attention_dropout = text.share("attention_dropout")
    if tape.kernels.rotary == "cached":
        tape.positions = int(text.size("max_position_embeddings", tape.positions or 2048))
    forward_of(config.text("model_type"))(tape, config)
    return tape


def encoder(raw: Mapping[str, object]) -> bool:
    """Whether the model that `raw` describes sees a whole text at once, and so caches nothing."""
    return not walk(Tape(Dim(1, "sequence"), Dim(1, "token")), raw).caches
