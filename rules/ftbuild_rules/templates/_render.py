r"""Chat templates: a conversation -> its text, and where in it each message stands.

One render of a conversation. Where the template marks what the assistant says
(`{% generation %}`), the marks are the spans. Else the template is rendered once for each shape
of conversation (its roles, tools, tool calls) with a sentinel in the place of each text; that
skeleton, filled with the real texts, must equal the real render letter for letter, and then its
spans hold there too. Where it does not, or where the template shows the prompt of a turn
otherwise than the model will see it, the spans cannot be exact: `InexactError`, never a guess.

<|im_start|>assistant\nHello!<|im_end|>\n
                       ^ start ^ eot     : what the model must say after the prompt, and its end
"""

import bisect
import functools
import json
import re
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Conversation = Sequence[dict[str, Any]]


class TemplateError(Exception):
    """The template refuses a conversation or fails on it; the text says why."""


class BrokenTemplateError(Exception):
    """The template is no Jinja; the text says where and why."""


class InexactError(Exception):
    """Where a message stands in the text cannot be told exactly; the text says why."""


@dataclass(frozen=True)
class Turn:
    """Where one message stands in the rendered text, in characters."""

    index: int
    """Of the message."""
    start: int
    """Of an assistant's turn: where the prompt ends. Of other roles: where their text begins."""
    end: int
    eot: tuple[int, int] | None
    """The special token that ends the turn: at `end`, or within the span where a template's
    mark covers it. None where no special token follows the message."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as text."""

    text: str
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Template:
    """A chat template with the tokenizer's special tokens."""

    text: str
    variables: dict[str, str]
    """`bos_token`, `eos_token`, …: what Transformers gives to a template besides the messages."""
    enders: tuple[str, ...]
    """The special tokens, longest first: one of them may end a turn."""

    @property
    def has_marks(self) -> bool:
        """Say whether the template marks what the assistant says."""
        return re.search(r"\{%-?\s*generation\s*-?%\}", self.text) is not None


MAX_CHARACTERS = 16 << 20
"""Of the text of one conversation."""


class Renderer:
    """A compiled template. It holds the skeletons of the shapes that it has met."""

    def __init__(
        self, template: Template, *, before_render: Callable[[], None] = lambda: None
    ) -> None:
        self._template = template
        self._before_render = before_render
        self._compiled = _compile(template.text)
        # A template that asks for today's date would give other tokens every day.
        clock = self._compiled.environment.undefined(name="strftime_now")
        self._variables = {**template.variables, "strftime_now": clock}
        self._skeleton: Callable[[_Shape], _Skeleton] = functools.lru_cache(maxsize=512)(
            self._make_skeleton
        )

    def render(
        self, messages: Conversation, tools: str | None, *, add_generation_prompt: bool = False
    ) -> str:
        """Return the conversation's text, as `apply_chat_template(tokenize=False)` would.

        Raises:
            TemplateError: the template does not take the conversation.
        """
        return self._render(messages, tools, add_generation_prompt)[0]

    def turns(self, messages: Conversation, tools: str | None, roles: set[str]) -> Rendered:
        """Return the conversation's text and a turn for each message from one of `roles`.

        Raises:
            TemplateError: the template does not take the conversation.
            InexactError: where a turn stands is not certain.
        """
        if self._template.has_marks and roles <= {"assistant"}:
            return self._marked_turns(messages, tools)
        shape = _Shape.of(messages, tools, roles)
        text = self.render(messages, tools)
        return self._skeleton(shape).fill(messages, text)

    def _render(
        self, messages: Conversation, tools: str | None, add_generation_prompt: bool
    ) -> tuple[str, list[tuple[int, int]]]:
        blocks: list[str] = []
        marks: list[tuple[int, int]] = []
        room = MAX_CHARACTERS
        self._before_render()
        try:
            with self._compiled.environment.activate_tracker(blocks, marks):
                for block in self._compiled.generate(
                    messages=[_for_template(message) for message in messages],
                    tools=json.loads(tools) if tools else None,
                    documents=None,
                    add_generation_prompt=add_generation_prompt,
                    **self._variables,
                ):
                    room -= len(block)
                    if room < 0:
                        raise TemplateError(f"it writes more than {MAX_CHARACTERS:,} characters")
                    blocks.append(block)
        except TemplateError:
            raise
        except Exception as error:  # a template is a program of its author's: it raises anything
            raise TemplateError(_why(error)) from error
        return "".join(blocks), marks

    def _marked_turns(self, messages: Conversation, tools: str | None) -> Rendered:
        text, marks = self._render(messages, tools, False)
        speakers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if len(marks) != len(speakers):
            raise InexactError(
                f"it marks {len(marks)} spans for {len(speakers)} messages of the assistant"
            )
        turns = (
            self._marked_turn(text, index, mark)
            for index, mark in zip(speakers, marks, strict=True)
        )
        return Rendered(text, tuple(turns))

    def _marked_turn(self, text: str, index: int, mark: tuple[int, int]) -> Turn:
        start, end = mark
        said = text[start:end].rstrip()
        ender = next((token for token in self._template.enders if said.endswith(token)), None)
        if ender is not None:
            last = start + len(said)
            return Turn(index, start, end, (last - len(ender), last))
        return Turn(index, start, end, self._ender_at(text, end))

    def _ender_at(self, text: str, at: int) -> tuple[int, int] | None:
        """Return the special token that follows `at`, where only white space is between."""
        while at < len(text) and text[at].isspace():
            at += 1
        for token in self._template.enders:
            if text.startswith(token, at):
                return at, at + len(token)
        return None

    def _make_skeleton(self, shape: "_Shape") -> "_Skeleton":
        """Render the shape with sentinels, and find its turns.

        Raises:
            InexactError: the prompt of a turn is not what the conversation begins with.
        """
        messages = shape.sentinels()
        text = self.render(messages, shape.tools)
        slots = _find_slots(text)
        turns = []
        for index, message in enumerate(messages):
            if message["role"] in shape.roles:
                turns.append(self._skeleton_turn(messages, shape.tools, index, text, slots))
        return _Skeleton(text, slots, tuple(turns))

    def _skeleton_turn(
        self,
        messages: Conversation,
        tools: str | None,
        index: int,
        text: str,
        slots: "tuple[_Slot, ...]",
    ) -> Turn:
        message = messages[index]
        own = [slot for slot in slots if slot.index == index]
        if len(own) > 1 or (message.get("content") and not own):
            times = "twice" if own else "not at all"
            raise InexactError(f"it shows the text of message {index + 1} {times}")
        if message["role"] != "assistant":
            if not own:
                raise InexactError(f"message {index + 1} has no text of its own")
            return _ended(index, own[0].start, own[0].end, self._ender_at(text, own[0].end))
        prompt = self.render(messages[:index], tools, add_generation_prompt=True)
        if not text.startswith(prompt) or _is_within(len(prompt), slots, index):
            raise InexactError(
                f"the prompt of message {index + 1}, rendered alone, is not how the conversation "
                "begins"
            )
        if own and message.get("tool_calls") is None:
            return _ended(index, len(prompt), own[0].end, self._ender_at(text, own[0].end))
        said = self.render(messages[: index + 1], tools).rstrip()
        if not text.startswith(said) or _is_within(len(said), slots, index + 1):
            raise InexactError(f"the end of message {index + 1} depends on what follows it")
        ender = next((token for token in self._template.enders if said.endswith(token)), None)
        eot = (len(said) - len(ender), len(said)) if ender else None
        return _ended(index, len(prompt), len(said), eot)


def _compile(text: str) -> Any:
    """Return the template compiled as Transformers does, but that it prints nothing undefined.

    Raises:
        BrokenTemplateError: it is no Jinja.
    """
    from jinja2 import TemplateSyntaxError, Undefined
    from transformers.utils.chat_template_utils import _compile_jinja_template

    class Unprintable(Undefined):
        # A template may ask whether something is defined, or is true. Printed, an undefined
        # variable would be nothing at all: a slip of the pen that no one would see.
        __str__ = Undefined._fail_with_undefined_error

    environment = _compile_jinja_template("").environment.overlay(undefined=Unprintable)
    try:
        return environment.from_string(text)
    except TemplateSyntaxError as error:
        raise BrokenTemplateError(f"line {error.lineno}: {error.message}") from error
    except Exception as error:  # constants are computed while it compiles
        raise BrokenTemplateError(_why(error)) from error


def _why(error: Exception) -> str:
    """Return what a template failed of, and in which of its lines.

    What it refuses by `raise_exception` is a sentence of its author's and stands as it is.
    """
    from jinja2 import TemplateError as JinjaError

    if type(error) is JinjaError:
        return str(error)
    lines = [
        line
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename == "<template>"
    ]
    what = "it needs too much memory" if isinstance(error, MemoryError) else str(error)
    return f"line {lines[-1]}: {what}" if lines else what


def _is_within(at: int, slots: "Sequence[_Slot]", messages: int) -> bool:
    """Say whether `at` is not after all texts of the first `messages`, and before all others."""
    return any(slot.end > at if slot.index < messages else slot.start < at for slot in slots)


def _ended(index: int, start: int, end: int, eot: tuple[int, int] | None) -> Turn:
    """Return a turn that reaches to its end token: white space before it is said too."""
    return Turn(index, start, eot[0] if eot else end, eot)


def _for_template(message: dict[str, Any]) -> dict[str, Any]:
    """Return the message as a template expects it: what is not given is no key."""
    out = {
        key: value
        for key, value in message.items()
        if value is not None and key in ("role", "content", "name", "tool_call_id")
    }
    if message.get("tool_calls") is not None:
        out["tool_calls"] = json.loads(message["tool_calls"])
    return out


# A text that no template writes, between private-use characters, with white space around it
# that shows whether the template trims: three line ends for `strip("\n")`, an em space for all.
_PAD_LEFT, _PAD_RIGHT = "\n\n\n\u2003", "\u2003\n\n\n"
_SENTINEL = re.compile("\ue000([0-9]+)\ue001")


@dataclass(frozen=True)
class _Shape:
    """All of a conversation but its texts: conversations of one shape share a skeleton."""

    messages: tuple[tuple[tuple[str, str | None], ...], ...]
    tools: str | None
    roles: frozenset[str]
    """Whose turns are wanted."""

    @classmethod
    def of(cls, messages: Conversation, tools: str | None, roles: set[str]) -> "_Shape":
        return cls(
            tuple(
                tuple(
                    # Templates ask whether there is a text; so does the shape.
                    (key, "\ue000" if key == "content" and value else value)
                    for key, value in message.items()
                    if key != "train"
                )
                for message in messages
            ),
            tools,
            frozenset(roles),
        )

    def sentinels(self) -> list[dict[str, Any]]:
        """Return the messages with a sentinel in the place of each text."""
        out = [dict(message) for message in self.messages]
        for index, message in enumerate(out):
            if message.get("content"):
                message["content"] = f"{_PAD_LEFT}\ue000{index}\ue001{_PAD_RIGHT}"
        return out


@dataclass(frozen=True)
class _Slot:
    """Where a skeleton holds the text of message `index`, and how the template trims it."""

    index: int
    start: int
    end: int
    left: str | None
    """What is stripped on the left: None for nothing, "\\n", or "" for all white space."""
    right: str | None

    def fill(self, content: str) -> str:
        """Return the text as the template shows it."""
        if self.left is not None:
            content = content.lstrip(self.left or None)
        if self.right is not None:
            content = content.rstrip(self.right or None)
        return content


def _find_slots(text: str) -> tuple[_Slot, ...]:
    slots = []
    for found in _SENTINEL.finditer(text):
        start, end = found.span()
        left: str | None = ""
        right: str | None = ""
        if text.endswith(_PAD_LEFT, 0, start):
            left, start = None, start - len(_PAD_LEFT)
        elif text.endswith("\u2003", 0, start):
            left, start = "\n", start - 1
        if text.startswith(_PAD_RIGHT, end):
            right, end = None, end + len(_PAD_RIGHT)
        elif text.startswith("\u2003", end):
            right, end = "\n", end + 1
        slots.append(_Slot(int(found[1]), start, end, left, right))
    return tuple(slots)


@dataclass(frozen=True)
class _Skeleton:
    """The text of a shape, its slots in their order, and its turns in its own characters."""

    text: str
    slots: tuple[_Slot, ...]
    turns: tuple[Turn, ...]

    def fill(self, messages: Conversation, rendered: str) -> Rendered:
        """Return the turns of a real conversation of this shape.

        Raises:
            InexactError: its text is not the skeleton filled with its texts.
        """
        parts: list[str] = []
        shifts: list[tuple[int, int]] = []  # the end of each slot, and the growth up to there
        at = growth = 0
        for slot in self.slots:
            content = slot.fill(messages[slot.index]["content"])
            parts += (self.text[at : slot.start], content)
            growth += len(content) - (slot.end - slot.start)
            shifts.append((slot.end, growth))
            at = slot.end
        parts.append(self.text[at:])
        if "".join(parts) != rendered:
            raise InexactError("it shows a text otherwise than as it stands in the row")
        return Rendered(rendered, tuple(_moved(turn, shifts) for turn in self.turns))


def _moved(turn: Turn, shifts: Sequence[tuple[int, int]]) -> Turn:
    """Return the turn with its places moved by what the texts before them have grown."""

    def move(at: int) -> int:
        before = bisect.bisect_right(shifts, at, key=lambda shift: shift[0])
        return at + (shifts[before - 1][1] if before else 0)

    eot = turn.eot and (move(turn.eot[0]), move(turn.eot[1]))
    return Turn(turn.index, move(turn.start), move(turn.end), eot)
