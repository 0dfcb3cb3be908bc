"""Bad rows of several files, and rows without an end; ../test_bad_inputs.py has all others."""

from pathlib import Path

import pytest

from ftbuild.errors import RuleError
from ftbuild.testing import context, run_rule, source
from ftbuild_rules.data import _rows
from ftbuild_rules.data.dataset import dataset


def message_of(directory: Path, content: bytes, format_name: str, name: str = "rows.jsonl") -> str:
    """Return the message with which a file of `content` is refused."""
    file = directory / name
    file.write_bytes(content)
    ctx = context(directory)
    with pytest.raises(RuleError) as caught:
        run_rule(dataset, {"source": source(file)}, {"format": format_name}, directory, ctx=ctx)
    assert not (ctx.out / "dataset.json").exists()
    return caught.value.render().replace(f"{directory}/", "")


@pytest.mark.fault("54", "a row without end")
@pytest.mark.parametrize("opening", [b"", b"["])
def test_row_without_end_is_refused_before_it_fills_the_memory(
    opening: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_rows, "MAX_ROW_BYTES", 2 << 20)
    content = opening + b'{"text": "' + b"a" * (5 << 20) + b'"}'
    assert message_of(tmp_path, content, "text") == (
        "error[E0807]: a row is longer than 2 MiB\n"
        "  --> rows.jsonl:1\n"
        "  fix: write one row a line; is this a text file without line ends?"
    )


def test_problems_of_all_files_come_in_one_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"text": ""}\n')
    (tmp_path / "b.jsonl").write_text('{"txt": "fine"}\n')
    files = source(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    with pytest.raises(RuleError) as caught:
        run_rule(dataset, {"source": files}, {"format": "text"}, tmp_path)
    found = [(problem.code, str(problem.where)) for problem in caught.value.problems]
    assert found == [("E0813", f"{tmp_path}/a.jsonl:2"), ("E0810", f"{tmp_path}/b.jsonl:1")]
