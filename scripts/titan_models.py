"""torchtitan's models of the sizes that a scenario's model has, split over ranks by torchtitan's own code. For trace_parallel.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Config = Mapping[str, Any]


def settings(asked: Config) -> Any:
    """torchtitan's configuration."""
    from torchtitan.config.job_config import JobConfig

    job = JobConfig()
    job.parallelism.fsdp_reshard_after_forward = asked.get("reshard_after_forward", "default")
    job.activation_checkpoint.mode, job.activation_checkpoint.selective_ac_option = asked["checkpointing"], "op"
    job.training.seq_len, job.training.local_batch_size = asked["sequence_length"], asked["micro_batch"]
    job.training.mixed_precision_param = "float32" if asked["precision"] == "fp32" else "bfloat16"
    return job


def built(asked: Config, dims: Any) -> Any:
    """The scenario's model, split over the ranks."""
    from vramplan.sources import resolve

    config = asked["model"] if isinstance(asked["model"], dict) else resolve(asked["model"]).config
    sizes = {"dim": config["hidden_size"], "n_layers": config["num_hidden_layers"], "vocab_size": config["vocab_size"]}
    sizes |= {"max_seq_len": asked["sequence_length"], "n_heads": config["num_attention_heads"]}
    make = next(made for kind, made in MODELS.items() if config["model_type"].startswith(kind))
    model, parallelize = make(config, sizes)
    return parallelize(model, dims, settings(asked))


def llama(config: Config, sizes: Config) -> Any:
    from torchtitan.models.llama3.infra.parallelize import parallelize_llama
    from torchtitan.models.llama3.model.args import TransformerModelArgs
    from torchtitan.models.llama3.model.model import Transformer

    factor = (config["intermediate_size"] + 0.5) / int(2 * 4 * config["hidden_size"] / 3)  # rounded down to the size again
    own = {"n_kv_heads": config["num_key_value_heads"], "ffn_dim_multiplier": factor, "multiple_of": 1}
    return Transformer(TransformerModelArgs(**sizes, **own)), parallelize_llama


def qwen3(config: Config, sizes: Config) -> Any:
    from torchtitan.models.moe import MoEArgs
    from torchtitan.models.qwen3.infra.parallelize import parallelize_qwen3
    from torchtitan.models.qwen3.model.args import Qwen3ModelArgs
    from torchtitan.models.qwen3.model.model import Qwen3Model

    own = {"head_dim": config["head_dim"], "hidden_dim": config["intermediate_size"], "qk_norm": True}
    own |= {"n_kv_heads": config["num_key_value_heads"], "enable_weight_tying": config.get("tie_word_embeddings", False)}
    if config["model_type"] == "qwen3_moe":
        choice = {"score_func": "softmax", "route_norm": config["norm_topk_prob"], "score_before_experts": False}
        experts = {"num_experts": config["num_experts"], "num_shared_experts": 0, "top_k": config["num_experts_per_tok"]}
        own |= {"moe_enabled": True, "moe_inter_dim": config["moe_intermediate_size"], "moe_args": MoEArgs(**experts, **choice)}
    return Qwen3Model(Qwen3ModelArgs(**sizes, **own)), parallelize_qwen3


def deepseek(config: Config, sizes: Config) -> Any:
    """With SDPA: FlexAttention, which its flavours ask for, is compiled."""
    from torchtitan.models.deepseek_v3.infra.parallelize import parallelize_deepseekv3
    from torchtitan.models.deepseek_v3.model.args import DeepSeekV3ModelArgs
    from torchtitan.models.deepseek_v3.model.model import DeepSeekV3Model
    from torchtitan.models.moe import MoEArgs

    choice = {"score_func": config["scoring_func"], "route_norm": config["norm_topk_prob"], "score_before_experts": False}
    choice |= {"route_scale": config["routed_scaling_factor"]}
    if config["n_group"] > 1:
        choice |= {"num_expert_groups": config["n_group"], "num_limited_groups": config["topk_group"]}
    experts = {"num_experts": config["n_routed_experts"], "num_shared_experts": config["n_shared_experts"]}
    own = {"inter_dim": config["intermediate_size"], "moe_inter_dim": config["moe_intermediate_size"]}
    own |= {name: config[name] for name in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")}
    own |= {"q_lora_rank": config["q_lora_rank"] or 0, "n_dense_layers": config["first_k_dense_replace"]}
    routed = MoEArgs(**experts, **choice, top_k=config["num_experts_per_tok"])
    args = DeepSeekV3ModelArgs(**sizes, **own, moe_args=routed)
    args.moe_impl = "standard"
    return DeepSeekV3Model(args), parallelize_deepseekv3


MODELS = {"llama": llama, "qwen3": qwen3, "deepseek": deepseek}
