"""How sparse patterns are stored: blocks, edges, bit tiles."""
