"""Fetch the results of each TARGET from the remote stores into the local one; build nothing.

Everything is verified. With --all the results of all that the targets need come too, which
`make` would fetch only where it has to run something.

Exit status:
  0 all is here; 1 some results are nowhere; 2 the manifest or the command is wrong, or no
  remote is named; 5 a remote is down, or the disk is full.
"""

import time
from argparse import ArgumentParser, Namespace

from ftbuild.cli import moving
from ftbuild.cli.complete import targets
from ftbuild.cli.flags import open_project


def arguments(parser: ArgumentParser) -> None:
    """Add what `pull` takes."""
    add = parser.add_argument
    targets(add("targets", metavar="TARGET", nargs="*", help="a label: NAME or //package:NAME"))
    add("--all", action="store_true", help="what the targets need as well")


def run(options: Namespace) -> int:
    """Fetch, and say what came."""
    began = time.monotonic()
    with open_project(options) as project, moving.watched("fetched", options) as watch:
        done = project.pull(options.targets, moving.tell, watch.begin, everything=options.all)
    seconds = round(time.monotonic() - began, 3)
    moving.show(done, options, seconds=seconds, sent=0, got=done.supply.got_bytes)
    return 0 if all(moved.outcome != "missing" for moved in done.moved) else 1
