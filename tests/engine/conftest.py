"""A workspace of toy rules and shell commands as a fixture."""

from pathlib import Path

import pytest

from engine.space import Space


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Space:
    """An empty workspace; its store is its own, and the caller's environment plays no part."""
    for name in ("FTBUILD_JOBS", "FTBUILD_COLOR", "FTBUILD_PROGRESS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FTBUILD_CACHE", str(tmp_path / "store"))
    root = tmp_path / "space"
    root.mkdir()
    return Space(root, tmp_path / "store")
