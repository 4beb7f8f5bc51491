"""llama.cpp's tensors by device: of a file as its header states them, else those that conversion makes of the tape's weights.

Source: llama.cpp 0.5.0 `src/llama-model.cpp`, load_tensors (a tied embedding is on the host and, once more, where the output is).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..dim import numel
from ..formats import Share, weights_nbytes
from ..ledger import Item
from ..sources.stored import StoredTensor
from ..tape import Tape
from ..tensors import Weight
from .job import Job
from .lines import SERVING, item_of_share, loaded
from .llama_cpp_placement import Placement, file_names

Found = tuple[int, int]
"""Bytes and device."""


LAST_NORM = "embedding_norm.weight"
"""The norm before the head of models that call it so (LFM2): of the output layer, as LLM_TENSOR_OUTPUT_NORM_LFM2 is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What stands on `device` of a weight, in some layers (None: outside the layers), or one tensor of a file."""

    nbytes: int
    device: int
    layers: tuple[int, ...] | None = None
    share: Share | None = None
    tensor: StoredTensor | None = None
    part: str = ""


def shares_of(job: Job, tape: Tape) -> list[Share]:
    """The weights of the language model with their formats."""
    return list(weights_nbytes((w for w in tape.weights if not w.tower), job.scheme))


def pieces(job: Job, tape: Tape, where: Placement) -> list[Piece]:
    """All tensors with their device; a tied embedding is on the host and where the output is."""
    return list(_of_file(job, tape, where) if job.stored else _of_tape(shares_of(job, tape), where))


def _of_tape(shares: Sequence[Share], where: Placement) -> Iterator[Piece]:
    output = where.layer(where.layers)
    for share in shares:
        weight, layers = share.weight, share.layers
        if layers is None:
            for device, nbytes in _by_device(share, None, share.nbytes, where).items():
                yield Piece(nbytes=nbytes, device=device, share=share)
            if weight.tied and output != where.host:
                yield Piece(nbytes=share.nbytes, device=output, share=share, part="head")
            continue
        held: dict[int, tuple[list[int], int]] = {}
        for layer in layers:
            for device, nbytes in _by_device(share, layer, share.nbytes // len(layers), where).items():
                known, total = held.get(device, ([], 0))
                known.append(layer)
                held[device] = known, total + nbytes
        for device, (some, nbytes) in held.items():
            yield Piece(nbytes=nbytes, device=device, layers=tuple(some), share=share)


def _by_device(share: Share, layer: int | None, nbytes: int, where: Placement) -> dict[int, int]:
    """Bytes of a weight in a layer by device: the file has it as one tensor or as several of equal size."""
    weight = share.weight
    if not where.moves(weight.kind):
        return {_home(weight, layer, where): nbytes}
    found: dict[int, int] = {}
    names = file_names(weight, layer)
    for name in names:
        device = where.tensor(name, _home(weight, layer, where))
        found[device] = found.get(device, 0) + nbytes // len(names)
    return found


def _home(weight: Weight, layer: int | None, where: Placement) -> int:
    """The device of a weight that no pattern moves. Embeddings and the norm after them are on the host; what makes per-layer inputs goes
    with the first layer (LLM_TENSOR_PER_LAYER_MODEL_PROJ).
    """
    if layer is not None:
        return where.layer(layer)
    if weight.kind == "embed" or (weight.kind == "norm" and "embed" in weight.name and not weight.name.endswith(LAST_NORM)):
        return where.host
    return where.layer(0 if ".per_layer_" in weight.name else where.layers)


def _of_file(job: Job, tape: Tape, where: Placement) -> Iterator[Piece]:
    parts, _ = loaded(job.model, tape)
    untied = any(tensor.name == "output.weight" for tensor in job.model.stored or ())
    output = where.layer(where.layers)
    for part, tensors in parts.items():
        for tensor in tensors:
            layer = int(tensor.name.split(".")[1]) if tensor.name.startswith("blk.") else None
            entry = tensor.name.startswith(("token_embd", "position_embd", "token_types", "per_layer_token_embd"))
            home = where.host if entry else where.layer(where.layers if layer is None else layer)
            yield Piece(nbytes=tensor.nbytes, device=where.tensor(tensor.name, home), tensor=tensor, part=part)
            if tensor.name == "token_embd.weight" and not untied and output != where.host:
                yield Piece(nbytes=tensor.nbytes, device=output, tensor=tensor, part="head")


def weight_index(found: Sequence[Piece], where: Placement) -> Callable[[Weight, int | None], Found]:
    """Where the graph finds a weight's bytes and device: of a file by the tensors' names, else of the tape's own weights."""
    shares: dict[tuple[int, int | None], list[Piece]] = {}
    tensors: dict[str, Found] = {}
    for piece in found:
        if piece.tensor is not None:
            tensors[piece.tensor.name] = piece.nbytes, piece.device
        elif piece.share is not None:
            for layer in (None,) if piece.layers is None else piece.layers:
                shares.setdefault((id(piece.share.weight), layer), []).append(piece)

    def placed(weight: Weight, layer: int | None) -> Found:
        if tensors:
            named = [tensors[name] for name in file_names(weight, layer) if name in tensors]
            return (
                (sum(nbytes for nbytes, _ in named), named[-1][1]) if named else (0, where.layer(where.layers if layer is None else layer))
            )
        own = shares.get((id(weight), layer))
        if not own:
            return 0, where.layer(where.layers if layer is None else layer)
        if own[-1].part == "head":
            return own[-1].nbytes, own[-1].device
        device = own[0].device if len(own) == 1 else where.tensor(file_names(weight, layer)[-1], _home(weight, layer, where))
        return sum(p.nbytes // len(p.layers or (0,)) for p in own), device

    return placed


def weight_lines(found: Sequence[Piece], device: int, origin: str) -> Iterator[Item]:
    """The lines of the weights on `device`, as whole weights where all their layers are there."""
    files: dict[tuple[str, str], list[StoredTensor]] = {}
    for piece in found:
        if piece.device != device:
            continue
        if piece.share is not None:
            yield item_of_share(Share(piece.share.weight, piece.share.format, piece.layers, piece.nbytes), SERVING, origin)
        elif piece.tensor is not None:
            files.setdefault((piece.part, piece.tensor.dtype), []).append(piece.tensor)
    for (part, dtype), tensors in files.items():
        elements = sum(numel(tensor.shape) for tensor in tensors)
        why = f"{len(tensors)} tensors of {elements:,} elements in {dtype}, as the file's header states them"
        yield Item(path=("weights", part, dtype), nbytes=sum(t.nbytes for t in tensors), alive=SERVING, why=why, source=origin)


def names_of(job: Job, tape: Tape) -> list[str]:
    """What the file calls its tensors."""
    if job.stored:
        return [tensor.name for tensor in job.model.stored or ()]
    return [name for w in tape.weights if not w.tower for layer in w.layers or (None,) for name in file_names(w, layer)]
