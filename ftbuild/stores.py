"""Stores: which local and remote stores a workspace uses, and whose records it believes.

The environment goes before the project's settings, and these before the user's own.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ftbuild import signing, usersettings
from ftbuild.store.store import Store
from ftbuild.store.trust import Trust

if TYPE_CHECKING:
    from ftbuild.project import Project
    from ftbuild.remote.guard import Tell
    from ftbuild.remote.service import Supply


def open_store(project: "Project") -> Store:
    """Return the store of a workspace; `gc` of others will know that it is in use."""
    store = Store(_root(project), project.statcache, _trust(project))
    store.register(project.folder)
    return store


def open_supply(project: "Project", tell: "Tell") -> "Supply | None":
    """Return what reaches beyond the store; None if nothing is named, or `--offline` is.

    Raises:
        UsageError: E0570, an address is of no known form; E0571, a library is missing.
    """
    texts = [] if project.options.offline else _remotes(project)
    if not texts:
        return None
    from ftbuild.remote import opening, trust

    reason = trust.why_read_only(os.environ, project.setting("cache", "remote_write"))
    return opening.open_supply(
        project.store,
        texts,
        root=project.root,
        can_write=reason is None,
        tell=tell,
        accept=project.store.trust.objection,
    )


def _root(project: "Project") -> Path:
    named = os.environ.get("FTBUILD_CACHE")
    if named:
        return Path(named).expanduser()
    inside = project.workspace.cache.get("dir")
    if inside:
        return project.root / Path(inside).expanduser()
    own = project.user.cache.get("dir")
    return Path(own).expanduser() if own else usersettings.default_store()


def _trust(project: "Project") -> Trust:
    trusted = frozenset(project.setting("cache", "trusted_keys") or ())
    required = project.setting("cache", "require_signed")
    is_required = bool(trusted) if required is None else bool(required)
    signer = signing.find()
    if is_required and signer is None:
        # Else what is built here would not be believed here. Nobody else believes it.
        signer = signing.read_or_make(project.folder / "key")
    return Trust(project.workspace.name, trusted, is_required, signer)


def _remotes(project: "Project") -> list[str]:
    named = os.environ.get("FTBUILD_REMOTE")
    if named is not None:
        return named.split()
    given = project.setting("cache", "remote") or []
    return [given] if isinstance(given, str) else list(given)
