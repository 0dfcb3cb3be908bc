"""`gguf_quantize`: a GGUF file in fewer bits, by llama.cpp's own tool.

[gguf_quantize.small]
gguf = "for_llama_cpp"                   # an `export` as GGUF, in F16 or BF16
type = "Q4_K_M"

The tool, and a llama.cpp that loads the result once, come with the package ik-llama-cpp-python.
"""

import subprocess
from pathlib import Path
from typing import Literal

from ftbuild.api import Context, File, Inputs, Params, Place, RuleError, rule
from ftbuild_rules.models._card import CARDS, read_card, write_card
from ftbuild_rules.models.export import GGUF_NAME


class GgufQuantizeInputs(Inputs):
    """What is quantized."""

    gguf: File
    """An `export` with `format = "gguf"`."""


class GgufQuantizeParams(Params):
    """To what."""

    type: Literal["Q2_K", "Q3_K_M", "Q4_0", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"] = "Q4_K_M"
    """llama.cpp's name of the type."""


@rule(version=1, output=File, pins=("ik-llama-cpp-python",))
def gguf_quantize(ctx: Context, inputs: GgufQuantizeInputs, params: GgufQuantizeParams) -> None:
    """Quantize a GGUF file by llama.cpp's own tool, and load the result."""
    source = inputs.gguf.path / GGUF_NAME
    if not source.exists():
        raise RuleError(
            f"`{inputs.gguf.label or 'gguf'}` holds no `{GGUF_NAME}`",
            code="E0948",
            fix='name an `export` target with `format = "gguf"`',
        )
    import ik_llama_cpp

    tool = Path(ik_llama_cpp.__file__).parent / "bin" / "llama-quantize"
    done = subprocess.run(
        # One thread: the tool takes all cores otherwise, also those of other actions.
        [tool, source, ctx.out / GGUF_NAME, params.type, "1"],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    ctx.log(done.stdout + done.stderr)
    if done.returncode != 0:
        raise RuleError(
            f"llama-quantize ended with {done.returncode}",
            code="E0948",
            where=Place(path=GGUF_NAME),
            fix="look at `ftbuild log`; quantize from F16 or BF16",
        )
    loaded = ik_llama_cpp.IkLlama(
        model_path=str(ctx.out / GGUF_NAME), n_ctx=64, n_threads=1, verbose=False
    )
    loaded.close()
    for path in sorted(inputs.gguf.path.iterdir()):
        if path.name not in (GGUF_NAME, *CARDS):
            ctx.link(path, path.name)
    card = {
        "method": "gguf_quantize",
        "parameters": {"type": params.type},
        "model": read_card(inputs.gguf),
    }
    write_card(ctx.out, card)
    ctx.facts(bytes=(ctx.out / GGUF_NAME).stat().st_size)
