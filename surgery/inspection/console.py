"""Where results are printed."""

import sys

from rich.console import Console


def console(color: str) -> Console:
    """Stdout, coloured on a terminal (`auto`, heeding NO_COLOR), `always` or `never`."""
    if color == "always":
        return Console(file=sys.stdout, force_terminal=True, color_system="standard", no_color=False, highlight=False)
    return Console(file=sys.stdout, color_system=None if color == "never" else "auto", highlight=False)
