"""`why`: the chain of causes down to the row, from recorded data alone."""

import json

import pytest

from engine.space import Space
from ftbuild import rows

CHAIN = """\
[command.chats]
srcs = { raw = "data/chats.jsonl" }
run = "cp $raw $out/rows"

[command.tokens]
deps = { chats = "chats" }
run = "wc -c < $chats/rows > $out/count"

[command.model]
deps = { tokens = "tokens" }
run = "cp $tokens/count $out/count"
"""


@pytest.fixture
def chain(space: Space) -> Space:
    """A built chain whose source has three rows."""
    space.manifest(CHAIN)
    rows = [{"q": "hi", "a": "hello"}, {"q": "who", "a": "me"}, {"q": "bye", "a": "ciao"}]
    space.write("data/chats.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    space.make()
    return space


def test_edited_answer(chain: Space) -> None:
    chain.edit("data/chats.jsonl", "ciao", "see you")
    assert chain.why("model") == {
        "chats": ["data/chats.jsonl changed", '  line 3, `a`: "ciao" → "see you"'],
        "tokens": ["waits for `chats`"],
        "model": ["waits for `tokens`"],
    }


def test_added_and_removed_rows(chain: Space) -> None:
    chain.write("data/chats.jsonl", '{"q": "hi", "a": "hello"}\n{"q": "bye", "a": "ciao"}\n{}\n')
    assert chain.why("chats") == {
        "chats": [
            "data/chats.jsonl changed",
            '  line 2 removed: {"q": "who", "a": "me"}',
            "  line 3 added: {}",
        ]
    }


def test_long_rows_are_cut_to_one_line(chain: Space) -> None:
    chain.edit("data/chats.jsonl", "ciao", "ciao " * 40 + "\\n")
    [_, line] = chain.why("chats")["chats"]
    assert line == f'  line 3, `a`: "ciao" → "{"ciao " * 11}cia…'
    assert "\n" not in line


def test_each_target_says_its_own_cause(chain: Space) -> None:
    chain.edit("data/chats.jsonl", "ciao", "bye")
    chain.edit("FTBUILD.toml", "cp $tokens/count $out/count", "cp $tokens/count $out/n")
    assert chain.why("model")["model"] == [
        "waits for `tokens`",
        '`run`: "cp $tokens/count $out/count" → "cp $tokens/count $out/n"',
    ]


def test_fresh_target_has_no_cause(chain: Space) -> None:
    assert chain.why("model") == {"model": []}


def test_fresh_targets_below_are_left_out(chain: Space) -> None:
    chain.edit("FTBUILD.toml", '$out/count"\n\n[command.model]', '$out/n"\n\n[command.model]')
    assert list(chain.why("model")) == ["tokens", "model"]
    with chain.open() as project:
        whole = [v.label for v in project.why("model", everything=True).verdicts]
    assert whole == ["chats", "tokens", "model"]


def test_file_in_a_folder(space: Space) -> None:
    space.manifest('[command.a]\nsrcs = { raw = "data" }\nrun = "cat $raw/* > $out/all"\n')
    space.write("data/one.txt", "a\nb\n")
    space.write("data/two.txt", "c\n")
    space.make()
    space.write("data/two.txt", "d\n")
    assert space.why("a") == {"a": ["data/two.txt changed", "  line 1: c → d"]}


def test_large_file_is_compared_by_digest_alone(
    chain: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "MAX_BYTES", 10)
    chain.edit("data/chats.jsonl", "ciao", "bye")
    assert chain.why("chats") == {"chats": ["data/chats.jsonl changed"]}


def test_why_knows_the_old_rows_after_another_build_elsewhere(chain: Space) -> None:
    """What was kept is what this workspace built last, not what the store saw last."""
    other = Space(chain.root.parent / "other", chain.store)
    other.manifest(CHAIN)
    other.write("data/chats.jsonl", "else\n")
    other.make()
    chain.edit("data/chats.jsonl", "ciao", "bye")
    assert chain.why("chats")["chats"][1:] == ['  line 3, `a`: "ciao" → "bye"']


def test_why_imports_no_library_of_machine_learning(chain: Space) -> None:
    chain.edit("data/chats.jsonl", "ciao", "bye")
    status, out, err = chain.run("why", "model", env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert status == 0
    assert 'line 3, `a`: "ciao" → "bye"' in out
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in err.splitlines()}
    assert "ftbuild" in imported
    assert imported.isdisjoint({"torch", "transformers", "datasets", "pyarrow", "peft", "numpy"})
