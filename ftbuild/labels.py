"""Labels: how targets name each other.

`helper` is a target of the same package, `//data/faq:chats` one of another, `//:helper` one
of the root. The canonical form leaves the package out for the root alone, so that it is a
target's one name everywhere: in the graph, in records, on the command line.
"""

import re

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_SEGMENT = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
PACKAGE = re.compile(rf"(?:{_SEGMENT}(?:/{_SEGMENT})*)?")
_LABEL = re.compile(
    rf"(?://(?P<package>{PACKAGE.pattern}):)?(?P<name>{NAME.pattern}(?:\[[^\[\]\s]+\])?)"
)
FORM = "a label is NAME, or //PACKAGE:NAME from the root"


def join(package: str, name: str) -> str:
    """Return the canonical label of the target `name` of `package`."""
    return f"//{package}:{name}" if package else name


def resolve(text: str, package: str) -> str | None:
    """Return the canonical label that `text` means inside `package`; None if it is no label."""
    match = _LABEL.fullmatch(text)
    if match is None:
        return None
    named = match["package"]
    return join(package if named is None else named, match["name"])


def split(label: str) -> tuple[str, str]:
    """Return the package and the name of a canonical label."""
    if not label.startswith("//"):
        return "", label
    package, _, name = label[2:].partition(":")
    return package, name


def package_named(text: str) -> str | None:
    """Return the package that `text` names if it has the form of a label with a package."""
    if not text.startswith("//"):
        return None
    match = _LABEL.fullmatch(text)
    return match["package"] if match else None
