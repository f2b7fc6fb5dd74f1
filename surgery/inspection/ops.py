"""How an operator is called by a person: `linear`, `sdpa`, `a + b`, `x.view(…)`."""

from collections.abc import Callable

from torch._ops import OpOverload

SHORT = {
    "scaled_dot_product_attention": "sdpa",
    "_to_copy": "to",
    "_softmax": "softmax",
    "_unsafe_view": "view",
    "convolution": "conv",
    "bitwise_and": "and",
    "bitwise_or": "or",
    "bitwise_not": "not",
    "logical_and": "and",
    "logical_or": "or",
    "logical_not": "not",
    "floor_divide": "floordiv",
}

INFIX = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "div": "/",
    "truediv": "/",
    "floordiv": "//",
    "mod": "%",
    "remainder": "%",
    "pow": "**",
    "matmul": "@",
    "mm": "@",
    "bmm": "@",
    "and": "&",
    "or": "|",
    "eq": "==",
    "ne": "!=",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
}

PREFIX = {"neg": "-", "not": "~"}

METHODS = frozenset(
    [
        "chunk",
        "contiguous",
        "cumsum",
        "expand",
        "flatten",
        "masked_fill",
        "mean",
        "narrow",
        "new_ones",
        "new_zeros",
        "permute",
        "repeat",
        "reshape",
        "split",
        "split_with_sizes",
        "squeeze",
        "sum",
        "t",
        "to",
        "transpose",
        "type_as",
        "unbind",
        "unflatten",
        "view",
    ]
)

UNIT = {"add": 0, "sub": 0, "mul": 1, "div": 1}
"""The number that an operator does nothing with."""

QUIET = frozenset(
    [
        "copy",
        "cudnn_enable",
        "device",
        "implicit",
        "inplace",
        "layout",
        "memory_format",
        "non_blocking",
        "pin_memory",
        "sparse",
        "padding_idx",
        "scale_grad_by_freq",
    ]
)
"""Arguments that say nothing about the mathematics."""


def op_name(target: Callable | str) -> str:
    """The short name of an operator: `aten.linear.default` → `linear`, `surgery.block_linear` → `surgery.block_linear`."""
    if isinstance(target, str):
        return target
    if not isinstance(target, OpOverload):
        return target.__name__.strip("_")
    space, name = target._schema.name.split("::")
    bare = SHORT.get(name) or name.strip("_")
    return bare if space == "aten" else f"{space}.{bare}"
