"""What a rule is: typed inputs, typed params, the kind of its output, a function.

    class LoudInputs(Inputs):
        text: File
        '''What to raise.'''

    class LoudParams(Params):
        mark: str = "!"
        '''What ends each line.'''

    @rule(version=1, output=File)
    def loud(ctx: Context, inputs: LoudInputs, params: LoudParams) -> None:
        ...

In FTBUILD.toml the fields of both stand side by side in the target's table. Everything in
both is in the action key; there is no switch to leave one out.
"""

import types
import typing
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict

from ftbuild.digest import Digest
from ftbuild.docstrings import attribute_docstrings
from ftbuild.kinds import Artifact, Part
from ftbuild.outside import Function, Source, Variable

if typing.TYPE_CHECKING:
    from pydantic import GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema

# ---------------------------------------------------------------- the attributes of a target


class Inputs(BaseModel):
    """What a rule reads: fields typed by kind, or `Source`, `Variable`, `Function`.

    A field is one artifact (`model: Model`), one of several kinds (`Model | QuantizedModel`),
    a part (`Annotated[Model, TOKENIZER]`), optional (`Adapter | None = None`), a list
    (`tuple[Dataset, ...]`) or a table of them (`dict[str, File]`).
    The docstring under a field is its help text.
    """

    model_config = ConfigDict(
        arbitrary_types_allowed=True,
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
    )


class Params(BaseModel):
    """A rule's settings: defaults, bounds (`Field(gt=0)`), units in the docstrings."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
        allow_inf_nan=False,
        # `1` for a text or `"3"` for a number is a slip that the user wants to hear of.
        strict=True,
    )
    other_names: ClassVar[Mapping[str, str]] = {}
    """What other tools call an attribute of this rule or table: their name -> `learning_rate`."""
    elsewhere: ClassVar[Mapping[str, str]] = {}
    """Attributes that users look for here, and that there is no other name for: name -> remedy."""

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: "CoreSchema", handler: "GetJsonSchemaHandler"
    ) -> "JsonSchemaValue":
        schema = handler(core_schema)
        table = handler.resolve_ref_schema(schema)
        for name, text in attribute_docstrings(cls).items():
            if name in cls.model_fields:
                table["properties"][name].setdefault("description", text)
        return schema


@dataclass(frozen=True)
class InputField:
    """One field of an `Inputs` class, taken apart."""

    name: str
    kinds: tuple[type[Artifact], ...]
    """Empty for a `Source`, a `Variable` or a `Function`."""
    outside: Literal["source", "variable", "function"] | None
    shape: Literal["one", "list", "table"]
    is_required: bool
    part: Part | None
    owner: type[Inputs]

    @property
    def help(self) -> str:
        """The docstring under the field."""
        return attribute_docstrings(self.owner).get(self.name, "")


class AttributeProblem(Exception):
    """Raised by a rule's `check`: which attribute is wrong, and what to write instead."""

    def __init__(self, attribute: str, what: str, fix: str | None = None) -> None:
        super().__init__(what)
        self.attribute = attribute
        self.what = what
        self.fix = fix


# ---------------------------------------------------------------- what a rule is given


@dataclass(frozen=True)
class Piece:
    """One piece of an action's work: what sets it apart, and what the function is called with."""

    identity: Hashable
    """A JSON value, usually a digest of the piece's own bytes: in the key of the fragment
    it stands for the whole input that was cut into pieces."""
    payload: Any = None


@dataclass(frozen=True)
class Fragment:
    """A memoised result of one piece."""

    path: Path
    """A read-only directory of what the function wrote."""
    value: Any
    """What the function returned: a JSON value."""
    was_built: bool
    """False where an earlier build's result was reused."""


class Context(Protocol):
    """What a rule may use besides its inputs and params. No clock, no network."""

    out: Path
    """An empty directory for the output."""
    scratch: Path
    """Survives a kill, belongs to this action key alone, is never published: checkpoints."""
    cpus: int
    """How many cores the action may use; must not change its result."""

    def log(self, text: str) -> None:
        """Write a line to the action's log (as `print` does)."""

    def warn(self, text: str) -> None:
        """Say something that the user should read at the end of the build."""

    def progress(self, step: int, steps: int | None = None, **metrics: float) -> None:
        """Report how far the action is, with figures such as `loss`."""

    def facts(self, **values: Any) -> None:
        """Record figures about the output (rows, steps, losses) in its provenance."""

    def fragments(
        self,
        function: Callable[[Piece, Path], Any],
        pieces: Iterable[Piece],
        *,
        of: str | tuple[str, ...],
        siblings: Callable[[list[Fragment]], None] | None = None,
    ) -> list[Fragment]:
        """Run `function(piece, out)` for each piece that no earlier build has done.

        The key of a fragment is the action's own key document in which the digest of the
        input `of`, or of each of several, gives way to the piece's identity and the function's
        name: whatever else matters to the action is in it by construction. So `function` may
        read the piece's payload and any other input, never the rest of `of`. Pieces run in
        parallel, in processes forked from this one; each is kept as soon as it is done.

        Where pieces are missing, `siblings` is called before they run with fragments that earlier
        builds made of other pieces, all else in their keys the same, the latest first: `function`
        may take over what it finds there. They may be few or none, so what it writes must not
        depend on them.
        """

    def once(self, function: Callable[[Path], Any], name: str, *, of: str) -> Path:
        """Run `function(out)` if no earlier build has; return the read-only directory it wrote.

        `name` tells it from others of the rule. It may read whatever the action may but the input
        `of`, and all that stands in its key, as in that of a fragment.
        """

    def digest(self, source: Path) -> Digest:
        """Return the digest of a file of a fragment or of an input; read only if not known."""

    def link(self, source: Path, name: str) -> None:
        """Put `source`, a file of a fragment or of an input, at `out / name` without a copy."""


Output = type[Artifact] | Callable[[Mapping[str, tuple[str, ...]], Any], type[Artifact]]
Check = Callable[[Mapping[str, tuple[str, ...]], Any], None]
Pins = tuple[str, ...] | Callable[[Mapping[str, tuple[str, ...]], Any], tuple[str, ...]]


@dataclass(frozen=True)
class Command:
    """A shell command that the engine runs as it is, in an empty directory, without a worker.

    What a rule with `runs="process"` returns. `$out` in its environment is the output directory.
    """

    script: str
    """For `sh -e`: where one of several commands fails, the whole does."""
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Rule:
    """A rule, as the registry holds it."""

    name: str
    function: Callable[..., Any]
    inputs: type[Inputs]
    params: type[Params]
    output: Output
    version: int | None
    """None for a user's own rule: then its normalised source is the key part."""
    pins: Pins = ()
    """Distributions whose versions shape the output: key parts, as the lock records them. Where
    not all targets use the same, a function that is called like `check`; its docstring tells."""
    toolchain: tuple[str, ...] = ()
    """What the rule needs in a Python environment of its own, as pip takes it: then its libraries
    may clash with the rest, and those that the lock has resolved are key parts."""
    preload: tuple[str, ...] = ()
    """Modules which the warm parent imports before it forks a worker for this rule."""
    check: Check | None = None
    """Called with the kinds of the inputs that are set (none of a source's) and the params, before
    anything runs."""
    runs: Literal["worker", "process"] = "worker"
    cpus: Literal["one", "all"] = "one"
    """How many cores an action takes where its target does not say so."""
    gpus: int = 0
    """How many GPUs it takes where the machine has any; with 0 it sees none."""
    is_reproducible: bool = True
    input_fields: Mapping[str, InputField] = field(default_factory=dict)

    @property
    def help(self) -> str:
        """The first paragraph of the function's docstring."""
        return (self.function.__doc__ or "").strip().split("\n\n")[0]

    def output_kind(self, kinds: Mapping[str, tuple[str, ...]], params: Params) -> type[Artifact]:
        """Return the kind of the output, which may follow from which inputs are set."""
        if isinstance(self.output, type):
            return self.output
        return self.output(kinds, params)


F = TypeVar("F", bound=Callable[..., Any])


def rule(
    *,
    output: Output,
    version: int | None = None,
    pins: Pins = (),
    toolchain: tuple[str, ...] = (),
    preload: tuple[str, ...] = (),
    check: Check | None = None,
    runs: Literal["worker", "process"] = "worker",
    cpus: Literal["one", "all"] = "one",
    gpus: int = 0,
    is_reproducible: bool = True,
) -> Callable[[F], F]:
    """Make a rule of a function `(ctx, inputs, params)`; its name is the rule's name.

    Raises:
        TypeError: the function's annotations are not a Context, an Inputs and a Params class, or
            a toolchain stands beside `pins`, `preload` or `runs="process"`.
    """
    if toolchain and (pins or preload or runs == "process"):
        raise TypeError("a rule with a toolchain has no `pins`, no `preload`, and runs in a worker")

    def decorate(function: F) -> F:
        hints = typing.get_type_hints(function)
        found = [hint for name, hint in hints.items() if name != "return"]
        inputs = [h for h in found if isinstance(h, type) and issubclass(h, Inputs)]
        params = [h for h in found if isinstance(h, type) and issubclass(h, Params)]
        if len(inputs) != 1 or len(params) != 1:
            raise TypeError(
                f"rule `{function.__name__}` needs the signature "
                "(ctx: Context, inputs: <an Inputs class>, params: <a Params class>)"
            )
        function.__ftbuild_rule__ = Rule(  # type: ignore[attr-defined]  # functions take attributes
            name=function.__name__.rstrip("_"),
            function=function,
            inputs=inputs[0],
            params=params[0],
            output=output,
            version=version,
            pins=pins,
            toolchain=toolchain,
            preload=preload,
            check=check,
            runs=runs,
            cpus=cpus,
            gpus=gpus,
            is_reproducible=is_reproducible,
            input_fields=_input_fields(inputs[0]),
        )
        return function

    return decorate


def _input_fields(inputs: type[Inputs]) -> dict[str, InputField]:
    fields: dict[str, InputField] = {}
    hints = typing.get_type_hints(inputs, include_extras=True)
    for name, info in inputs.model_fields.items():
        kinds, outside, shape, part = _take_apart(hints[name])
        fields[name] = InputField(name, kinds, outside, shape, info.is_required(), part, inputs)
    return fields


_Taken = tuple[
    tuple[type[Artifact], ...],
    Literal["source", "variable", "function"] | None,
    Literal["one", "list", "table"],
    Part | None,
]


def _take_apart(hint: Any) -> _Taken:
    """Return kinds, outside, shape and part of an annotation."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        kinds, outside, shape, part = _take_apart(args[0])
        return kinds, outside, shape, next((a for a in args[1:] if isinstance(a, Part)), part)
    if origin in (tuple, list):
        kinds, outside, _, part = _take_apart(args[0])
        return kinds, outside, "list", part
    if origin is dict:
        kinds, outside, _, part = _take_apart(args[1])
        return kinds, outside, "table", part
    if origin in (Union, types.UnionType):
        alternatives = [_take_apart(a) for a in args if a is not type(None)]
        first = alternatives[0]
        return tuple(k for a in alternatives for k in a[0]), *first[1:]
    if isinstance(hint, type) and issubclass(hint, Artifact):
        return (hint,), None, "one", None
    if hint is Source:
        return (), "source", "one", None
    if hint is Variable:
        return (), "variable", "one", None
    if hint is Function:
        return (), "function", "one", None
    raise TypeError(f"an input cannot be of type {hint!r}")
