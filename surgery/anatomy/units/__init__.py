"""Units that can be cut: what of a model's tensors belongs to one head or one channel, found by following labels."""

from surgery.anatomy.units.trace import Coupling, trace_units

__all__ = ["Coupling", "trace_units"]
