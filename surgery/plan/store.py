"""Plans on disk, and what changed since one was made."""

import json
from pathlib import Path
from typing import Any

from surgery.atomic import write_text
from surgery.diagnostics import StalePlanError, SurgeryError
from surgery.plan.plan import Plan

FORMAT = "surgery.plan/1"
SHOWN = 8


def write_plan(plan: Plan, path: Path) -> None:
    """Write a plan's document, whole or not at all. Raises SurgeryError (S402)."""
    path = Path(path)
    try:
        write_text(path, json.dumps(plan.document(), indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise SurgeryError(
            f"cannot write the plan to {path}: {error.strerror}",
            code="S402",
            help="name a folder that exists and has room",
        ) from error


def read_plan(path: Path) -> dict[str, Any]:
    """A plan's document. Raises SurgeryError (S403) for anything else."""
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise _no_plan(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise _no_plan(f"{path} is not a plan: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise _no_plan(f"{path} is not a plan of format {FORMAT}")
    parts = {"model": dict, "spec": str, "actions": list}
    damaged = [name for name, form in parts.items() if not isinstance(document.get(name), form)]
    if damaged or not all(isinstance(action, dict) for action in document["actions"]):
        raise _no_plan(f"{path} is a damaged plan: its `{(damaged or ['actions'])[0]}` is not what a plan has there")
    return document


def _no_plan(message: str) -> SurgeryError:
    return SurgeryError(message, code="S403", help="write one with `surgery plan SPEC -o plan.json`")


def refuse_stale(saved: dict[str, Any], now: Plan) -> None:
    """Raise StalePlanError (S401), naming what changed, unless the plan made now is the plan that was saved."""
    changes = changes_since(saved, now.document())
    if changes:
        more = [f"… and {len(changes) - SHOWN} more"] if len(changes) > SHOWN else []
        raise StalePlanError(
            "the plan no longer fits its model",
            code="S401",
            notes=[*changes[:SHOWN], *more],
            help="make it again with `surgery plan`, look at it, and apply that",
        )


def changes_since(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two plan documents, in words."""
    old, new = saved.get("model", {}), now["model"]
    changes = _tensor_changes(old.get("tensors", {}), new["tensors"])
    if not changes and old.get("fingerprint") != new["fingerprint"]:
        changes.append("the model's operations changed")
    if saved.get("spec") != now["spec"]:
        changes.append("the spec's text changed")
    was, are = saved.get("actions", []), now["actions"]
    if len(was) != len(are):
        changes.append(f"{len(was)} actions were planned, now {len(are)}")
    for before, after in zip(was, are, strict=False):
        changes += [
            f"{after['site']}: {key} was {before.get(key)}, is {after[key]}"
            for key in ("before", "after", "choice")
            if before.get(key) != after[key]
        ]
    return changes


def _tensor_changes(old: dict[str, str], new: dict[str, str]) -> list[str]:
    gone = [f"`{name}` is gone" for name in old if name not in new]
    come = [f"`{name}` is new" for name in new if name not in old]
    moved = [f"`{name}` was {old[name]}, is {new[name]}" for name in new if name in old and old[name] != new[name]]
    return moved + gone + come
