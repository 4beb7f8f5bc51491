"""llama.cpp's compute buffers: the graph of a setup, as ggml places it on the devices.

Source: llama.cpp 0.5.0 `src/llama-context.cpp` (pipeline_parallel), `src/llama-kv-cache.cpp` (attn_rot_k, attn_rot_v).
"""

from __future__ import annotations

from functools import lru_cache

from ..dim import numel
from .llama_cpp_alloc import buffers
from .llama_cpp_cache import layer_bytes
from .llama_cpp_graph import Graph, Store
from .llama_cpp_habits import habits
from .llama_cpp_pass import build
from .llama_cpp_setup import Setup
from .llama_cpp_weights import weight_index


@lru_cache(maxsize=64)
def compute_buffers(setup: Setup) -> tuple[int, ...]:
    """Bytes of each device's compute buffer, the host's last."""
    where = setup.placed
    moved = where.moves("experts") or not setup.kv_offload
    pipelined = where.gpus > 1 and where.on_gpu > where.layers and not moved
    found = None
    for whole in (False, True):
        graph = _graph(setup)
        layers = build(graph, setup.tape, whole=whole)
        found = found or buffers(graph.nodes, graph.inputs, where.gpus, pipelined=pipelined, layers=layers)
        if found:
            break
    return tuple(found or ())


def _graph(setup: Setup) -> Graph:
    """An empty graph, which knows where the weights and the caches are."""
    caches = [cache for cache in setup.tape.caches if cache.tower is None]
    states = [cache for cache in caches if cache.side == "state"]
    return Graph(
        tokens=int(setup.tape.tokens),
        host=setup.placed.host,
        placed=weight_index(setup.pieces, setup.placed),
        stores=_stores(setup),
        states={(i, c.name): (4 * setup.held.sequences * numel(c.shape), setup.cache_device(i)) for c in states for i in c.layers},
        flash=setup.flash,
        habits=habits(setup.model),
        rotated=_rotated(setup),
        offload=setup.op_offload,
        sequences=setup.held.sequences,
        outputs=min(setup.outputs, int(setup.tape.tokens)),
        together=not setup.placed.moves("experts"),
        windowed=any(cache.window is not None for cache in caches),
        topk=_topk(setup),
        value_width=max((cache.elements(1) // len(cache.layers) for cache in caches if cache.side == "v"), default=0),
    )


def _topk(setup: Setup) -> int:
    """Cells that an indexer picks for each token; 2,048 where the config is silent."""
    named = setup.model.text.get("index_topk")
    return named if isinstance(named, int) else 2048


def _stores(setup: Setup) -> dict[int, Store]:
    """Each layer's cache of keys and values."""
    keys = {layer: c for c in setup.tape.caches if c.side == "k" and c.tower is None for layer in c.layers}
    found = {}
    for layer, sides in layer_bytes(setup.tape, setup.held, setup.kv).items():
        if "k" in sides:
            _, cells, _ = setup.held.kept(keys[layer])
            window = keys[layer].window is not None
            device = setup.cache_device(layer)
            found[layer] = Store(cells=cells, keys=sides["k"], values=sides.get("v", 0), device=device, window=window)
    return found


def _rotated(setup: Setup) -> tuple[int, int]:
    """Rows of the Hadamard matrix that keys, and values, go through into a quantised cache; 0 where 64 divides not each head's width.

    For keys it is the largest power of two that divides the width, for values 64 (build_input_k_rot, build_input_v_rot).
    """
    found = []
    for side, dtype in zip(("k", "v"), setup.kv, strict=True):
        widths = {int(c.shape[-1]) for c in setup.tape.caches if c.side == side and c.tower is None}
        plain = dtype in ("fp16", "bf16", "fp32") or len(widths) != 1 or min(widths) % 64
        found.append(0 if plain else min(widths) & -min(widths) if side == "k" else 64)
    return found[0], found[1]
