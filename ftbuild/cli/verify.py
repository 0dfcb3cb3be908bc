"""Run the actions of TARGET and of all it needs again, in a clean place, and compare bit for bit.

Each action gets its recorded inputs and an empty store, in a sandbox where there is one; its
output has to be the recorded one. A difference is told by file, tensor, row and size. Without
TARGET the project's default is verified. With --store nothing runs: every object of the store
is hashed, and what is damaged is moved away and mended where that can be.

Exit status:
  0 all identical, or within the tolerance; 1 an action failed; 2 the manifest or the command is
  wrong, or a target is not built; 3 a difference; 4 --store, and an object was damaged;
  5 the environment.
"""

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftbuild import events, units
from ftbuild.cli import render, terminal
from ftbuild.cli.complete import targets
from ftbuild.cli.flags import open_project
from ftbuild.cli.terminal import Line
from ftbuild.errors import UsageError
from ftbuild.view import Span

if TYPE_CHECKING:
    from ftbuild.store.check import Checked
    from ftbuild.verification import OnVerified, Verified

_CORRUPT_EXIT = 4
_SHOWN_LINES = 20
_STYLES = {
    "identical": "green",
    "within": "green",
    "different": "bold red",
    "failed": "bold red",
    "unbuilt": "yellow",
    "skipped": "dim",
}
_HOW = {"missing": "is missing in what was rebuilt", "extra": "is there only in what was rebuilt"}


def arguments(parser: ArgumentParser) -> None:
    """Add what `verify` takes."""
    add = parser.add_argument
    targets(add("targets", metavar="TARGET", nargs="*", help="a label: NAME or //package:NAME"))
    add("--all", action="store_true", help="every target of the workspace that is built")
    add("--only", action="store_true", help="the TARGETs alone, not what they need")
    add("--since", metavar="REV", help="of these, what changed since a commit of git")
    add("--sample", metavar="N", type=_count, help="of these, N chosen by their content")
    add("--budget", metavar="TIME", type=_time, help='begin none that would end later: "10 min"')
    add("--tolerance", metavar="X", type=_number, help="let numbers of tensors differ by X")
    add("--junit", metavar="FILE", help="write the outcome as JUnit XML, for CI systems")
    add("--store", action="store_true", help="hash every object of the store instead")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"`{text}` is not a number of targets")
    return int(text)


def _time(text: str) -> int:
    found = units.parse_age(text)
    if found is None:
        raise ArgumentTypeError(f"`{text}` is not a time such as `10 min`")
    return found


def _number(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found < float("inf"):
        raise ArgumentTypeError(f"`{text}` is not a number from 0")
    return found


def run(options: Namespace) -> int:
    """Verify, and say of each action how it went."""
    if options.store:
        return _store(options)
    if options.all and options.targets:
        raise UsageError("`--all` leaves no TARGET to name", code="E0020", fix="leave one of them")
    from ftbuild.verification import Limits, exit_code

    with open_project(options) as project:
        chosen = project.choose(
            options.targets,
            everything=options.all,
            only=options.only,
            since=options.since,
            sample=options.sample,
        )
        if options.dry_run:
            _print_chosen(chosen, options)
            return 0
        limits = Limits(options.tolerance, options.budget)
        verified = project.verify(chosen, limits, _hearing(options), _telling(options))
    _end(verified, options)
    if options.all or options.sample:  # what is not built was not asked for by its name
        verified = [found for found in verified if found.outcome != "unbuilt"]
    return exit_code(verified)


def _hearing(options: Namespace) -> events.OnEvent:
    color = terminal.use_color(sys.stderr, options.color)

    def hear(event: events.Event) -> None:
        if options.json:
            terminal.print_json(events.to_json(event))
        elif isinstance(event, events.Warned):
            terminal.write([render.warning_line(event)], sys.stderr, color=color)

    return hear


def _telling(options: Namespace) -> "OnVerified":
    color = terminal.use_color(sys.stdout, options.color)

    def tell(found: "Verified") -> None:
        if options.json:
            terminal.print_json(to_json(found))
        elif not options.quiet or found.exit_code:
            terminal.write(_lines(found), sys.stdout, color=color)
            sys.stdout.flush()

    return tell


def _print_chosen(chosen: Sequence[str], options: Namespace) -> None:
    if options.json:
        terminal.print_json({"targets": list(chosen)})
    else:
        terminal.write([terminal.plain(label) for label in chosen], sys.stdout, color=False)


def _end(verified: Sequence["Verified"], options: Namespace) -> None:
    from ftbuild.verification import counts

    found = counts(verified)
    seconds = sum(one.seconds for one in verified)
    if options.junit:
        from ftbuild.cli.junit import to_xml

        Path(options.junit).write_text(to_xml(verified), encoding="utf-8")
    if options.json:
        terminal.print_json({"event": "summary", "label": None, **found, "seconds": seconds})
    elif not options.quiet:
        told = ", ".join(f"{word} {count}" for word, count in found.items() if count)
        line = terminal.plain(f"{told or 'nothing to verify'} in {render.duration(seconds)}")
        terminal.write([line], sys.stdout, color=terminal.use_color(sys.stdout, options.color))


def to_json(found: "Verified") -> dict[str, Any]:
    """Return what became of an action as `verify --json` prints it."""
    line: dict[str, Any] = {
        "event": "verified",
        "label": found.label,
        "outcome": found.outcome,
        "key": found.key,
        "recorded": found.recorded,
        "rebuilt": found.rebuilt,
        "seconds": found.seconds,
    }
    if found.files:
        line["files"] = [asdict(file) for file in found.files]
        line["distance"] = found.distance
        line["tolerance"] = found.tolerance
        line["details"] = None if found.view is None else found.view.data
    if found.why is not None:
        line["why"] = found.why
    if found.log_tail:
        line["log_tail"] = list(found.log_tail)
    return line


def _lines(found: "Verified") -> Iterator[Line]:
    said = {"within": f"within {found.tolerance:g}"}.get(found.outcome, found.outcome)
    time = f" {render.duration(found.seconds)}" if found.rebuilt else ""
    is_short = found.outcome in ("unbuilt", "skipped")
    why = f" ({terminal.one_line(found.why or '')})" if is_short else ""
    yield (Span(f"{found.label}: "), Span(said, _STYLES[found.outcome]), Span(time + why))
    for file in found.files:
        how = _HOW.get(file.how) or (
            "has another mode" if file.at is None else f"differs from byte {file.at:,} on"
        )
        yield (Span(f"  {file.path} {how}"),)
    if found.view is not None:
        shown = found.view.lines[:_SHOWN_LINES]
        yield from ((Span("    "), *line) for line in shown)
        if len(found.view.lines) > len(shown):
            yield (Span(f"    and {len(found.view.lines) - len(shown):,} more lines", "dim"),)
    if found.outcome == "failed":
        yield from render.failure_lines(found.why or "")
        yield from ((Span("  | ", "dim"), Span(terminal.one_line(t))) for t in found.log_tail)


def _store(options: Namespace) -> int:
    with open_project(options) as project:
        checked = project.check_store()
    if options.json:
        terminal.print_json(asdict(checked))
    else:
        color = terminal.use_color(sys.stdout, options.color)
        terminal.write(_checked_lines(checked, options), sys.stdout, color=color)
    return _CORRUPT_EXIT if checked.damaged or checked.untrusted else 0


def _checked_lines(checked: "Checked", options: Namespace) -> Iterator[Line]:
    for damage in checked.damaged:
        end = "mended" if damage.is_mended else "moved to quarantine"
        head = (Span(f"{damage.kind} {damage.name}: "), Span(damage.how, "red"))
        yield (*head, Span(f"; {end}"))
    for record in checked.untrusted:
        yield (Span(f"record {record.name}: not trusted, "), Span(record.how, "red"))
    if not options.quiet:
        parts = [
            render.plural(checked.blobs, "blob"),
            render.plural(checked.trees, "tree"),
            render.plural(checked.records, "record"),
        ]
        wrong = (("damaged", checked.damaged), ("not trusted", checked.untrusted))
        bad = ", ".join(f"{len(found)} {word}" for word, found in wrong if found)
        bad = bad or "all are what they say"
        yield (Span(f"{', '.join(parts)}, {render.size(checked.size)} hashed: {bad}"),)
