"""The peers of tokens.py, each in a process of its own: prints what its work took.

    python _token_peers.py METHOD ROWS.jsonl MODEL_DIRECTORY PROCESSES

Imports, and what is done once whatever the number of rows, are not counted.
"""

import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRL_EXPERIMENTAL_SILENCE="1")


class Work(NamedTuple):
    """What some work took."""

    cpu_s: float
    """User and system, of this process and of those it started."""
    wall_s: float

    def since(self, before: "Work") -> "Work":
        """Return what came to it."""
        return Work(self.cpu_s - before.cpu_s, self.wall_s - before.wall_s)


def now() -> Work:
    """Return what was used until now."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return Work(sum(u.ru_utime + u.ru_stime for u in used), time.monotonic())


def limit(rows: Path, model: Path, processes: int) -> Work:
    """`encode_batch_fast` of the texts as the template renders them, and nothing else."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    with open(rows, encoding="utf-8") as file:
        conversations = [json.loads(line)["messages"] for line in file]
    texts = [tokenizer.apply_chat_template(c, tokenize=False) for c in conversations]
    backend = tokenizer.backend_tokenizer
    backend.encode_batch_fast(texts[:64], add_special_tokens=False)

    def work(part: list[str]) -> None:
        for at in range(0, len(part), 256):
            backend.encode_batch_fast(part[at : at + 256], add_special_tokens=False)

    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=work, args=(texts[n::processes],)) for n in range(processes)]
    begin = now()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return now().since(begin)


def datasets_map(rows: Path, model: Path, processes: int) -> Work:
    """`datasets.map` over `apply_chat_template`, from the rows' file to Arrow files; no masks."""
    from datasets import load_dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)

    def tokenize(row: dict[str, Any]) -> dict[str, Any]:
        return {"input_ids": tokenizer.apply_chat_template(row["messages"])["input_ids"]}

    begin = now()
    dataset = load_dataset("json", data_files=str(rows), split="train")
    dataset.map(tokenize, num_proc=processes, remove_columns=dataset.column_names)
    return now().since(begin)


def trl(rows: Path, model: Path, processes: int) -> Work:
    """What `SFTTrainer` does with the rows when it is made, with masks of the assistant's text."""
    from datasets import load_dataset
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(model)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    settings = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        assistant_only_loss=True,
        max_length=8192,
        dataset_num_proc=processes,
        use_cpu=True,
        bf16=False,
        report_to=[],
    )
    begin = now()
    dataset = load_dataset("json", data_files=str(rows), split="train")
    SFTTrainer(
        model=LlamaForCausalLM(config),
        args=settings,
        train_dataset=dataset.select_columns(["messages"]),
        processing_class=tokenizer,
    )
    return now().since(begin)


def main() -> None:
    """Run one method with a cache of its own."""
    method, rows, model, processes = sys.argv[1:]
    with tempfile.TemporaryDirectory() as cache:
        os.environ["HF_DATASETS_CACHE"] = cache
        methods = {"limit": limit, "datasets.map": datasets_map, "trl": trl}
        work = methods[method](Path(rows), Path(model), int(processes))
    print(f"seconds {work.cpu_s:.3f} {work.wall_s:.3f}")


if __name__ == "__main__":
    main()
