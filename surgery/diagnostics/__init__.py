"""Faults with a place and a cure: Source, Span, Diagnostic, SurgeryError and their rendering."""

from surgery.diagnostics.diagnostic import Diagnostic
from surgery.diagnostics.errors import (
    BundleError,
    CaptureError,
    RefusalError,
    SpecError,
    StalePlanError,
    SurgeryError,
    UnprovenError,
)
from surgery.diagnostics.nearest import did_you_mean, nearest
from surgery.diagnostics.render import render
from surgery.diagnostics.source import Source, Span

__all__ = [
    "BundleError",
    "CaptureError",
    "Diagnostic",
    "RefusalError",
    "Source",
    "Span",
    "SpecError",
    "StalePlanError",
    "SurgeryError",
    "UnprovenError",
    "did_you_mean",
    "nearest",
    "render",
]
