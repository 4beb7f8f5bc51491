"""torchtitan's models: what each has beside Llama 3's kernels, and how tensor parallelism can split it.

Qwen3's files are `models/qwen3/model/model.py` and `models/moe/`, DeepSeek's `models/deepseek_v3/` (torchtitan 0.2.2), with SDPA in place
of FlexAttention. Not here: experts' matrices in slices (expert_tensor_parallel_degree); a head that is the embedding, whose matrix FSDP
would have to share between two units; Llama 4, GPT-OSS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ...errors import BadInput, Unknown
from ...ledger import Item, Moment
from ...parallel.sharded import SOURCE as SHARDED
from ...parallel.stage import depth_of
from ...tape import Tape
from ..job import Job
from .recipe import Framework, Recipe
from .stepping import LOADED

MODELS = ("llama", "qwen3", "qwen3_moe", "deepseek_v2", "deepseek_v3")
"""Model types that are described, as checkpoints name them."""
PASS = frozenset({Moment.FORWARD, Moment.LOSS, Moment.BACKWARD})
EXPERTS = ("qwen3_moe", "deepseek_v2", "deepseek_v3")
LATENT = ("deepseek_v2", "deepseek_v3")
KEPT = ("q_proj", "kv_b_proj", "attention", "gate_proj", "down_proj")
KEPT_WITH_LATENT_QUERIES = ("q_a_proj", "kv_a_proj_with_mqa", "attention", "o_proj", "up_proj")
"""Results that `selective_ac_option = "op"` keeps of DeepSeek's: attention's, and every second product's, from the first on, of the
queries' and latents' projections, those of o, and gate, up and down of the dense or the shared MLP. The router's is neither kept nor
counted, and experts' grouped products are no `mm` (0.2.2 `models/deepseek_v3/infra/parallelize.py`, _op_sac_save_list;
`config/job_config.py`, per_op_sac_force_recompute_mm_shapes_by_fqns)."""
EXCHANGED = (".received", ".returned")
"""Rows of experts that other ranks have, before and after: DeepSeek's list has all_to_all_single too, Qwen3's has not."""
SOURCE = "torchtitan 0.2.2 models/qwen3/model/model.py"


def known(job: Job) -> None:
    """Raises Unknown for models, and what is asked of them, that are not described; BadInput for degrees that torchtitan refuses."""
    s, kind = job.scenario, job.model.config.get("model_type")
    tensor, context = s.tensor_parallel or 1, s.context_parallel or 1
    if kind not in MODELS:
        raise Unknown(f"engine 'torchtitan': its Llama 3, Qwen3 and DeepSeek-V3 are described, not its model for {kind!r}")
    if kind in LATENT and context > 1:
        raise Unknown(f"context_parallel {context} of torchtitan's {kind} is not estimated; its Llama 3's is")
    if kind != "llama" and job.model.text.get("tie_word_embeddings"):
        raise Unknown(f"{job.model.id}: in torchtitan's Qwen3 a head that is the embedding is not estimated; 8B and larger have their own")
    if kind in EXPERTS and (tensor > 1 or s.compile):
        raise Unknown(f"{'compile' if s.compile else 'tensor_parallel'} with torchtitan's experts is not estimated; sharding fsdp is")
    if kind in EXPERTS and s.precision in ("fp32", "fp8-mixed"):
        raise Unknown(f"precision {s.precision!r} with torchtitan's experts, whose products are in bf16, is not estimated; bf16-mixed is")
    _spreads(job, s.expert_parallel or 1)
    if s.sequence_parallel is False:
        raise BadInput("sequence_parallel false: torchtitan's tensor parallelism always splits tokens too; leave it out")
    if tensor > 1:
        _splits(job, tensor)


def _spreads(job: Job, degree: int) -> None:
    """Raises BadInput where ranks cannot share experts out (0.2.2 `distributed/parallel_dims.py`), Unknown for what is not estimated."""
    s, ranks = job.scenario, job.scenario.gpu_count or 1
    if ranks % degree:
        near = min((n for n in range(1, ranks + 1) if ranks % n == 0), key=lambda n: abs(n - degree))
        raise BadInput(f"expert_parallel {degree}: it must divide the {ranks} GPUs; the nearest is {near}")
    if degree > 1 and (s.sharding not in (None, "fsdp") or s.offload):
        raise Unknown(f"expert_parallel {degree} with {'offload' if s.offload else f'sharding {s.sharding!r}'} is not estimated; fsdp is")


def own(framework: Framework, text: Mapping[str, object]) -> Framework:
    """The framework with the kernels of a model whose config is `text`.

    DeepSeek's rotates as Llama's does. Qwen3 rotates halves, by cosines and sines that each layer casts (apply_rotary_emb), of a table that
    is there all the time.
    """
    kind, kernels = text.get("model_type"), framework.kernels
    if kind == "llama":
        return framework
    if kind in LATENT:
        kept = KEPT_WITH_LATENT_QUERIES if text.get("q_lora_rank") else KEPT
        return replace(
            framework,
            kernels=lambda recipe: replace(kernels(recipe), experts="reordered", expert_ranks=recipe.expert),
            selective=lambda op: op.name.endswith((*kept, *EXCHANGED)),
        )
    return replace(
        framework,
        kernels=lambda recipe: replace(kernels(recipe), rope="eager", rotary="own", experts="reordered", expert_ranks=recipe.expert),
        stays=_rotary_tables,
    )


def _rotary_tables(tape: Tape, recipe: Recipe) -> list[Item]:
    """Cosines and sines of all positions, in fp32 (precompute_rope_cache); FSDP casts them for each layer, which keeps its copy though it
    is checkpointed (pytorch 2.13 `distributed/fsdp/_fully_shard/_fsdp_state.py`, cast_forward_inputs). Else the tape has its tokens' own.
    """
    one = recipe.length * 2 * int(tape.caches[0].shape[-1])
    why = f"{recipe.length} positions × 2 × head_dim × 4 B"
    table = Item(path=("weights", "rotary tables"), nbytes=one * 4, alive=LOADED, why=why, source=SOURCE)
    cast = depth_of(tape) * one * recipe.mixed.compute * bool(recipe.sharing.shares and recipe.mixed.compute < 4)
    known = int(tape.tokens) if recipe.checkpointing == "none" else 0
    nbytes, why = cast * (recipe.length - known) // recipe.length, "each layer's copy of the rotary tables, in the computing precision"
    return [table, Item(path=("saved activations", "rotary tables"), nbytes=nbytes, alive=PASS, why=why, source=SHARDED)]


def _splits(job: Job, degree: int) -> None:
    """Raises BadInput where torchtitan's plan can't split the model or the sequence, Unknown where what it does is not known
    (0.2.2 `models/llama3/infra/parallelize.py`, `distributed/utils.py` maybe_enable_amp).
    """
    s, text, ranks = job.scenario, job.model.text, job.scenario.gpu_count or 1
    if s.compile or s.precision == "fp8-mixed":
        raise Unknown(f"tensor_parallel {degree} with {'compile' if s.compile else 'fp8-mixed'}: estimated without")
    context, length = s.context_parallel or 1, s.sequence_length or min(2048, job.model.context_length or 2048)
    heads = text.get("num_attention_heads")
    sizes = {
        "attention heads": heads,
        "kv heads": text.get("num_key_value_heads") or heads,
        "ffn": text.get("intermediate_size"),
        "vocabulary": text.get("vocab_size"),
        f"sequence_length of {context} ranks" if context > 1 else "sequence_length": length / context,
    }
    counted = {name: size for name, size in sizes.items() if isinstance(size, int | float)}
    work = [n for n in range(1, ranks + 1) if ranks % n == 0 and not any(size % n for size in counted.values())]
    for name, size in counted.items():
        if size % degree:
            near = " and ".join(str(n) for n in sorted(work, key=lambda n: abs(n - degree))[:2])
            raise BadInput(f"tensor_parallel {degree}: {name}, {size:,.0f}, must divide by it; the nearest that work are {near}")
    if ranks == degree and (s.precision or "bf16-mixed") != "fp32":
        why = "torchtitan has mixed precision with FSDP only"
        raise BadInput(f"tensor_parallel {degree} on {ranks} GPUs: {why}; add GPUs, or precision fp32")
