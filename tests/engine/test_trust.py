"""Whose records are believed: signatures, keys, and what is done about records of others."""

import json
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from engine.space import Space
from faults.fault_report import report
from ftbuild import signing
from ftbuild.digest import Digest, canonical_json
from ftbuild.errors import UsageError
from ftbuild.events import Warned
from ftbuild.signing import Signer
from ftbuild.store.actions import DamagedRecord, Record, Signature, decode, encode
from ftbuild.store.statcache import StatCache
from ftbuild.store.store import Store
from ftbuild.store.trees import Entry, Tree
from ftbuild.store.trust import Trust

KEY, OTHER = Signer(b"k" * 32), Signer(b"o" * 32)
A, B = Digest("a" * 64), Digest("b" * 64)
RECORD = Record(A, Tree((Entry("f", "f", 1, B),)), {"n": 1}, {"rule": "toy"}, {"seconds": 1.0})
MINE = Trust("project", frozenset(), True, KEY)
STRICT = Trust("project", frozenset({KEY.public}), True)
MANIFEST = """\
[keep.lines]
source = "raw.txt"

[pieces.parts]
source = "raw.txt"

[command.last]
deps = {{ a = "lines" }}
run = "cat $a/text.txt > $out/f"

[cache]
trusted_keys = {keys}
"""


def test_signature_is_what_another_implementation_verifies() -> None:
    """RFC 8032 over the canonical JSON that docs/proof.md describes."""
    signed = MINE.sign(RECORD)
    assert signed.signature is not None
    document = {
        "signed": "ftbuild action record",
        "format": 1,
        "project": "project",
        "key": A,
        "tree": RECORD.tree.digest,
        "value": {"n": 1},
        "document": {"rule": "toy"},
        "provenance": {"seconds": 1.0},
    }
    import base64

    public = base64.b64decode(signed.signature.public.removeprefix("ed25519:"))
    Ed25519PublicKey.from_public_bytes(public).verify(
        base64.b64decode(signed.signature.value), canonical_json(document)
    )


def test_signed_record_is_read_back_and_believed() -> None:
    signed = MINE.sign(RECORD)
    again = decode(encode(signed), A)
    assert again == signed
    assert STRICT.objection(again) is None
    assert MINE.objection(again) is None


def sign(record: Record, **changes: str) -> Record:
    signed = MINE.sign(record)
    assert signed.signature is not None
    return replace(signed, signature=replace(signed.signature, **changes))


TAMPERED: dict[str, tuple[Callable[[], Record], str]] = {
    "no signature": (lambda: RECORD, "it is not signed"),
    "unknown key": (
        lambda: Trust("project", signer=OTHER).sign(RECORD),
        f"it is signed with `{OTHER.public}`, which `trusted_keys` does not name",
    ),
    "known name, other key": (
        lambda: sign(
            RECORD, value=OTHER.sign(b"anything")
        ),
        "its signature is not of this record",
    ),
    "other action": (lambda: replace(sign(RECORD), key=B), "its signature is not of this record"),
    "other output": (
        lambda: replace(sign(RECORD), tree=Tree((Entry("f", "f", 2, A),))),
        "its signature is not of this record",
    ),
    "other value": (
        lambda: replace(sign(RECORD), value={"n": 2}),
        "its signature is not of this record",
    ),
    "other provenance": (
        lambda: replace(sign(RECORD), provenance={"seconds": 2.0}),
        "its signature is not of this record",
    ),
    "other project": (lambda: sign(RECORD, project="p"), "its signature is not of this record"),
    "no base64": (lambda: sign(RECORD, value="?"), "its signature is not of this record"),
}  # fmt: skip


@pytest.mark.parametrize("case", TAMPERED)
def test_tampered_record_is_not_believed(case: str) -> None:
    make, why = TAMPERED[case]
    assert STRICT.objection(make()) == why
    report("41", f"tampered signature: {case}", fired=1, bad=0)


def test_other_format_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    signed = sign(RECORD)
    monkeypatch.setattr("ftbuild.store.trust.RECORD_FORMAT", 2)
    assert STRICT.objection(signed) == "its signature is not of this record"


def test_everything_is_believed_where_nothing_is_asked_for() -> None:
    """The control: without trusted keys each of these records is taken."""
    taken = [case for case, (make, _) in TAMPERED.items() if Trust().objection(make()) is None]
    report("41", "tampered signature: unknown key", control_red=taken == list(TAMPERED))
    assert taken == list(TAMPERED)


def test_trusted_keys_alone_let_unsigned_records_pass_where_the_project_says_so() -> None:
    lax = replace(STRICT, is_required=False)
    assert lax.objection(RECORD) is None
    assert lax.objection(sign(RECORD, value="?")) is not None


def test_record_with_a_signature_that_is_none_is_damaged() -> None:
    broken = replace(RECORD, signature=Signature("x", "y", "z"))
    data = encode(broken).replace(b'"project":"y"', b'"project":1234')
    with pytest.raises(DamagedRecord):
        decode(data, A)


# -- keys


def test_key_is_for_its_owner_alone_and_shows_itself_nowhere(tmp_path: Path) -> None:
    path = tmp_path / "config" / "key"
    made = signing.read_or_make(path)
    assert signing.read_or_make(path) == made
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == made.to_text() + "\n"
    assert repr(made) == "Signer(…)"
    with pytest.raises(FileExistsError):
        signing.write(path, KEY)


@pytest.mark.parametrize("text", ["", "secret", "ed25519-private:?", "ed25519-private:c2hvcnQ="])
def test_what_is_no_key_is_not_shown(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError) as caught:
        signing.parse_private(text, "the environment variable FTBUILD_SIGNING_KEY")
    assert caught.value.render() == (
        "error[E0030]: the environment variable FTBUILD_SIGNING_KEY holds no private key\n"
        "  fix: `ftbuild keys` makes one: a line that begins with `ed25519-private:`"
    )


# -- builds


@pytest.fixture
def trusting(space: Space, monkeypatch: pytest.MonkeyPatch) -> Space:
    """A workspace that believes KEY alone; its user has no key."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(space.root.parent / "config"))
    space.manifest(MANIFEST.format(keys=json.dumps([KEY.public])), toys=True)
    space.write("raw.txt", "a\nb\n")
    return space


def poison(space: Space, label: str, text: str, trust: Trust | None = None) -> None:
    """Put a wrong output under the right key, with all digests as they must be."""
    with space.open() as project:
        key = project.history.built[label].key
    with Store(space.store, StatCache(space.root.parent / "poison"), trust) as store:
        record = store.look_up(key)
        assert record is not None
        out = store.workspace()
        (out / "text.txt").write_text(text)
        wrong = replace(record, tree=store.put_tree(out), signature=None)
        store.publish(store.trust.sign(wrong))


def warnings(space: Space) -> list[str]:
    return [event.text for event in space.events if isinstance(event, Warned)]


def test_what_is_built_here_is_believed_here(trusting: Space) -> None:
    assert set(trusting.make("last", "parts")) == {"last", "lines", "parts"}
    assert trusting.make("last", "parts") == []
    assert set(trusting.plan("last", "parts").values()) == {"fresh"}
    assert stat.S_IMODE((trusting.root / ".ftbuild/key").stat().st_mode) == 0o600
    trusting.write("raw.txt", "a\nb\nc\n")
    trusting.make("parts")
    assert trusting.finished("parts").fragments == (3, 1)  # signed too, by the engine


def test_poisoned_record_under_the_right_key_is_a_miss_with_a_warning(trusting: Space) -> None:
    trusting.make("lines")
    poison(trusting, "lines", "poisoned\n")
    (trusting.root / ".ftbuild/history.bin").unlink()
    assert trusting.plan("lines") == {"lines": "stale"}
    told = "the record in the store is not trusted: it is not signed"
    assert trusting.reasons("lines") == [("untrusted", told)]
    assert trusting.make("lines") == ["lines"]
    assert warnings(trusting) == [f"{told}; it is built anew"]
    assert trusting.text("lines") == "a\nb\n"
    report("40", "poisoned record under the right key", fired=1, bad=0)


def test_poisoned_record_is_refused_whatever_the_history_says(trusting: Space) -> None:
    trusting.make("lines")
    poison(trusting, "lines", "poisoned\n", Trust("toys", signer=OTHER))
    assert trusting.make("last") == ["lines", "last"]
    assert trusting.text("last", "f") == "a\nb\n"
    [told] = warnings(trusting)
    assert told.startswith("the record in the store is not trusted: it is signed with `ed25519:")


def test_poisoned_record_is_taken_where_no_signature_is_required(space: Space) -> None:
    """The control."""
    space.manifest(MANIFEST.format(keys="[]"), toys=True)
    space.write("raw.txt", "a\nb\n")
    space.make("lines")
    poison(space, "lines", "poisoned\n")
    (space.root / ".ftbuild/history.bin").unlink()
    assert space.make("lines") == []
    is_red = space.text("lines") == "poisoned\n"
    report("40", "poisoned record under the right key", control_red=is_red)
    assert is_red


def test_records_of_a_trusted_key_are_taken(
    trusting: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FTBUILD_SIGNING_KEY", KEY.to_text())
    trusting.make("last", "parts")
    monkeypatch.delenv("FTBUILD_SIGNING_KEY")
    (trusting.root / ".ftbuild/history.bin").unlink()
    assert trusting.make("last", "parts") == []
    for path in (trusting.store / "v1/actions").glob("*/*"):
        signature = json.loads(path.read_bytes())["signature"]
        assert (signature["public"], signature["project"]) == (KEY.public, "toys")


def test_private_key_reaches_no_action(trusting: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTBUILD_SIGNING_KEY", KEY.to_text())
    trusting.manifest('[command.look]\nrun = "env > $out/f"\n')
    trusting.make()
    assert "ed25519-private" not in trusting.text("look", "f")


def test_store_check_tells_records_that_are_not_trusted(trusting: Space) -> None:
    trusting.make("lines")
    poison(trusting, "lines", "poisoned\n")
    status, out, _ = trusting.run("verify", "--store")
    assert status == 4
    assert "not trusted, it is not signed" in out


def test_keys_command(trusting: Space) -> None:
    status, public, told = trusting.run("keys")
    assert status == 0
    path = trusting.root.parent / "home/.config/ftbuild/key"
    made = signing.read(path)
    assert made is not None
    assert public == made.public + "\n"
    assert told == (
        f"the private key was written to {path}; keep it to yourself\n"
        "to believe what is signed with it, a project writes into FTBUILD.toml:\n"
        f'[cache]\ntrusted_keys = ["{made.public}"]\n'
    )
    assert trusting.run("keys")[1] == public
    assert made.to_text() not in public + told
    assert json.loads(trusting.run("keys", "--json")[1]) == {
        "public": made.public,
        "path": str(path),
        "made": False,
    }
    assert os.listdir(path.parent) == ["key"]
