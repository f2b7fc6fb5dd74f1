"""Gradients of the gathered feed-forward by gathered products, on any device."""

from collections.abc import Callable, Sequence

import torch
from surgery.kernels.cpu.gathered_ffn import kept_channels
from surgery.kernels.reference.gathered_ffn import ACTIVATIONS
from torch import Tensor
from torch.nn.functional import linear, relu

SLOPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": lambda grad, x: torch.where(x > 0, grad, 0),
    "relu2": lambda grad, x: grad * 2 * relu(x),
    "gelu": lambda grad, x: torch.ops.aten.gelu_backward(grad, x),
    "gelu_tanh": lambda grad, x: torch.ops.aten.gelu_backward(grad, x, approximate="tanh"),
    "silu": lambda grad, x: torch.ops.aten.silu_backward(grad, x),
}
"""Gradient of an activation's input from that of its output."""


def gathered_backward(
    grad: Tensor,
    x: Tensor,
    up: Tensor,
    gate: Tensor | None,
    down_t: Tensor,
    up_bias: Tensor | None,
    gate_bias: Tensor | None,
    blocks: Tensor,
    block: int,
    activation: str,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    """Gradients of x, up, gate, down_t, up_bias, gate_bias, down_bias, of the shapes of these; not needed: empty.

    Rows of weights that are not kept get zeros.
    """
    channels, exists = kept_channels(blocks, block, up.shape[0])
    kept_up, kept_gate = up[channels], None if gate is None else gate[channels]
    u = linear(x, kept_up, None if up_bias is None else up_bias[channels])
    g = None if kept_gate is None else linear(x, kept_gate, None if gate_bias is None else gate_bias[channels])
    acted = ACTIVATIONS[activation](u if g is None else g)
    grad_hidden = torch.where(exists, grad @ down_t[channels].t(), 0)
    grad_u = SLOPES[activation](grad_hidden, u) if g is None else grad_hidden * acted
    grad_g = None if g is None else SLOPES[activation](grad_hidden * u, g)

    def scattered(rows: Tensor) -> Tensor:
        """Kept rows at their channels, zeros elsewhere; what stands for no channel goes to a row that is cut off."""
        whole = rows.new_zeros((up.shape[0] + 1, *rows.shape[1:]))
        return whole.index_copy(0, torch.where(exists, channels, up.shape[0]), rows)[:-1].clone()

    def grad_x() -> Tensor:
        whole = grad_u @ kept_up
        return whole if grad_g is None else whole + grad_g @ kept_gate

    makers = (
        grad_x,
        lambda: scattered(grad_u.t() @ x),
        lambda: scattered(grad_g.t() @ x),
        lambda: scattered(torch.where(exists, acted if g is None else acted * u, 0).t() @ grad),
        lambda: scattered(grad_u.sum(0)),
        lambda: scattered(grad_g.sum(0)),
        lambda: grad.sum(0),
    )
    return tuple(make() if needed else x.new_empty(0) for make, needed in zip(makers, needs, strict=True))
