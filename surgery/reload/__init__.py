"""A cut model in the hands of the library it came from: `from_pretrained` where that is possible, `generate` anyway."""

from surgery.reload.stock import Stock, stock_of

__all__ = ["Stock", "stock_of"]
