"""Every named template: exactly the published text, and exactly what the assistant says.

The expected texts are put together by `template_forms`, which knows no Jinja, and for the families
whose published template TRL brings with it, by Transformers from that template.
"""

from functools import cache
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_kit import SPECIAL, make_tokenizer
from ftbuild_rules.templates._named import templates
from ftbuild_rules.templates._render import Renderer
from ftbuild_rules.templates._turns import TemplateError
from ftbuild_rules.tokens._encoder import Encoder, load_encoder
from ftbuild_rules.tokens._masks import MaskPolicy, label_turns
from template_forms import ALSO, FORMS, MORE_SPECIAL, conversation, says, written


@cache
def tools_of(name: str) -> tuple[Any, Encoder, Renderer]:
    with TemporaryDirectory() as directory:
        tokenizer = make_tokenizer(Path(directory), templates()[name], more_special=MORE_SPECIAL)
        encoder = load_encoder(Path(directory), "model")
    return tokenizer, encoder, Renderer(encoder.template(templates()[name]))


def text_of(ids: list[int]) -> str:
    names = [*SPECIAL, *MORE_SPECIAL]
    return b"".join(bytes([i]) if i < 256 else names[i - 256].encode() for i in ids).decode()


pieces = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
    st.sampled_from(
        [*SPECIAL, "<|eot_id|>", "\n", " ", "\u2003", "### Response:\n", "USER: ", "é🌍"]
    ),
)
contents = st.lists(pieces, min_size=1, max_size=4).map("".join).filter(str.strip)
answers = contents.filter(lambda text: "</think>" not in text)
conversations = st.lists(st.tuples(contents, answers), min_size=1, max_size=4)


def test_every_named_template_has_a_form_here() -> None:
    assert sorted(templates()) == sorted([*FORMS, *ALSO])
    assert all(templates()[name] == templates()[other] for name, other in ALSO.items())


@pytest.mark.parametrize("name", list(FORMS))
@settings(max_examples=60, deadline=None)
@given(pairs=conversations, system=st.none() | contents)
def test_trained_tokens_are_what_the_assistant_says(
    name: str, pairs: list[tuple[str, str]], system: str | None
) -> None:
    tokenizer, encoder, renderer = tools_of(name)
    if FORMS[name].system is None:
        system = None
    messages = conversation(system, pairs)
    policy = MaskPolicy(("assistant",), "turn", False)
    found = renderer.turns(messages, None, policy.roles(messages))
    ((ids, offsets),) = encoder.encode_with_offsets([found.text])
    labelled = label_turns(ids, offsets, found.turns, messages, policy)

    assert found.text == written(name, system, pairs)
    assert found.text == tokenizer.apply_chat_template(messages, tokenize=False)
    assert ids.tolist() == tokenizer.apply_chat_template(messages)["input_ids"]
    assert not labelled.lacks_eot
    assert not labelled.has_split_token
    expected = [
        says(name, answer, is_last=number == len(pairs) - 1)
        for number, (_, answer) in enumerate(pairs)
    ]
    assert [found.text[t.start : t.end] for t in found.turns] == expected
    trained = [label for label in labelled.labels if label != -100]
    assert text_of(trained) == "".join(expected)


@pytest.mark.parametrize("name", list(FORMS))
def test_prompt_is_how_the_conversation_begins(name: str) -> None:
    _, _, renderer = tools_of(name)
    system = None if FORMS[name].system is None else "s"
    messages = conversation(system, [("Hi", "Hello"), ("Bye", "Ciao")])
    found = renderer.turns(messages, None, {"assistant"})
    for turn in found.turns:
        prompt = renderer.render(messages[: turn.index], None, add_generation_prompt=True)
        assert prompt == found.text[: turn.start]


@pytest.mark.parametrize("name", list(FORMS))
def test_marks_and_skeleton_agree(name: str) -> None:
    _, encoder, renderer = tools_of(name)
    system = None if FORMS[name].system is None else "s"
    messages = conversation(system, [(" Hi\n", " Hello "), ("Bye", "Ciao")])
    marks = renderer.turns(messages, None, {"assistant"})
    unmarked = Renderer(
        encoder.template(
            templates()[name].replace("{%- generation %}", "").replace("{%- endgeneration %}", "")
        )
    )
    skeleton = unmarked.turns(messages, None, {"assistant"})
    assert marks.text == skeleton.text
    assert [(t.index, t.start, t.eot) for t in marks.turns] == [
        (t.index, t.start, t.eot) for t in skeleton.turns
    ]


CALLS = '[{"function":{"arguments":{"city":"Oslo"},"name":"weather"},"type":"function"}]'
TOOLS = (
    '[{"function":{"name":"weather","description":"d","parameters":{"type":"object",'
    '"properties":{"city":{"type":"string"}}}},"type":"function"}]'
)
TOOL_TALK = [
    {"role": "user", "content": "How warm?"},
    {"role": "assistant", "tool_calls": CALLS},
    {"role": "tool", "content": "3"},
    {"role": "assistant", "content": "3 degrees."},
]
TALK = conversation(None, [(" Hi\n", "\n Hello "), ("Bye", "Ciao")])
SYSTEM = {"role": "system", "content": " s "}
GRANITE_CALL = '{"arguments": {"city": "Oslo"}, "name": "weather"}'
CALL = '{"name": "weather", "arguments": {"city": "Oslo"}}'


def published(name: str) -> Renderer:
    _, encoder, _ = tools_of("plain")
    text = (files("trl") / "chat_templates" / f"{name}.jinja").read_text("utf-8")
    return Renderer(encoder.template(text))


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("llama3", "llama3"), ("llama3.1", "llama3_1"), ("phi3", "phi3"), ("phi3.5", "phi3_5"),
        ("qwen2.5", "qwen2_5"), ("qwen3", "qwen3"), ("gemma", "gemma"), ("gemma3", "gemma3"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("add_generation_prompt", [False, True])
def test_named_is_published(name: str, theirs: str, add_generation_prompt: bool) -> None:
    if name not in FORMS:
        name = ALSO[name]
    _, _, ours = tools_of(name)
    talks: list[tuple[Any, str | None]]
    talks = [(TALK, None)] if name == "gemma" else [(TALK, None), ([SYSTEM, *TALK], None)]
    if name in ("llama3.1", "qwen2.5", "qwen3"):
        talks += [(TOOL_TALK, TOOLS), ([SYSTEM, *TOOL_TALK], TOOLS), (TOOL_TALK, None)]
        talks += [(TOOL_TALK[:3], TOOLS), ([*TOOL_TALK, *TALK], TOOLS)]
    if name in ("qwen2.5", "qwen3"):
        double = [*TOOL_TALK[:3], TOOL_TALK[2], {**TOOL_TALK[1], "content": "One moment."}]
        talks += [(double, TOOLS)]
    for messages, tools in talks:
        given = dict(add_generation_prompt=add_generation_prompt)
        assert ours.render(messages, tools, **given) == published(theirs).render(
            messages, tools, **given
        )


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("qwen2.5", f"<tool_call>\n{CALL}\n</tool_call><|im_end|>"),
        ("qwen3", f"<tool_call>\n{CALL}\n</tool_call><|im_end|>"),
        ("llama3.1", '{"name": "weather", "parameters": {"city": "Oslo"}}<|eot_id|>'),
        ("granite", f"<|tool_call|>[{GRANITE_CALL}]<|end_of_text|>"),
    ],
)  # fmt: skip
def test_tool_call_is_what_the_assistant_says(name: str, call: str) -> None:
    _, _, renderer = tools_of(name)
    found = renderer.turns(TOOL_TALK, TOOLS, {"assistant"})
    last = says(name, "3 degrees.", is_last=True)
    assert [found.text[t.start : t.end] for t in found.turns] == [call, last]


WITH_TOOLS = ("granite", "llama3.1", "qwen2.5", "qwen3")


@pytest.mark.parametrize("name", [name for name in FORMS if name not in WITH_TOOLS])
def test_template_without_a_form_for_tools_refuses_them(name: str) -> None:
    _, _, renderer = tools_of(name)
    with pytest.raises(TemplateError, match=f"^the template `{name}` has no form for tools$"):
        renderer.render(TALK, TOOLS)
    with pytest.raises(TemplateError, match=f"^the template `{name}` has no form for tool calls$"):
        renderer.render(TOOL_TALK, None)


def test_gemma_refuses_a_system_message() -> None:
    _, _, renderer = tools_of("gemma")
    with pytest.raises(TemplateError, match=r"^the template `gemma` has no form for the role `sy"):
        renderer.render([SYSTEM, *TALK], None)
