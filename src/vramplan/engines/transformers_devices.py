"""`device_map="auto"`: which module of a model goes to which GPU, to the host, or to the disk, as transformers decides before it loads.

Modules are filled in, in their order, GPU by GPU; a decoder layer is never split; the first GPU and the host keep room for the largest
layer, which is brought there when it is its turn. Source: transformers 5.23 `integrations/accelerate.py`, get_balanced_memory and
infer_auto_device_map (accelerate's own, but for quantised sizes). It knows text models, whose layers are all that is not split.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..formats import Scheme, weights_nbytes
from ..tape import Tape

HOST, DISK = "cpu", "disk"
Place = int | str
"""The number of a GPU, the host or the disk."""
BITSANDBYTES = ("nf4", "fp4", "int8", "bitsandbytes")
"""Their sizes are counted without what stands beside the elements, and a tenth of the memory is kept for it (`adjust_max_memory`)."""


@dataclass(slots=True)
class Module:
    """A module of the tree: its bytes with those of its children; a `layer` is not split."""

    name: str
    nbytes: int = 0
    children: dict[str, Module] = field(default_factory=dict)
    layer: bool = False

    def parts(self) -> list[Module]:
        """What it is split into: numbered layers in their order, others as they were met."""
        return sorted(self.children.values(), key=lambda m: int(m.name.rpartition(".")[2]) if m.layer else -1)


def modules(tape: Tape, scheme: Scheme) -> Module:
    """The tree of the modules that hold weights, as the map counts them: a tied head holds none."""
    bare = scheme.name.lower().split("-")[0] in BITSANDBYTES
    root = Module("")
    for weight, form, layers, nbytes in weights_nbytes(tape.weights, scheme):
        each = weight.numel // weight.repeats * form.block_bytes // form.block if bare else nbytes // len(layers or (0,))
        before, numbered, _ = weight.name.partition(".{i}.")
        holder = _counted(root, before if numbered else before.rpartition(".")[0], each * len(layers or (0,)))
        for layer in (layers or ()) if numbered else ():
            name = f"{holder.name}.{layer}"
            holder.children.setdefault(name, Module(name, layer=True)).nbytes += each
    return root


def _counted(root: Module, name: str, nbytes: int) -> Module:
    """The module called `name`, with `nbytes` more in it and in all that it is in; below a layer nothing is told apart."""
    at, path = root, ""
    at.nbytes += nbytes
    for part in name.split(".") if name else ():
        path = f"{path}.{part}" if path else part
        at = at.children.setdefault(path, Module(path))
        at.nbytes += nbytes
    return at


def limits(kind: str, root: Module, gpus: Sequence[int], host: int, scheme: Scheme) -> dict[Place, int]:
    """Bytes that each place may be given: `gpus` and `host` are what is free. One GPU keeps a tenth; of several, all but the last get an
    even share and a buffer of 1.25 of the largest layer or leaf, unless `kind` is sequential.
    """
    free: list[int] = list(gpus)
    if kind != "sequential" and len(free) == 1:
        free = [int(free[0] * 0.9)]
    elif kind != "sequential":
        low = kind == "balanced-low-0"
        share = root.nbytes // (len(free) - low) + int(1.25 * max(m.nbytes for m in _leaves([root])))
        free = [min(share, room) if not (low and i == 0) else room for i, room in enumerate(free[:-1])] + free[-1:]
        if low:
            free[0] = min(max(0, root.nbytes - sum(free[1:])), free[0])
    kept = 0.9 if scheme.name.lower().split("-")[0] in BITSANDBYTES else 1
    places: dict[Place, int] = {i: int(room * kept) for i, room in enumerate(free)}
    return {**places, HOST: int(host * 0.9 * kept)}


def device_map(root: Module, limits: Mapping[Place, int]) -> dict[str, Place]:
    """Where each module goes, by its name; what is left goes to the disk."""
    places: list[Place] = [*limits, DISK]
    used = dict.fromkeys(places, 0)
    found: dict[str, Place] = {}
    queue = root.parts()
    size, largest = _largest(queue)
    at = 0
    while queue:
        module = queue.pop(0)
        largest = [name for name in largest if name != module.name and not name.startswith(module.name + ".")]
        if not largest:
            size, largest = _largest(queue)
        place = places[at]
        reserved = size if place in (0, HOST) else 0
        if place == DISK or used[place] + module.nbytes <= limits[place] - reserved:
            found[module.name] = place
            used[place] += module.nbytes
        elif module.children and not module.layer:
            queue = module.parts() + queue
            size, largest = _largest(queue)
        else:
            used[place] += reserved
            at += 1
            queue.insert(0, module)
    return found


def place_of(found: Mapping[str, Place], name: str) -> Place:
    """Where the weight or module called `name` is."""
    parts = name.split(".")
    return next(found[prefix] for n in range(len(parts), 0, -1) if (prefix := ".".join(parts[:n])) in found)


def _leaves(queue: Sequence[Module]) -> Iterator[Module]:
    """Layers, and modules without children."""
    for module in queue:
        if module.layer or not module.children:
            yield module
        else:
            yield from _leaves(module.parts())


def _largest(queue: Sequence[Module]) -> tuple[int, list[str]]:
    """Bytes of the largest leaf, and the names of those that large."""
    leaves = list(_leaves(queue))
    size = max((module.nbytes for module in leaves), default=0)
    return size, [module.name for module in leaves if module.nbytes == size and size]
