"""docs/reliability.md is what the fault tests found, and it holds no harm."""

import re

from faults.reliability import HEAD, NOT_HERE, PAGE, PARTS, ROWS, TABLE, page

REPORTS = [
    {"row": "1", "fault": "kill -9 at a call of the store", "fired": 70, "bad": 0},
    {"row": "1", "fault": "kill -9 at a call of the store", "control_red": True},
    {"row": "41", "fault": "tampered: a", "fired": 1, "bad": 0},
    {"row": "41", "fault": "tampered: b", "fired": 1, "bad": 1},
    {"row": "2", "fault": "power cut on xfs", "control_red": False},
    {"row": "2", "fault": "power cut on xfs", "fired": 12, "bad": 0},
]


def test_reports_become_lines_with_sums_and_controls() -> None:
    first, third = list(PARTS)[0], list(PARTS)[2]
    assert page(REPORTS).partition("\n## Not a line")[0] == (
        HEAD
        + TABLE.format(part=first)
        + "| kill -9 at any system call | kill -9 at a call of the store | 70 | 0 | yes |\n"
        "| a power cut: what was not made durable is lost | power cut on xfs | 12 | 0 | NO |\n"
        + TABLE.format(part=third)
        + "| a signature that is not of the record, or of an unknown key | tampered | 2 | 1 | - |\n"
    )


def test_page_names_every_fault_fired_without_harm_and_with_a_control() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.startswith(HEAD)
    rows = [
        re.fullmatch(r"\| (.+) \| (.+) \| ([\d,]+) \| (\d+) \| (\S+) \|", line)
        for line in text.removeprefix(HEAD).splitlines()
        if line.startswith("| ") and not line.startswith(("| fault |", "| --- |"))
    ]
    assert all(rows)
    found = [row.groups() for row in rows if row is not None]
    assert {row[0] for row in found} == set(ROWS.values())
    assert [row for row in found if row[3] != "0" or row[4] == "NO" or row[2] == "0"] == []


def test_every_fault_of_the_table_has_a_line_or_a_reason() -> None:
    numbers = [int(n) for n in ROWS] + [int(n) for n in re.findall(r"\((\d+)\)", str(NOT_HERE))]
    assert set(range(1, 62)) == set(numbers)
