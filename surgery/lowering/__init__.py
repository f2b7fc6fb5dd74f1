"""From a rewritten graph to what runs: fewer Python steps between two kernels, and sparse kernels where they win."""

from surgery.lowering.gate import Decision, Question, choose
from surgery.lowering.quicken import quicken

__all__ = ["Decision", "Question", "choose", "quicken"]
