"""Images in a traced step: fake pixels of the shapes that a model's processor hands over, the tokens that stand for them, frozen towers.

The sizes are the family's own (`Tape.picture`); the model's code checks that tokens and features are equally many. It does not know models
whose families do not say what they make of an image.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

from ..dim import Dim
from ..errors import BadInput, Unknown
from ..families import walk
from ..families.anyres import MADE_FOR
from ..tape import Tape
from ..tensors import Picture
from .recipe import Recipe
from .recorder import Recorder
from .values import Values

TOWERS = ("visual", "vision_tower", "vision_model")
PROJECTORS = ("multi_modal_projector", "merger", "deepstack_merger_list", "connector")
"""What transformers' models call a vision tower, and what carries its output over to the text model (5.23)."""


ASKING = ("idefics3", "smolvlm")
"""Model types whose code asks for values of pixels."""


def frozen(recipe: Recipe) -> re.Pattern[str] | None:
    """Matches the names of modules and weights in a tower that the recipe leaves frozen."""
    within, without = "|".join((*TOWERS, *PROJECTORS)), "|".join(PROJECTORS)
    if recipe.tower == "frozen":
        return re.compile(rf"(^|.*\.)({within})(\.|$).*")
    return re.compile(rf"(^|.*\.)(?=({'|'.join(TOWERS)})\.)(?!.*\b({without})\b).*") if recipe.tower == "projector" else None


def picture(recipe: Recipe) -> Picture:
    """What one image is to the recipe's model. Raises BadInput where it cannot see, Unknown where its family does not say."""
    tape = Tape(Dim(recipe.micro_batch, "batch"), Dim(recipe.sequence_length, "tokens"))
    tape.images, tape.image_size = recipe.images, recipe.image_size
    walk(tape, recipe.config, recipe.name)
    if str(recipe.config.get("model_type")) in ASKING:
        raise Unknown(
            f"{recipe.name}: its code asks of pixels which tiles are padding, which a fake tensor cannot tell; trace without images"
        )
    if tape.picture is None:
        if any(weight.tower == "vision" for weight in tape.weights):
            raise Unknown(f"{recipe.name}: its family does not say what it makes of images")
        raise BadInput(f"images {recipe.images}: {recipe.name} has no vision tower")
    return tape.picture


def inputs(recorder: Recorder, recipe: Recipe, model: Any) -> dict[str, Any]:
    """`input_ids` with each image's tokens first, `pixel_values`, and what else the model's forward asks for of them."""
    seen, values = picture(recipe), recorder.values
    assert values is not None
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    token = next(value for key in ("image_token_id", "image_token_index") if (value := getattr(inner.config, key, None)) is not None)
    batch, count = recipe.micro_batch, recipe.micro_batch * recipe.images
    places = [True] * (seen.tokens * recipe.images) + [False] * (recipe.sequence_length - seen.tokens * recipe.images)
    wanted = inspect.signature(inner.forward).parameters
    tiles_by_size = recipe.config.get("model_type") == "llava_next"
    together = (count, *seen.pixels) if tiles_by_size else (count * seen.pixels[0], *seen.pixels[1:])
    tiled = (batch, recipe.images, *seen.pixels) if "aspect_ratio_ids" in wanted else together
    shape = {2: (count * seen.pixels[0], *seen.pixels[1:]), 3: (count, *seen.pixels), 4: tiled}
    made: dict[str, Any] = {
        "input_ids": _known(values, lambda: torch.where(torch.tensor([places] * batch), token, 0)),
        "pixel_values": torch.empty(shape[len(seen.pixels)]),
    }
    if "image_grid_thw" in wanted:
        made["image_grid_thw"] = _known(values, lambda: torch.tensor([[1, *seen.grid]] * count))
        made["position_ids"] = torch.zeros((3, batch, recipe.sequence_length), dtype=torch.long)
    if "image_sizes" in wanted and (tiles_by_size or getattr(inner.config.vision_config, "model_type", "") == "pixtral"):
        size = list(recipe.image_size or MADE_FOR) if tiles_by_size else list(seen.pixels[-2:])
        made["image_sizes"] = _known(values, lambda: torch.tensor([size] * count))
    if "aspect_ratio_ids" in wanted:
        tiles = (recipe.images, seen.pixels[0])
        made["aspect_ratio_ids"] = torch.ones((batch, recipe.images), dtype=torch.long)
        made["aspect_ratio_mask"] = torch.ones((batch, *tiles), dtype=torch.long)
        made["cross_attention_mask"] = torch.ones((batch, recipe.sequence_length, *tiles), dtype=torch.long)
    if "token_type_ids" in wanted:
        made["token_type_ids"] = _known(values, lambda: torch.tensor([places] * batch).long())
    return made


def _known(values: Values, make: Callable[[], Any]) -> Any:
    """A fake tensor whose values are known."""
    with unset_fake_temporarily():
        real = make()
    fake = torch.empty(real.shape, dtype=real.dtype)
    values.know(fake, real)
    return fake
