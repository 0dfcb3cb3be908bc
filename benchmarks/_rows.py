"""Chat rows of realistic lengths, made of what the standard library's docstrings say.

One to three turns, a question of one to three sentences, an answer of one to twenty: 260 tokens
in the mean. The same seed gives the same rows.

{"messages": [{"role": "user", "content": "…"}, …], "id": 7, "source": "generated"}
"""

import ast
import json
import os
import random
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path


def sentences() -> list[str]:
    """Return the sentences of the docstrings of the standard library's top modules."""
    library = Path(sysconfig.get_paths()["stdlib"])
    found: set[str] = set()
    for path in sorted(library.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8", errors="replace"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                parts = (" ".join(part.split()) for part in re.split(r"(?<=[.!?])\s+", text))
                found.update(part for part in parts if 20 < len(part) < 300)
    return sorted(found)


def lines(count: int, seed: int = 0) -> Iterator[str]:
    """Yield rows as JSON Lines."""
    known, chosen = sentences(), random.Random(seed)
    for number in range(count):
        messages = []
        for _ in range(chosen.choice((1, 1, 2, 2, 3))):
            question = chosen.choices(known, k=chosen.randint(1, 3))
            answer = chosen.choices(known, k=min(20, 1 + int(chosen.expovariate(1 / 4))))
            messages.append({"role": "user", "content": " ".join(question)})
            messages.append({"role": "assistant", "content": " ".join(answer)})
        yield json.dumps({"messages": messages, "id": number, "source": "generated"}) + "\n"


def short_lines(count: int, seed: int = 0) -> Iterator[str]:
    """Yield rows of one short turn, for what depends on their number alone."""
    chosen = random.Random(seed)
    for number in range(count):
        question = f"What is {chosen.randrange(10_000)} plus {number}?"
        answer = f"It is number {chosen.randrange(1_000_000)}."
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        yield json.dumps({"messages": messages}) + "\n"


def long_lines(count: int, turns: int, seed: int = 0) -> Iterator[str]:
    """Yield conversations of so many turns."""
    known, chosen = sentences(), random.Random(seed)
    for _ in range(count):
        messages = [
            {"role": role, "content": chosen.choice(known)}
            for _ in range(turns)
            for role in ("user", "assistant")
        ]
        yield json.dumps({"messages": messages}) + "\n"


def written(path: Path, rows: Iterator[str]) -> Path:
    """Write rows to a file, unless it is there."""
    if not path.exists():
        staged = path.with_suffix(".part")
        with open(staged, "w", encoding="utf-8") as file:
            file.writelines(rows)
        os.replace(staged, path)
    return path
