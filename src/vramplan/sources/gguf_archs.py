"""Every GGUF architecture that a family describes: its `model_type` and the parts of its config (gguf_parts.py) beyond a plain decoder's.

The config is that of the language model alone: a vision tower lies in a file of its own (mmproj).
Names: gguf-py 0.19.0 `MODEL_ARCH_NAMES`; deepseek32 is llama.cpp's own (`src/llama-arch.cpp`).
"""

from __future__ import annotations

from . import gguf_parts as p

QK_NORM = p.there(use_qk_norm="attn_q_norm.weight")
MLA_MOE = (p.latent, p.experts("n_routed_experts"), p.shared_experts)

ARCHS: dict[str, tuple[str, *tuple[p.Part, ...]]] = {
    "llama": ("llama", p.mixtral),
    "llama4": ("llama4_text", p.experts("num_local_experts", "intermediate_size"), p.llama4),
    "deci": ("nemotron-nas", p.deci),
    "mistral3": ("ministral3",),
    "smollm3": ("smollm3",),
    "seed_oss": ("seed_oss", p.there(attention_out_bias="attn_output.bias")),
    "arcee": ("arcee",),
    "apertus": ("apertus",),
    "nemotron": ("nemotron",),
    "ernie4_5": ("ernie4_5", p.there(use_bias="attn_q.bias")),
    "ernie4_5-moe": ("ernie4_5_moe", p.experts("moe_num_experts", used="moe_k"), p.ernie_moe),
    "qwen2": ("qwen2",),
    "qwen2vl": ("qwen2",),
    "qwen2moe": ("qwen2_moe", p.experts("num_experts"), p.shared_expert, p.there(qkv_bias="attn_q.bias")),
    "qwen3": ("qwen3",),
    "qwen3vl": ("qwen3",),
    "qwen3moe": ("qwen3_moe", p.experts("num_experts")),
    "qwen3vlmoe": ("qwen3_moe", p.experts("num_experts")),
    "qwen3next": ("qwen3_next", p.experts("num_experts"), p.shared_expert, p.delta),
    "qwen35": ("qwen3_5_text", p.delta),
    "qwen35moe": ("qwen3_5_moe_text", p.experts("num_experts"), p.shared_expert, p.delta),
    "gemma": ("gemma",),
    "gemma2": ("gemma2", p.sliding(2, 4096)),
    "gemma3": ("gemma3_text", p.sliding(6)),
    "gemma3n": ("gemma3n_text", p.sliding(5), p.gemma3n),
    "gemma4": ("gemma4_text", p.sliding(6), p.gemma4),
    "gemma-embedding": ("gemma3_text", p.sliding(6), p.fixed(use_bidirectional_attention=True)),
    "phi2": ("phi", p.there(qk_layernorm="attn_q_norm.weight")),
    "phi3": ("phi3",),  # its window is not used: llama.cpp caches every token
    "phimoe": ("phimoe", p.experts("num_local_experts", "intermediate_size"), p.head_bias),
    "falcon": ("falcon", p.falcon),
    "gpt2": ("gpt2", p.positions),
    "starcoder": ("gpt_bigcode", p.positions, p.multi_query),
    "gptneox": ("gpt_neox", p.parallel_residual),
    "bloom": ("bloom",),
    "starcoder2": ("starcoder2", p.there(use_bias="attn_q.bias")),
    "stablelm": ("stablelm", p.stablelm),
    "olmo": ("olmo",),
    "olmo2": ("olmo2", p.olmo3),
    "olmoe": ("olmoe", p.experts("num_experts", "intermediate_size")),
    "command-r": ("cohere", QK_NORM),
    "cohere2": ("cohere2", p.sliding(4)),
    "dbrx": ("dbrx", p.dbrx),
    "deepseek2": ("deepseek_v3", p.latent, p.deepseek2),
    "deepseek32": ("deepseek_v32", *MLA_MOE, p.indexer),
    "glm-dsa": ("glm_moe_dsa", *MLA_MOE, p.indexer),
    "chatglm": ("glm",),
    "glm4": ("glm4",),
    "glm4moe": ("glm4_moe", p.experts("n_routed_experts"), p.shared_experts, QK_NORM),
    "granite": ("granite",),
    "granitemoe": ("granitemoe", p.experts("num_local_experts", "intermediate_size"), p.granite_moe),
    "granitehybrid": ("granitemoehybrid", p.grouped_mamba2, p.granite_hybrid),
    "falcon-h1": ("falcon_h1", p.grouped_mamba2),
    "mamba": ("mamba", p.mamba, p.copies(time_step_rank="ssm.time_step_rank")),
    "mamba2": ("mamba2", p.mamba, p.mamba2),
    "jamba": ("jamba", p.jamba),
    "nemotron_h": ("nemotron_h", p.nemotron_h),
    "nemotron_h_moe": ("nemotron_h", p.nemotron_h),
    "lfm2": ("lfm2", p.lfm2),
    "lfm2moe": ("lfm2_moe", p.lfm2, p.experts("num_experts"), p.lfm2_moe),
    "hunyuan-dense": ("hunyuan_v1_dense",),
    "hunyuan-moe": ("hunyuan_v1_moe", p.experts("num_experts", "intermediate_size", "moe_topk"), p.hunyuan_moe),
    "exaone4": ("exaone4", p.exaone4),
    "minimax-m2": ("minimax_m2", p.experts("num_local_experts", "intermediate_size")),
    "gpt-oss": ("gpt_oss", p.experts("num_local_experts", "intermediate_size"), p.sliding(2)),
    "mimo2": ("mimo_v2_flash", p.experts("n_routed_experts"), p.mimo2),
    "bert": ("bert", p.bert),
    "modern-bert": ("modernbert", p.copies(local_attention="attention.sliding_window")),
    "t5": ("t5", p.t5),
    "t5encoder": ("t5", p.t5, p.fixed(architectures=["T5EncoderModel"])),
}
"""llama.cpp's name -> `model_type`, and the parts of the config beyond `plain`; later parts override."""
