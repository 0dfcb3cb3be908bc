"""Importing: a configuration of another tool -> the text of an FTBUILD.toml, and notes.

What the keys mean is known by the importers of the rule packs; here YAML is read, each note gets
its line, and the tables are written. Nothing is guessed: a key that no importer reads is a note.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftbuild.errors import FtbuildError, MachineError, Place, UsageError
from ftbuild.imported import Imported, ImportProblem, Key, Table
from ftbuild.registry import Importer, Registry
from ftbuild.wording import as_key, dotted, shown


@dataclass(frozen=True)
class Config:
    """A YAML file, and where each of its keys stands."""

    path: str
    values: dict[str, Any]
    places: dict[Key, tuple[int, int]]
    """Line and column, from 1."""
    lines: tuple[str, ...]

    def place(self, key: Key) -> Place:
        """Return the place of `key`; of one that the file lacks, that of what it would stand in."""
        while key and key not in self.places:
            key = key[:-1]
        if not key:
            return Place(self.path)
        line, column = self.places[key]
        name = str(key[-1]) if isinstance(key[-1], str) else "-"
        return Place(self.path, line, column, self.lines[line - 1], len(name))


@dataclass(frozen=True)
class Foreign:
    """A configuration of another tool, converted."""

    tool: str
    config: Config
    imported: Imported
    text: str
    """The FTBUILD.toml."""

    def notes(self) -> Iterator[tuple[Place, str, str]]:
        """Yield place, key and text of each note, in the order of the file."""
        found = [(self.config.place(n.key), dotted(n.key), n.text) for n in self.imported.notes]
        yield from sorted(found, key=lambda note: (note[0].line or 0, note[0].column or 0))


def convert(path: Path, folder: Path, project: str, registry: Registry) -> Foreign:
    """Read the configuration at `path` and return it as a project named `project` in `folder`.

    Raises:
        UsageError: E0031 to E0034, it cannot be read, is of no known tool, or holds what has no
            counterpart.
        MachineError: E0035, PyYAML is not installed.
    """
    config = read(path)
    importers = registry.importers()
    known = next((each for each in importers if each.recognises(config.values)), None)
    if known is None:
        raise _unknown(config, importers)
    try:
        imported = known.convert(config.values, folder)
    except ImportProblem as problem:
        raise UsageError(
            problem.what, code="E0034", where=config.place(problem.key), fix=problem.fix
        ) from problem
    text = manifest(imported, project, f"{known.title}'s {path.name}")
    return Foreign(known.title, config, imported, text)


def read(path: Path) -> Config:
    """Read a YAML file of keys and values.

    Raises:
        UsageError: E0031, there is no such file; E0032, it is no such YAML.
        MachineError: E0035, PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError as error:
        raise MachineError(
            "`ftbuild import` needs the library `pyyaml`", code="E0035", fix="pip install pyyaml"
        ) from error
    try:
        text = path.read_bytes().decode("utf-8")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise UsageError(
            f"there is no file `{path}`", code="E0031", fix="name a YAML file"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"`{path}` is not UTF-8", code="E0032", fix="name a YAML file of text"
        ) from error
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        places: dict[Key, tuple[int, int]] = {}
        duplicates: list[Key] = []
        _walk(node, (), places, duplicates, set())
        values = loader.construct_document(node) if node is not None else None
    except (yaml.YAMLError, ValueError) as error:  # a date that there is not is a ValueError
        raise _no_yaml(path, text, error) from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UsageError(
            f"`{path}` is no table of keys and values",
            code="E0032",
            fix="name a configuration of a training",
        )
    config = Config(str(path), values, places, tuple(text.splitlines()))
    if duplicates:
        raise UsageError(
            f"`{dotted(duplicates[0])}` stands twice",
            code="E0032",
            where=config.place(duplicates[0]),
            fix="remove one of the two",
        )
    return config


def _walk(
    node: Any,
    key: Key,
    places: dict[Key, tuple[int, int]],
    duplicates: list[Key],
    seen: set[int],
) -> None:
    """Note the place of each key below `node`; what an alias repeats is walked once."""
    if node is None or id(node) in seen or isinstance(node.value, str):
        return
    seen.add(id(node))
    if node.id == "mapping":
        pairs = [((*key, str(name.value)), name.start_mark, value) for name, value in node.value]
        duplicates += [k for i, (k, _, _) in enumerate(pairs) if k in [p[0] for p in pairs[:i]]]
    else:
        pairs = [((*key, i), value.start_mark, value) for i, value in enumerate(node.value)]
    for inner, mark, value in pairs:
        places[inner] = (mark.line + 1, mark.column + 1)
        _walk(value, inner, places, duplicates, seen)


def _no_yaml(path: Path, text: str, error: Exception) -> FtbuildError:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or str(error)
    where = Place(str(path))
    if mark is not None:
        lines = text.splitlines()
        line = lines[mark.line] if mark.line < len(lines) else None
        where = Place(str(path), mark.line + 1, mark.column + 1, line)
    return UsageError(
        f"`{path}` is not YAML: {shown(what)}", code="E0032", where=where, fix="correct it"
    )


def _unknown(config: Config, importers: tuple[Importer, ...]) -> UsageError:
    names = " or ".join(each.title for each in importers)
    keys = ", ".join(f"`{shown(key)}`" for key in list(config.values)[:5])
    return UsageError(
        f"`{config.path}` is no configuration of {names}",
        code="E0033",
        why=f"it begins with {keys}" if keys else "it is empty",
        fix="name the YAML file that the training is started with",
    )


def manifest(imported: Imported, project: str, origin: str) -> str:
    """Return the text of an FTBUILD.toml."""
    head = {"name": project, "default": [imported.default]}
    tables = [f"# Imported from {origin}.\n" + _table("project", head)]
    tables += [_table(_name(table), table.attributes) for table in imported.tables]
    return "\n".join(tables)


def _name(table: Table) -> str:
    return f"{as_key(table.rule)}.{as_key(table.name)}"


def _table(name: str, attributes: dict[str, Any]) -> str:
    lines = [f"[{name}]", *(f"{as_key(k)} = {_value(v)}" for k, v in attributes.items())]
    return "".join(f"{line}\n" for line in lines)


def _value(value: Any) -> str:
    """Return a value in TOML, on one line and in full."""
    if isinstance(value, dict):
        pairs = ", ".join(f"{_text_key(key)} = {_value(item)}" for key, item in value.items())
        return f"{{ {pairs} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(item) for item in value)}]"
    # A text in JSON is one in TOML too, but for DEL, which TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _text_key(key: str) -> str:
    bare = as_key(key)
    return bare if bare == key else json.dumps(key, ensure_ascii=False)
