"""ftbuild: the build system for fine-tuned language models. The Python API."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftbuild.errors import FtbuildError
    from ftbuild.project import Project

__version__ = "0.1.0"
__all__ = ["FtbuildError", "Project", "__version__"]


def __getattr__(name: str) -> Any:
    # Lazy, so that `ftbuild --version` and a build with nothing to do load neither.
    if name == "Project":
        from ftbuild.project import Project

        return Project
    if name == "FtbuildError":
        from ftbuild.errors import FtbuildError

        return FtbuildError
    raise AttributeError(f"module 'ftbuild' has no attribute {name!r}")
