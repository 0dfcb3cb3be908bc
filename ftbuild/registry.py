"""Which rules there are: files of the installed packs and of the project, found by name.

`x.py` in a pack holds rule `x`, so one rule is imported without the others. A project's file
may hold several, and is imported to learn which. Importing it is guarded: whatever is wrong
with it is the user's to mend, and said with file and line.
"""

import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftbuild.errors import ManifestError, Place, Problem, UsageError
from ftbuild.nodes import RuleFacts
from ftbuild.rulefile import PRIVATE, import_file, rule_of_pack, rules_in
from ftbuild.wording import did_you_mean, shown

if TYPE_CHECKING:
    from ftbuild.imported import Imported
    from ftbuild.rule import Rule

_GROUP = "ftbuild.rules"
_NOT_RULES = ("formats", "importers", "templates", "viewers", "__pycache__")


@dataclass(frozen=True)
class Importer:
    """What a pack knows of another tool's configuration."""

    title: str
    """The tool's name."""
    recognises: Callable[[dict[str, Any]], bool]
    convert: Callable[[dict[str, Any], Path], "Imported"]


@dataclass(frozen=True)
class _Pack:
    package: str
    folder: Path


class Registry:
    """The rules that a workspace can use. Imports nothing before it is asked for a rule."""

    def __init__(self, root: Path, project_rules: Sequence[str] = ()) -> None:
        self._root = root
        self._project_rules = tuple(project_rules)
        self._loaded: dict[str, Rule] = {}
        self._identities: dict[Path, tuple[str, tuple[str, ...]]] = {}

    def names(self) -> list[str]:
        """Return the names of all rules, sorted."""
        return sorted(self._sources)

    def problems(self) -> list[Problem]:
        """Return what is wrong with the project's rule files, or among the packs."""
        return [*self._project[1], *self._found[1]]

    def rule(self, name: str) -> "Rule":
        """Return the rule `name`; of a pack's files only its own is imported.

        Raises:
            UsageError: there is no such rule.
            ManifestError: its file cannot be imported, or does not hold it.
        """
        if name not in self._loaded:
            if name not in self._sources:
                raise unknown_rule(name, self.names())
            module, path = self._sources[name]
            self._loaded[name] = rule_of_pack(name, module, path)
        return self._loaded[name]

    def facts(self, name: str) -> RuleFacts:
        """Return what the engine needs to know about the rule `name`, as plain data."""
        rule = self.rule(name)
        module, path = self._sources[name]
        source, files = self._identity(path) if rule.version is None else (None, ())
        return RuleFacts(
            name=name,
            version=rule.version,
            source=source,
            pins=() if callable(rule.pins) else tuple(rule.pins),
            parts={f.name: f.part.patterns for f in rule.input_fields.values() if f.part},
            runs=rule.runs,
            cpus=rule.cpus,
            gpus=rule.gpus,
            preload=tuple(rule.preload),
            module=module,
            file=self._relative(path),
            files=files,
            is_reproducible=rule.is_reproducible,
            toolchain=tuple(rule.toolchain),
        )

    def viewer(self, kind: str) -> str | None:
        """Return where the function is that shows artifacts of `kind`: `module:function`."""
        for pack in self._packs:
            if (pack.folder / "viewers" / f"{kind}.py").is_file():
                return f"{pack.package}.viewers.{kind}:view"
        return None

    def importers(self) -> tuple[Importer, ...]:
        """Return the importers of all packs, imported."""
        found = []
        for pack in self._packs:
            for path in sorted((pack.folder / "importers").glob("[!_]*.py")):
                module = importlib.import_module(f"{pack.package}.importers.{path.stem}")
                found.append(Importer(module.TITLE, module.recognises, module.convert))
        return tuple(found)

    def environment(self) -> dict[str, str]:
        """Return the environment variables with which every pack wants its workers to start."""
        merged: dict[str, str] = {}
        for pack in self._packs:
            merged |= getattr(importlib.import_module(pack.package), "WORKER_ENVIRONMENT", {})
        return merged

    def folders(self) -> list[str]:
        """Return the folders of all packs."""
        return [str(pack.folder) for pack in self._packs]

    @functools.cached_property
    def _packs(self) -> tuple[_Pack, ...]:
        from importlib.metadata import entry_points  # slow to import

        packs = {}
        for entry in entry_points(group=_GROUP):
            spec = importlib.util.find_spec(entry.value)
            for folder in (spec.submodule_search_locations or ()) if spec else ():
                packs[entry.value] = _Pack(entry.value, Path(folder))
        return tuple(packs[name] for name in sorted(packs))

    @functools.cached_property
    def _project(self) -> tuple[dict[str, tuple[str, Path]], list[Problem]]:
        """The rules of the project's files, all of which are imported, and what is wrong."""
        found: dict[str, tuple[str, Path]] = {}
        wrong: list[Problem] = []
        for file in self._project_rules:
            try:
                module = import_file(self._root, file, is_fresh=True)
                rules = rules_in(module, file)
            except ManifestError as error:
                wrong += error.problems
                continue
            for rule in rules:
                if rule.name in found:
                    wrong.append(_two_files(rule, file, self._relative(found[rule.name][1])))
                    continue
                found[rule.name] = (module.__name__, self._root / file)
                self._loaded[rule.name] = rule
        return found, wrong

    @functools.cached_property
    def _found(self) -> tuple[dict[str, tuple[str, Path]], list[Problem]]:
        """Module and file of each rule, and names that more than one file claims."""
        found = dict(self._project[0])
        wrong: list[Problem] = []
        for pack in self._packs:
            for name, module, path in _files_of(pack):
                if name in found:
                    ours = self._relative(found[name][1])
                    rule = self._loaded.get(name, name)
                    wrong.append(_two_files(rule, ours, self._relative(path)))
                else:
                    found[name] = (module, path)
        return found, wrong

    @property
    def _sources(self) -> dict[str, tuple[str, Path]]:
        return self._found[0]

    def _identity(self, path: Path) -> tuple[str, tuple[str, ...]]:
        from ftbuild.rulesource import source_digest

        if path not in self._identities:  # one file may hold several rules
            folders = [p.folder for p in self._packs if path.is_relative_to(p.folder)]
            digest, files = source_digest(path, folders[0] if folders else self._root)
            self._identities[path] = digest, tuple(self._relative(file) for file in files)
        return self._identities[path]

    def _relative(self, path: Path) -> str:
        for root in (self._root, self._root.resolve()):
            if path.is_relative_to(root) and not path.is_relative_to(sys.prefix):
                return path.relative_to(root).as_posix()
        return str(path)


def unknown_rule(name: str, names: Sequence[str]) -> UsageError:
    """Return the error for a rule that there is not."""
    fix = did_you_mean(name, names, "`ftbuild rules` lists all")
    return UsageError(f"there is no rule `{shown(name)}`", code="E0201", fix=fix)


def load_rule(root: Path, facts: RuleFacts) -> "Rule":
    """Return the rule that `facts` are about: for a worker, which has no registry."""
    if facts.module.startswith(PRIVATE):
        module = import_file(root, facts.file)
        return {rule.name: rule for rule in rules_in(module, facts.file)}[facts.name]
    return rule_of_pack(facts.name, facts.module, Path(facts.file))


def _files_of(pack: _Pack) -> Iterator[tuple[str, str, Path]]:
    """Yield name, module and file of each rule of a pack."""
    for folder, names, files in os.walk(pack.folder):
        names[:] = sorted(n for n in names if n not in _NOT_RULES and not n.startswith(("_", ".")))
        inside = Path(folder).relative_to(pack.folder).parts
        for file in sorted(files):
            stem, suffix = os.path.splitext(file)
            if suffix == ".py" and not stem.startswith("_"):
                yield stem, ".".join((pack.package, *inside, stem)), Path(folder, file)


def _two_files(rule: "Rule | str", one: str, other: str) -> Problem:
    """Return what is wrong with a rule in the file `one` (its name if it is not imported)."""
    name = rule if isinstance(rule, str) else rule.name
    line = None if isinstance(rule, str) else rule.function.__code__.co_firstlineno
    what = f"two files hold a rule `{name}`: {one} and {other}"
    fix = "rename one of them; a name means one rule"
    return Problem("E0214", what, Place(one, line, within=f"rule `{name}`"), fix=fix)
