"""Make docs/reliability.md of what the fault tests found.

    FTBUILD_FAULT_REPORT=faults.jsonl pytest
    python tests/faults/reliability.py faults.jsonl

`FTBUILD_FAULTS=all` fires at every point instead of a sample.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
PARTS = {
    "Crashes and disks": {
        "1": "kill -9 at any system call",
        "2": "a power cut: what was not made durable is lost",
        "3": "a write that takes a part, an interrupted call",
        "4": "a full disk",
        "5": "no inodes left, the quota used up",
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
        "17": "an action killed for want of memory",
        "18": "an interrupted training",
    },
    "Several at once, time, file systems": {
        "19": "several builds on one store",
        "20": "the same where locks do nothing",
        "21": "a lease of a dead process",
        "22": "a stale handle of a network file system",
        "23": "a time in the future",
        "24": "an edit during the build",
        "25": "an edit that keeps size and mtime",
        "26": "names that some file systems take for one",
        "27": "names with spaces, newlines, dashes, 255 bytes",
        "28": "paths that are too long",
        "29": "store and workspace on two disks",
        "30": "a write through a link into the store",
    },
    "Remote stores and servers": {
        "31": "a server that lies: truncated, garbage, too long, wrong parts, …",
        "32": "a login page with status 200, 204, no HTTP",
        "33": "a server that fails or takes nothing: 403, 413, 500, 503, 507, …",
        "34": "a server that hangs or dribbles",
        "35": "a bomb: compressed, or without end",
        "36": "damaged and missing objects of a remote store",
        "37": "no server at all",
        "38": "a transfer killed half way",
        "39": "two writers of one key",
        "40": "a poisoned record under the right key",
        "41": "a signature that is not of the record, or of an unknown key",
        "42": "secrets in environment, addresses, sources, settings",
        "43": "redirects",
        "44": "no TLS, a wrong certificate, a password over an open connection",
    },
    "What comes from others": {
        "46": "pickles and damaged weights",
        "47": "models that bring code",
        "48": "chat templates that escape, never end, or grow",
        "49": "actions that read what they did not declare",
        "51": "links out of an output",
        "52": "names and paths that lead elsewhere",
        "53": "TOML that nests or never ends",
        "54": "rows without end",
        "55": "SQL that writes",
        "57": "text that acts on a terminal or a CI runner",
        "61": "a branch that moves",
    },
}
ROWS = {row: fault for rows in PARTS.values() for row, fault in rows.items()}
NOT_HERE = {
    "a network file system itself (22)": "no NFS server runs in the tests; its errors are made.",
    "a blob of more than 5 GB, the limit of one PUT (45)": "no request is that large: files from "
    "1 MiB on travel in chunks of a few MiB. A server that takes less is among those that take "
    "nothing (413). Files of 1.25 GB, 20 GB in all: `benchmarks/README.md`.",
    "archives (50)": "nothing is unpacked: an artifact is a list of files and their blobs, and a "
    "tar of WebDataset is read as a stream.",
    "secrets (56)": "they are line 42.",
    "script in a page (58)": "the tests of `ftbuild report` hold it, with rows that try.",
    "a weak hash (59)": "there is one algorithm, SHA-256, in every key and name.",
    "a pack of rules that nobody meant (60)": "rules are found in what is installed; two packs "
    "with one rule are an error, and `--locked` refuses a rule that the lock has not.",
}
HEAD = """\
# Reliability

What was done to ftbuild, and what came of it. Each line is a test that makes a fault happen,
counts how often it really did, and looks for harm: an object whose bytes are not what its name
says, a record without its bytes, finished work that is done again, a build that does not end
right afterwards. The control is the same test on a product that is broken on purpose (no fsync,
writing in place, no verification, locks alone): it has to find harm there, or the test proves
nothing.

`-` in the last column: there is no such control, because the test itself looks at what came out,
byte for byte, or at the refusal in words.

This page is written by `tests/faults/reliability.py` from the results of a run; its docstring
says how. The pull requests' run fires at a sample of the points, which moves; with
`FTBUILD_FAULTS=all` at all of them: 925 kills of a whole build.
"""
TABLE = """
## {part}

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
    text = HEAD
    for part, rows in PARTS.items():
        lines = [line for row in rows for line in _lines(row, found)]
        text += TABLE.format(part=part) + "".join(lines) if lines else ""
    text += "\n## Not a line of its own\n\n"
    return text + "".join(f"- {fault}: {why}\n" for fault, why in NOT_HERE.items())


def _lines(row: str, found: Mapping[tuple[str, str], dict[str, Any]]) -> Iterator[str]:
    named = {fault: entry for (of, fault), entry in found.items() if of == row}
    controls = [e["control"] for e in named.values() if e["control"] is not None]
    # One control stands for all forms of a fault: what it breaks is the product.
    control = "-" if not controls else "yes" if all(controls) else "NO"
    for fault, entry in sorted(named.items()):
        if entry["fired"]:
            yield f"| {ROWS[row]} | {fault} | {entry['fired']:,} | {entry['bad']} | {control} |\n"


def main(path: str) -> None:
    """Write the page from a file of reports."""
    reports = [json.loads(line) for line in Path(path).read_text().splitlines()]
    PAGE.write_text(page(reports), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
