"""Download: one file from a server that is not believed, and what came of it is not fetched again.

A folder that outlives this process holds `part`, the bytes that came, and `origin.json`, what the
server said of them. They are gone on with only where that is safe: if the whole will be held
against a digest, or if the server names them by a strong validator (RFC 9110, section 8.8.1) that
it still has. Bytes of unknown content are not trusted across a restart of the machine either, as
a power cut can leave holes in a file.
"""

import hashlib
import http.client
import json
import os
import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from ftbuild.digest import Digest, hash_file
from ftbuild.sources import server
from ftbuild.sources.server import Asked, BrokenOff, Refused

MAX_BYTES = 1 << 40
MAX_S = 6 * 3600.0
PAUSES_S = (0.5, 2.0)
"""Before asking again a server that gave nothing more; after the last it is given up."""
_WHOLE, _PARTIAL, _NO_SUCH_RANGE = 200, 206, 416
_SNIFFED_BYTES = 1 << 10
_PAGE = re.compile(rb"\s*(<!--.*?-->\s*)*<(!doctype\s+html|html|head|script|meta)\b", re.I | re.S)
_PAGE_ENDINGS = (".html", ".htm", ".xhtml")
_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})", re.ASCII)
_SURE_S = 60.0
"""A file that was changed this long before the answer has a date that says which one it is."""

Keep = Callable[[Path], Digest]
"""Copies a file into the store and returns its digest."""
Room = Callable[[str], AbstractContextManager[Path]]
"""Gives the folder in which a file that is known by a text is brought, by one process at a time;
it stays until that has ended well."""


class Different(Exception):
    """What comes is not the file that was wanted."""


@dataclass(frozen=True)
class Wanted:
    """What is known of a file before it comes."""

    size: int | None = None
    sha256: Digest | None = None
    git_id: str | None = None
    """The name that git gives to a blob of this content; it needs `size`."""

    @property
    def is_known(self) -> bool:
        """Whether any other content would be noticed."""
        return self.sha256 is not None or self.git_id is not None


def download(url: str, folder: Path, wanted: Wanted, *, token: str | None = None) -> Path:
    """Bring the file at `url` into `folder`, going on with what lies there, and return its path.

    Raises:
        Different: what comes is not `wanted`; nothing of it is left.
        Refused, BrokenOff: the server does not give it; what came stays, to go on with.
    """
    asked = Asked(url, time.monotonic() + MAX_S, token, may_leave=wanted.is_known)
    part = _Part(folder, wanted, urlsplit(url).path.lower())
    is_pieced = part.size > 0
    while True:
        is_pieced |= _bring(asked, part)
        found = _difference(part.path, wanted)
        if found is None:
            return part.path
        part.drop()
        if not is_pieced:
            raise Different(found)
        is_pieced = False  # the file may have changed between the pieces: once more, whole


def _bring(asked: Asked, part: "_Part") -> bool:
    """Ask until all has come; say whether it came in pieces."""
    num_idle, is_pieced = 0, False
    while True:
        before = part.size
        try:
            _go_on(asked, part)
            return is_pieced
        except BrokenOff:
            num_idle = 0 if part.size - before >= server.STEP_BYTES else num_idle + 1
            if num_idle > len(PAUSES_S) or time.monotonic() >= asked.ends_at:
                raise
        is_pieced = True
        if num_idle:
            time.sleep(PAUSES_S[num_idle - 1])


def _go_on(asked: Asked, part: "_Part") -> None:
    """Ask for what is missing, or for all if what is there cannot be gone on with."""
    if part.size and part.size == part.wanted.size:
        return
    headers = part.condition()
    try:
        answer = server.open_answer(asked, headers)
    except Refused as e:
        if headers and e.status == _NO_SUCH_RANGE:
            part.drop()
            raise BrokenOff(str(e)) from e
        raise
    with answer:
        if answer.status == _PARTIAL and headers:
            part.hold_to_be_continued(answer)
        elif answer.status == _WHOLE:
            part.begin(answer)
        else:
            raise Refused(f"the server says {answer.status} {answer.reason}".rstrip())
        try:
            _copy(answer, part)
        except (OSError, http.client.HTTPException) as e:
            raise server.trouble(e) from e
    if part.total is not None and part.size < part.total:
        raise server.cut_short(part.total, part.size)


def _copy(answer: http.client.HTTPResponse, part: "_Part") -> None:
    is_looked_at = part.size >= _SNIFFED_BYTES
    with part.path.open("ab", buffering=0) as file:
        # `read1` gives what has come; `read` would wait for a whole block of a server that dawdles.
        while block := answer.read1(server.BLOCK_BYTES):
            part.take(file, block)
            if not is_looked_at and part.size >= _SNIFFED_BYTES:
                part.refuse_page()
                is_looked_at = True
    if not is_looked_at:
        part.refuse_page()


class _Part:
    """The bytes of one file that have come."""

    def __init__(self, folder: Path, wanted: Wanted, name: str) -> None:
        self.wanted = wanted
        self._name = name
        self.path = folder / "part"
        self._origin_path = folder / "origin.json"
        self._origin = self._known_origin()
        if self._origin is None:
            self.drop()
        self.size = self.path.stat().st_size if self.path.exists() else 0

    @property
    def total(self) -> int | None:
        """How many bytes the whole has, as far as anybody said."""
        if self.wanted.size is not None or self._origin is None:
            return self.wanted.size
        return self._origin.get("total")

    def drop(self) -> None:
        """Forget what came."""
        self._origin_path.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
        self._origin, self.size = None, 0

    def _known_origin(self) -> dict[str, Any] | None:
        """Return what was said of the bytes that are here, if they can be gone on with."""
        try:
            origin: dict[str, Any] = json.loads(self._origin_path.read_bytes())
        except (OSError, ValueError):
            return None
        if self.wanted.is_known or (origin["validator"] and origin["boot"] == _boot()):
            return origin
        return None

    def condition(self) -> dict[str, str]:
        """Return the headers that ask for what is missing; none if that is all."""
        if not self.size or self._origin is None:
            return {}
        headers = {"Range": f"bytes={self.size}-"}
        if self.wanted.is_known:
            return headers
        validator = self._origin["validator"]
        return {**headers, "If-Range": validator} if validator else {}

    def begin(self, answer: http.client.HTTPResponse) -> None:
        """Take an answer that begins with the first byte."""
        self.drop()
        total = answer.length
        if total is not None and self.wanted.size not in (None, total):
            page = " of a page" if answer.headers.get_content_type() == "text/html" else ""
            raise Different(f"it has {total:,} bytes{page} and should have {self.wanted.size:,}")
        if total is not None and total > MAX_BYTES:
            raise Refused(f"it has {total:,} bytes, more than {MAX_BYTES:,}")
        if total is None and not answer.chunked and not self.wanted.is_known:
            raise Refused("it does not say how long the file is, so nothing tells whether all came")
        encoding = answer.headers.get("Content-Encoding", "identity").lower()
        # Some servers say of a compressed file that it is a file, compressed.
        is_plain = encoding == "identity" or ("gzip" in encoding and self._name.endswith("gz"))
        if not is_plain and not self.wanted.is_known:
            raise Refused(f"it is compressed ({encoding}), which was not asked for")
        self._origin = {"validator": _validator(answer), "total": total, "boot": _boot()}
        # Only bytes whose origin is written down are ever gone on with.
        self._origin_path.write_text(json.dumps(self._origin, sort_keys=True))

    def hold_to_be_continued(self, answer: http.client.HTTPResponse) -> None:
        """Hold that an answer goes on where the bytes that are here end.

        Raises:
            BrokenOff: it does not; what is here is dropped.
        """
        assert self._origin is not None
        given = answer.headers.get("Content-Range", "")
        match = _RANGE.fullmatch(given)
        is_right = (
            match is not None
            and int(match[1]) == self.size
            and int(match[1]) <= int(match[2]) < int(match[3])
            and self.total in (None, int(match[3]))
            and answer.length in (None, int(match[2]) - int(match[1]) + 1)
        )
        is_same = self.wanted.is_known or _validator(answer) == self._origin["validator"]
        if not is_right or not is_same:
            size = self.size
            self.drop()
            raise BrokenOff(
                f"asked for the bytes from {size:,} on, it gives `{given}`"
                if not is_right
                else "asked for the rest of a file, it gives that of another"
            )

    def take(self, file: IO[bytes], block: bytes) -> None:
        """Add what came."""
        limit = self.total
        if self.size + len(block) > (MAX_BYTES if limit is None else limit):
            self.drop()
            if limit is None:
                raise Refused(f"more than {MAX_BYTES:,} bytes came")
            raise Different(f"more than the {limit:,} bytes came that it should have")
        file.write(block)
        self.size += len(block)

    def refuse_page(self) -> None:
        """Raise Refused if what came is a page for people, and nobody knows of the file."""
        if self.wanted.is_known or self._name.endswith(_PAGE_ENDINGS):
            return
        with self.path.open("rb") as file:
            head = file.read(_SNIFFED_BYTES)
        if _PAGE.match(head):
            self.drop()
            raise Refused("it gives an HTML page instead of the file")


def _validator(answer: http.client.HTTPResponse) -> str | None:
    """Return what names these very bytes, if the server says it."""
    etag = answer.headers.get("ETag", "")
    if etag.startswith('"'):
        return etag
    changed, now = answer.headers.get("Last-Modified"), answer.headers.get("Date")
    if changed is None or now is None:
        return None
    try:
        age = parsedate_to_datetime(now) - parsedate_to_datetime(changed)
    except (TypeError, ValueError):  # one of them has no time zone, or is no date
        return None
    return changed if age.total_seconds() >= _SURE_S else None


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return os.urandom(8).hex()  # no other bytes count as of this run of the machine


def _difference(path: Path, wanted: Wanted) -> str | None:
    """Return in what a file is not the wanted one, None if it is."""
    size = path.stat().st_size
    if wanted.size not in (None, size):
        return f"it has {size:,} bytes and should have {wanted.size:,}"
    if wanted.sha256 is not None and (found := hash_file(path)) != wanted.sha256:
        return f"it has the sha256 {found} and should have {wanted.sha256}"
    if wanted.git_id is not None and (found_id := _git_id(path, size)) != wanted.git_id:
        return f"git names it {found_id}, and it should be {wanted.git_id}"
    return None


def _git_id(path: Path, size: int) -> str:
    hasher = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(server.BLOCK_BYTES):
            hasher.update(block)
    return hasher.hexdigest()
