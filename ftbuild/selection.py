"""Which targets to verify: those that are named, a sample, or those that changed since a commit."""

import io
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftbuild import events, lockfile, workspace
from ftbuild.digest import hash_value
from ftbuild.errors import FtbuildError, UsageError
from ftbuild.graph import Graph, Target, pins_of
from ftbuild.sources.resolver import Resolver
from ftbuild.verification import Limits, Verifier

if TYPE_CHECKING:
    from ftbuild.project import Project


def sample(keys: Mapping[str, str], count: int) -> list[str]:
    """Return `count` of the labels, chosen by the content of all: the same for everybody.

    `keys` holds the action key of each label. Whatever changes a key draws anew, so that over
    many commits everything is chosen in its turn.
    """
    seed = hash_value(sorted(keys.values()))
    return sorted(keys, key=lambda label: hash_value([seed, keys[label], label]))[:count]


def sample_of_built(project: "Project", labels: Sequence[str], count: int) -> list[str]:
    """Return `count` of the targets `labels` that are built here.

    Raises:
        UsageError: E0017, none of them is.
    """
    if not labels:
        return []
    keys = Verifier(project, Limits(), events.ignore).keys(labels)
    if not keys:
        raise UsageError(
            "none of these targets is built, so there is nothing to verify",
            code="E0017",
            fix="`ftbuild make` builds them, `ftbuild pull` brings them",
        )
    return sample(keys, count)


def changed_since(project: "Project", revision: str, labels: Sequence[str]) -> list[str]:
    """Return which of the targets `labels` are not what they were at a commit of git.

    A target changed with what its table says, its rule, its libraries, its sources, or with
    anything below it.

    Raises:
        UsageError: E0016, there is no such commit, or no git.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = _check_out(project.root, revision, Path(folder))
        try:
            old = workspace.load(root, profile=project.options.profile, overrides=(),
                                 everything=True).graph  # fmt: skip
        except FtbuildError:  # it was no workspace then: all of it is new
            return list(labels)
        now = _identities(project, project.root, project.graph, project.locked)
        then = _identities(project, root, old, lockfile.read(root))
    changed: set[str] = set()
    for target in project.graph.closure(labels):
        is_new = now[target.label] != then.get(target.label)
        if is_new or any(edge.label in changed for edge in target.edges):
            changed.add(target.label)
    return [label for label in labels if label in changed]


def _identities(
    project: "Project", root: Path, graph: Graph, lock: lockfile.Lock
) -> dict[str, Any]:
    resolver = Resolver(root, project.store, project.statcache, lock, {})
    return {t.label: _identity(t, graph, resolver, lock) for t in graph.targets.values()}


def _identity(target: Target, graph: Graph, resolver: Resolver, lock: lockfile.Lock) -> Any:
    """Return all that a target's own table, rule and sources are, without what is below it."""
    facts = graph.rules[target.rule]
    try:
        sources: Any = {
            name: [s.part() for s in (value.values() if isinstance(value, dict) else [value])]
            for name, value in resolver.sources(target, facts).items()
        }
    except FtbuildError:  # a file that git does not hold: known by its name alone
        sources = target.sources
    edges = [(e.field, e.place, e.label, e.part) for e in target.edges]
    libraries = {name: lock.libraries.get(name) for name in pins_of(target, facts)}
    rule = (facts.name, facts.version, facts.source, lock.toolchains.get(facts.name))
    return rule, target.params, edges, sources, target.variables, libraries


def _check_out(root: Path, revision: str, folder: Path) -> Path:
    """Lay out the workspace as it was at a commit; return where it lies."""
    prefix = _git(root, "rev-parse", "--show-prefix").decode().strip().rstrip("/")
    commit = _git(root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    top = _git(root, "rev-parse", "--show-toplevel").decode().strip()
    below = [prefix] if prefix else []
    data = _git(Path(top), "archive", "--format=tar", commit.decode().strip(), *below)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        archive.extractall(folder, filter=_safe)
    return folder / prefix


def _safe(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    """Leave out what would lead out of the folder, such as an absolute link."""
    try:
        return tarfile.data_filter(member, folder)
    except tarfile.FilterError:
        return None


def _git(root: Path, *args: str) -> bytes:
    try:
        done = subprocess.run(["git", *args], cwd=root, capture_output=True, check=False)
    except OSError as e:
        raise _unknown(args, str(e)) from e
    if done.returncode:
        raise _unknown(args, done.stderr.decode(errors="replace"))
    return done.stdout


def _unknown(args: Sequence[str], said: str) -> UsageError:
    return UsageError(
        f"git does not know what changed: `git {' '.join(args)}` fails",
        code="E0016",
        why=(said.strip().splitlines() or ["there is no such commit"])[-1],
        fix="name a commit that this clone holds (`git fetch --unshallow` brings all)",
    )
