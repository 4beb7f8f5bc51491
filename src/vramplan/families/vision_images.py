"""Images among a sequence's tokens: what a processor makes of their size, how many tokens they are, how they join the text's embeddings.

A model says by its `Picture` what one image is to it; the tape's `images` are that many in each sequence, all of one size. Which sizes a
processor allows stands in a repository's preprocessor_config.json, which is not read: families give what their releases have.
"""

from __future__ import annotations

import math

from ..dim import Dim
from ..errors import BadInput
from ..ops.product import lowered
from ..tape import Tape
from ..tensors import Picture, Tensor, Weight

FAR = 200
"""The most that an image may be longer than wide, or wider than long (`smart_resize`)."""


def count(t: Tape) -> Dim:
    """The images of this pass, those of all sequences; where there are none one, whose activations do not count."""
    return Dim(int(t.sequences) * t.images or 1, "images")


def see(t: Tape, picture: Picture) -> Picture:
    """Note what one image is to the model, if its tower runs. Raises BadInput where a sequence's images are more tokens than it has."""
    if t.idle is not None:
        return picture
    t.picture = picture
    tokens = t.images * picture.tokens
    if tokens > t.tokens:
        raise BadInput(
            f"images {t.images}: {picture.tokens:,} tokens each, {tokens:,} together; a sequence has {int(t.tokens):,} with them"
        )
    return picture


def square(t: Tape, side: int, patch: int, tokens: int) -> Picture:
    """The picture of a model that sees images of one size, `side` × `side` pixels, to which its processor resizes any."""
    grid = int(side) // int(patch)
    return see(t, Picture(pixels=(3, int(side), int(side)), grid=(grid, grid), tokens=int(tokens)))


def rounded(size: tuple[int, int], factor: int, least: int, most: int) -> tuple[int, int]:
    """Height and width to the nearest multiples of `factor`, and within `least` to `most` pixels in all. Raises BadInput for a far image.

    Source: `smart_resize`, transformers 5.23 `models/qwen2_vl/image_processing_qwen2_vl.py`.

    >>> rounded((1024, 768), 28, 56 * 56, 16384 * 28 * 28)
    (1036, 756)
    """
    height, width = size
    if max(size) > FAR * min(size):
        raise BadInput(f"image_size {width}x{height}: one side may be at most {FAR} times the other")
    tall, wide = round(height / factor) * factor, round(width / factor) * factor
    if tall * wide > most:
        shrink = math.sqrt(height * width / most)
        tall, wide = (max(factor, math.floor(side / shrink / factor) * factor) for side in size)
    elif tall * wide < least:
        grow = math.sqrt(least / (height * width))
        tall, wide = (math.ceil(side * grow / factor) * factor for side in size)
    return tall, wide


def shrunk(size: tuple[int, int], factor: int, longest: int) -> tuple[int, int]:
    """Height and width scaled down until neither is beyond `longest`, then up to multiples of `factor`.

    Source: `get_resize_output_image_size`, transformers 5.23 `models/pixtral/image_processing_pixtral.py`.

    >>> shrunk((3080, 1000), 28, 1540)
    (1540, 504)
    """
    ratio = max(side / longest for side in size)
    height, width = (math.floor(side / ratio) if ratio > 1 else side for side in size)
    return -(-height // factor) * factor, -(-width // factor) * factor


def pixel_values(t: Tape, shape: tuple[int, ...], *, joined: bool = False) -> Tensor:
    """What the processor hands over, in fp32 and held until the model returns, cast to the model's dtype: -> `shape`. The tiles of all
    images are `joined` first, in a copy.
    """
    pixels = given(t, t.tensor("pixel_values", shape, itemsize=4))
    pixels = t.hold(t.op("pixel_values.joined", (pixels,), shape, itemsize=4)) if joined else pixels
    return t.op("pixel_values.cast", (pixels,), shape) if t.itemsize != 4 else pixels


def given(t: Tape, x: Tensor) -> Tensor:
    """`x`, which the model is called with, or which its output names: it is there until the model returns, with the loss."""
    if t.idle is None:
        t.frames[min(1, len(t.frames) - 1)].append(x)
        t.frames[0].append(x)
    return x


def convolved(t: Tape, pixels: Tensor, name: str, shape: tuple[int, ...], weights: tuple[Weight, ...]) -> Tensor:
    """A convolution whose stride is its kernel: pixels, a patch in each row, -> `shape`. Backward keeps the pixels.

    Under autocast both are cast down, as for a product of matrices (aten `autocast_mode.h`, AT_FORALL_LOWER_PRECISION_FP).
    """
    entry, casts = lowered(t, pixels, name), t.cast_weights(weights, kept=False)
    return t.op(name, (entry,), shape, itemsize=t.autocast or t.itemsize, weights=weights, saves=(entry,), extra=casts)


def asked_of_inputs(t: Tape, x: Tensor) -> Tensor:
    """`x`, a tower's patches: where inputs must need gradients (checkpointing over frozen layers), these must too, and are kept.

    Source: `PreTrainedModel.enable_input_require_grads`, which asks it of every model within (transformers 5.23 `modeling_utils.py`); a
    tensor of which it is asked is a leaf, which autograd's graph holds.
    """
    if t.idle is None and inputs_asked(t) and not x.grad:
        x.grad, x.saved = True, 1
    return x


def inputs_asked(t: Tape) -> bool:
    """Whether gradients are asked of what stands before all layers."""
    return t.method is not None and t.method.inputs_need_gradients()


def passed(t: Tape, x: Tensor) -> Tensor:
    """`x`, which all layers are called with: those that are recomputed keep it, where inputs are asked for gradients."""
    x.saved = max(x.saved, int(t.idle is None and inputs_asked(t)))
    return x


def prefix_mask(t: Tape, window: int | None) -> Tensor | None:
    """The mask of truth values by which an image's tokens see each other, for kernels that take one; eager attention has one anyway."""
    if not t.images or t.kernels.attention != "sdpa":
        return None
    return passed(t, t.shared(f"mask {window or ''}", (t.sequences, t.tokens, t.tokens), itemsize=1))


def scatter(t: Tape, x: Tensor, features: Tensor) -> Tensor:
    """The embeddings [b, s, hidden] with images' `features` in the places of their tokens. Backward keeps the places, a byte for each, and
    frozen embeddings of which gradients are asked.

    Source: `aten::masked_scatter`, pytorch `derivatives.yaml`; transformers 5.23, `get_placeholder_mask` and what follows it.
    """
    if not t.images:
        return x
    mask = t.tensor("image_mask", (*x.shape[:-1], Dim(1)), itemsize=1)
    leaf = inputs_asked(t) and not any(weight.trained for weight in t.weights if weight.kind == "embed" and weight.tower is None)
    kept = (mask, x) if leaf else (mask,)
    return t.hold(t.op("masked_scatter", (x, features), x.shape, saves=kept, extra=(mask,)))
