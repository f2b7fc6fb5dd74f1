"""Measured choices of tile and launch, shipped as data: never tuned at run time unless asked."""

from surgery.kernels.tuning.pick import Config, architecture, pick, shipped

__all__ = ["Config", "architecture", "pick", "shipped"]
