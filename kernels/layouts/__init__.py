"""How sparse patterns are stored: blocks, edges, bit tiles."""

from surgery.kernels.layouts.blocks import Blocks
from surgery.kernels.layouts.edges import Edges

__all__ = ["Blocks", "Edges"]
