"""The same bytes in another process, as another user, and after a kill."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ftbuild.testing import tree_digest
from ftbuild_rules.training._checkpoints import Checkpoints
from grpo_kit import EVEN, function, make_prompts, some_prompts
from resuming import job, run_here
from tiny_models import (
    make_model,
    make_tokens,
    preference_rows,
    sft_rows,
    step_rows,
    warnings_of_libraries,
)

pytestmark = warnings_of_libraries()
HERE = Path(__file__).parent
ROOT = HERE.parents[2]


class Warm:
    """A process that forks one for each request, with another hash seed than this one's."""

    def __init__(self) -> None:
        paths = [ROOT, ROOT / "rules", ROOT / "tests", HERE]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "PYTHONHASHSEED": "123",
            "HF_HUB_OFFLINE": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "_warm.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
        )

    def run(self, *jobs: tuple[str, Path], **settings: Any) -> int:
        """Run jobs in one new process; return its exit status."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        plain = [[rule, str(folder)] for rule, folder in jobs]
        self._process.stdin.write(json.dumps({"jobs": plain, **settings}) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    process = Warm()
    yield process
    process.close()


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, Path]]:
    """What the methods train on, by the name that `METHODS` has for it."""
    folder = tmp_path_factory.mktemp("given")
    rows = {"rows": sft_rows(), "pairs": preference_rows(10), "steps": step_rows()}
    tokens = {
        name: make_tokens(
            folder / name, some, per_shard=5, form="stepwise" if name == "steps" else None
        )
        for name, some in rows.items()
    }
    model = make_model(folder / "model")
    first = job(
        folder / "adapter", {"model": ("model", model), "data": ("tokens", tokens["rows"])}, **SFT
    )
    run_here("sft", first)
    return {
        "model": ("model", model),
        "adapter": ("adapter", first / "out"),
        "rewards": ("functions", Path(f"{function(folder / 'code', EVEN, 'even').path}:even")),
        "prompts": ("tokens", make_prompts(folder / "prompts", some_prompts(6))),
        **{name: ("tokens", path) for name, path in tokens.items()},
    }


LORA = {"r": 4, "alpha": 8, "dropout": 0.2}
SFT: dict[str, Any] = {
    "batch_size": 2,
    "gradient_accumulation": 2,
    "epochs": 3,
    "learning_rate": 1e-2,
    "lora": LORA,
}
SHORT: dict[str, Any] = {"max_completion_length": 4, "epochs": 1, "lora": {"r": 4}}
PAIRS: dict[str, Any] = {"batch_size": 2, "epochs": 2, "learning_rate": 1e-2}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("rows", SFT),
    "pretrain": ("rows", {"batch_size": 2, "max_steps": 3, "config": {"hidden_size": 16}}),
    "dpo": ("pairs", PAIRS),
    "ipo": ("pairs", PAIRS),
    "kto": ("pairs", {**PAIRS, "epochs": 1}),
    "orpo": ("pairs", PAIRS),
    "reward_model": ("pairs", {**PAIRS, "lora": LORA}),
    "prm": ("steps", {**PAIRS, "lora": LORA}),
    "grpo": ("prompts", {**PAIRS, "batch_size": 4, "num_generations": 4, **SHORT}),
    "reference_logprobs": ("pairs", {"kl_batch_size": 2}),
}
CONTINUED = ("dpo", "ipo", "kto", "orpo", "reference_logprobs")


def job_of(rule: str, given: dict[str, tuple[str, Path]], folder: Path) -> Path:
    data, params = METHODS[rule]
    inputs = {"model": given["model"], "data": given[data]}
    if rule in CONTINUED:
        inputs["adapter"] = given["adapter"]
    if rule == "grpo":
        inputs["rewards"] = given["rewards"]
    return job(folder, inputs, **params)


@pytest.mark.parametrize("rule", METHODS)
def test_another_process_in_another_folder_gives_the_same_bytes(
    tmp_path: Path, warm: Warm, given: dict[str, tuple[str, Path]], rule: str
) -> None:
    here = job_of(rule, given, tmp_path / "here")
    there = job_of(rule, given, tmp_path / "another" / "folder" / "there")
    assert run_here(rule, here) == []
    assert warm.run((rule, there)) == 0
    assert tree_digest(here / "out") == tree_digest(there / "out")


KILLS = {
    **dict.fromkeys(("sft", "dpo", "kto"), (2, 3, 5, 7, 9)),
    **dict.fromkeys(("ipo", "orpo", "reward_model", "prm"), (2, 6)),
    "grpo": (2, 5),
    "pretrain": (2, 3),
}
"""In which steps each method is killed."""


@pytest.mark.fault("18", "a training killed at a step")
@pytest.mark.parametrize("rule", KILLS)
def test_training_that_is_killed_at_any_step_resumes_to_the_same_bytes(
    tmp_path: Path, warm: Warm, given: dict[str, tuple[str, Path]], rule: str
) -> None:
    """A real SIGKILL, each time anew; the checkpoint of the step before is there."""
    straight = job_of(rule, given, tmp_path / "straight")
    run_here(rule, straight)
    for step in KILLS[rule]:
        killed = job_of(rule, given, tmp_path / f"killed-{step}")
        assert warm.run((rule, killed), kill_at=step) == -signal.SIGKILL
        assert not list((killed / "out").iterdir())
        assert run_here(rule, killed) == [f"resuming from checkpoint-{step - 1}"]
        assert tree_digest(killed / "out") == tree_digest(straight / "out")


@pytest.mark.fault("18", "a training killed again and again")
def test_training_that_is_killed_again_and_again_ends_with_the_same_bytes(
    tmp_path: Path, warm: Warm, given: dict[str, tuple[str, Path]]
) -> None:
    straight = job_of("sft", given, tmp_path / "straight")
    run_here("sft", straight)
    killed = job_of("sft", given, tmp_path / "killed")
    for step in (2, 4, 7):
        assert warm.run(("sft", killed), kill_at=step) == -signal.SIGKILL
    run_here("sft", killed)
    assert tree_digest(killed / "out") == tree_digest(straight / "out")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_another_user_gets_the_same_bytes(warm: Warm, given: dict[str, tuple[str, Path]]) -> None:
    with tempfile.TemporaryDirectory() as open_to_all:
        root = Path(open_to_all)
        root.chmod(0o755)
        copied = {
            name: (kind, Path(shutil.copytree(path, root / name)))
            for name, (kind, path) in given.items()
            if kind != "functions"
        }
        mine, theirs = job_of("sft", copied, root / "mine"), job_of("sft", copied, root / "theirs")
        for path in root.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        for name in ("out", "scratch"):
            (theirs / name).mkdir()
            (theirs / name).chmod(0o777)
        assert warm.run(("sft", mine), ("sft", theirs), uid=65534) == 0
        assert (theirs / "out" / "base.json").stat().st_uid == 65534
        assert tree_digest(mine / "out") == tree_digest(theirs / "out")


@pytest.mark.parametrize("lora", [None, {"r": 4, "dropout": 0.2}])
def test_run_resumes_from_each_step_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: dict[str, Any] | None
) -> None:
    """A failure in place of a kill: the scratch folder it leaves is the same.

    Three epochs of three steps, evaluated after each: steps 3 and 6 end one.
    """
    from ftbuild.api import Model, Tokens
    from ftbuild.testing import RecordingContext, artifact, context, run_rule
    from ftbuild_rules.training import _checkpoints
    from ftbuild_rules.training.sft import sft

    tokens = artifact(Tokens, make_tokens(tmp_path / "tokens", sft_rows()))
    model = artifact(Model, make_model(tmp_path / "model"))
    inputs = {"model": model, "data": tokens, "eval_data": tokens}
    params: dict[str, Any] = {"batch_size": 4, "epochs": 3, "learning_rate": 1e-2}
    params |= {} if lora is None else {"lora": lora}
    straight = context(tmp_path)
    whole = run_rule(sft, inputs, params, tmp_path, ctx=straight)

    class Stops(RecordingContext):
        def progress(self, step: int, steps: int | None = None, **metrics: float) -> None:
            if step == stop_at:
                raise KeyboardInterrupt

    monkeypatch.setattr(_checkpoints, "INTERVAL_S", 0.0)
    monkeypatch.setattr(_checkpoints, "SHARE", 0)
    for stop_at in (4, 6, 9):  # which `Stops` reads
        first = context(tmp_path)
        with pytest.raises(KeyboardInterrupt):
            run_rule(sft, inputs, params, tmp_path, ctx=Stops(first.out, first.scratch))
        again = RecordingContext(first.out, first.scratch)
        assert run_rule(sft, inputs, params, tmp_path, ctx=again).digest == whole.digest
        assert again.logs == [f"resuming from checkpoint-{stop_at - 1}"]
        told = figures(straight)
        assert figures(again) == {step: told[step] for step in told if step >= stop_at}


def figures(ctx: Any) -> dict[int, dict[str, float]]:
    """What was told of each step, but for the speed and for what is measured beside it."""
    return {
        step: {name: value for name, value in metrics.items() if name != "tokens_per_s"}
        for step, _, metrics in ctx.steps
        if "loss" in metrics
    }


def checkpoint(folder: Path, step: int, *, seal: bool = True) -> Path:
    path = folder / "checkpoints" / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "weights").write_bytes(bytes(100))
    if seal:
        Checkpoints.of(folder).seal(step, began=0.0)
    return path


@pytest.mark.fault("18", "a checkpoint that was not finished")
def test_unsealed_checkpoint_is_deleted_and_the_one_before_is_used(tmp_path: Path) -> None:
    older = checkpoint(tmp_path, 9)
    newer = checkpoint(tmp_path, 10, seal=False)
    assert Checkpoints.of(tmp_path).newest() == older
    assert not newer.exists()


@pytest.mark.fault("18", "a checkpoint that was changed")
def test_changed_checkpoint_is_not_used(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 9)
    (path / "weights").write_bytes(bytes(99) + b"x")
    assert Checkpoints.of(tmp_path).newest() is None
    assert not path.exists()


def test_sealed_checkpoint_replaces_older_ones(tmp_path: Path) -> None:
    older, newer = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)
    assert not older.exists()
    assert Checkpoints.of(tmp_path).newest() == newer
