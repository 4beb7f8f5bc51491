"""The tape, on walks short enough to follow by hand: labels, layers, frames, views, shared tables, the sweep for the peak."""

from __future__ import annotations

import pytest

from vramplan.dim import Dim, numel, shape_label
from vramplan.kernels import Kernels
from vramplan.tape import Tape
from vramplan.tensors import Cache, Tensor


def tape(frames: str = "held", **more: int) -> Tape:
    return Tape(Dim(1, "sequences"), Dim(10, "tokens"), kernels=Kernels(frames=frames), **more)  # type: ignore[arg-type]


def step(t: Tape, name: str, size: int, *reads: Tensor, saves: tuple[Tensor, ...] = ()) -> Tensor:
    """An op that writes one tensor of `size` bytes."""
    return t.op(name, reads, (Dim(size),), itemsize=1, saves=saves)


@pytest.mark.parametrize(
    ("dim", "value", "label"),
    [
        (Dim(32, "heads") * Dim(128, "d"), 4096, "heads·d"),
        (2 * Dim(14336, "ffn"), 28672, "2·ffn"),
        (Dim(14336, "ffn") * 3, 43008, "ffn·3"),
        (Dim(512, "rank") + Dim(64, "rope"), 576, "(rank + rope)"),
        (1 + Dim(5, "n"), 6, "(1 + n)"),
        (sum([Dim(5, "n"), Dim(6, "m")]), 11, "(n + m)"),
        (Dim(4096, "hidden") // Dim(32, "heads"), 128, "hidden/heads"),
        (Dim(4096, "hidden") // 1, 4096, "hidden"),
        (Dim(7), 7, "7"),
    ],
)
def test_dims_carry_their_labels(dim: Dim, value: int, label: str) -> None:
    assert (int(dim), dim.label) == (value, label)


def test_shapes_print_names_and_values() -> None:
    assert shape_label((Dim(2, "kv_heads") * Dim(4, "d"), Dim(3), 5)) == "[kv_heads·d=8 · 3 · 5]"
    assert type(numel((Dim(2, "a"), Dim(3, "b")))) is int
    assert numel(()) == 1


def test_weights_are_named_by_their_modules_and_counted_by_layer_and_expert() -> None:
    t = tape()
    x = step(t, "embed", 10)
    with t.module("model"), t.layers("layers", (0, 2, 5), x), t.module("mlp", part="mlp"):
        weight = t.weight("gate.weight", (Dim(3), Dim(4)), "experts", copies=8, active=2)
        norm = t.weight("norm.weight", (Dim(4),), "norm")
    assert weight.name == "model.layers.{i}.mlp.gate.weight"
    assert (weight.layers, weight.part, norm.part) == ((0, 2, 5), "mlp", "norms")
    assert (weight.numel, weight.active_numel) == (3 * 4 * 8 * 3, 3 * 4 * 2 * 3)
    t.weight("steps", (Dim(7),), "buffer")
    assert (t.parameters, t.active_parameters) == (288 + 12, 72 + 12)
    assert (t.prefix, t.part, t.repeats) == ("", "other", 1), "modules are left again"


def test_layers_are_walked_once_and_counted() -> None:
    t = tape()
    x = step(t, "embed", 10)
    with t.layers("layers", range(7), x) as y:
        assert y is not x, "the input of a repeated layer is the output of the layer before"
        out = t.op("up", (y,), (Dim(4),), itemsize=2, flops=11, saves=(y,))
        t.cache("keys", "k", (Dim(6),), window=3)
    with t.layers("last", (7,), out) as z:
        assert z is out, "that of a single layer is its own input"
    assert t.flops == 7 * 11
    assert y.saved == 7
    assert t.saved_bytes == 7 * 10
    assert t.caches[0].layers == tuple(range(7))
    assert t.caches[0].elements(3) == 6 * 7 * 3


def test_saved_is_counted_once_however_many_ops_need_it() -> None:
    t = tape()
    x = t.tensor("x", (Dim(10),), itemsize=1)
    step(t, "a", 1, x, saves=(x,))
    step(t, "b", 1, x, saves=(x,))
    assert t.saved_bytes == 10


def test_nothing_is_kept_where_no_gradient_passes() -> None:
    t = tape()
    x = step(t, "made of nothing that trains", 10)
    step(t, "a", 1, x, saves=(x,))
    assert t.saved_bytes == 0


def test_views_share_storage() -> None:
    t = tape("freed")
    x = t.tensor("x", (Dim(10),), itemsize=1)
    view = t.view(t.view(x, (Dim(2), Dim(5))), (Dim(5),))
    step(t, "other", 1)
    step(t, "late", 1, view, saves=(view,))
    assert view.storage is x
    assert (view.nbytes, x.last, x.saved) == (5, 1, 1)
    assert t.saved_bytes == 10, "the whole storage is kept, not the view's part"
    assert view not in t.tensors


def test_the_peak_is_a_sweep_over_lifetimes() -> None:
    """a lives 0-1, b 1-2, c 2-3, d 3-3: 5, 5 + 7, 7 + 20, 20 + 1."""
    t = tape("freed")
    a = step(t, "a", 5)
    b = step(t, "b", 7, a)
    c = step(t, "c", 20, b)
    step(t, "d", 1, c)
    assert t.peak() == (27, "c")
    assert tape().peak() == (0, "")


def test_the_earliest_of_equal_peaks_is_named() -> None:
    t = tape("freed")
    b = step(t, "b", 5, step(t, "a", 5))
    step(t, "c", 5, b)
    assert t.peak() == (10, "b")


@pytest.mark.parametrize(("frames", "peak"), [("held", 5 + 7 + 20), ("freed", 7 + 20)])
def test_a_frame_holds_its_arguments_until_it_returns(frames: str, peak: int) -> None:
    t = tape(frames)
    a = step(t, "a", 5)
    with t.module("mlp", a):
        c = step(t, "c", 20, step(t, "b", 7, a))
    step(t, "d", 1, c)
    assert t.peak() == (peak, "mlp.c")


def test_a_held_local_lives_as_long_as_its_frame() -> None:
    t = tape()
    with t.module("mlp"):
        a = t.hold(step(t, "a", 5))
        step(t, "b", 7, a)
        step(t, "c", 20)
    step(t, "d", 1)
    assert a.last == 2


def test_tables_that_all_layers_share_are_made_once() -> None:
    t = tape()
    with t.module("model"):
        x = step(t, "embed", 10)
        for layers in ((0, 1, 2), (3,)):
            with t.layers("layers", layers, x) as x:
                cos = t.shared("cos", (Dim(8),))
                x = step(t, "rope", 10, x, cos, saves=(cos,))
        other = t.shared("cos", (Dim(16),))
        end = len(t.ops) - 1
    step(t, "head", 1, x)
    assert [table.nbytes for table in t.tables] == [16, 32]
    assert other is not cos
    assert (cos.repeats, cos.saved) == (1, 1)
    assert cos.last == end, "kept until the outermost module returns, no longer"


def test_towers_count_their_weights_only() -> None:
    t = tape()
    with t.tower("vision"):
        weight = t.weight("patch.weight", (Dim(3),), "conv")
        t.op("patch", (), (Dim(100),), flops=5, saves_out=True)
        t.cache("keys", "k", (Dim(6),))
    step(t, "y", 4)
    assert (weight.part, weight.tower, t.caches[0].tower) == ("vision tower", "vision", "vision")
    assert (t.parameters, t.flops, t.saved_bytes, t.peak()) == (3, 0, 0, (4, "y"))


@pytest.mark.parametrize(
    ("window", "stride", "tokens", "kept"), [(None, 1, 100, 100), (64, 1, 100, 64), (64, 1, 10, 10), (None, 4, 103, 25), (64, 4, 100, 16)]
)
def test_a_window_or_stride_caps_what_a_cache_keeps(window: int | None, stride: int, tokens: int, kept: int) -> None:
    cache = Cache(name="keys", side="k", shape=(Dim(2),), layers=(0, 1), window=window, stride=stride)
    assert cache.kept(tokens) == kept


def test_a_state_has_one_size_at_any_length() -> None:
    state = Cache(name="state", side="state", shape=(Dim(2), Dim(3)), layers=(0, 1), per="sequence")
    assert state.elements(1) == state.elements(1000) == 12
