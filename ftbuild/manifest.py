"""All FTBUILD.toml files of a workspace, read and laid over each other: no rule is known here.

The root's file is read first, then, as labels name them, those of other packages. What is
wrong is collected over all files, so that a user sees it in one go; `read` hands it on to
`graph.build`, which adds what only the rules can tell.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftbuild import labels, matrix, overlay, packages, settings
from ftbuild.declaration import FILE_NAME
from ftbuild.declaration import Declaration as Declaration
from ftbuild.errors import ManifestError
from ftbuild.redaction import holds_secret
from ftbuild.root import find_root as find_root
from ftbuild.settings import ProjectTable as ProjectTable
from ftbuild.spans import Finding, KeyPath, problems
from ftbuild.wording import kind_of_value, nearest, shown

_NAMED = re.compile(rf"//({labels.PACKAGE.pattern}):")


@dataclass(frozen=True)
class Manifest:
    """What the FTBUILD.toml files of a workspace say."""

    root: Path
    project: ProjectTable
    run: dict[str, Any]
    cache: dict[str, Any]
    declarations: tuple[Declaration, ...]
    """Of the root first, then of the packages by their names; in each as declared."""
    texts: dict[str, bytes] = field(repr=False)
    """The bytes of every FTBUILD.toml that was read, by its path relative to the root."""
    broken: frozenset[str] = frozenset()
    """Packages whose file is there and cannot be read: their targets are not missed."""
    unusable: frozenset[str] = frozenset()
    """Labels of targets that are declared and wrong: they are not missed either."""
    findings: tuple[Finding, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """Every FTBUILD.toml that was read, relative to the root."""
        return tuple(self.texts)

    @property
    def packages(self) -> frozenset[str]:
        """Every package that was read."""
        return frozenset(file[: -len(FILE_NAME)].rstrip("/") for file in self.texts)


def load(
    root: Path,
    *,
    profile: str | None = None,
    overrides: Sequence[str] = (),
    everything: bool = False,
    wanted: Sequence[str] = (),
) -> Manifest:
    """Read the manifest as `read` does, and refuse one with anything wrong.

    Raises:
        ManifestError: with all that is wrong in all files.
    """
    manifest = read(
        root, profile=profile, overrides=overrides, everything=everything, wanted=wanted
    )
    if manifest.findings:
        raise ManifestError(problems(manifest.findings, manifest.texts))
    return manifest


def read(
    root: Path,
    *,
    profile: str | None = None,
    overrides: Sequence[str] = (),
    everything: bool = False,
    wanted: Sequence[str] = (),
) -> Manifest:
    """Read the root's FTBUILD.toml and those of the packages that labels name.

    `wanted` are labels from outside whose packages are read too; with `everything` each
    package of the workspace is. What is wrong is in the result's `findings`: only
    `graph.build` may use such a manifest.
    """
    named = {p for text in (*wanted, *overrides) for p in _NAMED.findall(text)}
    reading = packages.read_all(root, named, everything=everything)
    broken = frozenset(reading.broken)
    root_tables = reading.tables.get("", {})
    declared, findings = _declarations(reading)
    if "" not in broken:
        profiles = root_tables.get("profile", {})
        declared, more = overlay.apply_profiles(declared, profiles, profile, broken)
        findings += more
    declared, more = overlay.apply_overrides(declared, overrides, broken)
    findings += more
    declarations, more = _with_members(declared, reading.unusable)
    findings += more
    findings += [found for d in declarations for found in _secrets(d)]
    good: dict[str, dict[str, Any]] = {}
    for name in settings.SETTINGS:
        good[name], more = settings.check(root_tables, name, FILE_NAME)
        findings += more
    rules, more = _rule_files(root, good["project"].get("rules", []))
    default = tuple(good["project"].get("default", ()))
    return Manifest(
        root=root,
        project=ProjectTable(good["project"].get("name", root.name), default, rules),
        run=good["run"],
        cache=good["cache"],
        declarations=declarations,
        texts={packages.file_of(p): text for p, text in sorted(reading.texts.items())},
        broken=broken,
        unusable=frozenset(reading.unusable - {d.label for d in declarations}),
        findings=(*reading.findings, *findings, *more),
    )


def profiles(root: Path) -> tuple[str, ...]:
    """Return the names of the profiles of a workspace."""
    table = packages.read_all(root, set(), everything=False).tables.get("", {}).get("profile", {})
    return tuple(table) if isinstance(table, dict) else ()


def _secrets(declaration: Declaration) -> Iterator[Finding]:
    """Yield each value that would carry a secret into keys, records and the lock."""
    for path, text in _texts(declaration.attributes, ()):
        held = holds_secret(text)
        if held is not None:
            file, keys = declaration.origin(path)
            name = next((key for key in reversed(path) if isinstance(key, str)), "it")
            what = f"`{name}` holds {held}: all who read the project or its cache would know it"
            fix = "keep it in an environment variable: a `command` takes `env`, SQL `url_env`"
            yield Finding("E0118", what, file, keys, fix=fix)


def _texts(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(item, (*path, key))
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from _texts(item, (*path, place))


def _declarations(reading: packages.Reading) -> tuple[dict[str, Declaration], list[Finding]]:
    """Return all targets by label, families as one, and what is wrong with their tables."""
    declared: dict[str, Declaration] = {}
    findings: list[Finding] = []
    for package in sorted(reading.tables):
        folded: dict[str, Declaration] = {}
        for rule, targets in reading.tables[package].items():
            if rule in settings.RESERVED:
                if package:
                    findings.append(_root_only(package, rule))
                continue
            if not isinstance(targets, dict):
                findings.append(_no_target(package, (rule,), targets))
                continue
            for name, attributes in targets.items():
                target = Declaration(package, rule, name, name, attributes)
                wrong = _misnamed(target) or _doubled(target, folded.get(name.casefold()))
                if wrong is not None:
                    findings.append(wrong)
                    reading.unusable.add(target.label)
                else:
                    folded[name.casefold()] = declared[target.label] = target
    return declared, findings


def _root_only(package: str, table: str) -> Finding:
    what = f"[{table}] belongs into the FTBUILD.toml of the root alone"
    file = packages.file_of(package)
    fix = f"move it from `{file}` to `{FILE_NAME}`"
    return Finding("E0108", what, file, (table,), of="key", fix=fix)


def _no_target(package: str, path: KeyPath, value: Any) -> Finding:
    what = f"`{shown('.'.join(map(str, path)))}` should be a table; found {kind_of_value(value)}"
    fix = "a target is a table `[RULE.TARGET]`, such as `[sft.helper]`"
    return Finding("E0108", what, packages.file_of(package), path, of="key", fix=fix)


def _misnamed(target: Declaration) -> Finding | None:
    path: KeyPath = (target.rule, target.name)
    if not isinstance(target.attributes, dict):
        return _no_target(target.package, path, target.attributes)
    if labels.NAME.fullmatch(target.name):
        return None
    what = f"`{shown(target.name)}` cannot be a target's name"
    leaves = {"..", "/", "\\"} & {target.name, *target.name}
    why = "its output would lie outside of `ftbuild-out`" if leaves else None
    fix = "a name has up to 128 of A-Z a-z 0-9 _ . - and begins with a letter, a digit or _"
    return Finding("E0112", what, target.file, path, of="key", why=why, fix=fix)


def _doubled(target: Declaration, other: Declaration | None) -> Finding | None:
    if other is None:
        return None
    if other.name == target.name:
        code, what = "E0111", f"`{target.name}` is declared twice"
        fix = "labels name a target without its rule: give one of them another name"
    else:
        code, what = "E0113", f"`{other.name}` and `{target.name}` differ in case alone"
        fix = "some file systems take them for one: give one of them another name"
    path, first = (target.rule, target.name), (other.rule, other.name)
    return Finding(code, what, target.file, path, of="key", fix=fix, first=first)


def _with_members(
    declared: Mapping[str, Declaration], unusable: set[str]
) -> tuple[tuple[Declaration, ...], list[Finding]]:
    """Return the targets, each family replaced by its members or found `unusable`."""
    out: list[Declaration] = []
    findings: list[Finding] = []
    for target in declared.values():
        if "matrix" in target.attributes:
            members, more = matrix.expand(target)
            out += members
            findings += more
            if more:
                unusable.add(target.label)
        else:
            out.append(target)
    return tuple(out), findings


def _rule_files(root: Path, files: Sequence[str]) -> tuple[tuple[str, ...], list[Finding]]:
    """Return the project's rule files that can be read, and what is wrong with the others."""
    good: list[str] = []
    findings: list[Finding] = []
    for place, file in enumerate(files):
        path = Path(file)
        what, fix = None, None
        if path.is_absolute() or ".." in path.parts:
            what = f"the rule file `{shown(file)}` is outside the workspace"
            fix = "copy it into the workspace: its source is part of what it builds"
        elif path.suffix != ".py":
            what = f"the rule file `{shown(file)}` is no Python file"
            fix = "name a file that ends in `.py`"
        elif not (root / path).is_file():
            what = f"there is no rule file `{shown(file)}`"
            folder = (root / path).parent
            beside = [p.name for p in folder.glob("*.py")] if folder.is_dir() else []
            match = nearest(path.name, beside)
            fix = (
                f"did you mean `{path.with_name(match).as_posix()}`?"
                if match
                else "paths are relative to the root's FTBUILD.toml"
            )
        else:
            good.append(path.as_posix())
        if what is not None:
            findings.append(Finding("E0116", what, FILE_NAME, ("project", "rules", place), fix=fix))
    return tuple(good), findings
