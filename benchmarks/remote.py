"""A remote store beside a plain copy, and beside tools that deduplicate.

    python benchmarks/remote.py --peers DIR      # DIR: a virtual environment with dvc, or none

Three tables, all against a real nginx with WebDAV on loopback or a folder on the same disk:

- second: a colleague's first `make` of a model that is in the remote store, beside `curl` (or `cp`)
  of as many bytes in one file from the same server, in turn, neither made durable; the median
  counts. `verified` is that copy and then its SHA-256 by `openssl`: as much as `make` knows of what
  it fetched. Start-up is `plan` in such a checkout. Two rows are over links as slow as a network
- sent: after a merge that touched a part of the weights, and after an edit of one row, the bytes
  that changed, and those that each tool sends or stores anew: `ftbuild`, restic and borg (as
  their repositories grow), DVC (as its remote grows), and a plain sync of changed files
- many: push and pull of many files, beside `cp -r` and `curl`; megabytes a second and the largest
  process; then each is killed half way and run again, and the server's log counts the bytes. It
  takes twice the disk of `--gigabytes`

Units: bytes, seconds of the wall, MiB of memory.
"""

import argparse
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from _measure import measure

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

from remote_kit import Nginx, nginx, s3  # noqa: E402

ROUNDS = 5
UNSIGNED = (
    "-H",
    "Authorization: AWS4-HMAC-SHA256 Credential=nobody/20260101/us-east-1/s3/aws4_request, "
    "SignedHeaders=host, Signature=0",
)
"""moto asks for a signature and does not look at it."""
Fetch = Callable[[Path], object]
Put = Callable[[Path], object]
LIMIT_S = 1800.0
MODEL_BYTES = 269_000_000
NUM_TENSORS = 272
ROW_BYTES = 1000
NUM_ROWS = 60_000

MANIFEST = """\
[project]
name = "bench"
default = ["all"]
[command.all]
srcs = { made = "made" }
run = "cp -rL $made/. $out"
"""


@dataclass
class Place:
    """A checkout with a store of its own."""

    root: Path
    remote: str
    more: dict[str, str] = field(default_factory=dict)
    """What else its remote needs in the environment."""

    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.root),
            "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE.parent / "rules")]),
            "FTBUILD_CACHE": str(self.root.with_name(f"{self.root.name}-store")),
            "FTBUILD_REMOTE": self.remote,
            "LANG": "C.UTF-8",
            **self.more,
        }

    def run(self, *args: str) -> float:
        """Run ftbuild; return the seconds that it took."""
        return self.usage(*args)[0]

    def usage(self, *args: str) -> tuple[float, float]:
        """Run ftbuild; return its seconds and the MiB of its largest process."""
        command = [sys.executable, "-m", "ftbuild", *args]
        log = str(self.root.with_name("log"))
        used = measure(
            command,
            directory=str(self.root),
            environment=self.environment(),
            log=log,
            limit_s=LIMIT_S,
        )
        if used.exit_code:
            raise SystemExit(f"{args} failed: see {log}")
        return used.wall_s, used.peak_mib


def place(work: Path, name: str, remote: str, more: dict[str, str] | None = None) -> Place:
    """Make a checkout with nothing in it but its manifest."""
    root = work / name
    root.mkdir()
    (root / "FTBUILD.toml").write_text(MANIFEST)
    return Place(root, remote, more or {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("bench-remote"))
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--project", type=Path, help="a project that is built, for `second`")
    parser.add_argument("--target", default="merged_model")
    parser.add_argument("--cache", type=Path, help="the store in which it is built")
    parser.add_argument("--tables", default="second,sent,many")
    options = parser.parse_args()
    work = options.work.resolve()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    if options.tables != "link":
        print(
            f"{os.cpu_count()} cores, Linux {platform.release()}, "
            f"Python {platform.python_version()}"
        )
    for name in options.tables.split(","):
        {"second": second, "link": link, "sent": sent, "many": many}[name](work, options)
    shutil.rmtree(work)


def second(work: Path, options: argparse.Namespace) -> None:
    titles = "copy, s | verified, s | ftbuild make, s | of it start-up, s | / copy | / verified"
    print(f"\n| server | {titles} |")
    print("|---|---|---|---|---|---|---|")
    for kind in ("nginx", "s3", "folder"):
        measured(work / kind, kind, options)
    if os.geteuid() == 0 and shutil.which("tc"):
        # The loopback of a network namespace of its own, as slow as a network.
        command = [sys.executable, __file__, "--tables", "link", "--work", str(work / "link")]
        if options.project:
            command += ["--project", str(options.project), "--cache", str(options.cache)]
        subprocess.run(["unshare", "-n", *command, "--target", options.target], check=True)


def link(work: Path, options: argparse.Namespace) -> None:
    subprocess.run("ip link set lo up", shell=True, check=True)
    for gigabits in (1, 2.5):
        shape = f"tc qdisc replace dev lo root tbf rate {gigabits}gbit burst 512kb latency 50ms"
        subprocess.run(shape, shell=True, check=True)
        name = f"nginx, {gigabits} Gbit/s"
        measured(work / f"nginx-{gigabits}", "nginx", options, name=name)


def measured(work: Path, kind: str, options: argparse.Namespace, name: str = "") -> None:
    """Print the row of one server: a plain copy and a second make in turn, the medians."""
    work.mkdir(parents=True)
    with server_of(kind, work) as (url, more, fetch_plain, put_plain):
        here = first(work, url, more, options)
        wanted = options.target if options.project else "all"
        output = here.root / "ftbuild-out" / wanted
        put_plain(output)
        plain, verified, ours, start = [], [], [], []
        for number in range(ROUNDS):
            began = time.monotonic()
            fetch_plain(work / "copy")
            plain.append(time.monotonic() - began)
            subprocess.run(
                ["openssl", "dgst", "-sha256", work / "copy"], stdout=subprocess.DEVNULL, check=True
            )
            verified.append(time.monotonic() - began)
            there = Place(work / f"second-{number}", url, more)
            shutil.copytree(
                here.root, there.root, ignore=shutil.ignore_patterns(".ftbuild", "ftbuild-out")
            )
            start.append(there.run("plan", wanted))  # all but the fetching, from a cold start
            shutil.rmtree(there.root / ".ftbuild")
            shutil.rmtree(there.root.with_name(f"{there.root.name}-store"))
            ours.append(there.run("make", wanted))
            shutil.rmtree(there.root)
            shutil.rmtree(there.root.with_name(f"{there.root.name}-store"))
    a, b, c, d = map(statistics.median, (plain, verified, ours, start))
    row = f"{a:.2f} | {b:.2f} | {c:.2f} | {d:.2f} | x {c / a:.2f} | x {c / b:.2f}"
    print(f"| {name or kind} | {row} |", flush=True)


def first(work: Path, url: str, more: dict[str, str], options: argparse.Namespace) -> Place:
    """Return a checkout that has built and sent what is to be fetched."""
    if options.project:
        here = Place(work / "first", url, more)
        ours = shutil.ignore_patterns(".ftbuild", "ftbuild-out")
        shutil.copytree(options.project, here.root, ignore=ours)
        manifest = here.root / "FTBUILD.toml"
        manifest.write_text(manifest.read_text().replace('dir = "../../cache"', ""))
        shutil.copytree(options.cache, work / "first-store")
        here.run("make", options.target)
        here.run("push", options.target)
        return here
    here = place(work, "first", url, more)
    noise = f"head -c {MODEL_BYTES} /dev/zero | openssl enc -aes-128-ctr -K 00 -iv 00"
    text = f'[command.all]\nrun = "{noise} > $out/model.safetensors"\n'
    (here.root / "FTBUILD.toml").write_text(MANIFEST.partition("[command")[0] + text)
    here.run("make")
    return here


@contextmanager
def server_of(kind: str, work: Path) -> Iterator[tuple[str, dict[str, str], Fetch, Put]]:
    """Run a server; give its address, what its client needs, and how bytes are copied plainly."""
    if kind == "nginx":
        with nginx(work / "nginx") as server:
            yield (
                server.url,
                {},
                lambda to: curl(f"{server.url}/plain", to),
                lambda output: join(output, server.data / "plain"),
            )
    elif kind == "s3":
        with s3() as more:
            plain = f"{more['AWS_ENDPOINT_URL']}/team/plain"
            join_to = work / "plain"
            yield (
                "s3://team/ft",
                more,
                lambda to: curl(plain, to, *UNSIGNED),
                lambda output: (
                    join(output, join_to),
                    subprocess.run(["curl", "-sf", *UNSIGNED, "-T", join_to, plain], check=True),
                ),
            )
    else:
        plain_file = work / "plain"
        yield (
            str(work / "remote"),
            {},
            lambda to: subprocess.run(["cp", "--reflink=never", plain_file, to], check=True),
            lambda output: join(output, plain_file),
        )


def join(output: Path, target: Path) -> None:
    """Write all files of an artifact into one."""
    with target.open("wb") as file:
        for path in sorted(p for p in output.rglob("*") if p.is_file()):
            file.write(path.read_bytes())


def curl(url: str, target: Path, *more: str) -> None:
    """Copy a file from a server, plainly."""
    target.unlink(missing_ok=True)
    subprocess.run(["curl", "-sf", *more, "-o", target, url], check=True)


def weights(path: Path, changed: set[int], *, seed: int = 0) -> int:
    """Write a file as of a model: tensors one after another; return the bytes of changed ones."""
    size = MODEL_BYTES // NUM_TENSORS
    with path.open("wb") as file:
        file.write(b"\0" * 40_000)  # the header of a safetensors file of so many tensors
        for number in range(NUM_TENSORS):
            file.write(random.Random(number + (1000 + seed) * (number in changed)).randbytes(size))
    return size * len(changed)


def rows(path: Path, edited: int | None) -> int:
    """Write a file of rows, one of them edited; return the bytes that differ."""
    text = random.Random(1)
    with path.open("wb") as file:
        for number in range(NUM_ROWS):
            row = b'{"text": "%s"}\n' % text.randbytes(ROW_BYTES // 2).hex().encode()
            file.write(row if number != edited else row.replace(b'"text"', b'"edit"'))
    return ROW_BYTES if edited is not None else 0


def sent(work: Path, options: argparse.Namespace) -> None:
    print("\n### sent after an edit: bytes, and how many times the bytes that changed\n")
    head = ["ftbuild", "restic", "borg", "dvc", "plain sync"]
    print("| edit | changed | " + " | ".join(head) + " |\n|---|---|" + "---|" * len(head))
    made = work / "made"
    for title, base, edit in edits(made):
        found = {name: grown(work / "tools", name, made, base, edit, options) for name in head}
        changed = found["ftbuild"][1]
        cells = [
            "-" if size is None else f"{size:,} (x {size / changed:.2f})"
            for size, _ in found.values()
        ]
        print(f"| {title} | {changed:,} | " + " | ".join(cells) + " |")
        shutil.rmtree(made)


def edits(made: Path) -> Iterator[tuple[str, object, object]]:
    """Yield name, and how the files are made before and after."""
    middle = set(range(100, 160))  # q and v of the upper half
    model, data = made / "model.safetensors", made / "rows.jsonl"
    yield (
        "a merge that touches 60 of 272 tensors",
        lambda: weights(model, set()),
        lambda: weights(model, middle),
    )
    yield (
        "a full fine-tune with frozen embeddings: 270 of 272",
        lambda: weights(model, set()),
        lambda: weights(model, set(range(2, NUM_TENSORS))),
    )
    yield (
        f"one row of {NUM_ROWS:,}",
        lambda: rows(data, None),
        lambda: rows(data, NUM_ROWS // 2),
    )


def grown(
    work: Path, name: str, made: Path, base: object, edit: object, options: argparse.Namespace
) -> tuple[int | None, int]:
    """Return the bytes by which a tool's remote grows with an edit, and those that changed."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.rmtree(made, ignore_errors=True)
    work.mkdir()
    made.mkdir()
    assert callable(base)
    assert callable(edit)
    base()
    tool = {"ftbuild": by_ftbuild, "restic": by_restic, "borg": by_borg, "dvc": by_dvc}.get(
        name, by_sync
    )
    keep = tool(work, made, options)
    if keep is None:
        return None, 0
    next(keep)
    before = tree_bytes(work / "remote")
    changed = edit()
    next(keep)
    after = tree_bytes(work / "remote")
    return after - before, changed


def tree_bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def by_ftbuild(work: Path, made: Path, _: argparse.Namespace) -> Iterator[None]:
    here = place(work, "work", str(work / "remote"))
    (here.root / "made").symlink_to(made)
    while True:
        here.run("make")
        yield


def by_restic(work: Path, made: Path, _: argparse.Namespace) -> Iterator[None] | None:
    if shutil.which("restic") is None:
        return None
    return _by_restic(work, made)


def _by_restic(work: Path, made: Path) -> Iterator[None]:
    environment = {**os.environ, "RESTIC_PASSWORD": "x", "RESTIC_CACHE_DIR": str(work / "cache")}
    restic = ["restic", "-q", "-r", str(work / "remote")]
    subprocess.run([*restic, "init"], env=environment, check=True)
    while True:
        subprocess.run([*restic, "backup", str(made)], env=environment, check=True)
        yield


def by_borg(work: Path, made: Path, _: argparse.Namespace) -> Iterator[None] | None:
    if shutil.which("borg") is None:
        return None
    return _by_borg(work, made)


def _by_borg(work: Path, made: Path) -> Iterator[None]:
    environment = {**os.environ, "BORG_BASE_DIR": str(work / "cache")}
    subprocess.run(
        ["borg", "init", "-e", "none", str(work / "remote")], env=environment, check=True
    )
    for number in range(9):
        archive = f"{work / 'remote'}::{number}"
        subprocess.run(
            ["borg", "create", "-C", "none", archive, str(made)], env=environment, check=True
        )
        yield


def by_dvc(work: Path, made: Path, options: argparse.Namespace) -> Iterator[None] | None:
    if options.peers is None:
        return None
    return _by_dvc(work, made, str(options.peers / "bin" / "dvc"))


def _by_dvc(work: Path, made: Path, dvc: str) -> Iterator[None]:
    root = work / "work"
    root.mkdir()
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "HOME": str(work)}

    def run(*args: str) -> None:
        subprocess.run([dvc, *args, "-q"], cwd=root, env=environment, check=True)

    run("init", "--no-scm")
    run("remote", "add", "-d", "it", str(work / "remote"))
    while True:
        shutil.rmtree(root / "made", ignore_errors=True)
        shutil.copytree(made, root / "made")
        run("add", "made")
        run("push")
        yield


def by_sync(work: Path, made: Path, _: argparse.Namespace) -> Iterator[None]:
    (work / "remote").mkdir()
    for number in range(9):  # a changed file is sent whole, and the one before is kept
        shutil.copytree(made, work / "remote" / str(number))
        yield


def many(work: Path, options: argparse.Namespace) -> None:
    total = int(options.gigabytes * 1e9)
    rows: list[tuple[str, float, float]] = []
    with serving(work) as server:
        here = place(work, "many", server.url)
        write = MAKE_FILES.format(total=total)
        (here.root / "write.py").write_text(write)
        text = '[command.all]\nsrcs = { write = "write.py" }\nrun = "python3 $write $out"\n'
        (here.root / "FTBUILD.toml").write_text(MANIFEST.partition("[command")[0] + text)
        here.remote = ""
        here.run("make")
        here.remote = server.url
        output = here.root / "ftbuild-out" / "all"
        files = [p.stat().st_size for p in output.iterdir()]
        copy = ["cp", "-r", "--reflink=never", f"{output}/.", str(work / "plain")]
        os.sync()
        rows.append(("cp -r, sync", *timed(copy, work)))
        shutil.rmtree(work / "plain")
        os.sync()
        rows.append(("push to nginx", *here.usage("push")))
        rows.append(("push again: nothing to send", *here.usage("push")))
        shutil.rmtree(server.data / "cas")
        shutil.rmtree(server.data / "ac")
        at_push = resumed(here, "push", server, sum(files), sent_bytes)
        shutil.rmtree(here.root.with_name("many-store"))  # the disk need not hold all three
        wanted = work / "objects"
        wanted.write_text(
            "".join(
                f'url = "{server.url}/cas/{p.name}"\noutput = "{work}/plain/{p.name}"\n'
                for p in (server.data / "cas").iterdir()
            )
        )
        (work / "plain").mkdir()
        os.sync()
        rows.append(("curl of all objects, sync", *timed(["curl", "-sK", str(wanted)], work)))
        shutil.rmtree(work / "plain")
        there = place(work, "there", server.url)
        shutil.copytree(here.root, there.root, ignore=CHECKOUT, dirs_exist_ok=True)
        os.sync()
        rows.append(("pull", *there.usage("pull")))
        shutil.rmtree(there.root / ".ftbuild")
        shutil.rmtree(there.root.with_name("there-store"))
        at_pull = resumed(there, "pull", server, sum(files), received_bytes)
    sizes = f"{len(files)} files, {min(files):,} to {max(files):,}"
    print(f"\n### many: {sum(files):,} bytes in {sizes}\n")
    print("| | s | MB/s | peak MiB |\n|---|---|---|---|")
    for name, seconds, peak in rows:
        print(f"| {name} | {seconds:.1f} | {sum(files) / seconds / 1e6:.0f} | {peak:.0f} |")
    print("\n| kill -9 of | bytes until then | bytes in all | of the data |\n|---|---|---|---|")
    for name, (before, after) in (("push", at_push), ("pull", at_pull)):
        print(f"| {name} | {before:,} | {after:,} | x {after / sum(files):.4f} |")


CHECKOUT = shutil.ignore_patterns(".ftbuild", "ftbuild-out")
MAKE_FILES = """\
import os, sys
out, total = sys.argv[1], {total}
# Half the bytes in 8 large files, most of the rest in 592 from a megabyte on, and 2,000 small ones.
sizes = [total // 16] * 8
sizes += [int(total / 2 / 592 * (0.1 + 1.8 * n / 591)) for n in range(592)]
sizes += [1000 + 50 * n for n in range(2000)]
for number, size in enumerate(sizes):
    with open(f"{{out}}/{{number:04d}}", "wb") as file:
        for start in range(0, size, 1 << 20):
            file.write(os.urandom(min(1 << 20, size - start)))
"""


def timed(command: list[str], work: Path) -> tuple[float, float]:
    """Run a plain tool until all is on the disk; return its seconds and its largest MiB."""
    shell = ["sh", "-c", '"$@" && sync', "sh", *command]
    used = measure(
        shell, directory=str(work), environment=os.environ, log=str(work / "log"), limit_s=LIMIT_S
    )
    assert used.exit_code == 0, command
    return used.wall_s, used.peak_mib


def resumed(
    at: Place, command: str, server: Nginx, total: int, moved: Callable[[Nginx, int], int]
) -> tuple[int, int]:
    """Kill a transfer with -9 half way and begin it again; return the bytes moved by then, in all.

    They are those of the server's access log: every answer, those that were cut off included.
    """
    already = len(server.requests())
    running = subprocess.Popen(
        [sys.executable, "-m", "ftbuild", command, "--quiet"],
        cwd=at.root,
        env=at.environment(),
        start_new_session=True,
    )
    while moved(server, already) < total / 2:
        assert running.poll() is None, "it ended before it was killed"
        time.sleep(0.2)
    os.killpg(running.pid, 9)
    running.wait()
    time.sleep(1.0)  # nginx writes the lines of what was cut off
    before = moved(server, already)
    at.run(command)
    return before, moved(server, already)


def sent_bytes(server: Nginx, already: int) -> int:
    """Return the bytes that clients sent, with the heads of their requests."""
    lines = (server.root / "access.log").read_text().splitlines()[already:]
    return sum(int(line.split()[4]) for line in lines if line.startswith("PUT"))


def received_bytes(server: Nginx, already: int) -> int:
    """Return the bytes that clients got."""
    return sum(size for method, _, _, size in server.requests()[already:] if method == "GET")


@contextmanager
def serving(work: Path) -> Iterator[Nginx]:
    with nginx(work / "nginx-many") as server:
        yield server


if __name__ == "__main__":
    main()
