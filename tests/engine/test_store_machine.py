"""A store against a dict, under all that may happen to it, in any order hypothesis can think of."""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from ftbuild.digest import Digest
from ftbuild.store import blobs
from ftbuild.store.blobs import MissingBlob
from ftbuild.store.statcache import StatCache
from ftbuild.store.store import Store
from store_kit import contents, corrupt_blobs, flip_bit, key_of, put, record_of

NAMES = st.sampled_from(["a", "b", "c", "d"])
PAYLOADS = {"small": b"small", "other": b"other", "empty": b"", "large": b"large" * 20_000}
TREES = st.dictionaries(
    st.sampled_from(["x", "sub/y", "sub/deep/z"]), st.sampled_from(sorted(PAYLOADS)), max_size=3
)


def put_digest(files: dict[str, bytes]) -> str:
    """Return the digest that the tree of `files` must have; computed here, by hashlib."""
    entries = [
        [path, "f", len(data), hashlib.sha256(data).hexdigest()]
        for path, data in sorted(files.items())
    ]
    return hashlib.sha256(json.dumps(entries, separators=(",", ":")).encode()).hexdigest()


class StoreMachine(RuleBasedStateMachine):
    """What is found is what was published last, whole, and it is found if nothing was hurt.

    If the last result of a key was hurt, an earlier one may be found: it is as true.
    """

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="ftbuild-machine-"))
        self.model: dict[str, list[dict[str, bytes]]] = {}
        self.hurt = False
        self.store = self._open("statcache")

    def _open(self, cache: str) -> Store:
        return Store(self.directory / "store", StatCache(self.directory / cache))

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.directory)

    @rule(name=NAMES, chosen=TREES)
    def build(self, name: str, chosen: dict[str, str]) -> None:
        self.build_files(name, {path: PAYLOADS[payload] for path, payload in chosen.items()})

    def build_files(self, name: str, files: dict[str, bytes]) -> None:
        self.store.publish(record_of(name, put(self.store, files)))
        self.model.setdefault(name, []).append(files)

    @rule(chosen=TREES)
    def put_without_record(self, chosen: dict[str, str]) -> None:
        put(self.store, {path: PAYLOADS[payload] for path, payload in chosen.items()})

    @rule(name=NAMES)
    def find_and_lay_out(self, name: str) -> None:
        record = self.store.find(key_of(name))
        if record is None:
            assert name not in self.model or self.hurt
            return
        known = {put_digest(files): files for files in self.model[name][0 if self.hurt else -1 :]}
        expected = known[record.tree.digest]
        try:
            path = self.store.lay_out(record.tree)
        except MissingBlob:
            assert self.hurt
            assert self.store.find(key_of(name)) is None
            self.build_files(name, expected)
        else:
            assert contents(path) == expected

    @rule(number=st.integers(0, 99), bit=st.integers(0, 30))
    def flip_a_bit(self, number: int, bit: int) -> None:
        files = sorted(p for p in self._files() if p.stat().st_size * 8 > bit)
        if files:
            flip_bit(files[number % len(files)], bit)
            self.hurt = True

    @rule(number=st.integers(0, 99))
    def evict(self, number: int) -> None:
        files = sorted(self._files())
        if files:
            os.unlink(files[number % len(files)])
            self.hurt = True

    def _files(self) -> list[Path]:
        base = self.directory / "store" / "v1"
        return [p for name in ("blobs", "trees", "actions") for p in base.glob(f"{name}/*/**/*")
                if p.is_file()]  # fmt: skip

    @rule(same_cache=st.booleans())
    def reopen(self, same_cache: bool) -> None:
        self.store.close()
        self.store = self._open("statcache" if same_cache else "another")

    @rule()
    def open_after_a_kill(self) -> None:
        """The old store is neither flushed nor closed, and its process is no more."""
        base = self.directory / "store" / "v1"
        for owner in base.glob("tmp/*/owner"):
            owner.write_text(owner.read_text().replace('"started":"', '"started":"9'))
        dead = self.store
        self.store = self._open("statcache")
        assert not list(base.glob("pending/*/*"))
        assert not list(base.glob("tmp/*"))
        dead._journal = None
        dead._session = None
        dead.close()

    @rule(keep=st.sets(NAMES), dry_run=st.booleans())
    def collect(self, keep: set[str], dry_run: bool) -> None:
        in_use: list[Digest] = [key_of(name) for name in keep]
        self.store.gc(max_bytes=0, grace_s=0, in_use=in_use, dry_run=dry_run)
        if not dry_run:
            self.model = {name: f for name, f in self.model.items() if name in keep}
            gone = [name for name in "abcd" if self.store.find(key_of(name)) is None]
            assert set("abcd") - keep <= set(gone)

    @invariant()
    def unhurt_store_has_no_wrong_bytes(self) -> None:
        if not self.hurt:
            assert corrupt_blobs(self.directory / "store") == []


QUICK = settings(
    max_examples=80,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def test_store_is_a_dict_that_forgets_but_never_lies() -> None:
    run_state_machine_as_test(StoreMachine, settings=QUICK)


def test_machine_finds_a_store_that_does_not_verify(monkeypatch: pytest.MonkeyPatch) -> None:
    def trust(self: Any, path: str, stat: os.stat_result, digest: Digest) -> bool:
        return True

    monkeypatch.setattr(blobs.Blobs, "holds", trust)
    many = settings(QUICK, max_examples=500, database=None, phases=[Phase.generate])
    with pytest.raises((AssertionError, ExceptionGroup)):
        run_state_machine_as_test(StoreMachine, settings=many)
