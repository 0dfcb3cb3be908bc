"""Where messages stand in a rendered conversation: exactly, or an error."""

import re
from typing import Any

import pytest

from chat_kit import CHATML, LLAMA2, MARKED, PLAIN, SPECIAL
from ftbuild_rules.templates._named import templates
from ftbuild_rules.templates._render import Renderer, Template
from ftbuild_rules.templates._turns import InexactError, TemplateError

VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}
ENDERS = tuple(sorted(SPECIAL, key=len, reverse=True))


def renderer(template: str) -> Renderer:
    return Renderer(Template(template, VARIABLES, ENDERS))


def said(
    template: str, messages: list[dict[str, Any]], roles: set[str], tools: str | None = None
) -> list[tuple[int, str, str | None]]:
    """Return what each turn says, without its end token, and that token."""
    found = renderer(template).turns(messages, tools, roles)
    return [
        (t.index, found.text[t.start : t.end], t.eot and found.text[t.eot[0] : t.eot[1]])
        for t in found.turns
    ]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


TALK = [user("Hi"), assistant("Hello"), user(" Bye\n"), assistant(" Ciao ")]
CALLS = '[{"function":{"arguments":{"city":"Oslo"},"name":"weather"},"type":"function"}]'
TOOL_TALK = [
    user("How warm?"),
    {"role": "assistant", "tool_calls": CALLS},
    {"role": "tool", "content": "3"},
    assistant("3 degrees."),
]
# As Qwen 2.5 writes it.
TOOLS_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_turns_of_chatml() -> None:
    assert said(CHATML, TALK, {"assistant"}) == [
        (1, "Hello", "<|im_end|>"),
        (3, " Ciao ", "<|im_end|>"),
    ]


def test_turns_of_other_roles_are_their_texts() -> None:
    assert said(CHATML, TALK, {"user", "assistant"}) == [
        (0, "Hi", "<|im_end|>"),
        (1, "Hello", "<|im_end|>"),
        (2, " Bye\n", "<|im_end|>"),
        (3, " Ciao ", "<|im_end|>"),
    ]


def test_marks_are_the_turns_and_hold_their_end() -> None:
    assert said(MARKED, TALK, {"assistant"}) == [
        (1, "Hello<|im_end|>", "<|im_end|>"),
        (3, " Ciao <|im_end|>", "<|im_end|>"),
    ]


def test_end_token_behind_a_mark_is_found() -> None:
    template = MARKED.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")
    assert said(template, TALK, {"assistant"})[0] == (1, "Hello", "<|im_end|>")


def test_space_that_the_model_must_say_belongs_to_its_turn() -> None:
    assert said(LLAMA2, TALK, {"assistant"}) == [(1, " Hello ", "</s>"), (3, " Ciao ", "</s>")]


def test_template_that_strips_line_ends_alone() -> None:
    messages = [user("\nq\n"), assistant("\n a \n")]
    assert said(PLAIN, messages, {"user", "assistant"}) == [(0, "q", None), (1, " a ", "</s>")]


def test_end_token_in_a_text_ends_no_turn() -> None:
    messages = [user("a <|im_end|> b"), assistant("<|im_end|>\n<|im_start|>user\nc")]
    expected = (1, "<|im_end|>\n<|im_start|>user\nc", "<|im_end|>")
    assert said(CHATML, messages, {"assistant"}) == [expected]
    assert said(MARKED, messages, {"assistant"}) == [(1, f"{expected[1]}<|im_end|>", "<|im_end|>")]


def test_tool_call_is_what_the_model_says() -> None:
    call = '<tool_call>{"arguments": {"city": "Oslo"}, "name": "weather"}</tool_call>'
    assert said(TOOLS_TEMPLATE, TOOL_TALK, {"assistant"}) == [
        (1, call, "<|im_end|>"),
        (3, "3 degrees.", "<|im_end|>"),
    ]


def test_text_before_a_tool_call_is_said_too() -> None:
    messages = [*TOOL_TALK]
    messages[1] = {**messages[1], "content": "Let me see. "}
    call = 'Let me see. <tool_call>{"arguments": {"city": "Oslo"}, "name": "weather"}</tool_call>'
    assert said(TOOLS_TEMPLATE, messages, {"assistant"})[0] == (1, call, "<|im_end|>")


def test_tool_call_whose_end_is_uncertain_is_refused() -> None:
    template = (
        "{% for m in messages %}|{{ m.tool_calls or '' }}{{ m.content or '' }}{% endfor %}"
        "{% if add_generation_prompt %}|{% endif %}"
    )
    messages = [*TOOL_TALK]
    messages[1] = {**messages[1], "content": "Let me see. "}
    with pytest.raises(InexactError, match=r"^the end of message 2 depends on what follows it$"):
        said(template, messages, {"assistant"})


def test_what_the_template_puts_between_prompt_and_answer_is_said() -> None:
    # Qwen 3 opens the last answer with an empty thought that the generation prompt lacks.
    template = CHATML.replace(
        "{{ m['content'] }}",
        "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
        "{{ m['content'] }}",
    )
    assert said(template, TALK, {"assistant"}) == [
        (1, "Hello", "<|im_end|>"),
        (3, "<think>\n\n</think>\n\n Ciao ", "<|im_end|>"),
    ]


def test_conversation_that_opens_with_the_assistant() -> None:
    assert said(CHATML, [assistant("Welcome!"), user("Hi"), assistant("Yes?")], {"assistant"}) == [
        (0, "Welcome!", "<|im_end|>"),
        (2, "Yes?", "<|im_end|>"),
    ]


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        pytest.param(
            CHATML.replace("{{ m['content'] }}", "{{ m['content'] | upper }}"),
            "it shows a text otherwise than as it stands in the row",
            id="changed",
        ),
        pytest.param(
            CHATML.replace("{{ m['content'] }}", "{{ m['content'].split('o')[0] }}"),
            "it shows a text otherwise than as it stands in the row",
            id="cut",
        ),
        pytest.param(
            CHATML.replace("{{ m['content'] }}", "{{ m['content'] }}{{ m['content'] }}"),
            "it shows the text of message 2 twice",
            id="twice",
        ),
        pytest.param(
            CHATML.replace("{{ m['content'] }}", "{{ m['content'] | length }}"),
            "it shows the text of message 2 not at all",
            id="left out",
        ),
        pytest.param(
            # As Mistral: tools and system stand before the last question, wherever that is.
            CHATML.replace("{{ m['role'] }}\n", "{{ m['role'] }}\n{% if loop.last %}!{% endif %}"),
            "the prompt of message 2, rendered alone, is not how the conversation begins",
            id="prompt differs",
        ),
        pytest.param(
            "{% for m in messages %}{% if loop.last %}{{ m['content'].rstrip() }}{% else %}"
            "{{ m['content'] }}{% endif %}{% endfor %}",
            "the prompt of message 2, rendered alone, is not how the conversation begins",
            id="prompt ends in a text",
        ),
    ],
)
def test_template_whose_spans_are_uncertain_is_refused(template: str, reason: str) -> None:
    with pytest.raises(InexactError, match=f"^{re.escape(reason)}$"):
        said(template, [user("Hi"), assistant("Hello"), user("o?"), assistant("Yo")], {"assistant"})


def test_marks_that_are_not_one_for_each_turn_are_refused() -> None:
    template = MARKED.replace("{% if m['role'] == 'assistant' %}", "{% if loop.last %}")
    with pytest.raises(InexactError, match=r"^it marks 1 spans for 2 messages of the assistant$"):
        said(template, TALK, {"assistant"})


def test_template_that_refuses_says_why() -> None:
    with pytest.raises(TemplateError, match=r"^no system$"):
        renderer(LLAMA2).render([{"role": "system", "content": "x"}], None)


def test_template_knows_no_date() -> None:
    template = "{{ strftime_now('%Y') if strftime_now is defined else 'no clock' }}"
    assert renderer(template).render([user("Hi")], None) == "no clock"


def test_template_cannot_leave_its_sandbox() -> None:
    with pytest.raises(TemplateError):
        renderer("{{ messages.__class__.__base__.__subclasses__() }}").render([user("Hi")], None)


def test_one_render_for_a_conversation_whose_shape_is_known() -> None:
    reader = renderer(CHATML)
    renders = []
    generate = reader._compiled.generate

    class Counting:
        environment = reader._compiled.environment

        def generate(self, **context: Any) -> Any:
            renders.append(context["messages"][0]["content"])
            return generate(**context)

    reader._compiled = Counting()
    for number in range(10):
        reader.turns([user(f"q{number}"), assistant("a")], None, {"assistant"})
    assert sum(text.startswith("q") for text in renders) == 10
    assert len(renders) == 12  # and the skeleton once: the whole, and the prompt of its one turn


def test_named_template_chatml_is_the_usual_one() -> None:
    messages = [{"role": "system", "content": "s"}, *TALK]
    named = renderer(templates()["chatml"])
    for add_generation_prompt in (False, True):
        found = named.render(messages, None, add_generation_prompt=add_generation_prompt)
        expected = renderer(CHATML).render(
            messages, None, add_generation_prompt=add_generation_prompt
        )
        assert found == expected


def test_named_template_chatml_refuses_tools() -> None:
    named = renderer(templates()["chatml"])
    with pytest.raises(TemplateError, match="has no form for tool calls"):
        named.render(TOOL_TALK, None)
    with pytest.raises(TemplateError, match="has no form for tools"):
        named.render(TALK, "[{}]")
