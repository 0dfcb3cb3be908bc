"""What `verify` found as JUnit XML, which CI systems show beside the tests."""

from collections.abc import Sequence
from xml.etree import ElementTree

from ftbuild.cli.terminal import visible
from ftbuild.verification import Verified

_FAILURES = ("different", "unbuilt")


def to_xml(verified: Sequence[Verified]) -> str:
    """Return one test suite with a test case for each action."""
    suite = ElementTree.Element(
        "testsuite",
        name="ftbuild verify",
        tests=str(len(verified)),
        failures=str(sum(found.outcome in _FAILURES for found in verified)),
        errors=str(sum(found.outcome == "failed" for found in verified)),
        skipped=str(sum(found.outcome == "skipped" for found in verified)),
        time=f"{sum(found.seconds for found in verified):.3f}",
    )
    for found in verified:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname="ftbuild.verify",
            name=found.label,
            time=f"{found.seconds:.3f}",
        )
        _add_outcome(case, found)
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    ElementTree.indent(suites)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(suites, "unicode")}\n'


def _add_outcome(case: ElementTree.Element, found: Verified) -> None:
    if found.outcome == "skipped":
        ElementTree.SubElement(case, "skipped", message=visible(found.why or ""))
    elif found.outcome == "failed":
        error = ElementTree.SubElement(case, "error", message=visible(found.why or ""))
        error.text = visible("\n".join(found.log_tail))
    elif found.outcome in _FAILURES:
        names = ", ".join(file.path for file in found.files)
        message = found.why or f"differs in {names}"
        failure = ElementTree.SubElement(case, "failure", message=visible(message))
        lines = () if found.view is None else found.view.lines
        failure.text = visible("\n".join("".join(s.text for s in line) for line in lines))
