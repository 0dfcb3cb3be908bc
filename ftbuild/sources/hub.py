"""`hf:ORG/NAME@REVISION`: files of a model on the Hugging Face hub, at one commit.

`hf:datasets/ORG/NAME@REVISION?config=NAME&split=NAME` are the files of a dataset's split; of
`split=train[:1%]` they lie in a folder `train[:1%]`, so that a part of a split has a key of its
own, and whoever reads them knows which rows are meant.

The lock holds the commit and the SHA-256 of each file. The hub tells that digest for large
files; small ones are downloaded to know it, and held against the name that git gives them. Large
files come from wherever the hub redirects to, without the token; their digest is known.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import quote

from ftbuild.digest import Digest, is_digest
from ftbuild.errors import CorruptError, MachineError, UsageError
from ftbuild.kinds import Part
from ftbuild.lockfile import Pin, PinnedFile
from ftbuild.sources import hub_dataset, server
from ftbuild.sources.download import Different, Keep, Room, Wanted, download
from ftbuild.sources.server import BrokenOff, Refused

_NAME = r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?"
_FORM = re.compile(rf"hf:(?!datasets/){_NAME}")
_DATASET = re.compile(rf"hf:datasets/{_NAME}(?:\?(?P<options>.*))?")
_SPLIT = re.compile(r"(?P<split>[\w.-]+)(?P<part>\[-?\d*%?:-?\d*%?\])?")

_CARD = "README.md"
_OPTIONS = frozenset({"config", "split"})
_COMMIT = re.compile(r"[0-9a-f]{40,64}")
_GIT_ID = re.compile(r"[0-9a-f]{40}")

T = TypeVar("T")


@dataclass(frozen=True)
class Repository:
    """A repository and a revision of it."""

    name: str
    revision: str
    kind: Literal["model", "dataset"] = "model"
    config: str | None = None
    split: str | None = None
    part: str | None = None
    """Of the split's rows: `[:1%]`."""

    def placed(self, file: str) -> str:
        """Return the path within the source of a file of the repository."""
        return f"{self.split}{self.part}/{file}" if self.part else file


def parse(spec: str) -> Repository:
    """Take `spec` apart; without `@REVISION` it means `main`.

    Raises:
        UsageError: E0420, it is not of the form above.
    """
    if spec.startswith("hf:datasets/"):
        return _parse_dataset(spec)
    match = _FORM.fullmatch(spec)
    if match is None:
        raise UsageError(
            f"`{spec}` does not name a model of the hub",
            code="E0420",
            fix="write hf:ORG/NAME or hf:ORG/NAME@REVISION",
        )
    return Repository(match["repo"], match["revision"] or "main")


def _parse_dataset(spec: str) -> Repository:
    match = _DATASET.fullmatch(spec)
    pairs = [
        pair.partition("=") for pair in ((match and match["options"]) or "").split("&") if pair
    ]
    options = {name: value for name, _, value in pairs}
    split = _SPLIT.fullmatch(options.get("split", "train"))
    if (
        match is None
        or split is None
        or len(options) < len(pairs)
        or not options.keys() <= _OPTIONS
    ):
        raise UsageError(
            f"`{spec}` does not name a dataset of the hub",
            code="E0420",
            fix="write hf:datasets/ORG/NAME, with @REVISION, ?config=NAME or &split=train[:1%]",
        )
    named = split["split"] if "split" in options else None
    return Repository(
        match["repo"],
        match["revision"] or "main",
        "dataset",
        options.get("config"),
        named,
        split["part"],
    )


@dataclass(frozen=True)
class HubFile:
    """What the hub says of a file."""

    name: str
    size: int | None
    sha256: Digest | None
    """Of a large file."""
    git_id: str | None
    """Of a small one."""

    @property
    def wanted(self) -> Wanted:
        """What its content must be."""
        git_id = self.git_id if self.size is not None else None
        return Wanted(self.size, self.sha256, git_id)


def resolve(spec: str, part: Part | None, room: Room, keep: Keep) -> Pin:
    """Ask the hub which commit and files `spec` is; keep the small files, name the large ones.

    Raises:
        MachineError: E0421, the hub cannot be reached or has no such repository.
        CorruptError: E0604, a file is not what the hub says of it.
    """
    repository = parse(spec)
    commit, files = _listing(spec, repository)

    def bring(file: HubFile, use: Callable[[Path], T]) -> T:
        with room(f"{spec} {commit} {file.name}") as folder:
            try:
                return use(_download(spec, repository, commit, file.name, file.wanted, folder))
            except Different as e:
                raise _not_as_said(spec, file.name, str(e)) from e

    def pinned(file: HubFile) -> PinnedFile:
        name = repository.placed(file.name)
        if file.sha256 is not None and file.size is not None:
            return PinnedFile(name, file.size, file.sha256)
        return bring(file, lambda path: PinnedFile(name, path.stat().st_size, keep(path)))

    wanted = sorted(name for name in files if part is None or part.holds(name))
    if repository.kind == "dataset":
        card = files.get(_CARD)
        wanted = hub_dataset.choose(
            spec,
            wanted,
            bring(card, lambda path: _metadata(spec, path)) if card else {},
            config=repository.config,
            split=repository.split,
        )
    if not wanted:
        raise MachineError(f"`{spec}` holds no file that counts", code="E0422")
    return Pin(tuple(pinned(files[name]) for name in wanted), commit)


def fetch(spec: str, pin: Pin, file: PinnedFile, folder: Path) -> Path:
    """Download one file at the pinned commit into `folder` and return where it lies.

    Raises:
        MachineError: E0421, the hub cannot be reached.
        Different: what comes is not the file of the lock.
    """
    repository = parse(spec)
    name = file.path.removeprefix(repository.placed(""))
    wanted = Wanted(file.size, file.sha256)
    return _download(spec, repository, str(pin.revision), name, wanted, folder)


def _listing(spec: str, repository: Repository) -> tuple[str, dict[str, HubFile]]:
    """Ask which commit a repository is at, and what files it has there."""
    endpoint, token = _endpoint(spec)
    revision = quote(repository.revision, safe="")
    url = f"{endpoint}/api/{repository.kind}s/{repository.name}/revision/{revision}?blobs=True"
    try:
        found = json.loads(server.ask(url, token=token))
        return _commit(found), {file.name: file for file in map(_file, found["siblings"])}
    except (Refused, BrokenOff) as e:
        raise _not_given(spec, str(e)) from e
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise _not_given(spec, "what it answers is no list of files of a commit") from e


def _commit(found: dict[str, Any]) -> str:
    if _COMMIT.fullmatch(found["sha"]) is None:
        raise ValueError(found["sha"])
    return str(found["sha"])


def _file(said: dict[str, Any]) -> HubFile:
    """Take apart what the hub says of a file; the name becomes a path on this machine."""
    name = said["rfilename"]
    if "\\" in name or {"..", ".", ""} & {*name.split("/")}:
        raise ValueError(name)
    if (large := said.get("lfs")) is not None:
        if not is_digest(large["sha256"]):
            raise ValueError(large["sha256"])
        return HubFile(name, _size(large["size"]), large["sha256"], None)
    size, git_id = said.get("size"), said.get("blobId")
    is_id = isinstance(git_id, str) and _GIT_ID.fullmatch(git_id)
    return HubFile(name, None if size is None else _size(size), None, git_id if is_id else None)


def _size(given: Any) -> int:
    if type(given) is not int or given < 0:
        raise ValueError(given)
    return given


def _download(
    spec: str, repository: Repository, commit: str, name: str, wanted: Wanted, folder: Path
) -> Path:
    endpoint, token = _endpoint(spec)
    prefix = "" if repository.kind == "model" else f"{repository.kind}s/"
    url = f"{endpoint}/{prefix}{repository.name}/resolve/{commit}/{quote(name)}"
    try:
        return download(url, folder, wanted, token=token)
    except (Refused, BrokenOff) as e:
        raise _not_given(spec, f"{name}: {e}") from e


def _metadata(spec: str, card: Path) -> dict[str, Any]:
    from huggingface_hub import metadata_load
    from yaml import YAMLError

    try:
        return metadata_load(card) or {}
    except (ValueError, YAMLError) as e:
        raise _not_given(spec, f"the metadata in {_CARD} cannot be read: {e}") from e


def _endpoint(spec: str) -> tuple[str, str | None]:
    """Return the address of the hub and the user's token, as its own client finds them."""
    try:
        from huggingface_hub import constants, get_token
    except ImportError as e:
        raise MachineError(
            f"`{spec}` needs the library `huggingface_hub`",
            code="E0423",
            fix="pip install huggingface_hub",
        ) from e
    if constants.HF_HUB_OFFLINE:
        raise _not_given(spec, "HF_HUB_OFFLINE is set")
    return constants.ENDPOINT.rstrip("/"), get_token()


def _not_given(spec: str, why: str) -> MachineError:
    return MachineError(
        f"the hub does not give `{spec}`",
        code="E0421",
        why=why,
        fix="check the name and the network; for a private model set HF_TOKEN",
    )


def _not_as_said(spec: str, name: str, why: str) -> CorruptError:
    return CorruptError(
        f"`{name}` of `{spec}` is not what the hub says of it",
        code="E0604",
        why=why,
        fix="something between here and the hub changes what comes: a proxy, a mirror",
    )
