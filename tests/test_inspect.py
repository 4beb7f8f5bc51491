"""What `inspect` says of a model, against counts by hand and files made here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vramplan import inspect
from vramplan.units import GiB


def test_llama_by_parts() -> None:
    found = inspect("meta-llama/Llama-3.1-8B")
    assert found.parts == {
        "embedding": 128256 * 4096,
        "attention": 32 * (2 * 4096 * 4096 + 2 * 1024 * 4096),
        "mlp": 32 * 3 * 14336 * 4096,
        "norms": 65 * 4096,
        "head": 128256 * 4096,
    }
    assert [(cache.name, cache.side, len(cache.layers)) for cache in found.caches] == [("keys", "k", 32), ("values", "v", 32)]
    assert found.cache_nbytes(8192) == GiB
    assert found.cache_nbytes(8192, "q8_0") == GiB * 34 // 64
    assert found.stored is None
    assert found.skipped == (0, 0)


def test_layers_by_kind() -> None:
    assert inspect("google/gemma-3-27b-it").layers == [(52, "attention, mlp, window of 1,024"), (10, "attention, mlp")]
    assert inspect("deepseek-ai/DeepSeek-V3").layers == [(3, "attention, mlp"), (58, "attention, experts, mlp")]


def test_a_state_does_not_grow_and_has_its_own_type() -> None:
    """Mamba-130m: 24 layers of 1,536 channels with 16 states (fp32 in the kernels) and 3 columns of convolution."""
    found = inspect("state-spaces/mamba-130m-hf")
    assert found.cache_nbytes(1) == found.cache_nbytes(10**6)
    assert {cache.side for cache in found.caches} == {"state"}
    assert sum(cache.elements(1) for cache in found.caches) == 24 * 1536 * (16 + 3)


def test_active_parameters_are_those_that_a_token_uses() -> None:
    """Mixtral: 2 of 8 experts of 3 × 4,096 × 14,336 in 32 layers."""
    tape = inspect("mistralai/Mixtral-8x7B-v0.1").tape
    assert tape.parameters - tape.active_parameters == 32 * 6 * 3 * 4096 * 14336


CONFIG = {
    "model_type": "llama", "num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 32,
}  # fmt: skip


def write_safetensors(path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    """A file with these tensors (dtype and shape), all zeros."""
    header, offset = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = {"BF16": 2, "F32": 4, "F8_E4M3": 1}[dtype]
        for dim in shape:
            size *= dim
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(offset))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of one layer, its down projection in FP8 with scales, and a second layer that only predicts a token ahead."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    names = ["model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"]
    write_safetensors(
        tmp_path / "model.safetensors",
        {
            "model.embed_tokens.weight": ("BF16", (32, 8)),
            **dict.fromkeys(names, ("BF16", (8, 8))),
            "model.layers.0.mlp.down_proj.weight": ("F8_E4M3", (8, 16)),
            "model.layers.0.mlp.down_proj.weight_scale_inv": ("F32", (1, 1)),
            "model.layers.1.mlp.down_proj.weight": ("BF16", (8, 16)),
        },
    )
    return tmp_path


def test_a_file_s_header_decides_what_is_stored_and_what_loads(folder: Path) -> None:
    from vramplan import estimate

    found = inspect(str(folder))
    assert found.stored == {"bf16": 2 * (32 * 8 + 2 * 8 * 8 + 8 * 16), "fp8_e4m3": 8 * 16, "fp32": 4}
    assert found.skipped == (1, 2 * 8 * 16)
    ledger = estimate(str(folder), engine="transformers", context_length=16).ledger
    assert ledger.total("weights") == 2 * (32 * 8 + 2 * 8 * 8) + 8 * 16 + 4
    assert ledger.total("weights", "mlp") == 8 * 16 + 4
    assert (
        estimate(str(folder), engine="transformers", context_length=16, weights="bf16").ledger.total("weights") == 2 * found.tape.parameters
    )
