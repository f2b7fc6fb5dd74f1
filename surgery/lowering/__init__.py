"""From a rewritten graph to what runs: fewer Python steps between two kernels."""

from surgery.lowering.quicken import quicken

__all__ = ["quicken"]
