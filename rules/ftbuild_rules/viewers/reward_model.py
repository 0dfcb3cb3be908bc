"""How a judge looks: as a model with its head, or as the adapter that holds the head too."""

from types import ModuleType

from ftbuild.api import Artifact
from ftbuild.view import Span, View
from ftbuild_rules.viewers import adapter as adapter_viewer
from ftbuild_rules.viewers import model as model_viewer


def inspect(artifact: Artifact, row: int | None = None) -> View:
    """Show the judge; `row` chooses one tensor by its number."""
    view: View = _viewer(artifact).inspect(artifact, row)
    return view


def diff(a: Artifact, b: Artifact) -> View:
    """Show which tensors and settings of two judges differ; both whole, or both adapters."""
    if _viewer(a) is not _viewer(b):
        forms = [_form(a), _form(b)]
        text = f"one is {forms[0]}, the other {forms[1]}: they have no tensor in common"
        return View({"a": forms[0], "b": forms[1]}, ((Span(text),),))
    view: View = _viewer(a).diff(a, b)
    return view


def _viewer(artifact: Artifact) -> ModuleType:
    return adapter_viewer if _is_adapter(artifact) else model_viewer


def _form(artifact: Artifact) -> str:
    return "an adapter" if _is_adapter(artifact) else "a whole model"


def _is_adapter(artifact: Artifact) -> bool:
    return (artifact.path / "adapter_config.json").exists()
