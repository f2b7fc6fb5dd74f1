"""`surgery schema`: the JSON Schema of YAML specs, for editors."""

import argparse

from surgery.cli.terminal import print_json
from surgery.diagnostics.errors import DONE
from surgery.operations.schema import schema

EXAMPLE = """
surgery schema > surgery.schema.json
    then begin a spec with  # yaml-language-server: $schema=surgery.schema.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Nothing but what every command takes; the output is JSON with and without `--json`."""


def run(args: argparse.Namespace) -> int:
    print_json(schema())
    return DONE
