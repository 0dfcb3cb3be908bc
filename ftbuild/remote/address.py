"""Addresses of remote stores: which backend one means, and how it is named without its secrets."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit, urlunsplit

from ftbuild.errors import UsageError

Kind = Literal["folder", "web", "bucket"]

_SCHEMES: dict[str, Kind] = {
    "http": "web",
    "https": "web",
    "file": "folder",
    **dict.fromkeys(
        ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl"),
        "bucket",
    ),
}
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_USERINFO = re.compile(r"(?<=://)[^/@\s]*@")
_QUERY = re.compile(r"(?<=\w)\?[^\s`'\"]+")


@dataclass(frozen=True)
class Address:
    """Where a remote store is."""

    kind: Kind
    url: str
    """Without user and password; of a folder its path."""
    name: str
    """For messages: without a query either, which may hold a token."""
    user: str | None = None
    password: str | None = None

    def scrub(self, text: str) -> str:
        """Return `text` without what must not be shown: this address's secrets, and any URL's."""
        for secret in (self.password, urlsplit(self.url).query if self.kind != "folder" else ""):
            if secret:
                text = text.replace(secret, "…")
        return redact(text)

    def __repr__(self) -> str:
        return f"Address({self.name})"


def redact(text: str) -> str:
    """Return `text` without users, passwords and queries of the URLs in it."""
    return _QUERY.sub("?…", _USERINFO.sub("…@", text)) if "://" in text else text


def parse(text: str, root: Path) -> Address:
    """Return the address that `text` means; a path is relative to `root`.

    Raises:
        UsageError: E0570, it is of no known form, or would send a password in the open.
    """
    scheme, colon, rest = text.partition("://")
    if not colon:
        path = str(root / Path(text).expanduser())
        return Address("folder", path, path)
    kind = _SCHEMES.get(scheme.lower())
    if kind == "folder":
        path = unquote(rest if rest.startswith("/") else "/" + rest.partition("/")[2])
        return Address("folder", path, path)
    parts = urlsplit(text)
    if kind is None or not parts.netloc:
        raise UsageError(
            f"`{redact(text)}` is no address of a remote store",
            code="E0570",
            fix="write https://HOST/PATH, s3://BUCKET/PATH, gs://…, az://… or a folder's path",
        )
    if kind == "bucket":
        _refuse_password(parts.password, text)
        return Address(kind, text, urlunsplit(parts._replace(query="")))
    host = parts.netloc.rpartition("@")[2]
    if parts.password and scheme != "https" and parts.hostname not in LOOPBACK:
        raise UsageError(
            f"`{redact(text)}` would send its password over an open connection",
            code="E0570",
            fix="write https:",
        )
    url = urlunsplit(parts._replace(netloc=host, fragment="")).rstrip("/")
    return Address(
        kind,
        url,
        urlunsplit(parts._replace(netloc=host, query="", fragment="")).rstrip("/"),
        unquote(parts.username) if parts.username else None,
        unquote(parts.password) if parts.password else None,
    )


def _refuse_password(password: str | None, text: str) -> None:
    if password:
        raise UsageError(
            f"`{redact(text)}` holds a password",
            code="E0570",
            fix="give it in the environment, as AWS_SECRET_ACCESS_KEY for s3://",
        )


def token() -> str | None:
    """Return the bearer token for web addresses, which only the environment holds."""
    return os.environ.get("FTBUILD_REMOTE_TOKEN") or None
