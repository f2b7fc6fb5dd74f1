"""`surgery apply SPEC --out FOLDER`: do it, prove it, save it."""

import os
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

EXAMPLE = """
surgery apply specs/quickstart.surgery --out build/quickstart
surgery apply plan.json --out build/quickstart          just what was planned, or nothing

surgery apply heal.surgery --checkpoints run           Ctrl-C, and the same again goes on from there
torchrun --nproc-per-node=2 -m surgery apply heal.surgery --out build/healed

A spec that only analyses leaves the model as it is: its bundle holds the report and the untouched model.
`require latency` means one forward pass, eager, at batch 1; `require memory` the peak of one at batch 32.
"""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("spec", metavar="SPEC", help="a .surgery or .yaml file, a plan's .json, or `-`")
    parser.add_argument("--model", metavar="MODEL", help="instead of the spec's own; may be module.path:factory")
    parser.add_argument("--data", metavar="DATA", help="instead of the spec's own")
    parser.add_argument(
        "-o", "--out", metavar="FOLDER", type=Path, help="where the bundle goes; without it none is saved"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a bundle that is there")
    parser.add_argument("--pt2", action="store_true", help="put model.pt2 of torch.export into the bundle as well")
    parser.add_argument(
        "--locked", action="store_true", help="leave out what the clock measures: same inputs, same bytes"
    )
    parser.add_argument("--no-controls", action="store_true", help="do not measure the controls")
    parser.add_argument("--no-timing", action="store_true", help="do not measure latency and memory")
    parser.add_argument("--no-compile", action="store_true", help="do not measure latency under torch.compile")
    parser.add_argument(
        "--checkpoints", metavar="FOLDER", type=Path, help="where training keeps its state, and goes on from it"
    )
    parser.add_argument("--device", metavar="DEVICE", help="where the model is put and all is measured: `cuda:1` (cpu)")
    parser.add_argument("--print-after", metavar="PASS", help="print the graph behind each pass of this name, or `all`")


def run(args: Namespace) -> int:
    from surgery.cli.progress import bar
    from surgery.diagnostics import UnprovenError
    from surgery.session.operate import operate
    from surgery.training.processes import joined

    with joined() as first:
        if not first:
            return _beside(args)
        _refuse_place(args)
        prepared = _prepared(args)
        try:
            with bar(args) as progress:
                result = operate(prepared, **_options(args), after=_printer(args), progress=progress)
        except UnprovenError as error:
            if getattr(error, "report", None):
                _print(args, error.report)
            raise
    if args.out:
        result.save(args.out, overwrite=args.overwrite, timings=not args.locked, pt2=args.pt2)
    _print(args, result.report)
    if not (args.out or args.quiet or args.json):
        print(f"to save the result: `surgery apply {args.spec} --out FOLDER`", file=sys.stderr)
    return 0


def _options(args: Namespace) -> dict[str, Any]:
    return {
        "data": args.data,
        "controls": not args.no_controls,
        "timing": not (args.no_timing or args.locked),
        "compiled": not args.no_compile,
        "checkpoints": args.checkpoints,
    }


def _beside(args: Namespace) -> int:
    """Train beside the first of the processes that torchrun started, and leave clock, report and bundle to it."""
    from dataclasses import replace

    from surgery.session.operate import operate
    from surgery.session.requirements import CLOCKED

    prepared = _prepared(args)
    judged = tuple(require for require in prepared.program.requires if require.metric not in CLOCKED)
    program = replace(prepared.program, requires=judged)
    operate(replace(prepared, program=program), **_options(args) | {"timing": False})
    return 0


def _refuse_place(args: Namespace) -> None:
    """A folder that is taken or cannot be made is told before minutes of work, not after."""
    if not args.out:
        return
    from surgery.bundle.folder import refuse_existing, restore
    from surgery.diagnostics import BundleError

    restore(args.out)
    refuse_existing(args.out, args.overwrite)
    above = next(folder for folder in Path(os.path.abspath(args.out)).parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        reason = "may not be written to" if above.is_dir() else "is not a folder"
        raise BundleError(
            f"cannot write the bundle `{args.out}`: `{above}` {reason}", code="S702", help="choose another folder"
        )


def _prepared(args: Namespace) -> Any:
    from surgery.cli.check import source
    from surgery.session import prepare

    if _is_plan(args.spec):
        return _planned(Path(args.spec), args.model, args.device)
    return prepare(source(args.spec), args.model, device=args.device)


def _is_plan(name: str) -> bool:
    """A JSON file may also be a spec in YAML's stead; a plan says that it is one in its first line or two."""
    if not name.endswith(".json"):
        return False
    try:
        with open(name, encoding="utf-8", errors="replace") as file:
            return "surgery.plan/" in file.read(200)
    except OSError:
        return False


def _planned(path: Path, model: str | None, device: str | None) -> Any:
    """What was planned, or StalePlanError. A plan may come from a stranger: the model it names imports no code."""
    from surgery.diagnostics import Source
    from surgery.plan.store import read_plan, refuse_stale
    from surgery.session import prepare

    saved = read_plan(path)
    spec, reference = _plan_is_about(path, saved)
    source = Source(f"{path}#spec", spec)
    prepared = prepare(source, model or reference, allow_import=model is not None, device=device)
    refuse_stale(saved, prepared.plan)
    return prepared


def _plan_is_about(path: Path, saved: dict) -> tuple[str, str]:
    """The spec's text and the model's reference. Raises SurgeryError (S403) where a plan lacks them."""
    from surgery.diagnostics import SurgeryError

    model = saved.get("model")
    found = saved.get("spec"), model.get("reference") if isinstance(model, dict) else None
    if not all(isinstance(text, str) for text in found) or not isinstance(saved.get("actions"), list):
        help = "write one with `surgery plan SPEC -o plan.json`"
        raise SurgeryError(f"{path} is not a whole plan: it lacks its spec, model or actions", code="S403", help=help)
    return found


def _printer(args: Namespace) -> Any:
    if not args.print_after:
        return None
    from surgery.inspection import code

    def show(step: Any, graph_module: Any) -> None:
        if args.print_after in ("all", step.name):
            print(f"# after {step.name}: {step.clause}\n{code(graph_module, touched=True)}", file=sys.stderr)

    return show


def _print(args: Namespace, report: dict) -> None:
    from surgery.cli.terminal import console, print_json
    from surgery.session.document import finite

    if args.json:
        print_json(finite(report))
        return
    from surgery.report.terminal import render

    render(report, console(args, sys.stdout))
