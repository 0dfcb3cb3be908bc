"""What this machine cannot do is refused before a model is loaded; trackers can do no harm."""

from pathlib import Path
from typing import Any

import pytest

from ftbuild.api import Artifact, AttributeProblem, Model, RuleError, Tokens
from ftbuild.testing import RecordingContext, artifact, context, run_rule
from ftbuild_rules.training import _trackers
from ftbuild_rules.training.dpo import dpo
from ftbuild_rules.training.reference_logprobs import reference_logprobs
from ftbuild_rules.training.sft import sft
from tiny_models import make_model, make_tokens, preference_rows, sft_rows, warnings_of_libraries

pytestmark = warnings_of_libraries()
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("inputs")
    return {
        "model": artifact(Model, make_model(folder / "model")),
        "data": artifact(Tokens, make_tokens(folder / "tokens", sft_rows(4))),
    }


def train(
    tmp_path: Path, inputs: dict[str, Artifact], **params: Any
) -> tuple[Artifact, RecordingContext]:
    ctx = context(tmp_path)
    defaults = {"batch_size": 4, "learning_rate": 1e-2, "max_steps": 3, "lora": {"r": 4}}
    return run_rule(sft, inputs, {**defaults, **params}, tmp_path, ctx=ctx), ctx


@pytest.fixture
def no_weights(tmp_path: Path, inputs: dict[str, Artifact]) -> dict[str, Artifact]:
    """The same, of a model whose weights cannot be loaded."""
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in inputs["model"].path.iterdir():
        if path.suffix != ".safetensors":
            (bare / path.name).write_bytes(path.read_bytes())
    return {**inputs, "model": artifact(Model, bare)}


@pytest.mark.parametrize(
    ("params", "code", "what", "fix"),
    [
        (
            {"attention": "flash_attention_2", "dtype": "bfloat16"},
            "E0951",
            "FlashAttention is not installed",
            'pip install "ftbuild[flash-attn]" where there is a GPU; or set `attention = "sdpa"`',
        ),
        (
            {"liger": True},
            "E0951",
            "Liger is not installed",
            'pip install "ftbuild[liger]" where there is a GPU; or remove `liger`',
        ),
        (
            {"optimizer": "paged_adamw_8bit"},
            "E0954",
            '`optimizer = "paged_adamw_8bit"` needs a GPU, and this action has none',
            'set `optimizer = "adamw_8bit"`; where the machine has one, '
            "`resources = { gpus = 1 }` gives it",
        ),
        (
            {"optimizer": "paged_adamw_32bit"},
            "E0954",
            '`optimizer = "paged_adamw_32bit"` needs a GPU, and this action has none',
            'set `optimizer = "adamw_torch"`; where the machine has one, '
            "`resources = { gpus = 1 }` gives it",
        ),
        (
            {"dtype": "float16"},
            "E0954",
            '`dtype = "float16"` needs a GPU, and this action has none',
            'set `dtype = "float32"`, or "bfloat16"; where the machine has one, '
            "`resources = { gpus = 1 }` gives it",
        ),
    ],
)
def test_what_a_cpu_has_not_is_refused_before_weights_are_read(
    tmp_path: Path,
    no_weights: dict[str, Artifact],
    params: dict[str, Any],
    code: str,
    what: str,
    fix: str,
) -> None:
    with pytest.raises(RuleError) as caught:
        train(tmp_path, no_weights, **params)
    [problem] = caught.value.problems
    assert (problem.code, problem.what, problem.fix) == (code, what, fix)


def test_flash_attention_in_float32_is_refused(tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    with pytest.raises(AttributeProblem) as caught:
        train(tmp_path, inputs, attention="flash_attention_2")
    assert caught.value.what == "`flash_attention_2` does not compute in float32"


def test_other_rules_ask_the_machine_too(tmp_path: Path, no_weights: dict[str, Artifact]) -> None:
    pairs = artifact(Tokens, make_tokens(tmp_path / "pairs", preference_rows()))
    for rule in (dpo, reference_logprobs):
        with pytest.raises(RuleError, match="needs a GPU"):
            run_rule(rule, {**no_weights, "data": pairs}, {"dtype": "float16"}, tmp_path)


@pytest.fixture
def tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'rules'}")
    monkeypatch.setenv("FTBUILD_TRACKER_FOLDER", str(tmp_path / "trackers"))
    monkeypatch.setenv("FTBUILD_TRACKER_RUN", "helper")
    return tmp_path / "trackers"


def test_tensorboard_has_the_figures_of_each_step_and_the_bytes_are_the_same(
    tmp_path: Path,
    inputs: dict[str, Artifact],
    monkeypatch: pytest.MonkeyPatch,
    tracked: Path,
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    inputs = {**inputs, "eval_data": inputs["data"]}
    plain, _ = train(tmp_path, inputs)
    monkeypatch.setenv("FTBUILD_TRACKERS", "tensorboard")
    made, ctx = train(tmp_path, inputs)
    assert made.digest == plain.digest
    assert ctx.warnings == []
    read = EventAccumulator(str(tracked / "tensorboard" / "helper"))
    read.Reload()
    found = [(event.step, event.value) for event in read.Scalars("loss")]
    expected = [(step, m["loss"]) for step, _, m in ctx.steps if "loss" in m]
    assert found == [(step, pytest.approx(loss)) for step, loss in expected]
    assert len(read.Scalars("eval_loss")) == 3


def test_tracker_that_fails_or_hangs_is_a_warning(
    tmp_path: Path,
    inputs: dict[str, Artifact],
    monkeypatch: pytest.MonkeyPatch,
    tracked: Path,
) -> None:
    """Two of the four, in the place of their packages: one that raises, one that never returns."""
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "wandb.py").write_text("raise RuntimeError('no network')\n")
    (hook / "trackio.py").write_text("import threading; threading.Event().wait()\n")
    monkeypatch.setenv("PYTHONPATH", f"{hook}:{ROOT}:{ROOT / 'rules'}")
    monkeypatch.setenv("FTBUILD_TRACKERS", "wandb trackio")
    monkeypatch.setattr(_trackers, "WAIT_S", 1)
    made, ctx = train(tmp_path, inputs)
    assert sorted(ctx.warnings) == [
        "the tracker `trackio` sent nothing for 1 s; the log says why. Nothing else is affected",
        "the tracker `wandb` failed; the log says why. Nothing else is affected",
    ]
    monkeypatch.delenv("FTBUILD_TRACKERS")
    assert train(tmp_path, inputs)[0].digest == made.digest
