r"""`command`: a shell command, for whatever a team has that is no rule.

    [command.cleaned]
    srcs = { raw = "data/raw.txt" }
    run = "grep -v '^#' \"$raw\" > \"$out/cleaned.txt\""

It runs with `sh -e`: where one of several commands fails, the whole does, as in a genrule. It
sees the variables that the table names, `$out`, and nothing else of the user's environment.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from ftbuild.api import (
    Adapter,
    Command,
    Context,
    Dataset,
    Field,
    File,
    Inputs,
    Model,
    Params,
    QuantizedModel,
    Report,
    RewardModel,
    RuleError,
    Source,
    Tokens,
    Variable,
    rule,
)

AnyKind = Dataset | Tokens | Model | QuantizedModel | Adapter | RewardModel | Report | File
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TAKEN = ("out", "PATH", "HOME")


class CommandInputs(Inputs):
    """What the command may read."""

    srcs: dict[str, Source] = Field(default_factory=dict)
    """Files: each is given as an environment variable of its name that holds a path. A folder,
    a list and a pattern give the path of a folder."""
    deps: dict[str, AnyKind] = Field(default_factory=dict)
    """Targets: each is given as an environment variable of its name that holds the path of its
    directory."""
    env: tuple[Variable, ...] = ()
    """Environment variables of yours that the command may see; their values are in the key."""


class CommandParams(Params):
    """What is run."""

    run: str
    """A command for `sh -e`; it leaves its files in the directory `$out`."""


@rule(version=1, output=File, runs="process")
def command(ctx: Context, inputs: CommandInputs, params: CommandParams) -> Command:
    """Run a shell command whose files in `$out` are the artifact."""
    environment: dict[str, str] = {}
    for name, value in _variables(inputs):
        if name in _TAKEN or name in environment:
            owner = "the engine" if name in _TAKEN else "another of `srcs`, `deps` and `env`"
            raise RuleError(
                f"`{name}` names a variable that {owner} sets",
                code="E0206",
                fix="give it another name; every variable of a command has one meaning",
            )
        if not _NAME.fullmatch(name):
            raise RuleError(
                f"`{name}` cannot be the name of a variable",
                code="E0206",
                fix="a name has A-Z a-z 0-9 _ and does not begin with a digit",
            )
        if value is not None:  # a variable that is not set stays so
            environment[name] = value
    return Command(params.run, environment)


def _variables(inputs: CommandInputs) -> Iterator[tuple[str, str | None]]:
    for name, source in inputs.srcs.items():
        yield name, str(_path_of(source))
    for name, artifact in inputs.deps.items():
        yield name, str(artifact.path)
    for variable in inputs.env:
        yield variable.name, variable.value


def _path_of(source: Source) -> Path:
    """Return the path of a file by itself, else of the folder that holds all files.

    A file by itself is laid out as `file` and its endings. What is returned follows from the
    paths within the source alone: they are in the key, what the manifest calls it is not.
    """
    first = source.files[0]
    is_alone = len(source.files) == 1 and "/" not in first.relative
    if is_alone and first.relative.partition(".")[0] == "file":
        return first.path
    return first.path.parents[first.relative.count("/")]
