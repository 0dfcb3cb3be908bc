"""Garbage collection: keep to a size and an age, never what is or may be in use.

Kept is a record if a workspace names its key, or it was used within the grace period, or it
fits into the bounds, last used first; pending ones always. A blob is kept while the bytes of
a kept record name its digest anywhere, a tree while a kept record is of it. All else goes if
it is older than the grace period. The order is records, then trees, then blobs, with a flush
after the records: a power cut in between leaves bytes without a record, never the reverse.

A writer that this process cannot see (locks that do nothing, a frozen machine) is what the
grace period is for; it should be longer than the longest build.
"""

import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ftbuild.digest import Digest, is_digest
from ftbuild.store import disk
from ftbuild.store.actions import DamagedRecord, decode
from ftbuild.store.durability import Flusher
from ftbuild.store.layout import Layout

WAIT_S = 10.0
"""Units: seconds. So long gc waits for running builds before it says who they are."""

_DIGEST = re.compile(rb'"([0-9a-f]{64})"')


@dataclass(frozen=True)
class Policy:
    """What may stay."""

    max_bytes: int | None
    max_age_s: float | None
    """Counted from the last use."""
    grace_s: float
    """Nothing younger is removed."""
    in_use: frozenset[Digest]
    """Keys whose records stay whatever the bounds."""
    dry_run: bool


@dataclass(frozen=True)
class Collected:
    """What gc removed, or in a dry run would remove."""

    records: int
    trees: int
    blobs: int
    others: int
    """Old scratch folders and toolchains, quarantined objects, temporary files."""
    freed_bytes: int
    kept_records: int
    kept_bytes: int


@dataclass
class _Thing:
    """A file or folder of the store."""

    name: str
    path: str
    size: int
    """What removing it frees."""
    age_s: float


@dataclass
class _Kept:
    records: set[Digest] = field(default_factory=set)
    trees: set[str] = field(default_factory=set)
    blobs: set[str] = field(default_factory=set)
    size: int = 0


@dataclass
class _Marked:
    """A record and what it holds on to."""

    key: Digest
    path: str
    size: int
    idle_s: float
    tree: str
    blobs: frozenset[str]


def collect(layout: Layout, policy: Policy, own: str | None) -> Collected:
    """Remove what `policy` does not keep; `own` is the name of our own session.

    The caller has the store alone.
    """
    now = time.time()
    blobs = {thing.name: thing for thing in _blobs(layout, now)}
    trees = {thing.name: thing for thing in _trees(layout, now)}
    records = sorted(_records(layout, now), key=lambda record: (record.idle_s, record.key))
    kept = _keep(records, blobs, trees, policy)
    for record in _records(layout, now, folder="pending"):
        kept.trees.add(record.tree)
        kept.blobs |= record.blobs

    old = policy.grace_s
    lost_records = [record for record in records if record.key not in kept.records]
    lost_trees = [t for t in trees.values() if t.name not in kept.trees and t.age_s > old]
    lost_blobs = [b for b in blobs.values() if b.name not in kept.blobs and b.age_s > old]
    others = [thing for thing in _others(layout, now, own) if thing.age_s > old]
    in_use = {f"{key}.json" for key in policy.in_use}
    others += [k for k in _loose(layout, "known", now) if k.age_s > old and k.name not in in_use]
    left = blobs.keys() - {blob.name for blob in lost_blobs}
    others += [c for c in _loose(layout, "chunks", now) if c.name not in left]
    listed = [s for s in _loose(layout, "siblings", now) if s.age_s > old]
    others += [s for s in listed if not _keys_in(s.path) & kept.records]
    if not policy.dry_run:
        _remove_records(layout, lost_records)
        for thing in (*lost_trees, *lost_blobs, *others):
            disk.remove(thing.path)
    gone: list[_Marked | _Thing] = [*lost_records, *lost_trees, *lost_blobs, *others]
    return Collected(
        records=len(lost_records),
        trees=len(lost_trees),
        blobs=len(lost_blobs),
        others=len(others),
        freed_bytes=sum(thing.size for thing in gone),
        kept_records=len(kept.records),
        kept_bytes=kept.size,
    )


def _keep(
    records: list[_Marked], blobs: dict[str, _Thing], trees: dict[str, _Thing], policy: Policy
) -> _Kept:
    """Return what stays: first what must, then by last use what fits."""
    kept = _Kept()
    is_safe = {r.key: r.key in policy.in_use or r.idle_s <= policy.grace_s for r in records}
    for record in (r for r in records if is_safe[r.key]):
        _add(kept, record, blobs, trees)
    for record in (r for r in records if not is_safe[r.key]):
        if policy.max_age_s is not None and record.idle_s > policy.max_age_s:
            continue
        size = _growth(kept, record, blobs, trees)
        if policy.max_bytes is None or kept.size + size <= policy.max_bytes:
            _add(kept, record, blobs, trees)
    return kept


def _growth(
    kept: _Kept, record: _Marked, blobs: dict[str, _Thing], trees: dict[str, _Thing]
) -> int:
    size = record.size + sum(blobs[b].size for b in record.blobs - kept.blobs if b in blobs)
    if record.tree not in kept.trees and record.tree in trees:
        size += trees[record.tree].size
    return size


def _add(kept: _Kept, record: _Marked, blobs: dict[str, _Thing], trees: dict[str, _Thing]) -> None:
    kept.size += _growth(kept, record, blobs, trees)
    kept.records.add(record.key)
    kept.trees.add(record.tree)
    kept.blobs |= record.blobs


def _remove_records(layout: Layout, records: Iterable[_Marked]) -> None:
    folders = {layout.folder("actions")}
    for record in records:
        disk.remove(record.path)
        folders.add(os.path.dirname(record.path))
    flusher = Flusher(layout.base)
    try:
        flusher.flush((), folders)
    finally:
        flusher.close()


def _records(layout: Layout, now: float, folder: str = "actions") -> Iterator[_Marked]:
    for path in _files(layout.folder(folder)):
        key = Digest(os.path.basename(path).removesuffix(".json"))
        try:
            stat, data = os.stat(path), disk.read(path)
            tree = decode(data, key).tree.digest
        except (FileNotFoundError, DamagedRecord):
            continue  # whoever looks for a damaged one moves it to quarantine/
        named = frozenset(found.decode() for found in _DIGEST.findall(data))
        yield _Marked(key, path, stat.st_size, now - stat.st_mtime, tree, named)


def _blobs(layout: Layout, now: float) -> Iterator[_Thing]:
    for path in _files(layout.folder("blobs")):
        stat = os.lstat(path)
        # ctime: mtime is not a time here, and a new link or a renewal shows in ctime.
        yield _Thing(os.path.basename(path), path, stat.st_size, now - stat.st_ctime)


def _trees(layout: Layout, now: float) -> Iterator[_Thing]:
    for path in _files(layout.folder("trees")):
        if is_digest(os.path.basename(path)):
            age_s = now - os.lstat(path).st_ctime
            yield _Thing(os.path.basename(path), path, _own_size(path), age_s)


def _others(layout: Layout, now: float, own: str | None) -> Iterator[_Thing]:
    # A folder of tmp/ says whose the pending records are.
    in_use = {own, *os.listdir(layout.folder("pending"))}
    for folder in ("scratch", "quarantine", "tmp", "partial", "toolchains"):
        if not os.path.isdir(layout.folder(folder)):  # the last two are made when needed
            continue
        with os.scandir(layout.folder(folder)) as found:
            entries = [entry for entry in found if entry.name not in in_use]
        for entry in entries:
            age_s = now - _changed_at(entry.path)
            yield _Thing(entry.name, entry.path, _own_size(entry.path), age_s)


def _keys_in(path: str) -> set[str]:
    """Return the keys that a list of siblings holds, and what else stands there."""
    return set(disk.read(path).decode("ascii", "replace").split())


def _loose(layout: Layout, folder: str, now: float) -> Iterator[_Thing]:
    """Yield what is no object, two levels below a folder, with the time since its use."""
    for path in _files(layout.folder(folder)):
        stat = os.lstat(path)
        yield _Thing(os.path.basename(path), path, stat.st_size, now - stat.st_mtime)


def _files(folder: str) -> Iterator[str]:
    """Return all paths two levels below a folder."""
    if not os.path.isdir(folder):  # `known` of a store that an earlier ftbuild made
        return
    for prefix in sorted(os.listdir(folder)):
        try:
            names = sorted(os.listdir(f"{folder}/{prefix}"))
        except NotADirectoryError:
            continue
        yield from (f"{folder}/{prefix}/{name}" for name in names)


def _changed_at(path: str) -> float:
    """Return when a file or a folder, or anything right inside it, last changed."""
    times = [os.lstat(path).st_ctime]
    if os.path.isdir(path) and not os.path.islink(path):
        with os.scandir(path) as entries:
            times += [entry.stat(follow_symlinks=False).st_ctime for entry in entries]
    return max(times)


def _own_size(path: str) -> int:
    """Return the bytes of the files that have no other name."""
    stat = os.lstat(path)
    if not os.path.isdir(path) or os.path.islink(path):
        return stat.st_size if stat.st_nlink == 1 else 0
    with os.scandir(path) as entries:
        names = [entry.path for entry in entries]
    return sum(_own_size(name) for name in names)
