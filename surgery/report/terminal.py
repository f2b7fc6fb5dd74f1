"""Reports and plans as tables in a terminal, in 80 columns, without colour and in ASCII as well."""

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from surgery.report import verdict, wording

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
        "░": ".",
        "‖": "|",
        "τ": "tau",
        "π": "pi",
        "└": "`",
    }
)
LEVELS = {"good": "green", "fair": "yellow", "poor": "bold red", "none": ""}
BAR = 12


def render(document: dict, console: Console) -> None:
    """Print a report ("surgery.report/1") on a console: what was cut, what it cost, what was proven."""
    page = Page(console)
    _header(page, document)
    _actions(page, document)
    _quality(page, document)
    _controls(page, document)
    _sizes(page, document)
    _latency(page, document)
    _checks(page, document)
    _ending(page, document)


def render_plan(document: dict, console: Console, *, full: bool = False) -> None:
    """Print a plan ("surgery.plan/1"): what would be cut and saved; `full` lists every tensor."""
    page = Page(console)
    page.line(f"plan for {document.get('model', {}).get('reference', 'a model')}", "bold")
    for selector in document.get("selectors", ()):
        page.line(f"  {selector['text']} → {'; '.join(selector['matched'])}", "dim")
    _actions(page, document, full=full)
    _sizes(page, document)
    hidden = sum(len(action.get("tensors", ())) for action in document.get("actions", ()))
    if not document.get("actions"):
        page.line("nothing to cut", top=True)
    elif hidden and not full:
        page.line(f"{wording.plural(hidden, 'tensor')} hidden: --full lists them", "dim", top=True)


class Page:
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
        self.console.print(renderable, highlight=False)

    def bar(self, share: float) -> Text:
        full = round(BAR * min(max(share, 0.0), 1.0))
        bar = Text().append_text(self.text("█" * full, "blue"))
        bar.append_text(self.text("░" * (BAR - full), "dim"))
        return bar.append_text(self.text(f" {100 * share:.0f} %"))


def _header(page: Page, document: dict) -> None:
    device = document.get("device") or {}
    threads = f"{device['threads']} threads" if "threads" in device else ""
    torch = f"torch {device['torch']}" if "torch" in device else ""
    facts = [device.get("name", ""), threads, torch, device.get("dtype", "")]
    page.line(document["model"].get("reference", "a model"), "bold")
    page.line("  " + " · ".join(fact for fact in facts if fact), "dim")
    page.line("  " + verdict.headline(document), "green" if verdict.proven(document) else "bold red")


def _actions(page: Page, document: dict, *, full: bool = False) -> None:
    for clause, place, actions in _by_clause(document.get("actions", ())):
        page.heading(clause, place)
        page.table(["site", "change", "left", "saved"], [_action_row(page, action) for action in actions], left=4)
        for action in actions:
            for note in [_choice(action), *action.get("notes", ())]:
                if note:
                    page.line(f"  {note}", "dim")
            if full:
                page.table(["tensor", "before", "after"], [_tensor_row(row) for row in action.get("tensors", ())])


def _by_clause(actions: list[dict]) -> list[tuple[str, str, list[dict]]]:
    groups: dict[tuple[str, str], list[dict]] = {}
    for action in actions:
        groups.setdefault((action["clause"], action.get("place") or ""), []).append(action)
    return [(*key, group) for key, group in groups.items()]


def _action_row(page: Page, action: dict) -> list[str | Text]:
    saved = action.get("saved") or {}
    parts = [f"{wording.count(saved['parameters'])} parameters" if saved.get("parameters") else ""]
    parts.append(wording.size(saved["bytes"]) if saved.get("bytes") else "")
    share = _left(action)
    left = "" if share is None else page.bar(share)
    change = wording.attributes(action["before"], action["after"])
    return [action["site"], change, left, ", ".join(filter(None, parts)) or "nothing"]


def _left(action: dict) -> float | None:
    for name, before in action["before"].items():
        after = action["after"].get(name)
        if isinstance(before, int | float) and isinstance(after, int | float) and before and before != after:
            return after / before
    return None


def _choice(action: dict) -> str:
    choice = action.get("choice") or {}
    words = [f"chosen by {choice['by']}" if choice.get("by") else ""]
    words.append(f"compensated by {choice['compensate']}" if choice.get("compensate") not in (None, "none") else "")
    words.append(f"{choice['scope']} for all classes and timesteps" if choice.get("scope") == "shared" else "")
    words.append("a mask per vector" if choice.get("scope") == "per-vector" else "")
    return ", ".join(filter(None, words))


def _tensor_row(row: dict) -> list[str]:
    return [row["name"], wording.shape(row["before"]), wording.shape(row["after"])]


def _quality(page: Page, document: dict) -> None:
    rows = document.get("quality") or []
    if not rows:
        return
    page.heading("quality", _shared_data(rows))
    page.table(["metric", "before", "after", "ratio", ""], [_quality_row(page, row) for row in rows])


def _shared_data(rows: list[dict]) -> str:
    sources = sorted({row["data"] for row in rows if row.get("data")})
    return sources[0] if len(sources) == 1 else ""


def _quality_row(page: Page, row: dict) -> list[str | Text]:
    found = verdict.judge(row)
    style = LEVELS[found.level]
    name, before, after = row["metric"], row["before"], row["after"]
    values = [wording.metric(name, before), wording.metric(name, after)]
    return [name, *values, page.text(wording.times(found.ratio), style), page.text(found.word, style)]


def _controls(page: Page, document: dict) -> None:
    key, controls = verdict.sorted_controls(document)
    if not controls:
        return
    quality = {row["metric"]: row for row in document.get("quality") or ()}
    metrics = [name for name in quality if any(name in control["metrics"] for control in controls)]
    metrics += sorted({name for control in controls for name in control["metrics"]} - set(metrics))
    rows: list[list[str | Text]] = []
    for name, side, style in (("dense", "before", ""), ("this cut", "after", "bold")):
        values = [quality[metric][side] if metric in quality else None for metric in metrics]
        rows.append([page.text(text, style) for text in (name, *map(wording.metric, metrics, values))])
    for control in controls:
        values = [control["metrics"].get(metric) for metric in metrics]
        rows.append([control["name"], *map(wording.metric, metrics, values)])
    page.heading("controls", f"other ways to cut, best {key} first")
    page.table(["", *(name.replace(" ", "\n") for name in metrics)], rows)


def _sizes(page: Page, document: dict) -> None:
    sizes, memory = document.get("size") or {}, document.get("memory")
    writers = {"parameters": wording.count, "bytes": wording.size, "flops": wording.count}
    rows = [[name, *_change_cells(change, writers.get(name, wording.count))] for name, change in sizes.items()]
    if memory:
        rows.append([f"memory, batch {memory['batch']}", *_change_cells(memory, wording.size)])
    if rows:
        page.heading("size", memory["what"] if memory and memory.get("what") else "")
        page.table(["", "before", "after", "change"], rows)


def _change_cells(change: dict, write) -> list[str]:
    before, after = change["before"], change["after"]
    texts = ["–" if value is None else write(value) for value in (before, after)]
    return [*texts, wording.change(before, after)]


def _latency(page: Page, document: dict) -> None:
    rows = document.get("latency") or []
    if not rows:
        return
    measured = [row for row in rows if "skipped" not in row]
    runs = sorted({row["runs"] for row in measured if row.get("runs")})
    page.heading("latency", f"median of {runs[0]} interleaved runs" if len(runs) == 1 else "medians, interleaved")
    if measured:
        page.table(["", "before", "after", "speed"], [_latency_row(page, row) for row in measured])
    for row in rows:
        if "skipped" in row:
            page.line(f"  {row['mode']}: skipped, {row['skipped']}", "dim")
    for sentence in verdict.not_faster(document):
        page.line(f"  {sentence}", "yellow")


def _latency_row(page: Page, row: dict) -> list[str | Text]:
    gain = verdict.speed(row)
    style = "green" if gain and gain >= verdict.FASTER else ""
    times = [wording.milliseconds(row["before_ms"]), wording.milliseconds(row["after_ms"])]
    return [f"{row['mode']}, batch {row['batch']}", *times, page.text(wording.times(gain), style)]


def _checks(page: Page, document: dict) -> None:
    parity, requirements = document.get("parity", ()), document.get("requirements", ())
    if parity or requirements:
        page.heading("proof")
    for row in parity:
        _check(page, row["holds"], f"{row['what']} ({_where(row)})", _parity_detail(row))
    for row in requirements:
        measured = row.get("measured")
        detail = f"measured {measured:.4g}" if isinstance(measured, int | float) else "not measured"
        _check(page, row["holds"], row["text"], detail)


def _where(row: dict) -> str:
    return ", ".join(filter(None, [row.get("dtype", ""), f"batch {row['batch']}" if "batch" in row else ""]))


def _parity_detail(row: dict) -> str:
    return f"{wording.scientific(row['max_abs'])}, allowed {wording.scientific(row['tolerance'])}"


def _check(page: Page, holds: bool, text: str, detail: str) -> None:
    line = page.text("  ")
    line.append_text(page.text("✓ " if holds else "✗ ", "green" if holds else "bold red"))
    line.append_text(page.text(text, "" if holds else "bold red"))
    line.append_text(page.text(f"  {detail}", "dim"))
    page.show(line)


def _ending(page: Page, document: dict) -> None:
    if document.get("bundle"):
        page.line(f"saved in {document['bundle']}", "bold", top=True)
    elif not verdict.proven(document):
        page.line("nothing was saved: the proof above does not hold", "bold red", top=True)
    elif document.get("actions"):
        page.line("nothing was saved: no output folder was named", "dim", top=True)
