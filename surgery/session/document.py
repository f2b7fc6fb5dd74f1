"""The documents an operation leaves: its report ("surgery.report/1") and the manifest of its bundle."""

import math
import platform
from pathlib import Path
from typing import Any

import torch
from torch import nn

from surgery import __version__
from surgery.session.prepare import Prepared
from surgery.session.rewrite import Choices
from surgery.targets.choice import Choice
from surgery.targets.learned import Learned

FORMAT = "surgery.report/1"


def new_report(prepared: Prepared, choices: Choices) -> dict[str, Any]:
    """What is known before anything is measured; the proof is filled in as it is made."""
    plan = prepared.plan
    actions = [_action(action.document(), choice) for action, choice in zip(plan.actions, choices, strict=True)]
    return {
        "format": FORMAT,
        "version": __version__,
        "model": {"reference": plan.model, "fingerprint": plan.fingerprint, "files": dict(prepared.model.files)},
        "spec": plan.spec,
        "seed": prepared.settings.get("seed", 0),
        "device": _device(prepared.model.module),
        "selectors": [match.document() for match in plan.matches],
        "actions": actions,
        "criteria": _criteria(choices),
        "parity": [],
        "quality": [],
        "controls": [],
        "size": {},
        "latency": [],
        "requirements": [],
        "findings": [],
        "notes": list(plan.notes),
        "bundle": None,
    }


def manifest(prepared: Prepared, report: dict[str, Any]) -> dict[str, Any]:
    """Where the bundle came from: all that is needed to make it again, and nothing the clock decides."""
    diffusion = prepared.model.diffusion
    return {
        "diffusion": diffusion.document() if diffusion else None,
        "model": report["model"],
        "data": report.get("data"),
        "seed": report["seed"],
        "actions": report["actions"],
        "kernels": [],
        "selectors": report["selectors"],
    }


def finite(document: Any) -> Any:
    """The same document with null for NaN and infinities, which JSON does not have."""
    if isinstance(document, dict):
        return {key: finite(value) for key, value in document.items()}
    if isinstance(document, list | tuple):
        return [finite(value) for value in document]
    return None if isinstance(document, float) and not math.isfinite(document) else document


def _action(document: dict[str, Any], choice: Choice | Learned | None) -> dict[str, Any]:
    if choice is None:
        return document
    told = {"choice": document["choice"] | dict(choice.told)}
    return document | told | {"notes": [*document["notes"], *choice.notes]}


def _criteria(choices: Choices) -> list[dict[str, Any]]:
    """Candidates of the first cut; other copies are chosen the same way and stand in their actions."""
    first = next((choice for choice in choices if isinstance(choice, Choice)), None)
    return [candidate.document(first.chosen) for candidate in first.candidates] if first else []


def _device(module: nn.Module) -> dict[str, Any]:
    tensor = next(module.parameters(), torch.zeros(()))
    on_gpu = tensor.device.type == "cuda"
    return {
        "name": torch.cuda.get_device_name(tensor.device) if on_gpu else _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": str(tensor.dtype).removeprefix("torch."),
    }


def _processor() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
