"""`verify` on a chain of the standard rules: all is identical, and a planted difference is found.

What is planted stands in a copy of the store with digests that fit: as somebody would do it who
can write the cache, or a build on a machine that computed something else.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftbuild.project import Project
from ftbuild.store.actions import Record
from ftbuild.store.statcache import StatCache
from ftbuild.store.store import Store
from ftbuild.verification import Limits, Verified
from tiny_models import make_model

MANIFEST = """\
[project]
name = "planted"

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
max_steps = 2
batch_size = 2
lora = { r = 2 }

[merge.merged_model]
model = "smol"
adapter = "helper"
check_logits = false

[generate.after]
model = "merged_model"
prompts = ["hi"]
max_new_tokens = 2

[quantize.small]
model = "smol"
method = "nf4"

[dataset.pairs]
source = "pairs.jsonl"
format = "preference"

[tokens.pair_tokens]
dataset = "pairs"
model = "smol"
max_length = 64

[reward_model.judge]
model = "smol"
data = "pair_tokens"
max_steps = 1
batch_size = 2

[command.size]
deps = { model = "merged_model" }
run = "wc -c < $model/model.safetensors > $out/size"
"""
ALL = ["smol", "chats", "chat_tokens", "helper", "merged_model", "after", "size"]
ALL += ["small", "pairs", "pair_tokens", "judge"]
ANSWERS = ("One.", "Two is more.", "Three!", "Four of them.")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("planted") / "project"
    make_model(root / "model", hidden_size=64, intermediate_size=128)  # as nf4 wants it
    (root / "FTBUILD.toml").write_text(MANIFEST)
    rows = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": a}]}
        for n, a in enumerate(ANSWERS)
    ]
    (root / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [{"prompt": f"{n}?", "chosen": a, "rejected": "No."} for n, a in enumerate(ANSWERS)]
    (root / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FTBUILD_CACHE", str(root.parent / "store"))
        with Project.open(root) as project:
            assert project.make(ALL).failed == ()
    return root


@pytest.fixture
def copy(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The built project and its store, elsewhere."""
    skip = shutil.ignore_patterns("graph.bin", "fast.bin", "stat.bin", "ftbuild-out")
    shutil.copytree(built, tmp_path / "project", ignore=skip)
    shutil.copytree(built.parent / "store", tmp_path / "store")
    monkeypatch.setenv("FTBUILD_CACHE", str(tmp_path / "store"))
    return tmp_path / "project"


def plant(root: Path, label: str, change: Callable[[Path], None]) -> None:
    """Make the store say that the action of `label` gave what `change` makes of its output."""
    with Project.open(root) as project:
        key = project.history.built[label].key
    store_root = root.parent / "store"
    with Store(store_root, StatCache(root.parent / "planted-stat")) as store:
        record = store.find(key)
        assert record is not None
        out = store.workspace()
        shutil.copytree(store.lay_out(record.tree), out, dirs_exist_ok=True)
        for path in out.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        change(out)
        tree = store.put_tree(out)
        assert tree.digest != record.tree.digest
        store.publish(Record(key, tree, record.value, record.document, record.provenance))


def verify(root: Path, *labels: str, tolerance: float | None = None) -> list[Verified]:
    with Project.open(root) as project:
        return project.verify(labels, Limits(tolerance))


def flip_last_float(name: str) -> Callable[[Path], None]:
    """Change the last number of a safetensors file by its lowest bit."""

    def change(out: Path) -> None:
        data = bytearray((out / name).read_bytes())
        data[-4] ^= 1  # little-endian float32: the least significant byte of the last one
        (out / name).write_bytes(data)

    return change


def rewrite_shard(edit: Callable[[list[dict[str, Any]]], None]) -> Callable[[Path], None]:
    """Write the first shard again with other rows, in the same form."""

    def change(out: Path) -> None:
        import pyarrow as pa

        path = sorted((out / "data").glob("*.arrow"))[0]
        with pa.OSFile(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
        rows = table.to_pylist()
        edit(rows)
        schema = table.schema
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
            writer.write_table(pa.Table.from_pylist(rows, schema))

    return change


def test_whole_chain_is_identical_and_nothing_of_it_is_recorded(copy: Path) -> None:
    records = sorted((copy.parent / "store/v1/actions").glob("*/*"))
    found = verify(copy, *ALL)
    assert {one.label: (one.outcome, one.why) for one in found} == dict.fromkeys(
        ALL, ("identical", None)
    )
    assert all(one.recorded == one.rebuilt for one in found)
    assert sorted((copy.parent / "store/v1/actions").glob("*/*")) == records
    assert list((copy / ".ftbuild/verify").iterdir()) == []


def test_tensor_off_by_one_bit_in_an_adapter(copy: Path) -> None:
    plant(copy, "helper", flip_last_float("adapter_model.safetensors"))
    [found] = verify(copy, "helper", tolerance=1e-5)
    assert (found.outcome, found.exit_code, found.tolerance) == ("within", 0, 1e-5)
    assert [(file.path, file.how) for file in found.files] == [
        ("adapter_model.safetensors", "changed")
    ]
    assert found.view is not None
    [changed] = found.view.data["changed"]
    assert changed["name"].startswith("base_model.model.model.layers.1.")
    assert 0 < changed["max_difference"] < 1e-6
    assert found.distance == changed["max_difference"]


def test_tensor_off_by_one_bit_in_a_model(copy: Path) -> None:
    plant(copy, "merged_model", flip_last_float("model.safetensors"))
    [found] = verify(copy, "merged_model")
    assert (found.outcome, found.exit_code) == ("different", 3)
    assert [file.path for file in found.files] == ["model.safetensors"]
    assert found.view is not None
    assert len(found.view.data["changed"]) == 1
    assert 0 < found.view.data["changed"][0]["max_difference"] < 1e-6


def test_other_setting_is_not_within_any_tolerance(copy: Path) -> None:
    def change(out: Path) -> None:
        flip_last_float("adapter_model.safetensors")(out)
        config = json.loads((out / "adapter_config.json").read_bytes())
        (out / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 99}))

    plant(copy, "helper", change)
    [found] = verify(copy, "helper", tolerance=1.0)
    assert (found.outcome, found.distance) == ("different", None)
    assert [file.path for file in found.files] == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_one_token(copy: Path) -> None:
    def edit(rows: list[dict[str, Any]]) -> None:
        rows[2]["input_ids"][3] += 1

    plant(copy, "chat_tokens", rewrite_shard(edit))
    [found] = verify(copy, "chat_tokens")
    assert found.outcome == "different"
    assert found.view is not None
    assert (found.view.data["changed"], found.view.data["added"]) == (1, 0)
    [example] = found.view.data["examples"]
    assert (example["row"], example["what"], example["at"]) == (2, "input_ids changed", 3)
    assert example["a"]["input_ids"][3] == example["b"]["input_ids"][3] + 1


def test_order_of_rows(copy: Path) -> None:
    def edit(rows: list[dict[str, Any]]) -> None:
        rows[1], rows[2] = rows[2], rows[1]

    plant(copy, "chats", rewrite_shard(edit))
    [found] = verify(copy, "chats")
    assert found.outcome == "different"
    assert found.view is not None
    numbers = {example["row"] for example in found.view.data["examples"]}
    assert numbers <= {1, 2}
    assert numbers


def test_letter_of_a_row(copy: Path) -> None:
    def edit(rows: list[dict[str, Any]]) -> None:
        rows[3]["chosen"][0]["content"] += "!"

    plant(copy, "pairs", rewrite_shard(edit))
    [found] = verify(copy, "pairs")
    assert found.outcome == "different"
    assert found.view is not None
    assert [example["row"] for example in found.view.data["examples"]] == [3]


def test_token_of_a_pair(copy: Path) -> None:
    def edit(rows: list[dict[str, Any]]) -> None:
        rows[1]["rejected_ids"][0] += 1

    plant(copy, "pair_tokens", rewrite_shard(edit))
    [found] = verify(copy, "pair_tokens")
    assert found.outcome == "different"
    assert found.view is not None
    assert [example["row"] for example in found.view.data["examples"]] == [1]


def test_order_of_rows_of_tokens(copy: Path) -> None:
    plant(copy, "chat_tokens", rewrite_shard(lambda rows: rows.reverse()))
    [found] = verify(copy, "chat_tokens")
    assert found.outcome == "different"
    assert found.view is not None
    assert found.view.data["changed"] or found.view.data["added"]


def test_weight_off_by_one_bit_in_a_quantized_model(copy: Path) -> None:
    plant(copy, "small", flip_last_float("model.safetensors"))
    [found] = verify(copy, "small")
    assert (found.outcome, [file.path for file in found.files]) == (
        "different",
        ["model.safetensors"],
    )
    assert found.view is not None
    assert len(found.view.data["changed"]) == 1


def test_tensor_off_by_one_bit_in_a_reward_model(copy: Path) -> None:
    plant(copy, "judge", flip_last_float("model.safetensors"))
    [found] = verify(copy, "judge")
    assert (found.outcome, [file.path for file in found.files]) == (
        "different",
        ["model.safetensors"],
    )
    assert found.view is not None
    assert len(found.view.data["changed"]) == 1


def test_figure_of_a_report(copy: Path) -> None:
    def change(out: Path) -> None:
        report = json.loads((out / "report.json").read_bytes())
        report["answers"][0]["answer"] = "planted"
        (out / "report.json").write_text(json.dumps(report))

    plant(copy, "after", change)
    [found] = verify(copy, "after")
    assert found.outcome == "different"
    assert found.view is not None
    assert found.view.data["answers"][0]["a"] == "planted"


def test_text_of_a_command(copy: Path) -> None:
    plant(copy, "size", lambda out: (out / "size").write_text("?\n") and None)
    [found] = verify(copy, "size")
    assert (found.outcome, [f.path for f in found.files]) == ("different", ["size"])
    assert found.files[0].at == 0


def test_artifact_that_its_viewer_cannot_read_is_still_different(copy: Path) -> None:
    def change(out: Path) -> None:
        sorted((out / "data").glob("*.arrow"))[0].write_bytes(b"?")

    plant(copy, "chats", change)
    [found] = verify(copy, "chats")
    assert (found.outcome, found.view, found.exit_code) == ("different", None, 3)
    assert [(file.path, file.at) for file in found.files] == [("data/train-00000.arrow", 0)]
