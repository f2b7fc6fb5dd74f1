"""`BlockSparseLinear`: `nn.Linear` with a block-sparse weight, trainable, its state plain tensors."""

import torch
from surgery.kernels.operators.block_linear import OPERATOR
from surgery.kernels.operators.block_weight import BlockWeight
from torch import Tensor, nn

DERIVED = ("ptr_t", "idx_t", "map_t")


class BlockSparseLinear(nn.Module):
    """y = x Wᵀ + b over the kept blocks: x [..., inputs] → [..., outputs].

    Parameters are `values` [n, height, width] and `bias`; buffers `ptr` and `idx` say where the blocks lie. All four are
    plain tensors, so a state dict goes through safetensors. Loading one takes on its number of blocks and checks its
    index (ValueError); the block's size and the layer's have to agree. The index by column is derived, not saved.
    """

    def __init__(self, weight: BlockWeight, bias: Tensor | None = None) -> None:
        super().__init__()
        self.outputs, self.inputs = weight.outputs, weight.inputs
        self.values = nn.Parameter(weight.values.detach())
        self.bias = None if bias is None else nn.Parameter(bias.detach())
        for name in ("ptr", "idx", *DERIVED):
            self.register_buffer(name, getattr(weight, name), persistent=name not in DERIVED)

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, block: tuple[int, int] = (64, 64), keep: Tensor | float | None = None
    ) -> "BlockSparseLinear":
        """Keep some blocks of a dense layer: `keep` as in `BlockWeight.from_dense`."""
        bias = None if linear.bias is None else linear.bias.detach().clone()
        return cls(BlockWeight.from_dense(linear.weight, block, keep), bias)

    @classmethod
    def empty(
        cls, inputs: int, outputs: int, block: tuple[int, int] = (64, 64), bias: bool = True, **factory
    ) -> "BlockSparseLinear":
        """A layer without any blocks, to load a state into; `factory` is a dtype and a device."""
        weight = BlockWeight.from_dense(torch.zeros(outputs, inputs, **factory), block)
        return cls(weight, torch.zeros(outputs, **factory) if bias else None)

    @property
    def weight(self) -> BlockWeight:
        """The weight as it is now; its values are the parameter."""
        index = {name: getattr(self, name) for name in ("ptr", "idx", *DERIVED)}
        return BlockWeight(self.outputs, self.inputs, self.values, **index)

    def forward(self, x: Tensor) -> Tensor:
        index = [self.ptr, self.idx, self.ptr_t, self.idx_t, self.map_t]
        return OPERATOR(x, self.values, self.bias, index, self.outputs)

    def extra_repr(self) -> str:
        height, width = self.values.shape[1:]
        return (
            f"inputs={self.inputs}, outputs={self.outputs}, block=({height}, {width}), "
            f"density={self.weight.density:.1%}, bias={self.bias is not None}"
        )

    def _load_from_state_dict(self, state, prefix, *rest) -> None:
        found = [state.get(prefix + name) for name in ("values", "ptr", "idx")]
        if all(each is not None for each in found) and found[0].shape[1:] == self.values.shape[1:]:
            values, ptr, idx = (each.to(self.values.device) for each in found)
            self._adopt(BlockWeight.from_blocks(values, ptr, idx, self.outputs, self.inputs))
        super()._load_from_state_dict(state, prefix, *rest)

    def _adopt(self, weight: BlockWeight) -> None:
        """Make room for another number of blocks, and point at them."""
        if weight.values.shape != self.values.shape:
            self.values = nn.Parameter(
                torch.empty_like(weight.values, dtype=self.values.dtype), self.values.requires_grad
            )
        for name in ("ptr", "idx", *DERIVED):
            setattr(self, name, getattr(weight, name).clone())
