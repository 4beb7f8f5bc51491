"""ggml's block types: how many elements share a block, and how many bytes the block takes.

Knows the layouts of single tensors, as GGUF files and llama.cpp's KV cache hold them. Which tensor of a model gets which type is a
file type's rule (gguf_mixtures.py), not a block type's.
"""

from __future__ import annotations

from functools import cache

from . import Format

BLOCKS: dict[str, tuple[int, int]] = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "F64": (1, 8),
    "I8": (1, 1),
    "I16": (1, 2),
    "I32": (1, 4),
    "I64": (1, 8),
    "Q1_0": (128, 18),
    "Q2_0": (64, 18),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "Q8_1": (32, 36),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
    "Q8_K": (256, 292),
    "IQ1_S": (256, 50),
    "IQ1_M": (256, 56),
    "IQ2_XXS": (256, 66),
    "IQ2_XS": (256, 74),
    "IQ2_S": (256, 82),
    "IQ3_XXS": (256, 98),
    "IQ3_S": (256, 110),
    "IQ4_NL": (32, 18),
    "IQ4_XS": (256, 136),
    "TQ1_0": (256, 54),
    "TQ2_0": (256, 66),
    "MXFP4": (32, 17),
    "NVFP4": (64, 36),
}
"""GGUF type -> (elements, bytes) of a block. A row's length must be a multiple of the elements.

Source: gguf 0.19.0 `GGML_QUANT_SIZES`; ggml's own ggml-common.h for Q2_0, newer than that package (`block_q2_0`: an f16 and 64 × 2 bits;
PrismML's fork packs 128 under the same id), and for Q8_1, which only activations use (`block_q8_1`: two f16 and 32 int8 = 36 bytes, where
gguf-py says 40).
"""

TYPE_IDS: dict[int, str] = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    6: "Q5_0",
    7: "Q5_1",
    8: "Q8_0",
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    30: "BF16",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
    40: "NVFP4",
    41: "Q1_0",
    42: "Q2_0",
}
"""ggml type id -> name. Ids that ggml has withdrawn (4, 5, 31-33, 36-38) are left out: no current program reads them.

Source: ggml.h `enum ggml_type` in llama.cpp at 007dbbf3f; gguf 0.19.0 `GGMLQuantizationType` for all but 42.
"""


@cache
def block_type(name: str) -> Format:
    """The layout of the GGUF type `name`: whole blocks along a row and nothing else.

    >>> block_type("Q4_K").nbytes(4096, 4096) * 8 / 4096**2
    4.5
    """
    block, nbytes = BLOCKS[name]
    return Format(name=name, block=block, block_bytes=nbytes)
