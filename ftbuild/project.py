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

from ftbuild import artifacts, events, fastpath, lockfile, outputs, stores, usersettings, workspace
from ftbuild.action import Describer
from ftbuild.errors import UsageError
from ftbuild.graph import Graph
from ftbuild.history import History, workspace_folder
from ftbuild.lockfile import Lock
from ftbuild.plan import Plan, Planner, State, Verdict
from ftbuild.sources.resolver import Resolver
from ftbuild.store.statcache import StatCache
from ftbuild.store.store import Store

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
        return stores.open_store(self)

    def supply(self, tell: "Tell") -> "Supply | None":
        """Return what reaches beyond the store; None if nothing is named, or `--offline` is.

        `tell` gets a line for the user where a remote store does not do what it should.

        Raises:
            UsageError: E0570, an address is of no known form; E0571, a library is missing.
        """
        self.close_supply()
        self._supply = stores.open_supply(self, tell)
        return self._supply

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

    def describer(self, graph: Graph | None = None) -> Describer:
        """Return what makes actions of the targets of a graph, by default this workspace's."""
        resolver = Resolver(
            self.root,
            self.store,
            self.statcache,
            self.locked,
            os.environ,
            is_offline=self.options.offline,
        )
        return Describer(graph or self.graph, resolver, self.store, self.locked, os.environ)

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
        from ftbuild import lockupdate
        from ftbuild.build import Build

        wanted = self.resolve(names)
        forced = frozenset(self.resolve(force)) if force else frozenset()
        lockupdate.complete(self, self.graph.closure(wanted))
        build = Build(self, self.describer(), on_event, keep_going=keep_going, force=forced)
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
        plan = self.planner(self.describer()).make(wanted)
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
        planner = self.planner(self.describer())
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
        planner = self.planner(self.describer())
        planner.supply = self.supply(self.warnings.append)
        return planner

    def save(self) -> None:
        """Write down what was built and what is known of files."""
        self.history.save()
        with suppress(OSError):  # only costs the next build some hashing
            self.statcache.save()

    def check(self) -> Graph:
        """Read every package, check everything, build nothing.

        Raises:
            ManifestError: with all that is wrong in all files.
        """
        self.workspace = self._load(everything=True)
        return self.graph

    def path(self, name: str) -> Path:
        """Return the directory of the artifact of a target that is built.

        Raises:
            UsageError: it is not built, or no longer in the store.
        """
        return artifacts.path(self, name)

    def log(self, name: str) -> str:
        """Return what the last run of a target wrote: of a failed one where it failed since."""
        return artifacts.log(self, name)

    def inspect(self, name: str, row: int | None = None) -> "View":
        """Return an artifact, or one row of it, as a person wants it."""
        return artifacts.inspect(self, name, row)

    def diff(self, a: str, b: str) -> "View":
        """Return how two artifacts differ: two targets, or TARGET and TARGET@previous."""
        return artifacts.diff(self, a, b)

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
        from ftbuild import lockupdate

        return lockupdate.update(self, upgrade, upgrade_all=upgrade_all, check=check)

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

        if everything:
            self.check()
        wanted = [*self.graph.targets] if everything else self.resolve(names)
        labels = wanted if only else [t.label for t in self.graph.closure(wanted)]
        if since is not None:
            labels = selection.changed_since(self, since, labels)
        return labels if sample is None else selection.sample_of_built(self, labels, sample)

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
        from ftbuild import transfer

        return transfer.check_store(self.store, self.supply(self.warnings.append))

    def lineage(self, name: str) -> "list[Step]":
        """Return all steps from the sources to the artifact of `name`, which comes last.

        Raises:
            UsageError: it is not built, or no longer in the store.
        """
        from ftbuild import lineage

        target, record = artifacts.find(self, name)
        return lineage.lineage(self, target.label, record)

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
