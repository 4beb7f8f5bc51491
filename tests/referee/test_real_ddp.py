"""DDP judged by torch's own: two processes (gloo) train a small model on real tensors, and tell what their buckets and gradients take.

The reducer is C++ and refuses fake tensors. Its first step has buckets by a guess of the order, later ones in the order of the gradients.
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from vramplan import estimate
from vramplan.ledger import Moment

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 4000,
    "hidden_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 1536,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
LORA = {"rank": 8, "targets": "all-linear", "dtype": "fp32"}
SETTINGS = ("defaults", "static_graph", "find_unused_parameters", "gradient_as_bucket_view")
CASES = list(product(("full", "lora"), SETTINGS))


def steps(method: str, setting: str) -> list[tuple[int, int]]:
    """Three steps in one of two processes: bytes of the buckets in each, and of buckets and gradients together after its backward."""
    from peft import LoraConfig, get_peft_model

    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**CONFIG))
    if method == "lora":
        model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    parallel = torch.nn.parallel.DistributedDataParallel(model, **({} if setting == "defaults" else {setting: True}))
    buckets: dict[int, int] = {}

    def hook(_: None, bucket: Any) -> Any:
        storage = bucket.buffer().untyped_storage()
        buckets[storage.data_ptr()] = storage.nbytes()
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    hook.__annotations__ = {}  # DDP takes a text for the wrong type
    parallel.register_comm_hook(None, hook)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    seen = []
    for _ in range(3):
        buckets.clear()
        ids = torch.zeros((1, 32), dtype=torch.long)
        parallel(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        gradients = [p.grad.untyped_storage() for p in model.parameters() if p.grad is not None]
        places = buckets | {storage.data_ptr(): storage.nbytes() for storage in gradients}
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen.append((sum(buckets.values()), sum(places.values())))
    return seen


def process(rank: int, folder: str) -> None:
    """One of two: all cases; the first writes what it saw."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    seen = [steps(method, setting) for method, setting in CASES]
    if rank == 0:
        (Path(folder) / "seen").write_text(json.dumps(seen))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list[list[int]]]:
    folder = tmp_path_factory.mktemp("ddp")
    torch.multiprocessing.spawn(process, (str(folder),), nprocs=2)
    return dict(zip(CASES, json.loads((folder / "seen").read_text()), strict=True))


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_gradients_and_buckets_take_what_the_estimate_says(case: tuple[str, str], seen: dict[tuple[str, str], list[list[int]]]) -> None:
    method, view = case[0], case[1] == "gradient_as_bucket_view"
    given = {
        "model": CONFIG,
        "task": "train",
        "method": method,
        "precision": "fp32",
        "sequence_length": 32,
        "gpu_count": 2,
        "sharding": "ddp",
    }
    ledger = estimate(**given, gradient_as_bucket_view=view, **({"lora": LORA} if method == "lora" else {})).ledger
    ours = ledger.total("gradients", moment=Moment.STEP)
    for buckets, together in seen[case]:
        assert together == ours
        assert buckets == (ours if view else ours // 2)
