"""The report document: one plain dict behind the terminal table, report.json and report.html."""

from surgery.diagnostics import SurgeryError

REPORT_FORMAT = "surgery.report/1"
PLAN_FORMAT = "surgery.plan/1"

CHANGE = {"before": (int, float, type(None)), "after": (int, float, type(None))}
ROWS = {
    "selectors": {"text": str, "matched": list},
    "actions": {"clause": str, "site": str, "before": dict, "after": dict, "tensors": list},
    "criteria": {"by": str, "error": (int, float)},
    "parity": {"what": str, "max_abs": (int, float, type(None)), "tolerance": (int, float), "holds": bool},
    "quality": {"metric": str, **CHANGE},
    "controls": {"name": str, "metrics": dict},
    "latency": {"mode": str},
    "requirements": {"text": str, "holds": bool},
    "findings": {"kind": str},
}
NEEDED = ("actions", "parity", "quality", "requirements")


def validate(document: dict) -> None:
    """Raise S690, naming every place, unless `document` has the shape of "surgery.report/1".

    Light: the keys and types that a reader relies on. Keys it does not know are left alone.
    """
    faults = _faults(document)
    if faults:
        raise SurgeryError(f"not a report: {faults[0]}", code="S690", notes=faults[1:6])


def finding(document: dict, kind: str) -> dict | None:
    """The first finding of a kind, or None."""
    return next((found for found in document.get("findings", ()) if found["kind"] == kind), None)


def _faults(document: dict) -> list[str]:
    if not isinstance(document, dict):
        return [f"a {type(document).__name__} instead of an object"]
    if document.get("format") != REPORT_FORMAT:
        return [f"`format` is {document.get('format')!r}, expected {REPORT_FORMAT!r}"]
    faults = [f"`{key}` is missing" for key in ("model", *NEEDED) if key not in document]
    if not isinstance(document.get("model", {}), dict):
        faults.append("`model` is no object")
    for key, fields in ROWS.items():
        faults += _row_faults(key, document.get(key, []), fields)
    for key, change in (document.get("size") or {}).items():
        faults += _field_faults(f"size.{key}", change, CHANGE)
    return faults


def _row_faults(key: str, rows: object, fields: dict) -> list[str]:
    if not isinstance(rows, list):
        return [f"`{key}` is no list"]
    return [fault for index, row in enumerate(rows) for fault in _field_faults(f"{key}[{index}]", row, fields)]


def _field_faults(place: str, row: object, fields: dict) -> list[str]:
    if not isinstance(row, dict):
        return [f"`{place}` is no object"]
    missing = [f"`{place}.{name}` is missing" for name in fields if name not in row]
    wrong = [f"`{place}.{name}` is {row[name]!r}" for name, kind in fields.items() if not _fits(row, name, kind)]
    return missing + wrong


def _fits(row: dict, name: str, kind: type | tuple) -> bool:
    return name not in row or isinstance(row[name], kind)
