"""Values of small integer tensors: what a model computes from an image's size, or from where its tokens stand, is computed for real.

A fake tensor has no values. Where every tensor that an operator reads is known, it runs on the real ones too, and its result is known: the
windows of a vision tower, a mask of image tokens. Where a known mask selects from a tensor that is not, so many elements are selected. It
knows whole numbers and truth values up to a million elements, and nothing that comes of a weight or a pixel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensor, unset_fake_temporarily
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

aten = torch.ops.aten
LARGEST = 1 << 20
"""Elements of the largest tensor whose values are kept."""
_MAKERS = ("arange", "zeros", "ones", "full", "scalar_tensor", "new_zeros", "new_ones", "new_full", "lift_fresh")
_INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)


class Values:
    """The known values: fake tensor -> real tensor."""

    def __init__(self) -> None:
        self._real: Any = WeakIdKeyDictionary()

    def know(self, fake: Any, real: Any) -> None:
        """`fake` has the values of `real`."""
        self._real[fake] = real

    def of(self, tensor: Any) -> Any:
        """The real tensor, or None where the values are not known."""
        return self._real.get(tensor) if isinstance(tensor, FakeTensor) else tensor

    def call(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run an operator on fake tensors, and on the real ones where all are known."""
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        made = func._schema.name.partition("::")[2] in _MAKERS
        if not (tensors or made) or not all(self.of(tensor) is not None for tensor in tensors):
            return self._unknown(func, args, kwargs)
        with unset_fake_temporarily():
            real_args, real_kwargs = tree_map(lambda leaf: self.of(leaf) if isinstance(leaf, torch.Tensor) else leaf, (args, dict(kwargs)))
            real = func(*real_args, **real_kwargs)
        if not any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(real)):
            return real
        try:
            fake = func(*args, **kwargs)
        except (DynamicOutputShapeException, DataDependentOutputException):
            fake = tree_map(lambda leaf: torch.empty(leaf.shape, dtype=leaf.dtype) if isinstance(leaf, torch.Tensor) else leaf, real)
        for one, value in zip(tree_leaves(fake), tree_leaves(real), strict=True):
            if isinstance(one, FakeTensor) and not value.dtype.is_floating_point and value.numel() <= LARGEST:
                self.know(one, value)
        return fake

    def _unknown(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Of a tensor that is written to, nothing is known any more; of a known mask as an index, where it is true."""
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, FakeTensor):
                self._real.pop(value, None)
        if func in _INDEXED:
            args = (args[0], [place for index in args[1] for place in self._places(index)], *args[2:])
        return func(*args, **kwargs)

    def _places(self, index: Any) -> tuple[Any, ...]:
        known = self.of(index) if index is not None and index.dtype is torch.bool else None
        return (index,) if known is None else tuple(self.call(aten.nonzero.default, (index,), {}).unbind(1))
