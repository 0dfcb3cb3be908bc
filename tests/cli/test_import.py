"""Configurations of other tools: what each becomes, each note, and what is refused.

`imports/` holds configurations as they are written for Axolotl and LLaMA-Factory; beside each
lies the FTBUILD.toml that trains the same, and the notes.
"""

import json
import os
from pathlib import Path

import pytest

from cli.toy import Toy

HERE = Path(__file__).parent / "imports"
CONFIGS = sorted(path.name for path in HERE.glob("*.y*ml"))


@pytest.fixture
def shop(toy: Toy) -> Toy:
    """A folder with rows, the folder of a model, and no FTBUILD.toml."""
    toy = Toy(toy.root.parent / "shop", toy.environment)
    for name in ("chats", "alpaca", "pairs", "kto", "c4"):
        toy.write(f"data/{name}.jsonl", "{}\n")
    toy.write("data/identity.json", "[]\n")
    toy.write("data/dataset_info.json", (HERE / "data/dataset_info.json").read_text())
    toy.write("models/tiny/config.json", "{}\n")
    return toy


@pytest.mark.parametrize("config", CONFIGS)
def test_a_configuration_becomes_a_project_that_checks(shop: Toy, config: str) -> None:
    shop.write(config, (HERE / config).read_text())
    done = shop.run("import", config)
    manifest = (shop.root / "FTBUILD.toml").read_text()
    assert manifest == (HERE / config).with_suffix(".toml").read_text()
    assert done.stdout == (HERE / config).with_suffix(".notes").read_text()
    targets = manifest.count("\n[") - 1
    assert (done.returncode, done.stderr) == (
        0,
        f"checked {targets} targets: all is well\nnext: ftbuild plan, then ftbuild make\n",
    )
    assert shop.run("check").returncode == 0


def test_json_holds_tables_and_notes(shop: Toy) -> None:
    shop.write("c.yml", (HERE / "axolotl_dpo.yml").read_text())
    found = json.loads(shop.run("import", "c.yml", "--json", "--dry-run").stdout)
    assert (found["tool"], found["default"]) == ("Axolotl", "merged_model")
    assert found["tables"][-1] == {
        "rule": "merge",
        "name": "merged_model",
        "attributes": {"model": "base", "adapter": "trained"},
    }
    assert found["notes"][1] == {
        "key": "warmup_steps",
        "line": 16,
        "column": 1,
        "text": "Axolotl makes two steps of one; 2 was written",
    }
    assert not (shop.root / "FTBUILD.toml").exists()


KNOWN = "base_model: models/tiny\nlearning_rate: 1e-5\n"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            "a: [1\nb: 2\n",
            "error[E0032]: `c.yml` is not YAML: expected ',' or ']', but got ':'\n"
            "  --> c.yml:2:2\n  2 | b: 2\n    |  ^\n  fix: correct it\n",
        ),
        (
            "- a\n",
            "error[E0032]: `c.yml` is no table of keys and values\n"
            "  fix: name a configuration of a training\n",
        ),
        (
            "a: 1\nb: 2\na: 3\n",
            "error[E0032]: `a` stands twice\n  --> c.yml:3:1\n  3 | a: 3\n    | ^\n"
            "  fix: remove one of the two\n",
        ),
        (
            "name: CI\njobs: {}\n",
            "error[E0033]: `c.yml` is no configuration of Axolotl or LLaMA-Factory\n"
            "  why: it begins with `name`, `jobs`\n"
            "  fix: name the YAML file that the training is started with\n",
        ),
        (
            KNOWN + "datasets:\n  - path: data/chats.jsonl\n    type: metharme\n",
            "error[E0034]: rows of the type `metharme` cannot be imported\n"
            "  --> c.yml:5:5\n  5 |     type: metharme\n    |     ^^^^\n"
            "  fix: `chat_template`, `alpaca`, `completion` and a table with `format` can; else "
            "write the targets by hand: `ftbuild rules dataset` lists the formats\n",
        ),
        (
            KNOWN + "datasets:\n  - path: data/chats.jsonl\n    type: chat_template\n"
            "  - path: data/alpaca.jsonl\n    type: alpaca\n",
            "error[E0034]: rows of several forms cannot be mixed: messages, segments\n"
            "  --> c.yml:3:1\n  3 | datasets:\n    | ^^^^^^^^\n"
            "  fix: import each form on its own, and let the second training continue the first\n",
        ),
        (
            KNOWN + "rl: dpo\ndatasets:\n  - path: data/pairs.jsonl\n    type: chatml.intel\n"
            "  - path: data/pairs.jsonl\n    type: llama3.intel\n",
            "error[E0034]: another dataset sets `chat_template` otherwise\n"
            "  --> c.yml:8:5\n  8 |     type: llama3.intel\n    |     ^^^^\n"
            "  fix: one `tokens` target renders all rows alike: import each dataset on its own\n",
        ),
        (
            "model_name_or_path: models/tiny\nstage: ppo\ndataset: identity\n",
            "error[E0034]: `stage: ppo` cannot be imported\n"
            "  --> c.yml:2:1\n  2 | stage: ppo\n    | ^^^^^\n"
            "  fix: `sft`, `pt`, `rm`, `dpo`, `kto` can; `ftbuild rules` lists the methods\n",
        ),
        (
            "model_name_or_path: models/tiny\ndataset: other\n",
            "error[E0034]: `dataset_info.json` has no dataset `other`\n"
            "  --> c.yml:2:1\n  2 | dataset: other\n    | ^^^^^^^\n"
            "  fix: it has `identity`, `sharegpt_demo`, `dpo_demo`, `kto_demo`, `c4_demo`\n",
        ),
    ],
)
def test_what_cannot_be_imported_is_said_with_its_place(shop: Toy, text: str, error: str) -> None:
    shop.write("c.yml", text)
    done = shop.run("import", "c.yml")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", error)
    assert not (shop.root / "FTBUILD.toml").exists()


def test_a_file_that_is_not_there(shop: Toy) -> None:
    done = shop.run("import", "none.yml")
    assert (done.returncode, done.stderr) == (
        2,
        "error[E0031]: there is no file `none.yml`\n  fix: name a YAML file\n",
    )


def test_a_manifest_that_is_there_is_not_overwritten(shop: Toy) -> None:
    shop.write("FTBUILD.toml", "# mine\n")
    done = shop.run("import", "c.yml")
    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        "",
        "error[E0023]: `FTBUILD.toml` is already there\n"
        "  fix: choose another folder: `ftbuild -C DIR import FILE`\n",
    )
    assert (shop.root / "FTBUILD.toml").read_text() == "# mine\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(shop: Toy) -> None:
    shop.write("c.yml", KNOWN)
    (shop.root / "c.yml").chmod(0)
    done = shop.run("import", "c.yml")
    assert done.returncode == 5
    assert done.stderr.startswith("error[E0661]: permission denied\n  --> c.yml\n")


def test_rows_that_are_not_there_are_said_after_writing(shop: Toy) -> None:
    shop.write("c.yml", KNOWN + "datasets:\n  - path: data/none.jsonl\n    type: completion\n")
    done = shop.run("import", "c.yml")
    assert done.returncode == 2
    assert done.stderr.startswith("FTBUILD.toml is written, but does not check yet:\nerror[E0401]")


def test_imported_rows_become_the_tokens_that_axolotl_trains_on(shop: Toy) -> None:
    from tiny_models import make_model

    make_model(shop.root / "models/real")
    row = {"instruction": "Add.", "input": "1 2", "output": "3"}
    shop.write("data/alpaca.jsonl", json.dumps(row) + "\n")
    rows = "datasets:\n  - path: data/alpaca.jsonl\n    type: alpaca\n"
    shop.write("c.yml", f"base_model: models/real\nlearning_rate: 1e-5\n{rows}")
    assert shop.run("import", "c.yml").returncode == 0
    made = shop.run("--set", "train_tokens.max_length=2048", "make", "train_tokens")
    assert (made.returncode, made.stderr.splitlines()[-1][:7]) == (0, "built 3")
    shown = shop.run(
        "--set", "train_tokens.max_length=2048", "inspect", "train_tokens", "--row", "0", "--json"
    )
    found = json.loads(shown.stdout)
    trained = [
        token
        for token, label in zip(found["tokens"], found["labels"], strict=True)
        if label != -100
    ]
    text = "".join(found["tokens"]).replace("Ġ", " ").replace("Ċ", "\n")
    assert "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n3" in text
    assert trained[0] == "3"
    assert len(trained) == 2  # the answer and the token that ends it
