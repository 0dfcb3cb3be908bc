"""docs/reliability.md is what the fault tests found, and it holds no harm."""

import re

from faults.reliability import HEAD, LEFT, PAGE, PARTS, ROWS, TITLES, page

REPORTS = [
    {"row": "1", "fault": "kill -9 at a call of the store", "fired": 70, "bad": 0},
    {"row": "1", "fault": "kill -9 at a call of the store", "control_red": True},
    {"row": "41", "fault": "tampered: a", "fired": 1, "bad": 0},
    {"row": "41", "fault": "tampered: b", "fired": 1, "bad": 1},
    {"row": "2", "fault": "power cut on xfs", "control_red": False},
    {"row": "2", "fault": "power cut on xfs", "fired": 12, "bad": 0},
]


def test_reports_become_lines_with_sums_ways_and_controls() -> None:
    first, second, third, fourth = (f"\n## {part}\n{TITLES}" for part in PARTS.values())
    assert (
        page(REPORTS)
        == HEAD
        + first
        + (
            "| kill -9 at any system call | kill -9 at a call of the store | 70 | 0 | yes |\n"
            "| a power cut: what was not made durable is lost | power cut on xfs | 12 | 0 | NO |\n"
        )
        + second
        + third
        + (
            "| a signature that is not of the record, or of an unknown key | tampered, in 2 ways "
            "| 2 | 1 | - |\n"
        )
        + fourth
        + LEFT
    )


def test_page_names_every_fault_fired_without_harm_and_with_a_control() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.startswith(HEAD)
    assert text.endswith(LEFT)
    rows = [
        re.fullmatch(r"\| (.+) \| (.+) \| ([\d,]+) \| (\d+) \| (\S+) \|", line)
        for line in text.removesuffix(LEFT).removeprefix(HEAD).splitlines()
        if line.startswith("| ") and line not in TITLES
    ]
    assert all(rows)
    found = [row.groups() for row in rows if row is not None]
    assert [title for title in ROWS.values() if title not in {row[0] for row in found}] == []
    assert [row for row in found if row[3] != "0" or row[4] == "NO" or row[2] == "0"] == []
