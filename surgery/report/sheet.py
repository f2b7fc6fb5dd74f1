"""A console seen as a sheet of paper: lines, headings and tables in the characters its encoding has."""

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

ASCII = str.maketrans(
    {
        "✓": "ok",
        "✗": "FAILED",
        "→": "->",
        "×": "x",
        "·": "-",
        "–": "-",
        "−": "-",
        "…": "...",
        "≥": ">=",
        "≤": "<=",
        "█": "#",
        "▓": "%",
        "▒": "+",
        "░": ".",
        "‖": "|",
        "τ": "tau",
        "π": "pi",
        "└": "`",
    }
)
BAR = 12


class Sheet:
    """A console that says everything in the characters its encoding has."""

    def __init__(self, console: Console):
        self.console = console
        self.plain = not (console.encoding or "").lower().startswith("utf")

    def text(self, text: str, style: str = "", **options) -> Text:
        """Text in this encoding; markup in it is left as written."""
        if self.plain:
            text = text.translate(ASCII).encode("ascii", "replace").decode("ascii")
        return Text(text, style=style, **options)

    def line(self, text: str, style: str = "", *, top: bool = False) -> None:
        indent = len(text) - len(text.lstrip())
        self.show(Padding(self.text(text.lstrip(), style), (int(top), 0, 0, indent), expand=False))

    def heading(self, title: str, note: str = "") -> None:
        text = Text().append_text(self.text(title, "bold"))
        if note:
            text.append_text(self.text(f"  {note}", "dim"))
        self.show(Padding(text, (1, 0, 0, 0), expand=False))

    def table(self, columns: list[str], rows: list[list[str | Text]], *, left: int = 1) -> None:
        """Columns named as given; the first `left` of them flush left, the others flush right."""
        table = Table(box=None, show_header=any(columns), header_style="dim", padding=(0, 2, 0, 0), pad_edge=False)
        vertical = "bottom" if left == 1 else "top"
        for index, name in enumerate(columns):
            justify = "left" if index < left or not name else "right"
            keep = justify == "right"
            table.add_column(self.text(name), justify=justify, no_wrap=keep, overflow="fold", vertical=vertical)
        for row in rows:
            table.add_row(*(cell if isinstance(cell, Text) else self.text(cell) for cell in row))
        self.show(Padding(table, (0, 0, 0, 2), expand=False))

    def show(self, renderable: RenderableType) -> None:
        self.console.print(renderable, highlight=False, soft_wrap=False)

    def bar(self, share: float) -> Text:
        full = round(BAR * min(max(share, 0.0), 1.0))
        bar = Text().append_text(self.text("█" * full, "blue"))
        bar.append_text(self.text("░" * (BAR - full), "dim"))
        return bar.append_text(self.text(f" {100 * share:.0f} %"))
