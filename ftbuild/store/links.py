"""Symbolic links in the output of an action: each becomes a plain copy of what it points to.

A link means something only where it lies, and an artifact is moved, linked and sent to other
machines. So a relative link that stays inside the output is resolved; any other is an error.
"""

import os

from ftbuild.errors import ActionError, Place
from ftbuild.store import disk


def resolve(root: str, relative: str) -> None:
    """Replace the link `relative` below `root` by a copy of the file or folder it points to.

    Raises:
        ActionError: it is absolute, leaves `root`, points to nothing, or to a folder it is in.
    """
    path = f"{root}/{relative}"
    target = os.readlink(path)
    if os.path.isabs(target):
        raise _refused(relative, f"it points to the absolute path `{target}`")
    real_root, real = os.path.realpath(root), os.path.realpath(path)
    _check(real, os.path.realpath(os.path.dirname(path)), relative, real_root)
    os.unlink(path)
    _copy(real, path, relative, real_root)


def _check(real: str, folder: str, relative: str, root: str) -> None:
    if f"{folder}/".startswith(f"{real}/"):
        raise _refused(relative, "it points to a folder that it is in")
    if not real.startswith(f"{root}/"):
        raise _refused(relative, "it points out of the output directory")
    if not os.path.exists(real):
        raise _refused(relative, "it points to nothing")


def _copy(real: str, path: str, relative: str, root: str) -> None:
    if not os.path.isdir(real):
        disk.copy_and_hash(real, path)
        os.chmod(path, os.stat(real).st_mode & 0o777)
        return
    os.mkdir(path)
    for name in sorted(os.listdir(real)):
        # A link inside the folder is resolved where it lies, not where it is copied to.
        child = os.path.realpath(f"{real}/{name}")
        _check(child, os.path.realpath(path), f"{relative}/{name}", root)
        _copy(child, f"{path}/{name}", f"{relative}/{name}", root)


def _refused(relative: str, why: str) -> ActionError:
    return ActionError(
        f"the output holds a symbolic link that cannot be kept: `{relative}`",
        code="E0711",
        where=Place(relative),
        why=why,
        fix="write a file in its place, or a relative link to another file of the output",
    )
