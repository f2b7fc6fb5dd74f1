"""Units that can be cut: what of a model's tensors belongs to one head or one channel, found by following labels."""

from surgery.anatomy.units.repeats import trace_all
from surgery.anatomy.units.trace import Coupling, trace_units

__all__ = ["Coupling", "trace_all", "trace_units"]
