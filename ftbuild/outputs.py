"""`ftbuild-out/TARGET`: links from a package to the ready directories in the store."""

import os
from pathlib import Path

from ftbuild.errors import MachineError, Place
from ftbuild.graph import Target

FOLDER = "ftbuild-out"


def folder(root: Path, package: str) -> str:
    """Return the folder of links of a package."""
    return os.path.join(root, package, FOLDER) if package else os.path.join(root, FOLDER)


def link_path(root: Path, target: Target) -> str:
    """Return the path of the link of `target`."""
    return f"{folder(root, target.package)}/{target.name}"


def point(link: str, directory: str) -> None:
    """Make `link` lead to `directory`; a reader sees the old one or the new one.

    Raises:
        MachineError: E0654, something that is no link is there.
    """
    try:
        os.symlink(directory, link)
        return
    except FileNotFoundError:
        os.makedirs(os.path.dirname(link), exist_ok=True)
    except FileExistsError:
        pass
    try:
        if os.readlink(link) == directory:
            return
    except FileNotFoundError:
        pass
    except OSError as e:
        raise MachineError(
            f"`{FOLDER}` belongs to ftbuild, but this is not a link of its making",
            code="E0654",
            where=Place(link),
            fix="move it elsewhere and run the build again",
        ) from e
    staged = f"{link}.{os.getpid()}"
    os.symlink(directory, staged)
    os.replace(staged, link)


def remove(link: str) -> bool:
    """Remove `link`, if it is one; say whether it was there."""
    if not os.path.islink(link):
        return False
    os.unlink(link)
    return True
