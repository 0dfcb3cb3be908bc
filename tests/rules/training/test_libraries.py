"""Which library's version is in the key of a target, and in the lock: those that it uses."""

from dataclasses import replace
from pathlib import Path

import pytest

from ftbuild import graph, manifest
from ftbuild.graph import pins_of
from ftbuild.lockfile import Lock
from ftbuild.project import Project
from ftbuild.registry import Registry

HEAD = (Path(__file__).parent / "bad_manifests.toml").read_text()
HEAD += """
[quantize.small]
model = "smol"
method = "nf4"

[sft.small_helper]
model = "small"
data = "chat_tokens"
lora = { r = 8 }
"""
TRAINING = {"torch", "transformers", "peft", "trl", "accelerate"}
SFT = '[sft.x]\nmodel = "smol"\ndata = "chat_tokens"\n'
QLORA = '[sft.x]\nmodel = "small"\ndata = "chat_tokens"\nlora = { r = 8 }\n'
GRPO = '[grpo.x]\nmodel = "smol"\ndata = "prompt_tokens"\nrewards = ["reward.py:score"]\n'
GRPO += "batch_size = 8\nnum_generations = 8\n"
LOGPS = '[reference_logprobs.x]\nmodel = "smol"\ndata = "pair_tokens"\n'


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("chats", "pairs", "prompts"):
        (tmp_path / f"{name}.jsonl").touch()
    (tmp_path / "reward.py").write_text("def score(completions):\n    return [0.0]\n")
    (tmp_path / "model").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (SFT, TRAINING),
        (SFT + "lora = { r = 8 }\n", TRAINING),
        (QLORA, TRAINING | {"bitsandbytes"}),
        (SFT + 'optimizer = "adamw_8bit"\n', TRAINING | {"bitsandbytes"}),
        (SFT + 'optimizer = "ademamix"\n', TRAINING | {"bitsandbytes"}),
        (SFT + 'optimizer = "adafactor"\n', TRAINING),
        (SFT + "launch = { processes = 2 }\n", TRAINING),
        (
            SFT + 'launch = { processes = 2, strategy = "deepspeed" }\n',
            TRAINING | {"deepspeed"},
        ),
        (SFT + "liger = true\n", TRAINING | {"liger-kernel"}),
        (
            SFT + 'attention = "flash_attention_2"\ndtype = "bfloat16"\n',
            TRAINING | {"flash-attn"},
        ),
        (GRPO, TRAINING),
        (LOGPS, {"torch", "transformers", "peft"}),
        (LOGPS.replace("smol", "small"), {"torch", "transformers", "peft", "bitsandbytes"}),
        ('[merge.x]\nmodel = "smol"\nadapter = "helper"\n', {"torch", "peft"}),
        (
            '[merge.x]\nmodel = "small"\nadapter = "small_helper"\n',
            {"torch", "peft", "bitsandbytes"},
        ),
        (
            '[quantize.x]\nmodel = "smol"\nmethod = "int8"\n',
            {"torch", "transformers", "bitsandbytes"},
        ),
        (
            '[quantize.x]\nmodel = "smol"\nmethod = "gptq"\ndata = "chat_tokens"\n',
            {"torch", "transformers"},
        ),
    ],
)
def test_libraries_in_the_key_are_those_that_the_target_uses(
    root: Path, table: str, expected: set[str]
) -> None:
    (root / "FTBUILD.toml").write_text(HEAD + table)
    read = manifest.read(root, profile=None, overrides=[], everything=True)
    built = graph.build(read, Registry(root, read.project.rules))
    target = built.targets["x"]
    assert set(pins_of(target, built.rules[target.rule])) == expected
    again = graph.Graph.from_plain(built.to_plain())
    assert again.targets["x"] == target


def test_optimizers_of_eight_bits_are_those_that_transformers_takes_from_bitsandbytes() -> None:
    from typing import get_args

    from transformers.trainer_optimizer import _BITSANDBYTES_OPTIMIZERS

    from ftbuild_rules.training import _settings

    known = get_args(_settings.TrainingParams.model_fields["optimizer"].annotation)
    theirs = {str(getattr(name, "value", name)) for name in _BITSANDBYTES_OPTIMIZERS}
    assert set(_settings._BITSANDBYTES_OPTIMIZERS) == theirs & set(known)


def test_lock_records_a_library_while_a_target_uses_it(
    root: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib import metadata

    monkeypatch.setenv("FTBUILD_CACHE", str(tmp_path_factory.mktemp("cache")))
    versions = metadata.version
    monkeypatch.setattr(
        metadata, "version", lambda name: "0.19.8" if name == "deepspeed" else versions(name)
    )
    path = root / "FTBUILD.toml"

    def locked() -> Lock:
        with Project.open(root) as project:
            project.lock()
            return replace(project.locked)

    path.write_text(HEAD + SFT)
    assert "deepspeed" not in locked().libraries
    path.write_text(HEAD + SFT + 'launch = { processes = 2, strategy = "deepspeed" }\n')
    assert locked().libraries["deepspeed"] == "0.19.8"
    path.write_text(HEAD + SFT)
    assert "deepspeed" not in locked().libraries
