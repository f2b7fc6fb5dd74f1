"""Mixtures of experts: a router picks, per token, a few of many feed-forward layers of one shape."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch.fx import GraphModule, Node

from surgery.anatomy.graphs import ACTIVATIONS, aten, calls, is_layer, is_op, owner, shape, tensor_inputs, value, width
from surgery.anatomy.site import Site

CHOICES = (aten.topk, aten.argmax, aten.max)
NEAR = 24
"""How many operations may stand between the router's layer and the choice."""


@dataclass(frozen=True)
class MixtureOfExperts(Site):
    """`experts` feed-forward layers of `width` hidden channels each, of which every token takes `active`.

    `gated` as in an mlp; `router` is the layer that scores the experts; `weights` the experts' tensors [experts, ..]
    by name, none where each expert is a module of its own.
    """

    experts: int = 0
    active: int = 0
    width: int = 0
    gated: bool = False
    router: Node | None = field(default=None, repr=False, compare=False)
    weights: tuple[str, ...] = field(default=(), repr=False, compare=False)

    def describe(self) -> str:
        channels = f" × {self.width} channels" if self.width else ""
        return f"{self.experts} experts, {self.active} active{channels}{', gated' if self.gated else ''}"


def find_mixtures(graph_module: GraphModule) -> Iterator[MixtureOfExperts]:
    chosen: dict[Node, list[Node]] = {}
    for choice in calls(graph_module, *CHOICES):
        if (router := _router(choice)) is not None:
            chosen.setdefault(router, []).append(choice)
    seen: set[str] = set()
    for router, choices in chosen.items():
        found = _around(graph_module, router, choices)
        if found is not None and found.path not in seen:
            seen.add(found.path)
            yield found


def _router(choice: Node) -> Node | None:
    """The layer whose outputs are chosen among, one output an expert."""
    experts = width(choice.args[0])
    if is_op(choice, aten.max) and not isinstance(value(choice), tuple | list):
        return None  # of two tensors, or of all entries
    seen, todo = set(), [choice.args[0]]
    while todo and len(seen) < NEAR:
        current = todo.pop(0)
        if current in seen:
            continue
        seen.add(current)
        if is_layer(current):
            return current if width(current) == experts else None
        todo.extend(tensor_inputs(current))
    return None


def _around(graph_module: GraphModule, router: Node, choices: list[Node]) -> MixtureOfExperts | None:
    """The smallest module around the router that holds as many experts as it scores."""
    experts = width(router)
    path = owner(router)
    while True:
        stacked = tuple(_stacked(graph_module, path, experts))
        if stacked or _listed(graph_module, path, experts):
            return _site(graph_module, path, router, choices, stacked)
        if not path or path.rpartition(".")[2].isdigit():
            return None
        path = path.rpartition(".")[0]


def _site(
    graph_module: GraphModule, path: str, router: Node, choices: list[Node], stacked: tuple[Node, ...]
) -> MixtureOfExperts:
    hidden = _hidden(graph_module, path, stacked)
    rows = [size for weight in stacked for size in shape(weight)[1:]]
    count = choices[0].args[1] if is_op(choices[0], aten.topk) else len(choices)  # one after another
    return MixtureOfExperts(
        kind="moe",
        path=path,
        nodes=(choices[0],),
        experts=width(router),
        active=count if isinstance(count, int) else 0,
        width=hidden,
        gated=bool(hidden) and (2 * hidden in rows or len(stacked) > 2 and rows.count(hidden) > 2),
        router=router,
        weights=tuple(dict.fromkeys(weight.target for weight in stacked)),
    )


def _stacked(graph_module: GraphModule, path: str, experts: int) -> Iterator[Node]:
    """Tensors [experts, .., ..] that lie in a module."""
    for node in graph_module.graph.find_nodes(op="get_attr"):
        sizes = shape(node) or ()
        if len(sizes) == 3 and sizes[0] == experts and _inside(node.target, path):
            yield node


def _listed(graph_module: GraphModule, path: str, experts: int) -> bool:
    """Whether each expert is a module of its own, `path.experts.0` and on, all of one kind of work."""
    counted: dict[str, set[str]] = {}
    for node in graph_module.graph.nodes:
        if is_layer(node) and _inside(owner(node), path):
            parts = owner(node)[len(path) :].strip(".").split(".")
            for place, part in enumerate(parts):
                if part.isdigit():
                    counted.setdefault(".".join(parts[:place]), set()).add(part)
                    break
    return any(len(found) == experts for found in counted.values())


def _hidden(graph_module: GraphModule, path: str, stacked: tuple[Node, ...]) -> int:
    """Hidden channels of an expert: what an activation in the module is as wide as, and an axis of the weights too."""
    rows = {size for weight in stacked for size in shape(weight)[1:]}
    for node in calls(graph_module, *ACTIVATIONS):
        if _inside(owner(node), path) and width(node) in rows:
            return width(node)
    return 0


def _inside(name: str, path: str) -> bool:
    return not path or name == path or name.startswith(f"{path}.")
