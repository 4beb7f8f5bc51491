"""What the tests of the page share: scenarios as addresses, a small GGUF file, and the links of a page."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import gguf
import numpy as np

ADDRESSES = (
    "/?model=meta-llama/Llama-3.1-8B&gpu=rtx-4090&context_length=8192",
    "/?model=meta-llama/Llama-3.1-8B&task=train&gpu=rtx-4090&method=qlora",
    "/?model=Qwen/Qwen3-30B-A3B&engine=llama.cpp&gpu=rtx-3090&weights=Q4_K_M&context_length=32768",
    "/?model=deepseek-ai/DeepSeek-V3&gpu=h100-sxm-80gb&gpu_count=8&tensor_parallel=8",
    "/?model=openai-community/gpt2",
)
"""One GPU and many, serving and training, too little and no GPU."""

HIDDEN, LAYERS, VOCABULARY, FFN = 64, 2, 320, 128


def tiny_gguf(path: Path) -> Path:
    """A Llama of two layers in F32 with a vocabulary, as gguf-py writes it."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(LAYERS)
    writer.add_context_length(2048)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"token {n}" for n in range(VOCABULARY)])
    writer.add_token_types([1] * VOCABULARY)
    shapes = {"token_embd.weight": (VOCABULARY, HIDDEN), "output_norm.weight": (HIDDEN,), "output.weight": (VOCABULARY, HIDDEN)}
    for n in range(LAYERS):
        for name, shape in {
            "attn_norm": (HIDDEN,), "attn_q": (HIDDEN, HIDDEN), "attn_k": (HIDDEN // 2, HIDDEN), "attn_v": (HIDDEN // 2, HIDDEN),
            "attn_output": (HIDDEN, HIDDEN), "ffn_norm": (HIDDEN,), "ffn_gate": (FFN, HIDDEN), "ffn_up": (FFN, HIDDEN),
            "ffn_down": (HIDDEN, FFN),
        }.items():  # fmt: skip
            shapes[f"blk.{n}.{name}.weight"] = shape
    for name, shape in shapes.items():
        writer.add_tensor(name, np.zeros(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def links(html: str) -> list[str]:
    """The addresses on this site that a page links to, without their anchors."""
    found = (unescape(href).partition("#")[0] for href in re.findall(r'(?:href|src)="([^"]*)"', html))
    return list(dict.fromkeys(href for href in found if href.startswith("/")))


def text_of(html: str) -> str:
    """What a reader sees: without tags, and one space between words."""
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", html)))
