"""A workspace of toy rules and shell commands as a fixture."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.space import Space, new_space


@pytest.fixture
def space(tmp_path: Path) -> Iterator[Space]:
    """An empty workspace; its store is its own, and the caller's environment plays no part."""
    with new_space(tmp_path) as found:
        yield found
