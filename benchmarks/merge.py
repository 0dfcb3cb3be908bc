"""Merging a LoRA adapter into a 3 GB model: ftbuild beside PEFT, and beside copying the files.

python benchmarks/merge.py --work /tmp/merge

The model is a Llama of random bfloat16 weights (1.5 billion, in four shards); the adapter has rank
16 on all linear layers. Each way runs in a process of its own, the files in the page cache for all
of them. The figures are the wall time of the work, which begins when the libraries are imported (a
worker of ftbuild is forked with them), that of the whole process, and its peak memory as
`getrusage` tells it. The merged weights of both are compared bit by bit. ftbuild's row is the rule
alone, with no check of logits, which PEFT has not either.
"""

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

CONFIG = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 49152,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def make_model(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**CONFIG, dtype="bfloat16", architectures=["LlamaForCausalLM"])
    with torch.device("meta"):
        state = LlamaForCausalLM(config).state_dict()
    names = [name for name in state if name != "lm_head.weight"]
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    random = torch.Generator().manual_seed(0)
    weight_map = {}
    for shard in range(4):
        file = f"model-{shard + 1:05}-of-00004.safetensors"
        part = names[shard * len(names) // 4 : (shard + 1) * len(names) // 4]
        tensors = {
            name: (torch.randn(state[name].shape, generator=random) * 0.02).bfloat16()
            for name in part
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def make_adapter(folder: Path, base: Path) -> None:
    import torch
    from peft import LoraConfig
    from safetensors.torch import save_file

    from ftbuild.api import canonical_json
    from ftbuild.kinds import Model
    from ftbuild.testing import artifact
    from ftbuild_rules.models._files import files_of, weight_files
    from ftbuild_rules.models._safetensors import read_tensors
    from ftbuild_rules.training._lora import canonical_config

    files = files_of(base)
    random = torch.Generator().manual_seed(1)
    tensors = {}
    for file in weight_files(files):
        for tensor in read_tensors(files[file]):
            module = tensor.spec.name.removesuffix(".weight")
            if module.endswith(LINEAR):
                out, into = tensor.spec.shape
                prefix = f"base_model.model.{module}"
                a, b = (
                    torch.randn(16, into, generator=random),
                    torch.randn(out, 16, generator=random),
                )
                tensors[f"{prefix}.lora_A.weight"] = a * 0.02
                tensors[f"{prefix}.lora_B.weight"] = b * 0.02
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules=list(LINEAR))
    (folder / "adapter_config.json").write_bytes(canonical_json(canonical_config(config)))
    digest = artifact(Model, base).digest
    (folder / "base.json").write_bytes(canonical_json({"base": digest}))


def by_copy(work: Path) -> None:
    shutil.copytree(work / "base", work / "copy")


def by_peft(work: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(work / "base", dtype=torch.bfloat16)
    merged = PeftModel.from_pretrained(base, work / "adapter").merge_and_unload()
    merged.save_pretrained(work / "peft", max_shard_size="800MB")


def by_ftbuild(work: Path) -> None:
    from ftbuild.kinds import Adapter, Model
    from ftbuild.testing import RecordingContext
    from ftbuild_rules.models.merge import MergeInputs, MergeParams, merge

    digest = json.loads((work / "adapter" / "base.json").read_bytes())["base"]
    inputs = MergeInputs(
        model=Model(work / "base", digest), adapter=Adapter(work / "adapter", "0" * 64)
    )
    (work / "ftbuild").mkdir()
    merge(
        RecordingContext(work / "ftbuild", work / "scratch", cpus=len(os.sched_getaffinity(0))),
        inputs,
        MergeParams(check_logits=False),
    )


def make(work: Path) -> None:
    make_model(work / "base")
    make_adapter(work / "adapter", work / "base")


WAYS = {"copy": by_copy, "peft": by_peft, "ftbuild": by_ftbuild}
LIBRARIES = {
    "copy": (),
    "peft": ("torch", "transformers", "peft"),
    "ftbuild": ("torch", "ftbuild.testing", "ftbuild_rules.models.merge"),
}


def run(way: str, work: Path) -> None:
    for library in LIBRARIES[way]:
        importlib.import_module(library)
    began = time.monotonic()
    WAYS[way](work)
    (work / f"{way}.seconds").write_text(str(time.monotonic() - began))


def measure(way: str, work: Path) -> tuple[float, float, float]:
    """Return seconds of the work and of the process, and the peak memory of that in MB."""
    shutil.rmtree(work / way, ignore_errors=True)
    started = time.monotonic()
    child = subprocess.Popen([sys.executable, __file__, "--work", str(work), "--way", way])
    _, status, usage = os.wait4(child.pid, 0)
    assert status == 0, way
    seconds = float((work / f"{way}.seconds").read_text())
    return seconds, time.monotonic() - started, usage.ru_maxrss / 1000


def differing(work: Path) -> list[str]:
    """Return the names of weights that are not bit for bit those of PEFT."""
    from safetensors import safe_open

    def stored(folder: Path) -> dict[str, Path]:
        index = json.loads((folder / "model.safetensors.index.json").read_bytes())
        return {name: folder / file for name, file in index["weight_map"].items()}

    found, ours, theirs = [], stored(work / "ftbuild"), stored(work / "peft")
    for name in sorted(ours.keys() | theirs.keys()):
        with safe_open(ours[name], "pt") as one, safe_open(theirs[name], "pt") as two:
            if not one.get_tensor(name).equal(two.get_tensor(name)):
                found.append(name)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--way", choices=["make", *WAYS])
    parser.add_argument("--times", type=int, default=3)
    given = parser.parse_args()
    if given.way == "make":
        make(given.work)
        return
    if given.way:
        run(given.way, given.work)
        return
    if not (given.work / "adapter").exists():
        # Not here: what this process has held once would count as the peak of its children.
        subprocess.run(
            [sys.executable, __file__, "--work", given.work, "--way", "make"], check=True
        )
    size = sum(p.stat().st_size for p in (given.work / "base").iterdir())
    print(f"{size / 1e9:.2f} GB, best of {given.times}\n")
    print("| | s | of copying | whole process, s | peak MB |\n|---|---|---|---|---|")
    runs: dict[str, list[tuple[float, float, float]]] = {way: [] for way in WAYS}
    for _ in range(given.times):
        for way in WAYS:
            runs[way].append(measure(way, given.work))
    copying = min(runs["copy"])[0]
    for way, found in runs.items():
        seconds, process, _ = min(found)
        peak = max(peak for _, _, peak in found)
        times = f"{seconds:.1f} | x {seconds / copying:.2f} | {process:.1f}"
        print(f"| {way} | {times} | {peak:,.0f} |")
    print(f"\nweights that differ from PEFT's: {len(differing(given.work))}")


if __name__ == "__main__":
    main()
