"""The same bytes in another process, and after a kill."""

import signal
from pathlib import Path
from typing import Any

import pytest

from ftbuild.testing import tree_digest
from ftbuild_rules.training._checkpoints import Checkpoints
from resuming import child, job, read_until, run_here
from tiny_models import make_model, make_tokens, preference_rows, sft_rows, warnings_of_libraries

pytestmark = warnings_of_libraries()


def test_another_process_and_a_killed_one_give_the_same_bytes(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    tokens = make_tokens(tmp_path / "tokens", sft_rows(), per_shard=5)
    pairs = make_tokens(tmp_path / "pairs", preference_rows())
    sft_inputs = {"model": ("model", model), "data": ("tokens", tokens)}
    sft_params = {
        "batch_size": 2,
        "gradient_accumulation": 2,
        "epochs": 3,
        "learning_rate": 1e-2,
        "lora": {"r": 4, "alpha": 8, "dropout": 0.2},
    }
    here = job(tmp_path / "sft-here", sft_inputs, **sft_params)
    assert run_here("sft", here) == []
    other = job(tmp_path / "sft-other", sft_inputs, **sft_params)
    process = child("sft", other, interval_s=1e9, hash_seed=123)
    assert process.communicate()[0].count("step") == 9
    assert tree_digest(here / "out") == tree_digest(other / "out")

    dpo_inputs = {
        "model": ("model", model),
        "adapter": ("adapter", here / "out"),
        "data": ("tokens", pairs),
    }
    dpo_params = {"batch_size": 2, "epochs": 2, "learning_rate": 1e-2}
    straight = job(tmp_path / "dpo-here", dpo_inputs, **dpo_params)
    run_here("dpo", straight)
    unpaired = job(tmp_path / "kto-here", dpo_inputs, **{**dpo_params, "epochs": 1})
    run_here("kto", unpaired)
    for rule, inputs, params, expected in (
        ("sft", sft_inputs, sft_params, here),
        ("dpo", dpo_inputs, dpo_params, straight),
        ("kto", dpo_inputs, {**dpo_params, "epochs": 1}, unpaired),
    ):
        killed = job(tmp_path / f"{rule}-killed", inputs, **params)
        assert kill_at_step(5, rule, killed) == -signal.SIGKILL
        assert not list((killed / "out").iterdir())
        logged = run_here(rule, killed)
        assert logged in [[f"resuming from checkpoint-{step}"] for step in (4, 5, 6, 7)]
        assert tree_digest(killed / "out") == tree_digest(expected / "out")


def kill_at_step(step: int, rule: str, folder: Path) -> int:
    process = child(rule, folder, interval_s=0)
    assert read_until(f"step {step}\n", process)
    process.send_signal(signal.SIGKILL)
    code: int = process.wait()
    process.stdout.close()
    return code


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
    whole = run_rule(sft, inputs, params, tmp_path)

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


def checkpoint(folder: Path, step: int, *, seal: bool = True) -> Path:
    path = folder / "checkpoints" / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "weights").write_bytes(bytes(100))
    if seal:
        Checkpoints.of(folder).seal(step, began=0.0)
    return path


def test_unsealed_checkpoint_is_deleted_and_the_one_before_is_used(tmp_path: Path) -> None:
    older = checkpoint(tmp_path, 9)
    newer = checkpoint(tmp_path, 10, seal=False)
    assert Checkpoints.of(tmp_path).newest() == older
    assert not newer.exists()


def test_changed_checkpoint_is_not_used(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 9)
    (path / "weights").write_bytes(bytes(99) + b"x")
    assert Checkpoints.of(tmp_path).newest() is None
    assert not path.exists()


def test_sealed_checkpoint_replaces_older_ones(tmp_path: Path) -> None:
    older, newer = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)
    assert not older.exists()
    assert Checkpoints.of(tmp_path).newest() == newer
