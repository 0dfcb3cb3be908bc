"""Rows that an earlier build tokenized are not tokenized again, and no byte tells."""

import itertools
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from chat_kit import CHATML, chat, make_dataset, make_model
from ftbuild.digest import hash_file
from ftbuild.events import Finished
from ftbuild.kinds import Artifact
from ftbuild.project import Project
from ftbuild.testing import RecordingContext, context, run_rule
from ftbuild_rules.data._hashing import row_digest
from ftbuild_rules.tokens import _memo
from ftbuild_rules.tokens._memo import Outcome, RowMemo, write_outcomes
from ftbuild_rules.tokens.tokens import tokens
from tiny_models import make_model as make_whole_model

_numbers = itertools.count()
TOLD = " rows tokenized; the others were known"


def words(n: int) -> str:
    return " ".join(["word"] * (n % 7 + 1)) + f" {n}"


ROWS: dict[str, Any] = {
    "openai": lambda n: chat(words(n), words(n * 3), f"{n}?", words(n * 5), id=n),
    "text": lambda n: {"text": words(n)},
    "prompt_completion": lambda n: {"prompt": words(n), "completion": f" {words(n * 3)}"},
    "segments": lambda n: {
        "segments": [{"text": words(n), "label": False}, {"text": words(n * 3), "label": True}]
    },
    "tokenized": lambda n: {"input_ids": [*range(1, n % 9 + 2), n % 200], "labels": None},
    "preference": lambda n: {"prompt": words(n), "chosen": words(n * 3), "rejected": f"no {n}"},
    "unpaired": lambda n: {"prompt": words(n), "completion": words(n * 3), "label": n % 2 == 0},
    "stepwise": lambda n: {
        "prompt": words(n),
        "completions": [words(n * 3), f"{n}."],
        "labels": [True, n % 2 == 0],
    },
    "prompts": lambda n: {"prompt": words(n), "answer": n},
}


def tokenize(
    directory: Path, rows: list[Any], name: str, ctx: RecordingContext, **params: Any
) -> Artifact:
    here = directory / str(next(_numbers))
    inputs = {"dataset": make_dataset(here, rows, name), "model": make_model(here / "m", CHATML)}
    return run_rule(tokens, inputs, params, here, ctx=ctx)


def made_by(ctx: RecordingContext) -> list[str]:
    return [line.removesuffix(TOLD) for line in ctx.logs if line.endswith(TOLD)]


@pytest.mark.parametrize(
    ("name", "params"),
    [
        *((name, {}) for name in ROWS if name != "tokenized"),
        ("openai", {"packing": "bfd", "max_length": 300}),
        ("openai", {"packing": "ffd", "max_length": 300, "train_on_inputs": True}),
        ("openai", {"max_length": 90, "overflow": "drop"}),
        ("openai", {"max_length": 90, "overflow": "truncate", "allow": ["no_trainable_tokens"]}),
        ("openai", {"max_length": 60, "overflow": "split", "allow": ["no_trainable_tokens"]}),
        ("openai", {"max_length": 130, "overflow": "split", "packing": "bfd"}),
        ("text", {"packing": "wrapped", "max_length": 64}),
        ("preference", {"max_length": 60, "overflow": "drop"}),
        ("unpaired", {"max_length": 60, "overflow": "truncate"}),
        ("prompts", {"max_length": 40, "overflow": "drop"}),
    ],
)
def test_bytes_are_those_of_a_build_from_scratch(
    tmp_path: Path, name: str, params: dict[str, Any]
) -> None:
    rows = [ROWS[name](n) for n in range(240)]
    shuffled = [row for row in rows if row != ROWS[name](77)]
    random.Random(4).shuffle(shuffled)
    memo: dict[str, Any] = {}
    tokenize(tmp_path, rows, name, context(tmp_path, memo=memo), **params)
    for changed in (
        [row for n, row in enumerate(rows) if n % 10 != 3],  # every shard, and nothing new
        [*shuffled, *(ROWS[name](n) for n in range(2000, 2009)), *rows[5:8]],
    ):
        ctx = context(tmp_path, memo=memo)
        again = tokenize(tmp_path, changed, name, ctx, **params)
        (told,) = made_by(ctx)
        assert int(told.split()[0]) < len(changed) / 2
        scratch = tokenize(tmp_path, changed, name, context(tmp_path), **params)
        assert again.digest == scratch.digest


def test_only_new_rows_are_tokenized(tmp_path: Path) -> None:
    memo: dict[str, Any] = {}
    rows = [ROWS["openai"](n) for n in range(300)]
    tokenize(tmp_path, rows, "openai", context(tmp_path, memo=memo))
    ctx = context(tmp_path, memo=memo)
    new = [ROWS["openai"](n) for n in (1000, 1001)]
    tokenize(tmp_path, [*new, *rows[::-2]], "openai", ctx)
    assert made_by(ctx) == ["2 of 152"]


def test_rows_that_are_complained_of_are_looked_at_again(tmp_path: Path) -> None:
    rows = [chat("x" * 90 if n % 3 == 0 else "x", f"{n}") for n in range(60)]
    allow = {"allow": ["no_trainable_tokens"], "overflow": "truncate", "max_length": 80}
    memo: dict[str, Any] = {}
    first = context(tmp_path, memo=memo)
    tokenize(tmp_path, rows, "openai", first, **allow)
    ctx = context(tmp_path, memo=memo)
    tokenize(tmp_path, [chat("new", "new"), *rows[::-1]], "openai", ctx, **allow)
    assert made_by(ctx) == ["21 of 61"]


# ---------------------------------------------------------------- through the engine


class Place:
    """A project whose dataset is filtered, and its store."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def make(self, where: str, more: str = "") -> tuple[str, str]:
        """Build the tokens of the rows that fulfil `where`; return their digest and their log."""
        (self.root / "FTBUILD.toml").write_text(
            '[project]\nname = "p"\n[cache]\ndir = "store"\n[base_model.smol]\nsource = "model"\n'
            '[dataset.all]\nsource = "rows.jsonl"\nformat = "openai"\n'
            f'[filter.some]\ndataset = "all"\nwhere = "{where}"\n'
            f'[tokens.ids]\ndataset = "some"\nmodel = "smol"\n{more}'
        )
        found: dict[str, Any] = {}

        def note(event: Any) -> None:
            if isinstance(event, Finished):
                assert event.error is None
                found[event.label] = event.digest

        with Project.open(self.root, jobs=2) as project:
            project.make(on_event=note)
            record = project.store.find(project.history.built["ids"].key)
            assert record is not None
            log = record.provenance["log"]
            text = project.store.blob_path(log).read_text() if log else ""
        return found["ids"], text

    def files(self, pattern: str) -> list[Path]:
        return sorted((self.root / "store" / "v1").glob(pattern))


OTHER = "n % 10 != 3"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return a project that is built, and the digest of another filter's tokens from scratch."""
    root = tmp_path_factory.mktemp("project")
    make_whole_model(root / "model")
    rows = [chat(words(n), words(n * 3), n=n) for n in range(300)]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("FTBUILD_CACHE", raising=False)
        scratch, log = Place(root).make(OTHER)
        assert log == ""
        shutil.rmtree(root / "store")
        shutil.rmtree(root / ".ftbuild")
        assert Place(root).make("n != 1")[1] == ""
    return root, scratch


@pytest.fixture
def place(
    built: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Place, str]:
    monkeypatch.delenv("FTBUILD_CACHE", raising=False)
    shutil.copytree(built[0], tmp_path / "project", symlinks=True)
    return Place(tmp_path / "project"), built[1]


def test_other_filter_tokenizes_only_the_row_that_is_new(place: tuple[Place, str]) -> None:
    here, scratch = place
    assert here.make(OTHER) == (scratch, f"1 of 270{TOLD}\n")


def test_rows_of_other_attributes_are_not_taken(place: tuple[Place, str]) -> None:
    assert place[0].make(OTHER, more="train_on_inputs = true\n")[1] == ""


def test_list_of_siblings_is_only_a_hint(place: tuple[Place, str]) -> None:
    here, scratch = place
    (path,) = here.files("siblings/*/*")
    good = path.read_text()
    here.make("n != 1", more="train_on_inputs = true\n")  # fragments of another family
    every = "\n".join(p.stem for p in here.files("actions/*/*.json"))
    path.write_bytes(b"\xff\x00 no key\n" + every.encode() + b"\n" + b"0" * 64 + b"\nabc")
    assert here.make(OTHER) == (scratch, f"1 of 270{TOLD}\n")
    path.write_text(good[:70])
    told = here.make("n % 9 != 3")[1]
    assert told.endswith(TOLD + "\n")
    assert int(told.split()[0]) > 100
    path.unlink()
    assert here.make("n % 7 != 3")[1] == ""


@pytest.mark.parametrize("folders", [["trees"], ["trees", "blobs"]])
def test_damaged_rows_and_tokens_are_noticed(place: tuple[Place, str], folders: list[str]) -> None:
    here, scratch = place
    names = (_memo.NAME, "shard.arrow")
    digests = {hash_file(p) for p in here.files("trees/*/*/*") if p.name in names}
    paths = {"trees": here.files("trees/*/*/*"), "blobs": here.files("blobs/*/*")}
    for path in (path for folder in folders for path in paths[folder]):
        if path.name in names or path.name in digests:
            path.chmod(0o644)
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 4
            path.write_bytes(data)
    digest, log = here.make(OTHER)
    assert digest == scratch
    assert log == (f"1 of 270{TOLD}\n" if folders == ["trees"] else "")  # mended, or passed over


def test_list_goes_with_the_last_of_its_records(place: tuple[Place, str]) -> None:
    here, _ = place
    with Project.open(here.root) as project:
        project.store.gc(grace_s=0)
        assert len(here.files("siblings/*/*")) == 1
        project.store.gc(grace_s=-1, max_age_s=-1)
        assert here.files("siblings/*/*") == []


# ---------------------------------------------------------------- the memo by itself


def test_row_of_the_same_first_bytes_is_another_row(tmp_path: Path) -> None:
    digest = row_digest({"text": "a"})
    write_outcomes(tmp_path / _memo.NAME, [Outcome(digest, 0, 0, _memo.DROPPED)])
    shutil.copyfile(_arrow(tmp_path / "made"), tmp_path / "shard.arrow")
    memo = RowMemo([tmp_path], ("input_ids",), tmp_path / "index")
    assert memo.find([digest])[0].fate == _memo.DROPPED
    assert memo.find([digest[:8] + bytes(24)]) == {}
    assert memo.find([bytes(32), b"\xff" * 32]) == {}


def test_file_of_another_format_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / _memo.NAME).write_bytes(b"ftbuild rows 2\n\0" + bytes(123))
    memo = RowMemo([tmp_path], ("input_ids",), tmp_path / "index")
    assert memo.rows == 0
    assert memo.find([bytes(32)]) == {}


def test_index_in_several_buckets_is_sorted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = [row_digest({"text": str(n)}) for n in range(2000)]
    for shard in range(20):
        folder = tmp_path / str(shard)
        shutil.copytree(_arrow(tmp_path / f"made{shard}").parent, folder)
        part = digests[shard * 100 : shard * 100 + 100]
        write_outcomes(folder / _memo.NAME, [Outcome(d, 0, 0, n % 8) for n, d in enumerate(part)])
    folders = [tmp_path / str(shard) for shard in range(20)]
    monkeypatch.setattr(_memo, "_BUCKET_BITS", 8)
    monkeypatch.setattr(_memo, "_MOST_OPEN", 3)
    memo = RowMemo(folders, ("input_ids",), tmp_path / "index")
    found = memo.find(digests)
    assert [found[n].fate for n in range(2000)] == [n % 100 % 8 for n in range(2000)]
    assert memo.find([digests[1999]])[0].fate == 99 % 8


@pytest.mark.parametrize(
    "value", [None, True, 0, 1 << 40, -1, "", "é\ud800", "x" * 300, [], [1, [2]]]
)
def test_digest_tells_values_apart_and_equal_ones_not(value: Any) -> None:
    row = {"text": value, "more": [{"a": value}]}
    text = json.dumps(row)
    assert row_digest(json.loads(text)) == row_digest(row) == row_digest(json.loads(text))
    others: list[Any] = [False, "None", "0", [value], {"": value}, {}, 2]
    assert row_digest(row) not in {row_digest({**row, "text": other}) for other in others}


def _arrow(folder: Path) -> Path:
    import pyarrow as pa

    from ftbuild_rules.data._arrow import write_batch

    folder.mkdir()
    ids = pa.ListArray.from_arrays([0], pa.array([], pa.int32()))
    write_batch(folder / "shard.arrow", pa.RecordBatch.from_arrays([ids], names=["input_ids"]))
    return folder / "shard.arrow"
