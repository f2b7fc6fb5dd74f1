"""From a spec to a program: every clause an operation, no two of them at odds."""

from surgery.check.check import check, examine
from surgery.check.program import Program

__all__ = ["Program", "check", "examine"]
