r"""Chat templates: a conversation -> its text, and where in it each message stands.

One render of a conversation. Where the template marks what the assistant says
(`{% generation %}`), the marks are the spans. For all else the template is rendered once for each
shape of conversation (its roles, tools, tool calls) with a sentinel in the place of each text; that
skeleton, filled with the real texts, must equal the real render letter for letter, and then its
spans hold there too. Where it does not, or where the template shows the prompt of a turn
otherwise than the model will see it, the spans cannot be exact: `InexactError`, never a guess.

<|im_start|>assistant\nHello!<|im_end|>\n
                       ^ start ^ eot     : what the model must say after the prompt, and its end
"""

import functools
import json
import re
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ftbuild_rules.templates._environment import environment
from ftbuild_rules.templates._skeleton import (
    Owner,
    Shape,
    Skeleton,
    Slot,
    find_slots,
    has_reasoning,
)
from ftbuild_rules.templates._turns import (
    BrokenTemplateError,
    Conversation,
    InexactError,
    Rendered,
    TemplateError,
    Turn,
)


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
        self._skeleton: Callable[[Shape], Skeleton] = functools.lru_cache(maxsize=512)(
            self._make_skeleton
        )
        self._prompt_differs: Callable[[Shape], bool] = functools.lru_cache(maxsize=512)(
            self._find_difference
        )

    def render(
        self, messages: Conversation, tools: str | None, *, add_generation_prompt: bool = False
    ) -> str:
        """Return the conversation's text, as `apply_chat_template(tokenize=False)` would.

        Raises:
            TemplateError: the template does not take the conversation.
        """
        return self._render(messages, tools, add_generation_prompt)[0]

    def turns(
        self, messages: Conversation, tools: str | None, roles: set[str], *, parts: bool = False
    ) -> Rendered:
        """Return the conversation's text and a turn for each message from one of `roles`.

        With `parts` the turns say where their texts stand.

        Raises:
            TemplateError: the template does not take the conversation.
            InexactError: where a turn stands is not certain.
        """
        # A mark says nothing of what is within it: of a thought that is not shown, least of all.
        is_whole = not parts and not any(has_reasoning(message) for message in messages)
        if is_whole and self._template.has_marks and roles <= {"assistant"}:
            found = self._marked_turns(messages, tools)
            shape, _ = Shape.of(messages, tools, roles)
            return replace(found, prompt_differs=self._prompt_differs(shape))
        shape, texts = Shape.of(messages, tools, roles)
        text = self.render(messages, tools)
        return self._skeleton(shape).fill(texts, text)

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
                    **self._template.variables,
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
        return Rendered(text, tuple(self._turns_of_marks(messages, text, marks).values()))

    def _turns_of_marks(
        self, messages: Conversation, text: str, marks: Sequence[tuple[int, int]]
    ) -> dict[int, Turn]:
        """Return the assistant's turns by their messages.

        Raises:
            InexactError: there is not one mark for each of them.
        """
        speakers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if len(marks) != len(speakers):
            raise InexactError(
                f"it marks {len(marks)} spans for {len(speakers)} messages of the assistant"
            )
        return {
            index: self._marked_turn(text, index, mark)
            for index, mark in zip(speakers, marks, strict=True)
        }

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

    def _make_skeleton(self, shape: Shape) -> Skeleton:
        """Render the shape with sentinels, and find its turns.

        Raises:
            InexactError: the prompt of a turn is not what the conversation begins with.
        """
        messages, owners = shape.sentinels()
        text, marks = self._render(messages, shape.tools, False)
        marked = self._turns_of_marks(messages, text, marks) if self._template.has_marks else {}
        slots = find_slots(text, owners)
        turns = []
        for index, message in enumerate(messages):
            if message["role"] in shape.roles:
                _check_slots(slots, owners, index)
                turn = marked.get(index) or self._skeleton_turn(
                    messages, shape.tools, index, text, slots
                )
                own = tuple(slot.number for slot in slots if slot.index == index)
                turns.append((turn, own, len(own) < sum(i == index for i, _ in owners)))
        # Without marks a turn begins where its prompt ends, so a prompt that differs is an error.
        return Skeleton(text, slots, tuple(turns), bool(marked) and self._prompt_differs(shape))

    def _find_difference(self, shape: Shape) -> bool:
        """Say whether the last answer's prompt, rendered alone, is not how the whole begins."""
        messages, _ = shape.sentinels()
        last = max(
            (i for i, message in enumerate(messages) if message["role"] == "assistant"), default=0
        )
        if not last:
            return False  # nothing comes before it
        try:
            prompt = self.render(messages[:last], shape.tools, add_generation_prompt=True)
            return not self.render(messages, shape.tools).startswith(prompt)
        except TemplateError:
            return False  # it takes no conversation that ends there

    def _skeleton_turn(
        self,
        messages: Conversation,
        tools: str | None,
        index: int,
        text: str,
        slots: tuple[Slot, ...],
    ) -> Turn:
        message = messages[index]
        own = [slot for slot in slots if slot.index == index]
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
            return _ended(index, len(prompt), own[-1].end, self._ender_at(text, own[-1].end))
        said = self.render(messages[: index + 1], tools).rstrip()
        if not text.startswith(said) or _is_within(len(said), slots, index + 1):
            raise InexactError(f"the end of message {index + 1} depends on what follows it")
        ender = next((token for token in self._template.enders if said.endswith(token)), None)
        eot = (len(said) - len(ender), len(said)) if ender else None
        return _ended(index, len(prompt), len(said), eot)


def _compile(text: str) -> Any:
    """Return the template compiled.

    Raises:
        BrokenTemplateError: it is no Jinja.
    """
    from jinja2 import TemplateSyntaxError

    try:
        return environment().from_string(text)
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


def _is_within(at: int, slots: Sequence[Slot], messages: int) -> bool:
    """Say whether `at` is not after all texts of the first `messages`, and before all others."""
    return any(slot.end > at if slot.index < messages else slot.start < at for slot in slots)


def _check_slots(slots: Sequence[Slot], owners: Sequence[Owner], index: int) -> None:
    """Check that the template shows each text of a message once; a thought it may leave out.

    Raises:
        InexactError: it does not.
    """
    found = [slot.number for slot in slots if slot.index == index]
    for number, (owner, name) in enumerate(owners):
        if owner == index:
            times = found.count(number)
            if times > 1 or (times == 0 and name == "content"):
                how = "twice" if times else "not at all"
                raise InexactError(f"it shows the text of message {index + 1} {how}")


def _ended(index: int, start: int, end: int, eot: tuple[int, int] | None) -> Turn:
    """Return a turn that reaches to its end token: white space before it is said too."""
    return Turn(index, start, eot[0] if eot else end, eot)


def _for_template(message: dict[str, Any]) -> dict[str, Any]:
    """Return the message as a template expects it: what is not given is no key."""
    out = {
        key: value
        for key, value in message.items()
        if value is not None
        and key in ("role", "content", "reasoning_content", "name", "tool_call_id")
    }
    if message.get("tool_calls") is not None:
        out["tool_calls"] = json.loads(message["tool_calls"])
    if "reasoning_content" in out:
        # Transformers gives it under both names, for templates that know the older one.
        return {"thinking": out["reasoning_content"], **out}
    return out
