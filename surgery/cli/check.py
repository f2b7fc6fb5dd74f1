"""`surgery check`: read specs and say what they mean."""

import argparse
import sys
from typing import Any

from surgery.check import Program, examine
from surgery.cli.terminal import print_json, use_color
from surgery.diagnostics import Source, SpecError, render
from surgery.diagnostics.errors import DONE, FAULTS
from surgery.diagnostics.render import as_dict
from surgery.language import Reading, read, source_of, source_of_bytes

EXAMPLE = """
surgery check specs/quickstart.surgery        say what the spec means, or what is wrong with it
echo 'prune 66% of x' | surgery check -       read standard input
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="a .surgery or .yaml file; `-` is standard input")


def run(args: argparse.Namespace) -> int:
    results = [_examine(name) for name in args.files]
    if args.json:
        print_json({"format": "surgery.check/1", "files": [_document(*result) for result in results]})
    else:
        _print(results, args)
    return FAULTS if any(faults for _, _, faults in results) else DONE


def source(name: str) -> Source:
    """The source a person names: a file, or `-` for standard input."""
    if name == "-":
        return source_of_bytes(sys.stdin.buffer.read(), "<stdin>")
    from pathlib import Path

    return source_of(Path(name))


def _examine(name: str) -> tuple[str, Program, tuple]:
    """The program of a file and its faults; a file that cannot be read is a fault too."""
    try:
        reading = read(source(name))
    except SpecError as error:
        return name, None, error.diagnostics
    program, faults = examine(Reading(reading.spec, reading.faults))
    return name, program, faults


def _print(results: list, args: argparse.Namespace) -> None:
    color = use_color(args.color, sys.stderr)
    faulty = [fault for _, _, faults in results for fault in faults]
    if faulty:
        print(render(faulty, color=color), end="", file=sys.stderr)
    if args.quiet:
        return
    for name, program, faults in results:
        if not faults:
            print(f"{name}: {summary(program)}")
            for line in understood(program):
                print(f"  {line}")


def summary(program: Program) -> str:
    """How much a program asks for, in a few words."""
    told = [_count(len(program.operations), "operation")]
    if program.requires:
        told.append(_count(len(program.requires), "requirement"))
    return ", ".join(told)


def understood(program: Program) -> list[str]:
    """One line for each operation, in the order they will run."""
    everything = [program.model, program.data, *program.operations, *program.requires]
    named = [(_phase(one), str(one.clause)) for one in everything if one is not None]
    width = max((len(phase) for phase, _ in named), default=0)
    return [f"{phase:<{width}}  {text}" for phase, text in named]


def _phase(operation: Any) -> str:
    return operation.phase.name.lower() if operation.phase is not None else "given"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _document(name: str, program: Program | None, faults: tuple) -> dict:
    told = {"file": name, "ok": not faults, "diagnostics": [as_dict(fault) for fault in faults]}
    if program is None or faults:
        return told
    given = {"model": program.model, "data": program.data}
    return told | {
        **{key: str(one.reference) if one else None for key, one in given.items()},
        "operations": [
            {"verb": one.verb, "phase": _phase(one), "text": str(one.clause), "place": one.clause.place}
            for one in program.operations
        ],
        "requirements": [{"text": one.text, "place": one.clause.place} for one in program.requires],
    }
