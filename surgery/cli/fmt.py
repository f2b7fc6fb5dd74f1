"""`surgery fmt`: write specs in their canonical form, comments kept."""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from surgery.cli.check import source
from surgery.cli.terminal import print_json, use_color
from surgery.diagnostics import SpecError, SurgeryError, render
from surgery.diagnostics.errors import DONE, FAULTS
from surgery.language import format, format_yaml, read
from surgery.language.read import is_yaml
from surgery.operations.arrange import arranged

EXAMPLE = """
surgery fmt my.surgery                        rewrite the file in its canonical form
surgery fmt --check --diff specs/*.surgery    change nothing; show what would change
surgery fmt --to yaml my.surgery              print the spec as YAML
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="spec files; `-` formats standard input to stdout")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is not in canonical form")
    parser.add_argument("--diff", action="store_true", help="write nothing; print what would change")
    parser.add_argument("--to", choices=("yaml", "text"), help="print the spec in the other form on stdout")


def run(args: argparse.Namespace) -> int:
    faults, changed, printed = [], [], []
    for name in args.files:
        try:
            before, after = _formatted(name, args.to)
        except SpecError as error:
            faults += error.diagnostics
            continue
        if args.to or name == "-":
            printed.append(after)
        elif before != after:
            changed.append(name)
            _change(name, before, after, args)
    _tell(args, changed, printed, faults)
    return FAULTS if faults or (args.check and changed) else DONE


def _formatted(name: str, to: str | None) -> tuple[str, str]:
    """The text of a spec and its canonical form."""
    text = source(name)
    reading = read(text)
    if reading.faults:
        raise SpecError(diagnostics=reading.faults)
    if name.endswith(".json") and not to:
        help = f"`surgery fmt --to yaml {name}` prints it as YAML"
        raise SpecError(f"`{name}` is JSON, which has no form of its own here", code="S013", help=help)
    spec = arranged(reading.spec)
    as_yaml = to == "yaml" if to else is_yaml(text)
    before = text.text if name == "-" else Path(name).read_bytes().decode("utf-8")
    return before, format_yaml(spec) if as_yaml else format(spec)


def _change(name: str, before: str, after: str, args: argparse.Namespace) -> None:
    if args.diff and not args.json:
        import difflib

        lines = difflib.unified_diff(before.splitlines(True), after.splitlines(True), name, f"{name} (formatted)")
        sys.stdout.writelines(line if line.endswith("\n") else f"{line}\n" for line in lines)
    if not (args.diff or args.check):
        write(Path(name), after)


def _tell(args: argparse.Namespace, changed: list[str], printed: list[str], faults: list) -> None:
    if args.json:
        from surgery.diagnostics.render import as_dict

        told = {"format": "surgery.fmt/1", "changed": changed, "text": "".join(printed) or None}
        print_json(told | {"diagnostics": [as_dict(fault) for fault in faults]})
        return
    sys.stdout.write("".join(printed))
    if faults:
        print(render(faults, color=use_color(args.color, sys.stderr)), end="", file=sys.stderr)
    if not args.quiet and not args.diff:
        for name in changed:
            print(f"{'would format' if args.check else 'formatted'} {name}", file=sys.stderr)


def write(path: Path, text: str) -> None:
    """Replace a file's text whole or not at all; its permissions stay, a link is followed."""
    path = path.resolve()
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, path.stat().st_mode & 0o7777)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise SurgeryError(f"cannot write `{path}`: {reason}", code="S013") from error
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
