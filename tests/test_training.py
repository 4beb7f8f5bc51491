"""Training on one GPU: what the recipe means, what is refused, and the arithmetic that needs no trace."""

from __future__ import annotations

import pytest

from vramplan import BadInput, Unknown, estimate, scenario
from vramplan.dim import Dim
from vramplan.kernels import Kernels
from vramplan.ledger import Moment
from vramplan.tape import Tape
from vramplan.units import GiB

MODEL = "meta-llama/Llama-3.1-8B"
PARAMETERS = 8_030_261_248


def of(**keys: object):  # type: ignore[no-untyped-def]
    return estimate(MODEL, task="train", sequence_length=512, **keys)


def test_zero_is_sixteen_bytes_a_parameter_in_fp32_under_autocast() -> None:
    """Weights, gradients and two moments in fp32: 16 B per parameter (Rajbhandari et al. 2020, arXiv:1910.02054, section 3.1: 16 Ψ)."""
    answer = of(precision="bf16-mixed")
    step = answer.ledger.tree(Moment.STEP)
    counters = 291 * 512  # fused AdamW's step counters, one block for each of Llama's 291 tensors
    assert step["weights",] == step["gradients",] == 4 * PARAMETERS
    assert step["optimizer states",] == 8 * PARAMETERS + counters


def test_pure_bf16_is_eight_and_foreach_adds_two() -> None:
    fused, foreach = of(optimizer="adamw-fused"), of(optimizer="adamw")
    assert fused.ledger.at(Moment.STEP) - fused.ledger.total("optimizer step") < 8.1 * PARAMETERS
    assert foreach.ledger.total("optimizer step") == 2 * PARAMETERS
    assert foreach.peak[0] is Moment.STEP


def test_accumulation_keeps_gradients_and_checkpointing_frees_activations() -> None:
    once, twice = of(), of(gradient_accumulation=2)
    assert twice.ledger.total("gradients", moment=Moment.FORWARD) == 2 * PARAMETERS
    assert once.ledger.total("gradients", moment=Moment.FORWARD) == 0
    saved = [of(checkpointing=kind).ledger.total("saved activations") for kind in ("none", "full")]
    assert saved[1] < saved[0] / 4


def test_lora_trains_what_its_rank_says() -> None:
    """Rank 16 on all seven linear layers of 32 blocks: 16 · (in + out) each."""
    widths = [(4096, 4096), (4096, 1024), (4096, 1024), (4096, 4096), (4096, 14336), (4096, 14336), (14336, 4096)]
    answer = of(method="lora", lora={"rank": 16})
    assert answer.quantities["trainable_parameters"] == 32 * sum(16 * (i + o) for i, o in widths)
    some = of(method="lora", lora={"rank": 8, "targets": ["q_proj", "v_proj"]})
    assert some.quantities["trainable_parameters"] == 32 * 8 * (8192 + 5120) == 3_407_872


def test_qlora_of_65b_fits_48_gb() -> None:
    """Dettmers et al. 2023, arXiv:2305.14314: 65B on one 48 GB GPU, nf4 with double quantisation, paged optimizer, checkpointing."""
    widths = {"hidden_size": 8192, "num_attention_heads": 64, "intermediate_size": 22016, "vocab_size": 32000}
    answer = estimate(
        {"model_type": "llama", "num_hidden_layers": 80, **widths},
        task="train",
        method="qlora",
        double_quant=True,
        checkpointing="full",
        optimizer="paged-adamw-32bit",
        micro_batch=1,
        sequence_length=512,
        gpu="rtx-a6000",
        lora={"rank": 64, "dtype": "bf16"},
    )
    assert answer.fits
    assert 33 * GiB < answer.quantities["peak_allocated"] < 40 * GiB


def test_lora_is_read_from_the_command_line_too() -> None:
    given = scenario({"model": MODEL, "task": "train", "lora": "rank=64,dropout=0.05,targets=q_proj+v_proj"}).lora
    assert given == {"rank": 64, "dropout": 0.05, "targets": ("q_proj", "v_proj")}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"attention": "flash", "precision": "fp32"}, "16-bit types only"),
        ({"method": "lora", "lora": {"targets": ["nothing"]}}, "has no layer of this name; it has"),
        ({"method": "full", "quantization": "nf4"}, "quantised weights do not train"),
        ({"sequence_length": 200_000}, "beyond what"),
        ({"optimizer": "adamm"}, "did you mean 'adamw'"),
    ],
)
def test_contradictions_are_refused_in_one_line(keys: dict[str, object], words: str) -> None:
    with pytest.raises(BadInput, match=words) as caught:
        estimate(MODEL, task="train", **keys)
    assert "\n" not in str(caught.value)


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(Unknown):
        estimate(MODEL, task="train", method="dora", lora={"targets": ["embed_tokens"]})


def test_a_tape_without_a_method_trains_everything() -> None:
    tape = Tape(Dim(1, "b"), Dim(1, "s"), kernels=Kernels())
    assert tape.weight("w.weight", (2, 2), "linear").trained


def test_layers_of_several_kinds_run_in_the_order_in_which_they_stand() -> None:
    """Nemotron-Nano-9B-v2 is M-M-M-MM-M-M*-…: Mamba-2, MLPs and attention in turns, each walked once."""
    from vramplan.dim import Dim
    from vramplan.families import walk
    from vramplan.runs import runs_of
    from vramplan.sources import resolve
    from vramplan.tape import Tape

    config = resolve("nvidia/NVIDIA-Nemotron-Nano-9B-v2").config
    tape = walk(Tape(Dim(1), Dim(8)), config, "nemotron")
    inner = [(run, times) for run, times in runs_of(tape, None) if any(weight.layers for op in run.ops for weight in op.weights)]
    letters = {}
    for run, _ in inner:
        names = " ".join(weight.name for op in run.ops for weight in op.weights)
        letters[run.first] = "M" if "conv1d" in names else "*" if "q_proj" in names else "-"
    assert "".join(letters[run.first] * times for run, times in inner) == config["hybrid_override_pattern"]
    assert len({id(run) for run, _ in inner}) == 3
