"""`hf:ORG/NAME@REVISION`: files of a model on the Hugging Face hub, at one commit.

`hf:datasets/ORG/NAME@REVISION?config=NAME&split=NAME` are the files of a dataset's split; of
`split=train[:1%]` they lie in a folder `train[:1%]`, so that a part of a split has a key of its
own, and whoever reads them knows which rows are meant.

The lock holds the commit and the SHA-256 of each file. The hub tells that digest for large
files; small ones are downloaded to know it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ftbuild.digest import Digest
from ftbuild.errors import MachineError, UsageError
from ftbuild.kinds import Part
from ftbuild.lockfile import Pin, PinnedFile
from ftbuild.sources import hub_dataset

_NAME = r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?"
_FORM = re.compile(rf"hf:(?!datasets/){_NAME}")
_DATASET = re.compile(rf"hf:datasets/{_NAME}(?:\?(?P<options>.*))?")
_SPLIT = re.compile(r"(?P<split>[\w.-]+)(?P<part>\[-?\d*%?:-?\d*%?\])?")

_CARD = "README.md"
_OPTIONS = frozenset({"config", "split"})

Keep = Callable[[Path], Digest]


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


def resolve(spec: str, part: Part | None, directory: Path, keep: Keep) -> Pin:
    """Ask the hub which commit and files `spec` is; keep the small files, name the large ones.

    Raises:
        MachineError: E0421, the hub cannot be reached or has no such repository.
    """
    repository = parse(spec)
    info = _ask(
        spec,
        lambda api: getattr(api, f"{repository.kind}_info")(
            repository.name, revision=repository.revision, files_metadata=True
        ),
    )
    siblings = {sibling.rfilename: sibling for sibling in info.siblings}
    wanted = sorted(name for name in siblings if part is None or part.holds(name))
    if repository.kind == "dataset":
        card: dict[str, Any] = {}
        if _CARD in siblings:
            card = _metadata(_download(spec, repository, info.sha, _CARD, directory))
        wanted = hub_dataset.choose(
            spec, wanted, card, config=repository.config, split=repository.split
        )
    files = []
    for name in wanted:
        if (large := siblings[name].lfs) is not None:
            digest, size = Digest(large.sha256), large.size
        else:
            path = _download(spec, repository, info.sha, name, directory)
            digest, size = keep(path), path.stat().st_size
        files.append(PinnedFile(repository.placed(name), size, digest))
    if not files:
        raise MachineError(f"`{spec}` holds no file that counts", code="E0422")
    return Pin(tuple(files), info.sha)


def fetch(spec: str, pin: Pin, file: PinnedFile, directory: Path) -> Path:
    """Download one file at the pinned commit and return where it lies; the caller verifies it.

    Raises:
        MachineError: E0421, the hub cannot be reached.
    """
    repository = parse(spec)
    name = file.path.removeprefix(repository.placed(""))
    return _download(spec, repository, str(pin.revision), name, directory)


def _download(spec: str, repository: Repository, commit: str, name: str, directory: Path) -> Path:
    from huggingface_hub import hf_hub_download

    def get(_: Any) -> Any:
        return hf_hub_download(
            repository.name,
            name,
            revision=commit,
            repo_type=repository.kind,
            cache_dir=directory,
        )

    return Path(_ask(spec, get)).resolve()


def _metadata(card: Path) -> dict[str, Any]:
    from huggingface_hub import metadata_load

    return metadata_load(card) or {}


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
