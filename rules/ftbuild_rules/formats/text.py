"""Format `text`, also called `completion`: plain text, all of which is trained on.

{"text": "Once upon a time there was a build system."}
"""

from typing import Any

from ftbuild_rules.formats._words import BadRow
from ftbuild_rules.formats._words import text as as_text

FORM = "text"
COLUMNS = ("text",)
NEEDED = ("text",)
ALIASES = {"text": ("completion", "content")}


def normalise(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row's text.

    Raises:
        BadRow: it is empty or no text.
    """
    text = as_text(row["text"], "`text`")
    if not text.strip():
        raise BadRow("E0813", "`text` is empty", "write a text, or remove the row")
    return {"text": text}
