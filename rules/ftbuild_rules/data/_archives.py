"""Tar and zip archives -> rows: tables inside, and WebDataset samples.

Members are read in their order and never written to disk under their names. A member that is a
table (`rows.jsonl`, `part.parquet`) gives its rows. All others are samples, as WebDataset has
them: members side by side that share the name up to its first dot are one row, with a column for
each ending (`json`, `txt`, `cls`) and `__key__`. A sample that is a single `.json` or `.txt` is
that file's own row.

shard-000.tar: 0001.txt 0001.json 0002.txt 0002.json
"""

import io
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import BinaryIO, cast

from ftbuild.api import Place, RuleError
from ftbuild_rules.data import _rows
from ftbuild_rules.data._plain_text import document
from ftbuild_rules.data._rows import Row, too_long
from ftbuild_rules.data._streams import seekable

ARCHIVES = (".tar", ".zip")
_TEXTS = ("txt", "text", "cls", "id", "caption", "md")
_BUFFER_BYTES = 1 << 20

ReadTable = Callable[[BinaryIO, str], Iterator[Row | RuleError]]


@dataclass(frozen=True)
class Member:
    """One file of an archive, to be read before the next one is asked for."""

    name: str
    size_bytes: int
    binary: BinaryIO


@dataclass
class _Sample:
    key: str
    parts: dict[str, bytes] = field(default_factory=dict)


def archive_rows(
    binary: io.BufferedReader,
    name: str,
    *,
    kind: str,
    members: str,
    is_table: Callable[[str], bool],
    read: ReadTable,
) -> Iterator[Row | RuleError]:
    """Yield the rows of those members whose names match the pattern `members`.

    Raises:
        RuleError: the archive is broken, or holds what is not taken from one.
    """
    with _archive_errors(name):
        sample = _Sample("")
        is_any = False
        for member in _members(binary, name, kind):
            if not fnmatchcase(member.name, members):
                continue
            is_any = True
            key, _, ending = _split(member.name)
            if key != sample.key or is_table(member.name):
                yield from _sample_rows(sample, name, read)
                sample = _Sample(key)
            if is_table(member.name):
                yield from read(member.binary, f"{name}/{member.name}")
            else:
                sample.parts[ending] = _part(member, ending, name)
        yield from _sample_rows(sample, name, read)
        if not is_any:
            raise RuleError(
                f"no member of the archive matches `{members}`",
                code="E0844",
                where=Place(name),
                fix='name the members: members = "*.jsonl"',
            )


def _split(name: str) -> tuple[str, str, str]:
    folder, slash, base = name.rpartition("/")
    stem, dot, ending = base.partition(".")
    return folder + slash + stem, dot, ending


def _part(member: Member, ending: str, name: str) -> bytes:
    if ending.rpartition(".")[2] not in (*_TEXTS, "json"):
        raise RuleError(
            f"the archive holds `{member.name}`, from which no rows can be read",
            code="E0801",
            where=Place(name),
            fix='name the members to read: members = "*.jsonl"',
        )
    raw = member.binary.read(_rows.MAX_ROW_BYTES + 1)
    if len(raw) > _rows.MAX_ROW_BYTES:
        raise too_long(Place(f"{name}/{member.name}"))
    return raw


def _sample_rows(sample: _Sample, name: str, read: ReadTable) -> Iterator[Row | RuleError]:
    """Yield the row of a sample whose members have all been read."""
    if not sample.parts:
        return
    is_alone = len(sample.parts) == 1
    row: dict[str, object] = {"__key__": sample.key}
    for ending, raw in sample.parts.items():
        place = f"{name}/{sample.key}.{ending}"
        is_json = ending.rpartition(".")[2] == "json"
        if is_json:
            found = list(read(cast(BinaryIO, io.BytesIO(raw)), place))
        else:
            found = [document(raw, place)]
        bad = next((item for item in found if isinstance(item, RuleError)), None)
        if is_alone or bad is not None:
            yield from found if is_alone else [cast(RuleError, bad)]
            return
        values = [cast(Row, item).value for item in found]
        if is_json:
            row[ending] = values[0] if len(values) == 1 else values
        else:
            row[ending] = values[0]["text"]
    yield Row(Place(f"{name}/{sample.key}"), row)


def _members(binary: io.BufferedReader, name: str, kind: str) -> Iterator[Member]:
    reader = _tar_members if kind == ".tar" else _zip_members
    seen: set[str] = set()
    for member in reader(binary, name):
        if member.name in seen:
            raise RuleError(
                f"the archive holds two members named `{member.name}`",
                code="E0844",
                where=Place(name),
                fix="pack it again from a folder",
            )
        seen.add(member.name)
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts or "\\" in member.name:
            raise _escapes(member.name, name)
        if not any(part.startswith((".", "__MACOSX")) for part in path.parts):
            yield member


def _tar_members(binary: io.BufferedReader, name: str) -> Iterator[Member]:
    with tarfile.open(fileobj=binary, mode="r|") as archive:
        for item in archive:
            if item.isdir():
                continue
            if not item.isfile():
                raise RuleError(
                    f"the member `{item.name}` of the archive is a link or a device",
                    code="E0844",
                    where=Place(name),
                    fix="pack the files themselves: tar --dereference --hard-dereference",
                )
            content = archive.extractfile(item)
            assert content is not None
            yield Member(item.name.removeprefix("./"), item.size, cast(BinaryIO, content))


def _zip_members(binary: io.BufferedReader, name: str) -> Iterator[Member]:
    with seekable(binary) as file, zipfile.ZipFile(file) as archive:
        for item in archive.infolist():
            if item.is_dir():
                continue
            if item.flag_bits & 1:
                raise RuleError(
                    f"the member `{item.filename}` of the archive is encrypted",
                    code="E0844",
                    where=Place(name),
                    fix="pack it without a password",
                )
            with archive.open(item) as content:
                yield Member(item.filename, item.file_size, cast(BinaryIO, content))


def _escapes(member: str, name: str) -> RuleError:
    return RuleError(
        f"the member `{member}` of the archive lies outside of it",
        code="E0844",
        where=Place(name),
        fix="do you trust this archive? pack it again with paths below its top folder",
    )


@contextmanager
def _archive_errors(name: str) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, NotImplementedError) as error:
        raise RuleError(
            "the archive is not whole, or of another type",
            code="E0844",
            where=Place(name),
            why=str(error),
            fix="was it copied whole? get it again",
        ) from None
