"""The chat templates of the pack by name: the file `chatml.jinja` is `chatml`."""

from pathlib import Path


def templates() -> dict[str, str]:
    """Return the text of each."""
    files = sorted(Path(__file__).parent.glob("*.jinja"))
    return {file.stem: file.read_text("utf-8") for file in files}
