"""Run one rule alone, in this process: for the tests of every rule pack.

artifact = run_rule(loud, {"text": text_file(tmp_path, "hello")}, {"mark": "?"}, tmp_path)
"""

import itertools
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftbuild.digest import Digest, canonical_json, hash_file, hash_value
from ftbuild.kinds import Artifact, missing_files
from ftbuild.outside import Source, SourceFile
from ftbuild.rule import Fragment, Piece, Rule

_counter = itertools.count()


@dataclass
class RecordingContext:
    """A `Context` that runs fragments one after another and keeps all that it is told."""

    out: Path
    scratch: Path
    cpus: int = 1
    memo: dict[str, Fragment] = field(default_factory=dict)
    """Give the same dict to two runs, and the second reuses fragments of the first."""
    logs: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    steps: list[tuple[int, int | None, dict[str, float]]] = field(default_factory=list)
    known: dict[str, Any] = field(default_factory=dict)
    """What the rule said by `facts`."""

    def log(self, text: str) -> None:
        """Keep `text` in `logs`."""
        self.logs.append(text)

    def warn(self, text: str) -> None:
        """Keep `text` in `warnings`."""
        self.warnings.append(text)

    def progress(self, step: int, steps: int | None = None, **metrics: float) -> None:
        """Keep the step in `steps`."""
        self.steps.append((step, steps, metrics))

    def facts(self, **values: Any) -> None:
        """Keep the figures in `known`."""
        self.known.update(values)

    def fragments(
        self,
        function: Callable[[Piece, Path], Any],
        pieces: Iterable[Piece],
        *,
        of: str | tuple[str, ...],
        siblings: Callable[[list[Fragment]], None] | None = None,
    ) -> list[Fragment]:
        """Run the pieces here, in their order; a piece known to `memo` is not run again."""
        results = []
        family = hash_value([of, function.__qualname__])
        if siblings is not None:
            siblings([kept for key, kept in self.memo.items() if key.startswith(family)][::-1])
        for piece in pieces:
            key = f"{family} {hash_value(piece.identity)}"
            if key in self.memo:
                kept = self.memo[key]
                results.append(Fragment(kept.path, kept.value, was_built=False))
                continue
            out = self.scratch.parent / f"fragment-{next(_counter)}"
            out.mkdir(parents=True)
            fragment = Fragment(out, function(piece, out), was_built=True)
            self.memo[key] = fragment
            results.append(fragment)
        return results

    def once(self, function: Callable[[Path], Any], name: str, *, of: str) -> Path:
        """Run the function here."""
        out = self.scratch.parent / f"once-{next(_counter)}"
        out.mkdir(parents=True)
        function(out)
        return out

    def digest(self, source: Path) -> Digest:
        """Hash `source`."""
        return hash_file(source)

    def link(self, source: Path, name: str) -> None:
        """Copy `source` to `out / name`."""
        (self.out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, self.out / name)


def context(directory: Path, **settings: Any) -> RecordingContext:
    """Return a context whose output and scratch folders are new, below `directory`."""
    number = next(_counter)
    out, scratch = directory / f"out-{number}", directory / f"scratch-{number}"
    out.mkdir(parents=True)
    scratch.mkdir(parents=True)
    return RecordingContext(out, scratch, **settings)


def run_rule(
    function: Callable[..., Any],
    inputs: Mapping[str, Any],
    params: Mapping[str, Any],
    directory: Path,
    *,
    ctx: RecordingContext | None = None,
) -> Artifact:
    """Run a rule as a build would and return its artifact.

    `inputs` are artifacts and sources (`source(path)`), `params` values as in FTBUILD.toml.

    Raises:
        pydantic.ValidationError: `params` or `inputs` do not fit the rule.
        AssertionError: the output lacks a file that its kind must hold.
        RuleError: whatever the rule raises.
    """
    rule: Rule = function.__ftbuild_rule__  # type: ignore[attr-defined]  # set by @rule
    ctx = ctx or context(directory)
    typed_params = rule.params.model_validate_json(canonical_json(dict(params)))
    typed_inputs = rule.inputs.model_validate(dict(inputs))
    kinds = {name: _kinds_of(value) for name, value in inputs.items() if value is not None}
    if rule.check is not None:
        rule.check(kinds, typed_params)
    rule.function(ctx, typed_inputs, typed_params)
    kind = rule.output_kind(kinds, typed_params)
    files = sorted(p.relative_to(ctx.out).as_posix() for p in ctx.out.rglob("*") if p.is_file())
    assert not missing_files(kind, files), (kind.must_hold, files)
    return kind(path=ctx.out, digest=tree_digest(ctx.out))


def _kinds_of(value: Any) -> tuple[str, ...]:
    if isinstance(value, Artifact):
        return (value.kind,)
    if isinstance(value, dict):
        return tuple(k for v in value.values() for k in _kinds_of(v))
    if isinstance(value, list | tuple):
        return tuple(k for v in value for k in _kinds_of(v))
    return ()


def tree_digest(directory: Path) -> Digest:
    """Return one digest for all files below `directory`: equal bytes, equal digest."""
    files = sorted(p for p in directory.rglob("*") if p.is_file())
    return hash_value([[p.relative_to(directory).as_posix(), hash_file(p)] for p in files])


def artifact(kind: type[Artifact], directory: Path) -> Artifact:
    """Return the folder `directory` as an artifact of `kind`, to be another rule's input."""
    return kind(path=directory, digest=tree_digest(directory))


def source(*paths: Path) -> Source:
    """Return files, or one folder, as a rule sees them when a manifest names them."""
    if len(paths) == 1 and paths[0].is_dir():
        folder = paths[0]
        found = [(p, p.relative_to(folder).as_posix()) for p in sorted(folder.rglob("*"))]
        pairs = [(p, r) for p, r in found if p.is_file()]
    else:
        pairs = [(p, "file" + "".join(p.suffixes)) for p in paths]
    files = tuple(SourceFile(p, r, hash_file(p), str(p)) for p, r in pairs)
    return Source(files, spec=", ".join(str(p) for p in paths))
