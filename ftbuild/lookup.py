"""What a label in a manifest means, or what is wrong with it and what it was meant to be."""

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ftbuild import labels
from ftbuild.packages import file_of
from ftbuild.wording import nearest, shown

if TYPE_CHECKING:
    from ftbuild.manifest import Manifest


class Found(NamedTuple):
    """The targets that a label names; with a code, words and a remedy if it names none."""

    labels: Sequence[str] = ()
    code: str | None = None
    """None also for a label of what is declared and wrong, which is said elsewhere."""
    what: str = ""
    fix: str | None = None


class Lookup:
    """Looks labels up; remembers what a wrong one was meant to be, for many may be alike."""

    def __init__(self, manifest: "Manifest", families: Mapping[str, Sequence[str]]) -> None:
        self._known = dict.fromkeys(d.label for d in manifest.declarations)
        self._families = families
        self._manifest = manifest
        self._nearest = functools.cache(self._search)

    def find(self, text: str, package: str) -> Found:
        """Return what the label `text` names inside `package`."""
        label = labels.resolve(text, package)
        if label is None:
            return Found((), "E0302", f"`{shown(text)}` is not a label", labels.FORM)
        if label in self._known:
            return Found((label,))
        if label in self._families:
            return Found(self._families[label])
        if self._is_declared(label):
            return Found()
        return self._unknown(label, package)

    def _is_declared(self, label: str) -> bool:
        """Say whether `label` may be of a target that is declared but cannot be used."""
        home, name = labels.split(label)
        family = labels.join(home, name.partition("[")[0])
        unusable = self._manifest.unusable
        return home in self._manifest.broken or label in unusable or family in unusable

    def _unknown(self, label: str, package: str) -> Found:
        home, name = labels.split(label)
        if home not in self._manifest.packages:
            what = f"there is no package `{home}`: no file `{file_of(home)}`"
            match = nearest(home, self._manifest.packages - {""})
            fix = f"did you mean `//{match}:{name}`?" if match else labels.FORM
            return Found((), "E0301", what, fix)
        what = f"there is no target `{shown(name)}`" + (f" in package `{home}`" if home else "")
        match = self._nearest(label)
        fix = "`ftbuild targets` lists all"
        if match:
            fix = f"did you mean `{_written(match, package)}`?"
        return Found((), "E0301", what, fix)

    def _search(self, label: str) -> str | None:
        home, name = labels.split(label)
        options = [*self._known, *self._families]
        for other in options:  # the right name, looked for in the wrong package
            if labels.split(other)[1] == name:
                return other
        return nearest(label, (o for o in options if labels.split(o)[0] == home))


def _written(label: str, package: str) -> str:
    """Return `label` as it is written inside `package`."""
    home, name = labels.split(label)
    return name if home == package else f"//{home}:{name}"
