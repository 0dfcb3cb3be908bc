"""Checkouts of one project in different places, each with a store of its own, and one remote."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from ftbuild.events import Event, Finished, Summary, Warned
from ftbuild.project import Project
from ftbuild.remote.backend import MAX_RECORD_BYTES, Backend
from ftbuild.remote.result import Result, decode_manifest
from ftbuild.transfer import Transfer

BIG = 1_150_000
TAIL = 1_060_000
NOISE = "openssl enc -aes-128-ctr -K 00 -iv 00"
MANIFEST = f"""\
[project]
name = "shared"
default = ["final"]
[command.clean]
srcs = {{ raw = "raw.txt" }}
run = "grep -v '^#' $raw > $out/f"
[command.big]
deps = {{ clean = "clean" }}
run = "yes $(cat $clean/f) | head -c {BIG} | {NOISE} > $out/big; echo x > $out/small; : > $out/no"
[command.final]
deps = {{ big = "big" }}
run = "mkdir $out/d; tail -c {TAIL} $big/big > $out/d/tail; cp $big/small $out/s; chmod +x $out/s"
"""


@dataclass
class Checkout:
    """One checkout; every call opens it anew, as every command does."""

    root: Path
    store: Path
    environment: dict[str, str] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    """Of the last build."""
    told: list[str] = field(default_factory=list)
    """What the last push or pull warned of."""

    @contextmanager
    def open(self, **options: bool) -> Iterator[Project]:
        names = ("FTBUILD_", "GITHUB_", "GITLAB_", "CI_", "AWS_", "AZURE_", "GOOGLE_")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(names)}
        given = {"FTBUILD_CACHE": str(self.store), **self.environment}
        with (
            mock.patch.dict(os.environ, {**kept, **given}, clear=True),
            Project.open(self.root, jobs=2, **options) as project,
        ):
            yield project

    def make(self, *names: str, force: tuple[str, ...] = (), **options: bool) -> dict[str, str]:
        """Build; return the outcome of each target."""
        self.events = []
        with self.open(**options) as project:
            project.make(names, force=force, on_event=self.events.append)
        return {e.label: e.outcome for e in self.events if isinstance(e, Finished)}

    def plan(self, *names: str, **options: bool) -> dict[str, str]:
        with self.open(**options) as project:
            return {v.label: v.state.value for v in project.plan(names).verdicts}

    def push(self, *names: str) -> dict[str, str]:
        self.told = []
        with self.open() as project:
            return outcomes(project.push(names, self.told.append, lambda _: None))

    def pull(self, *names: str, everything: bool = False) -> dict[str, str]:
        self.told = []
        with self.open() as project:
            return outcomes(
                project.pull(names, self.told.append, lambda _: None, everything=everything)
            )

    def warnings(self) -> list[str]:
        return [e.text for e in self.events if isinstance(e, Warned)]

    def summary(self) -> Summary:
        [found] = [e for e in self.events if isinstance(e, Summary)]
        return found

    def digests(self) -> dict[str, str | None]:
        return {e.label: e.digest for e in self.events if isinstance(e, Finished)}

    def output(self, target: str) -> Path:
        return self.root / "ftbuild-out" / target


def outcomes(transfer: Transfer) -> dict[str, str]:
    return {moved.label: str(moved.outcome) for moved in transfer.moved}


def checkout(place: Path, remote: str, environment: Mapping[str, str] | None = None) -> Checkout:
    """Make a checkout at `place`, with a store beside it."""
    root = place / "work"
    root.mkdir(parents=True)
    (root / "FTBUILD.toml").write_text(MANIFEST)
    (root / "raw.txt").write_text("# a comment\nhello\nworld\n")
    given = {"FTBUILD_REMOTE": remote, **(environment or {})}
    return Checkout(root, place / "store", given)


def counts(outcomes: Mapping[str, str]) -> Counter[str]:
    return Counter(outcomes.values())


def objects(found: Backend, a: Checkout) -> list[str]:
    """Return the names of all objects that a remote store has of a built checkout."""
    names = []
    with a.open() as project:
        keys = [verdict.key for verdict in project.plan().verdicts]
    for key in keys:
        data = found.get(f"ac/{key}", MAX_RECORD_BYTES)
        assert data is not None
        result = Result.decode(data)
        names.append(f"ac/{key}")
        names += [f"cas/{file.blob.digest}" for file in result.files if file.blob.size]
        for directory in result.directories:
            manifest = found.get(f"cas/{directory.manifest.digest}", MAX_RECORD_BYTES)
            assert manifest is not None
            names.append(f"cas/{directory.manifest.digest}")
            names += [f"cas/{blob.digest}" for blob in decode_manifest(manifest)]
    return sorted(set(names))
