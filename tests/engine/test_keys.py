"""What a key is made of, held by a digest that is computed without this code."""

import hashlib
import json

import pytest

from ftbuild import keys
from ftbuild.digest import Digest
from ftbuild.nodes import RuleFacts, Target

A, B, C = (Digest(letter * 64) for letter in "abc")


def facts(*, version: int | None = 3, pins: tuple[str, ...] = ("torch", "peft")) -> RuleFacts:
    return RuleFacts(
        name="sft",
        version=version,
        source=None if version else C,
        pins=pins,
        parts={"model": ("tokenizer.json",)},
        runs="worker",
        cpus="all",
        gpus=1,
        preload=("torch",),
        module="pack.training.sft",
        file="/site/pack/training/sft.py",
        files=(),
        is_reproducible=True,
    )


TARGET = Target(
    label="//chat:helper",
    package="chat",
    name="helper",
    family="helper",
    rule="sft",
    kind="adapter",
    params={"epochs": 2, "learning_rate": 0.0002, "note": "ö", "lora": {"r": 8}},
    edges=(),
    sources={},
    variables=(("env", "HOME"),),
    resources={"gpus": 1},
    description="trains",
    tags=("chat",),
)


def document(rule: RuleFacts, **changed: object) -> keys.Document:
    parts: dict[str, object] = {
        "inputs": {"data": keys.input_part("tokens", None, A)},
        "sources": {"prompt": keys.source_part([("file.txt", B)])},
        "variables": {"env": {"HOME": C, "UNSET": None}},
        "libraries": {"torch": "2.13.0", "peft": "0.21.2", "unused": "1"},
    }
    return keys.key_document(TARGET, rule, **{**parts, **changed})  # type: ignore[arg-type]


def test_key_of_a_fixed_document_never_changes() -> None:
    """The JSON is written out by hand: sorted keys, no spaces, letters as they are."""
    text = (
        '{"format":1,"inputs":{"data":"tokens:' + "a" * 64 + '"},'
        '"libraries":{"peft":"0.21.2","torch":"2.13.0"},'
        '"params":{"epochs":2,"learning_rate":0.0002,"lora":{"r":8},"note":"ö"},'
        '"rule":"sft","sources":{"prompt":[["file.txt","' + "b" * 64 + '"]]},'
        '"variables":{"env":{"HOME":"' + "c" * 64 + '","UNSET":null}},"version":3}'
    )
    expected = hashlib.sha256(text.encode()).hexdigest()
    assert expected == "fc1ef382a92e1c570b2707eb82cca2f5a8b432434e55d96507eafae83145cd20"
    assert keys.action_key(document(facts())) == expected
    assert json.loads(text) == document(facts())


def test_rule_without_version_stands_for_its_source() -> None:
    found = document(facts(version=None))
    assert found["source"] == C
    assert "version" not in found


def test_names_machine_and_engine_attributes_are_in_no_key() -> None:
    text = json.dumps(document(facts()))
    for absent in ("helper", "chat", "trains", "gpus", "pack", "/site", "adapter", "cpus"):
        assert absent not in text


def test_only_pinned_libraries_are_in_the_key() -> None:
    assert document(facts(pins=()))["libraries"] == {}
    assert document(facts(pins=("torch",)))["libraries"] == {"torch": "2.13.0"}


def test_library_that_is_pinned_and_not_given_is_a_bug() -> None:
    with pytest.raises(KeyError):
        document(facts(), libraries={"torch": "2.13.0"})


def test_part_stands_for_itself_and_not_for_its_model() -> None:
    assert keys.input_part("model", "tokenizer", A) == "tokenizer:" + "a" * 64
    quantized = keys.input_part("quantized_model", "tokenizer", A)
    assert quantized == keys.input_part("model", "tokenizer", A)
    assert keys.input_part("quantized_model", None, A) != keys.input_part("model", None, A)


def test_order_of_files_is_in_the_key() -> None:
    one = keys.source_part([("00000.txt", A), ("00001.txt", B)])
    other = keys.source_part([("00000.txt", B), ("00001.txt", A)])
    assert one == [["00000.txt", "a" * 64], ["00001.txt", "b" * 64]]
    assert one != other


def test_piece_takes_the_place_of_what_was_cut() -> None:
    whole = document(facts())
    piece = keys.fragment_document(whole, of="data", function="sft.shard", identity="id")
    assert piece["inputs"] == {}
    assert piece["fragment"] == {"of": "data", "function": "sft.shard", "piece": "id"}
    same = ("format", "rule", "version", "params", "sources", "variables", "libraries")
    assert {name: piece[name] for name in same} == {name: whole[name] for name in same}
    assert whole["inputs"]  # the action's own document stays as it is


def test_piece_of_a_source() -> None:
    piece = keys.fragment_document(document(facts()), of="prompt", function="f", identity=[1])
    assert (piece["sources"], list(piece["inputs"])) == ({}, ["data"])


def test_piece_of_nothing_is_a_bug() -> None:
    with pytest.raises(KeyError, match="nothing"):
        keys.fragment_document(document(facts()), of="nothing", function="f", identity=1)
