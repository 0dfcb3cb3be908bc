"""Print the JSON Schema of FTBUILD.toml, by which editors complete and check it.

`#:schema ./.ftbuild/schema.json` as the first line of an FTBUILD.toml points editors to it;
`ftbuild init` writes that file.

Exit status:
  0 done; 2 a rule of the project cannot be read.
"""

import json
from argparse import ArgumentParser, Namespace

from ftbuild.cli.flags import open_registry


def arguments(parser: ArgumentParser) -> None:
    """Add what `schema` takes: nothing of its own."""


def run(options: Namespace) -> int:
    """Print the schema, over many lines: it is JSON with and without --json."""
    from ftbuild.schema import json_schema

    print(json.dumps(json_schema(open_registry(options)), indent=2))
    return 0
