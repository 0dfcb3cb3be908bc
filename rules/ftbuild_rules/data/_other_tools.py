"""What Axolotl and LLaMA-Factory call the attributes of `dataset`, for error messages."""

DATASET_NAMES = {
    "path": "source",
    "data_files": "source",
    "file_name": "source",
    "script_url": "source",
    "formatting": "format",
    "field_messages": "columns.messages",
    "message_field_role": "columns.role",
    "message_field_content": "columns.content",
    "message_property_mappings": "columns",
}
"""Their name -> ours."""

_FORMATS = (
    "write `format = …`: `openai` for messages (their `chat_template`), `sharegpt`, `alpaca`, "
    "`completion`; `ftbuild rules dataset` lists all"
)
_HUB = "it is part of the address: `{}`"

DATASET_REMEDIES = {
    "type": _FORMATS,
    "hf_hub_url": _HUB.format('source = "hf:datasets/ORG/NAME"'),
    "ds_type": "there is nothing to set: the name of a file says what it is",
    "ranking": 'write `format = "preference"`',
    "num_samples": "make a `mix` target of it, with a cap",
    "shuffle": "there is nothing to set: training shuffles by its `seed`",
}
"""Their name -> what to write where there is no one attribute for it."""
