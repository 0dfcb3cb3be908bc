"""The user's own settings: `~/.config/ftbuild/config.toml`, with `[run]` and `[cache]`.

They come last, after flags, environment and project, and hold only what can change no result:
two people's keys must not differ by what stands here.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftbuild.errors import ManifestError, Place, Problem


@dataclass(frozen=True)
class UserSettings:
    """The two tables of the file."""

    run: dict[str, Any] = field(default_factory=dict)
    cache: dict[str, Any] = field(default_factory=dict)


def path() -> str:
    """Return where the file is, or would be."""
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return os.path.join(home, "ftbuild", "config.toml")


def default_store() -> Path:
    """Return the folder of the store where nothing names one."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "ftbuild"


def read() -> UserSettings:
    """Return the user's settings; empty ones where there is no file.

    Raises:
        ManifestError: with all that is wrong in it.
    """
    try:
        with open(path(), "rb") as file:
            text = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return UserSettings()
    import tomllib

    from ftbuild import settings, spans

    try:
        tables = tomllib.loads(text.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ManifestError([Problem("E0102", str(e), Place(path()))]) from e
    found, wrong = {}, []
    for name in ("run", "cache"):
        found[name], findings = settings.check(tables, name, path())
        wrong += findings
    for name in sorted(tables.keys() - found.keys()):
        what = f"[{name}] has no place in the settings of a user"
        wrong.append(
            spans.Finding("E0109", what, path(), (name,), fix="only [run] and [cache] have")
        )
    if wrong:
        raise ManifestError(spans.problems(wrong, {path(): text}))
    return UserSettings(**found)
