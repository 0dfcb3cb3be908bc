"""`hf:ORG/NAME@REVISION`: files of a model on the Hugging Face hub, at one commit.

The lock holds the commit and the SHA-256 of each file. The hub tells that digest for large
files; small ones are downloaded to know it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftbuild.digest import Digest
from ftbuild.errors import MachineError, UsageError
from ftbuild.kinds import Part
from ftbuild.lockfile import Pin, PinnedFile

_FORM = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")

Keep = Callable[[Path], Digest]


@dataclass(frozen=True)
class Repository:
    """A model repository and a revision of it."""

    name: str
    revision: str


def parse(spec: str) -> Repository:
    """Take `spec` apart; without `@REVISION` it means `main`.

    Raises:
        UsageError: E0420, it is not of the form above.
    """
    match = _FORM.fullmatch(spec)
    if match is None:
        raise UsageError(
            f"`{spec}` does not name a model of the hub",
            code="E0420",
            fix="write hf:ORG/NAME or hf:ORG/NAME@REVISION",
        )
    return Repository(match["repo"], match["revision"] or "main")


def resolve(spec: str, part: Part | None, directory: Path, keep: Keep) -> Pin:
    """Ask the hub which commit and files `spec` is; keep the small files, name the large ones.

    Raises:
        MachineError: E0421, the hub cannot be reached or has no such repository.
    """
    repository = parse(spec)
    info = _ask(
        spec,
        lambda api: api.model_info(
            repository.name, revision=repository.revision, files_metadata=True
        ),
    )
    files = []
    for sibling in sorted(info.siblings, key=lambda s: s.rfilename):
        if part is not None and not part.holds(sibling.rfilename):
            continue
        if sibling.lfs is not None:
            digest, size = Digest(sibling.lfs.sha256), sibling.lfs.size
        else:
            path = _download(spec, repository.name, info.sha, sibling.rfilename, directory)
            digest, size = keep(path), path.stat().st_size
        files.append(PinnedFile(sibling.rfilename, size, digest))
    if not files:
        raise MachineError(f"`{spec}` holds no file that counts", code="E0422")
    return Pin(tuple(files), info.sha)


def fetch(spec: str, pin: Pin, file: PinnedFile, directory: Path) -> Path:
    """Download one file at the pinned commit and return where it lies; the caller verifies it.

    Raises:
        MachineError: E0421, the hub cannot be reached.
    """
    return _download(spec, parse(spec).name, str(pin.revision), file.path, directory)


def _download(spec: str, repo: str, commit: str, name: str, directory: Path) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(
        _ask(spec, lambda _: hf_hub_download(repo, name, revision=commit, cache_dir=directory))
    ).resolve()


def _ask(spec: str, question: Callable[[Any], Any]) -> Any:
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as e:
        raise MachineError(
            f"`{spec}` needs the library `huggingface_hub`",
            code="E0423",
            fix="pip install huggingface_hub",
        ) from e
    try:
        return question(HfApi())
    except (HfHubHTTPError, OSError, ValueError) as e:
        raise MachineError(
            f"the hub does not give `{spec}`",
            code="E0421",
            why=str(e).strip().splitlines()[0],
            fix="check the name and the network; for a private model set HF_TOKEN",
        ) from e
