"""Start a project in this folder (or in -C DIR, which is made): FTBUILD.toml and a little data.

TEMPLATE is `sft` (fine-tune on conversations; the default), `preferences` (DPO on pairs) or
`empty`. No file is overwritten; .gitignore gets the lines that it lacks.

Exit status:
  0 done; 2 a file is in the way; 5 no permission.
"""

import json
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path

from ftbuild.cli import terminal
from ftbuild.errors import UsageError

TEMPLATES = ("sft", "preferences", "empty")
_IGNORED = (".ftbuild/", "ftbuild-out/")


def arguments(parser: ArgumentParser) -> None:
    """Add what `init` takes."""
    parser.add_argument(
        "template",
        metavar="TEMPLATE",
        nargs="?",
        default="sft",
        choices=TEMPLATES,
        help=", ".join(TEMPLATES),
    )


def run(options: Namespace) -> int:
    """Write the files of the template and say which."""
    directory = Path(*(options.directory or ["."]))
    name = project_name(directory)
    files = {directory / path: text for path, text in _files(options.template, name)}
    for path in files:
        if path.exists():
            raise UsageError(
                f"`{path}` is already there",
                code="E0023",
                fix="choose another folder: `ftbuild -C DIR init`",
            )
    if not options.dry_run:
        _write(directory, files)
    written = [str(path.relative_to(directory)) for path in files]
    if options.json:
        terminal.print_json({"directory": str(directory), "files": written})
    elif not options.quiet:
        print("\n".join(f"wrote {path}" for path in written))
        terminal.say("next: ftbuild check, then ftbuild make")
    return 0


def project_name(directory: Path) -> str:
    """Return a project's name made of its folder's."""
    name = re.sub(r"[^a-z0-9]+", "-", directory.resolve().name.lower()).strip("-")
    return name or "project"


def _files(template: str, name: str) -> Iterator[tuple[Path, str]]:
    """Yield the path of each file of a template, and its text."""
    folder = Path(__file__).parent / "templates" / template
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        text = path.read_text(encoding="utf-8")
        yield path.relative_to(folder), text.replace("{name}", name)


def _write(directory: Path, files: dict[Path, str]) -> None:
    from ftbuild.registry import Registry
    from ftbuild.schema import json_schema

    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    schema = directory / ".ftbuild" / "schema.json"
    schema.parent.mkdir(exist_ok=True)
    schema.write_text(json.dumps(json_schema(Registry(directory)), indent=2), encoding="utf-8")
    _ignore(directory / ".gitignore")


def _ignore(path: Path) -> None:
    """Add the lines to .gitignore that it lacks."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    missing = [line for line in _IGNORED if line not in text.splitlines()]
    if missing:
        gap = "\n" if text and not text.endswith("\n") else ""
        path.write_text(text + gap + "".join(f"{line}\n" for line in missing), encoding="utf-8")
