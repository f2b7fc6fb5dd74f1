"""`surgery doctor`: is this installation whole, and what would mend it."""

import argparse
import sys
from typing import Any

from surgery.cli.terminal import console, print_json
from surgery.diagnostics.errors import DONE, FAULTS

EXAMPLE = """
surgery doctor                check versions, device, plugins, folders
surgery doctor --compile      also compile a small function with torch.compile
"""

MARKS = {"ok": ("✓", "+", "green"), "warning": ("!", "!", "yellow"), "broken": ("✗", "x", "red")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--compile", action="store_true", help="compile a small function (some seconds)")


def run(args: argparse.Namespace) -> int:
    from surgery.cli.health import examine

    checks = examine(compile_something=args.compile)
    broken = any(check.state == "broken" for check in checks)
    if args.json:
        rows = [{"name": c.name, "state": c.state, "found": c.found, "cure": c.cure} for c in checks]
        print_json({"format": "surgery.doctor/1", "healthy": not broken, "checks": rows})
    else:
        show(checks, args)
    return FAULTS if broken else DONE


def show(checks: list[Any], args: argparse.Namespace) -> None:
    """A line per check; the cure under what needs one."""
    from rich.text import Text

    out = console(args, sys.stdout)
    plain = "utf" not in (getattr(sys.stdout, "encoding", "") or "").lower()
    width = max(len(check.name) for check in checks) + 2
    for check in checks:
        if args.quiet and check.state == "ok":
            continue
        fine, ascii_mark, style = MARKS[check.state]
        out.print(Text(ascii_mark if plain else fine, style), Text(f"{check.name:<{width}}"), Text(check.found))
        if check.cure:
            out.print(Text(f"  {'':<{width}}help: {check.cure}", "dim"))
