"""Run Megatron-Core's own GPT model forward under torch's autograd, and write what it keeps for backward to `data/traced/megatron.jsonl`.

Needs torch and megatron-core. It runs on a CPU, as one rank of a fake process group, with small sizes: what is kept follows from shapes.
Two things are ours, as they want a GPU: norms, which keep what TransformerEngine's do (their input and its reciprocal root), and no random
state. The attention's core is Megatron's unfused one, and is left out of the figures.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

ROOT = Path(__file__).resolve().parent.parent
CORE = ("dot_product_attention.py", "rope_utils.py", "fused_softmax.py", "utils.py")
"""Files of the attention's core and of rotary tables."""
SIZES = {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 160, "vocab_size": 512}
MIXTURE = {**SIZES, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
PARTS = (["layernorm"], ["mlp"], ["layernorm", "mlp"])
CASES = [
    *({"config": SIZES, "layers": n, "tensor": t, "sequence": s} for n in (1, 3) for t, s in ((1, 0), (2, 0), (4, 0), (2, 1), (4, 1))),
    {"config": {**SIZES, "num_key_value_heads": 8, "intermediate_size": 256}, "layers": 2, "tensor": 4, "sequence": 1},
    {"config": MIXTURE, "layers": 2, "tensor": 1, "sequence": 0},
    {"config": MIXTURE, "layers": 3, "tensor": 1, "sequence": 0},
    *({"config": SIZES, "layers": 2, "tensor": t, "sequence": s, "recompute": parts} for t, s in ((1, 0), (2, 1)) for parts in PARTS),
    *({"config": MIXTURE, "layers": 2, "tensor": 1, "sequence": 0, "recompute": [part]} for part in ("layernorm", "moe")),
]
TOKENS, BATCH = 32, 2


def main() -> None:
    """Each case in a process of its own, as Megatron's groups are global."""
    path = ROOT / "data/traced/megatron.jsonl"
    rows = [subprocess.check_output([sys.executable, __file__, json.dumps(case)], text=True).splitlines()[-1] for case in CASES]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def trace(case: dict[str, Any]) -> dict[str, Any]:
    """Bytes that one forward pass keeps outside the attention's core, by the file whose code keeps them."""
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    import torch
    from megatron.core import parallel_state
    from megatron.core.package_info import __version__
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.cuda.current_device = lambda: torch.device("cpu")  # type: ignore[assignment,return-value]
    torch.cuda.Stream = torch.cuda.current_stream = torch.cuda.stream = MagicMock()  # type: ignore[assignment,misc]
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=case["tensor"])
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=case["tensor"], create_gloo_process_groups=False)
    model = _model(case)
    weights = {weight.untyped_storage()._cdata for weight in model.parameters()}
    kept: dict[int, tuple[str, Any]] = {}

    def pack(tensor: Any) -> Any:
        key = tensor.untyped_storage()._cdata
        if key not in weights and key not in kept:
            frames = [frame.filename for frame in traceback.extract_stack() if f"megatron{os.sep}core" in frame.filename]
            kept[key] = (os.path.basename(frames[-1]), tensor)
        return tensor

    ids, positions = torch.zeros(BATCH, TOKENS, dtype=torch.long), torch.arange(TOKENS).expand(BATCH, TOKENS)
    mask = torch.ones(BATCH, 1, TOKENS, TOKENS).triu(1).bool()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(ids, positions, mask, labels=ids)
    files: dict[str, int] = {}
    for name, tensor in kept.values():
        if name not in CORE:
            files[name] = files.get(name, 0) + tensor.untyped_storage().nbytes()
    return {**case, "tokens": TOKENS, "batch": BATCH, "kept": files, "megatron_core": __version__, "torch": torch.__version__}


def _model(case: dict[str, Any]) -> Any:
    import torch
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer import torch_norm
    from megatron.core.transformer.transformer_config import TransformerConfig

    _without_random_state()
    torch_norm.WrappedTorchNorm.__new__ = lambda cls, config, hidden_size, eps=1e-5, **_: _norm(hidden_size)  # type: ignore[method-assign,assignment]
    c = case["config"]
    experts = {"num_moe_experts": c["num_experts"], "moe_router_topk": c["num_experts_per_tok"]} if "num_experts" in c else {}
    if experts:
        experts |= {"moe_ffn_hidden_size": c["moe_intermediate_size"], "moe_token_dispatcher_type": "alltoall", "moe_router_dtype": "fp32"}
        experts |= {"moe_router_load_balancing_type": "none"}
    if "recompute" in case:
        experts |= {"recompute_granularity": "selective", "recompute_modules": case["recompute"]}
    config = TransformerConfig(
        num_layers=case["layers"],
        hidden_size=c["hidden_size"],
        num_attention_heads=c["num_attention_heads"],
        num_query_groups=c["num_key_value_heads"],
        ffn_hidden_size=c["intermediate_size"],
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        bias_activation_fusion=True,
        add_bias_linear=False,
        normalization="RMSNorm",
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=case["tensor"],
        sequence_parallel=bool(case["sequence"]),
        use_cpu_initialization=True,
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        bias_dropout_fusion=False,
        apply_rope_fusion=False,
        attention_softmax_in_fp32=False,
        params_dtype=torch.bfloat16,
        bf16=True,
        **experts,
    )
    spec = get_gpt_layer_local_spec(normalization="RMSNorm", num_experts=c.get("num_experts"), moe_grouped_gemm=False)
    sizes = {"vocab_size": c["vocab_size"], "max_sequence_length": TOKENS, "position_embedding_type": "rope"}
    return GPTModel(config, spec, share_embeddings_and_output_weights=False, parallel_output=True, **sizes).bfloat16()


def _without_random_state() -> None:
    """Megatron's tracker of CUDA's random state: without dropout nothing asks for it but a context. And names that it forgets without
    TransformerEngine."""
    from types import SimpleNamespace

    from megatron.core import tensor_parallel
    from megatron.core.tensor_parallel import layers, random
    from megatron.core.transformer.moe import moe_utils

    def tracker(*_: Any, **__: Any) -> SimpleNamespace:
        return SimpleNamespace(fork=lambda *_, **__: nullcontext())

    for module in (random, layers, tensor_parallel):
        module.get_cuda_rng_tracker = tracker
    random._get_all_rng_states = lambda: ()
    random.FP8GlobalStateManager = SimpleNamespace(is_fp8_enabled=lambda: False, get_fp8_recipe=lambda: None)
    random.activation_recompute_forward = lambda **_: nullcontext()
    moe_utils.te_general_gemm = None


def _norm(width: int) -> Any:
    """RMSNorm that keeps its input and its reciprocal root in fp32, as TransformerEngine's does."""
    import torch

    class Root(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, weight: Any) -> Any:
            root = x.float().pow(2).mean(-1, keepdim=True).rsqrt()
            ctx.save_for_backward(x, weight, root)
            return (x * root).to(x.dtype) * weight

    class Norm(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(width))

        def forward(self, x: Any) -> Any:
            return Root.apply(x, self.weight)

    return Norm()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(trace(json.loads(sys.argv[1])), separators=(",", ":")))
    else:
        main()
