"""`quantize` beside Transformers with bitsandbytes: time and peak memory, and the same tensors.

    python benchmarks/quantize.py [--hidden 1024] [--layers 8]

Makes a random Llama in bfloat16, quantizes it in a process of its own by each way, on as many
threads, and prints a table. The peer loads with `quantization_config` and saves.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
METHODS = {"nf4": {"double_quantization": True}, "fp4": {}, "int8": {}}
COLUMNS = (
    "ftbuild s | of CPU | MB over start | Transformers s | of CPU | MB over start "
    "| ratio | of CPU | equal"
)
PRELUDE = """
import json, re, sys, time
from pathlib import Path
import torch, transformers, bitsandbytes
torch.set_num_threads({threads})
transformers.utils.logging.disable_progress_bar()
folder, method, params = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
def peak():  # since the last reset: a fork begins with the peak of its parent
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
Path("/proc/self/clear_refs").write_text("5")
before, started, used = peak(), time.perf_counter(), time.process_time()
{body}
seconds, used = time.perf_counter() - started, time.process_time() - used
print(json.dumps([seconds, used, peak() - before]))
"""
OURS = """
from ftbuild.testing import artifact, context, run_rule
from ftbuild.api import Model
from ftbuild_rules.quantization.quantize import quantize
model = Model(folder / "model", "none")
ctx = context(folder / f"work-{{method}}", cpus={threads})
made = quantize.__ftbuild_rule__
ctx_out = ctx.out
made.function(ctx, made.inputs(model=model), made.params(method=method, **params))
(folder / f"ours-{{method}}").symlink_to(ctx_out)
"""
PEER = """
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
settings = BitsAndBytesConfig(
    load_in_8bit=method == "int8", load_in_4bit=method != "int8",
    bnb_4bit_quant_type=method if method != "int8" else "fp4",
    bnb_4bit_use_double_quant=params.get("double_quantization", False),
)
AutoModelForCausalLM.from_pretrained(
    folder / "model", quantization_config=settings
).save_pretrained(folder / f"peer-{{method}}")
"""


def make_model(folder: Path, hidden: int, layers: int) -> int:
    """Save the model and return its size in bytes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        vocab_size=32000,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size="500MB")
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def run(body: str, folder: Path, method: str, threads: int) -> tuple[float, float, float]:
    """Return seconds, those of CPU, and peak MB over the start, of one way in a fresh process."""
    code = PRELUDE.format(threads=threads, body=body.format(threads=threads))
    params = json.dumps(METHODS[method])
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{ROOT}/rules",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(threads),
    }
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), method, params],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    seconds, used, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, used, peak


def same_tensors(a: Path, b: Path) -> bool:
    """Say whether two directories hold the same tensors, bit for bit."""
    from safetensors.torch import load_file

    both = [
        {n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}
        for folder in (a, b)
    ]
    return both[0].keys() == both[1].keys() and all(
        tensor.dtype == both[1][name].dtype and tensor.equal(both[1][name])
        for name, tensor in both[0].items()
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = make_model(folder / "model", given.hidden, given.layers)
        print(f"{size / 1e6:.0f} MB in bfloat16, {given.threads} thread(s)\n")
        print(f"| method | {COLUMNS} |")
        print("|" + " --- |" * (2 + COLUMNS.count("|")))
        for method in METHODS:
            ours = run(OURS, folder, method, given.threads)
            peer = run(PEER, folder, method, given.threads)
            equal = same_tensors(folder / f"ours-{method}", folder / f"peer-{method}")
            wall, used = (peer[place] / ours[place] for place in range(2))
            print(
                f"| {method} | {ours[0]:.2f} | {ours[1]:.2f} | {ours[2]:.0f} | "
                f"{peer[0]:.2f} | {peer[1]:.2f} | {peer[2]:.0f} | "
                f"{wall:.1f} | {used:.1f} | {'yes' if equal else 'NO'} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
