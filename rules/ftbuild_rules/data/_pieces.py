"""A large source in pieces, each read by itself: in all cores, and only where it changed.

A file of lines, and a table in CSV, is cut by content into pieces of some megabytes, so an edit of
one row reads one again. Of Parquet and Arrow files some row groups are a piece. All other files
are read whole, those beside each other that are small as one piece. What comes of it is that of
one pass; `_chunks.py` tells how.
"""

import codecs
import hashlib
import mmap
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from ftbuild.api import Piece, RuleError, Source, SourceFile
from ftbuild_rules.data._columnar import arrow_batches, arrow_rows, parquet_groups, parquet_rows
from ftbuild_rules.data._delimited import rows_below
from ftbuild_rules.data._json_rows import line_rows
from ftbuild_rules.data._problems import Unreadable
from ftbuild_rules.data._read import ARROW, LINES, Reading, files_with_rows, read_rows
from ftbuild_rules.data._records import InseparableError, header_of, record_ends
from ftbuild_rules.data._rows import Row
from ftbuild_rules.data._streams import COMPRESSED, decompressed, decompression_errors, opened

LEAST_BYTES = 8 << 20
"""A smaller source is read in one go."""
MIN_BYTES = 3 << 20
"""A piece of lines is no shorter: only beyond it lines are looked at."""
_MEAN_FILES_BYTES = 4 << 20
"""Of small files that are one piece."""
_GROUP_BYTES = 8 << 20
_EXPANDED = 4
"""So many times as large a compressed file of lines is taken to be."""
_MOST_EXPANDED = 64
"""One that is larger is read as it is: it may be made to fill the disk."""
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_SPACE = 1 << 64
_MEAN_LINES = 512
_MEAN_BYTES = 1 << 19
_BLOCK_BYTES = 1 << 20

Found = Iterator[Row | RuleError | Unreadable]


def _inner_name(number: int) -> str:
    """Return how a file is named within a piece: what is said of a row must be true of any file."""
    return f"\0{number}\0"


def with_names(plain: Any, files: Sequence[SourceFile]) -> Any:
    """Return a JSON value with the names for people in the place of those within a piece."""
    if isinstance(plain, str):
        for number, file in enumerate(files if "\0" in plain else ()):
            plain = plain.replace(_inner_name(number), file.name)
        return plain
    if isinstance(plain, dict):
        return {key: with_names(value, files) for key, value in plain.items()}
    return plain


def file_of(path: str, files: Sequence[SourceFile]) -> SourceFile:
    """Return the file that a place within a piece is in."""
    return files[int(path.split("\0")[1])]


@dataclass(frozen=True)
class LinesPiece:
    """Some whole lines of a file."""

    file: SourceFile
    offset: int
    size: int

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """The one file."""
        return (self.file,)

    def rows(self, reading: Reading) -> Found:
        """Yield its rows; lines are counted from its own first one."""
        with opened(self.file.path) as binary:
            binary.seek(self.offset)
            yield from _to_the_end(line_rows(_Lines(binary, self.size), _inner_name(0)))

    def lines_before(self) -> int:
        """Return how many lines of its file come before it."""
        with opened(self.file.path) as binary:
            blocks = iter(lambda: binary.read(min(_BLOCK_BYTES, self.offset - binary.tell())), b"")
            return sum(block.count(b"\n") for block in blocks)

    def identity(self) -> Any:
        """Return the digest of its bytes."""
        hasher = hashlib.sha256()
        with open(self.file.path, "rb") as binary:
            binary.seek(self.offset)
            left = self.size
            while left:
                block = binary.read(min(left, _BLOCK_BYTES))
                hasher.update(block)
                left -= len(block)
        return hasher.hexdigest()


@dataclass(frozen=True)
class RecordsPiece(LinesPiece):
    """Some whole records of a CSV or TSV file."""

    header: tuple[str, ...]
    delimiter: str

    def rows(self, reading: Reading) -> Found:
        """Yield its rows; lines are counted from its own first one."""
        with opened(self.file.path) as binary:
            binary.seek(self.offset)
            inner = _Lines(binary, self.size)
            found = rows_below([*self.header], inner, _inner_name(0), self.delimiter)
            yield from _to_the_end(found)

    def identity(self) -> Any:
        """Return the digest of its bytes, and all that decides what they say."""
        return [super().identity(), self.delimiter, *self.header]


@dataclass(frozen=True)
class GroupsPiece:
    """Some neighbouring row groups of a Parquet file, or record batches of an Arrow file."""

    file: SourceFile
    first: int
    end: int

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """The one file."""
        return (self.file,)

    def rows(self, reading: Reading) -> Found:
        """Yield its rows, numbered as in the file."""
        read = parquet_rows if _ending(self.file) == ".parquet" else arrow_rows
        with opened(self.file.path) as binary:
            groups = range(self.first, self.end)
            yield from _to_the_end(read(binary, _inner_name(0), groups=groups))

    def lines_before(self) -> int:
        """Return 0: its rows have numbers, which are those of the file."""
        return 0

    def identity(self) -> Any:
        """Return the digest of the file, and which groups of it are meant."""
        return [self.file.digest, self.first, self.end]


@dataclass(frozen=True)
class FilesPiece:
    """Whole files that follow each other."""

    files: tuple[SourceFile, ...]

    def rows(self, reading: Reading) -> Found:
        """Yield the rows of all of them."""
        for number, file in enumerate(self.files):
            yield from _to_the_end(read_rows(replace(file, name=_inner_name(number)), reading))

    def lines_before(self) -> int:
        """Return 0: lines are counted from the beginning of their file."""
        return 0

    def identity(self) -> Any:
        """Return the digests of the files, each with the ending by which it is read."""
        return [[file.digest, _ending(file)] for file in self.files]


SourcePiece = LinesPiece | GroupsPiece | FilesPiece


def pieces_of(source: Source, scratch: Path) -> list[SourcePiece] | None:
    """Return the pieces of a large source; None where it is to be read in one go.

    Large compressed files of lines are written out in the folder `scratch`, which is made then: to
    decompress is quick beside reading rows, and the pieces are read in all cores.
    """
    files, _ = files_with_rows(source)
    sizes = [file.path.stat().st_size * (_EXPANDED if _inner(file) else 1) for file in files]
    if sum(sizes) < LEAST_BYTES:
        return None
    found: list[SourcePiece] = []
    small: list[SourceFile] = []
    for number, (file, size) in enumerate(zip(files, sizes, strict=True)):
        # Of several files as large each is read by a process of its own as it is.
        expanded = _expanded(file, scratch / str(number)) if size > sum(sizes) // 4 else None
        parts = _parts(expanded or file)
        if not parts:
            small.append(file)
        if small and (parts or _ends_group(file)):
            found.append(FilesPiece(tuple(small)))
            small = []
        found += parts
    found += [FilesPiece(tuple(small))] if small else []
    return found if len(found) > 1 or isinstance(found[0], LinesPiece) else None


def hashed(pieces: Sequence[SourcePiece], cpus: int) -> Iterator[Piece]:
    """Yield each piece with what it is known by; bytes are hashed in `cpus` threads."""
    with ThreadPoolExecutor(cpus) as pool:
        identities = pool.map(lambda piece: piece.identity(), pieces)
        for piece, identity in zip(pieces, identities, strict=True):
            yield Piece(identity, piece)


def _inner(file: SourceFile) -> str | None:
    """Return the name of a file of lines without the ending of its compression, if it has one."""
    lower = file.relative.lower()
    for ending in COMPRESSED:
        inner = lower.removesuffix(ending)
        if inner != lower and inner.endswith((*LINES, *_DELIMITERS)):
            return inner
    return None


def _expanded(file: SourceFile, path: Path) -> SourceFile | None:
    """Write out a compressed file of lines; None where it is read as it is.

    It is where it is small, where nearly nothing becomes very much, which fills the disk, and
    where it is damaged: then whoever reads it says so.
    """
    inner = _inner(file)
    size = file.path.stat().st_size
    if inner is None or size * _EXPANDED < MIN_BYTES:
        return None
    left = size * _MOST_EXPANDED
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with opened(file.path) as binary, decompression_errors(file.name), open(path, "wb") as out:
            stream = decompressed(binary, file.relative)
            while block := stream.read(_BLOCK_BYTES):
                left -= len(block)
                if left < 0:
                    break
                out.write(block)
    except (RuleError, OSError):
        left = -1
    if left < 0:
        path.unlink(missing_ok=True)
        return None
    return replace(file, path=path, relative=inner)


def _to_the_end(rows: Iterator[Row | RuleError]) -> Found:
    try:
        yield from rows
    except RuleError as error:
        yield Unreadable(error)


def _ending(file: SourceFile) -> str:
    return "".join(PurePosixPath(file.relative).suffixes).lower()


def _ends_group(file: SourceFile) -> bool:
    """Say whether a piece of small files ends with this one: so its content says."""
    weight = file.path.stat().st_size * (_SPACE // _MEAN_FILES_BYTES)
    return int(file.digest[:16], 16) < weight


def _parts(file: SourceFile) -> list[SourcePiece]:
    """Return the pieces of a large file; none where it is read whole."""
    if file.path.stat().st_size < MIN_BYTES:
        return []
    if _is_lines(file):
        return list(_cut(file))
    ending = _ending(file)
    for table, delimiter in _DELIMITERS.items():
        if ending.endswith(table):
            return [*_cut_records(file, delimiter)]
    if ending == ".parquet":
        sizes = parquet_groups(file.path)
    elif ending in ARROW:
        sizes = arrow_batches(file.path)
    else:
        return []
    found: list[SourcePiece] = []
    first = held = 0
    for number, size in enumerate(sizes, 1):
        held += size
        if held >= _GROUP_BYTES or number == len(sizes):
            found.append(GroupsPiece(file, first, number))
            first, held = number, 0
    return found


def _is_lines(file: SourceFile) -> bool:
    """Say whether each line of a file is a row, whatever stands before it."""
    if not file.relative.lower().endswith(LINES):
        return False
    with opened(file.path) as binary:
        start = binary.read(_BLOCK_BYTES)
    return not start.startswith(codecs.BOM_UTF8) and start.lstrip()[:1] not in (b"[", b"")


def _cut(file: SourceFile) -> Iterator[LinesPiece]:
    """Yield the pieces of a file of lines; where they end follows from the lines there."""
    size = file.path.stat().st_size
    with (
        open(file.path, "rb") as binary,
        mmap.mmap(binary.fileno(), 0, access=mmap.ACCESS_READ) as m,
    ):
        offset = 0
        while offset < size:
            at = m.find(b"\n", min(offset + MIN_BYTES, size)) + 1 or size
            while at < size:
                end = m.find(b"\n", at) + 1 or size
                is_last = _ends_piece(m, at, end)
                at = end
                if is_last:
                    break
            yield LinesPiece(file, offset, at - offset)
            m.madvise(mmap.MADV_DONTNEED)  # or all of the file would count as ours in the end
            offset = at


def _ends_piece(data: Any, start: int, end: int) -> bool:
    """Say whether a piece ends with the row of these bytes: so they themselves say."""
    import xxhash

    weight = max(_SPACE // _MEAN_LINES, (end - start) * (_SPACE // _MEAN_BYTES))
    return bool(xxhash.xxh3_64_intdigest(data[start : min(end, start + MIN_BYTES)]) < weight)


def _cut_records(file: SourceFile, delimiter: str) -> list[RecordsPiece]:
    """Return the pieces of a table; none where it is to be read by one process."""
    found = header_of(file.path, delimiter)
    if found is None:
        return []
    header, start = found
    with (
        open(file.path, "rb") as binary,
        mmap.mmap(binary.fileno(), 0, access=mmap.ACCESS_READ) as m,
    ):
        try:
            ends = [start, *_piece_ends(m, start, delimiter)]
        except InseparableError:
            return []
        if ends[-1] < len(m):
            ends.append(len(m))
    return [
        RecordsPiece(file, at, end - at, tuple(header), delimiter) for at, end in pairwise(ends)
    ]


def _piece_ends(data: Any, start: int, delimiter: str) -> Iterator[int]:
    """Yield where pieces of a table end, the last one's end left out.

    Raises:
        InseparableError: that cannot be told; what was yielded means nothing then.
    """
    import numpy

    least = start + MIN_BYTES
    before: int | None = None  # the end of the record before the next one, once there may be a cut
    for ends in record_ends(data, start, delimiter):
        at = 0
        while at < len(ends):
            if before is None:
                at = int(numpy.searchsorted(ends, least, "right"))
                if at == len(ends):
                    break
                before = int(ends[at])
                at += 1
                continue
            end = int(ends[at])
            at += 1
            if _ends_piece(data, before, end):
                yield end
                before, least = None, end + MIN_BYTES
            else:
                before = end


class _Lines:
    """The lines of a piece, for a reader of streams."""

    def __init__(self, binary: Any, size: int) -> None:
        self._binary = binary
        self._left = size

    def readline(self, limit: int) -> bytes:
        """Return the next line, or `limit` bytes of it; nothing at the piece's end."""
        line: bytes = self._binary.readline(min(limit, self._left))
        self._left -= len(line)
        return line
