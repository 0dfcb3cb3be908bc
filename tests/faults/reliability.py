"""Make docs/reliability.md of what the fault tests found.

    FTBUILD_FAULT_REPORT=faults.jsonl pytest tests/faults tests/remote tests/engine tests/cli
    python tests/faults/reliability.py faults.jsonl

`FTBUILD_FAULTS=all` fires at every point instead of a sample.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
ROWS = {
    "1": "kill -9 at any system call",
    "2": "a power cut: what was not made durable is lost",
    "3": "a write that is cut short",
    "4": "a full disk",
    "5": "no inodes left",
    "6": "a failing system call: EIO, ENOSPC",
    "7": "a failing fsync",
    "8": "a flipped bit in each object",
    "9": "truncated, empty and swapped blobs",
    "10": "a damaged record",
    "11": "a damaged stat cache",
    "12": "a store that may only be read",
    "13": "a store that is deleted during a build",
    "14": "gc while a writer is frozen",
    "15": "a store of another format",
    "16": "SIGINT, SIGTERM",
    "17": "a step that is killed, as by a machine without memory",
    "18": "an interrupted training",
    "19": "several builds on one store",
    "20": "the same where locks do nothing",
    "21": "a lease of a dead process",
    "23": "a time in the future",
    "24": "an edit during the build",
    "25": "an edit that keeps size and mtime",
    "26": "names that are one name elsewhere",
    "27": "names with spaces, newlines, dashes, 255 bytes",
    "31": "a server that lies: truncated, garbage, too long, another range, …",
    "32": "something else in the place of an answer: a login page, 204",
    "33": "a server that fails or refuses: 403, 413, 500, 503, 507, …",
    "34": "a server that hangs or dribbles",
    "35": "a body without end, or that unpacks to one",
    "36": "damaged and missing objects of a remote store",
    "37": "no server at all",
    "38": "a transfer killed half way",
    "39": "two writers of one key",
    "40": "a poisoned record under the right key",
    "41": "a signature that is not of the record, or of an unknown key",
    "42": "secrets in environment, addresses, sources, settings",
    "43": "redirects to somewhere else",
    "44": "no TLS, or nobody who vouches for it",
    "46": "pickles, which run code",
    "47": "code that a model brings",
    "48": "chat templates that reach out or never end",
    "49": "steps that read what they did not declare",
    "51": "links that lead out",
    "52": "names that lead out",
    "53": "project files that are bombs",
    "54": "rows without end",
    "55": "SQL that writes",
    "57": "text that acts on a terminal or a CI runner",
    "61": "a branch that moves",
}
HEAD = """\
# Reliability

What was done to ftbuild, and what came of it. Each line is a test that makes a fault happen,
counts how often it really did, and looks for harm: an object whose bytes are not what its name
says, a record without its bytes, finished work that is done again, a build that does not end
right afterwards. The control is the same test on a product that is broken on purpose (no fsync,
writing in place, no verification, locks alone): it has to find harm there, or the test proves
nothing.

This page is written by `tests/faults/reliability.py` from the results of a run; its docstring
says how. The pull requests' run fires at a sample of the points, which moves; the nightly one at
all of them.

| fault | as | fired | harm | control finds harm |
| --- | --- | --- | --- | --- |
"""


def page(reports: Iterable[Mapping[str, Any]]) -> str:
    """Return the page for the reports of one run."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for report in reports:
        key = (report["row"], report["fault"].partition(": ")[0])
        entry = found.setdefault(key, {"fired": 0, "bad": 0, "control": None})
        entry["fired"] += report.get("fired", 0)
        entry["bad"] += report.get("bad", 0)
        if "control_red" in report:
            entry["control"] = report["control_red"]
    lines = []
    for row in ROWS:
        named = {fault: entry for (of, fault), entry in found.items() if of == row}
        controls = [e["control"] for e in named.values() if e["control"] is not None]
        # One control stands for all forms of a fault: what it breaks is the product.
        control = "-" if not controls else "yes" if all(controls) else "NO"
        for fault, entry in sorted(named.items()):
            if entry["fired"]:
                lines.append(
                    f"| {ROWS[row]} | {fault} | {entry['fired']:,} | {entry['bad']} | {control} |"
                )
    return HEAD + "\n".join(lines) + "\n"


def main(path: str) -> None:
    """Write the page from a file of reports."""
    reports = [json.loads(line) for line in Path(path).read_text().splitlines()]
    PAGE.write_text(page(reports), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
