"""The recorder: every allocation and free of device storage, in order, while real PyTorch code runs on fake tensors.

A dispatch mode sees each operator's results below autograd. A storage not seen before is an allocation; a weak reference to the *storage*
(not the tensor: views share it) calls back when it dies, which is the free. So the order of events is that of the real run. Who made a
block is known too: its operator, phase, and module; in the backward pass as well, because autograd numbers its nodes in the order of the
forward pass, so a node's number tells the module in whose forward it was made.

It does not know CUDA: what kernels take beside their results is told to it (workspaces.py), as is which kernel runs (kernels.py).
"""

from __future__ import annotations

import weakref
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..allocator import ALLOC, FREE, MARK, Event, block_size
from .result import Block, Trace
from .values import Values

Workspace = Callable[[tuple[Any, ...], Mapping[str, Any], Any], Iterable[tuple[str, int]]]
"""(arguments, keyword arguments, results) of an operator -> (name, bytes) of what its kernel takes while it runs."""

_SCALAR = torch.ops.aten._local_scalar_dense.default
_DEVICE = torch.ops.prim.device.default
_CAST = torch.ops.aten._to_copy.default
COMPOSITES = {torch.ops.aten._safe_softmax.default}
"""Operators that are written with others: what they take beside their results are tensors like any other."""
_INDEX_PUT, _INDEX_PUT_ = torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default
"""index_backward writes into its zeros, but for subclasses of tensors, which fake ones are (torch/csrc/autograd/FunctionsManual.cpp)."""


class Recorder(TorchDispatchMode):
    """Enter it inside a FakeTensorMode. `events` is what allocator.replay takes; `blocks` and `phases` say what their numbers mean."""

    def __init__(
        self, workspaces: Mapping[Any, Workspace] | None = None, *, products: Container[Any] = (), product_nbytes: int = 0
    ) -> None:
        """`workspaces` says what kernels take; the first of the `products` in a thread takes `product_nbytes` for good."""
        super().__init__()
        self.events: list[Event] = []
        self.blocks: list[Block] = []
        self.phases: list[tuple[int, str]] = []
        self.step = 0
        self.allocated = self.max_allocated = 0
        """Bytes now and at most, in whole blocks."""
        self.paused = True
        self.everything = True
        """Whether every tensor is on the device; else those are that come of one there, or that `place` says so of."""
        self.place = ""
        """Where a call's results go: "device", "host", or "" as its arguments are."""
        self.idle = True
        """Whether no operator runs: who asks a tensor for its device then is the user's code."""
        self._host: dict[int, weakref.ref[Any]] = {}
        self.truth = True
        """What `bool()` of a fake tensor is answered with: true says of an attention mask that nothing is padded."""
        self.values: Values | None = None
        """Where the values of small integer tensors are kept, for models that compute with them."""
        self.kernels: Counter[str] = Counter()
        """Kernels of attention that were chosen, and how often."""
        self.guesses: Counter[str] = Counter()
        """Module -> how often a value was asked of a fake tensor (`.item()`, `bool()`) and answered with `truth` or one."""
        self._products = products
        self._product_nbytes = product_nbytes
        self._workspaces = workspaces or {}
        self._persistent: dict[str, int] = {}
        self._live: dict[int, tuple[int, weakref.ref[Any]]] = {}
        self._modules: list[str] = []
        self._seen = [0]
        self._names = [""]
        self._resize: Any = None

    # What the run tells.

    def mark(self, phase: str) -> None:
        """From here on it is `phase` of the step: load, forward, loss, backward or step."""
        self.events.append((MARK, len(self.phases), 0))
        self.phases.append((self.step, phase))

    def enter(self, module: str) -> None:
        """A module's forward begins."""
        self._modules.append(module)
        self._note(module)

    def leave(self) -> None:
        """A module's forward ends."""
        self._modules.pop()
        self._note(self._modules[-1] if self._modules else "")

    def adopt(self, tensors: Iterable[tuple[str, Any]], category: str) -> None:
        """Count tensors that were made while the recorder was paused, in this order, as allocations of `category` by a module."""
        for module, tensor in tensors:
            if isinstance(tensor, FakeTensor) and (number := self._look(tensor, "load")) is not None:
                block = self.blocks[number]
                block.module, block.category = block.module or module, block.category or category

    def label(self, tensors: Iterable[Any], category: str) -> None:
        """Say as what the blocks of `tensors` are known, where nobody has said it yet."""
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor) and (found := self._live.get(tensor.untyped_storage()._cdata)):
                block = self.blocks[found[0]]
                block.category = block.category or category

    def belongs(self, tensor: Any, module: str, category: str) -> None:
        """Say of which module a counted tensor is, and as what it is known, where nobody has said it yet."""
        if found := self._live.get(tensor.untyped_storage()._cdata):
            block = self.blocks[found[0]]
            block.module, block.category = block.module or module, block.category or category

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """What is made within is not on the device."""
        before, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = before

    def result(self, name: str, assumptions: Iterable[str] = ()) -> Trace:
        """What was recorded."""
        return Trace(
            name=name,
            events=tuple(self.events),
            blocks=tuple(replace(block) for block in self.blocks),
            phases=tuple(self.phases),
            kernels=dict(self.kernels),
            guesses=dict(self.guesses),
            assumptions=tuple(assumptions),
        )

    # What it sees.

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before, self.idle = self.idle, False
        try:
            return self._dispatch(func, args, kwargs or {})
        finally:
            self.idle = before

    def _dispatch(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func is _DEVICE or self.paused:
            return self._call(func, args, kwargs)
        if not (self.everything or self._goes_to_device(args, kwargs)):
            result = self._call(func, args, kwargs)
            self._leave_on_host(result)
            return result
        if func in self._products:
            self._first_product()
        if func is _INDEX_PUT and (node := torch._C._current_autograd_node()) is not None and node.name() == "IndexBackward0":
            func = _INDEX_PUT_
        result = self._call(func, args, kwargs)
        name = func.__name__
        if isinstance(result, torch.Tensor):
            self._look(result, name)
            if func is _CAST and self.phases[-1][1] != "step" and self._is(args[0], "weights"):
                self.label([result], "cast weights")
        elif isinstance(result, tuple | list):
            for leaf in tree_leaves(result):
                if isinstance(leaf, torch.Tensor):
                    self._look(leaf, name)
        if (workspace := self._workspaces.get(func)) is not None:
            category = "" if func in COMPOSITES else "workspace"
            taken = [self._alloc(nbytes, f"{name}: {what}", category) for what, nbytes in workspace(args, kwargs, result) if nbytes]
            for number in taken:
                self._free(number)
        return result

    def _call(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func is not _SCALAR:
            return self.values.call(func, args, kwargs) if self.values else func(*args, **kwargs)
        try:
            return self.values.call(func, args, kwargs) if self.values else func(*args, **kwargs)
        except DataDependentOutputException:
            self.guesses[self._module()] += 1
            dtype = args[0].dtype
            return self.truth if dtype is torch.bool else 1.0 if dtype.is_floating_point else 1

    def _look(self, tensor: Any, op: str) -> int | None:
        """The number of the tensor's block, a new one where its storage was not seen before or has another size."""
        if not isinstance(tensor, FakeTensor):
            return None
        storage = tensor.untyped_storage()
        found = self._live.get(storage._cdata)
        nbytes = storage.nbytes()
        if storage._cdata in self._host:
            return None
        if found is not None and found[1]() is not None:
            if self.blocks[found[0]].nbytes == nbytes:
                return found[0]
            self._drop(storage._cdata, found[0])
        return self._watch(storage, nbytes, op) if nbytes else None

    def on_device(self, tensor: Any) -> bool:
        """Whether the tensor's storage is counted."""
        return isinstance(tensor, FakeTensor) and (self.everything or tensor.untyped_storage()._cdata in self._live)

    def _goes_to_device(self, args: Any, kwargs: Any) -> bool:
        if self.place:
            return self.place == "device"
        return any(self.on_device(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor))

    def _leave_on_host(self, result: Any) -> None:
        for leaf in tree_leaves(result):
            if isinstance(leaf, FakeTensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in self._live:
                    key = storage._cdata
                    self._host[key] = weakref.ref(storage, partial(self._forget, key))

    def _forget(self, key: int, _: Any) -> None:
        self._host.pop(key, None)

    def _watch(self, storage: Any, nbytes: int, op: str) -> int:
        number, key = self._alloc(nbytes, op, ""), storage._cdata

        def died(_: Any, number: int = number, key: int = key) -> None:
            found = self._live.get(key)
            if found is not None and found[0] == number and self._resize is not None:
                self._drop(key, number)

        self._live[key] = (number, weakref.ref(storage, died))
        return number

    def _drop(self, key: int, number: int) -> None:
        del self._live[key]
        self._free(number)

    def _alloc(self, nbytes: int, op: str, category: str) -> int:
        number = len(self.blocks)
        self.blocks.append(Block(nbytes, op, self._module(), len(self.phases) - 1, bool(self._modules), category))
        self.events.append((ALLOC, number, nbytes))
        self.allocated += block_size(nbytes)
        self.max_allocated = max(self.max_allocated, self.allocated)
        return number

    def _free(self, number: int) -> None:
        self.events.append((FREE, number, 0))
        self.allocated -= block_size(self.blocks[number].nbytes)

    def _is(self, tensor: Any, category: str) -> bool:
        found = self._live.get(tensor.untyped_storage()._cdata)
        return found is not None and self.blocks[found[0]].category == category

    def _first_product(self) -> None:
        """A thread's first matrix product makes its cuBLAS handle; on a GPU, autograd's backward pass has a thread of its own."""
        thread = "backward" if self.phases and self.phases[-1][1] == "backward" else "forward"
        if thread not in self._persistent:
            self._persistent[thread] = self._alloc(self._product_nbytes, f"cuBLAS workspace of the {thread} thread", "workspace")

    # Modules.

    def _note(self, module: str) -> None:
        """From autograd's next node on, nodes belong to `module`."""
        self._seen.append(torch.autograd._get_sequence_nr())
        self._names.append(module)

    def _module(self) -> str:
        """The module at work: the innermost whose forward runs, or in the backward pass the one that made the node at work."""
        if self._modules:
            return self._modules[-1]
        node = torch._C._current_autograd_node()
        return self._names[bisect_right(self._seen, node._sequence_nr()) - 1] if node is not None else ""

    # `storage.resize_` changes a storage without an operator (FSDP does).

    def __enter__(self) -> Recorder:
        resize = self._resize = torch.UntypedStorage.resize_

        def resize_(storage: Any, size: int) -> Any:
            result = resize(storage, size)
            found = self._live.get(storage._cdata)
            if found is not None and self.blocks[found[0]].nbytes != storage.nbytes():
                self._drop(storage._cdata, found[0])
                if storage.nbytes():
                    self._watch(storage, storage.nbytes(), "resize_")
            return result

        torch.UntypedStorage.resize_ = resize_
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        torch.UntypedStorage.resize_ = self._resize
        self._resize = None
        super().__exit__(*error)
