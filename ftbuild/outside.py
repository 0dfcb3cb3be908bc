"""What comes from outside the graph: files, environment variables, functions of the user."""

import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftbuild.digest import Digest
from ftbuild.errors import Place, RuleError


@dataclass(frozen=True)
class SourceFile:
    """One file from outside the graph."""

    path: Path
    """Where its bytes can be read; read-only."""
    relative: str
    """Its path inside a source that is a folder or an archive, else `file` plus suffixes."""
    digest: Digest
    name: str
    """How the user knows it (`data/chats.jsonl`), for messages only: it must reach no output."""


@dataclass(frozen=True)
class Source:
    """Files from outside the graph: a path, a list, a glob, a folder, `hf:`, `pypi:`.

    A list keeps its order, all else is sorted by path.
    """

    files: tuple[SourceFile, ...]
    spec: str
    """As written in FTBUILD.toml, for messages only."""


@dataclass(frozen=True)
class Variable:
    """A declared environment variable; the digest of its value is in the key."""

    name: str
    value: str | None


@dataclass(frozen=True)
class Function:
    """A user's Python function, `file.py:function`.

    In the key stands the normalised source of its file and of the files of the project that it
    imports, so that a comment changes nothing and a changed line of a helper does.
    """

    path: Path
    name: str
    spec: str
    """As written in FTBUILD.toml, for messages only."""

    def load(self) -> Callable[..., Any]:
        """Import the file and return the function.

        Raises:
            RuleError: E0715, the file fails; the log holds its traceback.
        """
        import sys

        sys.path.insert(0, str(self.path.parent))  # as for a script: its helpers come first
        module = types.ModuleType(f"_ftbuild_function_{self.path.stem}")
        module.__file__ = str(self.path)
        sys.modules[module.__name__] = module
        try:
            exec(compile(self.path.read_bytes(), self.spec, "exec"), module.__dict__)
            function: Callable[..., Any] = getattr(module, self.name)
        except (Exception, SystemExit) as error:
            raise self.failure(error) from error
        return function

    def failure(self, error: BaseException) -> RuleError:
        """Return what is said when the function, or the import of its file, raises `error`."""
        import traceback

        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == self.spec
        ]
        return RuleError(
            f"`{self.spec}` fails: {type(error).__name__}: {error}",
            code="E0715",
            where=Place(self.spec.rpartition(":")[0], lines[-1] if lines else None),
            fix="mend it; what it imports of the project lies beside it or below",
        )
