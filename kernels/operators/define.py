"""Register an operator under `surgery::`: schema, one implementation per device, fake, gradient, FLOP formula.

`define` and `impl` rather than `custom_op`: half the cost of a call, and the same standing with `torch.compile`,
`torch.export` and `opcheck`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload

LIBRARY = torch.library.Library("surgery", "FRAGMENT")


def operator(
    schema: str,
    *,
    cpu: Callable,
    cuda: Callable,
    fake: Callable,
    flops: Callable[..., int] | None = None,
    setup: Callable | None = None,
    backward: Callable | None = None,
) -> OpOverload:
    """Define `surgery::NAME` from its schema and return its default overload.

    cpu, cuda       run it; they choose among backends themselves and never change their inputs
    fake            shapes and dtypes only, sizes may be symbolic
    flops           floating-point operations of a call: the arguments by position, tensors as tensors
    setup, backward as `torch.library.register_autograd` takes them; backward calls operators, so that it is
                    exportable too
    """
    name = schema.partition("(")[0]
    qualified = f"surgery::{name}"
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order))
    LIBRARY.impl(name, cpu, "CPU")
    LIBRARY.impl(name, cuda, "CUDA")
    torch.library.register_fake(qualified, fake, lib=LIBRARY)
    if backward is not None:
        torch.library.register_autograd(qualified, backward, setup_context=setup, lib=LIBRARY)
    overload = getattr(torch.ops.surgery, name).default
    if flops is not None:
        count_flops(overload, flops)
    return overload


def count_flops(overload: OpOverload, formula: Callable[..., int]) -> None:
    """Let `torch.utils.flop_counter.FlopCounterMode` count the operator."""
    from torch.utils.flop_counter import register_flop_formula

    def counted(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        return formula(*args, **kwargs)

    register_flop_formula(overload._overloadpacket, get_raw=True)(counted)
