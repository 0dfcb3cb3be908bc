"""The datasets of Axolotl's YAML file -> `dataset`, `mix` and `split`, and how rows are rendered.

Source: https://github.com/axolotl-ai-cloud/axolotl at 067b021c8, `prompt_strategies` and
`prompters.py`. Of the templates both packs' texts were rendered and compared.
"""

import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from ftbuild_rules.importers._chain import Chain, hub_dataset
from ftbuild_rules.importers._reading import Reading

_ALPACA = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n### Instruction:\n"
    "{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
_ALPACA_NO_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)
TEMPLATES = {
    "aya": "command-r",
    "chatml": "chatml",
    "cohere": "command-r",
    "deepseek_v3": "deepseek-v3",
    "gemma3": "gemma3",
    "llama3": "llama3",
    "mistral_v1": "mistral-v1",
    "qwen_25": "qwen2.5",
}
"""Templates that write the same here, with and without a system message."""
_ALIKE = {
    "gemma": "gemma",
    "mistral_v2v3": "mistral-v3",
    "mistral_v3_tekken": "mistral-v3-tekken",
    "qwen3": "qwen3",
}
"""Those that write the same but for a system message, or where an answer begins."""
_PAIRS = {"intel": "question", "icr": "input", "prompt_pairs": "prompt", "argilla": "instruction"}
"""Of the types `chatml.NAME` and `llama3.NAME`, the column that holds the prompt."""
_CHATS = ("argilla_chat", "ultra")
_HUB = re.compile(r"[\w.-]+/[\w.-]+")
_LOOK = "look at the tokens: `ftbuild inspect train_tokens --row 0`"
_FILES = ("json", "csv", "parquet", "arrow", "text")


@dataclass
class Rows:
    """The rows to train on, those to evaluate on, and what the tokens have to know of them."""

    train: str
    evaluation: str | None
    tokens: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    """What the base model has to know: its chat template."""
    is_split: bool = False
    """Whether long texts are cut into several."""

    @property
    def changes_template(self) -> bool:
        """Say whether the tokens' template is no longer that of the model."""
        return not self.tokens.keys().isdisjoint(
            ("chat_template_file", "default_system_message", "template_variables")
        )


def read_rows(config: Reading, chain: Chain, method: str) -> Rows:
    """Add the datasets, and return which targets hold the rows.

    Raises:
        ImportProblem: rows are of a type that is not known here.
    """
    key = "pretraining_dataset" if method == "pretrain" else "datasets"
    given = config.values.get(key)
    if isinstance(given, str):
        listed = [Reading({"path": config.take(key)}, (key,), config.notes)]
    else:
        listed = config.tables(key)
    if not listed:
        raise config.problem(key, f"`{key}` is empty", "name the rows to train on")
    tokens: dict[str, Any] = {}
    sources = [_dataset(config, each, chain, method, tokens) for each in listed]
    others = [
        _dataset(config, each, chain, method, tokens) for each in config.tables("test_datasets")
    ]
    train, evaluation = _parts(config, chain, chain.rows(sources), others)
    model = {}
    for name in ("chat_template", "chat_template_jinja"):
        if name in tokens:
            model["chat_template"] = tokens.pop(name)
    is_split = any(each["format"] == "text" for each in sources)
    return Rows(train, evaluation, tokens, model, is_split)


def _parts(
    config: Reading, chain: Chain, rows: str, others: list[dict[str, Any]]
) -> tuple[str, str | None]:
    """Return the rows to train on and those to evaluate on: given, or set aside."""
    if others:
        return rows, chain.rows(others, "eval_rows", "test_datasets")
    return chain.set_aside(config, "val_set_size", rows)


def _dataset(
    config: Reading, rows: Reading, chain: Chain, method: str, tokens: dict[str, Any]
) -> dict[str, Any]:
    """Return the attributes of one dataset, and add to `tokens` what its type asks for."""
    source = _source(rows, chain)
    how = _format(config, rows, method, tokens)
    rows.take("ds_type")
    rows.finish()
    return {"source": source, **how}


def _source(rows: Reading, chain: Chain) -> Any:
    path = rows.take("path")
    if not isinstance(path, str):
        raise rows.problem("path", "a dataset has no `path`", "write `path: …`")
    files = rows.names("data_files")
    if path in _FILES and files:
        return files if len(files) > 1 else files[0]
    if chain.is_here(path) or not _HUB.fullmatch(path) or PurePosixPath(path).suffix:
        if files:
            found = [f"{path}/{file}" for file in files]
            return found if len(found) > 1 else found[0]
        rows.ignore(("split", "name"), "a local file has none, or `ds_type` says how to read it")
        return path
    if files:
        rows.note("data_files", "of a dataset of the hub a split is taken, not a file: name it")
    revision, name = rows.take("revision"), rows.take("name")
    return hub_dataset(path, revision=revision, config=name, split=rows.take("split", "train"))


def _format(config: Reading, rows: Reading, method: str, tokens: dict[str, Any]) -> dict[str, Any]:
    """Return `format` and what belongs to it."""
    if method == "pretrain":
        rows.take("type")
        return _text(rows, str(rows.take("text_column", "text")))
    kind = rows.take("type")
    if method == "prm":
        _set(rows, tokens, "step_separator", rows.take("step_separator"))
        _set(rows, tokens, "train_on_last_step_only", rows.take("train_on_last_step_only"))
        return {"format": "stepwise"}
    if method != "sft":
        return _pairs(config, rows, method, kind, tokens)
    if isinstance(kind, dict):
        return _own(rows, kind)
    kinds = {
        "chat_template": lambda: _chat(config, rows, tokens),
        "alpaca": lambda: _alpaca(rows),
        "completion": lambda: _text(rows, str(rows.take("field", "text"))),
        "sharegpt": lambda: _sharegpt(config, rows, tokens),
    }
    if not isinstance(kind, str) or kind not in kinds:
        raise rows.problem(
            "type",
            f"rows of the type `{kind}` cannot be imported",
            "`chat_template`, `alpaca`, `completion` and a table with `format` can; else write "
            "the targets by hand: `ftbuild rules dataset` lists the formats",
        )
    return kinds[kind]()


def _set(rows: Reading, tokens: dict[str, Any], name: str, value: Any) -> None:
    """Set an attribute of the tokens, on which all datasets have to agree."""
    if value is None:
        return
    if tokens.setdefault(name, value) != value:
        raise rows.problem(
            "type",
            f"another dataset sets `{name}` otherwise",
            "one `tokens` target renders all rows alike: import each dataset on its own",
        )


def _text(rows: Reading, column: str) -> dict[str, Any]:
    columns = {} if column == "text" else {"columns": {"text": column}}
    rows.note("type", "an EOS token ends each text, and long ones are split into several rows")
    return {"format": "text", **columns}


def _alpaca(rows: Reading) -> dict[str, Any]:
    rows.note(
        "type",
        "Alpaca's own texts are the prompt, not a chat template; Axolotl tokenizes prompt and "
        "answer apart and ftbuild in one, so a token at their border may differ",
    )
    return {
        "format": "prompt_completion",
        "columns": {"completion": "output"},
        "prompt": _ALPACA,
        "prompt_no_input": _ALPACA_NO_INPUT,
    }


def _own(rows: Reading, kind: dict[str, Any]) -> dict[str, Any]:
    """A type of the user's own: a format with the names of fields."""
    own = Reading(kind, (*rows.key, "type"), rows.notes)
    names = {name: str(own.take(f"field_{name}", name)) for name in ("instruction", "input")}
    output = str(own.take("field_output", "output"))
    if own.take("system_prompt") or own.take("field_system"):
        raise own.problem(
            "system_prompt" if "system_prompt" in own else "field_system",
            "a system prompt of a type of one's own cannot be imported",
            "write its text into `format`",
        )
    own.take("system_format")
    with_input = own.take("format", "{instruction} {input}")
    without = own.take("no_input_format")
    for name, column in names.items():
        with_input = with_input.replace(f"{{{name}}}", f"{{{column}}}")
        without = without and without.replace(f"{{{name}}}", f"{{{column}}}")
    own.finish()
    rows.note("type", f"{_LOOK}, where the texts are made of your `format`")
    found = {"format": "prompt_completion", "columns": {"completion": output}, "prompt": with_input}
    return {**found, "prompt_no_input": without} if without else found


def _chat(config: Reading, rows: Reading, tokens: dict[str, Any]) -> dict[str, Any]:
    """Conversations through a chat template."""
    _template(config, rows, tokens)
    roles = rows.take("roles_to_train", ["assistant"])
    _set(rows, tokens, "train_on", roles)
    eos = rows.take("train_on_eos", "turn")
    _set(rows, tokens, "train_on_eot", rows.take("train_on_eot", eos))
    _set(rows, tokens, "eot_tokens", config.take("eot_tokens"))
    _set(rows, tokens, "template_variables", config.take("chat_template_kwargs"))
    return {"format": "openai", **_columns(rows, "messages")}


def _sharegpt(config: Reading, rows: Reading, tokens: dict[str, Any]) -> dict[str, Any]:
    rows.note("type", f"Axolotl has no `sharegpt` any more; {_LOOK}")
    _template(config, rows, tokens)
    columns = _columns(rows, "conversations")
    return {"format": "sharegpt", **columns}


def _columns(rows: Reading, usual: str) -> dict[str, Any]:
    """Return the names of columns and of roles."""
    columns: dict[str, str] = {}
    messages = rows.take("field_messages", usual)
    if messages != usual:
        columns["messages" if usual == "messages" else usual] = messages
    mapping = rows.table("message_property_mappings").values
    role = rows.take("message_field_role") or mapping.get("role", "role")
    content = rows.take("message_field_content") or mapping.get("content", "content")
    if (role, content) != ("from", "value"):
        named = {"role": role, "content": content}
        columns.update({key: name for key, name in named.items() if key != name})
    for name in mapping:
        if name not in ("role", "content"):
            rows.note("message_property_mappings", f"`{name}` of a message is read by that name")
    if (tools := rows.take("field_tools", "tools")) != "tools":
        columns["tools"] = tools
    roles = {
        source: target
        for target, sources in rows.table("roles").values.items()
        for source in (sources if isinstance(sources, list) else [sources])
        if isinstance(source, str) and source != target
    }
    found: dict[str, Any] = {"columns": columns} if columns else {}
    return {**found, "roles": roles} if roles else found


def _template(config: Reading, rows: Reading, tokens: dict[str, Any]) -> None:
    """Take over the chat template: the dataset's, else that of the whole file."""
    where = rows if "chat_template" in rows or "chat_template_jinja" in rows else config
    name, text = where.text("chat_template"), where.text("chat_template_jinja")
    if text is not None and name in (None, "jinja"):
        is_file = str(text).endswith((".jinja", ".jinja2", ".j2"))
        _set(rows, tokens, "chat_template_file" if is_file else "chat_template_jinja", text)
    elif name in TEMPLATES:
        _set(rows, tokens, "chat_template", TEMPLATES[name])
    elif name in _ALIKE:
        _set(rows, tokens, "chat_template", _ALIKE[name])
        where.note(
            "chat_template",
            f"`{_ALIKE[name]}` writes the same, but for system messages "
            f"or the beginning of an answer; {_LOOK}",
        )
    elif name not in (None, "tokenizer_default"):
        where.note(
            "chat_template",
            f"ftbuild has no template that is known to write what `{name}` does; the model's own "
            f"is used; {_LOOK}",
        )
    _set(rows, tokens, "default_system_message", config.take("default_system_message"))


def _pairs(
    config: Reading, rows: Reading, method: str, kind: Any, tokens: dict[str, Any]
) -> dict[str, Any]:
    """Pairs of answers, or answers with a label."""
    form = "unpaired" if method == "kto" else "preference"
    if isinstance(kind, dict):
        return _own_pairs(config, rows, kind, form, tokens)
    template, _, name = str(kind or "chat_template.default").partition(".")
    if template == "bradley_terry":
        template, _, name = name.partition(".")
    if template in ("chatml", "llama3"):
        _set(rows, tokens, "chat_template", template)
        columns = {"prompt": _PAIRS[name]} if name in _PAIRS and _PAIRS[name] != "prompt" else {}
        if name in _CHATS or name in _PAIRS:
            rows.note("type", f"the template `{template}` writes prompt and answers; {_LOOK}")
            return {"format": form, **({"columns": columns} if columns else {})}
    elif template == "chat_template" and form == "preference":
        _template(config, rows, tokens)
        columns = {
            column: given
            for column in ("messages", "chosen", "rejected")
            if (given := rows.take(f"field_{column}", column)) != column
        }
        return {"format": form, **({"columns": columns} if columns else {})}
    raise rows.problem(
        "type",
        f"rows of the type `{kind}` cannot be imported",
        f"write the targets by hand: `ftbuild rules dataset` tells what `{form}` is",
    )


def _own_pairs(
    config: Reading, rows: Reading, kind: dict[str, Any], form: str, tokens: dict[str, Any]
) -> dict[str, Any]:
    own = Reading(kind, (*rows.key, "type"), rows.notes)
    fields = ("prompt", "chosen", "rejected", "system", "completion", "label")
    columns = {name: given for name in fields if (given := own.take(f"field_{name}", name)) != name}
    own.finish()
    _template(config, rows, tokens)
    rows.note("type", f"prompt and answers go through the chat template; {_LOOK}")
    return {"format": form, **({"columns": columns} if columns else {})}
