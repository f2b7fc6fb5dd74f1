"""`surgery apply SPEC --out FOLDER`: do it, prove it, save it."""

import json
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

EXAMPLE = """
surgery apply specs/quickstart.surgery --out build/quickstart
surgery apply plan.json --out build/quickstart          just what was planned, or nothing
"""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("spec", metavar="SPEC", help="a .surgery or .yaml file, a plan's .json, or `-`")
    parser.add_argument("--model", metavar="MODEL", help="instead of the spec's own; may be module.path:factory")
    parser.add_argument("--data", metavar="DATA", help="instead of the spec's own")
    parser.add_argument("-o", "--out", metavar="FOLDER", type=Path, help="where the bundle goes; without it none is saved")
    parser.add_argument("--overwrite", action="store_true", help="replace a bundle that is there")
    parser.add_argument("--locked", action="store_true", help="leave out what the clock measures: same inputs, same bytes")
    parser.add_argument("--no-controls", action="store_true", help="do not measure the controls")
    parser.add_argument("--no-timing", action="store_true", help="do not measure latency and memory")
    parser.add_argument("--no-compile", action="store_true", help="do not measure latency under torch.compile")
    parser.add_argument("--print-after", metavar="PASS", help="print the graph behind each pass of this name, or `all`")


def run(args: Namespace) -> int:
    from surgery.cli.progress import bar
    from surgery.diagnostics import UnprovenError
    from surgery.session.operate import operate

    _refuse_existing(args)
    prepared = _prepared(args)
    try:
        with bar(args) as progress:
            result = operate(
                prepared,
                data=args.data,
                controls=not args.no_controls,
                timing=not (args.no_timing or args.locked),
                compiled=not args.no_compile,
                after=_printer(args),
                progress=progress,
            )
    except UnprovenError as error:
        if getattr(error, "report", None):
            _print(args, error.report)
        raise
    if args.out:
        result.save(args.out, overwrite=args.overwrite, timings=not args.locked)
    _print(args, result.report)
    return 0


def _refuse_existing(args: Namespace) -> None:
    """Before minutes of work, not after."""
    if args.out:
        from surgery.bundle.folder import refuse_existing

        refuse_existing(args.out, args.overwrite)


def _prepared(args: Namespace) -> Any:
    from surgery.cli.check import source
    from surgery.plan.store import read_plan, refuse_stale
    from surgery.session import prepare

    if not args.spec.endswith(".json"):
        return prepare(source(args.spec), args.model)
    from surgery.diagnostics import Source

    saved = read_plan(Path(args.spec))
    prepared = prepare(Source(args.spec, saved["spec"]), args.model or saved["model"]["reference"])
    refuse_stale(saved, prepared.plan)
    return prepared


def _printer(args: Namespace) -> Any:
    if not args.print_after:
        return None
    from surgery.inspection import code

    def show(step: Any, graph_module: Any) -> None:
        if args.print_after in ("all", step.name):
            print(f"# after {step.name}: {step.clause}\n{code(graph_module, touched=True)}", file=sys.stderr)

    return show


def _print(args: Namespace, report: dict) -> None:
    if args.json:
        print(json.dumps(report, ensure_ascii=False))
        return
    from surgery.cli.terminal import console
    from surgery.report.terminal import render

    render(report, console(args, sys.stdout))
