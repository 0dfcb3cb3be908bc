"""Which chat template a target's rows are rendered with, as text."""

import re
from dataclasses import replace
from typing import Any, Protocol

from ftbuild.api import Place, RuleError, Source
from ftbuild_rules.templates import _named
from ftbuild_rules.templates._defaults import with_defaults
from ftbuild_rules.tokens._encoder import Encoder
from ftbuild_rules.tokens._forms import FORMS


class _Inputs(Protocol):
    @property
    def model(self) -> Any: ...

    @property
    def chat_template_file(self) -> Source | None: ...


class _Params(Protocol):
    @property
    def chat_template(self) -> str | None: ...

    @property
    def chat_template_jinja(self) -> str | None: ...

    @property
    def default_system_message(self) -> str | None: ...

    @property
    def template_variables(self) -> dict[str, Any]: ...


def resolve_template(form: str, encoder: Encoder, inputs: _Inputs, params: _Params) -> str | None:
    """Return the text of the chat template; None for rows that go through none.

    Raises:
        RuleError: there is none, or none of that name, or more than one without a name.
    """
    label = inputs.model.label or "model"
    if not FORMS[form].uses_template:
        if inputs.chat_template_file is not None:
            raise RuleError(
                f"`chat_template_file` has no meaning for a dataset of form `{form}`",
                code="E0830",
                where=Place(inputs.chat_template_file.spec),
                why=FORMS[form].why,
                fix="remove `chat_template_file`",
            )
        if encoder.eos_id is None and form in ("text", "segments"):
            raise RuleError(
                "the tokenizer has no EOS token to end a text with",
                code="E0831",
                where=Place(label),
                fix="set `eos_token` in the model's tokenizer_config.json",
            )
        return None
    text = _own_text(inputs.chat_template_file, params)
    if text is None:
        text = _known_text(encoder, params.chat_template, label)
    return with_defaults(text, params.default_system_message, params.template_variables)


# What is one token wherever a family's own tokenizer is used. Not `[INST]`: some split it.
_TOKEN = re.compile(r"<\|[^|<>\s]+\|>|<\uff5c[^\uff5c<>]+\uff5c>|<(?:start|end)_of_turn>")


def split_tokens(template: str, encoder: Encoder) -> dict[str, int]:
    """Return the special tokens in a template's text that the tokenizer splits, and in how many."""
    found = sorted(set(_TOKEN.findall(template)))
    sizes = {token: len(ids) for token, ids in zip(found, encoder.encode(found), strict=True)}
    return {token: size for token, size in sizes.items() if size > 1}


def with_eot_tokens(encoder: Encoder, tokens: tuple[str, ...], label: str) -> Encoder:
    """Return the encoder with further tokens that may end a turn.

    Raises:
        RuleError: one is no token.
    """
    for token in tokens:
        if encoder.token_id(token) is None:
            raise RuleError(
                f"the tokenizer has no token `{token}`",
                code="E0836",
                where=Place(label),
                why="`eot_tokens` names it",
                fix="name tokens of its vocabulary",
            )
    enders = sorted({*encoder.enders, *tokens}, key=lambda token: (-len(token), token))
    return replace(encoder, enders=tuple(enders))


def _own_text(file: Source | None, params: _Params) -> str | None:
    """Return the template that the target itself gives, None if it gives none."""
    if file is None:
        return params.chat_template_jinja
    for name in ("chat_template", "chat_template_jinja"):
        if getattr(params, name) is not None:
            raise RuleError(
                f"`{name}` and `chat_template_file` are both given",
                code="E0820",
                where=Place(file.spec),
                fix="remove one of them",
            )
    if len(file.files) != 1:
        raise RuleError(
            f"`chat_template_file` should be one file; found {len(file.files)}",
            code="E0820",
            where=Place(file.spec),
            fix="name the file",
        )
    try:
        return file.files[0].path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise RuleError(
            "the chat template is not UTF-8",
            code="E0820",
            where=Place(file.spec),
            why=str(error),
            fix="save it as UTF-8",
        ) from error


def _known_text(encoder: Encoder, name: str | None, label: str) -> str:
    """Return the named template, or the tokenizer's own."""
    own, named = encoder.templates, _named.templates()
    known = ", ".join(f"`{name}`" for name in sorted({*own, *named}))
    if name is None:
        if len(own) == 1:
            return next(iter(own.values()))
        raise RuleError(
            f"the tokenizer has {len(own) or 'no'} chat template{'s' if own else ''}",
            code="E0820",
            where=Place(label),
            fix=f'name one of {known}: `chat_template = "chatml"`',
        )
    found = named.get(name, own.get(name))
    if found is None:
        raise RuleError(
            f"there is no chat template `{name}`",
            code="E0820",
            where=Place(label),
            fix=f"use one of {known}, or leave it out for the tokenizer's own",
        )
    return found
