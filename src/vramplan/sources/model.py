"""A model as it was found: its config, its file header where there is one, where both came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .stored import StoredTensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Model:
    """`config` is a config.json (for GGUF, one made of its metadata); `stored` the tensors of its files, which decide over the config.

    `named_format` is the number format that only the model's name tells.
    """

    id: str
    config: Mapping[str, object]
    origin: str
    stored: tuple[StoredTensor, ...] | None = None
    gguf: bool = False
    context_length: int | None = None
    notes: tuple[str, ...] = field(default=())
    named_format: str | None = None

    @property
    def text(self) -> Mapping[str, object]:
        """The config of its language model: `text_config` (or `llm_config`) where there is one, over the config itself."""
        for key in ("text_config", "llm_config"):
            nested = self.config.get(key)
            if isinstance(nested, dict):
                return {**self.config, **nested}
        return self.config

    @property
    def dtype(self) -> str:
        """The dtype that its unquantised weights are stored in: `dtype` or `torch_dtype`, bf16 where the config is silent."""
        named = self.config.get("dtype") or self.config.get("torch_dtype") or self.text.get("dtype") or self.text.get("torch_dtype")
        return {"float32": "fp32", "float16": "fp16"}.get(str(named).removeprefix("torch."), "bf16")

    @property
    def mtp_layers(self) -> int:
        """Multi-token-prediction layers that ship with the checkpoint; engines load them only to draft tokens."""
        counts = (self.text.get(key) for key in ("num_nextn_predict_layers", "mtp_num_hidden_layers", "mtp_transformer_layers"))
        return next((n for n in counts if isinstance(n, int) and n > 0), 0)
