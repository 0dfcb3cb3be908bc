"""Let `python -m ftbuild` be the command `ftbuild`."""

import sys

from ftbuild.cli.main import app

if __name__ == "__main__":
    sys.exit(app())
