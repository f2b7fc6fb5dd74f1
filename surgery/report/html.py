"""The report as one self-contained page: no network, no script, the same bytes for the same document."""

import json
from functools import partial
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from surgery.report import charts, edge_charts, verdict, wording
from surgery.report.alike import folded
from surgery.report.document import finding, validate
from surgery.report.highlight import highlight

TEMPLATES = Path(__file__).parent / "templates"
RAW_LIMIT = 400_000
TITLES = {"frechet": "Fréchet distance", "flops": "FLOPs per sample"}
SAMPLED = {"accuracy": "sample accuracy"}
"""Names of metrics and sizes on the page, where they differ from those of the document; of a diffusion model's samples."""


def html(document: dict) -> str:
    """The page of a report ("surgery.report/1"). Sections that the document lacks are left out. Raises S690."""
    validate(document)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals.update(wording=wording, title=partial(_title, document), judgement=verdict.JUDGEMENT)
    return environment.get_template("report.html.j2").render(_view(document), style=_style())


def _view(document: dict) -> dict:
    model, device = document["model"], document.get("device") or {}
    return {
        "document": document,
        "reference": model.get("reference", "a model"),
        "proven": verdict.proven(document),
        "headline": verdict.headline(document),
        "tiles": _tiles(document),
        "quality": [(row, verdict.judge(row)) for row in document["quality"]],
        "sizes": _sizes(document),
        "actions": [(action, charts.tensor_groups(action)) for action in folded(document["actions"])],
        "attention": edge_charts.attention(document),
        "trainings": edge_charts.training(document),
        "inductions": edge_charts.induction(document),
        "samples": charts.samples(document),
        "search": charts.search(document),
        "controls": charts.controls(document),
        "criteria": charts.criteria(document),
        "latency": charts.latency(document),
        "embeddings": charts.embeddings(finding(document, "embeddings")),
        "spec": highlight(document.get("spec") or ""),
        "provenance": _provenance(document, model, device),
        "raw": _raw(document),
    }


def _style() -> Markup:
    return Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))


def _title(document: dict, name: str) -> str:
    sampled = any(row["metric"] == "frechet" for row in document["quality"])
    return (TITLES | (SAMPLED if sampled else {})).get(name, name)


def _tiles(document: dict) -> list[dict]:
    """Few numbers that say most: what it weighs, how sparse it is, how good it is, how fast it became."""
    sparse = edge_charts.tile(document)
    tiles = [sparse] if sparse else []
    change = (document.get("size") or {}).get("parameters")
    if change and change["after"] is not None and (verdict.resized(change) or not sparse):
        note = f"{wording.count(change['before'])} → {wording.count(change['after'])}"
        text = wording.change(change["before"], change["after"])
        tiles.append({"value": text, "name": "parameters", "note": note, "level": "none"})
    tiles += [_quality_tile(document, row) for row in verdict.leading(document)[:2]]
    measured = [row for row in document.get("latency") or () if verdict.speed(row)]
    if measured:
        best = max(measured, key=lambda row: verdict.speed(row) or 0)
        own = f"; the cut alone {wording.times(best['cut_ratio'])}" if best.get("cut_ratio") else ""
        where = f"{wording.run(best)}, best of {len(measured)}{own}"
        tiles.append({"value": wording.times(verdict.speed(best)), "name": "speed", "note": where, "level": "none"})
    return tiles


def _quality_tile(document: dict, row: dict) -> dict:
    found, name = verdict.judge(row), row["metric"]
    before, after = (wording.metric(name, row[side]) for side in ("before", "after"))
    absolute = name in wording.PERCENT_METRICS or verdict.small_loss(row)
    value = after if absolute else wording.times(found.ratio)
    note = f"from {before}" if absolute else f"{before} → {after}"
    return {"value": value, "name": _title(document, name), "note": f"{note}, {found.word}", "level": found.level}


def _sizes(document: dict) -> list[dict]:
    memory = document.get("memory")
    writers = {"parameters": wording.count, "bytes": wording.size, "flops": wording.count}
    rows = [(_title(document, name), change, writers.get(name, wording.count)) for name, change in _changes(document)]
    if memory:
        rows.append((f"memory at batch {memory['batch']}", memory, wording.size))
    return [
        {
            "name": name,
            "before": "–" if change["before"] is None else write(change["before"]),
            "after": "–" if change["after"] is None else write(change["after"]),
            "change": wording.change(change["before"], change["after"]),
        }
        for name, change, write in rows
    ]


def _changes(document: dict) -> list[tuple[str, dict]]:
    return list((document.get("size") or {}).items())


def _provenance(document: dict, model: dict, device: dict) -> list[tuple[str, str]]:
    rows = [
        ("model", model.get("reference")),
        ("fingerprint", model.get("fingerprint")),
        *((f"file {name}", digest) for name, digest in sorted((model.get("files") or {}).items())),
        ("data", (document.get("data") or {}).get("reference")),
        ("data sha256", (document.get("data") or {}).get("sha256")),
        ("seed", document.get("seed")),
        ("surgery", document.get("version")),
        *(("device" if name == "name" else name, value) for name, value in device.items()),
        ("bundle", document.get("bundle")),
    ]
    return [(name, str(value)) for name, value in rows if value is not None]


def _raw(document: dict) -> str:
    """The document as JSON, each long list on one line; what is too large for a page is left to report.json."""
    if len(json.dumps(document, ensure_ascii=False)) > RAW_LIMIT:
        document = document | {"findings": [_outline(found) for found in document.get("findings", ())]}
    return _pretty(document)


def _outline(found: dict) -> dict:
    return {key: value if len(json.dumps(value)) < 2000 else "left to report.json" for key, value in found.items()}


def _pretty(value: object, indent: str = "") -> str:
    short = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict | list) or len(short) < 100 or _is_numbers(value):
        return short
    inner = indent + "  "
    if isinstance(value, dict):
        rows = [f"{json.dumps(key, ensure_ascii=False)}: {_pretty(item, inner)}" for key, item in value.items()]
    else:
        rows = [_pretty(item, inner) for item in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return f"{opening}\n{inner}" + f",\n{inner}".join(rows) + f"\n{indent}{closing}"


def _is_numbers(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, int | float) for item in value)
