"""Screenshots of `ftbuild inspect` for the documents: real runs, as SVG.

    python docs/images/make.py                            # all; their targets are built
    python docs/images/make.py file reward-model          # these alone

Each picture is what the command prints to a terminal of 100 columns.
"""

import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

HERE = Path(__file__).parent
WIDTH = 100
MAX_LINES = 24
EXAMPLES = HERE.parents[1] / "examples"
PICTURES = {
    "dataset": ("quickstart", ["chats", "--row", "4"]),
    "tokens": ("quickstart", ["chat_tokens", "--row", "4"]),
    "preference-tokens": ("quickstart", ["preference_tokens", "--row", "0"]),
    "model": ("quickstart", ["smol"]),
    "adapter": ("quickstart", ["helper"]),
    "report": ("quickstart", ["before"]),
    "reward-model": ("grpo", ["judge"]),
    "quantized-model": ("qlora", ["nf4"]),
    "file": ("merging", ["for_llama_cpp"]),
}
# Without the fonts that rich would load from a server.
FORMAT = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" \
xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: monospace; font-size: {char_height}px; \
line-height: {line_height}px; font-variant-east-asian: full-width; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" \
height="{terminal_height}"/></clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def picture(project: Path, arguments: list[str]) -> str:
    """Return what the command shows as SVG."""
    command = [sys.executable, "-m", "ftbuild", "--color", "always", "inspect", *arguments]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    more = ["…"] if len(lines) > MAX_LINES else []
    console = Console(record=True, width=WIDTH, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(Text(f"$ ftbuild inspect {' '.join(arguments)}", style="bold"))
    for line in [*lines[:MAX_LINES], *more]:
        console.print(Text.from_ansi(line))
    title = f"ftbuild inspect {arguments[0]}"
    svg = console.export_svg(title=title, code_format=FORMAT, unique_id="t")
    return re.sub(r"[ \t]+\n", "\n", svg)


def main() -> None:
    """Write the pictures that are named, or all."""
    for name in sys.argv[1:] or PICTURES:
        example, arguments = PICTURES[name]
        svg = picture(EXAMPLES / example, arguments)
        (HERE / f"inspect-{name}.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
