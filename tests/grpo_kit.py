"""What the tests of `grpo` share: prompts, files of reward functions, and a run of the rule."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ftbuild.api import Artifact, Function
from ftbuild.testing import RecordingContext, context, run_rule
from ftbuild_rules.training.grpo import grpo
from tiny_models import TEMPLATE

DIGITS = """
import string


def digits(completions, **others):
    return [sum(c in string.digits for c in text) / 10 for text in completions]


def near(completion_ids, wanted):
    return [-abs(len(ids) - w) for ids, w in zip(completion_ids, wanted)]
"""

EVEN = """
def even(completion_ids):
    return [sum(i % 2 == 0 for i in ids) / 6 for ids in completion_ids]
"""


def make_prompts(directory: Path, prompts: Sequence[Mapping[str, Any]]) -> Path:
    """Save rows {"prompt_ids": [...], **other columns} as `tokens` of the form `prompts`."""
    import pyarrow as pa

    schema = pa.schema([("prompt_ids", pa.list_(pa.int32())), ("metadata", pa.string())])
    rows = []
    for prompt in prompts:
        others = {name: value for name, value in prompt.items() if name != "prompt_ids"}
        metadata = json.dumps(others, sort_keys=True)
        rows.append({"prompt_ids": prompt["prompt_ids"], "metadata": metadata})
    (directory / "data").mkdir(parents=True)
    path = directory / "data" / "train-00000.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema))
    about = {"form": "prompts", "rows": len(rows), "max_length": 64}
    (directory / "tokens.json").write_text(json.dumps(about, sort_keys=True))
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


def some_prompts(count: int = 8) -> list[dict[str, Any]]:
    """Return prompts of 3 to 8 random ids, each with a wanted length."""
    import random

    random_ = random.Random(3)
    return [
        {
            "prompt_ids": [random_.randrange(3, 300) for _ in range(random_.randrange(3, 9))],
            "wanted": number % 4 + 1,
        }
        for number in range(count)
    ]


def function(directory: Path, code: str = DIGITS, name: str = "digits") -> Function:
    """Save a file of reward functions and return one of them as the engine gives it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "reward.py").write_text(code)
    return Function(directory / "reward.py", name, f"reward.py:{name}")


def train(
    tmp_path: Path, inputs: Mapping[str, Any], **params: Any
) -> tuple[Artifact, RecordingContext]:
    """Run the rule with settings that move a tiny model quickly."""
    ctx = context(tmp_path)
    defaults = {
        "batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 6,
        "learning_rate": 1e-2,
    }
    if "max_steps" not in params:
        defaults["epochs"] = 1
    return run_rule(grpo, inputs, {**defaults, **params}, tmp_path, ctx=ctx), ctx
