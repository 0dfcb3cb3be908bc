"""A template that never ends, fills the memory or leaves its sandbox does no harm."""

import os
import time

import pytest

from chat_kit import CHATML
from ftbuild_rules.templates._limits import Call, LimitedRenderer, LimitError
from ftbuild_rules.templates._render import MAX_CHARACTERS, Template
from ftbuild_rules.templates._turns import BrokenTemplateError, Rendered, TemplateError

VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}


def limited(text: str) -> LimitedRenderer:
    return LimitedRenderer(Template(text, VARIABLES, ("<|im_end|>", "</s>")))


def call(content: str = "Hi", *, wants_turns: bool = False) -> Call:
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "a"}]
    return Call(messages, None, frozenset({"assistant"}) if wants_turns else None)


def ask(text: str, *contents: str) -> list[str]:
    """Return the text of each conversation, or why it has none."""
    renderer = limited(text)
    try:
        found = renderer.run([call(content) for content in contents or ("Hi",)])
    finally:
        renderer.close()
    return [one.text if isinstance(one, Rendered) else str(one) for one in found]


def test_text_and_turns_come_from_the_child() -> None:
    renderer = limited(CHATML)
    (found,) = renderer.run([call(wants_turns=True)])
    renderer.close()
    assert isinstance(found, Rendered)
    assert found.text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
    (turn,) = found.turns
    assert found.text[turn.start : turn.end] == "a"
    assert turn.eot is not None
    assert found.text[slice(*turn.eot)] == "<|im_end|>"


@pytest.mark.fault("48", "a template that never ends")
@pytest.mark.parametrize(
    "bomb",
    [
        "{{ 9 ** (9 ** (messages | length + 7)) }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
        "{% endfor %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
        "{{ f(40) }}",
    ],
    ids=["power", "loops", "macro"],
)
def test_template_that_never_ends_is_ended(bomb: str) -> None:
    renderer = limited("{% if messages[0].content == 'bomb' %}" + bomb + "{% endif %}x")
    start = time.monotonic()
    with pytest.raises(LimitError, match=r"^it runs for more than 2 s$") as caught:
        renderer.run([call(), call("bomb"), call()])
    assert time.monotonic() - start < 5 * max(1, os.getloadavg()[0])
    assert caught.value.place == 1
    # Another child takes the next batch.
    assert [one.text for one in renderer.run([call()]) if isinstance(one, Rendered)] == ["x"]
    renderer.close()


@pytest.mark.fault("48", "a template that never ends")
def test_bomb_that_goes_off_while_it_compiles() -> None:
    renderer = limited("{{ 9 ** (9 ** 9) }}")
    with pytest.raises(LimitError, match=r"^it runs for more than 2 s$") as caught:
        renderer.run([call()])
    assert caught.value.place == -1


@pytest.mark.fault("48", "a template that grows without end")
@pytest.mark.parametrize(
    ("bomb", "why"),
    [
        ("\n{{ 'a' * (messages | length * 10 ** 9) }}", "line 2: it needs too much memory"),
        (
            "{% set ns = namespace(t='aaaaaaaa') %}{% for i in range(40) %}"
            "{% set ns.t = ns.t + ns.t %}{% endfor %}{{ ns.t }}",
            "line 1: it needs too much memory",
        ),
        (
            "{% for i in range(99999) %}{{ messages[0].content }}{% endfor %}",
            f"it writes more than {MAX_CHARACTERS:,} characters",
        ),
    ],
    ids=["repeat", "doubling", "output"],
)
def test_template_that_grows_without_end_is_refused(bomb: str, why: str) -> None:
    text = "{% if messages[0].content | length > 9 %}" + bomb + "{% else %}fine{% endif %}"
    assert ask(text, "a" * 1000, "b") == [why, "fine"]


@pytest.mark.fault("48", "a template that reaches for Python")
@pytest.mark.parametrize(
    "escape",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ self._TemplateReference__context }}",
        "{{ ''['__class__'] ~ '' }}",
        "{{ '{0.__class__}'.format(messages) }}",
        "{{ raise_exception.__globals__ }}",
        "{% set messages = messages.append(1) %}",
    ],
)
def test_template_stays_in_its_sandbox(escape: str) -> None:
    renderer = limited(escape)
    try:
        (found,) = renderer.run([call()])
        assert isinstance(found, TemplateError)
        why = str(found)
    except BrokenTemplateError as error:  # of a constant: it is computed while it compiles
        why = str(error)
    renderer.close()
    assert "unsafe" in why or "undefined" in why or "has no attribute" in why


@pytest.mark.fault("48", "a template that reads a file")
@pytest.mark.parametrize("tag", ["{% include '/etc/passwd' %}", "{% import 'os' as os %}"])
def test_template_reads_no_file(tag: str) -> None:
    assert ask(tag) == ["line 1: no loader for this environment specified"]


def test_undefined_variable_is_an_error_with_its_line() -> None:
    assert ask("a\n{{ bos_tokn }}\nb") == ["line 2: 'bos_tokn' is undefined"]
    assert ask("{% if x is defined or x or y == 1 %}a{% else %}b{% endif %}") == ["b"]
    assert ask("{{ messages[0].name }}") == ["line 1: 'dict object' has no attribute 'name'"]


def test_refusal_of_the_template_stands_as_it_is() -> None:
    assert ask("\n{{ raise_exception('Roles must alternate') }}") == ["Roles must alternate"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a\n{% if %}", "line 2: Expected an expression, got 'end of statement block'"),
        ("{{ x", "line 1: unexpected end of template, expected 'end of print statement'."),
        ("{% nonsense %}", "line 1: Encountered unknown tag 'nonsense'."),
    ],
)
def test_template_that_is_no_jinja(text: str, why: str) -> None:
    with pytest.raises(BrokenTemplateError) as caught:
        limited(text).run([call()])
    assert str(caught.value) == why


def test_forked_process_has_a_child_of_its_own() -> None:
    renderer = limited("{{ messages[0].content }}")
    renderer.run([call()])
    pid = os.fork()
    if pid == 0:
        found = renderer.run([call("there")])
        os._exit(0 if isinstance(found[0], Rendered) and found[0].text == "there" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    (again,) = renderer.run([call("here")])
    assert isinstance(again, Rendered)
    assert again.text == "here"
    renderer.close()
