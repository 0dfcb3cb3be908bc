r"""Tokens as training reads them: memory-mapped, in row order, checked before a model is loaded.

One row of SFT tokens: {"input_ids": [1, 9, 4, 2], "labels": [-100, -100, 4, 2]}.
A packed row has {"seq_lengths": [2, 2]} besides: where each of its documents ends.
One row of preference tokens: {"prompt_ids": [1, 9], "chosen_ids": [4, 2], "rejected_ids": [5, 2]}.
One row of unpaired tokens: {"prompt_ids": [1, 9], "completion_ids": [4, 2], "label": True}.
One row of stepwise tokens, labelled 1 or 0 where a right or wrong step ends:
{"input_ids": [1, 9, 4, 8, 5, 8], "labels": [-100, -100, -100, 1, -100, 0]}.
One row of prompts, with its other columns as JSON:
{"prompt_ids": [1, 9], "metadata": "{\"answer\":\"4\"}"}.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ftbuild.api import Artifact, Place, RuleError, Tokens
from ftbuild_rules.models._files import TEMPLATE_NAME
from ftbuild_rules.quantization._dequantize import Base

Form = Literal["sft", "preference", "unpaired", "stepwise", "prompts"]
COLUMNS: dict[Form, tuple[str, ...]] = {
    "sft": ("input_ids", "labels"),
    "preference": ("prompt_ids", "chosen_ids", "rejected_ids"),
    "unpaired": ("prompt_ids", "completion_ids", "label"),
    "stepwise": ("input_ids", "labels"),
    "prompts": ("prompt_ids", "metadata"),
}
_SOURCES = {"sft": "messages", "preference": "preference"}
"""The form of the dataset that tokens are made of, where it has another name."""
_MASKED = -100


@dataclass(frozen=True)
class TokenRows:
    """The rows of a `tokens` artifact."""

    label: str
    """Who made them, for messages."""
    form: Form
    table: Any
    """A pyarrow Table over memory-mapped files."""
    template: str | None
    """The chat template that rendered the rows."""

    @property
    def num_rows(self) -> int:
        """How many rows there are."""
        return int(self.table.num_rows)

    @property
    def is_packed(self) -> bool:
        """Say whether a row holds several documents that must not see each other."""
        return "seq_lengths" in self.table.column_names

    def dataset(self, *, with_row: bool, **columns: Any) -> Any:
        """Return the rows as a `datasets.Dataset`, with their numbers as `row` if wanted.

        `columns` are further ones.
        """
        import pyarrow as pa
        from datasets import Dataset
        from datasets.table import InMemoryTable

        table = self.table
        if with_row:
            table = table.append_column("row", pa.array(range(self.num_rows), pa.int64()))
        for name, values in columns.items():
            table = table.append_column(name, values)
        return Dataset(InMemoryTable(table))


def pair_or_single(tokens: Tokens) -> Form:
    """Return the form to ask for where pairs and single completions both will do."""
    form = json.loads((tokens.path / "tokens.json").read_bytes())["form"]
    return "preference" if form == "preference" else "unpaired"


def read_tokens(tokens: Tokens, form: Form, *, rule: str) -> TokenRows:
    """Open a `tokens` artifact for a rule that needs rows of `form`.

    Raises:
        RuleError: E0901: the rows have another form; E0907: there are none.
    """
    import pyarrow as pa

    about = json.loads((tokens.path / "tokens.json").read_bytes())
    label = tokens.label or "tokens"
    files = sorted(
        (tokens.path / "data").glob("train-*.arrow"), key=lambda p: (len(p.name), p.name)
    )
    tables = [pa.ipc.open_file(pa.memory_map(str(file))).read_all() for file in files]
    table = pa.concat_tables(tables)
    missing = [name for name in COLUMNS[form] if name not in table.column_names]
    packed = ["seq_lengths"] if "seq_lengths" in table.column_names else []
    if about["form"] != form or missing or (packed and form != "sft"):
        wanted = _SOURCES.get(form, form)
        raise RuleError(
            f"`{rule}` needs tokens of the form `{form}`; `{label}` has the form `{about['form']}`",
            code="E0901",
            where=Place(path=label),
            why=f"its columns are {', '.join(table.column_names)}",
            fix=f"make `data` a `tokens` target whose dataset has the form `{wanted}`",
        )
    if table.num_rows == 0:
        raise RuleError(
            f"`{label}` has no rows", code="E0907", where=Place(path=label), fix="add rows"
        )
    template = tokens.path / TEMPLATE_NAME
    text = template.read_text(encoding="utf-8") if template.exists() else None
    return TokenRows(label, form, table.select([*COLUMNS[form], *packed]), text)


def require_fit(
    rows: TokenRows, model: Base, *, settings: Mapping[str, Any] | None = None, room: int = 0
) -> None:
    """Refuse rows that `model` cannot be trained on; `settings` are laid over its config.

    Behind each row there must be `room` for so many more tokens.

    Raises:
        RuleError: E0903: a row is longer than the model's context; E0904: an id is not in its
            vocabulary; E0905: a row has nothing to train on.
    """
    config = json.loads((model.path / "config.json").read_bytes())
    config = {**config, **config.get("text_config", {}), **(settings or {})}
    for lengths, first in _row_lengths(rows):
        context = config.get("max_position_embeddings")
        if context is not None and (too_long := (lengths + room > context).nonzero()[0]).size:
            row = int(too_long[0])
            more = f", and {room} may follow" if room else ""
            raise _row_error(
                rows,
                first + row,
                f"row {first + row} of `{rows.label}` has {int(lengths[row])} tokens{more}; the "
                f"model reads at most {context}",
                code="E0903",
                fix=f"set `max_length = {context - room}` on `{rows.label}`"
                if room < context
                else f"the tokens that follow must be fewer than {context}",
            )
    _require_ids(rows, int(config["vocab_size"]))
    if rows.is_packed:
        _require_lengths(rows)
    _require_trainable(rows)


def _row_error(rows: TokenRows, row: int, what: str, *, code: str, fix: str) -> RuleError:
    where = Place(path=rows.label, within=f"row {row}")
    return RuleError(what, code=code, where=where, fix=fix)


def template_digest(text: str) -> str:
    """Return one digest for all templates that render alike but for marks of what to train on."""
    marks = r"\{%-?\s*(?:end)?generation\s*-?%\}"
    return hashlib.sha256(re.sub(marks, "", text).encode()).hexdigest()


def own_template(owner: Artifact) -> str:
    """Return the chat template that a model or an adapter carries, nothing where it has none."""
    path = owner.path / TEMPLATE_NAME
    return path.read_text(encoding="utf-8") if path.exists() else ""


def has_other_template(rows: TokenRows, owner: Artifact) -> bool:
    """Say whether the rows were rendered by another chat template than the owner's."""
    if rows.template is None:
        return False
    return template_digest(rows.template) != template_digest(own_template(owner))


def require_template(rows: TokenRows, model: Base, adapter: Artifact | None = None) -> None:
    """Refuse rows that another chat template rendered than the one that is to be continued.

    That is the adapter's, where it carries one: it was trained with another than the model's.

    Raises:
        RuleError: E0902.
    """
    owner = model if adapter is None or not own_template(adapter) else adapter
    if has_other_template(rows, owner):
        raise RuleError(
            f"`{rows.label}` was rendered by another chat template than the one of "
            f"`{owner.label or owner.kind}`",
            code="E0902",
            where=Place(path=rows.label),
            why="the trained model would be asked in a form that it was not trained on",
            fix="take the tokens' `chat_template` away; or set `other_template = true` here, and "
            "what is trained carries the tokens' template"
            if owner is model
            else f"give the tokens the template of `{owner.label or owner.kind}`; or set "
            "`other_template = true` here, and what is trained carries the tokens' template",
        )


def require_one_template(rows: Sequence[TokenRows]) -> None:
    """Refuse rows for evaluation that another chat template rendered than those for training.

    Raises:
        RuleError: E0902.
    """
    rendered = [each for each in rows if each.template is not None]
    for each in rendered[1:]:
        if template_digest(each.template or "") != template_digest(rendered[0].template or ""):
            raise RuleError(
                f"`{each.label}` was rendered by another chat template than `{rendered[0].label}`",
                code="E0902",
                where=Place(path=each.label),
                why="its loss would be that of a form that was not trained",
                fix="give both `tokens` targets the same `chat_template`",
            )


def _chunks(rows: TokenRows, name: str) -> Iterator[tuple[Any, Any, int]]:
    """Yield for each chunk of a column its values, row boundaries and first row's number."""
    first = 0
    for chunk in rows.table.column(name).chunks:
        bounds = chunk.offsets.to_numpy()
        values = chunk.flatten().to_numpy(zero_copy_only=False)
        yield values, bounds - bounds[0], first
        first += len(chunk)


def _row_lengths(rows: TokenRows) -> Iterator[tuple[Any, int]]:
    """Yield the lengths of the sequences of each chunk and the number of its first row."""
    import numpy as np

    if "input_ids" in COLUMNS[rows.form]:
        for _, bounds, first in _chunks(rows, "input_ids"):
            yield np.diff(bounds), first
        return
    columns = [_chunks(rows, name) for name in ("prompt_ids", *_completions(rows))]
    for (_, prompt, first), *completions in zip(*columns, strict=True):
        lengths = np.diff(prompt)
        if completions:
            lengths = lengths + np.maximum.reduce([np.diff(b) for _, b, _ in completions])
        yield lengths, first


def _completions(rows: TokenRows) -> tuple[str, ...]:
    """Return the columns of completions, in the forms that have such."""
    return tuple(
        name for name in COLUMNS[rows.form] if name.endswith("_ids") and name != "prompt_ids"
    )


def _require_ids(rows: TokenRows, vocab_size: int) -> None:
    if rows.form == "stepwise":
        _require_step_labels(rows)
    for name in COLUMNS[rows.form]:
        if name in ("label", "metadata") or (name == "labels" and rows.form == "stepwise"):
            continue
        lowest = _MASKED if name == "labels" else 0
        for values, bounds, first in _chunks(rows, name):
            wrong = ((values < 0) & (values != lowest)) | (values >= vocab_size)
            if wrong.any():
                place = int(wrong.argmax())
                row = first + int((bounds[1:] <= place).sum())
                raise _row_error(
                    rows,
                    row,
                    f"row {row} of `{rows.label}` has the id {int(values[place])} in `{name}`; the "
                    f"model's vocabulary has {vocab_size}",
                    code="E0904",
                    fix="tokenize with the model that is trained: `model` on the tokens target",
                )


def _require_lengths(rows: TokenRows) -> None:
    """Refuse packed rows whose documents do not fill them: a border would be missed."""
    import numpy as np

    columns = zip(_chunks(rows, "seq_lengths"), _chunks(rows, "input_ids"), strict=True)
    for (lengths, bounds, first), (_, ends, _) in columns:
        sums = np.concatenate([[0], np.cumsum(lengths)])
        filled = sums[bounds[1:]] - sums[bounds[:-1]]
        if (wrong := (filled != np.diff(ends)).nonzero()[0]).size:
            row = int(wrong[0])
            raise _row_error(
                rows,
                first + row,
                f"the `seq_lengths` of row {first + row} of `{rows.label}` add up to "
                f"{int(filled[row])}; the row has {int(np.diff(ends)[row])} tokens",
                code="E0904",
                fix="make the tokens again",
            )


def _require_step_labels(rows: TokenRows) -> None:
    for values, bounds, first in _chunks(rows, "labels"):
        wrong = (values != _MASKED) & (values != 0) & (values != 1)
        if wrong.any():
            place = int(wrong.argmax())
            row = first + int((bounds[1:] <= place).sum())
            raise _row_error(
                rows,
                row,
                f"row {row} of `{rows.label}` has the label {int(values[place])}; a step is 1 "
                "(right) or 0 (wrong), and -100 stands everywhere else",
                code="E0904",
                fix="mend the dataset's step labels",
            )


def _require_trainable(rows: TokenRows) -> None:
    """Refuse rows without a token to learn.

    The first token of a sequence is predicted from nothing, so a label there counts for nothing.
    """
    import numpy as np

    if rows.form == "prompts":
        _require_prompts(rows)
        return
    empty: list[int] = []
    has_labels = "labels" in COLUMNS[rows.form]
    if has_labels:
        shift = 1 if rows.form == "sft" else 0  # a step is judged where it ends, not predicted
        for values, bounds, first in _chunks(rows, "labels"):
            trained = np.concatenate([[0], np.cumsum(values != _MASKED)])
            starts = np.minimum(bounds[:-1] + shift, bounds[1:])
            empty += (first + (trained[bounds[1:]] == trained[starts]).nonzero()[0]).tolist()
    else:
        prompts = [np.diff(bounds) for _, bounds, _ in _chunks(rows, "prompt_ids")]
        for name in _completions(rows):
            pairs = zip(_chunks(rows, name), prompts, strict=True)
            for (_, bounds, first), prompt in pairs:
                lacks = (np.diff(bounds) == 0) | (prompt + np.diff(bounds) < 2)
                empty += (first + lacks.nonzero()[0]).tolist()
    if empty:
        row = min(empty)
        lacking = "no label other than -100" if has_labels else "no completion to compare"
        raise _row_error(
            rows,
            row,
            f"{len(set(empty))} of {rows.num_rows} rows of `{rows.label}` have {lacking}",
            code="E0905",
            fix=f"look at `ftbuild inspect {rows.label} --row {row}`; check `train_on` and "
            "`max_length`",
        )


def _require_prompts(rows: TokenRows) -> None:
    import numpy as np

    for _, bounds, first in _chunks(rows, "prompt_ids"):
        if (empty := (np.diff(bounds) == 0).nonzero()[0]).size:
            row = first + int(empty[0])
            raise _row_error(
                rows,
                row,
                f"row {row} of `{rows.label}` has no prompt",
                code="E0905",
                fix="remove it",
            )
