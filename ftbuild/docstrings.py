"""The text under each attribute of a class, read from its source when somebody asks for it.

pydantic would read it as each class is made, which costs a build more than validating does: it
looks for the class through every module that is loaded, and torch alone loads two thousand.
"""

import ast
import inspect
import textwrap
from functools import cache
from itertools import pairwise


@cache
def attribute_docstrings(owner: type) -> dict[str, str]:
    """Return the docstrings of the attributes of `owner`, by name; those of its bases too.

    A class without source, made by code, has none.
    """
    found: dict[str, str] = {}
    for base in reversed(owner.__mro__):
        # Not a library's own: what stands in its source is no attribute of a rule.
        if base.__module__.partition(".")[0] not in ("builtins", "pydantic"):
            found |= _own(base)
    return found


def _own(owner: type) -> dict[str, str]:
    try:
        [tree] = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    except (OSError, TypeError, SyntaxError):
        return {}
    body = tree.body if isinstance(tree, ast.ClassDef) else []
    found = {}
    for attribute, text in pairwise(body):
        if (
            isinstance(attribute, ast.AnnAssign)
            and isinstance(attribute.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        ):
            found[attribute.target.id] = inspect.cleandoc(text.value.value)
    return found
