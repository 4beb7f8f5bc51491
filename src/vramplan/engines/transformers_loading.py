"""How transformers loads weights: what stays packed, what is unpacked for want of a kernel, what loading takes beside them.

What it does not know: buffers of GPTQModel's kernels and of ExLlama's for checkpoints with act-order, weights that are kept in two
layouts, and which other checkpoints store a tied head a second time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..dim import numel
from ..formats import Scheme, scheme_from_config
from ..formats import scheme as named_scheme
from ..ledger import Item, Moment
from ..methods import Frozen
from ..ops.packed import Packed
from ..tape import Tape
from ..tensors import Method
from .job import Job, release
from .lines import SERVING
from .train.loading import being_loaded

BITSANDBYTES = ("nf4", "fp4", "int8")
NEEDS = {
    "mxfp4": ((7, 5), "transformers 5.23 quantizers/quantizer_mxfp4.py, validate_environment"),
    "fp8": ((8, 9), "transformers 5.23 quantizers/quantizer_finegrained_fp8.py, validate_environment"),
}
"""Compute capability below which a checkpoint of this format is unpacked to 16 bits."""
UNTIED_AWQ = (4, 47)
"""Before this release (December 2024) checkpoints were of AutoAWQ to 0.2.6, which copies every tensor as it saves (awq/models/base.py,
save_quantized), a tied head too; 0.2.7 of November 2024 leaves it out (`shared_tensors_to_discard`)."""
AUTO_GPTQ = (4, 48)
"""Before this release (January 2025) GPTQ is AutoGPTQ's, whose default for 4 bits is ExLlama's kernel; then GPTQModel's came."""
KERNELS = "MXFP4 stays packed: needs triton and the package kernels, without which it is unpacked to bf16 (weights bf16)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """`scheme`: which format each weight has on the GPU; `packed`: how products with bitsandbytes' run; `stacked`: experts are one;
    `doubled`: the checkpoint has a tied head beside its embedding; `exllama`: ExLlama's kernel of AutoGPTQ runs it.
    """

    scheme: Scheme
    packed: Packed | None
    stacked: bool
    itemsize: int
    doubled: bool = False
    exllama: bool = False
    assumed: tuple[str, ...] = ()

    @property
    def method(self) -> Method | None:
        """What the tape asks of its linear layers."""
        return Frozen(base=self.packed) if self.packed else None

    def items(self, tape: Tape) -> list[Item]:
        """What loading takes."""
        method = self.method
        converted = [w for w in tape.weights if (self.stacked and w.kind == "experts") or (method and method.packed(w))]
        head = [self._head(tape)] if self.doubled else []
        return [being_loaded(converted, self.itemsize), *head, *([self._dequantised(tape)] if self.exllama else [])]

    def _head(self, tape: Tape) -> Item:
        """A tied head that is stored, too: a matrix of its own until `from_pretrained` ties it, which frees it before buffers come."""
        head = sum(numel(weight.shape) for weight in tape.weights if weight.tied)
        buffers = sum(weight.numel for weight in tape.weights if weight.kind == "buffer")
        nbytes = max(head - buffers, 0) * self.itemsize
        source = "transformers 4.46.0 modeling_utils.py, from_pretrained: tie_weights after _load_pretrained_model, then dispatch_model"
        why = "the head as AutoAWQ to 0.2.6 stored it, beside the embedding that it is tied to, while buffers are not there yet"
        return Item(path=("load", "stored head"), nbytes=nbytes, alive=frozenset({Moment.LOAD}), why=why, source=source)

    def _dequantised(self, tape: Tape) -> Item:
        """ExLlama's buffer for the largest matrix in fp16, which long prompts multiply by way of cuBLAS."""
        packed = [w for w in tape.weights if self.scheme.format_of(w, w.layers[0] if w.layers else None).name.startswith("gptq 4-bit")]
        nbytes = max((numel(weight.shape) for weight in packed), default=0) * 2
        source = "AutoGPTQ 0.7.1 auto_gptq/modeling/_utils.py autogptq_post_init, temp_dq"
        why = "the largest packed matrix in fp16, kept"
        return Item(path=("workspace", "ExLlama"), nbytes=nbytes, alive=SERVING, why=why, source=source)

    def copies_experts(self, tape: Tape) -> bool:
        """Whether the decode copies the chosen experts' matrices: plain ones (`ops/moe_batched.py`), others have kernels of their own."""
        experts = [w for w in tape.weights if w.kind == "experts" and len(w.shape) == 2]
        return bool(experts) and not any(self.scheme.format_of(w, w.layers[0] if w.layers else None).extras for w in experts)


def loading(job: Job, version: str, *, stacked: bool) -> Loading:
    """How the release at hand loads the job's weights; it is `stacked` experts that bitsandbytes leaves in 16 bits."""
    name = job.scheme.name.lower()
    base, *options = name.split("-")
    own = _own(job) if job.scenario.weights is None else {}
    if base in BITSANDBYTES:
        scheme = named_scheme(name + "-stacked", dtype=job.model.dtype) if stacked else job.scheme
        packed = _packed(job, base, double="double" in options, head="head" in options)
        return Loading(scheme=scheme, packed=packed, stacked=stacked, itemsize=job.itemsize)
    if base == "bitsandbytes":
        kind = str(own.get("bnb_4bit_quant_type", "fp4")) if own.get("load_in_4bit") else "int8"
        packed = _packed(job, kind, double=bool(own.get("bnb_4bit_use_double_quant")), head=False)
        return Loading(scheme=job.scheme, packed=packed, stacked=stacked, itemsize=job.itemsize)
    unpacked = _unpacked(job, base)
    if unpacked:
        scheme = named_scheme(job.model.dtype, dtype=job.model.dtype)
        return Loading(scheme=scheme, packed=None, stacked=stacked, itemsize=job.itemsize, assumed=(unpacked,))
    if base == "gptq" and release(version) < AUTO_GPTQ:
        return Loading(scheme=_with_zeros(job, own), packed=None, stacked=stacked, itemsize=job.itemsize, exllama=True)
    assumed = (KERNELS,) if base == "mxfp4" else ()
    doubled = base == "awq" and release(version) < UNTIED_AWQ
    stacked = stacked and base != "mxfp4"
    return Loading(scheme=job.scheme, packed=None, stacked=stacked, itemsize=job.itemsize, doubled=doubled, assumed=assumed)


def _with_zeros(job: Job, own: dict[str, Any]) -> Scheme:
    """AutoGPTQ's layers keep zero points and `g_idx` of symmetric weights, too (nn_modules/qlinear/qlinear_exllama.py at 0.7.1)."""
    if own:
        return scheme_from_config({**own, "sym": False}, dtype=job.model.dtype)
    name = job.scheme.name.lower()
    return named_scheme(name if "asym" in name else f"{name}-asym", dtype=job.model.dtype)


def _packed(job: Job, kind: str, *, double: bool, head: bool) -> Packed:
    return Packed(kind=kind, compute=job.itemsize, double=double, half=job.dtype == "fp16", head=head)


def _own(job: Job) -> dict[str, Any]:
    """The checkpoint's own `quantization_config`."""
    found = job.model.config.get("quantization_config")
    return found if isinstance(found, dict) else {}


def _unpacked(job: Job, base: str) -> str:
    """Why a checkpoint's format is unpacked to 16 bits on this GPU; nothing where it is not."""
    if base not in NEEDS or job.gpu is None or job.gpu.compute_capability is None:
        return ""
    least, source = NEEDS[base]
    major, _, minor = job.gpu.compute_capability.partition(".")
    if (int(major), int(minor or 0)) >= least:
        return ""
    return f"{base} is unpacked to {job.model.dtype}: its kernels need compute capability {least[0]}.{least[1]} ({source})"
