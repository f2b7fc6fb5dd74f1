"""Tensors as plain lists for a finding."""

from torch import Tensor


def rounded(values: Tensor) -> list:
    """Nested lists of floats with six significant digits: enough to draw, small enough to ship."""
    if values.ndim > 1:
        return [rounded(row) for row in values]
    return [float(f"{value:.6g}") for value in values.tolist()]
