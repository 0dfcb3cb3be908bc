"""Conditions on rows: a small part of Python's expressions, evaluated here and never by Python.

language == "de" and characters < 4000 and "as an AI" not in text

Names are the columns that the format does not read, and `text`, `characters`, `words`, `turns`.
A column that a row lacks is None; what is compared with it is false.
"""

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

Condition = Callable[[Mapping[str, Any]], Any]

_COMPARE: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
_EQUALITY = (ast.Eq, ast.NotEq)
_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "len": len,
    "lower": lambda text: str(text).lower(),
    "startswith": lambda text, head: str(text).startswith(head),
    "endswith": lambda text, tail: str(text).endswith(tail),
    "count": lambda text, part: str(text).count(part),
}


class ExpressionError(Exception):
    """A condition that cannot be read, or has no meaning for a row."""


def compile_condition(text: str) -> Condition:
    """Return the condition as a function of a row's names.

    Raises:
        ExpressionError: it is not of the form above.
    """
    try:
        return _node(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ExpressionError(f"it is no expression: {error}") from None


def _node(node: ast.expr) -> Condition:
    match node:
        case ast.Constant(value=str() | int() | float() | None):
            value = node.value
            return lambda row: value
        case ast.Name():
            name = node.id
            return lambda row: row.get(name)
        case ast.BoolOp():
            parts = [_node(item) for item in node.values]
            together = all if isinstance(node.op, ast.And) else any
            return lambda row: together(part(row) for part in parts)
        case ast.UnaryOp(op=ast.Not()):
            inner = _node(node.operand)
            return lambda row: not inner(row)
        case ast.UnaryOp(op=ast.USub()):
            inner = _node(node.operand)
            return lambda row: -inner(row)
    return _value(node)


def _value(node: ast.expr) -> Condition:
    match node:
        case ast.List() | ast.Tuple():
            items = [_node(item) for item in node.elts]
            return lambda row: [item(row) for item in items]
        case ast.Subscript():
            return _subscript(_node(node.value), _node(node.slice))
        case ast.Compare():
            return _compare(node)
        case ast.BinOp() if type(node.op) in _ARITHMETIC:
            combine = _ARITHMETIC[type(node.op)]
            left, right = _node(node.left), _node(node.right)
            return lambda row: combine(left(row), right(row))
        case ast.Call(func=ast.Name(id=name), keywords=[]) if name in _FUNCTIONS:
            function, given = _FUNCTIONS[name], [_node(item) for item in node.args]
            return lambda row: function(*(item(row) for item in given))
    raise ExpressionError(f"`{ast.unparse(node)}` is not a part of conditions")


def _subscript(value: Condition, key: Condition) -> Condition:
    def evaluate(row: Mapping[str, Any]) -> Any:
        found = value(row)
        if isinstance(found, dict):
            return found.get(key(row))
        return None if found is None else found[key(row)]

    return evaluate


def _compare(node: ast.Compare) -> Condition:
    operands = [_node(item) for item in (node.left, *node.comparators)]
    for op in node.ops:
        if type(op) not in _COMPARE:
            raise ExpressionError(f"`{ast.unparse(node)}`: write `==` or `!=` for `is`")

    def evaluate(row: Mapping[str, Any]) -> bool:
        values = [operand(row) for operand in operands]
        for op, left, right in zip(node.ops, values[:-1], values[1:], strict=True):
            if not isinstance(op, _EQUALITY) and (left is None or right is None):
                return False
            if not _COMPARE[type(op)](left, right):
                return False
        return True

    return evaluate
