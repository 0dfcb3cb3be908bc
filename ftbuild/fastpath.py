"""The commonest build: nothing to do. Found out by comparing stats, before anything is loaded.

After a build that left all that was asked for fresh, the stats of everything that decided so
are written down: the FTBUILD.toml files, the lock, the rules' files, the sources and the
folders they were found in, the links in `ftbuild-out`, the files of the asked-for artifacts,
and the digests of declared environment variables. While all of them are the same, the answer
is the same. Anything else goes the long way, which alone decides.
"""

import hashlib
import marshal
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ftbuild import __version__

FOLDER = ".ftbuild"
_NAME = "fast.bin"
_FORMAT = ("fast 3", __version__, sys.implementation.cache_tag)
_KEPT = 8
"""Requests (targets, profile, settings) whose answers are kept."""

_STORE_VARIABLES = ("FTBUILD_CACHE", "XDG_CACHE_HOME", "HOME")

_Stat = tuple[int, int, int, int, int]


class Request(NamedTuple):
    """What was asked for."""

    names: tuple[str, ...]
    profile: str | None
    overrides: tuple[str, ...]


class Answer(NamedTuple):
    """So many targets, all fresh, while all of this is the same."""

    targets: int
    stats: dict[str, _Stat]
    folders: dict[str, _Stat]
    """The folders of links: they change when a link is made or removed."""
    links: dict[str, str]
    """Where each link of `ftbuild-out` leads."""
    absent: tuple[str, ...]
    """Paths that must not come into being."""
    variables: dict[str, str | None]
    """Digests of the values of environment variables."""


def try_fast(
    directory: str,
    names: Sequence[str],
    profile: str | None = None,
    overrides: Sequence[str] = (),
) -> tuple[int, float] | None:
    """Return how many targets are fresh and the seconds this took, or None: not known.

    None says nothing about whether there is something to do.
    """
    began = time.perf_counter()
    root = _find(os.path.abspath(directory))
    if root is None:
        return None
    answers = _load(root)
    found = answers.get(_key(root, directory, Request(tuple(names), profile, tuple(overrides))))
    if found is None:
        return None
    answer = Answer(*found)
    if not _holds(answer):
        return None
    if not _are_same(answer.folders):
        # Only links are gone or other: what they lead to is vouched for by the stats above.
        request = Request(tuple(names), profile, tuple(overrides))
        if not _relink(root, directory, request, answer):
            return None
    return answer.targets, time.perf_counter() - began


def _find(directory: str) -> str | None:
    while True:
        if os.path.exists(f"{directory}/{FOLDER}/{_NAME}"):
            return directory
        parent = os.path.dirname(directory)
        if parent == directory:
            return None
        directory = parent


def _key(root: str, directory: str, request: Request) -> tuple[Any, ...]:
    # Names are seen from a folder: `chats` means another target elsewhere.
    real = os.path.realpath(root)
    package = os.path.relpath(os.path.realpath(directory), real)
    store = tuple(os.environ.get(name) for name in _STORE_VARIABLES)
    # The root too: a copied workspace brings answers along that are about the original's files.
    return real, package, tuple(request), store


def _load(root: str) -> dict[Any, Any]:
    try:
        with open(f"{root}/{FOLDER}/{_NAME}", "rb") as file:
            form, answers = marshal.loads(file.read())
        return answers if form == _FORMAT and isinstance(answers, dict) else {}
    except (OSError, ValueError, EOFError, TypeError, AttributeError):
        return {}


def _holds(answer: Answer) -> bool:
    for name, digest in answer.variables.items():
        if variable_digest(os.environ.get(name)) != digest:
            return False
    return _are_same(answer.stats) and not any(map(os.path.lexists, answer.absent))


def _are_same(stats: dict[str, _Stat]) -> bool:
    stat = os.stat
    try:
        for path, known in stats.items():
            now = stat(path)
            if (now.st_mtime_ns, now.st_ctime_ns, now.st_size, now.st_ino, now.st_dev) != known:
                return False
    except OSError:
        return False
    return True


def _relink(root: str, directory: str, request: Request, answer: Answer) -> bool:
    """Make all links lead where they should; False where that is not so simple."""
    from ftbuild import outputs
    from ftbuild.errors import FtbuildError

    try:
        for link, place in answer.links.items():
            outputs.point(link, place)
        folders = {path: take_stat(path) for path in answer.folders}
    except (OSError, FtbuildError):
        return False
    _keep(root, directory, request, answer._replace(folders=folders))
    return True


def variable_digest(value: str | None) -> str | None:
    """Return how the value of an environment variable stands in a key; None where it is unset."""
    if value is None:
        return None
    return hashlib.sha256(value.encode("utf-8", "surrogateescape")).hexdigest()


def take_stat(path: str) -> _Stat:
    """Return what of a file's stat is compared: mtime, ctime, size, inode, device.

    Raises:
        OSError: there is no such file.
    """
    now = os.stat(path)
    return now.st_mtime_ns, now.st_ctime_ns, now.st_size, now.st_ino, now.st_dev


def are_settled(stats: Iterable[_Stat], racy_ns: int) -> bool:
    """Say whether all these files are so old that another change to them will show in a stat."""
    limit = time.time_ns() - racy_ns
    return all(mtime_ns < limit and ctime_ns < limit for mtime_ns, ctime_ns, *_ in stats)


def remember(root: Path, directory: Path, request: Request, answer: Answer) -> None:
    """Keep the answer to a request that was made in `directory`."""
    _keep(str(root), str(directory), request, answer)


def _keep(root: str, directory: str, request: Request, answer: Answer) -> None:
    from ftbuild.history import replace_file, workspace_folder

    folder = workspace_folder(Path(root))
    answers = _load(root)
    key = _key(root, directory, request)
    answers.pop(key, None)
    while len(answers) >= _KEPT:
        del answers[next(iter(answers))]
    answers[key] = tuple(answer)
    replace_file(folder / _NAME, marshal.dumps((_FORMAT, answers)))


def forget(root: Path) -> None:
    """Drop all answers."""
    (root / FOLDER / _NAME).unlink(missing_ok=True)
