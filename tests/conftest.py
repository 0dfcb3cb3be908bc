"""In CI no test is left out because something is not installed; elsewhere it is skipped by name.

A test with the mark `fault(row, what)` is one fault that fired: a line of docs/reliability.md.
"""

import os
from collections.abc import Generator
from typing import Any

import pytest

from faults.fault_report import report as report_fault

_IS_CI = bool(os.environ.get("FTBUILD_CI"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    if report.when == "call" and not report.skipped:
        for mark in item.iter_markers("fault"):
            report_fault(*mark.args, fired=1, bad=int(report.failed))
    if _IS_CI and report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2]
        if "not installed" in reason:
            report.outcome = "failed"
            report.longrepr = f"CI runs every test; this one was left out. {reason}"
    return report
