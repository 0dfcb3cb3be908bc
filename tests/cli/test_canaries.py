"""A secret in each place where one can be, and no trace of it in anything that ftbuild leaves.

One project builds, fails, explains itself and crashes; then every byte of what was printed, and
of every file below the project and the store, is searched.
"""

import base64
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from cli.toy import Toy
from faults.fault_report import report

WORDS = "xylophone"
"""No pattern would know it: what gives these away is where they stand."""
CANARIES = {
    "MY_API_TOKEN": f"{WORDS}-environment-1",
    "HF_TOKEN": f"{WORDS}-hub-2",
    "AWS_SECRET_ACCESS_KEY": f"{WORDS}-bucket-3",
    "DATABASE": f"postgresql://me:{WORDS}-database-4@127.0.0.1:1/x",
    "FTBUILD_SIGNING_KEY": f"{WORDS}-signing-5",
    "RANDOM": "a7Xk29Qm41Zp83Lr65",
    "HTTPS_PROXY": f"http://me:{WORDS}-proxy-10@127.0.0.1:1",
    "AWS_SESSION_TOKEN": f"{WORDS}-session-11",
    "AZURE_STORAGE_ACCOUNT_KEY": f"{WORDS}-azure-12",
    "FTBUILD_REMOTE": f"https://me:{WORDS}-remote-13@127.0.0.1:1/cache?sig={WORDS}-signed-14",
    "FTBUILD_REMOTE_TOKEN": f"{WORDS}-bearer-15",
    "HF_ENDPOINT": f"http://me:{WORDS}-endpoint-16@127.0.0.1:1",
    "WANDB_API_KEY": f"{WORDS}-tracker-17",
}
HOME = {
    ".netrc": f"machine 127.0.0.1 login me password {WORDS}-netrc-18\n",
    ".aws/credentials": f"[default]\naws_secret_access_key = {WORDS}-profile-19\n",
    ".cache/huggingface/token": f"{WORDS}-cached-20",
}
"""Where other tools keep secrets in a user's home."""
SIGNING_KEY = base64.b64encode(bytes(range(32))).decode()  # any 32 bytes are one
SOURCE = f"https://me:{WORDS}-source-6@127.0.0.1:1/rows.txt"
QUERY = f"https://127.0.0.1:1/rows.txt?token={WORDS}-query-7"
PARAM = f"curl https://me:{WORDS}-param-8@127.0.0.1:1/x"
CONFIG = f"https://me:{WORDS}-config-9@127.0.0.1:1/cache"
SET = f"hf_{'a8Bc' * 8}"
NEEDLES = [
    *(f"{WORDS}-{rest}" for rest in (
        "environment-1", "hub-2", "bucket-3", "database-4", "signing-5", "source-6", "query-7",
        "param-8", "config-9", "proxy-10", "session-11", "azure-12", "remote-13", "signed-14",
        "bearer-15", "endpoint-16", "tracker-17", "netrc-18", "profile-19", "cached-20",
    )),
    CANARIES["RANDOM"],
    SET,
    SIGNING_KEY,
]  # fmt: skip
GOOD = """\
[project]
name = "canaries"
rules = ["rules/loose.py"]

[command.prints]
run = "echo got $MY_API_TOKEN $RANDOM; echo $MY_API_TOKEN >&2; echo fine > $out/f"
env = ["MY_API_TOKEN", "RANDOM"]

[command.fails]
run = "echo before $MY_API_TOKEN; echo $RANDOM >&2; false"
env = ["MY_API_TOKEN", "RANDOM"]

[loose.tells]
token = "MY_API_TOKEN"

[loose.raises]
token = "MY_API_TOKEN"
fail = true

[command.rows]
srcs = { rows = { sql = "select 1", url_env = "DATABASE" } }
run = "cat $rows > $out/f"

[command.hub]
srcs = { model = "hf:org/private" }
run = "true"

[command.page]
srcs = { page = "https://127.0.0.1:1/rows.txt" }
run = "true"

[command.object]
srcs = { object = "s3://bucket/rows.txt" }
run = "true"
"""
RULE = """\
from ftbuild.api import Context, File, Inputs, Params, RuleError, Variable, rule

class LooseInputs(Inputs):
    token: Variable

class LooseParams(Params):
    fail: bool = False

@rule(output=File)
def loose(ctx: Context, inputs: LooseInputs, params: LooseParams) -> None:
    value = inputs.token.value
    print("printed", value)
    ctx.log(f"logged {value}")
    ctx.warn(f"warned of {value}")
    ctx.facts(token=value, nested={"list": [value]})
    if params.fail:
        raise RuleError(f"cannot use {value}", code="E0899", why=value, fix=f"not {value}")
    (ctx.out / "f").write_text("fine")
"""
SOME = ["prints", "fails", "tells", "raises"]
COMMANDS = (
    ["check"], ["plan"], ["make"], ["make", "-k", *SOME], ["make", "-k", "--json", *SOME],
    ["make", "--locked"], ["why", "fails"], ["log", "prints"], ["log", "fails"], ["log", "raises"],
    ["inspect", "prints"], ["lock"], ["lock", "--check"], ["provenance", "prints"],
    ["provenance", "prints", "--json"], ["provenance", "tells", "--statement"],
    ["verify", "prints"],
    ["verify", "--all", "--json", "--junit", "junit.xml"], ["verify", "--store"], ["doctor"],
    ["graph", "--json"], ["targets", "--json"], ["keys"], ["plan", "--json"], ["gc", "-n"],
    ["plan", "--set", f"prints.run='{SET}'"], ["make", "--debug", "fails"],
    ["--set", SET], [SET], ["make", SET],
    ["make", "rows"], ["make", "hub"], ["make", "page"], ["make", "--debug", "object"],
    ["lock", "--upgrade"], ["push", "prints"],
    ["pull", "prints"], ["report", "prints", "tells"], ["report", "tells", "--json"],
    ["inspect", "tells", "--json"], ["diff", "prints", "tells"], ["path", "tells"], ["schema"],
)  # fmt: skip


def run(toy: Toy, *args: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "ftbuild", *args],
        cwd=toy.root,
        env={**toy.environment, **CANARIES, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def files_of(*folders: Path) -> Iterator[Path]:
    for folder in folders:
        for path, _, names in os.walk(folder):
            yield from (Path(path) / name for name in names)


def traces(toy: Toy, said: str) -> list[str]:
    """Return where a canary is found: in what was printed, or in which file."""
    found = [f"printed: {needle}" for needle in NEEDLES if needle in said]
    home = toy.root.parent / "home"
    ours = {toy.root / "FTBUILD.toml", home / ".config/ftbuild/config.toml"}
    ours |= {home / name for name in HOME}
    for path in files_of(toy.root, toy.root.parent / "store", home):
        if path in ours or path.is_symlink():
            continue
        data = path.read_bytes()
        found += [f"{path}: {needle}" for needle in NEEDLES if needle.encode() in data]
    return found


def test_no_canary_is_found_anywhere(toy: Toy) -> None:
    toy.write("rules/loose.py", RULE)
    for name, text in HOME.items():
        toy.write(f"../home/{name}", text)
    said = []
    for manifest in (
        GOOD,
        GOOD + f'\n[command.bad]\nsrcs = {{ rows = "{SOURCE}" }}\nrun = "true"\n',
        GOOD + f'\n[command.bad]\nsrcs = {{ rows = "{QUERY}" }}\nrun = "true"\n',
        GOOD + f'\n[command.bad]\nrun = "{PARAM}"\n',
        GOOD + f'\n[cache]\nremot = "{CONFIG}"\n',
    ):
        toy.write("FTBUILD.toml", manifest)
        said.append(run(toy, "check"))
        said.append(run(toy, "make", "--json"))
    # A project without errors; the signing key of the environment is none, so once without it.
    toy.write("FTBUILD.toml", GOOD)
    said += [run(toy, *args) for args in (["make"], ["plan", "--json"], ["doctor"], ["keys"])]
    said += [run(toy, *args, FTBUILD_SIGNING_KEY="") for args in COMMANDS]
    key = f"ed25519-private:{SIGNING_KEY}"
    signed = [
        run(toy, *args, FTBUILD_SIGNING_KEY=key)
        for args in (
            ["make", "--json", "--force", "prints"], ["keys"], ["doctor"],
            ["provenance", "prints", "--statement"], ["report", "prints"],
        )
    ]  # fmt: skip
    said += signed
    toy.write("../home/.config/ftbuild/config.toml", f'[cache]\nremot = "{CONFIG}"\n')
    said.append(run(toy, "plan"))
    text = "\n".join(said)
    assert traces(toy, text) == []
    report("42", "a secret in each place", fired=len(NEEDLES), bad=0)
    # It did come where it could have been told.
    assert "got … …" in text
    assert "error[E0118]" in text
    assert "error[E0899]: cannot use …" in text
    assert "error[E0030]: the environment variable FTBUILD_SIGNING_KEY holds no private key" in text
    assert "error[E0442]" in text
    assert {"error[E0421]", "error[E0451]", "error[E0461]"} <= set(re.findall(r"error\S{7}", text))
    assert '"signatures": [{' in signed[3]
    assert "<h1>prints, tells</h1>" in text


def test_crash_report_holds_no_canary(toy: Toy) -> None:
    toy.write("rules/loose.py", RULE)
    toy.write("FTBUILD.toml", GOOD)
    run(toy, "plan")
    toy.write(
        "sitecustomize.py",
        "import os, ftbuild.project\n"
        "def crash(self, *args):\n"
        "    raise TypeError('no ' + os.environ['MY_API_TOKEN'] + ' here')\n"
        "ftbuild.project.Project.plan = crash\n",
    )
    path = os.pathsep.join([str(toy.root), toy.environment["PYTHONPATH"]])
    said = run(toy, "plan", FTBUILD_SIGNING_KEY="", PYTHONPATH=path)
    assert "a bug in ftbuild: TypeError: no … here" in said
    [report] = (toy.root / ".ftbuild").glob("crash-*")
    assert "TypeError: no … here" in report.read_text()
    assert traces(toy, said) == []


def test_search_finds_a_canary_that_is_there(toy: Toy) -> None:
    """The control: an artifact is the user's own, and holds what the command writes."""
    toy.write(
        "FTBUILD.toml",
        '[project]\nname = "x"\n[command.leaks]\nrun = "echo $MY_API_TOKEN > $out/f"\n'
        'env = ["MY_API_TOKEN"]\n',
    )
    said = run(toy, "make", FTBUILD_SIGNING_KEY="")
    is_red = any(CANARIES["MY_API_TOKEN"] in found for found in traces(toy, said))
    report("42", "a secret in each place", control_red=is_red)
    assert is_red
