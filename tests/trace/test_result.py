"""What a list of events means: categories by lifetime, peaks by moment, the ledger. No torch needed."""

from __future__ import annotations

import pickle
from pathlib import Path

from vramplan.allocator import ALLOC, FREE, MARK
from vramplan.ledger import Moment
from vramplan.report.trace import render, to_dict
from vramplan.trace.result import Block, Trace, part
from vramplan.trace.snapshot import write

KiB = 1024
PHASES = ((0, "load"), (0, "forward"), (0, "loss"), (0, "backward"), (0, "step"))
BLOCKS = (
    Block(8 * KiB, "load", "layers.0.up", 0, False, "weights"),
    Block(2 * KiB, "mul.Tensor", "layers.0", 1, True),
    Block(3 * KiB, "mm.default", "layers.0.up", 1, True),
    Block(4 * KiB, "_log_softmax.default", "loss", 2, True),
    Block(8 * KiB, "mm.default", "layers.0.up", 3, False, "gradients"),
    Block(1 * KiB, "silu.default", "layers.0", 3, True),
    Block(100, "neg.default", "", 3, False),
    Block(16 * KiB, "zeros_like.default", "", 4, False, "optimizer states"),
)
EVENTS = (
    *((MARK, 0, 0), (ALLOC, 0, 8 * KiB)),
    *((MARK, 1, 0), (ALLOC, 1, 2 * KiB), (ALLOC, 2, 3 * KiB), (FREE, 1, 0)),
    *((MARK, 2, 0), (ALLOC, 3, 4 * KiB)),
    *((MARK, 3, 0), (FREE, 3, 0), (ALLOC, 4, 8 * KiB), (ALLOC, 5, KiB), (ALLOC, 6, 100), (FREE, 6, 0), (FREE, 5, 0), (FREE, 2, 0)),
    *((MARK, 4, 0), (ALLOC, 7, 16 * KiB)),
)
TRACE = Trace(name="by hand", events=EVENTS, blocks=BLOCKS, phases=PHASES, kernels={}, guesses={})


def test_a_block_is_what_its_life_says() -> None:
    assert [TRACE.category(n) for n in range(8)] == [
        *("weights", "temporaries", "saved activations", "saved activations"),
        *("gradients", "recomputed activations", "temporaries", "optimizer states"),
    ]


def test_each_moment_has_its_own_peak() -> None:
    assert {moment: nbytes for (_, moment), (nbytes, _) in TRACE.maxima.items()} == {
        "load": 8 * KiB,
        "forward": 13 * KiB,
        "loss": 15 * KiB,
        "backward": 8 * KiB + 3 * KiB + 8 * KiB + KiB + 512,
        "step": 32 * KiB,
    }


def test_the_peak_names_what_is_alive() -> None:
    assert TRACE.peak.nbytes == TRACE.peak_allocated == 32 * KiB
    assert TRACE.peak.categories == {"weights": 8 * KiB, "gradients": 8 * KiB, "optimizer states": 16 * KiB}
    assert sum(TRACE.peak_of(0, "loss").modules.values()) == 15 * KiB


def test_the_ledger_has_the_peak_of_every_moment() -> None:
    ledger = TRACE.ledger()
    for name, moment in (("forward", Moment.FORWARD), ("loss", Moment.LOSS), ("backward", Moment.BACKWARD), ("step", Moment.STEP)):
        assert ledger.at(moment) == TRACE.peak_of(0, name).nbytes
    assert ledger.peak() == (Moment.STEP, 32 * KiB)
    assert ledger.total("optimizer states", moment=Moment.STEP) == 16 * KiB


def test_the_timeline_passes_the_peak() -> None:
    assert max(nbytes for _, _, nbytes in TRACE.timeline(4)) == TRACE.peak.nbytes
    assert len(TRACE.timeline(5)) >= 5


def test_names_lose_numbers_and_wrappers() -> None:
    assert part("base_model.model.model.layers.3.self_attn.q_proj.base_layer") == "model.layers.*.self_attn.q_proj"
    assert part("transformer.h.0") == "transformer.h.*"


def test_the_report_says_the_peak_first_and_json_in_bytes() -> None:
    assert render(TRACE).splitlines()[0] == "by hand: peak 32.0 KiB allocated, in step 1, step, at zeros_like."
    assert "Does not fit on a card: 1.0 MiB usable." in render(TRACE, gpu="a card", usable=1 << 20)
    assert "Fits on a card: 2.0 MiB usable." in render(TRACE, gpu="a card", usable=2 << 20)
    data = to_dict(TRACE)
    assert data["quantities"] == {"peak_allocated": 32 * KiB, "peak_reserved": 2 << 20}
    assert sum(i["nbytes"] for i in data["items"] if "step" in i["alive"]) == 32 * KiB


def test_a_snapshot_holds_the_segments_and_every_action(tmp_path: Path) -> None:
    write(TRACE, str(tmp_path / "snapshot.pickle"))
    data = pickle.loads((tmp_path / "snapshot.pickle").read_bytes())
    (segment,) = data["segments"]
    assert segment["total_size"] == sum(block["size"] for block in segment["blocks"]) == 2 << 20
    assert segment["allocated_size"] == 32 * KiB
    actions = [entry["action"] for entry in data["device_traces"][0]]
    assert actions.count("alloc") == 8
    assert actions.count("free_completed") == 5
    assert actions[0] == "segment_alloc"
