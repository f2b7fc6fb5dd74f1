"""A copy of a graph to train, and the way its weights go back."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.nn import Parameter

from surgery.anatomy.graphs import aten, attribute
from surgery.passes.graph_copy import copy_graph_module
from surgery.passes.weights import replace_parameter, replace_tensor
from surgery.training.lora import Adapter, adapt

WIDE = (torch.float32, torch.float64)


@dataclass(eq=False)
class Trainee:
    """`module` computes what the graph computes; only `trained` and the adapters' factors differ from step to step.

    trained   the tensors that are trained, by the name the graph reads them under: float32 copies of 16-bit ones
    names     the graph's other names of the same tensor, by that name: tied weights stay tied
    dtypes    what the model stores, by name
    adapters  low-rank changes of weights, by the weight's name
    """

    module: GraphModule
    original: GraphModule
    trained: dict[str, Parameter]
    names: dict[str, tuple[str, ...]]
    dtypes: dict[str, torch.dtype]
    adapters: tuple[Adapter, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, graph_module: GraphModule, rank: int = 0, seed: int = 0, whole: Collection[str] = ()) -> "Trainee":
        """The graph given is left as it was, its tensors too. With a `rank`, adapters are trained and the weights
        named in `whole`; else every floating parameter, or those that require a gradient where some do."""
        module = copy_graph_module(graph_module)
        tied = _tied(module)
        adapters, notes = adapt(module, rank, seed) if rank else ((), ())
        wanted = _wanted(graph_module, tied, whole) if not rank else [name for name in tied if {*tied[name]} & {*whole}]
        trained, dtypes = {}, {}
        for name, names in tied.items():
            old = attribute(module, name)
            kept = name in wanted
            new = _master(old) if kept else Parameter(old.detach(), requires_grad=False)
            for each in names:
                replace_parameter(module, each, new)
            if kept:
                trained[name], dtypes[name] = new, old.dtype
        _own_buffers(module)
        for adapter in adapters:
            for name in adapter.factors:
                trained[name], dtypes[name] = attribute(module, name), adapter.dtype
        _narrow(module, {each: dtypes[name] for name in trained for each in tied.get(name, (name,))})
        module.recompile()
        names = {name: tied.get(name, (name,)) for name in trained}
        return cls(module, graph_module, trained, names, dtypes, adapters, notes)

    def weights(self, values: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """What the graph's own tensors become, by every name, adapters merged, in the dtypes the model stores.

        `values` are whole tensors by the names of `trained`; without them what the copy now holds.
        """
        values = values or self.trained
        factors = {name for adapter in self.adapters for name in adapter.factors}
        found = {
            each: values[name].detach().to(self.dtypes[name])
            for name in self.trained
            if name not in factors
            for each in self.names[name]
        }
        for adapter in (adapter for adapter in self.adapters if adapter.up in values):
            merged = adapter.merged(attribute(self.original, adapter.weight), values)
            found |= dict.fromkeys(adapter.names, merged)
        return found


def _tied(module: GraphModule) -> dict[str, tuple[str, ...]]:
    """Floating parameters the graph reads, by their first name: all names under which it reads the same memory."""
    first: dict[Any, list[str]] = {}
    for node in module.graph.nodes:
        if node.op != "get_attr":
            continue
        tensor = attribute(module, node.target)
        if isinstance(tensor, Parameter) and tensor.is_floating_point():
            names = first.setdefault(_memory(tensor), [])
            names += [node.target] if node.target not in names else []
    return {names[0]: tuple(names) for names in first.values()}


def _memory(tensor: Tensor) -> Any:
    where = tensor.untyped_storage().data_ptr()
    return (where, tensor.storage_offset(), tensor.shape, tensor.stride()) if where else id(tensor)


def _own_buffers(module: GraphModule) -> None:
    """Whoever trains may write into buffers, such as the seed of a noise."""
    for node in module.graph.nodes:
        if node.op == "get_attr" and not isinstance(attribute(module, node.target), Parameter):
            replace_tensor(module, node.target, attribute(module, node.target).clone())


def _wanted(graph_module: GraphModule, tied: Mapping[str, tuple[str, ...]], whole: Collection[str]) -> list[str]:
    """A fixed table of positions among learned weights requires no gradient, nor does a whole model kept for use."""
    marked = [name for name in tied if attribute(graph_module, name).requires_grad or {*tied[name]} & {*whole}]
    return marked if len(marked) * 2 > len(tied) else list(tied)


def _master(old: Tensor) -> Parameter:
    return Parameter(old.detach().to(old.dtype if old.dtype in WIDE else torch.float32, copy=True))


def _narrow(module: GraphModule, dtypes: Mapping[str, torch.dtype]) -> None:
    """The graph computes in the dtype the model stores, from float32 copies."""
    for node in list(module.graph.nodes):
        if node.op == "get_attr" and dtypes.get(node.target, torch.float32) not in WIDE:
            with module.graph.inserting_after(node):
                narrow = module.graph.call_function(aten.to.dtype, (node, dtypes[node.target]))
            node.replace_all_uses_with(narrow, delete_user_cb=lambda user, narrow=narrow: user is not narrow)
