"""Project: one opened workspace; what the command line and notebooks call.

with Project.open() as project:
    project.make(["merged_model"])
    print(project.path("merged_model"))
"""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from ftbuild import events, fastpath, lockfile, locking, outputs, signing, usersettings, workspace
from ftbuild.action import Describer
from ftbuild.digest import Digest
from ftbuild.errors import DifferenceError, UsageError
from ftbuild.graph import Graph, Target
from ftbuild.history import Built, History, log_of_failure, workspace_folder
from ftbuild.lockfile import Lock
from ftbuild.plan import Plan, Planner, State, Verdict
from ftbuild.sources.resolver import Resolver
from ftbuild.store.actions import Record
from ftbuild.store.blobs import MissingBlob
from ftbuild.store.statcache import StatCache
from ftbuild.store.store import Store
from ftbuild.store.trees import Entry, Tree
from ftbuild.store.trust import Trust

if TYPE_CHECKING:
    from ftbuild.build import BuildResult
    from ftbuild.doctor import Finding
    from ftbuild.lineage import Step
    from ftbuild.remote.guard import Tell
    from ftbuild.remote.service import Supply
    from ftbuild.store.check import Checked
    from ftbuild.store.gc import Collected
    from ftbuild.transfer import Transfer
    from ftbuild.verification import Limits, OnVerified, Verified
    from ftbuild.view import View

    Begin = Callable[[Transfer], None]

PREVIOUS = "@previous"
"""`diff helper helper@previous`: what a target was before its last build."""


@dataclass(frozen=True)
class Why:
    """The chain of targets below one, with all causes; the target itself is last."""

    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True)
class Options:
    """What a user may say to a whole command."""

    profile: str | None = None
    overrides: tuple[str, ...] = ()
    locked: bool = False
    """Refuse to change FTBUILD.lock."""
    frozen: bool = False
    """Take FTBUILD.lock as it is: look nothing up, and do not ask whether it is up to date."""
    offline: bool = False
    jobs: int | None = None


class Project:
    """One workspace. Opening it reads nothing but where its root is."""

    def __init__(self, root: Path, directory: Path, options: Options) -> None:
        self.root = root
        self.options = options
        self.directory = directory
        self.folder = workspace_folder(root)
        self.warnings: list[str] = []
        """What the user should know besides the result of a method."""
        self._supply: Supply | None = None

    @classmethod
    def open(
        cls,
        directory: Path | None = None,
        *,
        profile: str | None = None,
        overrides: Sequence[str] = (),
        locked: bool = False,
        frozen: bool = False,
        offline: bool = False,
        jobs: int | None = None,
    ) -> Self:
        """Open the workspace around `directory`, by default the current one.

        Raises:
            ManifestError: there is none.
        """
        from ftbuild.root import find_root

        here = Path(os.path.abspath(directory or Path.cwd()))
        if not here.is_dir():
            raise UsageError(f"there is no folder `{directory}`", code="E0022")
        options = Options(profile, tuple(overrides), locked, frozen, offline, jobs)
        return cls(find_root(here), here.resolve(), options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def package(self) -> str:
        """The package of the folder in which the project was opened."""
        relative = self.directory.relative_to(self.root).as_posix()
        return "" if relative == "." else relative

    def _load(self, wanted: Sequence[str] = (), *, everything: bool = False) -> workspace.Workspace:
        from ftbuild import labels

        full = [label for name in wanted if (label := labels.resolve(name, self.package))]
        return workspace.load(
            self.root,
            profile=self.options.profile,
            overrides=self.options.overrides,
            everything=everything,
            wanted=full,
        )

    @cached_property
    def workspace(self) -> workspace.Workspace:
        """The checked graph and the tables beside it."""
        return self._load()

    @property
    def graph(self) -> Graph:
        """All targets of the root and of the packages that they need."""
        return self.workspace.graph

    def resolve(self, names: Sequence[str]) -> list[str]:
        """Return the labels that `names` stand for; no names stand for the default targets."""
        if any(":" in name for name in names) or self.package:
            self.workspace = self._load(names)
        return self.graph.resolve(names, package=self.package)

    @cached_property
    def statcache(self) -> StatCache:
        """Digests of files by their stat."""
        return StatCache(self.folder / "stat.bin")

    @cached_property
    def store(self) -> Store:
        """The store of this workspace."""
        store = Store(self._store_root(), self.statcache, self._trust())
        store.register(self.folder)
        return store

    def _trust(self) -> Trust:
        trusted = frozenset(self.setting("cache", "trusted_keys") or ())
        required = self.setting("cache", "require_signed")
        is_required = bool(trusted) if required is None else bool(required)
        signer = signing.find()
        if is_required and signer is None:
            # Else what is built here would not be believed here. Nobody else believes it.
            signer = signing.read_or_make(self.folder / "key")
        return Trust(self.workspace.name, trusted, is_required, signer)

    def _store_root(self) -> Path:
        named = os.environ.get("FTBUILD_CACHE")
        if named:
            return Path(named).expanduser()
        inside = self.workspace.cache.get("dir")
        if inside:
            return self.root / Path(inside).expanduser()
        own = self.user.cache.get("dir")
        return Path(own).expanduser() if own else usersettings.default_store()

    def supply(self, tell: "Tell") -> "Supply | None":
        """Return what reaches beyond the store; None if nothing is named, or `--offline` is.

        `tell` gets a line for the user where a remote store does not do what it should.

        Raises:
            UsageError: E0570, an address is of no known form; E0571, a library is missing.
        """
        texts = [] if self.options.offline else self._remotes()
        if not texts:
            return None
        from ftbuild.remote import trust
        from ftbuild.remote.opening import open_supply

        self.close_supply()
        reason = trust.why_read_only(os.environ, self.setting("cache", "remote_write"))
        self._supply = open_supply(
            self.store,
            texts,
            root=self.root,
            can_write=reason is None,
            tell=tell,
            accept=self.store.trust.objection,
        )
        return self._supply

    def _remotes(self) -> list[str]:
        named = os.environ.get("FTBUILD_REMOTE")
        if named is not None:
            return named.split()
        given = self.setting("cache", "remote") or []
        return [given] if isinstance(given, str) else list(given)

    def close_supply(self) -> None:
        """Let go of remote stores."""
        if self._supply is not None:
            self._supply.close()
            self._supply = None

    @cached_property
    def user(self) -> usersettings.UserSettings:
        """The user's own settings, where neither flags, environment nor project say otherwise."""
        return usersettings.read()

    def setting(self, table: Literal["run", "cache"], name: str) -> Any:
        """Return a setting of the project, else of the user, else None."""
        project, user = getattr(self.workspace, table), getattr(self.user, table)
        return project.get(name, user.get(name))

    @cached_property
    def history(self) -> History:
        """What was last built here."""
        return History.load(self.root)

    @cached_property
    def locked(self) -> Lock:
        """FTBUILD.lock, with what this command added to it."""
        return lockfile.read(self.root)

    def _describer(self, graph: Graph | None = None) -> Describer:
        resolver = Resolver(
            self.root,
            self.store,
            self.statcache,
            self.locked,
            os.environ,
            is_offline=self.options.offline,
        )
        return Describer(graph or self.graph, resolver, self.store, self.locked, os.environ)

    def describer(self) -> Describer:
        """Return what makes actions of this workspace's targets."""
        return self._describer()

    def plan(self, names: Sequence[str] = ()) -> Plan:
        """Return where each of the targets `names` and of those they need stands, and why."""
        wanted = self.resolve(names)
        return self._planner_with_supply().make(wanted)

    def why(self, name: str, *, everything: bool = False) -> Why:
        """Return the chain of causes for which `name` would be rebuilt, down to the rows."""
        wanted = self.resolve([name])
        plan = self._planner_with_supply().make(wanted, with_rows=True)
        last = set(wanted)
        return Why(
            tuple(
                v
                for v in plan.verdicts
                if everything or v.label in last or v.state is not State.FRESH
            )
        )

    def make(
        self,
        names: Sequence[str] = (),
        *,
        keep_going: bool = False,
        force: Sequence[str] = (),
        on_event: events.OnEvent = events.ignore,
    ) -> "BuildResult":
        """Bring targets up to date; what was finished is kept, however this ends.

        Raises:
            InterruptedBuild: SIGINT or SIGTERM.
            DifferenceError: `locked`, and the lock would change.
            FtbuildError: the manifest, a source or the machine is not as it must be.
        """
        # Threads, subprocesses and sockets: a plan needs none of them.
        from ftbuild.build import Build

        wanted = self.resolve(names)
        forced = frozenset(self.resolve(force)) if force else frozenset()
        self._complete_lock(self.graph.closure(wanted))
        build = Build(self, self._describer(), on_event, keep_going=keep_going, force=forced)
        result = build.run(wanted)
        if not result.failed:
            build.remember(names, wanted)
        return result

    def push(self, names: Sequence[str], tell: "Tell", begin: "Begin") -> "Transfer":
        """Send what is built of `names` and all they need; `begin` is given the transfer.

        Raises:
            UsageError: E0572, no remote store is named.
            MachineError: E0573, E0574, nothing may or can be sent.
        """
        wanted = self.resolve(names)
        plan = self.planner(self._describer()).make(wanted)
        moving = self._transfer(tell, begin)
        moving.push(plan)
        return moving

    def pull(
        self, names: Sequence[str], tell: "Tell", begin: "Begin", *, everything: bool = False
    ) -> "Transfer":
        """Bring the results of `names`, with `everything` of all they need too, into the store.

        Raises:
            UsageError: E0572, no remote store is named.
            MachineError: E0574, a remote store cannot be used.
        """
        wanted = self.resolve(names)
        moving = self._transfer(tell, begin)
        planner = self.planner(self._describer())
        planner.supply = moving.supply
        moving.pull(planner.make(wanted), None if everything else wanted)
        return moving

    def _transfer(self, tell: "Tell", begin: "Begin") -> "Transfer":
        from ftbuild import transfer

        supply = self.supply(tell)
        if supply is None:
            raise transfer.no_remote()
        moving = transfer.Transfer(self.store, supply, tell)
        begin(moving)
        return moving

    def planner(self, describer: Describer) -> Planner:
        """Return what takes verdicts for this workspace."""
        return Planner(self.graph, describer, self.store, self.history)

    def _planner_with_supply(self) -> Planner:
        planner = self.planner(self._describer())
        planner.supply = self.supply(self.warnings.append)
        return planner

    def save(self) -> None:
        """Write down what was built and what is known of files."""
        self.history.save()
        with suppress(OSError):  # only costs the next build some hashing
            self.statcache.save()

    def _complete_lock(self, closure: Sequence[Target]) -> None:
        """Add to the lock what `closure` needs and it does not hold yet; write it if it changed."""
        if self.options.frozen:
            if not (self.root / lockfile.NAME).exists():
                raise DifferenceError(
                    f"there is no `{lockfile.NAME}`, and `--frozen` takes nothing that is not "
                    "locked",
                    code="E0504",
                    fix="run `ftbuild lock` and commit the file",
                )
            return
        new = locking.completed(self.locked, closure, self._describer())
        if new == self.locked:
            return
        if self.options.locked:
            raise DifferenceError(
                f"`{lockfile.NAME}` is not complete, and `--locked` forbids to change it",
                code="E0502",
                why="; ".join(lockfile.differences(self.locked, new)),
                fix="run `ftbuild lock` and commit the file",
            )
        lockfile.write(self.root, new)
        self.locked = new

    def check(self) -> Graph:
        """Read every package, check everything, build nothing.

        Raises:
            ManifestError: with all that is wrong in all files.
        """
        self.workspace = self._load(everything=True)
        return self.graph

    def _built(self, name: str) -> tuple[Target, Built]:
        label = self._one(name)
        built = self.history.built.get(label)
        if built is None:
            raise UsageError(
                f"`{label}` has not been built here", code="E0010", fix=f"ftbuild make {label}"
            )
        return self.graph.targets[label], built

    def _one(self, name: str) -> str:
        found = self.resolve([name])
        if len(found) != 1:
            raise UsageError(
                f"`{name}` is a family of {len(found)} targets",
                code="E0011",
                fix="name one of them: " + ", ".join(found[:5]),
            )
        return found[0]

    def _record(self, built: Built, label: str) -> Record:
        record = self.store.find(built.key)
        if record is None:
            raise UsageError(
                f"the result of `{label}` is no longer in the store",
                code="E0012",
                fix=f"ftbuild make {label}",
            )
        return record

    def path(self, name: str) -> Path:
        """Return the directory of the artifact of a target that is built.

        Raises:
            UsageError: it is not built, or no longer in the store.
        """
        target, built = self._built(name)
        return self.store.lay_out(self._record(built, target.label).tree)

    def log(self, name: str) -> str:
        """Return what the last run of a target wrote: of a failed one where it failed since."""
        label = self._one(name)
        failed = log_of_failure(self.folder / "log", label)
        built = self.history.built.get(label)
        if failed.is_file():
            return failed.read_text(encoding="utf-8", errors="replace")
        if built is None:
            raise UsageError(
                f"`{label}` has not been built here", code="E0010", fix=f"ftbuild make {label}"
            )
        digest = self._record(built, label).provenance.get("log")
        if digest is None or not self.store.has_blob(digest):
            return ""
        return self.store.blob_path(digest).read_text(encoding="utf-8", errors="replace")

    def inspect(self, name: str, row: int | None = None) -> "View":
        """Return an artifact, or one row of it, as a person wants it."""
        from ftbuild import viewing

        target, built = self._built(name)
        record = self._record(built, target.label)
        shown = viewing.Shown(
            target.kind, self.store.lay_out(record.tree), record.tree.digest, target.label
        )
        return viewing.call(self._viewer_of(target.kind), "inspect", [shown], [row])

    def diff(self, a: str, b: str) -> "View":
        """Return how two artifacts differ: two targets, or TARGET and TARGET@previous."""
        from ftbuild import viewing

        one, other = self._shown(a), self._shown(b)
        if one.kind != other.kind:
            raise UsageError(
                f"`{a}` is a {one.kind} and `{b}` a {other.kind}",
                code="E0013",
                fix="compare two artifacts of one kind",
            )
        return viewing.call(self._viewer_of(one.kind), "diff", [one, other], [])

    def _shown(self, name: str) -> Any:
        from ftbuild import viewing

        plain, _, _ = name.partition(PREVIOUS)
        target, built = self._built(plain)
        if name.endswith(PREVIOUS):
            before = self.history.previous.get(target.label)
            if before is None:
                raise UsageError(
                    f"`{target.label}` has no previous build with another output here",
                    code="E0014",
                    fix="compare two targets, or build it again after a change",
                )
            built = before
        record = self._record(built, target.label)
        path = self.store.lay_out(record.tree)
        return viewing.Shown(target.kind, path, record.tree.digest, name)

    def _viewer_of(self, kind: str) -> str:
        from ftbuild.registry import Registry

        found = Registry(self.root, self.workspace.project_rules).viewer(kind)
        if found is None:
            raise UsageError(
                f"there is no viewer for a {kind}",
                code="E0015",
                fix="`ftbuild path` prints where its files are",
            )
        return found.partition(":")[0]

    def clean(self, names: Sequence[str] = (), *, everything: bool = False) -> list[str]:
        """Remove links of `ftbuild-out`; the store keeps the artifacts. Returns the labels."""
        wanted = [*self.graph.targets] if everything or not names else self.resolve(names)
        removed = []
        for label in wanted:
            if outputs.remove(outputs.link_path(self.root, self.graph.targets[label])):
                removed.append(label)
            self.history.forget(label)
        self.history.save()
        fastpath.forget(self.root)
        return removed

    def gc(
        self,
        *,
        max_bytes: int | None = None,
        max_age_s: float | None = None,
        grace_s: float = 24 * 3600,
        dry_run: bool = False,
    ) -> "Collected":
        """Make the store smaller, never at the expense of what is in use."""
        return self.store.gc(
            max_bytes=max_bytes, max_age_s=max_age_s, grace_s=grace_s, dry_run=dry_run
        )

    def lock(
        self, upgrade: Sequence[str] = (), *, upgrade_all: bool = False, check: bool = False
    ) -> list[str]:
        """Bring FTBUILD.lock up to date with the whole workspace; return what changed.

        What no target of any profile needs is dropped. `upgrade` names libraries, sources, and
        targets whose sources to look up anew; `check` writes nothing.

        Raises:
            UsageError: E0503, the lock holds nothing of a name in `upgrade`.
        """
        before = self.locked
        graphs = [self.check(), *self._profiles()]
        new = lockfile.Lock() if upgrade_all else locking.without(before, upgrade, graphs[0])
        for graph in graphs:
            self.locked = new
            new = locking.completed(new, list(graph.targets.values()), self._describer(graph))
        if upgrade_all:  # what is not installed here cannot be looked up: it stays as it was
            new = new.with_libraries(
                {n: v for n, v in before.libraries.items() if n not in new.libraries}
            )
        new = locking.trimmed(new, graphs)
        self.locked = before if check else new
        lines = lockfile.differences(before, new)
        if lines and not check:
            lockfile.write(self.root, new)
        return lines

    def _profiles(self) -> list[Graph]:
        """Return the graph of the workspace under each of its profiles."""
        from ftbuild import manifest

        return [
            workspace.load(self.root, profile=name, overrides=(), everything=True).graph
            for name in manifest.profiles(self.root)
        ]

    def choose(
        self,
        names: Sequence[str] = (),
        *,
        everything: bool = False,
        only: bool = False,
        since: str | None = None,
        sample: int | None = None,
    ) -> list[str]:
        """Return the labels to verify: of the targets `names` and, unless `only`, what they need.

        Raises:
            UsageError: E0016, `since` is no commit; E0017, of a sample nothing is built.
        """
        from ftbuild import selection
        from ftbuild.verification import Limits, Verifier

        if everything:
            self.check()
        wanted = [*self.graph.targets] if everything else self.resolve(names)
        labels = wanted if only else [t.label for t in self.graph.closure(wanted)]
        if since is not None:
            labels = selection.changed_since(self, since, labels)
        if sample is not None and labels:
            keys = Verifier(self, Limits(), events.ignore).keys(labels)
            if not keys:
                raise UsageError(
                    "none of these targets is built, so there is nothing to verify",
                    code="E0017",
                    fix="`ftbuild make` builds them, `ftbuild pull` brings them",
                )
            labels = selection.sample(keys, sample)
        return labels

    def verify(
        self,
        labels: Sequence[str],
        limits: "Limits",
        on_event: events.OnEvent = events.ignore,
        on_verified: "OnVerified | None" = None,
    ) -> "list[Verified]":
        """Run the actions of the targets `labels` again in a clean place; compare the outputs."""
        from ftbuild.verification import Verifier

        verifier = Verifier(self, limits, on_event)
        return verifier.run(labels, on_verified or (lambda found: None))

    def check_store(self) -> "Checked":
        """Hash every object of the store; damaged ones are moved away, and mended if possible."""
        supply = self.supply(self.warnings.append)
        if supply is None:
            return self.store.check()
        owners: dict[Digest, tuple[Record, Entry]] = {}

        def fetch(digest: Digest) -> bool:
            if not owners:
                owners.update(
                    (e.digest, (r, e)) for r in self.store.records() for e in r.tree.entries
                )
            if digest not in owners:
                return False
            record, entry = owners[digest]
            with suppress(MissingBlob):
                supply.fetch(record, Tree((entry,)))
                return True
            return False

        return self.store.check(fetch)

    def lineage(self, name: str) -> "list[Step]":
        """Return all steps from the sources to the artifact of `name`, which comes last.

        Raises:
            UsageError: it is not built, or no longer in the store.
        """
        from ftbuild import lineage

        target, built = self._built(name)
        return lineage.lineage(self, target.label, self._record(built, target.label))

    def doctor(self) -> "list[Finding]":
        """Return what is and is not as ftbuild needs it on this machine."""
        from ftbuild import doctor

        return doctor.examine(self)

    def close(self) -> None:
        """Let go of the stores, and keep what was learned about files."""
        self.close_supply()
        if "store" in self.__dict__:
            try:
                self.store.close()
            finally:
                self.save()
                del self.__dict__["store"]
