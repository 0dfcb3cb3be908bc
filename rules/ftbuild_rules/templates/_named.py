"""The chat templates of the pack by name: the file `chatml.jinja` is `chatml`.

Each writes what the published template of its family writes, and marks what the assistant says
with its end token, so that masks are exact. One that has no form for a role, for tools or for
tool calls refuses them instead of leaving them out.
"""

from pathlib import Path

_SAME = {
    "deepseek": "deepseek-v3",
    "gemma2": "gemma",
    "gpt-j": "plain",
    "llama3.2": "llama3.1",
    "llama3.3": "llama3.1",
    "mixtral": "mistral-v1",
    "phi3.5": "phi3",
    "pythia": "plain",
}
"""Other names of a template."""


def templates() -> dict[str, str]:
    """Return the text of each."""
    files = sorted(Path(__file__).parent.glob("*.jinja"))
    texts = {file.name.removesuffix(".jinja"): file.read_text("utf-8") for file in files}
    return texts | {name: texts[other] for name, other in _SAME.items()}
