"""HTML pages that need nothing else: no script, no address, no font."""

from collections.abc import Iterable
from html import escape

from ftbuild.cli.terminal import Line, visible
from ftbuild.view import View

_HEAD = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ margin: 2rem; background: #fff; color: #1a1a1a; }}
pre {{ font: 14px/1.5 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }}
.dim {{ color: #767676; }}
.bold {{ font-weight: bold; }}
.green {{ color: #116329; background: #dafbe1; }}
.red {{ color: #a40e26; background: #ffebe9; }}
.yellow {{ color: #7d4e00; }}
.cyan {{ color: #0a5c73; }}
.magenta {{ color: #8250df; }}
@media (prefers-color-scheme: dark) {{
  body {{ background: #0d1117; color: #e6edf3; }}
  .dim {{ color: #8b949e; }}
  .green {{ color: #7ee787; background: #12261e; }}
  .red {{ color: #ff9492; background: #3c1618; }}
  .yellow {{ color: #e3b341; }}
  .cyan {{ color: #76e3ea; }}
  .magenta {{ color: #d2a8ff; }}
}}
{style}</style>
<h1>{title}</h1>
"""


def page(view: View, title: str) -> str:
    """Return the lines of a view as a page."""
    return document(title, f"{listing(view.lines)}\n")


def document(title: str, body: str, style: str = "") -> str:
    """Return a page with `body` below its title, and rules of style beside the common ones."""
    return f"{_HEAD.format(title=escape(visible(title)), style=style)}{body}</html>\n"


def listing(lines: Iterable[Line]) -> str:
    """Return lines as a block; a style is a class of the same name."""
    shown = ("".join(_span(span.text, span.style) for span in line) for line in lines)
    return "<pre>\n" + "\n".join(shown) + "\n</pre>"


def _span(text: str, style: str) -> str:
    shown = escape(visible(text))
    return f'<span class="{escape(style)}">{shown}</span>' if style else shown
