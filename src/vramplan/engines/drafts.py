"""What proposes tokens beside the model that accepts them: another model, the model's own MTP layers, or its text so far (n-grams).

EAGLE's drafts are eagle.py's. What it does not know: drafts in other formats than their own floats.
"""

from __future__ import annotations

from dataclasses import replace

from ..dim import Dim
from ..errors import BadInput, Unknown
from ..formats import scheme
from ..kernels import Kernels
from ..tape import Tape
from ..tensors import Weight
from .eagle import as_llama, generation, in_place
from .job import Job


def draft(job: Job) -> Job | None:
    """The job of the scenario's draft model; None without one. Raises BadInput where its vocabulary is another, Unknown if quantised."""
    model = job.draft
    if model is None:
        return None
    if "quantization_config" in model.config or model.stored is not None:
        raise Unknown(f"draft_model {model.id}: quantised or stored drafts are not estimated by this version")
    if generation(model):
        model = as_llama(model)
    ours, theirs = job.model.text.get("vocab_size"), model.text.get("vocab_size")
    if ours != theirs:
        raise BadInput(f"draft_model {model.id}: its vocabulary ({theirs}) is not that of {job.model.id} ({ours})")
    asked = replace(job.scenario, weights=None, draft_model=None, lora=None)
    return replace(job, scenario=asked, model=model, draft=None, scheme=scheme(model.dtype, dtype=model.dtype))


def passed(helper: Job, tokens: int, kernels: Kernels) -> Tape:
    """The pass of the draft of `helper` over `tokens`."""
    tape = helper.tape(sequences=1, tokens=tokens, kernels=kernels, itemsize=helper.itemsize)
    return in_place(tape, helper.model) if generation(helper.model) else tape


def own_layers(job: Job, tape: Tape) -> Tape:
    """The model's MTP layers as one of the ranks of `tape` has them: each its last layer again, and [hidden, 2 · hidden] before it.

    Embeddings and head are the model's. Raises BadInput where it ships none. Source: DeepSeekMultiTokenPredictorLayer and
    Qwen3NextMultiTokenPredictor, vLLM 0.21.0 models/deepseek_mtp.py, models/qwen3_next_mtp.py; `_maybe_share_lm_head`, v1/spec_decode/.
    """
    count, hidden = job.model.mtp_layers, job.model.text.get("hidden_size")
    if not count or not isinstance(hidden, int):
        raise BadInput(f"draft_model mtp: {job.model.id} has no layers for multi-token prediction")
    depth = 1 + max(max(w.layers) for w in tape.weights if w.layers and not w.tower)
    more = tuple(range(depth, depth + count))
    width = Dim(hidden, "hidden")
    joined = Weight(name="mtp.{i}.eh_proj.weight", shape=(width, 2 * width), kind="norm", part="projection", layers=more)
    weights = [replace(w, layers=more) for w in tape.weights if w.layers and not w.tower and depth - 1 in w.layers]
    caches = [replace(c, layers=more) for c in tape.caches if c.tower is None and depth - 1 in c.layers]
    return replace(tape, weights=[*weights, joined], caches=caches)


def with_draft(tape: Tape, draft: Tape) -> Tape:
    """`tape` with the caches of `draft` as further layers."""
    first = 1 + max((max(cache.layers) for cache in tape.caches), default=0)
    caches = [replace(cache, layers=tuple(first + i for i in cache.layers)) for cache in draft.caches if cache.tower is None]
    return replace(tape, caches=[*tape.caches, *caches])
