"""Replacing the tensors of a graph by name."""

import torch
from torch.fx import GraphModule, Node
from torch.nn import Module, Parameter

from surgery.anatomy.graphs import aten, attribute, bias_of, calls, weight_of
from surgery.anatomy.placement import device_of


def replace_tensor(graph_module: GraphModule, name: str, tensor: torch.Tensor) -> None:
    """Put `tensor` where the parameter or buffer `name` is; its kind and requires_grad stay."""
    parent, leaf = _parent(graph_module, name)
    old = getattr(parent, leaf)
    tensor = tensor.detach().to(old.dtype).to(old.device).contiguous()
    if isinstance(old, Parameter):
        setattr(parent, leaf, Parameter(tensor, requires_grad=old.requires_grad))
    elif leaf in parent._buffers:
        parent._buffers[leaf] = tensor
    else:
        setattr(parent, leaf, tensor)


def replace_parameter(graph_module: GraphModule, name: str, parameter: Parameter) -> None:
    """Put this very parameter where the parameter `name` is."""
    parent, leaf = _parent(graph_module, name)
    setattr(parent, leaf, parameter)


def add_tensor(
    graph_module: GraphModule, name: str, tensor: torch.Tensor, *, parameter: bool = True, home: bool = True
) -> str:
    """Register a new tensor under `name`, or the next free name like it; returns the name it got. It is put on the device
    that the graph's other tensors are on; without `home` it stays where it is."""
    parent, leaf = _parent(graph_module, name, create=True)
    tensor = tensor.to(device_of(graph_module)) if home else tensor
    free, number = leaf, 1
    while hasattr(parent, free):
        free, number = f"{leaf}_{number}", number + 1
    if parameter:
        parent.register_parameter(
            free, Parameter(tensor.detach().contiguous(), requires_grad=tensor.is_floating_point())
        )
    else:
        parent.register_buffer(free, tensor.detach().contiguous())
    return name[: len(name) - len(leaf)] + free


def bias_name(weight: str) -> str:
    """`blocks.0.proj.bias` of `blocks.0.proj.weight`."""
    return weight.removesuffix("weight") + "bias"


def set_linear(graph_module: GraphModule, name: str, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Give every linear that reads the weight `name` new weight [M, n] and bias [M]; without `bias` theirs stays.

    Linears that had no bias get one, in common.
    """
    replace_tensor(graph_module, name, weight)
    readers = [node for node in calls(graph_module, aten.linear) if getattr(weight_of(node), "target", None) == name]
    for old in {bias_of(linear).target for linear in readers if bias_of(linear)} if bias is not None else ():
        replace_tensor(graph_module, old, bias)
    bare = [linear for linear in readers if bias_of(linear) is None]
    if bias is None or not bare:
        return
    added = add_tensor(graph_module, bias_name(name), bias.to(attribute(graph_module, name)))
    for linear in bare:
        with graph_module.graph.inserting_before(linear):
            linear.args = (*linear.args[:2], graph_module.graph.get_attr(added))


def drop_unread(graph_module: GraphModule) -> None:
    """Delete every parameter and buffer that the graph does not read, and the modules that are empty then."""
    read = {node.target for node in graph_module.graph.nodes if node.op == "get_attr"}
    for path, module in list(graph_module.named_modules(remove_duplicate=False)):
        prefix = f"{path}." if path else ""
        for shelf in (module._parameters, module._buffers):
            for name in [name for name in shelf if prefix + name not in read]:
                del shelf[name]
    for path, module in reversed(list(graph_module.named_modules(remove_duplicate=False))):
        if path and not any((module._parameters, module._buffers, module._modules)):
            parent, leaf = _parent(graph_module, path)
            if not any(isinstance(value, torch.Tensor) for value in vars(module).values()):
                del parent._modules[leaf]


def users_of(graph_module: GraphModule, tensor: torch.Tensor) -> list[Node]:
    """Every get_attr node that reads this very tensor, under whatever name."""
    return [
        node
        for node in graph_module.graph.nodes
        if node.op == "get_attr" and attribute(graph_module, node.target) is tensor
    ]


def _parent(module: Module, name: str, *, create: bool = False) -> tuple[Module, str]:
    *path, leaf = name.split(".")
    for part in path:
        if create and not hasattr(module, part):
            module.add_module(part, Module())
        module = getattr(module, part)
    return module, leaf
