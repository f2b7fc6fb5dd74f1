"""argparse with our words: an example first, the nearest option for a misspelt one."""

import argparse
import re
from types import ModuleType
from typing import NoReturn

from surgery.cli.terminal import COLORS
from surgery.diagnostics import SurgeryError, did_you_mean
from surgery.diagnostics.errors import USAGE


class Parser(argparse.ArgumentParser):
    """Faults are SurgeryErrors (S002) with exit code 2."""

    def error(self, message: str) -> NoReturn:
        options = [option for action in self._actions for option in action.option_strings]
        unknown = re.match(r"unrecognized arguments: (\S+)", message)
        invalid = re.match(
            r"argument (?P<what>\S+): invalid choice: '(?P<word>[^']*)' \(choose from (?P<all>.*)\)", message
        )
        help = f"`{self.prog} --help` shows what it takes"
        if unknown and unknown[1].startswith("-"):
            message = f"unknown option `{unknown[1]}`"
            help = did_you_mean(unknown[1].partition("=")[0], options) or help
        elif unknown:
            message = f"unexpected argument `{unknown[1]}`"
        elif invalid:
            message = f"`{invalid['word']}` is no value of `{invalid['what']}`"
            choices = [choice.strip(" '") for choice in invalid["all"].split(",")]
            help = did_you_mean(invalid["word"], choices) or help
        fault = SurgeryError(message, code="S002", help=help)
        fault.exit_code = USAGE
        raise fault


def parser_of(command, module: ModuleType) -> Parser:
    """The parser of one command: its own arguments and those every command has."""
    parser = Parser(
        prog=f"surgery {command.name}",
        description=f"{module.EXAMPLE.strip()}\n\n{command.summary}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    common = parser.add_argument_group("every command")
    common.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    common.add_argument("--color", choices=COLORS, default="auto", help="colour the output (default: on a terminal)")
    common.add_argument("-q", "--quiet", action="store_true", help="print results only, no progress and no summaries")
    return parser
