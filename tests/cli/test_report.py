"""`report`: one page with graph, times, curves, samples and lineage, that needs nothing else."""

import json
import re
from html.parser import HTMLParser

import pytest

from cli.toy import Toy

LEARN = '''

class Nothing(Inputs):
    """None."""


class Steps(Params):
    """How long."""

    prompt: str = "x"
    """What for."""


@rule(output=File)
def learn(ctx: Context, inputs: Nothing, params: Steps) -> None:
    """Learn."""
    for step in range(1, 5):
        ctx.progress(step, 4, loss=8 / step)
    ctx.warn("<i>slow</i>")
    ctx.facts(best="a<b")
    (ctx.out / "text.txt").write_text("learned\\n")
'''


class Outside(HTMLParser):
    """Collects what a browser would run or fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.headings: list[str] = []
        self._in_heading = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "img", "iframe", "i"):
            self.found.append(tag)
        for name, value in attrs:
            is_inside = name == "href" and (value or "").startswith("#")
            if name.startswith("on") or (name in ("src", "href") and not is_inside):
                self.found.append(f"{name}={value}")
        self._in_heading = tag in ("h1", "h2", "h3")

    def handle_data(self, data: str) -> None:
        if self._in_heading:
            self.headings.append(data)
        self._in_heading = False


@pytest.fixture
def built(toy: Toy) -> Toy:
    rules = toy.root / "rules" / "text.py"
    rules.write_text(rules.read_text() + LEARN)
    with (toy.root / "FTBUILD.toml").open("a") as manifest:
        manifest.write('\n[learn.skill]\nprompt = "<script>alert(1)</script>"\n')
    assert toy.run("make", "-q", "shout", "skill").returncode == 0
    return toy


def test_a_page_shows_each_step_down_to_the_sources(built: Toy) -> None:
    done = built.run("report")
    assert (done.returncode, done.stderr) == (0, "")
    page = Outside(done.stdout)
    assert page.found == []
    assert page.headings == [
        "toy",
        "When each ran",
        "Step by step",
        *("shout", "calm", "lines"),
    ]
    assert re.search(r"<th>source</th><td>data/raw.txt  sha256:[0-9a-f]{12}…</td>", done.stdout)
    digest = json.loads(built.run("provenance", "shout", "--json").stdout)["steps"][-1]["digest"]
    assert f"<th>digest</th><td>{digest}</td>" in done.stdout
    assert "HELLO!\nWORLD!" in done.stdout  # what the viewer shows of the file


@pytest.mark.fault("58", "rows and figures that are markup")
def test_curves_facts_and_warnings_are_shown_and_never_markup(built: Toy) -> None:
    done = built.run("report", "skill")
    page = Outside(done.stdout)
    assert page.found == []
    assert "<figcaption>loss: 8 → 2</figcaption>" in done.stdout
    assert "warning: &lt;i&gt;slow&lt;/i&gt;</p>" in done.stdout
    assert "<th>best</th><td>&quot;a&lt;b&quot;</td>" in done.stdout
    assert "&lt;script&gt;alert(1)" in done.stdout


def test_several_targets_share_a_page_and_json_holds_the_same(built: Toy) -> None:
    assert Outside(built.run("report", "skill", "calm").stdout).headings[0] == "skill, calm"
    steps = json.loads(built.run("report", "skill", "calm", "--json").stdout)["steps"]
    assert [step["label"] for step in steps] == ["skill", "lines", "calm"]
    assert steps[0]["curves"] == {"loss": [[1, 2, 3, 4], [8.0, 4.0, 2.66667, 2.0]]}
    assert steps[0]["facts"] == {"best": "a<b"}
    assert steps[0]["warnings"] == ["<i>slow</i>"]


def test_what_is_not_built_is_said(toy: Toy) -> None:
    done = toy.run("report")
    assert (done.returncode, done.stdout) == (2, "")
    assert "`shout` has not been built here" in done.stderr
    assert "ftbuild make shout" in done.stderr
