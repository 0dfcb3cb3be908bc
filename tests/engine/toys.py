"""Toy rules: the file is copied into a workspace as `rules/toys.py`, and is a rule file there.

Between them they use every shape that an input can have, and every way in which one can fail.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Literal

from toy_helper import ending

from ftbuild.api import (
    TOKENIZER,
    Context,
    Field,
    File,
    Inputs,
    Model,
    Params,
    Part,
    Piece,
    Place,
    RuleError,
    Source,
    Variable,
    canonical_json,
    rule,
)

WEIGHTS_AND_WORDS = Part("weights_and_words", ("*.safetensors", "tokenizer.json", "config.json"))


class KeepInputs(Inputs):
    source: Source
    """Text files."""


class KeepParams(Params):
    comment: str = "#"
    """How a line begins that is dropped."""


@rule(output=File)
def keep(ctx: Context, inputs: KeepInputs, params: KeepParams) -> None:
    """Keep the lines that are no comments."""
    text = "".join(file.path.read_text() for file in inputs.source.files)
    lines = [line for line in text.splitlines(True) if not line.startswith(params.comment)]
    (ctx.out / "text.txt").write_text("".join(lines))


class LoudInputs(Inputs):
    texts: tuple[File, ...]
    """In this order."""
    named: dict[str, File] = Field(default_factory=dict)
    """Each under its name."""


class LoudParams(Params):
    marks: tuple[str, ...] = ("!",)
    """End each line, in turn."""
    style: dict[str, int] = Field(default_factory=dict)
    """Whatever."""
    seed: int = Field(default=0, ge=0)


@rule(output=File, pins=("pydantic",))
def loud(ctx: Context, inputs: LoudInputs, params: LoudParams) -> None:
    """Raise the letters of all texts."""
    lines = [line for text in inputs.texts for line in _lines(text)]
    lines += [f"{name}: {line}" for name, t in sorted(inputs.named.items()) for line in _lines(t)]
    marks = params.marks
    loud = [f"{line.upper()}{marks[i % len(marks)]}{ending}" for i, line in enumerate(lines)]
    (ctx.out / "text.txt").write_text("\n".join([*loud, canonical_json(params.style).decode()]))


def _lines(text: File) -> list[str]:
    return (text.path / "text.txt").read_text().splitlines()


class WeightsInputs(Inputs):
    source: Annotated[Source, WEIGHTS_AND_WORDS]
    """A folder."""


class WeightsParams(Params):
    dtype: Literal["float32", "bfloat16"] = "float32"


@rule(output=Model)
def weights(ctx: Context, inputs: WeightsInputs, params: WeightsParams) -> None:
    """Bring a toy model in."""
    for file in inputs.source.files:
        (ctx.out / file.relative).write_bytes(file.path.read_bytes())
    (ctx.out / "dtype").write_text(params.dtype)


class IdsInputs(Inputs):
    text: File
    model: Annotated[Model, TOKENIZER]
    """Whose words; the weights are not read."""


class IdsParams(Params):
    max_length: int | None = None


@rule(output=File)
def ids(ctx: Context, inputs: IdsInputs, params: IdsParams) -> None:
    """Number the words; what the model does not know is 0."""
    assert [path.name for path in inputs.model.path.iterdir()] == ["tokenizer.json"]
    words = (inputs.model.path / "tokenizer.json").read_text().split()
    text = " ".join(_lines(inputs.text)).split()[: params.max_length]
    numbers = [words.index(word) + 1 if word in words else 0 for word in text]
    (ctx.out / "text.txt").write_text(" ".join(map(str, numbers)))


class TuneInputs(Inputs):
    data: File
    model: Model
    prompt: Source | None = None


class TuneParams(Params):
    epochs: int = 1
    lora: dict[str, int] | None = None


@rule(output=Model, version=3, pins=("rich", "pydantic"))
def tune(ctx: Context, inputs: TuneInputs, params: TuneParams) -> None:
    """Train, as it were; its version is an integer, so its source is in no key."""
    for file in inputs.model.path.iterdir():
        (ctx.out / file.name).write_bytes(file.read_bytes())
    with (ctx.out / "model.safetensors").open("a") as weights:
        weights.write(f" + {params.epochs} x {''.join(_lines(inputs.data))}")


class SecretInputs(Inputs):
    one: Variable
    more: tuple[Variable, ...] = ()
    files: tuple[Source, ...] = ()


class NoParams(Params):
    pass


@rule(output=File)
def secret(ctx: Context, inputs: SecretInputs, params: NoParams) -> None:
    """Write variables down, those declared and those of the environment."""
    seen = {v.name: v.value for v in (inputs.one, *inputs.more)}
    text = [[f.path.read_text() for f in source.files] for source in inputs.files]
    told = {"seen": seen, "files": text, "environment": os.environ.get("TOY_UNDECLARED")}
    (ctx.out / "text.txt").write_bytes(canonical_json(told))


class PiecesInputs(Inputs):
    source: Source
    other: File | None = None


class PiecesParams(Params):
    fail_at: str = ""
    kill_engine_at: str = ""


@rule(output=File, cpus="all")
def pieces(ctx: Context, inputs: PiecesInputs, params: PiecesParams) -> None:
    """Write each line into a file of its own, by fragments."""
    lines = inputs.source.files[0].path.read_text().splitlines()
    work = [Piece(line, (line, params.fail_at)) for line in lines]
    for number, fragment in enumerate(ctx.fragments(_piece, work, of="source")):
        ctx.link(fragment.path / "line", f"{number:03d}-{fragment.value}")
    ctx.facts(rows=len(lines))


def _piece(piece: Piece, out: Path) -> int:
    line, fail_at = piece.payload
    if line == fail_at:
        raise RuleError(f"a line says {line}", code="E0899")
    (out / "line").write_text(line * 20_000)
    return len(line)


class RecallParams(Params):
    mark: str = ""


@rule(output=File)
def recall(ctx: Context, inputs: PiecesInputs, params: RecallParams) -> None:
    """Write down what is made once whatever the source: something that no two runs make alike."""

    def make(out: Path) -> None:
        (out / "noise").write_text(f"{params.mark} {os.urandom(16).hex()}")

    kept = ctx.once(make, "noise", of="source")
    ctx.link(kept / "noise", "noise")
    (ctx.out / "digest").write_text(ctx.digest(inputs.source.files[0].path))


class TroubleParams(Params):
    how: Literal["none", "raise", "say", "kill", "exit", "nothing", "partial", "checkpoint"]
    lines: int = 2
    memory_mb: int = 0


@rule(output=Model)
def trouble(ctx: Context, inputs: KeepInputs, params: TroubleParams) -> None:
    """Fail in a way that can be chosen."""
    for number in range(params.lines):
        print("line", number)
    _ = bytearray(os.urandom(1)) * (params.memory_mb << 20)
    if params.how == "raise":
        raise ZeroDivisionError("by nought")
    if params.how == "say":
        place = Place("rows.jsonl", 3, within="row 3")
        raise RuleError("row 3 has no answer", code="E0899", where=place, fix="write one")
    if params.how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if params.how == "exit":
        sys.exit(3)
    (ctx.out / "config.json").write_text("{}")
    if params.how != "nothing":
        (ctx.out / "model.safetensors").write_text("weights")
    if params.how == "partial":
        raise RuleError("half of it", code="E0899")
    if params.how == "checkpoint":
        _checkpoint(ctx, inputs.source.files[0].path)


def _checkpoint(ctx: Context, source: Path) -> None:
    """Get one step further, and then be killed, as often as the source has lines."""
    steps = ctx.scratch / "steps"
    done = steps.read_text() if steps.exists() else ""
    if len(done) < len(source.read_text().splitlines()):
        steps.write_text(done + "x")
        os.kill(os.getpid(), signal.SIGKILL)
    (ctx.out / "steps").write_text(done)
