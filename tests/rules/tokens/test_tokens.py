"""`tokens` as a whole: its artifact, its fragments, and what it refuses."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from chat_kit import (
    BOS,
    CHATML,
    EOS,
    LLAMA2,
    MARKED,
    PLAIN,
    chat,
    make_dataset,
    make_model,
    read_tokens,
)
from ftbuild.digest import hash_bytes, hash_file
from ftbuild.errors import RuleError
from ftbuild.kinds import Artifact
from ftbuild.rule import AttributeProblem, Fragment
from ftbuild.testing import RecordingContext, context, run_rule
from ftbuild_rules.templates._named import templates
from ftbuild_rules.tokens.tokens import tokens

_numbers = itertools.count()
SIXTY = [chat(f"What is {n} plus {n}?", f"It is {2 * n}.", id=n) for n in range(60)]


def tokenize(
    directory: Path,
    rows: list[Any],
    template: Any = CHATML,
    *,
    ctx: RecordingContext | None = None,
    merges: tuple[tuple[str, str], ...] = (),
    **params: Any,
) -> Artifact:
    here = directory / str(next(_numbers))
    format_name = next((f for f in ("text", "chosen") if f in rows[0]), "openai")
    inputs = {
        "dataset": make_dataset(here, rows, format_name.replace("chosen", "preference")),
        "model": make_model(here / "model", template, merges=merges),
    }
    return run_rule(tokens, inputs, params, here, ctx=ctx)


def refusal(directory: Path, rows: list[Any], template: Any = CHATML, **params: Any) -> str:
    with pytest.raises(RuleError) as caught:
        tokenize(directory, rows, template, **params)
    return caught.value.render()


def shards(artifact: Artifact) -> list[str]:
    return [hash_file(path) for path in sorted((artifact.path / "data").iterdir())]


def test_artifact_says_what_it_holds(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    made = tokenize(tmp_path, [chat("Hi", "Hello"), chat("Hi", "Hello!")], ctx=ctx)
    assert json.loads((made.path / "tokens.json").read_bytes()) == {
        "form": "sft",
        "rows": 2,
        "tokens": 28 + 29,
        "trainable_tokens": 6 + 7,
        "max_length": 1024,
        "dropped": 0,
        "truncated": 0,
        "chat_template": hash_bytes(CHATML.encode()),
        "shards": [["data/train-00000.arrow", 2]],
    }
    assert (made.path / "chat_template.jinja").read_text() == CHATML
    assert ctx.known == {"rows": 2, "tokens": 57, "trainable_tokens": 13}
    files = sorted(p.relative_to(made.path).as_posix() for p in made.path.rglob("*.*"))
    assert files == [
        "chat_template.jinja",
        "data/train-00000.arrow",
        "tokenizer/tokenizer.json",
        "tokens.json",
    ]


def test_text_has_no_template(tmp_path: Path) -> None:
    made = tokenize(tmp_path, [{"text": "abc"}])
    assert json.loads((made.path / "tokens.json").read_bytes())["chat_template"] is None
    assert not (made.path / "chat_template.jinja").exists()


def test_edit_of_one_row_tokenizes_one_shard(tmp_path: Path) -> None:
    memo: dict[str, Fragment] = {}
    first = context(tmp_path, memo=memo)
    before = tokenize(tmp_path, SIXTY, ctx=first)
    assert len(memo) == len(shards(before)) > 1

    edited = [*SIXTY[:30], chat("What is 30 plus 30?", "Sixty."), *SIXTY[31:]]
    after = tokenize(tmp_path, edited, ctx=context(tmp_path, memo=memo))
    assert len(memo) == len(shards(before)) + 1
    changed = [old != new for old, new in zip(shards(before), shards(after), strict=True)]
    assert sum(changed) == 1
    rows = zip(read_tokens(before), read_tokens(after), strict=True)
    assert [number for number, (old, new) in enumerate(rows) if old != new] == [30]


def test_change_of_metadata_alone_changes_no_byte(tmp_path: Path) -> None:
    before = tokenize(tmp_path, SIXTY)
    for number in range(0, 60, 7):
        edited = [{**row, "id": "new" if n == number else row["id"]} for n, row in enumerate(SIXTY)]
        assert tokenize(tmp_path, edited).digest == before.digest


def test_space_that_the_template_trims_changes_no_byte(tmp_path: Path) -> None:
    spaced = [
        chat(f"  {row['messages'][0]['content']}", f"{row['messages'][1]['content']}\n")
        for row in SIXTY
    ]
    assert tokenize(tmp_path, spaced, LLAMA2).digest == tokenize(tmp_path, SIXTY, LLAMA2).digest


def test_datasets_library_opens_it_in_row_order(tmp_path: Path) -> None:
    import datasets

    made = tokenize(tmp_path, SIXTY)
    loaded = datasets.load_dataset(str(made.path), split="train", cache_dir=str(tmp_path / "c"))
    assert loaded.to_list() == read_tokens(made)
    assert loaded.features["input_ids"] == datasets.List(datasets.Value("int32"))


def test_vocabulary_that_transformers_completed_is_kept_whole(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    model = make_model(tmp_path / "model")
    config = tmp_path / "model" / "tokenizer_config.json"
    added = {"260": {"content": "<extra>", "special": True}}
    config.write_text(json.dumps(json.loads(config.read_text()) | {"added_tokens_decoder": added}))
    data = make_dataset(tmp_path / "d", [chat("Hi", "<extra>")])
    made = run_rule(tokens, {"dataset": data, "model": model}, {}, tmp_path)
    assert 260 in read_tokens(made)[0]["labels"]
    kept = Tokenizer.from_file(str(made.path / "tokenizer" / "tokenizer.json"))
    assert kept.id_to_token(260) == "<extra>"


def test_template_chatml_is_the_one_of_this_version() -> None:
    # Its text is part of what `tokens` does: change it, raise the rule's version, then this.
    assert tokens.__ftbuild_rule__.version == 3  # type: ignore[attr-defined]  # set by @rule
    assert hash_bytes(templates()["chatml"].encode()) == (
        "0452de9cc830ace9ebf43d0b9e6a3df5619badab50e43501b389bd05549aaa64"
    )


# What is refused.


def test_rows_without_a_trainable_token(tmp_path: Path) -> None:
    rows = [chat("Hi", "Hello") for _ in range(4)]
    for row in (rows[1], rows[3]):
        row["messages"][1]["train"] = False
    assert refusal(tmp_path, rows) == (
        "error[E0823]: 2 of 4 rows have no trainable token\n"
        "  --> dataset in rows 1, 3\n"
        "  fix: look at `train_on`, `max_length` and the rows' own `train` flags; "
        'or allow it: `allow = ["no_trainable_tokens"]`'
    )
    allowed = tokenize(tmp_path, rows, allow=["no_trainable_tokens"])
    assert set(read_tokens(allowed)[1]["labels"]) == {-100}


def test_row_whose_answer_is_cut_off_has_no_trainable_token(tmp_path: Path) -> None:
    message = refusal(tmp_path, [chat("Hi", "Hello")], max_length=21, overflow="truncate")
    assert message.startswith("error[E0823]: 1 of 1 rows have no trainable token\n")


def test_text_of_bos_alone_trains_nothing(tmp_path: Path) -> None:
    message = refusal(tmp_path, [{"text": "abc"}], max_length=1, overflow="truncate")
    assert message.startswith("error[E0823]: 1 of 1 rows have no trainable token\n")


def test_longer_rows_are_counted_across_shards(tmp_path: Path) -> None:
    rows = [chat(f"What is {n} plus {n}?", "x" * (200 if n % 10 == 5 else 2)) for n in range(60)]
    assert refusal(tmp_path, rows, max_length=100) == (
        "error[E0824]: 6 of 60 rows are longer than `max_length`\n"
        "  --> dataset in rows 5, 15, 25, 35, 45, …\n"
        "  why: row 5: it has 238 tokens\n"
        "  fix: raise `max_length`, or say what to do with them: "
        '`overflow = "drop"`, "truncate" or "split"'
    )


def test_dropped_rows_are_said_at_the_end(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    rows = [chat("Hi", "Hello"), chat("Hi", "Hello!")]
    made = tokenize(tmp_path, rows, ctx=ctx, max_length=28, overflow="drop")
    assert ctx.warnings == ["1 rows were longer than `max_length` and were dropped"]
    assert json.loads((made.path / "tokens.json").read_bytes())["dropped"] == 1


def test_nothing_left_after_dropping(tmp_path: Path) -> None:
    assert refusal(tmp_path, [chat("Hi", "Hello")], max_length=5, overflow="drop") == (
        "error[E0833]: all 1 rows are longer than `max_length = 5`: none is left\n"
        "  --> dataset\n"
        "  fix: raise `max_length`"
    )


NO_END = PLAIN.replace("{{ eos_token }}", "")


def test_turn_that_never_ends(tmp_path: Path) -> None:
    assert refusal(tmp_path, [chat("Hi", "Hello")], NO_END) == (
        "error[E0825]: 1 of 1 rows never train the end of a turn, so the model would not learn "
        "to stop\n"
        "  --> dataset in rows 0\n"
        "  fix: the chat template should end a turn with a special token of the tokenizer; where "
        'it has none, `train_on_eot = "none"`; or allow it: `allow = ["end_of_turn"]`'
    )
    unended = tokenize(tmp_path, [chat("Hi", "Hello")], NO_END, train_on_eot="none")
    trained = [label for label in read_tokens(unended)[0]["labels"] if label != -100]
    assert trained == [*b"Hello"]


def test_end_token_that_the_tokenizer_splits_ends_no_turn(tmp_path: Path) -> None:
    template = CHATML.replace("<|im_end|>", "<|eot|>")
    assert refusal(tmp_path, [chat("Hi", "Hello")], template).startswith("error[E0825]")


def test_two_bos_tokens(tmp_path: Path) -> None:
    assert refusal(tmp_path, [{"text": "a"}, {"text": "<s>abc"}]) == (
        "error[E0826]: 1 of 2 rows begin with two BOS tokens\n"
        "  --> dataset in rows 1\n"
        "  fix: remove the BOS token from the rows' text; "
        'or allow it: `allow = ["double_bos"]`'
    )
    made = tokenize(tmp_path, [{"text": "<s>abc"}], allow=["double_bos"])
    assert read_tokens(made)[0]["input_ids"] == [BOS, BOS, *b"abc", EOS]


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_token_over_the_edge_of_an_answer(template: str, tmp_path: Path) -> None:
    # "Ċ" is a line end in the byte-level alphabet: header and answer share the token "\n\n".
    rows, merges = [chat("Hi", "Hello"), chat("Hi", "\nHello")], (("Ċ", "Ċ"),)
    assert refusal(tmp_path, rows, template, merges=merges) == (
        "error[E0829]: 1 of 2 rows have a token that reaches over the edge of a trained text\n"
        "  --> dataset in rows 1\n"
        "  fix: remove the white space at the edges of the answers; "
        'or allow it: `allow = ["split_tokens"]`'
    )
    made = tokenize(tmp_path, rows, template, merges=merges, allow=["split_tokens"])
    trained = [label for label in read_tokens(made)[1]["labels"] if label != -100]
    assert trained == [260, *b"Hello", 257]


def test_token_over_the_edge_is_seen_where_the_tokenizer_hides_its_space(tmp_path: Path) -> None:
    # " H" is one token; a post-processor with `trim_offsets` says that it is the "H" alone.
    model = make_model(tmp_path / "model", PLAIN, merges=[("Ġ", "H")])
    file = tmp_path / "model" / "tokenizer.json"
    settings = json.loads(file.read_text())
    settings["post_processor"] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    file.write_text(json.dumps(settings))
    data = make_dataset(tmp_path / "d", [chat("Hi", "Hello")])
    with pytest.raises(RuleError, match=r"^1 of 1 rows have a token that reaches over the edge"):
        run_rule(tokens, {"dataset": data, "model": model}, {}, tmp_path)


def test_row_that_the_template_refuses(tmp_path: Path) -> None:
    rows = [chat("Hi", "Hello"), chat("Hi", "Hello")]
    rows[1]["messages"].insert(0, {"role": "system", "content": "Be brief."})
    assert refusal(tmp_path, rows, LLAMA2) == (
        "error[E0821]: 1 of 2 rows are refused by the chat template\n"
        "  --> dataset in rows 1\n"
        "  why: row 1: no system\n"
        '  fix: mend the rows, or take another template: `chat_template = "…"`'
    )


def test_row_that_cannot_be_masked_exactly(tmp_path: Path) -> None:
    template = CHATML.replace("m['content'] }}", "m['content'] | lower }}")
    assert refusal(tmp_path, [chat("hi", "hello"), chat("hi", "Hello")], template) == (
        "error[E0822]: 1 of 2 rows cannot be masked exactly with this chat template\n"
        "  --> dataset in rows 1\n"
        "  why: row 1: it shows a text otherwise than as it stands in the row\n"
        "  fix: take a template that marks the assistant's text with {% generation %}, or "
        "`last_turn_only = true`"
    )


def test_sorts_of_findings_come_in_one_error(tmp_path: Path) -> None:
    rows = [chat("Hi", "x" * 50), chat("Hi", "Hello")]
    rows[1]["messages"][1]["train"] = False
    message = refusal(tmp_path, rows, max_length=40)
    assert [line[:12] for line in message.splitlines() if "error" in line] == [
        "error[E0823]",
        "error[E0824]",
    ]


@pytest.mark.parametrize(
    ("row", "params", "message"),
    [
        (
            {"text": "a"},
            {"train_on": ["user"]},
            "error[E0830]: `train_on` has no meaning for a dataset of form `text`\n"
            "  --> dataset\n"
            "  why: all of a text is trained on\n"
            "  fix: remove `train_on`",
        ),
        (
            {"text": "a"},
            {"chat_template": "chatml"},
            "error[E0830]: `chat_template` has no meaning for a dataset of form `text`\n"
            "  --> dataset\n"
            "  why: all of a text is trained on\n"
            "  fix: remove `chat_template`",
        ),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            {"last_turn_only": True},
            "error[E0830]: `last_turn_only` has no meaning for a dataset of form `preference`\n"
            "  --> dataset\n"
            "  why: of a preference pair the two answers are trained on\n"
            "  fix: remove `last_turn_only`",
        ),
    ],
)
def test_attribute_without_meaning_for_the_rows(
    row: Any, params: dict[str, Any], message: str, tmp_path: Path
) -> None:
    assert refusal(tmp_path, [row], **params) == message


@pytest.mark.parametrize("name", ["train_on", "train_on_eot", "last_turn_only"])
def test_train_on_inputs_beside_a_mask_is_a_contradiction(name: str, tmp_path: Path) -> None:
    value: Any = {"train_on": ["user"], "train_on_eot": "all", "last_turn_only": True}[name]
    with pytest.raises(AttributeProblem) as caught:
        tokenize(tmp_path, [chat("Hi", "Hello")], train_on_inputs=True, **{name: value})
    assert (caught.value.attribute, caught.value.what, caught.value.fix) == (
        name,
        f"`{name}` has no effect: `train_on_inputs` trains every token",
        f"remove `{name}` or `train_on_inputs`",
    )


def known(*own: str) -> str:
    return ", ".join(f"`{name}`" for name in sorted([*templates(), *own]))


@pytest.mark.parametrize(
    ("template", "params", "message"),
    [
        (
            None,
            {},
            "error[E0820]: the tokenizer has no chat template\n"
            "  --> model\n"
            f'  fix: name one of {known()}: `chat_template = "chatml"`',
        ),
        (
            {"default": CHATML, "short": PLAIN},
            {},
            "error[E0820]: the tokenizer has 2 chat templates\n"
            "  --> model\n"
            f'  fix: name one of {known("default", "short")}: `chat_template = "chatml"`',
        ),
        (
            CHATML,
            {"chat_template": "chatmll"},
            "error[E0820]: there is no chat template `chatmll`\n"
            "  --> model\n"
            f"  fix: use one of {known('default')}, or leave it out for the tokenizer's own",
        ),
    ],
)
def test_chat_template_that_is_not_there(
    template: Any, params: dict[str, Any], message: str, tmp_path: Path
) -> None:
    assert refusal(tmp_path, [chat("Hi", "Hello")], template, **params) == message


def test_model_without_a_tokenizer(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    for file in (tmp_path / "model").iterdir():
        file.unlink()
    data = make_dataset(tmp_path / "d", [chat("Hi", "Hello")])
    with pytest.raises(RuleError) as caught:
        run_rule(tokens, {"dataset": data, "model": model}, {}, tmp_path)
    problem = caught.value.problems[0]
    assert (problem.code, problem.what) == ("E0831", "the model's tokenizer cannot be loaded")
    assert problem.fix == "the model's directory needs tokenizer.json and tokenizer_config.json"


def test_text_needs_an_eos_token(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    config = tmp_path / "model" / "tokenizer_config.json"
    settings = json.loads(config.read_text())
    del settings["eos_token"]
    config.write_text(json.dumps(settings))
    data = make_dataset(tmp_path / "d", [{"text": "a"}], "text")
    with pytest.raises(RuleError, match=r"^the tokenizer has no EOS token to end a text with$"):
        run_rule(tokens, {"dataset": data, "model": model}, {}, tmp_path)


def test_template_error_names_the_row_and_the_line(tmp_path: Path) -> None:
    template = CHATML.replace("{% for", "\n{{ messages[0].nam }}{% for")
    assert refusal(tmp_path, [chat("Hi", "Hello")], template) == (
        "error[E0821]: 1 of 1 rows are refused by the chat template\n"
        "  --> dataset in rows 0\n"
        "  why: row 0: line 2: 'dict object' has no attribute 'nam'\n"
        '  fix: mend the rows, or take another template: `chat_template = "…"`'
    )


def test_template_bomb_names_the_row(tmp_path: Path) -> None:
    template = "{% if messages[0].content == 'b' %}{{ 9 ** (9 ** 9) }}{% endif %}" + CHATML
    bomb = template.replace("9 ** 9)", "9 ** (messages | length + 7))")
    rows = [chat("a", "x"), chat("b", "x")]
    assert refusal(tmp_path, rows, bomb) == (
        "error[E0834]: the chat template goes over a limit\n"
        "  --> dataset in row 1\n"
        "  why: it runs for more than 2 s\n"
        "  fix: mend the template, or take another"
    )


def test_template_that_is_no_jinja(tmp_path: Path) -> None:
    assert refusal(tmp_path, [chat("Hi", "Hello")], "a\n{% if %}") == (
        "error[E0834]: the chat template is no Jinja\n"
        "  --> dataset\n"
        "  why: line 2: Expected an expression, got 'end of statement block'\n"
        "  fix: mend the template, or take another"
    )


def test_token_of_the_template_that_the_tokenizer_splits(tmp_path: Path) -> None:
    template = CHATML.replace("<|im_end|>", "<|end|>")
    rows = [chat("Hi", "Hello")]
    assert refusal(tmp_path, rows, template, allow=["end_of_turn"]) == (
        "error[E0835]: 1 of 1 rows have a token of the chat template that the tokenizer splits\n"
        "  --> dataset in rows 0\n"
        "  why: row 0: `<|end|>` becomes 7 tokens\n"
        "  fix: take a chat template whose tokens the tokenizer knows; "
        'or allow it: `allow = ["template_tokens"]`'
    )
    both = ["end_of_turn", "template_tokens"]
    (row,) = read_tokens(tokenize(tmp_path / "b", rows, template, allow=both))
    assert [label for label in row["labels"] if label != -100] == [*b"Hello"]


def test_split_token_in_a_text_is_the_rows_own(tmp_path: Path) -> None:
    made = tokenize(tmp_path, [chat("<|end|>", "Hello")])
    assert [label for label in read_tokens(made)[0]["labels"] if label != -100] == [*b"Hello", 257]


def test_token_that_ends_a_turn_besides_the_special_ones(tmp_path: Path) -> None:
    template = CHATML.replace("<|im_end|>", "#")
    (row,) = read_tokens(tokenize(tmp_path, [chat("Hi", "Hello")], template, eot_tokens=["#"]))
    assert [label for label in row["labels"] if label != -100] == [*b"Hello#"]
    assert row["labels"][-1] == -100


def test_end_of_turn_token_that_is_none(tmp_path: Path) -> None:
    assert refusal(tmp_path, [chat("Hi", "Hello")], eot_tokens=["<|eot|>"]) == (
        "error[E0836]: the tokenizer has no token `<|eot|>`\n"
        "  --> model\n"
        "  why: `eot_tokens` names it\n"
        "  fix: name tokens of its vocabulary"
    )


def test_overflow_splits_a_row_and_leaves_out_what_teaches_nothing(tmp_path: Path) -> None:
    # The first twelve ids end within the word "assistant", of which all is masked.
    made = tokenize(tmp_path, [chat("0", "abcdefgh")], max_length=12, overflow="split")
    assert read_tokens(made) == [
        {"input_ids": [*b"sistant\nabcd"], "labels": [*[-100] * 8, *b"abcd"]},
        {"input_ids": [*b"efgh", 257, 10], "labels": [*b"efgh", 257, -100]},
    ]
    about = json.loads((made.path / "tokens.json").read_bytes())
    assert (about["rows"], about["split"]) == (2, 1)


def test_row_of_which_no_piece_can_be_trained_on(tmp_path: Path) -> None:
    row = chat("0", "abcdefgh")
    row["messages"][1]["train"] = False
    message = refusal(tmp_path, [row], max_length=12, overflow="split")
    assert message.startswith("error[E0823]: 1 of 1 rows have no trainable token")


def test_preference_pair_is_not_split(tmp_path: Path) -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    assert refusal(tmp_path, [row], overflow="split").startswith(
        'error[E0830]: `overflow = "split"` has no meaning for a dataset of form `preference`'
    )
