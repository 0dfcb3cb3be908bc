"""Make docs/reliability.md of what the fault tests found.

    FTBUILD_FAULT_REPORT=$PWD/faults.jsonl pytest tests
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
    "17": "a step that is killed, as by a machine without memory",
    "18": "an interrupted training",
    "19": "several builds on one store",
    "20": "the same where locks do nothing",
    "21": "a lease of a dead process",
    "22": "a file handle that the server forgot",
    "23": "a time in the future",
    "24": "an edit during the build",
    "25": "an edit that keeps size and mtime",
    "26": "names that are one name elsewhere",
    "27": "names with spaces, newlines, dashes, 255 bytes",
    "28": "paths that are too long",
    "29": "store and project on two file systems",
    "30": "writing through an output into the store",
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
    "45": "an object that a server finds too large",
    "46": "pickles, which run code",
    "47": "code that a model brings",
    "48": "chat templates that reach out or never end",
    "49": "steps that read what they did not declare",
    "50": "archives",
    "51": "links that lead out",
    "52": "names that lead out",
    "53": "project files that are bombs",
    "54": "rows without end",
    "55": "SQL that writes",
    "57": "text that acts on a terminal or a CI runner",
    "58": "rows that are markup or script",
    "61": "a branch that moves",
}
PARTS = {
    "1": "Crashes and storage",
    "19": "Several builds, time, file systems",
    "31": "Remote stores",
    "46": "Code, supply chain, text",
}
"""The first row of each part."""
HEAD = """\
# Reliability

What was done to ftbuild, and what came of it. Each line is a test that makes a fault happen,
counts how often it really did, and looks for harm: an object whose bytes are not what its name
says, a record without its bytes, finished work that is done again, a build that does not end
right afterwards, code that runs, a secret that is told. The control is the same test on a product
that is broken on purpose (no fsync, writing in place, no verification, locks alone): it has to
find harm there, or a count of nought would prove nothing. Where there is none (-), the test
compares with a text, a code or bytes that nothing but the right behaviour gives.

This page is written by `tests/faults/reliability.py` from the results of one run or several;
its docstring says how. Kills and failing calls are aimed at each system call by its number: an
ordinary run takes a sample of them, which moves; `FTBUILD_FAULTS=all` takes every one: 925 kills of a whole
build, none of which did harm.
"""
TITLES = """
| fault | as | fired | harm | control finds harm |
| --- | --- | --- | --- | --- |
"""
LEFT = """
## What is not tested, and why

- **A network file system under the local store.** None can be mounted where the tests run. What it
  does is played: `flock` that does nothing, `ESTALE`, hard links that are refused. Nothing rests
  on a lock; a lock saves work. Of a remote store in a shared folder the same holds.
- **Files of one artifact that differ in case or in Unicode form alone.** They are kept as two, as
  Linux has it; a file system that makes them one shows one of them. Names of targets and packages
  that do so are refused.
- **An object above what a server takes at once (5 GB for S3).** There is none: large files travel
  in chunks of 4 MiB at most.
- **Archives unpacked to disk.** None is. An artifact is a list of files with their digests; rows
  are read from within an archive.
- **A weak hash.** SHA-256 is the only one that decides what something is.
- **A rule from a package that took another's name.** A project's rules are its own files and the
  packages that it installs; what is installed is for the installer's lock (`uv.lock`, hashes) to
  say. A rule's version, or its code where it has none, is in the key of what it makes.
- **A stale lock of another host.** There is no lock file that could be left: leases are `flock`s,
  which the kernel gives back.
"""


def page(reports: Iterable[Mapping[str, Any]]) -> str:
    """Return the page for the reports of one run."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for report in reports:
        fault, _, way = report["fault"].partition(": ")
        entry = found.setdefault(
            (report["row"], fault), {"fired": 0, "bad": 0, "control": None, "ways": set()}
        )
        entry["fired"] += report.get("fired", 0)
        entry["bad"] += report.get("bad", 0)
        if report.get("fired") and way:
            entry["ways"].add(way)
        if "control_red" in report:
            entry["control"] = report["control_red"]
    text = HEAD
    for row, title in ROWS.items():
        if row in PARTS:
            text += f"\n## {PARTS[row]}\n{TITLES}"
        named = {fault: entry for (of, fault), entry in found.items() if of == row}
        text += "".join(_line(title, named, fault) for fault in sorted(named))
    return text + LEFT


def _line(title: str, named: Mapping[str, Mapping[str, Any]], fault: str) -> str:
    entry = named[fault]
    if not entry["fired"]:
        return ""
    controls = [e["control"] for e in named.values() if e["control"] is not None]
    # One control stands for all forms of a fault: what it breaks is the product.
    control = "-" if not controls else "yes" if all(controls) else "NO"
    ways = f", in {len(entry['ways'])} ways" if len(entry["ways"]) > 1 else ""
    return f"| {title} | {fault}{ways} | {entry['fired']:,} | {entry['bad']} | {control} |\n"


def main(path: str) -> None:
    """Write the page from a file of reports."""
    reports = [json.loads(line) for line in Path(path).read_text().splitlines()]
    PAGE.write_text(page(reports), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
