"""llama.cpp's account: slots, windows, cache types, placement, the compute buffer. Device logs: published/llama_cpp.toml."""

from __future__ import annotations

import re
from typing import Any

import pytest

from vramplan import BadInput, Estimate, NotFound, Unknown, estimate, inspect
from vramplan.catalog.gpus import find_gpu
from vramplan.units import GiB, MiB

LLAMA = "meta-llama/Llama-3.1-8B"


def llama_cpp(model: Any = LLAMA, **more: Any) -> Estimate:
    return estimate(model, **{"engine": "llama.cpp", "weights": "Q4_K_M", "context_length": 8192, "gpu": "rtx-4090", **more})


def kv(model: Any = LLAMA, **more: Any) -> int:
    return llama_cpp(model, **more).quantities["kv_cache"]


def test_a_gguf_type_means_llama_cpp() -> None:
    assert estimate(LLAMA, weights="Q4_K_M", context_length=4096).scenario.engine == "llama.cpp"


@pytest.mark.parametrize(
    ("kv_dtype", "nbytes"),
    [
        (None, 1024 * MiB),
        ("fp16", 1024 * MiB),
        ("fp32", 2048 * MiB),
        ("q8_0", 1024 * MiB * 34 // 64),
        ("q4_0", 1024 * MiB * 18 // 64),
        ({"k": "q8_0", "v": "fp16"}, 512 * MiB + 512 * MiB * 34 // 64),
    ],
)
def test_the_cache_by_type(kv_dtype: Any, nbytes: int) -> None:
    """2 × 32 layers × 8 heads × 128 × 8,192 tokens; q8_0 is 34 bytes for 32, q4_0 18."""
    assert kv(kv_dtype=kv_dtype) == nbytes


def test_slots_share_the_context_and_cells_are_padded_to_256() -> None:
    assert kv(sequences=4) == kv()
    assert kv(context_length=8000) == kv()
    assert kv(context_length=8193) == kv(context_length=8448)
    assert kv(context_length=1000, sequences=3) == 3 * 512 * 131072
    assert llama_cpp(context_length=1000, sequences=3).quantities["kv_tokens"] == 1536


def test_a_window_keeps_itself_and_a_pass_in_each_slot() -> None:
    """Gemma-3-4B: 5 full and 29 sliding layers of 1,024 tokens, 4,096 B each a token; -ub 512."""
    one = llama_cpp("google/gemma-3-4b-it", context_length=32768).ledger
    assert one.total("kv cache", "full attention") == 5 * 32768 * 4096
    assert one.total("kv cache", "window") == 29 * 1536 * 4096
    four = llama_cpp("google/gemma-3-4b-it", context_length=32768, sequences=4).ledger
    assert four.total("kv cache", "window") == 4 * 29 * 1536 * 4096
    assert llama_cpp("google/gemma-3-4b-it", context_length=1024).ledger.total("kv cache", "window") == 29 * 1024 * 4096


def test_states_are_fp32_for_each_slot() -> None:
    """Mamba-130m: 24 layers, 1,536 channels × (16 + 3) × 4 B."""
    answer = llama_cpp("state-spaces/mamba-130m-hf", weights="F16", sequences=2)
    assert answer.quantities["kv_cache"] == 2 * 24 * 1536 * (16 + 3) * 4


def test_token_embeddings_stay_on_the_host_unless_tied() -> None:
    gpu, whole = llama_cpp().ledger, llama_cpp(gpu=None).ledger
    assert gpu.total("weights", "embedding") == 0
    assert whole.total("weights") - gpu.total("weights") == whole.total("weights", "embedding") == 128256 * 4096 * 144 // 256
    tied = llama_cpp("meta-llama/Llama-3.2-1B")
    assert tied.ledger.total("weights", "embedding") == 128256 * 2048 * 210 // 256
    assert any("and on the GPU as the tied head" in text for text in tied.assumptions)


def test_flash_attention_makes_no_scores() -> None:
    """Without it the compute buffer holds heads × ubatch × cells × 4 B, and a mask; with it the logits of all tokens of a pass."""
    flash, plain = (llama_cpp(flash_attention=on, context_length=65536).quantities["compute_buffer"] for on in (True, False))
    logits = 512 * 128256 * 4
    assert logits < flash < logits + 16 * MiB
    scores = 32 * 512 * 65536 * 4
    assert scores < plain < scores * 1.05
    assert llama_cpp(context_length=131072).quantities["compute_buffer"] == flash


def test_a_larger_pass_has_a_larger_buffer() -> None:
    assert llama_cpp(ubatch=2048).quantities["compute_buffer"] == pytest.approx(4 * llama_cpp().quantities["compute_buffer"], rel=1e-6)
    assert llama_cpp(ubatch=2048, context_length=256).scenario.ubatch == 256


def test_towers_are_in_a_file_of_their_own() -> None:
    answer = llama_cpp("google/gemma-3-4b-it")
    assert not any("tower" in part for item in answer.ledger.items for part in item.path)
    assert any("--mmproj" in text for text in answer.assumptions)


def test_the_process_is_the_sum_of_all() -> None:
    answer = llama_cpp()
    q = answer.quantities
    assert q["process"] == answer.peak[1] == q["weights"] + q["kv_cache"] + q["compute_buffer"] + 300 * MiB
    assert answer.headroom == answer.room - q["process"]  # type: ignore[operator]
    assert 4 * GiB < q["weights"] < 5 * GiB


@pytest.mark.parametrize(("key", "value"), [("tensor_parallel", 2), ("split_mode", "tensor"), ("draft_model", "mtp")])
def test_what_it_does_not_know_is_refused(key: str, value: object) -> None:
    with pytest.raises(Unknown, match=key):
        llama_cpp(**{key: value})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kv_dtype": "q8_0", "flash_attention": False}, "needs flash attention"),
        ({"mmproj": True}, "has no tower for images or sound"),
        ({"split_mode": "row"}, 'llama.cpp 0.5.0 stops with "device does not support split buffers"'),
        ({"kv_dtype": "q3_k"}, "cache type 'q3_k' is not known"),
        ({"tensor_split": [1, 1], "gpu_count": 1}, "2 shares for 1 GPUs"),
        ({"tensor_split": [0, 0]}, "one must be more than 0"),
        ({"override_tensor": ["exps"]}, "must be pattern=device"),
        ({"override_tensor": ["(=CPU"]}, "no regular expression"),
        ({"override_tensor": ["exps=CUDA1"]}, "unknown buffer type 'CUDA1'"),
    ],
)
def test_what_llama_cpp_refuses(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=re.escape(message)):
        llama_cpp(**keys)


def test_a_pattern_in_no_name_changes_nothing() -> None:
    answer = llama_cpp(override_tensor=["exps=CPU"])
    assert answer.peak == llama_cpp().peak
    assert any("changes nothing" in text for text in answer.remarks)


def test_layers_on_the_host() -> None:
    """Of 32 layers and the output, -ngl 20 leaves 13 layers and their cache on the host: 13 × 32 MiB at 8,192 tokens."""
    answer = llama_cpp(gpu_layers=20)
    assert answer.host.total("kv cache") == 13 * 32 * MiB
    assert answer.ledger.total("kv cache") == 19 * 32 * MiB
    both = answer.ledger.total("weights") + answer.host.total("weights")
    assert both == llama_cpp(gpu=None).ledger.total("weights")


def test_operations_over_host_weights_take_room_on_the_gpu() -> None:
    """With flash attention off, the scores of a host layer are made where its operations are: 32 heads × 512 × 8,192 × 4 B = 512 MiB."""
    taken = llama_cpp(gpu_layers=5, flash_attention=False)
    left = llama_cpp(gpu_layers=5, flash_attention=False, op_offload=False)
    assert taken.host.total("compute buffer") < 512 * MiB < left.host.total("compute buffer")


def test_a_cache_that_stays_on_the_host() -> None:
    answer = llama_cpp(kv_offload=False)
    assert answer.quantities["kv_cache"] == 0
    assert answer.host.total("kv cache") == 1024 * MiB


def test_gpus_share_the_layers() -> None:
    """33 layers by 3 to 1: 25 and 8, of which the last is the output."""
    first, second = sorted(llama_cpp(gpu_count=2, tensor_split=[3, 1]).shares, key=lambda share: share.rank)
    assert (first.ledger.total("kv cache"), second.ledger.total("kv cache")) == (25 * 32 * MiB, 7 * 32 * MiB)


def test_what_would_fit_is_told_as_flags() -> None:
    big = llama_cpp("meta-llama/Llama-3.1-70B")
    assert not big.fits
    [layers] = [int(text.split("-ngl ")[1].split(":")[0]) for text in big.remarks if "-ngl" in text]
    assert llama_cpp("meta-llama/Llama-3.1-70B", gpu_layers=layers).fits
    assert not llama_cpp("meta-llama/Llama-3.1-70B", gpu_layers=layers + 1).fits
    moe = llama_cpp("Qwen/Qwen3-30B-A3B", gpu_memory="12GiB")
    assert any("--n-cpu-moe" in text for text in moe.remarks)


@pytest.mark.parametrize("more", [{"gpu": "b580"}, {"gpu": None}, {"engine_version": "0.4.0"}])
def test_rows_that_a_backend_may_split_are_not_known(more: dict[str, Any]) -> None:
    with pytest.raises(Unknown, match="split_mode 'row'"):
        llama_cpp(split_mode="row", **more)


def test_another_split_that_fits_is_told() -> None:
    """81 layers of 70B, 3 to 1, are 30.5 GiB on the first GPU; what is told fits, and at 20 GiB nothing is told."""
    keys: dict[str, Any] = {"model": "meta-llama/Llama-3.1-70B", "context_length": 4096, "gpu": None, "gpu_memory": "21GiB", "gpu_count": 2}
    [told] = [text for text in llama_cpp(tensor_split=[3, 1], **keys).remarks if "-ts" in text]
    first, second = (int(n) for n in told.removeprefix("fits with -ts ").partition(":")[0].split(","))
    assert first + second == 81
    assert llama_cpp(tensor_split=[first, second], **keys).fits
    assert not any("-ts" in text for text in llama_cpp(**{**keys, "gpu_memory": "20GiB"}).remarks)


@pytest.mark.parametrize(
    ("gpu", "room"),
    [("m3 max 64gb", 64 * GiB * 74 // 100), ("m3-max 128gb", 128 * GiB * 84 // 100), ("strix-halo", 63968 * MiB)],
)
def test_the_room_on_unified_memory_is_what_the_driver_lends(gpu: str, room: int) -> None:
    """recommendedMaxWorkingSetSize on Apple GPUs; no CUDA context there."""
    answer = llama_cpp(gpu=gpu)
    assert answer.room == room
    assert answer.ledger.total("cuda context") == (0 if "m3" in gpu else 300 * MiB)


def test_unified_memory_is_one_pool() -> None:
    """What is on the host is missing on the GPU: DGX Spark has 119.7 GiB for both, of which half the layers of Qwen3-235B take a part."""
    answer = llama_cpp("Qwen/Qwen3-235B-A22B", weights="Q3_K_M", gpu="dgx-spark", gpu_layers=47)
    assert answer.room == 128501256192 - answer.host.peak()[1]
    assert answer.host.peak()[1] > 40 * GiB
    assert any("share 120 GiB" in text for text in answer.remarks)
    apart = llama_cpp("Qwen/Qwen3-235B-A22B", weights="Q3_K_M", gpu="h100", gpu_layers=47)
    assert apart.room == llama_cpp(gpu="h100").room


@pytest.mark.parametrize("name", ["ollama", "lm-studio"])
def test_programs_that_run_it(name: str) -> None:
    assert llama_cpp(engine=name).peak == llama_cpp().peak


def test_koboldcpp_has_defaults_of_its_own() -> None:
    """8,192 tokens and 128 more, padded, in one cache; windows at full size: 34 layers × 4,096 B; --useswa makes them small."""
    model = "google/gemma-3-4b-it"
    assert kv(model, engine="koboldcpp", context_length=None, sequences=2) == 34 * 8448 * 4096
    assert kv(model, engine="koboldcpp", swa_full=False) == 5 * 8448 * 4096 + 29 * 1536 * 4096
    assert llama_cpp(engine="koboldcpp", context_length=None).scenario.context_length == 8192
    assert llama_cpp(engine="koboldcpp", ubatch=1024).scenario.ubatch == 1024


def test_lm_studio_s_defaults_are_not_known() -> None:
    assert any("LM Studio's own defaults are not known" in text for text in llama_cpp(engine="lm-studio").remarks)
    assert not llama_cpp(engine="lm-studio", flash_attention=True).remarks


@pytest.mark.parametrize("layers", [-1, 33, 99])
def test_all_layers_on_the_gpu_may_be_said(layers: int) -> None:
    """Llama-3.1-8B: 32 and the output."""
    assert llama_cpp(gpu_layers=layers, cpu_moe_layers=0).peak == llama_cpp().peak


@pytest.mark.parametrize(
    ("outputs", "gpus", "theirs", "host"),
    [
        (1, 1, [79702048], 25178144),
        (2, 1, [71313440], 16789536),
        (4, 1, [67119136], 12595232),
        (4, 2, [96509952, 113287296], 37798016),
    ],
)
def test_fewer_rows_that_give_logits(outputs: int, gpus: int, theirs: list[int], host: int) -> None:
    """llama.cpp's own planner with n_outputs_max: Llama-3.2-1B Q8_0, -c 16384, as many slots as outputs, blocks of 32 B, not of 128."""
    answer = llama_cpp(
        "meta-llama/Llama-3.2-1B",
        weights="Q8_0",
        context_length=16384,
        sequences=outputs,
        outputs=outputs,
        gpu_count=gpus,
    )
    found = [share.ledger.total("compute buffer") for share in sorted(answer.shares, key=lambda share: share.rank)]
    assert found == pytest.approx(theirs, abs=1024)
    assert answer.host.total("compute buffer") == pytest.approx(host, abs=1024)


def test_a_draft_model_has_weights_cache_and_buffer_of_its_own() -> None:
    """Llama-3.2-1B beside 70B: 16 layers × 8 heads × 64 × 2 sides × 8,192 tokens × 2 B; logits of one token."""
    big = llama_cpp("meta-llama/Llama-3.1-70B", gpu_memory="80GiB")
    both = llama_cpp("meta-llama/Llama-3.1-70B", gpu_memory="80GiB", draft_model="meta-llama/Llama-3.2-1B", kv_dtype="q8_0")
    alone = llama_cpp("meta-llama/Llama-3.2-1B", outputs=1).ledger
    assert both.ledger.total("kv cache", "draft") == 16 * 8 * 64 * 2 * 8192 * 2
    assert both.ledger.total("weights", "draft") == alone.total("weights")
    assert both.ledger.total("compute buffer", "draft") == alone.total("compute buffer")
    assert both.ledger.total("weights") == big.ledger.total("weights") + alone.total("weights")


def test_a_projector_is_the_tower_in_f16() -> None:
    """Gemma-3's SigLIP tower and projector, 420 million parameters: matrices in F16; norms, biases and positions, 2 %, in F32."""
    plain, seeing = (llama_cpp("google/gemma-3-4b-it", mmproj=on) for on in (False, True))
    more = seeing.ledger.total("weights") - plain.ledger.total("weights")
    parameters = sum(weight.numel for weight in inspect("google/gemma-3-4b-it").tape.weights if weight.tower)
    assert 419e6 < parameters < 421e6
    assert 2 * parameters < more < 2 * parameters * 1.03
    assert any("projector's own compute buffer" in text for text in seeing.remarks)


def test_a_context_beyond_the_model_s_own_is_warned_of() -> None:
    answer = llama_cpp(context_length=200_000)
    assert answer.quantities["kv_tokens"] == 200_192
    assert any("beyond the model's own 131,072 tokens" in text for text in answer.remarks)


def test_a_pass_is_never_longer_than_the_logical_batch() -> None:
    assert llama_cpp(logical_batch=128).peak == llama_cpp(ubatch=128).peak
    assert llama_cpp(logical_batch=4096).peak == llama_cpp().peak


@pytest.mark.parametrize(("gpu_memory", "tokens"), [("12GiB", 4096), ("24GiB", 32768), ("80GiB", 131072)])
def test_ollama_s_context_goes_by_the_memory(gpu_memory: str, tokens: int) -> None:
    """4,096, 32,768 from 23 GiB on, 262,144 from 47 GiB on, but never more than the model's own; for each slot."""
    answer = llama_cpp(engine="ollama", gpu=None, gpu_memory=gpu_memory, context_length=None, sequences=2)
    assert answer.quantities["kv_tokens"] == 2 * tokens
    assert answer.scenario.context_length == tokens


def test_ollama_gives_each_slot_the_whole_context() -> None:
    """num_ctx is a slot's: gpt-oss-120b with 131,072 and two slots has 2 × (18 × 131,072 + 18 × 1,280) cells of 2 KiB (ollama#16480)."""
    given = {"weights": "MXFP4", "context_length": 131072, "sequences": 2, "ubatch": 1024, "gpu": "b200"}
    assert kv("openai/gpt-oss-120b", engine="ollama", **given) == 9_758_048_256
    assert kv("openai/gpt-oss-120b", **given) == 2 * 18 * (65536 + 1280) * 2048


# ---- GPUs of several kinds ----------------------------------------------------------------------------------------------
def test_layers_go_by_free_memory() -> None:
    """load_tensors' default split: an RTX 4090 and an RTX 3060 as with -ts of what they have free, each against its own memory."""
    given = {"engine": "llama.cpp", "weights": "Q4_K_M", "context_length": 8192, "gpu": "rtx-4090+rtx-3060"}
    free = [find_gpu(name).usable - 300 * MiB for name in ("rtx-4090", "rtx-3060-12gb")]
    answer = estimate("Qwen/Qwen3-32B", **given)
    split = estimate("Qwen/Qwen3-32B", **given, tensor_split=tuple(nbytes / MiB for nbytes in free))
    assert [share.ledger for share in answer.shares] == [share.ledger for share in split.shares]
    assert {share.gpu.id: share.room for share in answer.shares if share.gpu} == {
        name: find_gpu(name).usable for name in ("rtx-4090", "rtx-3060-12gb")
    }
    first, second = sorted(answer.shares, key=lambda share: share.rank)
    assert [first.gpu and first.gpu.id, second.gpu and second.gpu.id] == ["rtx-4090", "rtx-3060-12gb"]
    weights = [share.ledger.total("weights") for share in (first, second)]
    assert weights[0] / weights[1] == pytest.approx(free[0] / free[1], rel=0.15), "by whole layers, the output on the second"
    assert answer.scenario.gpu_count == 2


def test_the_gpu_that_breaks_first_is_the_fuller_by_its_own_memory() -> None:
    answer = estimate(
        "Qwen/Qwen3-32B", engine="llama.cpp", weights="Q5_K_M", context_length=16384, gpu="rtx-4090+rtx-3060-12gb", tensor_split=(1.0, 1.0)
    )
    assert not answer.fits
    assert answer.gpu is not None
    assert answer.gpu.id == "rtx-3060-12gb"
    assert any(remark.startswith("fits with -ts ") for remark in answer.remarks)
    assert not any("share" in remark for remark in answer.remarks)


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"engine": "vllm"}, Unknown, "several kinds"),
        ({"engine": "llama.cpp", "gpu_count": 3}, BadInput, "gpu names 2"),
        ({"task": "train", "method": "lora"}, Unknown, "several kinds"),
        ({"engine": "llama.cpp", "gpu": "rtx-4090+rtx-9999"}, NotFound, "rtx-9999"),
    ],
)
def test_gpus_of_several_kinds_that_are_refused(given: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        estimate("Qwen/Qwen3-8B", **{"gpu": "rtx-4090+rtx-3060", **given})


def test_a_device_map_over_several_kinds() -> None:
    """Each GPU is measured by its own memory."""
    answer = estimate("Qwen/Qwen3-8B", engine="transformers", device_map="auto", gpu="rtx-4090+rtx-3060-12gb", context_length=4096)
    assert {share.gpu.id: share.room for share in answer.shares if share.gpu} == {
        name: find_gpu(name).usable for name in ("rtx-4090", "rtx-3060-12gb")
    }
