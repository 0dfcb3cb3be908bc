"""What the fault tests found, one JSON line each, for `docs/reliability.md`.

Nothing is written unless FTBUILD_FAULT_REPORT names a file; `reliability.py` makes the page of it.
"""

import json
import os
from typing import Any

_PATH = os.environ.get("FTBUILD_FAULT_REPORT")  # read now: fixtures clear such variables


def report(row: str, fault: str, **found: Any) -> None:
    """Note what a test found for one row of the fault table.

    `fired`: how many faults happened; `bad`: how many did harm; `control_red`: whether the test
    finds harm where the product is broken on purpose.
    """
    if _PATH:
        with open(_PATH, "a", encoding="utf-8") as file:
            file.write(json.dumps({"row": row, "fault": fault, **found}) + "\n")
