"""New values in place of old ones; no shape changes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import Tensor
from torch.fx import GraphModule

from surgery.anatomy.graphs import attribute
from surgery.passes.weights import replace_tensor, set_linear


@dataclass(frozen=True, eq=False)
class SetWeights:
    """before  linear W [M, D], b [M]; tensor T      after  linear W' [M, D], b' [M]; tensor T' of the same shape

    `linears` maps a linear's weight name to its new weight and bias (None: as it is); `tensors` any tensor's name to
    its new value.
    """

    clause: str
    place: str
    linears: Mapping[str, tuple[Tensor, Tensor | None]] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    name: str = "set-weights"

    @cached_property
    def touched(self) -> set[str]:
        """Names of the tensors."""
        return {*self.linears, *self.tensors}

    def with_(self, others: Sequence["SetWeights"]) -> "SetWeights":
        """This pass and others, which set none of the tensors it does, in one."""
        linears = {name: pair for each in (self, *others) for name, pair in each.linears.items()}
        tensors = {name: tensor for each in (self, *others) for name, tensor in each.tensors.items()}
        return replace(self, linears=linears, tensors=tensors)

    def requires(self, graph_module: GraphModule) -> str | None:
        for name, (weight, _) in self.linears.items():
            if weight.shape != attribute(graph_module, name).shape:
                return f"`{name}` is {tuple(attribute(graph_module, name).shape)}, not {tuple(weight.shape)}"
        return None

    def run(self, graph_module: GraphModule) -> None:
        for name, (weight, bias) in self.linears.items():
            set_linear(graph_module, name, weight, bias)
        for name, tensor in self.tensors.items():
            replace_tensor(graph_module, name, tensor)

    def ensures(self, graph_module: GraphModule) -> str | None:
        return None
