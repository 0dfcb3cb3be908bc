"""Jinja as chat templates know it: the environment in which Transformers renders them.

Transformers itself would take half a second to be imported for it, more than an edit of a row
takes. That templates render the same here is held by tests that compare the two.

Source: `_cached_compile_jinja_template` in
https://github.com/huggingface/transformers/blob/v5.24.0/src/transformers/utils/chat_template_utils.py
"""

import functools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@functools.cache
def environment() -> Any:
    """Return the sandbox of templates, but that it prints nothing undefined.

    It has `activate_tracker(blocks, marks)`: within it `{% generation %}` notes in `marks` which
    characters it gives, where `blocks` holds the text so far.
    """
    import jinja2
    import jinja2.ext
    import jinja2.sandbox

    class Unprintable(jinja2.Undefined):
        # A template may ask whether something is defined, or is true. Printed, an undefined
        # variable would be nothing at all: a slip of the pen that no one would see.
        __str__ = jinja2.Undefined._fail_with_undefined_error

    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=Unprintable,
        extensions=[_tracker(), jinja2.ext.loopcontrols],
    )
    made.filters["tojson"] = _to_json
    made.globals["raise_exception"] = _raise
    # A template that asks for today's date would give other tokens every day.
    made.globals["strftime_now"] = Unprintable(name="strftime_now")
    made.globals["dict"] = _Dict()
    made.globals["namespace"] = _namespace()
    return made


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own would escape the characters of HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message: str) -> None:
    from jinja2.exceptions import TemplateError

    raise TemplateError(message)


class _Dict:
    """`dict` without its attributes, by which a template could get out of the sandbox."""

    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)

    def fromkeys(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **values)


def _namespace() -> Any:
    from jinja2.exceptions import SecurityError
    from jinja2.utils import Namespace

    def check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace holds no {name!r}: it begins with an underscore")

    class Checked(Namespace):
        def __init__(*args: Any, **values: Any) -> None:  # so that `self` may be a name of its own
            own, *rest = args
            attributes = dict(*rest, **values)
            for name in attributes:
                check(name)
            Namespace.__init__(own, attributes)

        def __setitem__(self, name: str, value: Any) -> None:
            check(name)
            Namespace.__setitem__(self, name, value)

    return Checked


def _tracker() -> Any:
    """Return the extension for the tag `generation`."""
    from jinja2 import pass_eval_context
    from jinja2.ext import Extension
    from jinja2.nodes import CallBlock

    class Tracker(Extension):
        tags = frozenset({"generation"})

        def __init__(self, environment: Any) -> None:
            super().__init__(environment)
            environment.extend(activate_tracker=self._activate)
            self._tracking: tuple[list[str], list[tuple[int, int]]] | None = None

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = CallBlock(self.call_method("_mark"), [], [], body)
            return call.set_lineno(line)

        @pass_eval_context
        def _mark(self, _: Any, caller: Callable[[], str]) -> str:
            text = caller()
            if self._tracking is not None:
                blocks, marks = self._tracking
                start = len("".join(blocks))
                marks.append((start, start + len(text)))
            return text

        @contextmanager
        def _activate(self, blocks: list[str], marks: list[tuple[int, int]]) -> Iterator[None]:
            self._tracking = (blocks, marks)
            try:
                yield
            finally:
                self._tracking = None

    return Tracker
