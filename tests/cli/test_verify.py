"""`verify` as its users see it: texts and exit codes."""

import hashlib
import json
import re
import shutil

from cli.toy import Toy
from store_kit import flip_bit


def build(toy: Toy) -> None:
    assert toy.run("make", "-q").returncode == 0


def untimed(text: str) -> str:
    return re.sub(r"\b\d+\.\d\ds\b", "T", text)


def test_every_target_that_another_needs_is_verified(toy: Toy) -> None:
    build(toy)
    done = toy.run("verify")
    assert (done.returncode, untimed(done.stdout)) == (
        0,
        "lines: identical T\ncalm: identical T\nshout: identical T\nidentical 3 in T\n",
    )
    assert toy.run("verify", "-q", "shout", "--only").stdout == ""
    assert toy.run("verify", "-n", "calm").stdout == "lines\ncalm\n"
    done = toy.run("verify", "--budget", "0 s", "lines")
    assert re.sub(r"took \d+ s", "took T", untimed(done.stdout)) == (
        "lines: skipped (its last run took T, and the time is up)\nskipped 1 in T\n"
    )


def test_what_is_not_built_is_told(toy: Toy) -> None:
    done = toy.run("verify", "lines")
    assert (done.returncode, untimed(done.stdout)) == (
        2,
        "lines: unbuilt (the store has no result of it as it now is)\nunbuilt 1 in T\n",
    )
    done = toy.run("verify", "--sample", "2")
    assert (done.returncode, done.stderr) == (
        2,
        "error[E0017]: none of these targets is built, so there is nothing to verify\n"
        "  fix: `ftbuild make` builds them, `ftbuild pull` brings them\n",
    )


def test_wrong_flags(toy: Toy) -> None:
    for args, what in (
        (("--all", "lines"), "`--all` leaves no TARGET to name"),
        (("--sample", "0"), "argument --sample: `0` is not a number of targets"),
        (("--tolerance", "nan"), "argument --tolerance: `nan` is not a number from 0"),
        (("--budget", "soon"), "argument --budget: `soon` is not a time such as `10 min`"),
    ):
        done = toy.run("verify", *args)
        assert (done.returncode, done.stderr.splitlines()[0]) == (2, f"error[E0020]: {what}")


def test_store_that_is_whole_and_one_with_a_flipped_bit(toy: Toy) -> None:
    build(toy)
    done = toy.run("verify", "--store")
    assert done.returncode == 0
    assert re.fullmatch(
        r"\d+ blobs, 3 trees, 3 records, [\d.]+ K?B hashed: all are what they say\n", done.stdout
    )
    store = toy.root.parent / "store/v1"
    record = next((store / "actions").glob("*/*"))
    flip_bit(record, 900)
    done = toy.run("verify", "--store")
    assert done.returncode == 4
    assert done.stdout.splitlines()[0] == (
        f"record {record.stem}: its bytes do not have the digest that it names; moved to quarantine"
    )
    assert done.stdout.endswith("hashed: 1 damaged\n")
    done = toy.run("verify", "--store", "--json")
    assert (done.returncode, json.loads(done.stdout)["damaged"]) == (0, [])


def test_damage_is_repaired_from_the_remote_store(toy: Toy) -> None:
    remote = {"FTBUILD_REMOTE": str(toy.root.parent / "remote")}
    assert toy.run("make", "-q", env=remote).returncode == 0
    store = toy.root.parent / "store/v1"
    whole = (toy.root / "ftbuild-out/shout/text.txt").read_bytes()
    name = hashlib.sha256(whole).hexdigest()
    blob = store / "blobs" / name[:2] / name
    flip_bit(blob, 4)
    flipped = blob.read_bytes()
    shutil.rmtree(store / "trees")  # or it would be mended from what is laid out
    (store / "trees").mkdir()
    done = toy.run("verify", "--store", env=remote)
    said = f"blob {name}: its bytes have the digest {hashlib.sha256(flipped).hexdigest()}; mended\n"
    assert done.returncode == 4
    assert done.stdout.startswith(said)
    assert blob.read_bytes() == whole
    done = toy.run("verify", "--store")
    assert done.returncode == 0, done.stdout
