"""Transfer: `push` and `pull`, what a build does by the way, done on request and all of it."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ftbuild.digest import Digest
from ftbuild.errors import MachineError, UsageError
from ftbuild.plan import State, Verdict
from ftbuild.remote import window
from ftbuild.remote.backend import RemoteError
from ftbuild.remote.sending import Outcome, Sender, Sent
from ftbuild.remote.service import Supply, different
from ftbuild.store.actions import Record
from ftbuild.store.blobs import MissingBlob
from ftbuild.store.check import Checked
from ftbuild.store.store import Store
from ftbuild.store.trees import Entry, Tree

if TYPE_CHECKING:
    from ftbuild.plan import Plan

_LARGE_BYTES = 64 << 20
"""Such results go one after another: each has some 64 MiB of chunks in memory."""


@dataclass(frozen=True)
class Moved:
    """What became of one target."""

    label: str
    outcome: str
    """sent, present, different, lost, fetched, here, missing, stale, unknown."""
    size: int = 0


@dataclass
class Transfer:
    """One `push` or `pull`; the counts may be looked at from another thread while it runs."""

    store: Store
    supply: Supply
    tell: Callable[[str], None]
    total_bytes: int = 0
    done_bytes: int = 0
    moved: list[Moved] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def push(self, plan: "Plan") -> None:
        """Send the results of all fresh targets of `plan`.

        Raises:
            MachineError: E0573, nothing may be sent; E0574, a remote store cannot be used.
        """
        senders = [s for s in self.supply.senders if s.layer.guard.can_write]
        if not senders:
            raise MachineError(
                "no remote store may be written to from here",
                code="E0573",
                fix="see `remote_write` of [cache] and FTBUILD_REMOTE_WRITE",
            )
        records = dict(self._records(plan))
        self.total_bytes = len(senders) * sum(record.tree.size for record in records.values())
        for sender in senders:
            for verdict, sent in self._send_all(sender, records):
                self._note(verdict.label, sent, records[verdict], sender.layer.name)

    def _records(self, plan: "Plan") -> Iterator[tuple[Verdict, Record]]:
        for verdict in plan.verdicts:
            if verdict.state is not State.FRESH or verdict.key is None:
                self.moved.append(Moved(verdict.label, verdict.state.value))
                continue
            record = self.store.find(verdict.key)
            if record is not None:
                yield verdict, record
            elif self.store.known(verdict.key) is not None:  # it is from there
                self.moved.append(Moved(verdict.label, Outcome.PRESENT))
            else:
                self.moved.append(Moved(verdict.label, Outcome.LOST))

    def _send_all(
        self, sender: Sender, records: dict[Verdict, Record]
    ) -> Iterator[tuple[Verdict, Sent]]:
        def send(item: tuple[Verdict, Record]) -> tuple[Verdict, Sent]:
            return item[0], sender.send(item[1], is_thorough=True, progress=self._progress)

        small = [item for item in records.items() if item[1].tree.size < _LARGE_BYTES]
        large = [item for item in records.items() if item[1].tree.size >= _LARGE_BYTES]
        try:
            yield from window.in_order(self.supply.errands, send, small)
            yield from map(send, large)
        except RemoteError as error:
            raise MachineError(
                f"the remote `{sender.layer.name}` cannot be used",
                code="E0574",
                why=error.what,
                fix="run it again: what arrived is not sent again",
            ) from error

    def _progress(self, size: int) -> None:
        with self._lock:
            self.done_bytes += size

    def _note(self, label: str, sent: Sent, record: Record, remote: str) -> None:
        self.moved.append(Moved(label, sent.outcome, record.tree.size))
        if sent.outcome is Outcome.DIFFERENT:
            self.tell(different(label, remote, sent.differing))

    def pull(self, plan: "Plan", wanted: Sequence[str] | None) -> None:
        """Bring the results of `wanted`, or of all targets of `plan`, into the store.

        Raises:
            MachineError: E0574, a remote store cannot be used; or the disk is full.
        """
        chosen = [v for v in plan.verdicts if wanted is None or v.label in wanted]
        here = {v.label: self.store.find(v.key) for v in chosen if v.key is not None}
        for verdict in chosen:
            record = here.get(verdict.label)
            if record is not None:
                self.moved.append(Moved(verdict.label, "here", record.tree.size))
            elif verdict.key is None or verdict.state is State.STALE:
                self.moved.append(Moved(verdict.label, "missing"))
        asked = [v for v in chosen if v.label not in {m.label for m in self.moved}]
        self._fetch_all(asked)
        down = [lay.name for lay in self.supply.remotes if not lay.guard.is_open]
        if down and any(m.outcome == "missing" for m in self.moved):
            raise MachineError(
                f"the remote `{down[0]}` cannot be used", code="E0574", fix="try it again later"
            )

    def _fetch_all(self, asked: Sequence[Verdict]) -> None:
        records = {v: self.supply.find(v.key) for v in asked if v.key is not None}
        self.total_bytes = sum(r.tree.size for r in records.values() if r is not None)
        for verdict, record in records.items():
            if record is None:
                self.moved.append(Moved(verdict.label, "missing"))
                continue
            try:
                self.supply.fetch(record, record.tree)
            except MissingBlob:
                self.moved.append(Moved(verdict.label, "missing"))
                continue
            self.done_bytes += record.tree.size
            self.moved.append(Moved(verdict.label, "fetched", record.tree.size))
        self.store.flush()


def no_remote() -> UsageError:
    """Return the error that there is nowhere to send to or to fetch from."""
    return UsageError(
        "no remote store is named",
        code="E0572",
        fix='set FTBUILD_REMOTE, or write `remote = "https://…"` below [cache] in FTBUILD.toml',
    )


def check_store(store: Store, supply: Supply | None) -> Checked:
    """Hash every object of a store; damaged ones are moved away, and mended if `supply` can."""
    if supply is None:
        return store.check()
    owners: dict[Digest, tuple[Record, Entry]] = {}

    def fetch(digest: Digest) -> bool:
        if not owners:
            owners.update((e.digest, (r, e)) for r in store.records() for e in r.tree.entries)
        if digest not in owners:
            return False
        record, entry = owners[digest]
        with suppress(MissingBlob):
            supply.fetch(record, Tree((entry,)))
            return True
        return False

    return store.check(fetch)
