"""`provenance`: the whole lineage of an artifact, as text, JSON, and a signed in-toto Statement."""

import base64
import hashlib
import json
import re

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from engine.space import Space
from ftbuild.signing import Signer

MANIFEST = """\
[keep.lines]
source = "raw.txt"

[loud.shout]
texts = ["lines", "lines"]
marks = ["?"]

[command.last]
deps = { a = "shout" }
run = "cat $a/text.txt > $out/f"
env = ["TOY"]
"""


@pytest.fixture
def built(space: Space) -> Space:
    space.manifest(MANIFEST, toys=True)
    space.write("raw.txt", "a\nb\n")
    space.make("last")
    return space


def test_text_names_each_step_down_to_the_sources(built: Space) -> None:
    status, out, _ = built.run("provenance", "last")
    assert status == 0
    text = re.sub(r"[0-9a-f]{12}…", "D", out)
    text = re.sub(r"built \S+ in \S+", "built T", re.sub(r"code [0-9a-f]{12}", "code C", text))
    text = re.sub(r"pydantic \S+", "pydantic V", text)
    assert text == (
        "last  file  sha256:D\n"
        "  rule command, version 1; key D; built T\n"
        '  run = "cat $a/text.txt > $out/f"\n'
        "  deps.a: shout\n"
        "shout  file  sha256:D\n"
        "  rule loud, code C; key D; built T\n"
        '  marks = ["?"]\n'
        "  library pydantic V\n"
        "  texts.0: lines\n"
        "  texts.1: lines\n"
        "lines  file  sha256:D\n"
        "  rule keep, code C; key D; built T\n"
        "  source raw.txt  sha256:D\n"
    )


def test_statement_is_what_in_toto_and_slsa_say(built: Space) -> None:
    found = json.loads(built.run("provenance", "last", "--statement")[1])
    assert found["_type"] == "https://in-toto.io/Statement/v1"
    text = (built.output("last") / "f").read_bytes()
    assert found["subject"] == [
        {"name": "f", "digest": {"sha256": hashlib.sha256(text).hexdigest()}}
    ]
    assert found["predicateType"] == "https://slsa.dev/provenance/v1"
    definition, run = found["predicate"]["buildDefinition"], found["predicate"]["runDetails"]
    assert set(definition) == {
        "buildType", "externalParameters", "internalParameters", "resolvedDependencies",
    }  # fmt: skip
    raw = hashlib.sha256(b"a\nb\n").hexdigest()
    assert {"name": "lines/source/file.txt", "digest": {"sha256": raw}} in definition[
        "resolvedDependencies"
    ]
    assert [step["label"] for step in definition["internalParameters"]["lineage"]] == [
        "lines", "shout", "last",
    ]  # fmt: skip
    assert set(run["builder"]) == {"id", "version"}
    for name in ("startedOn", "finishedOn"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", run["metadata"][name])
    with built.open() as project:
        assert run["metadata"]["invocationId"] == project.history.built["last"].key


def test_signed_statement_is_what_dsse_says(built: Space) -> None:
    """The pre-authentication encoding is written down here anew, from its specification."""
    key = Signer(b"k" * 32)
    plain = json.loads(built.run("provenance", "last", "--statement")[1])
    out = built.run(
        "provenance", "last", "--statement", env={"FTBUILD_SIGNING_KEY": key.to_text()}
    )[1]
    found = json.loads(out)
    payload = base64.b64decode(found["payload"])
    assert json.loads(payload) == plain
    kind = b"application/vnd.in-toto+json"
    assert found["payloadType"].encode() == kind
    encoded = b" ".join(
        [b"DSSEv1", str(len(kind)).encode(), kind, str(len(payload)).encode(), payload]
    )
    [signature] = found["signatures"]
    assert signature["keyid"] == key.public
    public = Ed25519PublicKey.from_public_bytes(base64.b64decode(key.public.partition(":")[2]))
    public.verify(base64.b64decode(signature["sig"]), encoded)


def test_input_that_was_built_anew_is_told_by_its_digest(built: Space) -> None:
    old = json.loads(built.run("provenance", "last", "--json")[1])["steps"][0]
    for text in ("b\n", "c\n"):
        built.write("raw.txt", text)
        built.make("lines")
    steps = json.loads(built.run("provenance", "last", "--json")[1])["steps"]
    assert steps[0] == {
        "label": "lines", "kind": "file", "digest": old["digest"], "recorded": False,
    }  # fmt: skip
    assert "there is no record of it any more" in built.run("provenance", "last")[1]


def test_target_that_is_not_built(built: Space) -> None:
    built.run("clean", "last")
    status, _, err = built.run("provenance", "last")
    assert (status, err.splitlines()[0]) == (
        2,
        "error[E0010]: `last` has not been built here",
    )
