"""Soundness of the standard rules: what each edit makes stale, and what it must not.

A tiny chain with every rule of the quickstart is built once; each edit is made to a copy of it.
The sets are what a person expects who knows which target reads what; nothing here is computed.
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ftbuild.project import Project
from tiny_models import make_model

MANIFEST = """\
[project]
name = "soundness"

[base_model.smol]
source = "model"

[dataset.chats]
source = "chats.jsonl"
format = "openai"

[tokens.chat_tokens]
dataset = "chats"
model = "smol"
max_length = 64

[sft.helper]
model = "smol"
data = "chat_tokens"
max_steps = 1
batch_size = 2
lora = { r = 2 }

[dataset.preferences]
source = "preferences.jsonl"
format = "preference"

[tokens.preference_tokens]
dataset = "preferences"
model = "smol"
max_length = 64

[dpo.polite]
model = "smol"
adapter = "helper"
data = "preference_tokens"
max_steps = 1
batch_size = 2

[merge.merged_model]
model = "smol"
adapter = "polite"
check_logits = false

[generate.after]
model = "merged_model"
prompts = ["hi"]
max_new_tokens = 2

[command.size]
deps = { model = "merged_model" }
run = "wc -c < $model/model.safetensors > $out/size"
env = ["TOY"]
"""
LAST = {"after", "size"}
MERGED = {"merged_model", *LAST}
POLITE = {"polite", *MERGED}
HELPER = {"helper", *POLITE}
CHAT_TOKENS = {"chat_tokens", *HELPER}
CHATS = {"chats", *CHAT_TOKENS}
PREFERENCE_TOKENS = {"preference_tokens", *POLITE}
PREFERENCES = {"preferences", *PREFERENCE_TOKENS}
MODEL = {"smol", *CHAT_TOKENS, *PREFERENCE_TOKENS}
NOTHING: set[str] = set()

SETTINGS = {
    "smol.dtype='bfloat16'": MODEL,
    "smol.chat_template='chatml'": MODEL,
    "chat_tokens.max_length=63": CHAT_TOKENS,
    "chat_tokens.train_on=['user', 'assistant']": CHAT_TOKENS,
    "chat_tokens.train_on_eot='none'": CHAT_TOKENS,
    "chat_tokens.last_turn_only=true": CHAT_TOKENS,
    "chat_tokens.overflow='drop'": CHAT_TOKENS,
    "helper.max_steps=2": HELPER,
    "helper.batch_size=1": HELPER,
    "helper.gradient_accumulation=2": HELPER,
    "helper.learning_rate=1e-3": HELPER,
    "helper.schedule='cosine'": HELPER,
    "helper.warmup=1.0": HELPER,
    "helper.weight_decay=0.1": HELPER,
    "helper.max_grad_norm=0.5": HELPER,
    "helper.optimizer='sgd'": HELPER,
    "helper.seed=7": HELPER,
    "helper.threads=2": HELPER,
    "helper.lora.r=4": HELPER,
    "helper.lora.alpha=3.0": HELPER,
    "helper.attention='eager'": HELPER,
    "preference_tokens.max_length=62": PREFERENCE_TOKENS,
    "polite.beta=0.2": POLITE,
    "polite.seed=7": POLITE,
    "merged_model.check_logits=true": MERGED,
    "after.max_new_tokens=3": {"after"},
    "after.prompts=['hi', 'you']": {"after"},
    "after.seed=1": {"after"},
    "size.run='true'": {"size"},
    # Said again as it is, or as the default is: the same target.
    "helper.max_steps=1": NOTHING,
    "helper.seed=42": NOTHING,
    "polite.beta=0.1": NOTHING,
    # What the engine alone reads.
    "helper.description='ours'": NOTHING,
    "helper.tags=['x']": NOTHING,
    "helper.resources={ cpus = 2, memory = '1 GB' }": NOTHING,
}
LIBRARIES = {
    "gguf": MODEL,
    "jinja2": CHAT_TOKENS | PREFERENCE_TOKENS | {"after"},
    "peft": HELPER,
    "pyarrow": CHATS | PREFERENCES,
    "torch": MODEL | HELPER,  # random weights are its draws
    "trl": HELPER,
}
ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"q{i}"},
            {"role": "assistant", "content": f"a{i}"},
        ],
        "note": f"n{i}",
    }
    for i in range(4)
]
PAIRS = [
    {
        "prompt": [{"role": "user", "content": f"q{i}"}],
        "chosen": [{"role": "assistant", "content": f"yes {i}"}],
        "rejected": [{"role": "assistant", "content": f"no {i}"}],
    }
    for i in range(4)
]


def lines(rows: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("soundness")
    os.environ["FTBUILD_CACHE"] = str(folder / "store")
    root = folder / "built"
    make_model(root / "model")
    (root / "FTBUILD.toml").write_text(MANIFEST)
    (root / "chats.jsonl").write_text(lines(ROWS))
    (root / "preferences.jsonl").write_text(lines(PAIRS))
    with Project.open(root, jobs=2) as project:
        failures: list[object] = []
        result = project.make(on_event=lambda e: failures.append(getattr(e, "error", None)))
    assert result.exit_code == 0, [f for f in failures if f]
    assert set(result.built) == MODEL | CHATS | PREFERENCES
    return root


@pytest.fixture
def copy(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FTBUILD_CACHE", str(built.parent / "store"))
    monkeypatch.delenv("TOY", raising=False)
    root = tmp_path / "copy"
    shutil.copytree(built, root, symlinks=True)
    return root


def pending(root: Path, *overrides: str) -> set[str]:
    with Project.open(root, overrides=overrides) as project:
        return {v.label for v in project.plan().pending()}


@pytest.mark.parametrize(("setting", "expected"), SETTINGS.items(), ids=SETTINGS)
def test_setting_makes_exactly_these_stale(copy: Path, setting: str, expected: set[str]) -> None:
    assert pending(copy, setting.replace("'", '"')) == expected


@pytest.mark.parametrize(("library", "expected"), LIBRARIES.items(), ids=LIBRARIES)
def test_locked_version_makes_exactly_these_stale(
    copy: Path, library: str, expected: set[str]
) -> None:
    lock = copy / "FTBUILD.lock"
    text, count = re.subn(rf'(?m)^{library} = "', f'{library} = "9', lock.read_text())
    assert count == 1
    lock.write_text(text)
    assert pending(copy) == expected


def edit_rows(file: str, change: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        path = root / file
        path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")

    return edit


def replace_bytes(file: str, old: bytes, new: bytes) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        path = root / file
        data = path.read_bytes()
        assert old in data
        path.write_bytes(data.replace(old, new, 1))

    return edit


def flip_last_byte(root: Path) -> None:
    path = root / "model/model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def touch_all(root: Path) -> None:
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.touch()


def rename_source(root: Path) -> None:
    (root / "chats.jsonl").rename(root / "talks.jsonl")
    replace_bytes("FTBUILD.toml", b"chats.jsonl", b"talks.jsonl")(root)


def add_beside_the_model(root: Path) -> None:
    (root / "model/README.md").write_text("x")


def edit_manifest(root: Path) -> None:
    # Not by --set: a copied workspace must read its own FTBUILD.toml, not a cache of the original.
    replace_bytes("FTBUILD.toml", b"max_steps = 1", b"max_steps = 3")(root)


EDITS: dict[str, tuple[Callable[[Path], None], set[str]]] = {
    "answer": (replace_bytes("chats.jsonl", b"a1", b"b1"), CHATS),
    "row order": (edit_rows("chats.jsonl", lambda rows: rows[::-1]), CHATS),
    "row added": (edit_rows("chats.jsonl", lambda rows: [*rows, rows[0]]), CHATS),
    "row removed": (edit_rows("chats.jsonl", lambda rows: rows[1:]), CHATS),
    "unused column": (replace_bytes("chats.jsonl", b"n1", b"m1"), CHATS),
    "preference": (replace_bytes("preferences.jsonl", b"yes 1", b"oui 1"), PREFERENCES),
    "weights": (flip_last_byte, MODEL),
    "tokenizer": (replace_bytes("model/tokenizer.json", b'"version"', b' "version"'), MODEL),
    "template": (replace_bytes("model/chat_template.jinja", b"\n", b"\n\n"), MODEL),
    "beside the model": (add_beside_the_model, NOTHING),
    "manifest": (edit_manifest, HELPER),
    "touch": (touch_all, NOTHING),
    "comment": (replace_bytes("FTBUILD.toml", b"[sft.helper]", b"# !\n[sft.helper]"), NOTHING),
    "order of keys": (
        replace_bytes(
            "FTBUILD.toml", b"max_steps = 1\nbatch_size = 2", b"batch_size = 2\nmax_steps = 1"
        ),
        NOTHING,
    ),
    "renamed source": (rename_source, NOTHING),
}


@pytest.mark.parametrize("name", EDITS)
def test_edit_makes_exactly_these_stale(copy: Path, name: str) -> None:
    edit, expected = EDITS[name]
    edit(copy)
    assert pending(copy) == expected


def test_declared_variable_makes_its_target_stale_and_no_other_does(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDECLARED", "1")
    assert pending(copy) == NOTHING
    monkeypatch.setenv("TOY", "1")
    assert pending(copy) == {"size"}
