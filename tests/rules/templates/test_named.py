"""Every named template: exactly the published text, and exactly what the assistant says.

The expected texts are put together by `written`, which knows no Jinja, and for the families
whose published template TRL brings with it, by Transformers from that template.
"""

from collections.abc import Sequence
from dataclasses import dataclass
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

MORE_SPECIAL = [
    "<|im_sep|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|end|>", "<|user|>",
    "<|system|>", "<|assistant|>", "<end_of_turn>", "<start_of_turn>",
    "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>", "<\uff5cend▁of▁sentence\uff5c>",
    "<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>",
    "<|end_of_turn|>", "<|END_OF_TURN_TOKEN|>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]",
]  # fmt: skip
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately "
    "completes the request.\n\n"
)
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
QWEN = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"


@dataclass(frozen=True)
class Form:
    """How a family writes a conversation; `{}` is the place of the text."""

    user: str
    prompt: str
    """Opens an answer."""
    says: str
    after: str = ""
    """Follows an answer, if another message comes."""
    end: str | None = None
    """Follows the last answer; None: as the others."""
    system: str | None = None
    """None: the family has no system message."""
    folds: bool = False
    """The system message stands within the first question."""
    no_system: str = ""
    """In the place of a system message that is not given."""
    bos: str = ""
    trims: bool = False


def turns(head: str, tail: str, **settings: Any) -> Form:
    """Return the form of a family in which all turns look alike; `{role}` is the role."""
    user, system, prompt = (head.format(role=r) for r in ("user", "system", "assistant"))
    return Form(
        user=f"{user}{{}}{tail}",
        prompt=settings.pop("prompt", prompt),
        system=settings.pop("system", f"{system}{{}}{tail}"),
        says=settings.pop("says", f"{{}}{tail.rstrip()}"),
        after=tail[len(tail.rstrip()) :],
        **settings,
    )


def mistral(space: str) -> Form:
    return Form(
        user=f"[INST]{space}{{}}[/INST]",
        prompt="",
        says=f"{space}{{}}</s>",
        system=f"[SYSTEM_PROMPT]{space}{{}}[/SYSTEM_PROMPT]",
        bos="<s>",
    )


def folded(user: str, says: str, *, trims: bool = False) -> Form:
    return Form(user, "", says, system="{}\n\n", folds=True, bos="<s>", trims=trims)


HEADER = "<|start_header_id|>{role}<|end_header_id|>\n\n"
FORMS = {
    "alpaca": Form(
        "### Instruction:\n{}\n\n", "### Response:\n", "{}</s>", "\n\n", "",
        system="{}\n\n", no_system=ALPACA, bos="<s>",
    ),
    "chatml": turns("<|im_start|>{role}\n", "<|im_end|>\n"),
    "command-r": Form(
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{}<|END_OF_TURN_TOKEN|>",
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        "{}<|END_OF_TURN_TOKEN|>",
        system="<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{}<|END_OF_TURN_TOKEN|>",
        bos="<s>", trims=True,
    ),
    "deepseek-v2": Form(
        "User: {}\n\n", "Assistant:", " {}</s>", system="{}\n\n", bos="<s>"
    ),
    "deepseek-v3": Form(
        "<\uff5cUser\uff5c>{}", "<\uff5cAssistant\uff5c>", "{}<\uff5cend▁of▁sentence\uff5c>",
        system="{}", bos="<s>",
    ),
    "falcon": Form(
        "\n\nUser: {}", "\n\nAssistant:", " {}</s>", system="{}", trims=True
    ),
    "falcon3": Form(
        "<|user|>\n{}\n", "<|assistant|>\n", "{}</s>", "\n", "", system="<|system|>\n{}\n"
    ),
    "gemma": Form(
        "<start_of_turn>user\n{}<end_of_turn>\n", "<start_of_turn>model\n", "{}<end_of_turn>",
        "\n", bos="<s>", trims=True,
    ),
    "gemma3": Form(
        "<start_of_turn>user\n{}<end_of_turn>\n", "<start_of_turn>model\n", "{}<end_of_turn>",
        "\n", system="{}\n\n", folds=True, bos="<s>", trims=True,
    ),
    "granite": turns("<|start_of_role|>{role}<|end_of_role|>", "<|end_of_text|>\n"),
    "llama2": folded("<s>[INST] {} [/INST]", " {} </s>", trims=True),
    "llama3": turns(HEADER, "<|eot_id|>", bos="<s>", trims=True),
    "llama3.1": turns(
        HEADER, "<|eot_id|>", bos="<s>", trims=True,
        system=HEADER.format(role="system") + DATES + "{}<|eot_id|>",
        no_system=HEADER.format(role="system") + DATES + "<|eot_id|>",
    ),
    "mistral-v1": folded(" [INST] {} [/INST]", " {}</s>"),
    "mistral-v3": folded("[INST] {}[/INST]", " {}</s>"),
    "mistral-v3-tekken": folded("[INST]{}[/INST]", "{}</s>"),
    "mistral-v7": mistral(" "),
    "mistral-v7-tekken": mistral(""),
    "openchat": Form(
        "GPT4 Correct User: {}<|end_of_turn|>", "GPT4 Correct Assistant:", " {}<|end_of_turn|>",
        system="GPT4 Correct System: {}<|end_of_turn|>", bos="<s>",
    ),
    "phi3": turns("<|{role}|>\n", "<|end|>\n", end="\n</s>"),
    "phi4": turns("<|im_start|>{role}<|im_sep|>", "<|im_end|>"),
    "plain": Form("{}", "", "{}</s>", system="{}"),
    "qwen2.5": turns(
        "<|im_start|>{role}\n", "<|im_end|>\n", no_system=f"{QWEN}<|im_end|>\n"
    ),
    "qwen3": turns("<|im_start|>{role}\n", "<|im_end|>\n"),
    "vicuna": Form(
        "USER: {} ", "ASSISTANT:", " {}</s>", system="{} ", no_system=VICUNA, bos="<s>"
    ),
    "zephyr": turns("<|{role}|>\n", "</s>\n"),
}  # fmt: skip
ALSO = {
    "deepseek": "deepseek-v3", "gemma2": "gemma", "gpt-j": "plain", "llama3.2": "llama3.1",
    "llama3.3": "llama3.1", "mixtral": "mistral-v1", "phi3.5": "phi3", "pythia": "plain",
}  # fmt: skip
# Whose system message or question keeps white space that the rest of the family trims.
UNTRIMMED_SYSTEM = ("command-r", "gemma3")
NO_THOUGHT = "<think>\n\n</think>\n\n"


def says(name: str, text: str, *, is_last: bool) -> str:
    """Return what the assistant says, its end token included."""
    form = FORMS[name]
    text = text.strip() if form.trims or name == "mistral-v3" else text
    if name == "qwen3" and is_last:
        text = NO_THOUGHT + text.lstrip("\n")
    return form.says.replace("{}", text)


def written(name: str, system: str | None, pairs: Sequence[tuple[str, str]]) -> str:
    """Return a whole conversation as the family writes it."""
    form = FORMS[name]
    head = form.no_system
    if system is not None:
        assert form.system is not None
        trims = form.trims and name not in (*UNTRIMMED_SYSTEM, "llama2")
        head = form.system.replace("{}", system.strip() if trims else system)
    if name == "llama2" and system is not None:
        head = f"<<SYS>>\n{system}\n<</SYS>>\n\n"
    text = form.bos if name != "llama2" else ""
    text += "" if form.folds else head
    for number, (question, answer) in enumerate(pairs):
        if form.trims and not (name == "llama2" and number == 0 and head):
            question = question.strip()
        if form.folds and number == 0:
            question = head + question
            question = question.strip() if name == "llama2" else question
        is_last = number == len(pairs) - 1
        text += form.user.replace("{}", question) + form.prompt
        text += says(name, answer, is_last=is_last)
        text += form.after if form.end is None or not is_last else form.end
    return text


def conversation(system: str | None, pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    messages = [] if system is None else [{"role": "system", "content": system}]
    for pair in pairs:
        messages += [
            {"role": role, "content": content}
            for role, content in zip(("user", "assistant"), pair, strict=True)
        ]
    return messages


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
    assert ids == tokenizer.apply_chat_template(messages)["input_ids"]
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
