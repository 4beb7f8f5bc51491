"""Names that people type, and the repository that each of them means."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vramplan.catalog.models import all_ids, find_model
from vramplan.catalog.names import Candidate, meant, parse
from vramplan.errors import NotFound

MEANT = """
llama 3.1 8b                     meta-llama/Llama-3.1-8B
Llama-3.1-8B                     meta-llama/Llama-3.1-8B
llama3.1:8b                      meta-llama/Llama-3.1-8B
LLAMA3.1_8B                      meta-llama/Llama-3.1-8B
meta-llama/llama-3.1-8b          meta-llama/Llama-3.1-8B
llama 3.1 8b instruct            meta-llama/Llama-3.1-8B-Instruct
meta-llama/Meta-Llama-3.1-8B-Instruct  meta-llama/Llama-3.1-8B-Instruct
llama-3-8b                       meta-llama/Meta-Llama-3-8B
llama 3 70b                      meta-llama/Meta-Llama-3-70B
llama 3.2 1b                     meta-llama/Llama-3.2-1B
llama 3.2 11b                    meta-llama/Llama-3.2-11B-Vision
llama 3.3 70b                    meta-llama/Llama-3.3-70B-Instruct
llama 3.3                        meta-llama/Llama-3.3-70B-Instruct
llama 4 scout                    meta-llama/Llama-4-Scout-17B-16E
llama 4 maverick instruct        meta-llama/Llama-4-Maverick-17B-128E-Instruct
llama 2 7b                       meta-llama/Llama-2-7b-hf
llama 2 7b chat                  meta-llama/Llama-2-7b-chat-hf
llama2-70b-chat                  meta-llama/Llama-2-70b-chat-hf
llama 7b                         huggyllama/llama-7b
code llama 7b                    codellama/CodeLlama-7b-hf
codellama 34b instruct           codellama/CodeLlama-34b-Instruct-hf
tinyllama                        TinyLlama/TinyLlama-1.1B-Chat-v1.0
vicuna 7b                        lmsys/vicuna-7b-v1.5
qwen3-30b-a3b                    Qwen/Qwen3-30B-A3B
qwen3 30b                        Qwen/Qwen3-30B-A3B
qwen3 30b instruct 2507          Qwen/Qwen3-30B-A3B-Instruct-2507
qwen3 235b                       Qwen/Qwen3-235B-A22B
Qwen 3 8B                        Qwen/Qwen3-8B
qwen3:0.6b                       Qwen/Qwen3-0.6B
qwen3 next                       Qwen/Qwen3-Next-80B-A3B-Instruct
qwen3 coder                      Qwen/Qwen3-Coder-30B-A3B-Instruct
Qwen3_8B                         Qwen/Qwen3-8B
Qwen3_30B_a3B                    Qwen/Qwen3-30B-A3B
stablelm-2-1.6b                  stabilityai/stablelm-2-1_6b
qwen3 coder 30b                  Qwen/Qwen3-Coder-30B-A3B-Instruct
qwen3 vl 8b                      Qwen/Qwen3-VL-8B-Instruct
qwen2.5 7b                       Qwen/Qwen2.5-7B
qwen 2.5 72b instruct            Qwen/Qwen2.5-72B-Instruct
qwen2.5-coder 32b                Qwen/Qwen2.5-Coder-32B-Instruct
qwen2 7b                         Qwen/Qwen2-7B
qwen3.6 27b                      Qwen/Qwen3.6-27B
qwq                              Qwen/QwQ-32B
gemma 3 27b                      google/gemma-3-27b-it
gemma3:27b                       google/gemma-3-27b-it
gemma 3 1b pt                    google/gemma-3-1b-pt
gemma 2 9b                       google/gemma-2-9b
gemma 2 9b it                    google/gemma-2-9b-it
gemma 3n e4b                     google/gemma-3n-E4B
gemma 4 26b                      google/gemma-4-26B-A4B-it
deepseek v3                      deepseek-ai/DeepSeek-V3
DeepSeekV3                       deepseek-ai/DeepSeek-V3
deepseek v3.2                    deepseek-ai/DeepSeek-V3.2
deepseek-r1                      deepseek-ai/DeepSeek-R1
deepseek v2 lite                 deepseek-ai/DeepSeek-V2-Lite
deepseek coder v2 lite           deepseek-ai/DeepSeek-Coder-V2-Lite-Instruct
r1 distill qwen 7b               deepseek-ai/DeepSeek-R1-Distill-Qwen-7B
mixtral 8x7b                     mistralai/Mixtral-8x7B-v0.1
mixtral 8x22b instruct           mistralai/Mixtral-8x22B-Instruct-v0.1
mistral 7b                       mistralai/Mistral-7B-v0.1
mistral 7b instruct              mistralai/Mistral-7B-Instruct-v0.3
mistral 7b instruct v0.2         mistralai/Mistral-7B-Instruct-v0.2
mistral 7b v0.1                  mistralai/Mistral-7B-v0.1
mistral nemo                     mistralai/Mistral-Nemo-Instruct-2407
mistral small 3.1                mistralai/Mistral-Small-3.1-24B-Instruct-2503
devstral small                   mistralai/Devstral-Small-2507
ministral 8b                     mistralai/Ministral-8B-Instruct-2410
gpt oss 20b                      openai/gpt-oss-20b
gptoss 120b                      openai/gpt-oss-120b
gpt2                             openai-community/gpt2
gpt-2 large                      openai-community/gpt2-large
gpt neox 20b                     EleutherAI/gpt-neox-20b
pythia 6.9b                      EleutherAI/pythia-6.9b
phi 4                            microsoft/phi-4
phi4 mini                        microsoft/Phi-4-mini-instruct
phi 3 mini                       microsoft/Phi-3-mini-4k-instruct
phi-1.5                          microsoft/phi-1_5
glm 4.6                          zai-org/GLM-4.6
glm 4.5 air                      zai-org/GLM-4.5-Air
kimi k2                          moonshotai/Kimi-K2-Instruct
kimi k2 thinking                 moonshotai/Kimi-K2-Thinking
minimax m2                       MiniMaxAI/MiniMax-M2
command r                        CohereLabs/c4ai-command-r-v01
command r7b                      CohereLabs/c4ai-command-r7b-12-2024
falcon 40b                       tiiuae/falcon-40b
olmo 2 7b                        allenai/OLMo-2-1124-7B
starcoder2 15b                   bigcode/starcoder2-15b
granite 4 h small                ibm-granite/granite-4.0-h-small
granite 3.3 8b                   ibm-granite/granite-3.3-8b-instruct
nemotron 3 nano                  nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16
nemotron nano 9b v2              nvidia/NVIDIA-Nemotron-Nano-9B-v2
jamba mini 1.5                   ai21labs/AI21-Jamba-Mini-1.5
mamba 130m                       state-spaces/mamba-130m-hf
yi 34b                           01-ai/Yi-34B
smollm2 135m                     HuggingFaceTB/SmolLM2-135M
smollm3                          HuggingFaceTB/SmolLM3-3B
solar 10.7b                      upstage/SOLAR-10.7B-Instruct-v1.0
lfm2 8b                          LiquidAI/LFM2-8B-A1B
exaone 4 32b                     LGAI-EXAONE/EXAONE-4.0-32B
bert base uncased                google-bert/bert-base-uncased
bge m3                           BAAI/bge-m3
t5 base                          google-t5/t5-base
llava 1.5 7b                     llava-hf/llava-1.5-7b-hf
zephyr 7b beta                   HuggingFaceH4/zephyr-7b-beta
"""


@pytest.mark.parametrize(("typed", "repository"), [line.rsplit(None, 1) for line in MEANT.strip().splitlines()])
def test_short_names(typed: str, repository: str) -> None:
    assert find_model(typed).id == repository


@pytest.mark.parametrize("name", ["gemma 3", "deepseek", "glm 4", "llama 3.2"])
def test_a_name_of_several_models_is_refused_with_their_ids(name: str) -> None:
    with pytest.raises(NotFound, match=r"may mean several models; name one of \S+/\S+, \S+/\S+"):
        find_model(name)


@pytest.mark.parametrize(
    ("typed", "suggested"),
    [
        ("lama 3.1 8b", "meta-llama/Llama-3.1-8B"),
        ("meta-lama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("qwenn3 8b", "Qwen/Qwen3-8B"),
        ("gema 3 27b", "google/gemma-3-27b-it"),
        ("deepsek v3", "deepseek-ai/DeepSeek-V3"),
        ("mixtrall 8x7b", "mistralai/Mixtral-8x7B-v0.1"),
        ("qwen 27b", "Qwen/Qwen3.8-27B"),  # and not Qwen2-7B
        ("hermes 3 8b", "NousResearch/Hermes-3-Llama-3.1-8B"),
    ],
)
def test_near_misses_are_named(typed: str, suggested: str) -> None:
    with pytest.raises(NotFound) as caught:
        find_model(typed)
    assert repr(suggested) in str(caught.value)


@pytest.mark.parametrize("name", ["", " ", "/", "-", "no/such", "\n", "{", "#", "@ official", "x" * 100_000, "é", "\udcff", "a\tb"])
def test_no_name_is_a_traceback(name: str) -> None:
    with pytest.raises(NotFound) as caught:
        find_model(name)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


def test_an_id_with_an_organisation_means_no_other_repository() -> None:
    with pytest.raises(NotFound):
        find_model("meta-llama/Llama-3.3-70B")  # only -Instruct exists
    with pytest.raises(NotFound):
        find_model("somebody/Llama-3.1-8B")


def test_official_comes_before_downloads_and_fewer_variants_before_both() -> None:
    base = Candidate("lab/Net-7B", True, 1)
    copy = Candidate("copier/Net-7B", False, 1000)
    chat = Candidate("lab/Net-7B-Chat", True, 500)
    assert meant("net 7b", [copy, chat, base]) == [["lab/Net-7B", "lab/Net-7B-Chat"]]
    assert meant("net 7b chat", [copy, chat, base]) == [["lab/Net-7B-Chat"]]
    assert meant("net 7b", [copy]) == [["copier/Net-7B"]]


WORDS = ("llama", "qwen", "gemma", "3", "3.1", "7b", "8x7b", "a3b", "it", "instruct", "v0.1", "2507", "fp8", "mini", "e4b")


@given(
    st.lists(st.sampled_from(WORDS), max_size=6),
    st.sampled_from("-_ :"),
)
def test_parsing_ignores_case_and_kind_of_separator(words: list[str], separator: str) -> None:
    assert parse(" ".join(words)) == parse("-".join(words).upper())
    if separator != "_":  # 1_5 is 1.5
        assert parse(separator.join(words)) == parse(" ".join(words))


def test_every_id_finds_itself() -> None:
    assert [id for id in all_ids()[::37] if find_model(id.swapcase()).id != id] == []
