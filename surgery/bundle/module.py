"""The module a bundle loads into."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule
from torch.fx.node import map_aggregate

from surgery.bundle.arguments import same_device
from surgery.bundle.faults import malformed
from surgery.lowering import quicken


class LoadedModule(GraphModule):
    """A saved graph with its tensors under their original dotted names, called like the original.

    Inputs may be given by position or by name. Constants of the original (tensors outside its state) are buffers
    that `state_dict` leaves out. Moving the module moves the device constants of its graph along. The graph was
    captured in evaluation mode and stays so: `train()` and `eval()` set the flag and change no result.
    """

    def __init__(
        self, graph: Graph, tensors: Mapping[str, tuple[str, Tensor]], home: torch.device, training: bool = False
    ) -> None:
        root = nn.Module()
        _register(root, tensors)
        super().__init__(root, graph)
        _register(self, tensors)
        self._tensor_names = tuple((name, kind) for name, (kind, _) in tensors.items())
        self._home = home
        self.train(training)
        quicken(self)

    def generate(self, input_ids: Tensor, **options: Any) -> Tensor:
        """Continue prompts [B, S] with this decoder, keys and values kept: see `surgery.generation.generate`."""
        from surgery.generation import generate

        return generate(self, input_ids, **options)

    def __deepcopy__(self, memo: dict[int, Any]) -> "LoadedModule":
        tensors = {name: (kind, copy.deepcopy(_tensor(self, name), memo)) for name, kind in self._tensor_names}
        copied = LoadedModule(copy.deepcopy(self.graph), tensors, self._home, self.training)
        copied.meta = dict(self.meta)
        memo[id(self)] = copied
        return copied

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LoadedModule":
        super()._apply(fn, recurse)
        self.__dict__.pop("_decoder", None)  # it reads the tensors that were there before
        self._move_constants(fn(torch.empty(0, device=self._home)).device)
        return self

    def _move_constants(self, device: torch.device) -> None:
        """Rewrite the device constants that name where the model was into where it is."""
        if same_device(device, self._home):
            return

        def moved(value: Any) -> Any:
            return device if isinstance(value, torch.device) and same_device(value, self._home) else value

        for node in self.graph.nodes:
            node.args = map_aggregate(node.args, moved)
            node.kwargs = map_aggregate(node.kwargs, moved)
        self._home = device
        self.recompile()
        quicken(self)


def _register(module: nn.Module, tensors: Mapping[str, tuple[str, Tensor]]) -> None:
    """Put tensors under their dotted names, in the order of the table."""
    for name, (kind, tensor) in tensors.items():
        owner, last = _owner(module, name)
        for shelf in (owner._parameters, owner._buffers):
            shelf.pop(last, None)
        try:
            if kind == "parameter":
                owner.register_parameter(last, tensor)
            else:
                owner.register_buffer(last, tensor, persistent=kind == "buffer")
        except KeyError as error:
            raise malformed("graph.json", f"no tensor can be named `{name[:80]}`") from error


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    *path, last = name.split(".")
    for part in path:
        if part not in module._modules:
            if hasattr(module, part):
                raise malformed("graph.json", f"no tensor can be named `{name[:80]}`")
            module.add_module(part, nn.Module())
        module = module._modules[part]
    return module, last


def _tensor(module: nn.Module, name: str) -> Tensor:
    owner, last = _owner(module, name)
    return owner._parameters[last] if last in owner._parameters else owner._buffers[last]
