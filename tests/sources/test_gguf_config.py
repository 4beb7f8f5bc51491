"""Configs made of GGUF headers: they must describe the same weights and caches as the Hugging Face config that the file was converted from.

The way there (gguf_samples.py) uses gguf-py's own tensor names and llama.cpp's converter's keys, of the catalogue's real models.
"""

from collections import defaultdict
from collections.abc import Mapping
from math import prod
from pathlib import Path

import gguf
import pytest
from gguf_samples import header_of, language_model, tape_of
from hypothesis import given, settings
from hypothesis import strategies as st

from vramplan.errors import BadFile, Unknown
from vramplan.families import model_types
from vramplan.sources.gguf import open_gguf
from vramplan.sources.gguf_archs import ARCHS
from vramplan.sources.gguf_config import config_of
from vramplan.sources.stored import Header, StoredTensor
from vramplan.tape import Tape

MODELS = [
    ("llama", "meta-llama/Llama-3.1-8B"),
    ("llama", "mistralai/Mixtral-8x7B-v0.1"),
    ("llama4", "meta-llama/Llama-4-Scout-17B-16E-Instruct"),
    ("llama4", "meta-llama/Llama-4-Maverick-17B-128E-Instruct"),
    ("deci", "nvidia/Llama-3_3-Nemotron-Super-49B-v1"),
    ("mistral3", "mistralai/Ministral-3-8B-Base-2512"),
    ("smollm3", "HuggingFaceTB/SmolLM3-3B"),
    ("seed_oss", "ByteDance-Seed/Seed-OSS-36B-Instruct"),
    ("arcee", "arcee-ai/AFM-4.5B"),
    ("apertus", "swiss-ai/Apertus-8B-2509"),
    ("ernie4_5", "unsloth/ERNIE-4.5-0.3B-PT"),
    ("ernie4_5-moe", "baidu/ERNIE-4.5-21B-A3B-PT"),
    ("qwen2", "Qwen/Qwen2.5-7B"),
    ("qwen2moe", "Qwen/Qwen1.5-MoE-A2.7B"),
    ("qwen3", "Qwen/Qwen3-0.6B"),
    ("qwen3moe", "Qwen/Qwen3-30B-A3B"),
    ("qwen3next", "Qwen/Qwen3-Next-80B-A3B-Instruct"),
    ("qwen35", "Qwen/Qwen3.5-0.8B"),
    ("qwen35moe", "Qwen/Qwen3.5-35B-A3B"),
    ("gemma", "google/gemma-7b"),
    ("gemma2", "google/gemma-2-9b"),
    ("gemma3", "google/gemma-3-1b-pt"),
    ("gemma3n", "google/gemma-3n-E4B-it"),
    ("gemma4", "google/gemma-4-E2B-it"),
    ("gemma4", "google/gemma-4-26B-A4B-it"),
    ("gemma4", "google/gemma-4-31B-it"),
    ("phi2", "microsoft/phi-2"),
    ("phimoe", "microsoft/Phi-3.5-MoE-instruct"),
    ("falcon", "tiiuae/falcon-7b"),
    ("falcon", "tiiuae/falcon-40b"),
    ("falcon-h1", "tiiuae/Falcon-H1-0.5B-Instruct"),
    ("gpt2", "openai-community/gpt2"),
    ("starcoder", "bigcode/starcoder"),
    ("gptneox", "EleutherAI/pythia-1b"),
    ("bloom", "bigscience/bloom-560m"),
    ("stablelm", "stabilityai/stablelm-2-1_6b"),
    ("olmo", "allenai/OLMo-1B-hf"),
    ("olmo2", "allenai/OLMo-2-1124-7B"),
    ("olmo2", "allenai/Olmo-3-7B-Instruct"),
    ("olmoe", "allenai/OLMoE-1B-7B-0924"),
    ("command-r", "CohereLabs/c4ai-command-r-plus"),
    ("cohere2", "CohereLabs/c4ai-command-r7b-12-2024"),
    ("dbrx", "databricks/dbrx-base"),
    ("deepseek2", "deepseek-ai/DeepSeek-V3"),
    ("deepseek2", "deepseek-ai/DeepSeek-V2-Lite"),
    ("deepseek2", "zai-org/GLM-4.7-Flash"),
    ("deepseek2", "tencent/Youtu-LLM-2B"),
    ("glm-dsa", "zai-org/GLM-5"),
    ("chatglm", "zai-org/glm-4-9b-hf"),
    ("glm4", "zai-org/GLM-4-9B-0414"),
    ("glm4moe", "zai-org/GLM-4.5-Air"),
    ("granite", "ibm-granite/granite-3.3-2b-base"),
    ("granitehybrid", "ibm-granite/granite-4.0-h-tiny"),
    ("granitehybrid", "ibm-granite/granite-4.0-h-micro"),
    ("mamba", "state-spaces/mamba-130m-hf"),
    ("jamba", "ai21labs/AI21-Jamba-Mini-1.6"),
    ("jamba", "ai21labs/AI21-Jamba-Reasoning-3B"),
    ("nemotron_h", "nvidia/Nemotron-H-8B-Base-8K"),
    ("nemotron_h_moe", "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"),
    ("nemotron_h_moe", "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4"),
    ("lfm2", "LiquidAI/LFM2-1.2B"),
    ("lfm2moe", "LiquidAI/LFM2-8B-A1B"),
    ("hunyuan-dense", "tencent/Hunyuan-7B-Instruct"),
    ("hunyuan-moe", "tencent/Hunyuan-A13B-Pretrain"),
    ("exaone4", "LGAI-EXAONE/EXAONE-4.0-32B"),
    ("minimax-m2", "MiniMaxAI/MiniMax-M2"),
    ("gpt-oss", "openai/gpt-oss-20b"),
    ("mimo2", "XiaomiMiMo/MiMo-V2-Flash"),
    ("t5", "google-t5/t5-small"),
    ("bert", "BAAI/bge-small-en-v1.5"),
    ("modern-bert", "ibm-granite/granite-embedding-small-english-r2"),
]


def weights(tape: Tape) -> dict[tuple[object, ...], list[int]]:
    """What is stored -> the layers that have it."""
    found: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for w in tape.weights:
        found[w.name, w.shape, w.copies, w.active, w.kind].extend(w.layers or (-1,))
    return {key: sorted(layers) for key, layers in found.items()}


def caches(tape: Tape) -> dict[tuple[object, ...], list[int]]:
    found: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for c in tape.caches:
        found[c.name, c.side, c.shape, c.per, c.window, c.stride, c.dtype].extend(c.layers)
    return {key: sorted(layers) for key, layers in found.items()}


def with_(header: Header, metadata: Mapping[str, object] = {}, drop: tuple[str, ...] = ()) -> Header:
    kept = {key: value for key, value in {**header.metadata, **metadata}.items() if value is not None}
    return Header(tuple(t for t in header.tensors if not t.name.endswith(drop)) if drop else header.tensors, kept)


@pytest.mark.parametrize(("arch", "model"), MODELS, ids=[f"{arch}:{model}" for arch, model in MODELS])
def test_same_weights_and_caches(arch: str, model: str) -> None:
    config = language_model(model)
    header = header_of(arch, config)
    original, read = tape_of(config), tape_of(config_of(header, "x.gguf"))
    assert weights(read) == weights(original)
    assert caches(read) == caches(original)
    in_file = [w.numel for w in read.weights if ".act_fn." not in w.name and not w.name.startswith("pooler.")]
    assert sum(in_file) == sum(prod(tensor.shape) for tensor in header.tensors)


PARAMETERS = {
    ("llama", "meta-llama/Llama-3.1-8B"): 8_030_261_248,
    ("llama", "mistralai/Mixtral-8x7B-v0.1"): 46_702_792_704,
    ("qwen3", "Qwen/Qwen3-0.6B"): 596_049_920,
    ("qwen3moe", "Qwen/Qwen3-30B-A3B"): 30_532_122_624,
    ("gemma3", "google/gemma-3-270m"): 268_098_176,
    ("phi3", "microsoft/Phi-3-mini-4k-instruct"): 3_821_079_552,
    ("deepseek2", "deepseek-ai/DeepSeek-V3"): 671_026_404_352,
    ("gpt-oss", "openai/gpt-oss-20b"): 20_914_757_184,
    ("mamba", "state-spaces/mamba-130m-hf"): 129_135_360,
}
"""As the Hub counts the elements of their safetensors (DeepSeek-V3: without its MTP layer and the routers' correction biases)."""


@pytest.mark.parametrize(("arch", "model"), PARAMETERS)
def test_published_parameters(arch: str, model: str) -> None:
    assert tape_of(config_of(header_of(arch, language_model(model)), "x.gguf")).parameters == PARAMETERS[arch, model]


@pytest.mark.parametrize(
    ("arch", "model"), [("qwen2vl", "Qwen/Qwen2.5-7B"), ("qwen3vl", "Qwen/Qwen3-0.6B"), ("qwen3vlmoe", "Qwen/Qwen3-30B-A3B")]
)
def test_vision_models_are_their_language_model(arch: str, model: str) -> None:
    config = language_model(model)
    assert weights(tape_of(config_of(header_of(arch, config), "x.gguf"))) == weights(tape_of(config))


@pytest.mark.parametrize(("arch", "model"), [("glm4moe", "zai-org/GLM-4.5-Air"), ("deepseek2", "zai-org/GLM-4.7-Flash")])
def test_blocks_for_multi_token_prediction_do_not_count(arch: str, model: str) -> None:
    config = language_model(model)
    read = config_of(header_of(arch, config, extra_blocks=1), "x.gguf")
    assert read["num_hidden_layers"] == config["num_hidden_layers"]
    assert weights(tape_of(read)) == weights(tape_of(config))


def test_latents_are_what_mla_caches() -> None:
    header = header_of("deepseek2", language_model("deepseek-ai/DeepSeek-V3"))
    [latent] = caches(tape_of(config_of(header, "x.gguf")))
    assert latent[:3] == ("latent", "k", (576,))  # kv_lora_rank 512 + rope 64: DeepSeek-V3 (arXiv:2412.19437), section 4.2


def test_mla_files_without_latents_are_not_estimated() -> None:
    old = {"deepseek2.attention.key_length_mla": None, "deepseek2.attention.value_length_mla": None}
    header = header_of("deepseek2", language_model("deepseek-ai/DeepSeek-V2-Lite"))
    with pytest.raises(Unknown, match="converted since May 2025"):
        config_of(with_(header, old), "x.gguf")


def test_windows_that_llama_cpp_does_not_use() -> None:
    """Of Phi-3 mini 4k (whose config.json says 2047) and Mistral 7B v0.1."""
    models = [("phi3", "microsoft/Phi-3-mini-4k-instruct", 2047), ("llama", "mistralai/Mistral-7B-v0.1", 4096)]
    for arch, model, window in models:
        config = {**language_model(model), "sliding_window": window}
        assert {c.window for c in tape_of(config).caches} == {window}
        assert {c.window for c in tape_of(config_of(header_of(arch, config), "x.gguf")).caches} == {None}


@pytest.mark.parametrize(
    ("metadata", "full"),
    [
        ({}, [5, 11, 17, 23]),
        ({"gemma3.attention.sliding_window_pattern": 2}, list(range(1, 26, 2))),
        ({"gemma3.attention.sliding_window_pattern": (True,) * 25 + (False,)}, [25]),
        ({"gemma3.attention.sliding_window": None}, list(range(26))),
    ],
)
def test_which_layers_slide(metadata: dict[str, object], full: list[int]) -> None:
    header = header_of("gemma3", language_model("google/gemma-3-1b-pt"))
    tape = tape_of(config_of(with_(header, metadata), "x.gguf"))
    assert [i for c in tape.caches if c.window is None and c.side == "k" for i in c.layers] == full


def test_an_embedding_model_caches_nothing() -> None:
    config = language_model("google/gemma-3-270m")
    assert tape_of(config_of(header_of("gemma-embedding", config), "x.gguf")).caches == []


def test_experts_each_in_a_tensor_of_its_own() -> None:
    config = language_model("mistralai/Mixtral-8x7B-v0.1")
    old = with_(header_of("llama", config), drop=("_exps.weight",))
    assert weights(tape_of(config_of(old, "x.gguf"))) == weights(tape_of(config))


def test_granite_moe_with_a_shared_expert_is_granite_4() -> None:
    config = {**language_model("ibm-granite/granite-4.0-h-tiny"), "layer_types": ["attention"] * 40, "position_embedding_type": "rope"}
    assert weights(tape_of(config_of(header_of("granitemoe", config), "x.gguf"))) == weights(tape_of(config))


def test_the_real_file(real_gguf: Path) -> None:
    config = config_of(open_gguf(real_gguf), "gemma-3-270m")
    # config.json of google/gemma-3-270m
    sizes = {"hidden_size": 640, "num_hidden_layers": 18, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256}
    sizes |= {"intermediate_size": 2048, "vocab_size": 262_144, "sliding_window": 512, "max_position_embeddings": 32_768}
    assert {key: config[key] for key in sizes} == sizes
    assert config["model_type"] == "gemma3_text"
    assert config["tie_word_embeddings"] is True
    assert config["layer_types"] == (["sliding_attention"] * 5 + ["full_attention"]) * 3
    assert tape_of(config).parameters == 268_098_176


# ---- the table ----------------------------------------------------------------------------------------------------------------------
def test_every_type_has_a_family() -> None:
    emitted = {model_type for model_type, *_ in ARCHS.values()} | {"mixtral", "olmo3", "deepseek_v2", "youtu", "distilbert"}
    assert emitted <= set(model_types())


def test_every_architecture_is_one_of_llama_cpp() -> None:
    assert set(ARCHS) - set(gguf.MODEL_ARCH_NAMES.values()) == {"deepseek32"}  # newer than gguf-py 0.19.0


# ---- bad input ----------------------------------------------------------------------------------------------------------------------
def test_unknown_architecture() -> None:
    with pytest.raises(Unknown, match=r"'qwen3mo' is none of the \d+ that we know; did you mean 'qwen3moe'"):
        config_of(Header((), {"general.architecture": "qwen3mo"}), "x.gguf")


LLAMA = header_of("llama", language_model("meta-llama/Llama-3.1-8B"))


@pytest.mark.parametrize(
    ("metadata", "drop", "message"),
    [
        ({"general.architecture": 3}, (), "general.architecture is 3"),
        ({"general.architecture": None}, (), "general.architecture is None"),
        ({"llama.block_count": None}, (), "'llama.block_count' is missing"),
        ({"llama.block_count": 2**31 - 1}, (), "1 to 10000 are accepted"),
        ({"llama.block_count": True}, (), "'llama.block_count' is True"),
        ({"llama.nextn_predict_layers": 32}, (), "32 blocks, of which 0 are run"),
        ({"llama.embedding_length": -4096}, (), "'llama.embedding_length' is -4096"),
        ({"llama.embedding_length": 4096.0}, (), "'llama.embedding_length' is 4096.0"),
        ({"llama.attention.head_count": "32"}, (), "'llama.attention.head_count' is '32'"),
        ({"llama.attention.head_count_kv": (8,) * 31}, (), "has 31 entries, the model 32 blocks"),
        ({"llama.attention.head_count_kv": (8,) * 16 + (4,) * 16}, (), "must be the same in all layers"),
        ({"llama.attention.head_count_kv": (8,) * 31 + ("8",)}, (), "'llama.attention.head_count_kv' is '8'"),
        ({"llama.expert_count": 8}, (), "'llama.expert_used_count' is missing"),
        ({}, ("token_embd.weight",), "tensor token_embd.weight is missing"),
    ],
)
def test_bad_metadata(metadata: dict[str, object], drop: tuple[str, ...], message: str) -> None:
    with pytest.raises(BadFile, match=message) as refused:
        config_of(with_(LLAMA, metadata, drop), "x.gguf")
    assert str(refused.value).startswith("x.gguf: ")
    assert "\n" not in str(refused.value)


def test_a_vector_in_place_of_a_matrix() -> None:
    flat = Header((*LLAMA.tensors[1:], StoredTensor("token_embd.weight", "F32", (128_256,), 513_024)), LLAMA.metadata)
    with pytest.raises(BadFile, match="must be a matrix"):
        config_of(flat, "x.gguf")


SMALL = {arch: header_of(arch, language_model(model)) for arch, model in MODELS if arch in ARCHS}
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 70), st.integers(), st.floats(), st.text(max_size=3),
    st.lists(st.integers(-1, 9), max_size=70).map(tuple), st.tuples(st.text(max_size=2)),
)  # fmt: skip
SHAPES = st.lists(st.integers(0, 2**40), max_size=4).map(tuple)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_a_header_says_is_read_or_refused(data: st.DataObject) -> None:
    header = SMALL[data.draw(st.sampled_from(sorted(SMALL)))]
    keys = data.draw(st.lists(st.sampled_from(sorted(set(header.metadata) - {"general.architecture"})), max_size=4))
    metadata = {key: data.draw(VALUES) for key in keys}
    suffixes = sorted({tensor.name.split(".", 2)[-1] for tensor in header.tensors})
    drop, odd = data.draw(st.lists(st.sampled_from(suffixes), max_size=3)), data.draw(st.dictionaries(st.sampled_from(suffixes), SHAPES))
    broken = with_(header, metadata, tuple(drop))
    tensors = tuple(StoredTensor(t.name, t.dtype, odd.get(t.name.split(".", 2)[-1], t.shape), t.nbytes) for t in broken.tensors)
    refused = ""
    try:
        assert config_of(Header(tensors, broken.metadata), "x.gguf")["model_type"] in model_types()
    except (BadFile, Unknown) as error:
        refused = str(error)
    assert "\n" not in refused
