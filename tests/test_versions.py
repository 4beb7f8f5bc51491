"""Versions of transformers, dropout and encoders in the training estimate: what is assumed, what is refused, and arithmetic by hand.

`tests/referee/test_releases.py` judges the table by the releases themselves, `tests/referee/test_dropout.py` dropout by PyTorch.
"""

from __future__ import annotations

import pytest

from vramplan import BadInput, Unknown, estimate
from vramplan.dim import Dim
from vramplan.engines.train.transformers_versions import behaviour
from vramplan.ledger import Moment
from vramplan.ops.loss import Loss, cross_entropy
from vramplan.tape import Tape
from vramplan.units import MiB

MODEL = "meta-llama/Llama-3.2-1B"
ENCODER = {"model_type": "bert", "hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 2048}
GPT2 = {"model_type": "gpt2", "n_embd": 512, "n_layer": 6, "n_head": 8, "vocab_size": 5000}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def step(model: object = MODEL, **keys: object):  # type: ignore[no-untyped-def]
    return estimate(model, task="train", **{"sequence_length": 512, **keys})  # type: ignore[arg-type]


def test_dropout_is_that_of_the_config() -> None:
    """A mask of 1 B and, in eager attention, another tensor of probabilities in bf16; 13 masks of hidden states."""
    asked = {"attention": "eager", "micro_batch": 2}
    with_it, without = (
        step(model, **asked).ledger.total("saved activations", moment=Moment.LOSS) for model in (GPT2, {**GPT2, **NO_DROPOUT})
    )
    hidden, square = 2 * 512 * 512, 2 * 8 * 512 * 512
    assert with_it - without == (2 * 6 + 1) * hidden + 6 * (1 + 2) * square


def test_kernels_of_attention_keep_no_mask_of_dropout() -> None:
    """They draw it again from the seed (Dao et al. 2022, arXiv:2205.14135, algorithm 2)."""
    dropped, whole = (
        step({**GPT2, **NO_DROPOUT, "attn_pdrop": share}, micro_batch=2).ledger.total("saved activations", moment=Moment.LOSS)
        for share in (0.1, 0.0)
    )
    assert dropped == whole


def test_an_encoder_is_trained_as_a_classifier_unless_told() -> None:
    classifier, masked = step(ENCODER), step(ENCODER, head="mlm")
    assert classifier.scenario.head == "classification"
    logits = 512 * 30_522 * 2
    assert masked.ledger.total("saved activations", moment=Moment.LOSS) > logits
    assert classifier.ledger.at(Moment.FORWARD) < masked.ledger.at(Moment.LOSS)


def test_a_decoder_has_its_own_head() -> None:
    with pytest.raises(BadInput, match="is a decoder"):
        step(head="mlm")


@pytest.mark.parametrize(
    ("version", "model_type", "field", "value"),
    [
        ("4.53", "llama", "optimizer", "adamw"),
        ("4.54", "llama", "optimizer", "adamw-fused"),
        ("4.53", "llama", "kv", "repeated"),
        ("4.54", "llama", "kv", "grouped"),
        ("4.57", "qwen2_moe", "kv", "repeated"),
        ("4.42", "llama", "rotary", "own"),
        ("4.43", "llama", "rotary", "shared"),
        ("4.37", "mistral", "rotary", "cached"),
        ("4.42", "gpt2", "sdpa", False),
        ("4.43", "gpt2", "sdpa", True),
        ("5.23", "bloom", "sdpa", False),
        ("4.45", "llama", "logits", "all-fp32"),
        ("4.46", "llama", "logits", "all"),
        ("4.47", "mistral", "logits", "all-fp32"),
        ("4.57", "mixtral", "experts", "looped"),
        ("5.0", "mixtral", "experts", "grouped"),
    ],
)
def test_boundaries(version: str, model_type: str, field: str, value: object) -> None:
    assert getattr(behaviour(version, model_type), field) == value


def test_shifted_logits_are_a_copy() -> None:
    """The logits in bf16 and fp32, the fp32 ones of all positions but the last, and their log-softmax; 4 B a logit less without it."""
    peaks = []
    for shifts in (True, False):
        tape = Tape(Dim(2, "sequences"), Dim(64, "tokens"))
        logits = tape.op("logits", (), (Dim(2), Dim(64), Dim(1000)))
        cross_entropy(tape, logits, Loss(shifts_logits=shifts))
        peaks.append(tape.peak()[0])
    assert peaks[0] == 2 * 1000 * ((2 + 4) * 64 + (4 + 4) * 63) + 4
    assert peaks[1] == 2 * 1000 * (2 + 4 + 4) * 64 + 4


def test_the_time_before_torch_2() -> None:
    """Gradients stay from step to step, AdamW goes weight by weight, and softmax keeps its input: 4 B a score and layer in fp32."""
    old, new = (step(ENCODER, engine_version=version, attention="eager", precision="fp32") for version in ("4.16", "4.36"))
    assert old.scenario.optimizer == "adamw-forloop"
    count = old.quantities["trainable_parameters"]
    assert old.ledger.total("gradients", moment=Moment.FORWARD) == 4 * count
    assert new.ledger.total("gradients", moment=Moment.FORWARD) == 0
    kept = [answer.ledger.total("saved activations", moment=Moment.FORWARD) for answer in (old, new)]
    assert kept[0] - kept[1] == pytest.approx(6 * 4 * 8 * 512 * 512, rel=0.2)
    assert old.ledger.total("cuda context") == 1343 * MiB


@pytest.mark.parametrize(
    ("model", "keys", "words"),
    [
        (MODEL, {"engine_version": "4.35"}, "since 4.36"),
        (MODEL, {"engine_version": "4.38"}, "4.38 and 4.39"),
        (ENCODER, {"engine_version": "4.15"}, "since 4.16"),
        ({"model_type": "t5", "d_model": 512, "d_ff": 2048, "num_layers": 6, "num_heads": 8, "vocab_size": 100}, {}, "relative positions"),
    ],
)
def test_what_is_not_described_is_refused(model: object, keys: dict[str, object], words: str) -> None:
    with pytest.raises(Unknown, match=words) as caught:
        step(model, **keys)
    assert "\n" not in str(caught.value)


def test_attention_that_a_class_does_not_have_is_refused() -> None:
    with pytest.raises(BadInput, match="choose eager"):
        step(GPT2, engine_version="4.40", attention="sdpa")
