"""A chat template is a program of its author's: it runs in a child with limits.

Jinja's sandbox keeps it from files and from Python's inside, but not from running forever or
filling the memory, and no timeout within Python stops `9 ** 9 ** 9`, which never comes back to
the interpreter. So one child is forked for each process that renders, not for each row: a CPU
timer that the kernel answers by ending it, and a bound on its memory. A batch goes there and
back through a pipe, and a counter in shared memory says which conversation it was at.
"""

import contextlib
import marshal
import mmap
import os
import resource
import signal
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from ftbuild_rules.templates._environment import environment
from ftbuild_rules.templates._render import Renderer, Template
from ftbuild_rules.templates._turns import (
    BrokenTemplateError,
    Conversation,
    InexactError,
    Part,
    Rendered,
    TemplateError,
    Turn,
)

RENDER_S = 2.0
"""CPU seconds for one render, and for compiling the template."""
MEMORY_BYTES = 512 << 20
"""What a template may take beyond what the process has."""

_HEAD = struct.Struct("<q")
_COMPILING = -1


@dataclass(frozen=True)
class Call:
    """One conversation to render."""

    messages: Conversation
    tools: str | None
    roles: frozenset[str] | None
    """Whose turns are wanted; None for the text alone."""
    parts: bool = False
    """The turns shall say where their texts stand."""
    add_generation_prompt: bool = False


Result = Rendered | TemplateError | InexactError


class LimitError(Exception):
    """A template went over a limit; the text says which."""

    def __init__(self, what: str, place: int) -> None:
        super().__init__(what)
        self.place = place
        """Of the call in its batch; -1 where the template was being compiled."""


class LimitedRenderer:
    """Renders conversations in a child of its own in each process that uses it."""

    def __init__(self, template: Template) -> None:
        environment()  # the child must not spend its time on imports
        self._template = template
        self._child: _Child | None = None

    def run(self, calls: Sequence[Call]) -> list[Result]:
        """Return the text of each conversation, or why it has none.

        Raises:
            BrokenTemplateError: the template does not compile.
            LimitError: it went over a limit. The child is gone; the next call starts another.
        """
        # A process that was forked from this one has no child yet.
        if self._child is None or self._child.parent != os.getpid():
            self._child = _Child.fork(self._template)
        try:
            return self._child.run(calls)
        except (BrokenTemplateError, LimitError):
            self._child = None
            raise

    def close(self) -> None:
        """End the child."""
        if self._child is not None and self._child.parent == os.getpid():
            self._child.end()
        self._child = None


@dataclass(frozen=True)
class _Child:
    parent: int
    pid: int
    requests: int
    """A pipe's end, as is `replies`."""
    replies: int
    place: mmap.mmap
    """The call that the child is at."""

    @classmethod
    def fork(cls, template: Template) -> "_Child":
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        place = mmap.mmap(-1, _HEAD.size)
        place[:] = _HEAD.pack(_COMPILING)
        parent = os.getpid()
        with warnings.catch_warnings():
            # Python warns of threads; the child runs Jinja and nothing of the threaded libraries.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            os.close(ours_out)
            os.close(ours_in)
            _serve(template, theirs_in, theirs_out, place)
        os.close(theirs_in)
        os.close(theirs_out)
        return cls(parent, pid, ours_out, ours_in, place)

    def run(self, calls: Sequence[Call]) -> list[Result]:
        asked = [
            (
                list(c.messages),
                c.tools,
                c.roles and sorted(c.roles),
                c.parts,
                c.add_generation_prompt,
            )
            for c in calls
        ]
        with contextlib.suppress(BrokenPipeError):  # it may be gone, and its last word still there
            _send(self.requests, asked)
        try:
            replies = _receive(self.replies)
        except EOFError:
            raise LimitError(*self._cause()) from None
        if isinstance(replies, str):
            self.end()
            raise BrokenTemplateError(replies)
        return [_result(reply) for reply in replies]

    def _cause(self) -> tuple[str, int]:
        """Return why the child is gone, and the call that it was at."""
        status = os.waitstatus_to_exitcode(self.end())
        (place,) = _HEAD.unpack(self.place)
        if status == -signal.SIGPROF:
            return f"it runs for more than {RENDER_S:g} s", place
        return f"it ended the process that rendered it ({status})", place

    def end(self) -> int:
        os.close(self.requests)
        os.close(self.replies)
        return os.waitpid(self.pid, 0)[1]


def _plain_call(call: Call) -> tuple[Any, ...]:
    roles = None if call.roles is None else sorted(call.roles)
    return list(call.messages), call.tools, roles, call.parts, call.add_generation_prompt


def _send(pipe: int, value: Any) -> None:
    data = marshal.dumps(value)
    view = memoryview(_HEAD.pack(len(data)) + data)
    while view:
        view = view[os.write(pipe, view) :]


def _receive(pipe: int) -> Any:
    """Return the next value.

    Raises:
        EOFError: the other end is gone.
    """
    (size,) = _HEAD.unpack(_read(pipe, _HEAD.size))
    return marshal.loads(_read(pipe, size))


def _read(pipe: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.read(pipe, min(size, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _result(reply: tuple[Any, ...]) -> Result:
    kind, text, turns, prompt_differs = reply
    if kind == "refused":
        return TemplateError(text)
    if kind == "inexact":
        return InexactError(text)
    return Rendered(text, tuple(_turn(*turn) for turn in turns), prompt_differs)


def _turn(index: int, start: int, end: int, eot: Any, parts: Any, omits_reasoning: bool) -> Turn:
    found = tuple(Part(*part) for part in parts)
    return Turn(index, start, end, eot, found, omits_reasoning)


def _serve(template: Template, requests: int, replies: int, place: mmap.mmap) -> NoReturn:
    """Answer the parent's batches until it is gone; the child never returns from here."""
    status = 1
    try:
        _limit()
        _arm()
        try:
            renderer = Renderer(template, before_render=_arm)
        except BrokenTemplateError as error:
            _send(replies, str(error))
        else:
            _answer(renderer, requests, replies, place)
        status = 0
    finally:
        os._exit(status)


def _limit() -> None:
    with open("/proc/self/statm", "rb") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_BYTES, size + MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # An interrupt ends the parent, and that closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF, signal.SIGTERM})


def _arm() -> None:
    """Start the time of one render anew: CPU time of this process, whatever it runs."""
    signal.setitimer(signal.ITIMER_PROF, RENDER_S)


def _answer(renderer: Renderer, requests: int, replies: int, place: mmap.mmap) -> None:
    while True:
        signal.setitimer(signal.ITIMER_PROF, 0)
        try:
            asked = _receive(requests)
        except EOFError:
            return
        answers = []
        for number, call in enumerate(asked):
            place[:] = _HEAD.pack(number)
            answers.append(_reply(renderer, *call))
        _send(replies, answers)


def _reply(
    renderer: Renderer,
    messages: Conversation,
    tools: str | None,
    roles: list[str] | None,
    parts: bool,
    add_generation_prompt: bool,
) -> tuple[str, str, list[Any], bool]:
    try:
        if roles is None:
            return (
                "done",
                renderer.render(messages, tools, add_generation_prompt=add_generation_prompt),
                [],
                False,
            )
        found = renderer.turns(messages, tools, set(roles), parts=parts)
    except TemplateError as error:
        return "refused", str(error), [], False
    except InexactError as error:
        return "inexact", str(error), [], False
    turns = [_plain_turn(turn) for turn in found.turns]
    return "done", found.text, turns, found.prompt_differs


def _plain_turn(turn: Turn) -> tuple[Any, ...]:
    parts = [(part.name, part.start, part.end, part.skipped) for part in turn.parts]
    return turn.index, turn.start, turn.end, turn.eot, parts, turn.omits_reasoning
