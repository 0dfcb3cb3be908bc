"""The datasets that LLaMA-Factory's `dataset_info.json` describes -> `dataset`, `mix`, `split`.

Source: https://github.com/hiyouga/LLaMA-Factory at ff6d4d12e, `data/parser.py` and
`data/converter.py`. Where an entry has `columns`, those that it does not name do not exist.
"""

import json
from typing import Any

from ftbuild_rules.importers._chain import Chain, hub_dataset
from ftbuild_rules.importers._reading import Reading

_COLUMNS = {
    "alpaca": {"prompt": "instruction", "query": "input", "response": "output"},
    "sharegpt": {"messages": "conversations"},
    "openai": {"messages": "conversations"},
}
"""The columns that an entry without `columns` has."""
_TAGS = {
    "user_tag": ("human", "user"),
    "assistant_tag": ("gpt", "assistant"),
    "observation_tag": ("observation", "tool"),
    "function_tag": ("function_call", "function_call"),
    "system_tag": ("system", "system"),
}
"""What a role is called there, and here."""
_MEDIA = ("images", "videos", "audios")
_MIXED = ("concat",)


def read_rows(config: Reading, chain: Chain, method: str) -> tuple[str, str | None]:
    """Add the datasets; return the target of the rows to train on, and of those to evaluate on.

    Raises:
        ImportProblem: a dataset is not described, or is of a kind that is not known here.
    """
    names = config.names("dataset")
    if not names:
        raise config.problem("dataset", "`dataset` is empty", "name the rows to train on")
    info = _info(config, chain)
    rows = chain.rows(_all(config, "dataset", names, info, chain, method), key="dataset")
    strategy = config.take("mix_strategy", "concat")
    if len(names) > 1 and strategy not in _MIXED:
        config.note("mix_strategy", "all rows of all datasets are taken; `mix` has `weights`")
    tests = config.names("eval_dataset")
    if tests:
        found = _all(config, "eval_dataset", tests, info, chain, method)
        return rows, chain.rows(found, "eval_rows", "eval_dataset")
    return chain.set_aside(config, "val_size", rows)


def _info(config: Reading, chain: Chain) -> dict[str, Any]:
    folder = str(config.take("dataset_dir", "data"))
    path = chain.folder / folder / "dataset_info.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise config.problem(
            "dataset_dir" if "dataset_dir" in config else "dataset",
            f"`{folder}/dataset_info.json` cannot be read: {_why(error)}",
            "set `dataset_dir` to the folder that holds it, as seen from here",
        ) from error
    return found if isinstance(found, dict) else {}


def _why(error: Exception) -> str:
    return (error.strerror or "").lower() if isinstance(error, OSError) else str(error)


def _all(
    config: Reading, key: str, names: list[str], info: dict[str, Any], chain: Chain, method: str
) -> list[dict[str, Any]]:
    found = []
    for name in names:
        if not isinstance(info.get(name), dict):
            raise config.problem(
                key,
                f"`dataset_info.json` has no dataset `{name}`",
                f"it has {', '.join(f'`{each}`' for each in info) or 'none'}",
            )
        entry = Reading(info[name], (key, name), config.notes)
        found.append(_dataset(config, key, entry, chain, method))
        entry.finish()
    limit = config.number("max_samples")
    if limit is not None:
        config.note(
            "max_samples",
            f"the first {limit} rows of each; here all are taken: `mix` has "
            "`max_rows`, which takes random ones",
        )
    return found


def _dataset(
    config: Reading, key: str, entry: Reading, chain: Chain, method: str
) -> dict[str, Any]:
    columns = entry.table("columns")
    form = str(entry.take("formatting", "alpaca"))
    if form not in _COLUMNS:
        raise config.problem(
            key,
            f"the formatting `{form}` of `{entry.key[-1]}` cannot be imported",
            "`alpaca`, `sharegpt` and `openai` can",
        )
    usual = _COLUMNS[form]
    names = {each: columns.take(each) for each in columns.values} if columns.values else usual
    if any(each in names for each in _MEDIA):
        raise config.problem(
            key, f"`{entry.key[-1]}` holds images, video or sound", "ftbuild trains on text alone"
        )
    source = _source(config, key, entry, chain)
    is_ranked = bool(entry.take("ranking"))
    if method == "pretrain":
        text = names.get("prompt", "instruction")
        return {"source": source, "format": "text", **_named({"text": text})}
    if is_ranked:
        return {"source": source, **_ranked(entry, names, form)}
    if "kto_tag" in names:
        return {"source": source, **_labelled(entry, names, form)}
    if form == "alpaca":
        return {"source": source, **_alpaca(names)}
    return {"source": source, **_conversations(config, key, entry, names, form)}


def _source(config: Reading, key: str, entry: Reading, chain: Chain) -> Any:
    hub = entry.take("hf_hub_url")
    if hub is not None:
        entry.ignore(("ms_hub_url", "om_hub_url", "script_url", "file_name"), "`hf_hub_url` is set")
        if "folder" in entry:
            entry.note("folder", "of a dataset of the hub a config and a split are taken")
        config_name, split = entry.take("subset"), entry.take("split", "train")
        return hub_dataset(str(hub), revision=None, config=config_name, split=split)
    name = entry.take("file_name")
    if name is None:
        raise config.problem(
            key,
            f"`{entry.key[-1]}` has neither `file_name` nor `hf_hub_url`",
            "ftbuild reads local files and the Hugging Face hub: name one of the two",
        )
    entry.ignore(("subset", "split", "folder"), "a local file has none")
    return f"{config.take('dataset_dir', 'data')}/{name}"


def _named(columns: dict[str, str | None]) -> dict[str, Any]:
    """Return `columns` where a column has another name than the format's."""
    found = {key: name for key, name in columns.items() if name is not None and name != key}
    return {"columns": found} if found else {}


def _prompt(names: dict[str, Any]) -> dict[str, Any]:
    """Return a prompt that is made of two columns, the second of which may be empty."""
    prompt, query = names.get("prompt", "instruction"), names.get("query")
    if query is None:
        return {"prompt": f"{{{prompt}}}"}
    return {"prompt": f"{{{prompt}}}\n{{{query}}}", "prompt_no_input": f"{{{prompt}}}"}


def _alpaca(names: dict[str, Any]) -> dict[str, Any]:
    """Instruction, input and output; they join them by a line feed, as ftbuild does."""
    columns = {"output": names.get("response"), "system": names.get("system")}
    found = {"format": "alpaca", **_named({**columns, "history": names.get("history")})}
    if "query" in names:
        both = {"instruction": names.get("prompt"), "input": names["query"]}
        return {"format": "alpaca", **_named({**both, **columns, "history": names.get("history")})}
    return {**found, **_prompt(names)}


def _ranked(entry: Reading, names: dict[str, Any], form: str) -> dict[str, Any]:
    """Pairs of answers."""
    pair = {"chosen": names.get("chosen"), "rejected": names.get("rejected")}
    if form == "alpaca":
        columns = {**pair, "system": names.get("system")}
        return {"format": "preference", **_named(columns), **_prompt(names)}
    columns = {"conversations": names.get("messages"), **pair, "system": names.get("system")}
    return {"format": "preference", **_named(columns), **_roles(entry)}


def _labelled(entry: Reading, names: dict[str, Any], form: str) -> dict[str, Any]:
    """Answers that are wished for or not."""
    label = {"label": names["kto_tag"], "system": names.get("system")}
    if form == "alpaca":
        columns = {"completion": names.get("response"), **label}
        return {"format": "unpaired", **_named(columns), **_prompt(names)}
    return {
        "format": "unpaired",
        **_named({"messages": names.get("messages", "messages"), **label}),
        **_roles(entry),
    }


def _conversations(
    config: Reading, key: str, entry: Reading, names: dict[str, Any], form: str
) -> dict[str, Any]:
    column = "messages" if form == "openai" else "conversations"
    columns = {column: names.get("messages"), "tools": names.get("tools")}
    if form == "sharegpt":
        columns["system"] = names.get("system")
    return {"format": form, **_named(columns), **_roles(entry)}


def _roles(entry: Reading) -> dict[str, Any]:
    """Return `roles`, where an entry has names of its own for them."""
    tags = entry.table("tags")
    style = (tags.take("role_tag", "from"), tags.take("content_tag", "value"))
    if style not in (("from", "value"), ("role", "content")):
        raise tags.problem(
            "role_tag",
            f"messages with `{style[0]}` and `{style[1]}` cannot be imported",
            "ftbuild reads `role` and `content`, or `from` and `value`: rename them in the rows",
        )
    roles = {}
    for tag, (usual, ours) in _TAGS.items():
        given = str(tags.take(tag, usual))
        if given not in (usual, ours):
            roles[given] = ours
    tags.finish()
    return {"roles": roles} if roles else {}
