"""Make a key pair with which records are signed, or show the public key of the one there is.

The private key goes to ~/.config/ftbuild/key, or with --out to FILE, readable by you alone. From
then on all that you build is signed with it; on a CI system its text is given in the environment
variable FTBUILD_SIGNING_KEY. A project believes a key that `trusted_keys` in [cache] names.

Exit status:
  0 done; 2 what is there is no key; 5 the file cannot be written, or `cryptography` is missing.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ftbuild import signing
from ftbuild.cli import terminal


def arguments(parser: ArgumentParser) -> None:
    """Add what `keys` takes."""
    parser.add_argument("--out", metavar="FILE", help="where the private key is, or is to be")


def run(options: Namespace) -> int:
    """Print the public key."""
    path = Path(options.out) if options.out else signing.user_key_path()
    signer = signing.read(path)
    is_new = signer is None
    if signer is None:
        signer = signing.generate()
        if not options.dry_run:
            public = signer.public  # before anything is written: the library may be missing
            signing.write(path, signer)
            assert public == signer.public
    if options.json:
        terminal.print_json({"public": signer.public, "path": str(path), "made": is_new})
        return 0
    print(signer.public)
    if not options.quiet:
        verb = "is in" if not is_new else "would go to" if options.dry_run else "was written to"
        terminal.say(
            f"the private key {verb} {path}; keep it to yourself\n"
            "to believe what is signed with it, a project writes into FTBUILD.toml:\n"
            f'[cache]\ntrusted_keys = ["{signer.public}"]'
        )
    return 0
