"""Adapters judged by PEFT: which layers of each family get one, and what autograd really keeps of them.

The first on the meta device, for the smallest model of each model type of the catalogue: the adapters' parameters, in total.
The second with real tensors on a CPU: small models, PEFT's and bitsandbytes' own layers, the bytes of all storages that
autograd saves. Needs the extra `trace`.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Mapping
from typing import Any

import pytest
from test_meta import chosen, real_model

from vramplan.catalog.models import ModelEntry
from vramplan.dim import Dim
from vramplan.families import walk
from vramplan.kernels import Kernels
from vramplan.methods import FUSED, ROUTER_LAYERS, WITHOUT_OUT_PROJ, Adapters
from vramplan.ops.packed import Packed
from vramplan.tape import Tape

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
bnb = pytest.importorskip("bitsandbytes")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

RANK = 4
OTHER_LAYERS = {
    "deepseek_v4": "transformers has one more linear layer, in groups, for the output of its attention",
    "gemma4": "the audio tower's relative positions are a linear layer",
    "glm4v_moe": "the vision tower's patches are taken by a convolution, which has the name of a linear layer",
    "kimi_k25": "transformers splits the vision tower's query, key and value",
    "minimax_m3_vl": "transformers joins gate and up",
    "step3p7": "transformers splits the vision tower's query, key and value",
}
"""Model types whose modules differ from their checkpoints': their adapters are estimated by the checkpoint's."""
ENTRIES = [entry for entry in chosen() if entry.config["model_type"] not in ("roberta", "xlm-roberta")]


def adapted(config: Mapping[str, object], targets: str | tuple[str, ...], **keys: Any) -> Tape:
    kind = str(config["model_type"])
    tape = Tape(Dim(2, "sequences"), Dim(96, "tokens"), kernels=Kernels(logits="all"))
    tape.method = Adapters(
        rank=RANK, targets=targets, fused=FUSED.get(kind, ()), routers=kind in ROUTER_LAYERS, **{"dtype": "fp32", **keys}
    )
    return walk(tape, config)


@pytest.mark.parametrize("targets", ["all-linear", "attention"])
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry.config['model_type']}-{entry.id}")
def test_the_layers_that_peft_adapts(entry: ModelEntry, targets: str) -> None:
    from vramplan.trace.models import attention_linears

    kind = str(entry.config["model_type"])
    if kind in OTHER_LAYERS:
        pytest.skip(OTHER_LAYERS[kind])
    ours = sum(weight.numel for weight in adapted(entry.config, targets).weights if weight.part == "adapters")
    model = real_model(entry)
    wanted: Any = attention_linears(model) if targets == "attention" else targets
    settings = peft.LoraConfig(r=RANK, target_modules=wanted)
    if kind in WITHOUT_OUT_PROJ and (targets == "all-linear" or not ours):
        with pytest.raises(ValueError, match=r"out_proj|target_modules"):
            peft.get_peft_model(model, settings, low_cpu_mem_usage=True)
        return
    with torch.device("meta"):
        model = peft.get_peft_model(model, settings, low_cpu_mem_usage=True)
    assert ours == sum(p.numel() for p in model.parameters() if p.requires_grad)


SMALL = {
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 448,
    "vocab_size": 1000,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
}
LLAMA = {"model_type": "llama", **SMALL}
OLMOE = {"model_type": "olmoe", **SMALL, "num_experts": 8, "num_experts_per_tok": 2}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "lora": (LLAMA, {}),
    "bf16 adapters": (LLAMA, {"dtype": "bf16"}),
    "attention": (LLAMA, {"targets": "attention"}),
    "embeddings and head": (LLAMA, {"targets": ("embed_tokens", "lm_head", "q_proj")}),
    "modules to save": (LLAMA, {"saved_modules": ("embed_tokens", "lm_head")}),
    "dora": (LLAMA, {"variant": "dora"}),
    "dora in bf16": (LLAMA, {"variant": "dora", "dtype": "bf16"}),
    "nf4": (LLAMA, {"base": Packed(kind="nf4", double=True)}),
    "nf4 dora": (LLAMA, {"base": Packed(kind="nf4"), "variant": "dora"}),
    "experts": (OLMOE, {}),
    "attention beside experts": (OLMOE, {"targets": "attention"}),
}


def real(config: dict[str, Any], method: Adapters) -> Any:
    """The model with PEFT's adapters, over bitsandbytes' layers where the base is packed."""
    from vramplan.trace.models import attention_linears

    torch.manual_seed(0)
    made = transformers.AutoConfig.for_model(**config)
    model = transformers.AutoModelForCausalLM.from_config(made, dtype=torch.bfloat16, attn_implementation="sdpa")
    if method.base:
        for name, layer in list(model.named_modules()):
            if type(layer) is torch.nn.Linear and name != "lm_head":
                packed = bnb.nn.Linear4bit(
                    layer.in_features, layer.out_features, False, torch.bfloat16, method.base.double, method.base.kind
                )
                packed.load_state_dict(layer.state_dict())
                model.set_submodule(name, packed.to("cpu"))
        model.is_loaded_in_4bit = True
    targets: Any = attention_linears(model) if method.targets == "attention" else method.targets
    settings = peft.LoraConfig(
        r=method.rank,
        target_modules=targets if isinstance(targets, str) else list(targets),
        use_dora=method.variant == "dora",
        modules_to_save=list(method.saved_modules) or None,
    )
    model = peft.get_peft_model(model, settings, autocast_adapter_dtype=method.dtype == "fp32")
    for parameter in model.parameters():
        if parameter.requires_grad and method.dtype == "bf16":
            parameter.data = parameter.data.to(torch.bfloat16)
    return model.train()


class Kept:
    """What autograd holds in place of a tensor that it saves."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor


def saved(model: Any) -> int:
    """Bytes of the distinct storages that autograd still holds after a forward pass, weights and buffers left out."""
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    held: weakref.WeakSet[Kept] = weakref.WeakSet()

    def pack(tensor: Any) -> Kept:
        kept = Kept(tensor)
        held.add(kept)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        output = model(torch.randint(3, 1000, (2, 96)), use_cache=False).logits
    assert output is not None
    storages = {kept.tensor.untyped_storage()._cdata: kept.tensor.untyped_storage().nbytes() for kept in held}
    return sum(nbytes for storage, nbytes in storages.items() if storage not in own)


@pytest.mark.parametrize("name", CASES)
def test_what_autograd_keeps_is_to_the_byte(name: str) -> None:
    config, keys = CASES[name]
    ours = adapted(config, **{"targets": "all-linear", **keys})
    kept = ours.saved_bytes - sum(tensor.nbytes for tensor in ours.tensors if tensor.spared)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = real(config, ours.method)  # type: ignore[arg-type]
        assert kept == saved(model)
