"""Reports and plans as tables in a terminal, in 80 columns, without colour and in ASCII as well."""

from rich.console import Console
from rich.text import Text

from surgery.report import verdict, wording
from surgery.report.alike import folded, folded_names
from surgery.report.document import finding
from surgery.report.sheet import Sheet
from surgery.report.terminal_edges import edges_section, induction_section, training_section

SECTIONS = {"edges": edges_section, "training": training_section, "induction": induction_section}
"""What prints a finding, by its kind; class embeddings come last, where findings of other kinds have been told."""
LEVELS = {"good": "green", "fair": "yellow", "poor": "bold red", "none": ""}


def render(document: dict, console: Console) -> None:
    """Print a report ("surgery.report/1") on a console: what was cut, what it cost, what was proven."""
    sheet = Sheet(console)
    _header(sheet, document)
    _actions(sheet, document)
    for found in document.get("findings", ()):
        SECTIONS.get(found["kind"], lambda sheet, found: None)(sheet, found)
    _search(sheet, document.get("search"))
    _quality(sheet, document)
    _controls(sheet, document)
    _sizes(sheet, document)
    _latency(sheet, document)
    _checks(sheet, document)
    _embeddings(sheet, finding(document, "embeddings"))
    _notes(sheet, document)
    _ending(sheet, document)


def render_plan(document: dict, console: Console, *, full: bool = False) -> None:
    """Print a plan ("surgery.plan/1"): what would be cut and saved; `full` lists every tensor."""
    sheet = Sheet(console)
    sheet.line(f"plan for {document.get('model', {}).get('reference', 'a model')}", "bold")
    for selector in document.get("selectors", ()):
        sheet.line(f"  {selector['text']} → {'; '.join(folded_names(selector['matched']))}", "dim")
    _actions(sheet, document, full=full)
    _sizes(sheet, document)
    _notes(sheet, document)
    hidden = sum(len(action.get("tensors", ())) for action in document.get("actions", ()))
    if not document.get("actions"):
        sheet.line("nothing to cut", top=True)
    elif hidden and not full:
        sheet.line(f"{wording.plural(hidden, 'tensor')} hidden: --full lists them", "dim", top=True)


def _header(sheet: Sheet, document: dict) -> None:
    device = document.get("device") or {}
    threads = wording.plural(device["threads"], "thread") if "threads" in device else ""
    torch = f"torch {device['torch']}" if "torch" in device else ""
    facts = [device.get("name", ""), threads, torch, device.get("dtype", "")]
    sheet.line(document["model"].get("reference", "a model"), "bold")
    sheet.line("  " + " · ".join(fact for fact in facts if fact), "dim")
    headline = verdict.headline(document)
    if headline:
        sheet.line(f"  {headline}", "green" if verdict.proven(document) else "bold red")


def _actions(sheet: Sheet, document: dict, *, full: bool = False) -> None:
    for clause, place, actions in _by_clause(document.get("actions", ())):
        sheet.heading(clause, place)
        shown = actions if full else folded(actions)
        sheet.table(["site", "change", "left", "saved"], [_action_row(sheet, action) for action in shown], left=4)
        told = [note for action in actions for note in (_choice(action), *action.get("notes", ()))]
        for note in dict.fromkeys(filter(None, told)):  # copies of one site say the same
            sheet.line(f"  {note}", "dim")
        for action in actions:
            if full:
                sheet.table(["tensor", "before", "after"], [_tensor_row(row) for row in action.get("tensors", ())])


def _by_clause(actions: list[dict]) -> list[tuple[str, str, list[dict]]]:
    groups: dict[tuple[str, str], list[dict]] = {}
    for action in actions:
        groups.setdefault((action["clause"], action.get("place") or ""), []).append(action)
    return [(*key, group) for key, group in groups.items()]


def _action_row(sheet: Sheet, action: dict) -> list[str | Text]:
    saved = action.get("saved") or {}
    added = saved.get("parameters", 0) < 0
    parts = [f"{wording.count(abs(saved['parameters']))} parameters" if saved.get("parameters") else ""]
    parts.append("added" if added else wording.size(saved["bytes"]) if saved.get("bytes") else "")
    share = _left(action)
    left = "" if share is None else sheet.bar(share)
    change = wording.attributes(action["before"], action["after"])
    nothing = "no parameters" if action.get("operation") in ("sparsify", "heal") else "nothing"
    told = (" " if added else ", ").join(filter(None, parts))
    return [action["site"], change, left, told or nothing]


def _left(action: dict) -> float | None:
    for name, written in action["before"].items():
        before, after = (wording.amount(value) for value in (written, action["after"].get(name)))
        if before and after is not None and before != after:
            return after / before
    return None


def _choice(action: dict) -> str:
    choice = action.get("choice") or {}
    words = [f"chosen by {choice['by']}" if choice.get("by") not in (None, "auto") else ""]
    words.append(f"compensated by {choice['compensate']}" if choice.get("compensate") not in (None, "none") else "")
    words.append(f"{choice['scope']} for all classes and timesteps" if choice.get("scope") == "shared" else "")
    words.append(f"via {choice['via']}" if choice.get("via") else "")
    words.append(f"normalize={choice['normalize']}" if choice.get("normalize") else "")
    words.append("a mask per vector" if choice.get("scope") == "per-vector" else "")
    return ", ".join(filter(None, words))


def _tensor_row(row: dict) -> list[str]:
    return [row["name"], wording.shape(row["before"]), wording.shape(row["after"])]


def _search(sheet: Sheet, found: dict | None) -> None:
    """The shares tried for `auto`, smallest first."""
    if not found:
        return
    rows: list[list[str | Text]] = []
    for trial in found["trials"]:
        holds = sheet.text("✓ holds" if trial["holds"] else "✗", LEVELS["good" if trial["holds"] else "poor"])
        value = wording.metric(found["metric"], trial["metrics"].get(found["metric"]))
        told = ["taken"] if trial["share"] == found["share"] else []
        told += ["knee"] if trial["share"] == found["knee"] else []
        rows.append([f"{trial['share']:.1%}", trial.get("refused") or value, holds, ", ".join(told)])
    sheet.heading("search", f"{len(rows)} shares tried")
    sheet.table(["share", found["metric"], "", ""], rows)


def _quality(sheet: Sheet, document: dict) -> None:
    rows = document.get("quality") or []
    if not rows:
        return
    sheet.heading("quality", _shared_data(rows))
    sheet.table(["metric", "before", "after", "ratio", ""], [_quality_row(sheet, row) for row in rows])


def _shared_data(rows: list[dict]) -> str:
    sources = sorted({row["data"] for row in rows if row.get("data")})
    return sources[0] if len(sources) == 1 else ""


def _quality_row(sheet: Sheet, row: dict) -> list[str | Text]:
    found = verdict.judge(row)
    style = LEVELS[found.level]
    name, before, after = row["metric"], row["before"], row["after"]
    values = [wording.metric(name, before), wording.metric(name, after)]
    return [name, *values, sheet.text(wording.times(found.ratio), style), sheet.text(found.word, style)]


def _controls(sheet: Sheet, document: dict) -> None:
    key, controls = verdict.sorted_controls(document)
    if not controls:
        return
    quality = {row["metric"]: row for row in document.get("quality") or ()}
    metrics = [name for name in quality if any(name in control["metrics"] for control in controls)]
    metrics += sorted({name for control in controls for name in control["metrics"]} - set(metrics))
    rows: list[list[str | Text]] = []
    for name, side, style in (("dense", "before", ""), ("this cut", "after", "bold")):
        values = [quality[metric][side] if metric in quality else None for metric in metrics]
        rows.append([sheet.text(text, style) for text in (name, *map(wording.metric, metrics, values))])
    for control in controls:
        values = [control["metrics"].get(metric) for metric in metrics]
        rows.append([control["name"], *map(wording.metric, metrics, values)])
    sheet.heading("controls", f"other ways to cut, best {key} first")
    sheet.table(["", *(name.replace(" ", "\n") for name in metrics)], rows)


def _sizes(sheet: Sheet, document: dict) -> None:
    sizes, memory = document.get("size") or {}, document.get("memory")
    writers = {"parameters": wording.count, "bytes": wording.size, "flops": wording.count}
    rows = [[name, *_change_cells(change, writers.get(name, wording.count))] for name, change in sizes.items()]
    if memory:
        rows.append([f"memory, batch {memory['batch']}", *_change_cells(memory, wording.size)])
    if rows:
        sheet.heading("size", memory["what"] if memory and memory.get("what") else "")
        sheet.table(["", "before", "after", "change"], rows)


def _change_cells(change: dict, write) -> list[str]:
    if "saved" in change:
        return ["–", "–", f"{write(change['saved'])} saved"]
    before, after = change["before"], change["after"]
    texts = ["–" if value is None else write(value) for value in (before, after)]
    return [*texts, wording.change(before, after)]


def _latency(sheet: Sheet, document: dict) -> None:
    rows = document.get("latency") or []
    if not rows:
        return
    measured = [row for row in rows if "skipped" not in row]
    runs = sorted({row["runs"] for row in measured if row.get("runs")})
    sheet.heading("latency", f"median of {runs[0]} interleaved runs" if len(runs) == 1 else "medians, interleaved")
    if measured:
        sheet.table(["", "before", "after", "speed"], [_latency_row(sheet, row) for row in measured])
    for row in rows:
        if "skipped" in row:
            sheet.line(f"  {row['mode']}: skipped, {row['skipped']}", "dim")
    for sentence in verdict.not_faster(document):
        sheet.line(f"  {sentence}", "yellow")
    for sentence in verdict.cut_alone(document):
        sheet.line(f"  {sentence}", "dim")


def _latency_row(sheet: Sheet, row: dict) -> list[str | Text]:
    gain = verdict.speed(row)
    style = "green" if gain and gain >= verdict.FASTER else ""
    times = [wording.milliseconds(row["before_ms"]), wording.milliseconds(row["after_ms"])]
    return [wording.run(row), *times, sheet.text(wording.times(gain), style)]


def _checks(sheet: Sheet, document: dict) -> None:
    parity, requirements = document.get("parity", ()), document.get("requirements", ())
    if parity or requirements:
        sheet.heading("proof")
    for row in parity:
        _check(sheet, row["holds"], f"{row['what']} ({_where(row)})", _parity_detail(row))
    for row in requirements:
        _check(sheet, row["holds"], row["text"], wording.measured(row))


def _where(row: dict) -> str:
    sizes = [f"{name} {row[name]}" for name in ("batch", "length") if name in row]
    return ", ".join(filter(None, [row.get("dtype", ""), *sizes]))


def _parity_detail(row: dict) -> str:
    error = wording.scientific(row.get("max_rel", row["max_abs"]))
    return f"{error}, allowed {wording.scientific(row['tolerance'])}"


def _check(sheet: Sheet, holds: bool, text: str, detail: str) -> None:
    line = sheet.text("  ")
    line.append_text(sheet.text("✓ " if holds else "✗ ", "green" if holds else "bold red"))
    line.append_text(sheet.text(text, "" if holds else "bold red"))
    line.append_text(sheet.text(f"  {detail}", "dim"))
    sheet.show(line)


def _embeddings(sheet: Sheet, found: dict | None) -> None:
    if found is None:
        return
    data, share, signed = found["similarity"], found["participation"], wording.signed
    sheet.heading("class embeddings", f"{found['classes']} classes, {found['width']} coordinates, c = t + y")
    rows = [
        [name, *(signed(data[key][side]) for side in ("mean", "min", "max")), nprs]
        for name, key, nprs in (
            ("c = t + y", "c", f"{share['c']['npr']:.3f}"),
            ("y alone", "y", f"{share['y']['npr']:.3f}"),
            ("centred, of c and of y", "centred", "–"),
        )
    ]
    sheet.table(["cosine between classes", "mean", "lowest", "highest", "nPR"], rows)
    spread = found["directions"]
    sheet.line(f"  predicted from norms and mean projections alone: {signed(data['predicted'])}")
    sheet.line(f"  nPR of a Gaussian vector: {share['gaussian']:.3f}")
    sheet.line(
        f"  {spread['for_99']} directions hold 99 % of the variance of the activated c, {spread['for_998']} hold 99.8 %"
    )


def _notes(sheet: Sheet, document: dict) -> None:
    for note in document.get("notes", ()):
        sheet.line(f"note: {note}", "yellow", top=True)


def _ending(sheet: Sheet, document: dict) -> None:
    if document.get("bundle"):
        sheet.line(f"saved in {document['bundle']}", "bold", top=True)
    elif not verdict.proven(document):
        sheet.line("nothing was saved: the proof above does not hold", "bold red", top=True)
    elif document.get("actions"):
        sheet.line("nothing was saved: no output folder was named", "dim", top=True)
