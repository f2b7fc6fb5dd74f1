"""`surgery plan SPEC`: what a spec would do and save; no weights are read."""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

EXAMPLE = """
surgery plan specs/quickstart.surgery                 what would be cut, where, what it saves
surgery plan specs/quickstart.surgery -o plan.json    keep it, for `surgery apply plan.json`
"""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("spec", metavar="SPEC", help="a .surgery or .yaml file; `-` is standard input")
    parser.add_argument("--model", metavar="MODEL", help="instead of the spec's own; may be module.path:factory")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="write the plan as JSON")
    parser.add_argument("--full", action="store_true", help="list every tensor")


def run(args: Namespace) -> int:
    from surgery.cli.check import source
    from surgery.cli.terminal import console, print_json
    from surgery.plan.store import write_plan
    from surgery.session import prepare

    plan = prepare(source(args.spec), args.model, weights=False).plan
    if args.output:
        write_plan(plan, args.output)
    if args.json:
        print_json(plan.document())
        return 0
    from surgery.report.terminal import render_plan

    render_plan(plan.document(), console(args, sys.stdout), full=args.full)
    if args.output and not args.quiet:
        print(f"written to {args.output}; `surgery apply {args.output} --out FOLDER` does just this", file=sys.stderr)
    return 0
