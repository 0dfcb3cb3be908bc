"""Templates render here as Transformers renders them, without Transformers."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from ftbuild_rules.templates._render import Renderer, Template
from ftbuild_rules.templates._turns import BrokenTemplateError, TemplateError

TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "<b>Grüße</b> & \u2028 'x' \U0001f600", "name": "Ada"},
    {"role": "assistant", "content": "Hello!", "reasoning_content": "A greeting."},
    {"role": "user", "content": "Sum?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"type": "function", "function": {"name": "add", "arguments": {"b": 2, "a": "ü"}}}
        ],
    },
    {"role": "tool", "content": "3", "tool_call_id": "1"},
]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"z": 1, "a": [1, 2]}}}]
OURS = [{**m, "tool_calls": json.dumps(m["tool_calls"])} if "tool_calls" in m else m for m in TALK]

TEMPLATES = {
    "messages as JSON": "{% for m in messages %}{{ m | tojson }}\n{% endfor %}",
    "tools as JSON": "{{ tools | tojson(indent=2) }}{{ tools | tojson(ensure_ascii=True) }}",
    "separators": "{{ tools | tojson(separators=(',', ':'), sort_keys=True) }}",
    "blocks are trimmed": "  {% if true %}  \n a  \n   {% endif %} \n b\n",
    "break": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}x{% endfor %}",
    "continue": "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}y{% endfor %}",
    "namespace": "{% set ns = namespace(n=0, self=1) %}{% for m in messages %}"
    "{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}{{ ns.self }}",
    "dict": "{{ dict(a=1) | tojson }}{{ dict.fromkeys(['k']) | tojson }}",
    "marks": "{% for m in messages %}{% generation %}[{{ m.content }}]{% endgeneration %}"
    "{% endfor %}",
    "thinking": "{% for m in messages %}{{ m.thinking if m.thinking is defined }}{% endfor %}",
    "reasoning": "{% for m in messages %}{{ m.reasoning_content if 'reasoning_content' in m }}"
    "{% endfor %}",
    "special tokens": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}",
    "macro": "{% macro f(x, y=1) %}({{ x }}{{ y }}){% endmacro %}{{ f('a') }}{{ f('b', y=2) }}",
    "filters": "{{ messages | map(attribute='role') | unique | join(',') | upper | trim }}",
    "prompt": "{{ 'ask' if add_generation_prompt else 'whole' }}{{ documents is none }}",
}
VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}


def renderer(text: str) -> Renderer:
    return Renderer(Template(text, VARIABLES, ()))


@pytest.mark.parametrize("add_generation_prompt", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_template_renders_as_by_transformers(name: str, add_generation_prompt: bool) -> None:
    [theirs], _ = render_jinja_template(
        [TALK],
        tools=TOOLS,
        chat_template=TEMPLATES[name],
        add_generation_prompt=add_generation_prompt,
        **VARIABLES,
    )
    ours = renderer(TEMPLATES[name]).render(
        OURS, json.dumps(TOOLS), add_generation_prompt=add_generation_prompt
    )
    assert ours == theirs
    assert ours != ""


@pytest.mark.parametrize(
    "text",
    [
        "{{ raise_exception('no tools') }}",
        "{% set ns = namespace() %}{% set ns._x = 1 %}",
        "{{ namespace(_x=1) }}",
        "{{ dict.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% include 'x' %}",
    ],
)
def test_what_transformers_refuses_is_refused(text: str) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011  # whatever it is there
        render_jinja_template([TALK], chat_template=text, **VARIABLES)
    with pytest.raises((TemplateError, BrokenTemplateError)):
        renderer(text).render(OURS, None)


def test_rendering_does_not_import_transformers() -> None:
    script = (
        "import sys\n"
        "from ftbuild_rules.templates._limits import Call, LimitedRenderer\n"
        "from ftbuild_rules.templates._render import Template\n"
        "renderer = LimitedRenderer(Template('{{ messages[0].content }}', {}, ()))\n"
        "call = Call([{'role': 'user', 'content': 'Hi'}], None, None)\n"
        "assert renderer.run([call])[0].text == 'Hi'\n"
        "renderer.close()\n"
        "print([name for name in ('transformers', 'torch', 'numpy') if name in sys.modules])\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
