"""The store must not slow down a build that has nothing to do."""

import ast
import subprocess
import sys
from pathlib import Path

import ftbuild.store

# What the standard library's parts cost on top of errors and digest: ctypes and tempfile 4 ms
# each, uuid, socket and shutil 2 to 4 ms; pydantic and importlib.metadata far more.
SLOW = {
    "ctypes",
    "filelock",
    "importlib.metadata",
    "pydantic",
    "shutil",
    "socket",
    "subprocess",
    "tempfile",
    "uuid",
    "ftbuild.rule",
    "ftbuild.store.gc",
}
SOURCES = sorted(Path(ftbuild.store.__file__).parent.glob("*.py"))


def test_opening_and_finding_load_nothing_slow(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from ftbuild.store.store import Store\n"
        "from ftbuild.store.statcache import StatCache\n"
        "root = Path(sys.argv[1])\n"
        "with Store(root, StatCache(root / 'statcache')) as store:\n"
        "    assert store.find('ab' * 32) is None\n"
        "print(*sys.modules, sep='\\n')\n"
    )
    command = [sys.executable, "-S", "-c", program, str(tmp_path / "store")]
    environment = {"PYTHONPATH": str(Path(ftbuild.__file__).parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines())
    assert "ftbuild.store.store" in loaded
    assert loaded & SLOW == set()


def test_store_knows_digests_and_errors_and_nothing_above() -> None:
    allowed = ("ftbuild.errors", "ftbuild.digest", "ftbuild.signing", "ftbuild.store")
    found = []
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [a.name for a in node.names] if isinstance(node, ast.Import) else []
            found += [
                f"{source.name}: {name}"
                for name in names
                if name.startswith("ftbuild") and not name.startswith(allowed)
            ]
    assert len(SOURCES) > 10
    assert found == []
