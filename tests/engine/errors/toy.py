"""Rules for the manifests in this folder; none of them is ever run."""

from collections.abc import Mapping
from typing import Annotated, Literal

from ftbuild.api import (
    TOKENIZER,
    Adapter,
    AttributeProblem,
    Context,
    Dataset,
    Field,
    Inputs,
    Model,
    Params,
    Report,
    Source,
    Tokens,
    Variable,
    rule,
)


class RowsInputs(Inputs):
    source: Source | None = None


class RowsParams(Params):
    format: Literal["openai", "alpaca"] = "openai"


@rule(output=Dataset)
def rows(ctx: Context, inputs: RowsInputs, params: RowsParams) -> None:
    """Rows of files."""


class WeightsInputs(Inputs):
    source: Source | None = None


class WeightsParams(Params):
    layers: int = Field(1, ge=1, le=8)


@rule(output=Model)
def weights(ctx: Context, inputs: WeightsInputs, params: WeightsParams) -> None:
    """A base model."""


class IdsInputs(Inputs):
    dataset: Dataset
    model: Annotated[Model, TOKENIZER]


class IdsParams(Params):
    train_on: tuple[Literal["user", "assistant"], ...] = ("assistant",)
    max_length: int = Field(1024, gt=0)


@rule(output=Tokens)
def ids(ctx: Context, inputs: IdsInputs, params: IdsParams) -> None:
    """Token ids of rows."""


class TrainInputs(Inputs):
    model: Model
    data: Tokens
    adapter: Adapter | None = None


class Lora(Params):
    r: int = Field(gt=0)
    alpha: float = 32
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"


class TrainParams(Params):
    epochs: int = Field(1, gt=0)
    learning_rate: float = Field(1e-4, gt=0, lt=1)
    shuffle: bool = True
    schedule: Literal["linear", "cosine"] = "linear"
    note: str = ""
    lora: Lora | None = None


def kind(kinds: Mapping[str, tuple[str, ...]], params: TrainParams) -> type[Model] | type[Adapter]:
    return Adapter if params.lora or "adapter" in kinds else Model


def check_train(kinds: Mapping[str, tuple[str, ...]], params: TrainParams) -> None:
    if "adapter" in kinds and params.lora:
        raise AttributeProblem(
            "lora", "`lora` starts an adapter and `adapter` continues one", "remove one of them"
        )


@rule(output=kind, check=check_train)
def train(ctx: Context, inputs: TrainInputs, params: TrainParams) -> None:
    """A model, or an adapter, taught."""


class FoldInputs(Inputs):
    model: Model
    adapter: Adapter


class FoldParams(Params):
    pass


@rule(output=Model)
def fold(ctx: Context, inputs: FoldInputs, params: FoldParams) -> None:
    """An adapter folded into its model."""


class CompareInputs(Inputs):
    models: tuple[Model | Adapter, ...]
    prompts: dict[str, Dataset] = Field(default_factory=dict)
    env: tuple[Variable, ...] = ()


class CompareParams(Params):
    title: str


@rule(output=Report)
def compare(ctx: Context, inputs: CompareInputs, params: CompareParams) -> None:
    """Models beside each other."""
