"""fp32 master weights beside 16-bit ones: what a wrapper of an optimizer keeps for them, in bytes per element of a trained weight.

The 16-bit weight (2) and its fp32 master (4) are always there, and the optimizer's states are like the master. The wrappers differ in what
becomes of gradients. Over n data-parallel ranks `MASTER`, `cast` and `stepped` are of a rank's share; the others are of all weights.
"""

from __future__ import annotations

from dataclasses import dataclass

MASTER = 4
"""Bytes of a master weight's element."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Master:
    """`buffer`: gradients that backward adds into, always there; `own`: a weight's own gradient, from backward to the step, or for good
    where it is `zeroed`; `cast`: what the step makes of them while they are there; `stepped`: fp32 gradients while the optimizer steps.
    `early`: the states are made with the wrapper, not in the first step. `apart`: the optimizer's tensors are stepped one after another.
    """

    buffer: int = 0
    own: int = 0
    zeroed: bool = False
    cast: int = 0
    stepped: int = 0
    early: bool = False
    apart: bool = False
    source: str

    def step(self, elements: int, inner: int) -> int:
        """Most bytes that the step takes beside buffer and own gradients, where the optimizer itself takes `inner`."""
        return max(self.cast * elements, (self.stepped - (0 if self.zeroed else self.own)) * elements + inner, 0)


DEEPSPEED = Master(own=2, cast=8, stepped=4, early=True, source="DeepSpeed at edaa722 runtime/fp16/fused_optimizer.py, step")
"""FP16_Optimizer, which bf16 without ZeRO takes too: all gradients in fp32 (`p.grad.to(data_type)`), and again as one flat tensor."""

ZERO = Master(own=2, cast=6, stepped=4, apart=True, source="DeepSpeed at edaa722 runtime/zero/stage_1_and_2.py, step")
"""ZeRO 1 and 2: a flat copy of the rank's gradients in 16 bits, and of that one in fp32. Under ZeRO-2 `own` is of the rank's share too."""

ZERO_3 = Master(buffer=2, cast=6, stepped=4, apart=True, source="DeepSpeed at edaa722 runtime/zero/stage3.py, step")
"""ZeRO 3: parts of gradients lie in one buffer for good; the step makes a flat copy of a sub-group's, and of that one in fp32."""

ZERO_FP32 = Master(buffer=4, own=2, zeroed=True, source="DeepSpeed at edaa722 runtime/bf16_optimizer.py")
"""BF16_Optimizer: ZeRO-1 with `gradient_accumulation_dtype` fp32, and pipelines. Own gradients are zeroed and stay (`clear_lp_grads`)."""

MEGATRON = Master(buffer=4, source="Megatron-LM at d98e8a6 core/optimizer/optimizer.py, core/distributed/param_and_grad_buffer.py")
"""`main_grad` in fp32 (the default with bf16), which `.float()` does not copy: 18 bytes per parameter in all, 6 + 12/n distributed."""

PRECISION_AWARE = Master(buffer=2, source="Megatron-LM at d98e8a6 core/optimizer/optimizer_config.py, use_precision_aware_optimizer")
"""Its optimizer reads 16-bit gradients as they are, and keeps of each master only what the 16-bit weight lacks (`REMAINDER`). States in 16
bits are stepped on in place since TransformerEngine 2.13; before, the step made copies in fp32 of all of them, which are not in it."""
REMAINDER = 2
"""Bytes of a master weight's other half (`store_param_remainders`, TransformerEngine 2.9 `pytorch/optimizers/fused_adam.py`)."""

MEGATRON_BF16 = Master(buffer=2, cast=4, stepped=4, source="Megatron-LM at d98e8a6 core/optimizer/optimizer.py")
"""With `--grad-reduce-in-bf16`: the step makes fp32 gradients (`_copy_model_grads_to_main_grads`)."""
