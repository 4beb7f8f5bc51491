"""Dense decoders and encoders: caches by hand, names of the checkpoints, what autograd keeps, and configs that contradict themselves.

Sizes are those of the published config.json files; the parameter counts of all models are tested elsewhere.
"""

from __future__ import annotations

from collections import Counter

import pytest

from vramplan.dim import Dim
from vramplan.errors import BadInput
from vramplan.families import walk
from vramplan.kernels import Kernels
from vramplan.tape import Tape

BASE = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 4, "intermediate_size": 96, "vocab_size": 100}
GEMMA2_9B = {
    "model_type": "gemma2",
    "hidden_size": 3584,
    "num_hidden_layers": 42,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 256000,
}
OLMO3_7B = {
    "model_type": "olmo3",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "vocab_size": 100278,
}
EXAONE4 = {**BASE, "model_type": "exaone4", "num_key_value_heads": 2, "num_hidden_layers": 8}
FALCON_7B = {"model_type": "falcon", "hidden_size": 4544, "num_attention_heads": 71, "num_hidden_layers": 32, "vocab_size": 65024}
FALCON_40B = {
    "model_type": "falcon",
    "hidden_size": 8192,
    "num_attention_heads": 128,
    "num_hidden_layers": 60,
    "vocab_size": 65024,
    "new_decoder_architecture": True,
    "num_kv_heads": 8,
}
STARCODER = {
    "model_type": "gpt_bigcode",
    "n_embd": 6144,
    "n_head": 48,
    "n_layer": 40,
    "n_inner": 24576,
    "n_positions": 8192,
    "vocab_size": 49152,
}
GPT2 = {"model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "vocab_size": 50257}
T5_SMALL = {"model_type": "t5", "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_heads": 8, "num_layers": 6, "vocab_size": 32128}
MISTRAL_V01 = {
    "model_type": "mistral",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 32000,
    "sliding_window": 4096,
}


def tape(config: dict[str, object], **options: object) -> Tape:
    return walk(Tape(Dim(2, "sequences"), Dim(96, "tokens"), **options), config)  # type: ignore[arg-type]


def cached(config: dict[str, object], tokens: int) -> int:
    """Elements that one sequence of `tokens` tokens keeps."""
    return sum(cache.elements(cache.kept(tokens)) for cache in tape(config).caches)


def names(t: Tape) -> set[str]:
    return {w.name for w in t.weights}


# ---- caches, by hand: layers × 2 × kv_heads × head_dim × tokens kept -------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "tokens", "elements"),
    [
        pytest.param(GEMMA2_9B, 8192, 21 * 2 * 8 * 256 * (4096 + 8192), id="gemma2: every other layer slides"),
        pytest.param(OLMO3_7B, 65536, 2 * 32 * 128 * (24 * 4096 + 8 * 65536), id="olmo3: three layers of four slide"),
        pytest.param(MISTRAL_V01, 32768, 32 * 2 * 8 * 128 * 4096, id="mistral v0.1: all layers slide"),
        pytest.param({**MISTRAL_V01, "sliding_window": None}, 32768, 32 * 2 * 8 * 128 * 32768, id="mistral v0.3: none does"),
        pytest.param(FALCON_7B, 2048, 32 * 2 * 64 * 2048, id="falcon 7b: one kv head"),
        pytest.param(FALCON_40B, 2048, 60 * 2 * 8 * 64 * 2048, id="falcon 40b: eight"),
        pytest.param(STARCODER, 8192, 40 * 2 * 128 * 8192, id="starcoder: one kv head"),
        pytest.param({**STARCODER, "multi_query": False}, 8192, 40 * 2 * 6144 * 8192, id="bigcode without multi_query"),
        pytest.param(GPT2, 1024, 12 * 2 * 768 * 1024, id="gpt2"),
        pytest.param(T5_SMALL, 512, 6 * 4 * 8 * 64 * 512, id="t5: own and the encoder's keys and values"),
        pytest.param({**BASE, "model_type": "bert"}, 512, 0, id="bert: none"),
        pytest.param({**BASE, "model_type": "modernbert"}, 8192, 0, id="modernbert: none"),
        pytest.param({**BASE, "model_type": "cohere2"}, 8192, 2 * 64 * (3 * 4096 + 8192), id="cohere2: three of four slide"),
        pytest.param({**BASE, "model_type": "phi3", "sliding_window": 2047}, 4096, 4 * 2 * 64 * 2047, id="phi3-mini-4k: all slide"),
    ],
)
def test_cache(config: dict[str, object], tokens: int, elements: int) -> None:
    assert cached(config, tokens) == elements


def test_llama_has_no_window_whatever_its_config_says() -> None:
    config = {**BASE, "model_type": "llama", "num_key_value_heads": 2}
    assert cached({**config, "sliding_window": 16}, 1000) == cached(config, 1000) == 4 * 2 * 2 * 16 * 1000


def test_qwen2_slides_only_on_request_and_from_a_layer_on() -> None:
    config = {**BASE, "model_type": "qwen2", "sliding_window": 10, "max_window_layers": 3}
    assert cached(config, 100) == 4 * 2 * 64 * 100
    assert cached({**config, "use_sliding_window": True}, 100) == 2 * 64 * (3 * 100 + 10)


def test_exaone4_window_of_null_makes_all_layers_full_with_rotary_positions() -> None:
    hybrid, full = tape(EXAONE4), tape({**EXAONE4, "sliding_window": None})
    assert Counter((c.window, len(c.layers)) for c in hybrid.caches if c.side == "k") == {(4096, 6): 1, (None, 2): 1}
    assert [len(c.layers) for c in full.caches if c.side == "k"] == [8]
    rotary = [sum(op.repeats for op in t.ops if op.name.endswith("q.rope") or op.name == "q.rope") for t in (hybrid, full)]
    assert rotary == [6, 8]


def test_smollm3_every_fourth_layer_has_no_rotary_positions() -> None:
    t = tape({**BASE, "model_type": "smollm3", "num_hidden_layers": 36})
    assert sum(op.repeats for op in t.ops if op.name.endswith("q.rope")) == 27
    assert sum(len(c.layers) for c in t.caches if c.side == "k") == 36


# ---- heads and names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "beside_the_model"),
    [
        ("BertModel", {"pooler.dense.weight", "pooler.dense.bias"}),
        (
            "BertForMaskedLM",
            {f"cls.predictions.{n}" for n in ("bias", "transform.dense.weight", "transform.dense.bias")}
            | {f"cls.predictions.transform.LayerNorm.{n}" for n in ("weight", "bias")},
        ),
        ("BertForSequenceClassification", {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"}),
        ("BertForTokenClassification", {"classifier.weight", "classifier.bias"}),
    ],
)
def test_architectures_decide_berts_head(architecture: str, beside_the_model: set[str]) -> None:
    found = names(tape({**BASE, "model_type": "bert", "architectures": [architecture]}))
    assert {n for n in found if "embeddings" not in n and "encoder" not in n} == beside_the_model
    prefix = "" if architecture == "BertModel" else "bert."
    assert f"{prefix}encoder.layer.{{i}}.attention.self.query.weight" in found


def test_labels_are_counted_in_id2label() -> None:
    config = {**BASE, "model_type": "xlm-roberta", "architectures": ["XLMRobertaForSequenceClassification"], "id2label": {"0": "a"}}
    assert {w.name: w.shape for w in tape(config).weights}["classifier.out_proj.weight"] == (1, 64)


def test_a_tied_head_is_the_embeddings_matrix() -> None:
    tied, untied = (tape({**BASE, "model_type": "llama", "tie_word_embeddings": flag}) for flag in (True, False))
    assert untied.parameters - tied.parameters == 100 * 64
    assert [w.name for w in tied.weights if w.tied] == ["model.embed_tokens.weight"]
    assert "lm_head.weight" in names(untied) - names(tied)


def test_gpt2_stores_its_linears_transposed() -> None:
    shapes = {w.name: w.shape for w in tape(GPT2).weights}
    assert shapes["transformer.h.{i}.attn.c_attn.weight"] == (768, 2304)
    assert {w.kind for w in tape(GPT2).weights if "c_attn" in w.name} == {"linear"}


def test_gpt_neox_keeps_the_checkpoints_name_of_its_head() -> None:
    assert "embed_out.weight" in names(tape({**BASE, "model_type": "gpt_neox"}))


def test_modernberts_first_layer_has_no_norm_before_attention() -> None:
    norms = [w for w in tape({**BASE, "model_type": "modernbert"}).weights if w.name.endswith("attn_norm.weight")]
    assert sorted(i for w in norms for i in w.layers or ()) == [1, 2, 3]


def test_t5_has_one_table_of_relative_positions_per_stack_and_may_be_an_encoder_alone() -> None:
    tables = [w for w in tape(T5_SMALL).weights if "relative_attention_bias" in w.name]
    assert [(w.name.split(".")[0], w.layers, w.shape) for w in tables] == [("encoder", (0,), (32, 8)), ("decoder", (0,), (32, 8))]
    encoder = tape({**T5_SMALL, "architectures": ["T5EncoderModel"]})
    assert encoder.parameters == 35_330_816  # transformers 5.23, T5EncoderModel of t5-small
    assert not encoder.caches


def test_flan_t5_has_a_gated_mlp_and_a_head_of_its_own() -> None:
    base = {**T5_SMALL, "d_model": 768, "num_heads": 12, "num_layers": 12}
    flan = {**base, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    assert tape(flan).parameters == 247_577_856  # google/flan-t5-base, safetensors total


def test_apertus_learns_two_scalars_per_layer_and_ships_two_constants() -> None:
    t = tape({**BASE, "model_type": "apertus"})
    kinds = {w.name.rsplit(".", 1)[-1]: w.kind for w in t.weights if "act_fn" in w.name}
    assert kinds == {"alpha_p": "norm", "alpha_n": "norm", "beta": "buffer", "eps": "buffer"}


# ---- what autograd keeps: transformers 5.23 and torch 2.13 on the CPU, saved_tensors_hooks, [2, 96] tokens, sdpa, bf16 -----------

SMALL = {**BASE, "hidden_size": 128, "intermediate_size": 320, "num_key_value_heads": 2, "vocab_size": 256}


@pytest.mark.parametrize(
    ("model_type", "extra", "kept"),
    [
        ("llama", {}, 4_358_400),
        ("granite", {}, 4_358_400),
        ("gemma", {"head_dim": 64}, 5_407_488),
        ("olmo2", {}, 5_998_848),
        ("cohere", {"use_qk_norm": True}, 6_099_712),
        ("arcee", {}, 3_375_360),
        ("apertus", {}, 5_998_864),
        ("hunyuan_v1_dense", {"head_dim": 32}, 5_261_568),
    ],
)
def test_kept_for_backward(model_type: str, extra: dict[str, object], kept: int) -> None:
    t = tape({**SMALL, **extra, "model_type": model_type}, kernels=Kernels(logits="all"))
    missing = kept - t.saved_bytes  # where it is not 0: copies of norm weights in fp32, and Apertus's constants
    assert 0 <= missing <= 0.006 * kept if model_type in ("gemma", "olmo2", "cohere", "apertus") else missing == 0


# ---- configs that contradict themselves ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama", "num_attention_heads": 5}, "hidden is 64; it must be a multiple of heads, which is 5"),
        ({"model_type": "llama", "num_key_value_heads": 3}, "heads is 4; it must be a multiple of kv_heads, which is 3"),
        ({"model_type": "gpt_neox", "num_attention_heads": 0}, "'num_attention_heads' is 0"),
        ({"model_type": "gemma2", "layer_types": ["full_attention"]}, "'layer_types' names 1 layers, the model has 4"),
        ({"model_type": "olmo3", "layer_types": ["chunked"] * 4}, "'layer_types' holds 'chunked'"),
        ({"model_type": "smollm3", "no_rope_layers": [1]}, "'no_rope_layers' names 1 layers, the model has 4"),
        ({"model_type": "cohere2", "sliding_window_pattern": 0}, "'sliding_window_pattern' is 0"),
        (
            {"model_type": "bert", "architectures": ["BertForNextSentencePrediction"]},
            "'architectures' names 'BertForNextSentencePrediction'",
        ),
        ({"model_type": "modernbert", "architectures": ["BertModel"]}, "'architectures' names 'BertModel'"),
        ({"model_type": "phi", "hidden_size": "2560"}, "'hidden_size' is '2560'"),
        ({"model_type": "phi3", "num_hidden_layers": 10**9}, "at most 10000 layers"),
    ],
)
def test_contradictions_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput) as error:
        tape({**BASE, **change})
    assert message in str(error.value)
