"""Objectives judged by TRL's own trainers: a training step of each, on real tensors, by what PyTorch's CPU allocator held at most.

Small models. TRL's Triton kernels take no memory of their own: functions that fill their results with anything stand for them, and TRL is
told that it runs on a GPU, so that it takes the path that a GPU takes. Compared is what a step allocates: weights, states and the reference
model are there before. Needs the extra `trace` and TRL.
"""

from __future__ import annotations

import importlib
import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vramplan import estimate
from vramplan.ledger import Moment

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("trl")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

VOCAB, RANK = 5000, 8
MODELS: dict[str, dict[str, Any]] = {
    "llama": {
        "model_type": "llama",
        "hidden_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "intermediate_size": 1536,
        "tie_word_embeddings": False,
    },
    "qwen2": {
        "model_type": "qwen2",
        "hidden_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "intermediate_size": 2048,
        "tie_word_embeddings": True,
    },
}
MIXTURES: dict[str, dict[str, Any]] = {
    "olmoe": {**MODELS["llama"], "model_type": "olmoe", "intermediate_size": 512, "num_experts": 32, "num_experts_per_tok": 2},
    "qwen3_moe": {
        **MODELS["llama"],
        "model_type": "qwen3_moe",
        "moe_intermediate_size": 128,
        "num_experts": 64,
        "num_experts_per_tok": 4,
        "norm_topk_prob": True,
    },
}
COMMON = {"vocab_size": VOCAB, "max_position_embeddings": 2048, "pad_token_id": VOCAB - 1, "eos_token_id": VOCAB - 2, "bos_token_id": None}
LENGTHS = [(64, 192, 2), (420, 348, 2)]
"""Tokens of prompt and completion, and the micro-batch."""
DTYPES = {"fp32": ("float32", False), "bf16": ("bfloat16", True), "bf16-mixed": ("float32", True)}
"""The weights' dtype, and TRL's `bf16`, which is autocast."""
RNG_STATE = 5056
"""Bytes of the CPU generator's state, which checkpointing saves for each layer: in host memory where the model is on a GPU."""
RECIPES = [
    ("dpo", "full", "bf16", "full"),
    ("dpo", "full", "bf16-mixed", "full"),
    ("dpo", "lora", "bf16", "full"),
    ("kto", "full", "bf16", "none"),
    ("kto", "lora", "bf16", "full"),
    ("orpo", "full", "bf16", "full"),
    ("orpo", "full", "bf16-mixed", "none"),
    ("reward", "full", "bf16", "full"),
    ("reward", "lora", "bf16", "full"),
    ("grpo", "full", "bf16", "full"),
    ("grpo", "lora", "bf16", "none"),
]


class Grid:
    """A Triton kernel in name: `kernel[grid](…)` calls a function."""

    def __init__(self, run: Callable[..., None]) -> None:
        self.run = run

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return self.run


def fill(*values: float) -> Callable[..., None]:
    def run(*arguments: Any, **_: Any) -> None:
        for tensor, value in zip(arguments[3:], values, strict=False):
            tensor.fill_(value)

    return run


@pytest.fixture(scope="module", autouse=True)
def on_a_gpu() -> Iterator[None]:
    """TRL as it is where Triton is: its kernels' results are made by its own code, and filled with anything."""
    chunked, utils = importlib.import_module("trl.kernels.chunked_logprob"), importlib.import_module("trl.trainer.utils")
    language, triton = types.ModuleType("triton.language"), types.ModuleType("triton")
    vars(language).update(constexpr=int)
    vars(triton).update(language=language, jit=lambda function: function, cdiv=lambda a, b: -(-a // b))
    with pytest.MonkeyPatch.context() as patch:
        with pytest.MonkeyPatch.context() as importing:
            importing.setitem(sys.modules, "triton", triton)
            importing.setitem(sys.modules, "triton.language", language)
            whole = importlib.import_module("trl.kernels.logprob_entropy")
        patch.setattr(chunked, "triton", triton, raising=False)
        patch.setattr(chunked, "_use_triton", lambda device: True)
        patch.setattr(chunked, "_forward_kernel", Grid(fill(0.0, 1.0)))
        patch.setattr(chunked, "_backward_kernel", Grid(lambda *a, **k: None))
        patch.setattr(chunked, "_addmm_fp32", lambda *a: None)  # on a GPU one product, which accumulates in place
        patch.setattr(utils, "_use_triton", lambda device: True)
        patch.setattr(whole, "_forward_kernel", Grid(fill(-1.0, 1.0, 0.0, 0.0)))
        patch.setattr(whole, "_backward_kernel", Grid(lambda *a, **k: a[7].zero_()))
        patch.setattr(utils, "_fused_logprob_entropy", whole.selective_log_softmax_and_entropy, raising=False)
        patch.setattr(utils, "is_triton_available", lambda: True)
        patch.setattr(utils, "_supports_trl_loss_kernel", lambda *a, **k: True)
        patch.setitem(os.environ, "TQDM_DISABLE", "1")
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the CPU's attention takes a buffer for each thread
        yield
        torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=MODELS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    return written(MODELS[request.param], tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module", params=MIXTURES)
def mixture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    return written(MIXTURES[request.param], tmp_path_factory.mktemp(request.param))


def written(model: dict[str, Any], path: Path) -> tuple[dict[str, Any], Path]:
    """A small model and a tokenizer of one token for each word, in a folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    raw = {**model, **COMMON}
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**raw)).save_pretrained(path)
    words = {f"w{i}": i for i in range(VOCAB - 2)} | {"<eos>": VOCAB - 2, "<pad>": VOCAB - 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>").save_pretrained(path)
    return raw, path


def words(count: int, seed: int = 0) -> str:
    return " ".join(f"w{(i * 7 + seed) % 50 + 1}" for i in range(count))


def rows(objective: str, prompt: int, completion: int, count: int) -> list[dict[str, Any]]:
    """Examples of so many tokens; TRL adds the end of the text."""
    start, some = words(prompt) + " ", [words(completion - 1, 3 + i) for i in range(count)]
    if objective == "grpo":
        return [{"prompt": words(prompt)}] * count
    if objective == "kto":
        return [{"prompt": start, "completion": text, "label": bool(i % 2)} for i, text in enumerate(some)]
    return [{"prompt": start, "chosen": text, "rejected": words(completion - 1, 1)} for text in some]


def trainer(path: Path, objective: str, method: str, precision: str, checkpointing: str, lengths: tuple[int, int, int], **more: Any) -> Any:
    """TRL's trainer for an objective, prepared as `train()` does."""
    import trl
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig

    disable_progress_bars()
    prompt, completion, batch = lengths
    dtype, autocast = DTYPES[precision]
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(path)
    module = importlib.import_module("trl.experimental.orpo") if objective == "orpo" else trl
    name = {"reward": "Reward"}.get(objective, objective.upper())
    own: dict[str, Any] = {"max_length": prompt + completion}
    model: Any = str(path)
    if objective == "grpo":
        own = {"num_generations": 2, "max_completion_length": completion, "gradient_accumulation_steps": 2}
    if objective == "orpo":
        model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype))
    else:
        own["model_init_kwargs"] = {"dtype": dtype}
    args = getattr(module, f"{name}Config")(
        output_dir=str(path / "out"),
        per_device_train_batch_size=batch,
        bf16=autocast,
        gradient_checkpointing=checkpointing == "full",
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        dataloader_pin_memory=False,
        **own,
        **more,
    )
    task = "SEQ_CLS" if objective == "reward" else "CAUSAL_LM"
    lora = LoraConfig(r=RANK, target_modules="all-linear", task_type=task) if method == "lora" else None
    given: dict[str, Any] = {"reward_funcs": lambda completions, **_: [0.0] * len(completions)} if objective == "grpo" else {}
    data = Dataset.from_list(rows(objective, prompt, completion, 2 * batch))
    made = getattr(module, f"{name}Trainer")(
        model=model, args=args, train_dataset=data, processing_class=tokenizer, peft_config=lora, **given
    )
    if args.gradient_checkpointing:
        made.model.gradient_checkpointing_enable()
    made.model_wrapped = made.accelerator.prepare_model(made.model)
    made.model.train()
    made.current_gradient_accumulation_steps = args.gradient_accumulation_steps
    return made


def inputs(made: Any, objective: str, lengths: tuple[int, int, int]) -> Any:
    """A batch; GRPO's is what it would have generated and scored."""
    if objective != "grpo":
        return next(iter(made.get_train_dataloader()))
    prompt, completion, batch = lengths
    ids = {"prompt": torch.ones(batch, prompt, dtype=torch.long), "completion": torch.ones(batch, completion, dtype=torch.long)}
    scored = {f"{part}_{what}": tensor.clone() for part, tensor in ids.items() for what in ("ids", "mask")}
    scored |= {"advantages": torch.ones(batch), "num_items_in_batch": torch.tensor(float(batch * completion))}
    made._buffered_inputs = [scored, dict(scored)]
    return None


def held(run: Callable[[], object]) -> int:
    """Most bytes that the CPU allocator held at once while `run` ran, by torch's profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        kept = run()
    events = [(event.start_ns(), event.nbytes()) for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for _, nbytes in sorted(events, key=lambda event: event[0]):
        now += nbytes
        most = max(most, now)
    assert kept is not None
    return most


def stepped(made: Any, objective: str, lengths: tuple[int, int, int]) -> int:
    """What a step without gradients from before takes at most, after one that warmed up."""
    batch = inputs(made, objective, lengths)

    def step() -> Any:
        made._step = 1  # GRPO's: not one that generates
        return made.training_step(made.model_wrapped, batch, None) if objective == "grpo" else made.training_step(made.model_wrapped, batch)

    step()
    for parameter in made.model.parameters():
        parameter.grad = None
    return held(step)


def ours(raw: dict[str, Any], objective: str, method: str, precision: str, lengths: tuple[int, int, int], **more: Any) -> Any:
    prompt, completion, batch = lengths
    asked = {"lora": {"rank": RANK}} if method == "lora" else {}
    given = {"group_size": 2, "gradient_accumulation": 1, **more} if objective == "grpo" else more
    return estimate(
        raw,
        task="train",
        objective=objective,
        method=method,
        precision=precision,
        prompt_length=prompt,
        output_length=completion,
        micro_batch=batch,
        **{**asked, **given},
    )


def made_at(answer: Any, *moments: Moment) -> int:
    """Most that a step's own tensors take at one of `moments`."""
    own = ("saved activations", "activations", "gradients", "kv cache")
    return max(sum(item.nbytes for item in answer.ledger.items if moment in item.alive and item.path[0] in own) for moment in moments)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("recipe", RECIPES, ids="-".join)
def test_a_step_takes_what_trl_takes(
    saved: tuple[dict[str, Any], Path], recipe: tuple[str, str, str, str], lengths: tuple[int, int, int]
) -> None:
    raw, path = saved
    objective, method, precision, checkpointing = recipe
    real = stepped(trainer(path, objective, method, precision, checkpointing, lengths), objective, lengths)
    real -= RNG_STATE * raw["num_hidden_layers"] * (checkpointing == "full")
    answer = ours(raw, objective, method, precision, lengths, checkpointing=checkpointing)
    moments = (Moment.FORWARD, Moment.REFERENCE, Moment.LOSS, Moment.BACKWARD)
    assert made_at(answer, *moments) == pytest.approx(real, rel=0.005)


@pytest.mark.parametrize("recipe", [r for r in RECIPES if r[0] in ("dpo", "kto", "grpo")], ids="-".join)
def test_a_mixture_of_experts_takes_what_trl_takes(mixture: tuple[dict[str, Any], Path], recipe: tuple[str, str, str, str]) -> None:
    """With the loss that balances its routers."""
    test_a_step_takes_what_trl_takes(mixture, recipe, LENGTHS[1])


@pytest.mark.parametrize(
    ("method", "precision", "lengths"), [("full", "bf16", (300, 20, 4)), ("full", "bf16", (8, 120, 16)), ("lora", "fp32", (300, 20, 4))]
)
def test_generation_takes_what_transformers_takes(
    saved: tuple[dict[str, Any], Path], method: str, precision: str, lengths: tuple[int, int, int]
) -> None:
    """Of the completions of two passes together: most at the prompts, and most at the last token (which some of them reach).

    Adapters in fp32 over bf16 are not judged: a CPU adds tensors of two dtypes by way of a copy. The head is told to train, as a CPU would
    copy the matrix of a frozen one for each sequence.
    """
    raw, path = saved
    prompt, _, batch = lengths
    made = trainer(path, "grpo", method, precision, "full", lengths)
    made.model.get_output_embeddings().weight.requires_grad_(True)
    prompts = [[1] * prompt] * (2 * batch)
    real = held(lambda: made._generate_single_turn(prompts, None, {}, 2))
    answer = ours(raw, "grpo", method, precision, lengths, gradient_accumulation=2)
    assert made_at(answer, Moment.GENERATE) == pytest.approx(real, rel=0.005)
