"""`--html`: one page that holds all, in which data is text and never markup."""

from html.parser import HTMLParser

from cli.toy import Toy
from ftbuild.cli.page import page
from ftbuild.view import Span, View


class Reader(HTMLParser):
    """Collects what a browser would fetch or run, and the text with its classes."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.spans: list[tuple[str, str]] = []
        self._style = ""
        self._in_pre = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        self._in_pre |= tag == "pre"
        if tag == "span":
            self._style = dict(attrs)["class"] or ""

    def handle_endtag(self, tag: str) -> None:
        self._style = "" if tag == "span" else self._style
        self._in_pre &= tag != "pre"

    def handle_data(self, data: str) -> None:
        if self._in_pre:
            self.spans.append((self._style, data))


def test_page_holds_the_lines_with_their_styles() -> None:
    view = View(None, ((Span("a<b>&\x1b[2J"), Span("c</span>", "green")), (), (Span("d", "dim"),)))
    text = page(view, "x <script>alert(1)</script>")
    reader = Reader()
    reader.feed(text)
    assert reader.spans == [
        ("", "\na<b>&^[[2J"),
        ("green", "c</span>"),
        ("", "\n\n"),
        ("dim", "d"),
        ("", "\n"),
    ]
    assert "script" not in reader.tags
    assert reader.links == []
    assert "<h1>x &lt;script&gt;" in text


def test_inspect_and_diff_print_a_page(toy: Toy) -> None:
    assert toy.run("make", "-q").returncode == 0
    shown = toy.run("inspect", "shout", "--html")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "<title>shout</title>" in shown.stdout
    assert '<span class="bold">text.txt</span>  14 bytes\nHELLO!\nWORLD!\n' in shown.stdout
    row = toy.run("inspect", "shout", "--row", "1", "--html").stdout
    assert row.endswith("<h1>shout, row 1</h1>\n<pre>\nWORLD!\n</pre>\n</html>\n")
    differs = toy.run("diff", "calm", "shout", "--html").stdout
    assert '<span class="green">+HELLO!</span>' in differs
