"""Secrets stay out of what is printed and kept: logs, errors, records, reports.

What counts as one: the password of an address, what looks like a token, and the value of an
environment variable whose name says so. Of a variable that a target declares also any value that
looks random, since it is handed to a program that may print it.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

SIGN = "…"
_USERINFO = re.compile(r"(?<=://)[^/@\s\"'`<>]+@")
_PASSWORD = re.compile(r"://[^/@\s\"'`<>]*:[^/@\s\"'`<>]+@")
_QUERY = re.compile(
    r"(?i)(?<=[?&])((?:access_|auth_|private_|refresh_|id_)?token|api_?key|sig|signature|secret|"
    r"password|passwd|pwd|x-amz-(?:signature|credential|security-token)|x-goog-signature|"
    r"googleaccessid|awsaccesskeyid)=[^&\s#\"'`]+"
)
_TOKEN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|"
    r"sk-[A-Za-z0-9_-]{20,}|xox[abprs]-[\w-]{10,}|AKIA[0-9A-Z]{16}|AIza[\w-]{30,}|"
    r"ey[A-Za-z0-9_-]{15,}\.ey[A-Za-z0-9_-]{15,}\.[\w-]{10,})"
    r"|ed25519-private:[A-Za-z0-9+/=]+"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*"
)
_TOKEN_START = re.compile(
    r"hf_|gh[pousr]_|github_pat_|glpat-|sk-|xox|AKIA|AIza|\.ey|private:|-----B"
)
_SHORTEST_TOKEN = 15
_SECRET_NAME = re.compile(
    r"TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|SIGNING_KEY|"
    r"AUTHORIZATION|COOKIE|CANARY|_PAT$|_DSN$"
)
_RANDOM = re.compile(r"(?=.*\d)(?=.*[A-Za-z])[A-Za-z0-9+/=_.~-]{16,}")
_IN_ADDRESS = re.compile(r"://[^/@\s]*:([^/@\s]+)@")
_SHORTEST = 6
"""A shorter value stands in too many texts by chance."""


@dataclass(frozen=True)
class Redactor:
    """Takes secrets out of texts; made once for many of them."""

    secrets: tuple[str, ...]
    """Values that are secret wherever they stand; longer ones first: one may hold another."""

    def text(self, text: str) -> str:
        """Return `text` without secrets."""
        return self._replaced(text, lambda found: SIGN)

    def masked(self, text: str) -> str:
        """Return `text` with secrets as asterisks, so that all else keeps its place."""
        return self._replaced(text, lambda found: "*" * len(found))

    def value(self, value: Any) -> Any:
        """Return a JSON value without secrets in its texts."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.text(str(key)): self.value(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(item) for item in value]
        return value

    def file(self, path: str) -> None:
        """Take the secrets out of a log; it is written again only if there are any."""
        with open(path, "r+b") as file:
            text = file.read().decode("utf-8", "surrogateescape")
            clean = self.text(text)
            if clean != text:
                file.seek(0)
                file.write(clean.encode("utf-8", "surrogateescape"))
                file.truncate()

    def _replaced(self, text: str, sign: Callable[[str], str]) -> str:
        for secret in self.secrets:
            if secret in text:
                text = text.replace(secret, sign(secret))
        if "://" in text:
            text = _USERINFO.sub(lambda m: sign(m[0][:-1]) + "@", text)
            text = _QUERY.sub(lambda m: f"{m[1]}={sign(m[0][len(m[1]) + 1 :])}", text)
        # Thousands of short texts are printed, and searching costs microseconds in each.
        if len(text) < _SHORTEST_TOKEN or not _TOKEN_START.search(text):
            return text
        return _TOKEN.sub(lambda m: sign(m[0]), text)


def of_environment(variables: Iterable[str] = ()) -> Redactor:
    """Return what knows the secrets of this process; `variables` are those a target declares."""
    declared = frozenset(variables)
    found = set()
    for name, value in os.environ.items():
        is_named = _SECRET_NAME.search(name.upper()) is not None
        if is_named or (name in declared and _RANDOM.fullmatch(value)):
            found.add(value)
        if "://" in value and (password := _IN_ADDRESS.search(value)):
            found.add(password[1])
    long = {value for value in found if len(value) >= _SHORTEST and not os.path.isabs(value)}
    return Redactor(tuple(sorted(long, key=lambda value: (-len(value), value))))


def holds_secret(text: str) -> str | None:
    """Return what a text of a manifest holds that nobody should read there; None if nothing."""
    if "://" in text:
        if _PASSWORD.search(text):
            return "a password in an address"
        if _QUERY.search(text):
            return "a token in an address"
    return "what looks like a token" if _TOKEN.search(text) else None
