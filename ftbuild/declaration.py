"""One target as FTBUILD.toml declares it: raw values, and where each of them comes from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ftbuild import labels
from ftbuild.root import FILE_NAME as FILE_NAME
from ftbuild.spans import KeyPath

ENGINE_ATTRIBUTES = ("description", "tags", "resources", "matrix")
"""What every target may have, and the engine alone reads: in no key."""

Origin = tuple[str, KeyPath]
"""A file and keys in it; or an option of the command line and no keys."""


@dataclass(frozen=True)
class Declaration:
    """A target before its attributes are checked against its rule."""

    package: str
    """The folder of its FTBUILD.toml, relative to the root; empty for the root."""
    rule: str
    name: str
    """`helper`, or `helper[learning_rate=0.0001]` for a member of a family."""
    family: str
    """The name in the table's header: equal to `name` where there is no matrix."""
    attributes: dict[str, Any]
    """With the profile, `--set` and the matrix laid over."""
    origins: Mapping[KeyPath, Origin] = field(default_factory=dict)
    """Where attributes come from that do not stand in the target's own table."""

    @property
    def label(self) -> str:
        """The target's canonical label."""
        return labels.join(self.package, self.name)

    @property
    def file(self) -> str:
        """The FTBUILD.toml that declares it, relative to the root."""
        return f"{self.package}/{FILE_NAME}" if self.package else FILE_NAME

    def origin(self, path: KeyPath = ()) -> Origin:
        """Return the file and the keys from which the attribute at `path` comes."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.origins:
                file, keys = self.origins[path[:length]]
                return file, (*keys, *path[length:]) if keys else ()
        return self.file, (self.rule, self.family, *path)
