"""Addresses: what they mean, and that nothing secret in them is ever shown."""

from pathlib import Path

import pytest

from ftbuild.errors import UsageError
from ftbuild.remote.address import parse, redact

ROOT = Path("/work/project")


@pytest.mark.parametrize(
    ("text", "kind", "url", "name"),
    [
        ("cache", "folder", "/work/project/cache", "/work/project/cache"),
        ("/mnt/team", "folder", "/mnt/team", "/mnt/team"),
        ("file:///mnt/a%20b", "folder", "/mnt/a b", "/mnt/a b"),
        ("https://h/ft/", "web", "https://h/ft", "https://h/ft"),
        ("https://u:p%40x@h:1/ft", "web", "https://h:1/ft", "https://h:1/ft"),
        ("https://h/ft?sig=canary", "web", "https://h/ft?sig=canary", "https://h/ft"),
        ("s3://bucket/ft", "bucket", "s3://bucket/ft", "s3://bucket/ft"),
        ("az://box/ft?sig=canary", "bucket", "az://box/ft?sig=canary", "az://box/ft"),
    ],
)
def test_address_says_what_it_means(text: str, kind: str, url: str, name: str) -> None:
    found = parse(text, ROOT)
    assert (found.kind, found.url, found.name) == (kind, url, name)


def test_user_and_password_are_taken_out() -> None:
    found = parse("https://me:p%40ss@h/ft", ROOT)
    assert (found.user, found.password) == ("me", "p@ss")
    assert "p@ss" not in repr(found)
    assert found.scrub("cannot reach https://me:p%40ss@h/ft with p@ss") == (
        "cannot reach https://…@h/ft with …"
    )


@pytest.mark.fault("44", "an address that is not safe")
@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("ftp://h/x", "`ftp://h/x` is no address of a remote store"),
        ("https://", "`https://` is no address of a remote store"),
        ("http://me:canary@h/x", "`http://…@h/x` would send its password over an open connection"),
        ("s3://key:canary@bucket/x", "`s3://…@bucket/x` holds a password"),
        ("gopher://me:canary@h/x?canary", "`gopher://…@h/x?…` is no address of a remote store"),
    ],
)
def test_wrong_address_is_told_without_its_secrets(text: str, what: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text, ROOT)
    assert str(caught.value) == what
    assert "canary" not in caught.value.render()
    assert caught.value.problems[0].code == "E0570"


def test_password_may_go_over_loopback() -> None:
    assert parse("http://me:p@localhost:1/x", ROOT).password == "p"


def test_redact_leaves_other_text_alone() -> None:
    assert redact("is it there? no@body knows") == "is it there? no@body knows"
