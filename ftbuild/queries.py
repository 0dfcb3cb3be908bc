"""Sources that are queries: whether a table with `sql` is one SELECT, and its address.

source = { sql = "select * from chats where n >= :n", url_env = "DB", params = { n = 3 } }
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from ftbuild.digest import canonical_json

KEYS = frozenset({"sql", "url", "url_env", "params"})

_IGNORED = re.compile(
    r"""--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|(\$\w*\$).*?\1""", re.DOTALL
)
_FORBIDDEN = re.compile(
    r"\b(insert|update|delete|merge|into|drop|alter|create|attach|detach|pragma|copy|grant|revoke|"
    r"truncate|call|exec|execute|lock|vacuum|reindex|load_extension|set|do)\b",
    re.IGNORECASE,
)
_PASSWORD = re.compile(r"://[^/@]*:[^/@]+@")


def problem(table: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return what is wrong with a source that is a table, and what to write; None if nothing."""
    if unknown := sorted(set(table) - KEYS):
        return (
            f"an SQL source has no key `{unknown[0]}`",
            "it has `sql`, `url`, `url_env`, `params`",
        )
    if not isinstance(table.get("sql"), str) or not table["sql"].strip():
        return "the table has no `sql`", 'write { sql = "select …", url = "sqlite:///file.db" }'
    if ("url" in table) == ("url_env" in table):
        return (
            "an SQL source needs either `url` or `url_env`",
            'write url = "sqlite:///file.db", or url_env = "NAME" of a variable that holds the URL',
        )
    if not all(isinstance(table.get(key, ""), str) for key in ("url", "url_env")):
        return "`url` and `url_env` are texts", 'write url = "sqlite:///file.db"'
    if _PASSWORD.search(table.get("url", "")):
        return (
            "`url` holds a password, which everybody who reads FTBUILD.toml would know",
            'put the URL into an environment variable: url_env = "DATABASE_URL"',
        )
    return _params_problem(table.get("params", {})) or select_problem(table["sql"])


def _params_problem(params: Any) -> tuple[str, str] | None:
    is_right = isinstance(params, dict) and all(
        isinstance(value, str | int | float) for value in params.values()
    )
    if is_right:
        return None
    return (
        "`params` should be a table of texts, numbers, or true and false",
        "write params = { least = 3 }, and `:least` in the query",
    )


def select_problem(query: str) -> tuple[str, str] | None:
    """Return why a query is more than one SELECT, and what to write; None if it is one.

    What the words hide from this is refused by the database: it is asked in a transaction that
    can only read.
    """
    text = _IGNORED.sub(" ", query).strip().rstrip(";").strip()
    if ";" in text:
        return "`sql` holds more than one statement", "write one SELECT"
    first = re.match(r"\w*", text)
    if first is None or first[0].lower() not in ("select", "with", "values"):
        return "`sql` is no SELECT", "write one SELECT; it may begin with WITH"
    found = _FORBIDDEN.search(text)
    if found is None:
        return None
    return (
        f"`sql` holds `{found[0]}`: a source only reads",
        "write a SELECT without it; put a column of that name into double quotes",
    )


def address(table: Mapping[str, Any]) -> str:
    """Return by what FTBUILD.lock knows the query."""
    return f"sql:{canonical_json(dict(table)).decode()}"


def table_of(text: str) -> dict[str, Any]:
    """Return the table of an address."""
    table: dict[str, Any] = json.loads(text.removeprefix("sql:"))
    return table


def variable(text: str) -> str | None:
    """Return the variable that holds the database's URL, of an address that is a query's."""
    return table_of(text).get("url_env") if text.startswith("sql:") else None


def is_sqlite(table: Mapping[str, Any]) -> bool:
    """Say whether the query is on a SQLite file that FTBUILD.toml names."""
    return str(table.get("url", "")).startswith("sqlite:")


def shown(table: Mapping[str, Any]) -> str:
    """Return a query for a message."""
    return " ".join(table["sql"].split())[:60]
