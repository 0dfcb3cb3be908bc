"""The JSON Schema for editors: it takes what ftbuild takes, and shows the help texts."""

import shutil
import tomllib
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # it ships no types
import pytest

from ftbuild.registry import Registry
from ftbuild.schema import json_schema

HERE = Path(__file__).parent / "errors"
GOOD = """
[project]
name = "toys"
default = ["helper"]
rules = ["toy.py"]
[run]
jobs = 2
[cache]
max_size = "200 GB"
[rows.chats]
source = ["a.jsonl", { sql = "select 1", url = "sqlite:///x.db" }]
[train.helper]
model = "smol"
data = "chat_ids"
lora = { r = 8, target_modules = ["q_proj"] }
description = "x"
tags = ["y"]
resources = { cpus = 1, memory = "8 GB" }
[train.sweep]
data = "chat_ids"
matrix = { model = ["smol", "large"], epochs = [1, 2] }
[compare.all]
models = ["helper"]
prompts = { a = "chats" }
env = ["HOME"]
title = "All"
[profile.smoke.helper]
epochs = 1
"""


@pytest.fixture
def schema(tmp_path: Path) -> dict[str, Any]:
    shutil.copy(HERE / "toy.py", tmp_path)
    return json_schema(Registry(tmp_path, ["toy.py"]))


def refused(schema: dict[str, Any], text: str) -> list[str]:
    """Return where a manifest does not fit the schema."""
    validator = jsonschema.Draft202012Validator(schema)
    return sorted(error.json_path for error in validator.iter_errors(tomllib.loads(text)))


def test_the_schema_is_one(schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_a_good_manifest_fits(schema: dict[str, Any]) -> None:
    assert refused(schema, GOOD) == []


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ('name = "toys"', 'nam = "toys"', "$.project"),
        ("jobs = 2", "jobs = 0", "$.run.jobs"),
        ('data = "chat_ids"\nlora', "lora", "$.train.helper"),
        ("r = 8", "r = 0", "$.train.helper.lora"),
        ("r = 8", "rank = 8", "$.train.helper.lora"),
        ('title = "All"', "", "$.compare.all"),
        ('models = ["helper"]', 'models = "helper"', "$.compare.all.models"),
        ('env = ["HOME"]', 'env = ["2"]', "$.compare.all.env[0]"),
        ("cpus = 1", "cpus = 0", "$.train.helper.resources.cpus"),
        ("[rows.chats]", "[row.chats]", "$"),
        ('source = ["a.jsonl", {', "source = [7, {", "$.rows.chats.source"),
        ("epochs = [1, 2]", "epochs = 1", "$.train.sweep.matrix.epochs"),
        ("[train.helper]", '[train."a b"]', "$.train"),
    ],
)
def test_a_broken_manifest_does_not(schema: dict[str, Any], old: str, new: str, place: str) -> None:
    assert GOOD.count(old) == 1
    assert refused(schema, GOOD.replace(old, new)) == [place]


def test_docstrings_are_the_help_texts(schema: dict[str, Any]) -> None:
    assert schema["properties"]["ids"]["description"] == "Token ids of rows."
    command = schema["$defs"]["rule.command"]["properties"]
    assert command["run"]["description"] == (
        "A command for `sh -e`; it leaves its files in the directory `$out`."
    )
    model = schema["$defs"]["rule.train"]["properties"]["model"]
    assert model == {"type": "string", "minLength": 1, "description": "The label of a `model`."}
