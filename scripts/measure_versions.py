"""What an installed transformers does in a training step, measured on a CPU: the judge of `engines/train/transformers_versions.py`.

`python scripts/measure_versions.py data/traced/versions.jsonl` appends, for small random models in bf16, the bytes of the tensors that
autograd saves until the loss (weights and buffers left out), those of the non-persistent buffers, and the most that the allocator holds in
a forward and backward pass (torch's profiler). Run it with older releases in front of `PYTHONPATH`; the newest torch runs them all. It
needs nothing of vramplan. Dropout is made to be the kernel that a GPU has (`native_dropout`: a mask of truth values).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

BATCH, TOKENS = 2, 96
SIZES = {
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 448,
    "vocab_size": 1000,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ENCODER = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 448, "vocab_size": 1000}
MODELS: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "mistral": {**SIZES, "sliding_window": None},
    "qwen2": SIZES,
    "gemma": {**SIZES, "head_dim": 32, "hidden_activation": "gelu_pytorch_tanh"},
    "mixtral": {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "stablelm": {**SIZES, "num_key_value_heads": 4, "hidden_dropout": 0.0},
    "gpt2": {"n_embd": 128, "n_layer": 3, "n_head": 4, "n_positions": 256, "vocab_size": 1000, "bos_token_id": 1, "eos_token_id": 2},
    "opt": {**ENCODER, "ffn_dim": 448, "word_embed_proj_dim": 128, "max_position_embeddings": 256},
    "bert": {**ENCODER, "max_position_embeddings": 256},
    "roberta": {**ENCODER, "max_position_embeddings": 258, "pad_token_id": 1},
}
HEADS = {"bert": ("classification", "mlm"), "roberta": ("classification", "mlm")}


def dropped(x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    """Dropout as a GPU has it."""
    return torch.native_dropout(x, p, True)[0] if training and 0 < p < 1 else x


def model(kind: str, attention: str, head: str | None) -> Any:
    """A random one in bf16, training. Raises ValueError where the class has no such attention."""
    auto = {None: "CausalLM", "classification": "SequenceClassification", "mlm": "MaskedLM"}[head]
    config = transformers.AutoConfig.for_model(kind, **MODELS[kind])
    config.use_cache = False
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)  # as from_pretrained(torch_dtype=torch.bfloat16) does while it builds
    try:
        made = getattr(transformers, f"AutoModelFor{auto}").from_config(config, attn_implementation=attention)
    finally:
        torch.set_default_dtype(torch.float32)
    return made.to(torch.bfloat16).train()


def loss_of(made: Any, head: str | None) -> Any:
    """The loss of one pass; the mask, which the Trainer's collators give, says that nothing is padded."""
    ids = torch.randint(3, 1000, (BATCH, TOKENS))
    labels = torch.zeros(BATCH, dtype=torch.long) if head == "classification" else ids
    return made(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss


def saved(made: Any, head: str | None) -> int:
    """Bytes of the distinct storages that autograd saves, weights and buffers left out."""
    own = {t.untyped_storage()._cdata for t in (*made.parameters(), *made.buffers())}
    seen: dict[int, int] = {}
    kept = []

    def pack(tensor: Any) -> Any:
        kept.append(tensor)
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            seen[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_of(made, head)
    assert loss is not None
    return sum(seen.values())


def peak(made: Any, head: str | None) -> int:
    """Most bytes that the CPU allocator held in a forward and backward pass."""
    made.zero_grad(set_to_none=True)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        loss_of(made, head).backward()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def main() -> None:
    """Measure what this release has."""
    torch.nn.functional.dropout = dropped
    with Path(sys.argv[1]).open("a") as file:
        for kind in MODELS:
            for head in HEADS.get(kind, (None,)):
                for attention in ("eager", "sdpa"):
                    row = {"transformers": transformers.__version__, "torch": torch.__version__, "model_type": kind}
                    row |= {"config": MODELS[kind], "attention": attention, "head": head, "batch": BATCH, "tokens": TOKENS}
                    try:
                        made = model(kind, attention, head)
                    except (ValueError, KeyError, AttributeError) as error:
                        print(kind, head, attention, "not in", transformers.__version__, str(error)[:60])
                        continue
                    stored = set(made.state_dict())
                    buffers = sum(b.nbytes for name, b in made.named_buffers() if name not in stored and b.is_floating_point())
                    figures = {"saved": saved(made, head), "buffers": buffers, "peak": peak(made, head)}
                    file.write(json.dumps({**row, **figures}) + "\n")
                    print(kind, head, attention, figures)


if __name__ == "__main__":
    main()
