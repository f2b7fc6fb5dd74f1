"""`surgery diff`: how two models or bundles differ."""

import sys
from argparse import ArgumentParser, Namespace

from surgery.cli.terminal import console, print_json

EXAMPLE = "surgery diff zoo:digits-dit build/quickstart"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("before", metavar="A", help="zoo:NAME, a bundle's folder, diffusers:PATH or module:factory")
    parser.add_argument("after", metavar="B", help="what to compare it with")
    parser.add_argument("--full", action="store_true", help="tell every block by itself")
    parser.add_argument("--exit-code", action="store_true", help="end with 1 where they differ")


def run(args: Namespace) -> int:
    from surgery import inspection

    difference = inspection.diff(inspection.open_graph(args.before), inspection.open_graph(args.after))
    if args.json:
        print_json(difference.document(args.before, args.after))
    elif not args.quiet:
        text = inspection.difference_text(difference, args.before, args.after, full=args.full)
        console(args, sys.stdout).print(text)
    return int(args.exit_code and not difference.identical)
