"""What a GGUF header says of its model, read with suspicion: typed look-ups in its metadata and in the shapes of its tensors.

Knows how llama.cpp names keys and tensors (`{arch}.block_count`, `blk.0.attn_q.weight`) and no architecture. Whatever is missing, of a
wrong type or out of range is BadFile. Blocks for multi-token prediction (the last ones) are left out: they are not run.
Source of the names: gguf-py 0.19.0 `gguf/constants.py`; of their reading: `llama_model::load_hparams` in llama.cpp's `src/llama-model.cpp`.
"""

from __future__ import annotations

import re

from ..errors import BadFile
from .stored import Header, shown

MAX_SIZE = 2**31 - 1
"""A dimension at most, as in families/config.py."""
MAX_LAYERS = 10_000
"""Layers at most, as in families/config.py; llama.cpp itself takes 512 (`LLAMA_MAX_LAYERS`)."""

_BLOCK = re.compile(r"(?:enc\.|dec\.)?blk\.(\d{1,5})\.(.+)", re.DOTALL)


class Facts:
    """The header of the file called `name` in messages. Keys are given without the architecture, block tensors without `blk.N.`."""

    def __init__(self, header: Header, name: str) -> None:
        self.name = name
        self._metadata = header.metadata
        arch = header.metadata.get("general.architecture")
        if not isinstance(arch, str) or not arch:
            raise BadFile(f"{name}: general.architecture is {shown(arch)}; it must name an architecture, such as llama")
        self.arch = arch
        self.tensors = {tensor.name: tensor.shape for tensor in header.tensors}
        self.blocks = self.size("block_count")
        self.layers = self.blocks - self.size("nextn_predict_layers", 0, least=0)
        if not 1 <= self.layers <= MAX_LAYERS:
            raise BadFile(f"{name}: {self.blocks} blocks, of which {self.layers} are run; 1 to {MAX_LAYERS} are accepted")
        self._in_blocks: dict[str, dict[int, tuple[int, ...]]] = {}
        for tensor in header.tensors:
            match = _BLOCK.fullmatch(tensor.name)
            if match and int(match[1]) < self.layers:
                self._in_blocks.setdefault(match[2], {})[int(match[1])] = tensor.shape

    # ---- metadata ---------------------------------------------------------------------------------------------------
    def size(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """An integer of at least `least`."""
        value = self._get(key, default)
        if value is None:
            raise BadFile(f"{self.name}: metadata '{self.arch}.{key}' is missing")
        return self._checked(f"metadata '{self.arch}.{key}'", value, least)

    def maybe(self, key: str) -> int | None:
        """An integer, or None where it is absent or 0."""
        return self.size(key, 0, least=0) or None

    def flag(self, key: str, default: bool) -> bool:
        """A boolean."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise BadFile(f"{self.name}: metadata '{self.arch}.{key}' is {shown(value)}; it must be true or false")
        return value

    def per_layer(self, key: str, default: int | None = None) -> list[int]:
        """One integer, 0 included, for each layer: the file gives one for all, or an array with one for each block."""
        value = self._get(key, default)
        if not isinstance(value, tuple):
            return [self.size(key, default, least=0)] * self.layers
        if len(value) != self.blocks:
            raise BadFile(f"{self.name}: metadata '{self.arch}.{key}' has {len(value)} entries, the model {self.blocks} blocks")
        return [self._checked(f"metadata '{self.arch}.{key}'", int(v) if isinstance(v, bool) else v, 0) for v in value[: self.layers]]

    def common(self, key: str, default: int | None = None) -> int | None:
        """The one value of all layers that do not have 0; None where they all have 0, or differ."""
        values = set(self.per_layer(key, default)) - {0}
        return values.pop() if len(values) == 1 else None

    def given(self, key: str) -> bool:
        """Whether the metadata hold `key`."""
        return self._get(key, None) is not None

    def pattern(self, key: str, period: int) -> list[bool]:
        """Whether each layer slides: an array says so, or a period (here, or in the file) of which the last layer does not."""
        if isinstance(self._get(key, period), tuple):
            return [bool(slides) for slides in self.per_layer(key)]
        period = self.size(key, period)
        return [(i + 1) % period != 0 for i in range(self.layers)]

    def _get(self, key: str, default: object) -> object:
        return self._metadata.get(f"{self.arch}.{key}", default)

    # ---- tensors ----------------------------------------------------------------------------------------------------
    def having(self, suffix: str) -> list[int]:
        """The layers that have the tensor `suffix`, in order."""
        return sorted(self._in_blocks.get(suffix, ()))

    def first(self, suffix: str) -> int:
        """The first layer that has the tensor `suffix`; BadFile where none has."""
        layers = self.having(suffix)
        if not layers:
            raise BadFile(f"{self.name}: tensor blk.N.{suffix} is missing")
        return layers[0]

    def rows(self, name: str, default: int | None = None) -> int:
        """Outputs of the matrix `name`, of the whole model or of the first layer that has it."""
        return self._dimension(name, -2, default)

    def columns(self, name: str, default: int | None = None) -> int:
        """Inputs of the matrix `name`, likewise."""
        return self._dimension(name, -1, default)

    @property
    def ffn(self) -> int | None:
        """Width of the plain MLP of the first layer that has one; where none has, what the metadata say of it."""
        return self.columns("ffn_down.weight", self.common("feed_forward_length", 0) or 0) or None

    def _dimension(self, name: str, axis: int, default: int | None) -> int:
        layers = self.having(name)
        shape = self._in_blocks[name][layers[0]] if layers else self.tensors.get(name)
        if shape is None:
            if default is None:
                raise BadFile(f"{self.name}: tensor {name} is missing")
            return default
        if len(shape) < 2:
            raise BadFile(f"{self.name}: tensor {name} of shape {shown(shape)} must be a matrix")
        return self._checked(f"a dimension of tensor {name}", shape[axis], 1)

    def _checked(self, what: str, value: object, least: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MAX_SIZE:
            raise BadFile(f"{self.name}: {what} is {shown(value)}; it must be an integer from {least} to {MAX_SIZE}")
        return value
