"""`harness`: tasks of lm-evaluation-harness, on data that lies in the project.

[harness.exam]
model = "merged_model"
source = "exam"                          # a folder with the task's YAML and its data
tasks = ["shop"]
gates = { "shop/acc" = ">= 0.7" }

exam/shop.yaml names its data by the path within the folder: `dataset_path: json`,
`dataset_kwargs: {data_files: {test: shop.jsonl}}`. There is no network: a task that fetches its
data from the hub fails. A rule of its own beside `evaluate`, since the harness's version is in the
key of what it measures.
"""

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ftbuild.api import (
    Adapter,
    Context,
    Field,
    Inputs,
    Model,
    Params,
    QuantizedModel,
    Report,
    RuleError,
    Source,
    canonical_json,
    rule,
)
from ftbuild_rules.evaluation._answers import load_answerer, load_tokenizer
from ftbuild_rules.evaluation._gates import check_gates, figures_page, require_gates
from ftbuild_rules.evaluation._measures import require_own
from ftbuild_rules.quantization._pins import with_quantized


class HarnessInputs(Inputs):
    """Who is measured, and by which tasks."""

    model: Model | QuantizedModel
    """The model to measure."""
    adapter: Adapter | None = None
    """Measure `model` with this adapter of it."""
    source: Source
    """A folder of tasks: YAML files of lm-evaluation-harness, and the data they name."""


class HarnessParams(Params):
    """Which tasks, and what the figures must be."""

    tasks: tuple[str, ...] = Field(min_length=1)
    """Names of tasks or groups in `source`."""
    num_fewshot: int | None = Field(None, ge=0)
    """Examples before each question, where a task shall not decide."""
    apply_chat_template: bool = False
    """Ask through the model's chat template."""
    gates: dict[str, str] = Field(default_factory=dict)
    """What must hold for the build to go on: `{ "shop/acc" = ">= 0.7" }`."""
    seed: int = Field(1234, ge=0, lt=2**32)
    """Of the choice of examples."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The type to compute in."""
    threads: int = Field(1, ge=1)
    """CPU threads; their number changes the last digits of sums."""


def check(kinds: Mapping[str, tuple[str, ...]], params: HarnessParams) -> None:
    """Refuse a gate that cannot be read."""
    check_gates(params.gates, None)


@rule(
    version=1,
    output=Report,
    pins=with_quantized("lm_eval", "torch", "transformers", "peft", "tokenizers", "datasets"),
    check=check,
    gpus=1,
)
def harness(ctx: Context, inputs: HarnessInputs, params: HarnessParams) -> None:
    """Measure a model by tasks of lm-evaluation-harness; its `gates` fail the build."""
    require_own(inputs.adapter, inputs.model)
    folder = _laid_out(ctx.scratch, inputs.source)
    import datasets
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    datasets.config.HF_DATASETS_CACHE = str(ctx.scratch / "datasets")  # not another action's
    torch.set_num_threads(params.threads)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    if unknown := [name for name in params.tasks if name not in manager.all_tasks]:
        raise RuleError(
            f"there is no task `{unknown[0]}` in `{inputs.source.spec}`",
            code="E0956",
            fix=f"known are {', '.join(sorted(manager.all_tasks)) or 'none'}",
        )
    asked = HFLM(
        pretrained=load_answerer(inputs.model, inputs.adapter, params.dtype),
        tokenizer=load_tokenizer(inputs.model, inputs.adapter),
        batch_size=1,  # so that no figure depends on who shares a batch
    )
    with contextlib.chdir(folder):
        found = simple_evaluate(
            model=asked,
            tasks=list(params.tasks),
            task_manager=manager,
            num_fewshot=params.num_fewshot,
            apply_chat_template=params.apply_chat_template,
            bootstrap_iters=0,
            log_samples=False,
            random_seed=params.seed,
            numpy_random_seed=params.seed,
            torch_random_seed=params.seed,
            fewshot_random_seed=params.seed,
        )
    figures = _figures(found["results"])
    require_gates(ctx, params.gates, figures)
    report = {"figures": figures, "gates": dict(params.gates)}
    (ctx.out / "report.json").write_bytes(canonical_json(report))
    (ctx.out / "report.md").write_text(figures_page(figures, params.gates), encoding="utf-8")
    ctx.facts(**figures)


def _laid_out(scratch: Path, source: Source) -> Path:
    """Return a folder of its own with the files of `source`: tasks name data by their path."""
    folder = scratch / "tasks"
    shutil.rmtree(folder, ignore_errors=True)
    for file in source.files:
        path = folder / file.relative
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.path, path)
    return folder


def _figures(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return `task/metric`, with the filter behind a comma where there is one."""
    return {
        f"{task}/{metric.removesuffix(',none')}": float(value)
        for task, row in sorted(results.items())
        for metric, value in sorted(row.items())
        if isinstance(value, int | float) and "_stderr" not in metric and "," in metric
    }
