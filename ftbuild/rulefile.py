"""One file with rules, imported; what is wrong with it said with file and line."""

import hashlib
import importlib
import linecache
import sys
import sysconfig
import traceback
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from ftbuild.declaration import ENGINE_ATTRIBUTES
from ftbuild.errors import ManifestError, Place, Problem
from ftbuild.settings import RESERVED
from ftbuild.wording import shown

if TYPE_CHECKING:
    from ftbuild.rule import Rule

PRIVATE = "_ftbuild_project_"
"""Begins the names of modules that are files of a project."""


def import_file(root: Path, file: str, *, is_fresh: bool = False) -> ModuleType:
    """Import a rule file of the project under a name of its own, and the helpers beside it.

    Once imported it is used again, unless `is_fresh` asks for what the files hold now.

    Raises:
        ManifestError: the file fails; said with the line at which it does.
    """
    path = root / file
    name = f"{PRIVATE}{hashlib.sha256(file.encode()).hexdigest()[:12]}_{path.stem}"
    folder = str(path.parent)
    if sys.path[0] != folder:  # as for a script, its helpers come first
        sys.path[:] = [folder, *(entry for entry in sys.path if entry != folder)]
    known = sys.modules.get(name)
    if known is not None and known.__file__ == str(path) and not is_fresh:
        return known
    module = ModuleType(name)
    module.__file__ = str(path)
    # A helper edited within the second would else come from the bytecode of its older text.
    writes_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        if is_fresh:
            _forget_helpers(path, root)
        sys.modules[name] = module
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        sys.modules.pop(name, None)
        raise ManifestError([_failed_import(error, path, file)]) from error
    finally:
        sys.dont_write_bytecode = writes_bytecode
    return module


def rules_in(module: ModuleType, file: str) -> list["Rule"]:
    """Return the rules that a file defines, in their order.

    Raises:
        ManifestError: it defines none, or one that no manifest could use.
    """
    found = [getattr(value, "__ftbuild_rule__", None) for value in vars(module).values()]
    rules = [r for r in found if r is not None and r.function.__module__ == module.__name__]
    if not rules:
        fix = "decorate a function with `@rule(output=…)` of `ftbuild.api`"
        what = f"the rule file `{file}` defines no rule"
        raise ManifestError([Problem("E0212", what, Place(file), fix=fix)])
    wrong = [problem for rule in rules for problem in _unusable(rule, file)]
    if wrong:
        raise ManifestError(wrong)
    return rules


def rule_of_pack(name: str, module: str, path: Path) -> "Rule":
    """Import the file of a pack that holds the rule `name`, and return the rule.

    Raises:
        ManifestError: it cannot be imported, or holds no such rule.
    """
    try:
        rules = rules_in(importlib.import_module(module), str(path))
    except ManifestError:
        raise
    except (Exception, SystemExit) as error:
        raise ManifestError([_failed_import(error, path, str(path))]) from error
    for rule in rules:
        if rule.name == name:
            return rule
    what = f"`{path}` should hold a rule named as the file is, `{name}`"
    raise ManifestError([Problem("E0212", what, Place(str(path)), fix="rename the file")])


def _forget_helpers(path: Path, root: Path) -> None:
    """Forget the helpers of a file: they may have been edited, or be another project's."""
    from ftbuild.rulesource import source_digest

    importlib.invalidate_caches()
    linecache.checkcache()
    installed = tuple(sysconfig.get_paths().values())
    for helper in source_digest(path, root)[1]:
        if helper.is_relative_to(path.parent.resolve()):
            parts = helper.relative_to(path.parent.resolve()).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            file = getattr(sys.modules.get(name), "__file__", None)
            if file and not file.startswith(installed) and parts[0] != "ftbuild":
                del sys.modules[name]


def _unusable(rule: "Rule", file: str) -> list[Problem]:
    where = Place(file, rule.function.__code__.co_firstlineno, within=f"rule `{rule.name}`")
    if rule.name in RESERVED:
        what = f"a rule cannot be named `{rule.name}`: FTBUILD.toml has a table of that name"
        return [Problem("E0213", what, where, fix="rename the function")]
    problems = []
    for name in (*rule.inputs.model_fields, *rule.params.model_fields):
        if name in ENGINE_ATTRIBUTES:
            what = f"rule `{rule.name}` cannot have an attribute `{name}`: every target has it"
            problems.append(Problem("E0215", what, where, fix="rename the field"))
    for name in rule.inputs.model_fields:
        if name in rule.params.model_fields:
            what = f"rule `{rule.name}` has `{name}` both as an input and as a param"
            problems.append(Problem("E0215", what, where, fix="rename one of the fields"))
    return problems


def _failed_import(error: BaseException, path: Path, file: str) -> Problem:
    """Return what a person can mend: the last line of the file itself that ran."""
    if isinstance(error, SyntaxError):
        guilty = Path(error.filename or path)
        folder = str(path).removesuffix(file)  # of a helper beside it, only what is below the root
        text = (error.text or "").rstrip("\n") or None
        where = Place(str(guilty).removeprefix(folder), error.lineno, error.offset, text)
        what, reason = f"the rule file `{file}` is not valid Python", error.msg
    else:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if frame.filename == str(path)]
        line = own[-1].lineno if own else None
        text = linecache.getline(str(path), line).rstrip("\n") if line else None
        where = Place(file, line, None, text)
        what = f"the rule file `{file}` cannot be imported"
        reason = f"{type(error).__name__}: {shown(str(error), 300)}"
    fix = "mend that line, or take the file out of `rules` of [project]"
    return Problem("E0211", what, where, why=reason, fix=fix)
