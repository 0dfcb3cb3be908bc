"""Tell what the artifact of TARGET follows from: every action and every source below it.

With --json as a list of steps. With --statement as an in-toto Statement with SLSA provenance,
in a DSSE envelope that is signed if there is a key (`ftbuild keys`).

Exit status:
  0 done; 2 the manifest or the command is wrong, or TARGET is not built.
"""

import json
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ftbuild.cli import render, terminal
from ftbuild.cli.complete import targets
from ftbuild.cli.flags import open_project
from ftbuild.cli.terminal import Line
from ftbuild.view import Span

if TYPE_CHECKING:
    from ftbuild.lineage import Step


def arguments(parser: ArgumentParser) -> None:
    """Add what `provenance` takes."""
    targets(parser.add_argument("target", metavar="TARGET", help="NAME or //package:NAME"))
    parser.add_argument("--statement", action="store_true", help="as in-toto/SLSA, signed")


def run(options: Namespace) -> int:
    """Print the lineage."""
    from ftbuild import lineage

    with open_project(options) as project:
        steps = project.lineage(options.target)
        signer = project.store.trust.signer
    if options.statement:
        plain = lineage.statement(steps)
        terminal.print_json(plain if signer is None else lineage.envelope(plain, signer))
    elif options.json:
        terminal.print_json({"steps": lineage.to_plain(steps)})
    else:
        color = terminal.use_color(sys.stdout, options.color)
        for step in reversed(steps):
            terminal.write(_lines(step), sys.stdout, color=color)
    return 0


def _lines(step: "Step") -> Iterator[Line]:
    from ftbuild.lineage import source_files

    yield (
        Span(step.label, "bold"),
        Span(f"  {step.kind}  "),
        Span(render.short(step.digest), "dim"),
    )
    record = step.record
    if record is None:
        yield (Span("  there is no record of it any more", "yellow"),)
        return
    document, provenance = record.document, record.provenance
    version = document.get("version")
    code = f"version {version}" if version else f"code {str(document.get('source'))[:12]}"
    day = time.strftime("%Y-%m-%d", time.gmtime(provenance.get("finished_at", 0)))
    built = f"built {day} in {render.duration(provenance.get('seconds', 0.0))}"
    yield (Span(f"  rule {document['rule']}, {code}; key {record.key[:12]}…; {built}"),)
    if record.signature is not None:
        yield (Span(f"  signed by {record.signature.public} for {record.signature.project}"),)
    for name, value in document["params"].items():
        yield (Span(f"  {name} = "), Span(json.dumps(value, ensure_ascii=False)))
    for name, version in document["libraries"].items():
        yield (Span(f"  library {name} {version}"),)
    for name, label in step.inputs.items():
        yield (Span(f"  {name}: "), Span(label, "bold"))
    for name, digest in source_files(record):
        spec = step.specs.get(name.partition("/")[0], {}).get("one")
        shown = terminal.one_line(spec) if isinstance(spec, str) else name
        yield (Span(f"  source {shown}  "), Span(render.short(digest), "dim"))
    for spec, revision in step.pins.items():
        yield (Span(f"  {spec} at {revision}"),)
