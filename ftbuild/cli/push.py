"""Send what is built of each TARGET, and of all it needs, to the remote stores.

`make` does so with what it builds; this is for results from before. What has arrived is not
sent again, so after a break the same command goes on. The first result of a key stays: another
one is reported as not deterministic, with the files that differ.

Exit status:
  0 all is there; 1 some targets are not built; 2 the manifest or the command is wrong, or no
  remote is named; 3 a remote has another result for a key; 5 a remote is down or takes nothing.
"""

import time
from argparse import ArgumentParser, Namespace

from ftbuild.cli import moving
from ftbuild.cli.complete import targets
from ftbuild.cli.flags import open_project

_THERE = ("sent", "present")


def arguments(parser: ArgumentParser) -> None:
    """Add what `push` takes."""
    add = parser.add_argument
    targets(add("targets", metavar="TARGET", nargs="*", help="a label: NAME or //package:NAME"))


def run(options: Namespace) -> int:
    """Send, and say what was sent."""
    began = time.monotonic()
    with open_project(options) as project, moving.watched("sent", options) as watch:
        done = project.push(options.targets, moving.tell, watch.begin)
    sent, seconds = done.supply.sent_bytes(), round(time.monotonic() - began, 3)
    moving.show(done, options, seconds=seconds, sent=sent, got=0)
    outcomes = {moved.outcome for moved in done.moved}
    if "different" in outcomes:
        return 3
    return 0 if outcomes <= {*_THERE} else 1
