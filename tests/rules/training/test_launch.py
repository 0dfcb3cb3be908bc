"""Several processes on one machine: each strategy is what it claims, and no process stays behind.

Two processes over gloo on a CPU; the losses are those of one process at the same global batch.
"""

import json
import os
import signal
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from ftbuild.api import Artifact, AttributeProblem, Model, RuleError, Tokens
from ftbuild.testing import RecordingContext, artifact, context, run_rule, tree_digest
from ftbuild_rules.quantization.quantize import quantize
from ftbuild_rules.training.dpo import dpo
from ftbuild_rules.training.kto import kto
from ftbuild_rules.training.orpo import orpo
from ftbuild_rules.training.prm import prm
from ftbuild_rules.training.reward_model import reward_model
from ftbuild_rules.training.sft import sft
from resuming import child, job, read_until, run_here
from tiny_models import (
    make_model,
    make_tokens,
    preference_rows,
    sft_rows,
    step_rows,
    warnings_of_libraries,
)

pytestmark = warnings_of_libraries()
ROOT = Path(__file__).parents[3]
LORA = {"r": 4, "alpha": 8}
needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="no DeepSpeed here")


@pytest.fixture(scope="module", autouse=True)
def tree() -> Any:
    """The processes import this tree; how many threads they have is the rule's to say."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "rules")]))
        patch.setenv("PYTHONHASHSEED", "0")
        patch.delenv("OMP_NUM_THREADS", raising=False)
        yield


def inputs_of(tmp_path: Path, *, pairs: bool = False, **model: Any) -> dict[str, Artifact]:
    rows: Any = preference_rows(16) if pairs else sft_rows(16)
    return {
        "model": artifact(Model, make_model(tmp_path / "model", **model)),
        "data": artifact(Tokens, make_tokens(tmp_path / "tokens", rows)),
    }


def train(
    tmp_path: Path, rule: Any, inputs: dict[str, Artifact], **params: Any
) -> tuple[Artifact, RecordingContext]:
    ctx = context(tmp_path)
    defaults = {"batch_size": 4, "learning_rate": 1e-2, "epochs": 2}
    return run_rule(rule, inputs, {**defaults, **params}, tmp_path, ctx=ctx), ctx


def losses(ctx: RecordingContext) -> list[float]:
    return [metrics["loss"] for _, _, metrics in ctx.steps if "loss" in metrics]


def weights(made: Artifact) -> dict[str, Any]:
    from safetensors.torch import load_file

    name = "adapter_model" if (made.path / "base.json").exists() else "model"
    return dict(load_file(made.path / f"{name}.safetensors"))


def same_layout(one: Artifact, two: Artifact) -> None:
    """The same files, all but weights and cards to the byte; tensors to the last digits."""
    files = sorted(p.name for p in one.path.iterdir())
    assert sorted(p.name for p in two.path.iterdir()) == files
    for name in files:
        if not name.endswith(".safetensors") and name not in ("README.md", "card.json"):
            assert (one.path / name).read_bytes() == (two.path / name).read_bytes()
    first, second = weights(one), weights(two)
    assert list(first) == list(second)
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype
        assert tensor.shape == second[name].shape
        assert (tensor - second[name]).abs().max() < 1e-3


DDP = {"processes": 2, "strategy": "ddp"}
FSDP = {"processes": 2, "strategy": "fsdp"}
ZERO2 = {"processes": 2, "strategy": "deepspeed"}


@pytest.mark.parametrize(
    ("launch", "lora", "expected"),
    [
        (DDP, LORA, {"wrapper": "DistributedDataParallel", "weights_held": [29280, 29280]}),
        (FSDP, None, {"wrapper": "FSDPLlamaForCausalLM", "weights_held": [12784, 12784]}),
        pytest.param(
            ZERO2,
            None,
            {"wrapper": "DeepSpeedEngine", "optimizer_held": [12784, 12784], "optimizer": 25568},
            marks=needs_deepspeed,
        ),
    ],
    ids=["ddp-lora", "fsdp-full", "zero2-full"],
)
def test_processes_hold_what_they_claim_and_follow_the_curve_of_one(
    tmp_path: Path, launch: dict[str, Any], lora: dict[str, Any] | None, expected: dict[str, Any]
) -> None:
    """The base's head is its embedding: 25,568 numbers, and 3,712 in the adapter."""
    inputs = inputs_of(tmp_path, tie_word_embeddings=True)
    inputs["eval_data"] = inputs["data"]
    params = {} if lora is None else {"lora": lora}
    one, alone = train(tmp_path, sft, inputs, batch_size=8, **params)
    two, ctx = train(tmp_path, sft, inputs, launch=launch, **params)
    assert losses(ctx) == pytest.approx(losses(alone), abs=1e-4)
    assert len(losses(ctx)) == 4
    assert ctx.known["eval_loss"] == pytest.approx(alone.known["eval_loss"], abs=2e-2)
    found = ctx.known["launch"]
    assert {name: found[name] for name in expected} == expected
    assert found["processes"] == 2
    same_layout(one, two)


def test_preferences_in_two_processes_follow_the_curve_of_one(tmp_path: Path) -> None:
    """The likelihood beside the preference is a mean over tokens, of which each has others."""
    inputs = inputs_of(tmp_path, pairs=True)
    params = {"loss": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5], "lora": LORA}
    one, alone = train(tmp_path, dpo, inputs, batch_size=8, **params)
    two, ctx = train(tmp_path, dpo, inputs, launch=DDP, **params)
    assert losses(ctx) == pytest.approx(losses(alone), abs=1e-4)
    assert ctx.warnings == []
    same_layout(one, two)


@pytest.mark.parametrize(
    ("rule", "params"),
    [
        (orpo, {}),
        (kto, {}),
        pytest.param(reward_model, {"centering": 0.1}, marks=pytest.mark.slow),
        (prm, {}),
    ],
)
def test_method_in_two_processes_follows_the_curve_of_one(
    tmp_path: Path, rule: Any, params: dict[str, Any]
) -> None:
    """Completions, steps and pairs are of different length, so means must be over all of them."""
    rows: Any = step_rows(16) if rule is prm else preference_rows(16)
    form = "stepwise" if rule is prm else "preference"
    inputs = {
        "model": artifact(Model, make_model(tmp_path / "model", classifier_dropout=0.0)),
        "data": artifact(Tokens, make_tokens(tmp_path / "tokens", rows, form=form)),
    }
    _, alone = train(tmp_path, rule, inputs, batch_size=8, lora=LORA, **params)
    _, ctx = train(tmp_path, rule, inputs, launch=DDP, lora=LORA, **params)
    assert len(losses(ctx)) == (8 if rule is kto else 4)
    assert losses(ctx) == pytest.approx(losses(alone), abs=1e-4)


def quantized_inputs(tmp_path: Path) -> dict[str, Artifact]:
    inputs = inputs_of(tmp_path, hidden_size=64, intermediate_size=128)
    base = run_rule(quantize, {"model": inputs["model"]}, {"method": "nf4"}, tmp_path)
    return {**inputs, "model": base}


def test_quantized_base_in_two_processes_follows_the_curve_of_one(tmp_path: Path) -> None:
    inputs = quantized_inputs(tmp_path)
    one, alone = train(tmp_path, sft, inputs, batch_size=8, lora=LORA)
    two, ctx = train(tmp_path, sft, inputs, launch=DDP, lora=LORA)
    assert losses(ctx) == pytest.approx(losses(alone), abs=1e-4)
    same_layout(one, two)


@needs_deepspeed
def test_quantized_base_under_deepspeed_shares_the_states_of_its_adapter(tmp_path: Path) -> None:
    inputs = quantized_inputs(tmp_path)
    _, alone = train(tmp_path, sft, inputs, batch_size=8, lora=LORA)
    _, ctx = train(tmp_path, sft, inputs, launch=ZERO2, lora=LORA)
    assert losses(ctx) == pytest.approx(losses(alone), abs=1e-4)
    held, total = ctx.known["launch"]["optimizer_held"], ctx.known["launch"]["optimizer"]
    assert max(held) < total * 0.75


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launch", "init"),
    [(FSDP, "corda"), pytest.param(ZERO2, "loftq", marks=needs_deepspeed)],
)
def test_start_that_follows_from_more_than_the_weights_is_that_of_one_process(
    tmp_path: Path, launch: dict[str, Any], init: str
) -> None:
    """CorDA takes its start out of the base before that is cut, and LoftQ makes up for it."""
    inputs = quantized_inputs(tmp_path)
    whole = artifact(Model, tmp_path / "model")
    inputs = {**inputs, "quantized_from": whole} if init == "loftq" else {**inputs, "model": whole}
    lora = {**LORA, "init": init}
    one, alone = train(tmp_path, sft, inputs, batch_size=8, lora=lora)
    two, ctx = train(tmp_path, sft, inputs, launch=launch, lora=lora)
    assert losses(ctx) == pytest.approx(losses(alone), abs=1e-4)
    same_layout(one, two)


def test_single_rows_of_an_embedding_cannot_be_shared_out(tmp_path: Path) -> None:
    inputs = inputs_of(tmp_path)
    lora = {**LORA, "trainable_tokens": [7]}
    what = "`fsdp` cannot share out single rows of an embedding, as `trainable_tokens` trains them"
    with pytest.raises(AttributeProblem) as refused:
        train(tmp_path, sft, inputs, launch=FSDP, lora=lora)
    assert refused.value.what == what
    adapter, _ = train(tmp_path, sft, inputs, lora=lora)
    with pytest.raises(RuleError) as caught:
        train(tmp_path, sft, {**inputs, "adapter": adapter}, launch=FSDP)
    assert (caught.value.problems[0].code, caught.value.problems[0].what) == ("E0952", what)


@pytest.mark.parametrize(
    "launch", [FSDP, {**ZERO2, "settings": {"zero_optimization": {"stage": 3}}}]
)
def test_weights_of_a_quantized_base_cannot_be_shared_out(
    tmp_path: Path, launch: dict[str, Any]
) -> None:
    with pytest.raises(AttributeProblem) as caught:
        train(tmp_path, sft, quantized_inputs(tmp_path), launch=launch, lora=LORA)
    assert caught.value.attribute == "launch"
    assert caught.value.what == (
        "`model` is quantized, and its packed weights cannot be shared out among processes"
    )


def test_what_goes_wrong_in_one_process_is_told_and_nothing_is_kept(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    params = {"batch_size": 4, "learning_rate": 1e38, "lora": LORA, "launch": DDP}
    with pytest.raises(RuleError, match="loss is nan at step 2; training stopped") as caught:
        run_rule(sft, inputs_of(tmp_path), params, tmp_path, ctx=ctx)
    [problem] = caught.value.problems
    assert problem.code == "E0910"
    assert problem.where is not None
    assert problem.where.path == "tokens"
    assert not list(ctx.out.iterdir())


def broken(tmp_path: Path, function: str) -> str:
    """Return a PYTHONPATH under which a function of `_sharding` does nothing."""
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(
        "from ftbuild_rules.training import _sharding\n"
        "def nothing(*_):\n"
        f"    if {function!r} == '_joined_for_deepspeed':  # else it compiles for minutes\n"
        "        import deepspeed.ops\n"
        "        deepspeed.ops.__compatible_ops__['deepspeed_shm_comm'] = False\n"
        "    return {}\n"
        f"_sharding.{function} = nothing\n"
    )
    return os.pathsep.join([str(hook), os.environ["PYTHONPATH"]])


@pytest.mark.parametrize(
    ("launch", "function", "found"),
    [
        (
            FSDP,
            "use_fsdp",
            "asked for `fsdp` in 2 processes; this runs as `DistributedDataParallel`",
        ),
        pytest.param(
            ZERO2,
            "_joined_for_deepspeed",
            "asked for `deepspeed` in 2 processes; this runs as 2 joined processes of which 1 "
            "share the rows",
            marks=needs_deepspeed,
        ),
    ],
)
def test_silent_fallback_of_the_libraries_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    launch: dict[str, Any],
    function: str,
    found: str,
) -> None:
    monkeypatch.setenv("PYTHONPATH", broken(tmp_path, function))
    with pytest.raises(RuleError) as caught:
        train(tmp_path, sft, inputs_of(tmp_path), lora=LORA, launch=launch)
    assert (caught.value.problems[0].code, caught.value.problems[0].what) == ("E0952", found)


def started(folder: Path, launch: dict[str, Any], hook: Path | None = None) -> Any:
    """Start a training in processes, wait for its fourth step; return it and its processes."""
    inputs = inputs_of(folder)
    named = {name: (each.kind, each.path) for name, each in inputs.items()}
    params = {"batch_size": 4, "learning_rate": 1e-2, "epochs": 3, "lora": LORA, "launch": launch}
    process = child("sft", job(folder / "job", named, **params), interval_s=0, first_path=hook)
    assert read_until("step 4\n", process)
    own = psutil.Process(process.pid).children(recursive=True)
    assert len([each for each in own if "_process" in " ".join(each.cmdline())]) == 2
    return process, own


def end(process: Any, own: list[Any], how: signal.Signals) -> None:
    process.send_signal(how)
    process.wait(timeout=60)
    process.stdout.close()
    _, alive = psutil.wait_procs(own, timeout=60)
    assert alive == []


def test_killed_launch_leaves_no_process_and_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(
        "from ftbuild_rules.training import _checkpoints\n"
        "_checkpoints.INTERVAL_S = 0.0\n"
        "_checkpoints.SHARE = 0\n"
    )
    end(*started(tmp_path, FSDP, hook), signal.SIGKILL)
    killed = tmp_path / "job"
    assert not list((killed / "out").iterdir())
    logged = run_here("sft", killed)
    assert logged in [[f"resuming from checkpoint-{step}"] for step in (3, 4, 5)]

    given = json.loads((killed / "inputs.json").read_text())
    named = {field: (kind, Path(path)) for field, (kind, path) in given.items()}
    params = json.loads((killed / "params.json").read_text())
    straight = job(tmp_path / "straight", named, **params)
    assert run_here("sft", straight) == []
    assert tree_digest(killed / "out") == tree_digest(straight / "out")


def test_interrupted_launch_leaves_no_process(tmp_path: Path) -> None:
    end(*started(tmp_path, DDP), signal.SIGINT)
    assert not list((tmp_path / "job" / "out").iterdir())


@pytest.mark.parametrize(
    ("launch", "params", "what"),
    [
        (
            {"processes": 2, "settings": {"cpu_offload": True}},
            {},
            "the strategy `ddp` has no setting `cpu_offload`",
        ),
        (
            {**FSDP, "settings": {"shard": True}},
            {},
            "the strategy `fsdp` has no setting `shard`",
        ),
        (
            {**ZERO2, "settings": {"gradient_clipping": 1.0}},
            {},
            "`launch.settings.gradient_clipping` is what the attribute `max_grad_norm` says",
        ),
        (
            FSDP,
            {"keep": "best"},
            '`keep = "best"` copies whole weights, and with `fsdp` no process has them',
        ),
    ],
)
def test_launch_that_contradicts_itself_is_refused(
    tmp_path: Path, launch: dict[str, Any], params: dict[str, Any], what: str
) -> None:
    inputs = inputs_of(tmp_path)
    inputs["eval_data"] = inputs["data"]
    with pytest.raises(AttributeProblem) as caught:
        train(tmp_path, sft, inputs, launch=launch, **params)
    assert caught.value.what == what


def test_process_whose_starter_is_gone_ends_at_once(tmp_path: Path) -> None:
    """It asks the kernel to die with its starter, and looks whether that was too late."""
    import sys

    environment = {**os.environ, "FTBUILD_LAUNCHER": "1", "FTBUILD_LAUNCH": str(tmp_path)}
    argv = [sys.executable, "-m", "ftbuild_rules.training._process"]
    assert subprocess.run(argv, env=environment).returncode == 1
