"""Coverage-guided fuzzing of the three readers: `python tests/fuzz/fuzz_readers.py config|gguf|safetensors [-max_total_time=SECONDS]`.

Needs `pip install atheris`, which the test suite does not. Fails on any exception but BadInput, on tensors that do not fit into the file,
and (by libFuzzer's own limits, which may be given as further options) on inputs that take more than 10 s or 1 GB. The seeds are small
well-formed files; pytest fuzzes the same readers without guidance in tests/sources/test_fuzz.py.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "sources"))
from reader_samples import SEEDS, ranges, safetensors


def target(kind: str) -> Callable[[bytes], None]:
    """What is run on every input. Imports the readers, so that atheris can have instrumented them."""
    from vramplan.errors import BadInput
    from vramplan.sources.gguf import read_gguf
    from vramplan.sources.local import parse_config
    from vramplan.sources.safetensors import read_safetensors
    from vramplan.sources.stored import Header

    readers = {"gguf": read_gguf, "safetensors": read_safetensors}

    def check(data: bytes, size: int | None) -> None:
        try:
            header = readers[kind](ranges(data), size, "x") if kind in readers else parse_config(data, "x")
        except BadInput as error:
            refusal = str(error)
        else:
            refusal = ""
            if isinstance(header, Header) and size is not None:
                assert sum(tensor.nbytes for tensor in header.tensors) <= size
        assert refusal.isprintable()

    def run(data: bytes) -> None:
        for form in (data, safetensors(data)) if kind == "safetensors" else (data,):  # safetensors: with its true length before it
            check(form, len(form))
            check(form, None)

    return run


def main() -> None:
    import atheris

    kind = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if kind not in SEEDS:
        sys.exit(__doc__)
    with atheris.instrument_imports(include=["vramplan", "json"]):
        run = target(kind)
    with tempfile.TemporaryDirectory() as corpus:
        for i, seed in enumerate(SEEDS[kind]):
            Path(corpus, f"seed{i}").write_bytes(seed)
        atheris.Setup([sys.argv[0], "-timeout=10", "-rss_limit_mb=1024", *sys.argv[1:], corpus], run)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
