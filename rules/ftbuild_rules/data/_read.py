"""Sources -> rows: which reader a file's name asks for.

Every reader gives the same row for the same data, so that a dataset does not depend on what its
rows were written in. Memory holds one row and one block, whatever the size of a file.
"""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO

from ftbuild.api import Place, RuleError, Source, SourceFile
from ftbuild_rules.data._archives import ARCHIVES, archive_rows
from ftbuild_rules.data._columnar import arrow_rows, parquet_rows
from ftbuild_rules.data._delimited import delimited_rows
from ftbuild_rules.data._json_rows import json_rows
from ftbuild_rules.data._plain_text import SampleBy, text_rows
from ftbuild_rules.data._rows import Row
from ftbuild_rules.data._streams import COMPRESSED, decompressed, decompression_errors, opened

LINES = (".jsonl", ".ndjson")
ARROW = (".arrow", ".feather", ".ipc")
_TEXT = (".txt", ".text", ".md")
_TABLES = (*LINES, ".csv", ".tsv", ".parquet", *ARROW)
_KNOWN = (*_TABLES, ".json", *_TEXT, *ARCHIVES)
_PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".joblib", ".npy", ".npz")
_SAVED = "state.json"
"""What `datasets` writes beside the shards of `save_to_disk`; it names them in their order."""


@dataclass(frozen=True)
class Reading:
    """How files are read where their names leave it open."""

    sample_by: SampleBy = "line"
    members: str = "*"
    """Which members of an archive."""


def files_with_rows(source: Source) -> tuple[list[SourceFile], list[SourceFile]]:
    """Return the files of a source that hold rows, in the order to read them, and the others.

    Where files were named, or matched by a pattern, all of them are meant; in a folder those
    whose ending is known.

    Raises:
        RuleError: a folder of `save_to_disk` holds several splits, or lacks a shard.
    """
    by_path = {file.relative: file for file in source.files}
    states = [path for path in by_path if PurePosixPath(path).name == _SAVED]
    if states:
        return _saved(by_path, states, source.spec), []
    if len(source.files) == 1 or all(_is_numbered(p) for p in by_path):
        return list(source.files), []
    holding = [file for file in source.files if _kind(file.relative) is not None]
    if not holding:
        raise RuleError(
            "the folder holds no file from which rows can be read",
            code="E0801",
            where=Place(source.spec),
            why=f"no name ends in one of {', '.join(_KNOWN)}",
            fix="name the files, or convert them to JSON Lines",
        )
    return holding, [file for file in source.files if file not in holding]


def _is_numbered(path: str) -> bool:
    """Say whether a path within a source is one that files get which were named."""
    stem = path.partition("/")[0].partition(".")[0]  # a list that mixes places gives 00001/…
    return stem == "file" or stem.isdecimal()


def _saved(by_path: dict[str, SourceFile], states: Sequence[str], spec: str) -> list[SourceFile]:
    if len(states) > 1:
        splits = sorted(str(PurePosixPath(path).parent) for path in states)
        raise RuleError(
            f"the folder holds several splits: {', '.join(f'`{split}`' for split in splits)}",
            code="E0845",
            where=Place(spec),
            fix=f'name one of them: source = "{spec.rstrip("/")}/{splits[0]}"',
        )
    state = by_path[states[0]]
    try:
        names = [entry["filename"] for entry in json.loads(state.path.read_bytes())["_data_files"]]
        folder = PurePosixPath(states[0]).parent
        return [by_path[str(folder / name)] for name in names]
    except (KeyError, TypeError, ValueError) as error:
        raise RuleError(
            "the folder is not a whole dataset of `save_to_disk`",
            code="E0845",
            where=Place(state.name),
            why=f"{type(error).__name__}: {error}",
            fix="save it again",
        ) from None


def read_rows(file: SourceFile, reading: Reading) -> Iterator[Row | RuleError]:
    """Yield the rows of `file` in their order, and an error in the place of each bad one.

    Raises:
        RuleError: nothing after a bad row can be read.
    """
    with opened(file.path) as binary, decompression_errors(file.name):
        yield from _read(binary, file.name, file.relative, reading)


def _read(
    raw: BinaryIO, name: str, path: str, reading: Reading, *, is_member: bool = False
) -> Iterator[Row | RuleError]:
    """Yield the rows of a stream; `path` says by its ending what it is, `name` is for messages."""
    kind = _kind(path)
    if kind is None or (is_member and kind in ARCHIVES):
        raise _unreadable(name, path)
    binary = decompressed(raw, path)
    if kind in ARCHIVES:
        yield from archive_rows(
            binary,
            name,
            kind=kind,
            members=reading.members,
            is_table=lambda member: _kind(member) in _TABLES,
            read=lambda file, member: _read(file, member, member, reading, is_member=True),
        )
    else:
        yield from _table_rows(binary, name, kind, reading)


def _table_rows(
    binary: io.BufferedReader, name: str, kind: str, reading: Reading
) -> Iterator[Row | RuleError]:
    if kind in (".csv", ".tsv"):
        return delimited_rows(binary, name, "," if kind == ".csv" else "\t")
    if kind == ".parquet":
        return parquet_rows(binary, name)
    if kind in ARROW:
        return arrow_rows(binary, name)
    if kind in _TEXT:
        return text_rows(binary, name, reading.sample_by)
    return json_rows(binary, name, is_lines=kind in LINES)


def _kind(name: str) -> str | None:
    """Return the ending by which a file is read, without that of its compression."""
    lower = name.lower()
    if lower.endswith(".tgz"):
        return ".tar"
    for ending in COMPRESSED:
        lower = lower.removesuffix(ending)
    return next((kind for kind in _KNOWN if lower.endswith(kind)), None)


def _unreadable(name: str, path: str) -> RuleError:
    if path.lower().endswith(_PICKLES):
        return RuleError(
            f"a dataset is not read from `{name}`",
            code="E0801",
            where=Place(name),
            why="a pickle runs whatever code its author put in, as soon as it is opened",
            fix="if you trust it, open it yourself and write JSON Lines or Parquet",
        )
    return RuleError(
        f"a dataset cannot be read from `{name}`",
        code="E0801",
        where=Place(name),
        why=f"its name ends in none of {', '.join(_KNOWN)} (or these with .gz, .zst, .bz2, .xz)",
        fix='give it as JSON Lines; of a folder name the files: `source = "data/*.jsonl"`',
    )
