"""Remove from the store what is old or too much; never what ftbuild-out or a build uses.

Without flags the limits are `max_size` and `max_age` of [cache] in FTBUILD.toml.

Exit status:
  0 done; 2 the manifest or the command is wrong; 5 no permission.
"""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from typing import TYPE_CHECKING

from ftbuild import units
from ftbuild.cli import render, terminal
from ftbuild.cli.flags import open_project

if TYPE_CHECKING:
    from ftbuild.store.gc import Collected

_GRACE_S = 24 * 3600  # longer than a build: it may be about to name what it stored


def arguments(parser: ArgumentParser) -> None:
    """Add what `gc` takes."""
    add = parser.add_argument
    add("--max-size", metavar="SIZE", type=_size, help='keep at most this much: "200 GB"')
    add("--max-age", metavar="AGE", type=_age, help='keep what was used since then: "30 d"')
    add(
        "--grace",
        metavar="AGE",
        type=_age,
        default=_GRACE_S,
        help='keep what is younger whatever the limits say; default "1 d"',
    )


def _size(text: str) -> int:
    found = units.parse_size(text)
    if found is None:
        raise ArgumentTypeError(f"`{text}` is not a size such as `200 GB`")
    return found


def _age(text: str) -> int:
    found = units.parse_age(text)
    if found is None:
        raise ArgumentTypeError(f"`{text}` is not an age such as `30 d`")
    return found


def run(options: Namespace) -> int:
    """Collect, or with --dry-run say what would be collected."""
    with open_project(options) as project:
        max_bytes = units.parse_size(project.setting("cache", "max_size") or "")
        max_age_s = units.parse_age(project.setting("cache", "max_age") or "")
        collected = project.gc(
            max_bytes=max_bytes if options.max_size is None else options.max_size,
            max_age_s=max_age_s if options.max_age is None else options.max_age,
            grace_s=options.grace,
            dry_run=options.dry_run,
        )
    if options.json:
        terminal.print_json(vars(collected))
    elif not options.quiet:
        print(_sentence(collected, options.dry_run))
    return 0


def _sentence(collected: "Collected", is_dry_run: bool) -> str:
    """Return what was removed and what is left."""
    counts = [
        render.plural(collected.records, "record"),
        render.plural(collected.trees, "tree"),
        render.plural(collected.blobs, "blob"),
        render.plural(collected.others, "other"),
    ]
    verb = "would remove" if is_dry_run else "removed"
    freed, kept = render.size(collected.freed_bytes), render.size(collected.kept_bytes)
    records = render.plural(collected.kept_records, "record")
    return f"{verb} {', '.join(counts)}: {freed}; {records} with {kept} stay"
