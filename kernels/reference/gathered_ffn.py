"""The slow truth of the gathered feed-forward: all channels computed, those of other blocks set to zero."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear, relu, silu

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": relu,
    "relu2": lambda x: relu(x).square(),
    "gelu": gelu,
    "gelu_tanh": lambda x: gelu(x, approximate="tanh"),
    "silu": silu,
}


def gathered_ffn(
    x: Tensor,
    up: Tensor,
    gate: Tensor | None,
    down_t: Tensor,
    up_bias: Tensor | None,
    gate_bias: Tensor | None,
    down_bias: Tensor | None,
    blocks: Tensor,
    block: int,
    activation: str,
) -> Tensor:
    """y[t] = Σ over kept channels c of h[t, c] down_t[c] + down_bias; h = act(u), or act(x gateᵀ + gate_bias) u if gated.

    u = x upᵀ + up_bias. x [T, d], up, gate, down_t [f, d], biases [f], [f], [d], blocks [N]: channel c is kept if
    c // block is listed; -1 lists nothing.
    """
    hidden = linear(x, up, up_bias)
    act = ACTIVATIONS[activation]
    hidden = act(hidden) if gate is None else act(linear(x, gate, gate_bias)) * hidden
    y = torch.where(kept_channels(blocks, block, up.shape[0]), hidden, hidden.new_zeros(())) @ down_t
    return y if down_bias is None else y + down_bias


def kept_channels(blocks: Tensor, block: int, channels: int) -> Tensor:
    """bool [channels]: whether a channel's block is listed."""
    slots = -(-channels // block) + 1  # the last one takes what -1 points to
    kept = torch.zeros(slots, dtype=torch.bool, device=blocks.device)
    kept = kept.index_put((blocks.long().remainder(slots),), torch.ones((), dtype=torch.bool, device=blocks.device))
    return kept[:-1, None].expand(slots - 1, block).reshape(-1)[:channels]
