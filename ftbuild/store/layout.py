"""Where each thing lies in the store.

    ROOT/v1/format                      the number of this format, written last
    ROOT/v1/blobs/ab/<sha256>           bytes, never changed
    ROOT/v1/trees/ab/<digest>/…         laid-out directories of blobs
    ROOT/v1/actions/ab/<key>.json       records: their existence means the action is done
    ROOT/v1/known/ab/<key>.json         records whose bytes a remote store has
    ROOT/v1/chunks/ab/<sha256>          what a blob is cut into on its way to a remote store
    ROOT/v1/siblings/ab/<digest>        keys of fragments that one function made of pieces
    ROOT/v1/pending/<process>/<key>.json   records whose bytes are not on the disk yet
    ROOT/v1/tmp/<process>/…             unfinished files of one process
    ROOT/v1/partial/<sha256>            beginnings of large files whose fetch was broken off
    ROOT/v1/scratch/<key>/…             checkpoints of unfinished actions
    ROOT/v1/toolchains/<digest>/…       Python environments of rules that have one of their own
    ROOT/v1/leases/lock                 byte ranges of it are locked; it holds nothing
    ROOT/v1/quarantine/…                what was found damaged
    ROOT/v1/roots/<name>                which workspaces use the store

Paths are texts and not `Path`s: thousands are made in a build that has nothing to do.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from ftbuild.digest import Digest
from ftbuild.errors import MachineError, Place
from ftbuild.store import disk

FORMAT = 1
_FOLDERS = (
    "blobs",
    "trees",
    "actions",
    "known",
    "chunks",
    "siblings",
    "pending",
    "tmp",
    "partial",
    "scratch",
    "leases",
    "quarantine",
    "roots",
)


@dataclass(frozen=True)
class Layout:
    """The paths of one store."""

    base: str
    """`ROOT/v1`."""

    def blob(self, digest: Digest) -> str:
        """Return where the blob is, or would be."""
        return f"{self.base}/blobs/{digest[:2]}/{digest}"

    def tree(self, digest: Digest) -> str:
        """Return where the tree is laid out, or would be."""
        return f"{self.base}/trees/{digest[:2]}/{digest}"

    def action(self, key: Digest) -> str:
        """Return where the record of an action is, or would be."""
        return f"{self.base}/actions/{key[:2]}/{key}.json"

    def known(self, key: Digest) -> str:
        """Return where the record of an action is whose bytes are elsewhere, or would be."""
        return f"{self.base}/known/{key[:2]}/{key}.json"

    def chunk_list(self, digest: Digest) -> str:
        """Return where the chunk list of a blob is, or would be."""
        return f"{self.base}/chunks/{digest[:2]}/{digest}"

    def siblings(self, family: Digest) -> str:
        """Return where the keys of all fragments of a family are, or would be."""
        return f"{self.base}/siblings/{family[:2]}/{family}"

    def partial(self, digest: Digest) -> str:
        """Return where the beginning of a large file is, or would be."""
        return f"{self.base}/partial/{digest}"

    def folder(self, name: str) -> str:
        """Return one of the folders of the store."""
        return f"{self.base}/{name}"


def open_layout(root: Path) -> Layout:
    """Return the paths of the store at `root`, which is made if it does not exist.

    Raises:
        MachineError: a newer ftbuild made it, or the folder cannot be made.
    """
    layout = Layout(f"{root}/v{FORMAT}")
    try:
        found = disk.read(f"{layout.base}/format")
    except FileNotFoundError:
        found = b""
    except OSError as error:
        raise disk.machine_error(error, layout.base) from error
    if not found:
        _refuse_newer(root)
        _create(layout)
    elif found != b"%d\n" % FORMAT:
        raise _newer(root, found.decode("ascii", "replace").strip())
    return layout


def _create(layout: Layout) -> None:
    try:
        for name in _FOLDERS:
            os.makedirs(layout.folder(name), exist_ok=True)
        staged = f"{layout.base}/tmp/format-{os.getpid()}-{os.urandom(4).hex()}"
        disk.write_durable(f"{layout.base}/format", b"%d\n" % FORMAT, staged)
    except OSError as error:
        raise disk.machine_error(error, layout.base) from error


def _refuse_newer(root: Path) -> None:
    """Raise if only newer formats are here: a second store beside them would surprise."""
    try:
        names = os.listdir(root)
    except FileNotFoundError:
        return
    except OSError as error:
        raise disk.machine_error(error, str(root)) from error
    versions = [int(name[1:]) for name in names if name[:1] == "v" and name[1:].isdecimal()]
    if versions and FORMAT not in versions and max(versions) > FORMAT:
        raise _newer(root, str(max(versions)))


def _newer(root: Path, found: str) -> MachineError:
    return MachineError(
        f"the store has format `{found}`; this ftbuild knows format {FORMAT}",
        code="E0655",
        where=Place(str(root)),
        fix="upgrade ftbuild, or set FTBUILD_CACHE to another folder",
    )
