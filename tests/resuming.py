"""Run one training rule in a process of its own, kill it, and run it again in this one."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CHILD = ROOT / "tests" / "rules" / "training" / "_child.py"


def child(
    rule: str,
    folder: Path,
    *,
    interval_s: float,
    hash_seed: int = 0,
    first_path: Path | None = None,
    **settings: Any,
) -> Any:
    """Start `rule` on the job in `folder`; its checkpoints are at least so many seconds apart."""
    paths = [*([first_path] if first_path else []), ROOT, ROOT / "rules", ROOT / "tests"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "PYTHONHASHSEED": str(hash_seed),
        "HF_HUB_OFFLINE": "1",
    }
    return subprocess.Popen(
        [sys.executable, str(CHILD), rule, str(folder), str(interval_s)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        text=True,
        **settings,
    )


def read_until(line: str, process: Any) -> bool:
    """Read what a child prints up to `line`; False if it ends without."""
    return any(each == line for each in process.stdout)


def job(folder: Path, inputs: dict[str, tuple[str, Path]], **params: Any) -> Path:
    """Write what `_child.py` needs to `folder` and return it."""
    folder.mkdir(parents=True)
    given = {field: [kind, str(path)] for field, (kind, path) in inputs.items()}
    (folder / "inputs.json").write_text(json.dumps(given))
    (folder / "params.json").write_text(json.dumps(params))
    return folder


def run_here(rule: str, folder: Path) -> list[str]:
    """Run in this process and return what the context was told by `log`."""
    spec = importlib.util.spec_from_file_location("_child", CHILD)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    logged: list[str] = []
    module.PrintingContext.log = lambda self, text: logged.append(text)
    module.run(rule, folder)
    return logged
