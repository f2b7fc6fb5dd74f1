"""Conditioning sites that share weights are one thing to cut."""

from dataclasses import dataclass

from torch.fx import GraphModule, Node

from surgery.anatomy.dimension import describe
from surgery.anatomy.graphs import (
    aten,
    attribute,
    bias_of,
    is_op,
    shape,
    tensor_ancestors,
    tensor_inputs,
    weight_of,
    where,
)
from surgery.anatomy.sites.conditioning import Conditioning
from surgery.passes.cut_dimension import Cut
from surgery.passes.weights import users_of


@dataclass(frozen=True)
class Tied:
    """Sites cut together, in graph order. All have the same width."""

    sites: tuple[Conditioning, ...]

    @property
    def width(self) -> int:
        return self.sites[0].width

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(site.name for site in self.sites))

    @property
    def producers(self) -> list[Node]:
        return list(dict.fromkeys(node for site in self.sites for node in site.dimension.producers))

    @property
    def consumers(self) -> list[Node]:
        return list(dict.fromkeys(node for site in self.sites for node in site.dimension.consumers))

    @property
    def unique_consumers(self) -> list[Node]:
        """One linear per weight: a layer that is called twice is one layer."""
        return list({weight_of(node).target: node for node in self.consumers}.values())

    def weights(self) -> dict[str, int]:
        """Every tensor the cut changes by name, with the axis that is cut."""
        axes: dict[str, int] = {}
        for node in self.producers:
            if is_op(node, aten.linear):
                axes |= {weight.target: 0 for weight in (weight_of(node), bias_of(node)) if weight is not None}
            else:
                axes[(node if node.op == "get_attr" else weight_of(node)).target] = -1
        return axes | {weight_of(node).target: 1 for node in self.consumers if weight_of(node)}

    def cuts(self) -> tuple[Cut, ...]:
        return tuple(
            Cut(
                tuple(node.name for node in site.dimension.nodes),
                tuple(node.name for node in site.dimension.producers),
                tuple(node.name for node in site.dimension.consumers),
            )
            for site in self.sites
        )

    def obstacle(self, graph_module: GraphModule) -> str | None:
        """Why this cannot be cut, naming the culprit; None when it can."""
        for site in self.sites:
            for found in site.dimension.obstacles:
                reason, node = _mixed(site) or (found.reason, found.node)
                place = "" if node.op == "output" else f", at {where(node)}"
                return f"the width of c is not the class's own: {reason}{place}"
        return self._odd_consumer() or self._shared_weight(graph_module)

    def _odd_consumer(self) -> str | None:
        vectors = {site.vector for site in self.sites}
        for node in self.consumers:
            if weight_of(node) is None:
                return f"the layer that reads it at {where(node)} computes its weight"
            if not vectors & tensor_ancestors(node.args[0]):
                return f"what c is made of is also read by `linear`, at {where(node)}"
        biases: dict[str, set[str | None]] = {}
        for node in self.consumers:
            biases.setdefault(weight_of(node).target, set()).add(bias_of(node).target if bias_of(node) else None)
        twice = next((name for name, found in biases.items() if len(found) > 1), None)
        return f"`{twice}` is used with several biases" if twice else None

    def _shared_weight(self, graph_module: GraphModule) -> str | None:
        inside = {*self.producers, *self.consumers}
        for name in self.weights():
            for reader in users_of(graph_module, attribute(graph_module, name)):
                for user in reader.users:
                    if user not in inside and reader not in inside:
                        return f"`{name}` is also read by {describe(user)} at {where(user)}, which is not cut"
        return None


def _mixed(site: Conditioning) -> tuple[str, Node] | None:
    """Where c meets, coordinate by coordinate, what was not made of it: tokens it is added to or multiplied with."""
    made = tensor_ancestors(site.vector)
    for node in site.dimension.nodes:
        for operand in tensor_inputs(node) if site.vector in tensor_ancestors(node) else ():
            foreign = operand not in made and site.vector not in tensor_ancestors(operand)
            if foreign and operand in site.dimension.nodes and operand.op != "get_attr":
                sizes = " × ".join(map(str, shape(operand)[1:]))
                return f"{describe(node)} mixes it with other values ({sizes} per sample)", node
    return None


def tied(sites: tuple[Conditioning, ...]) -> list[Tied]:
    """Sites grouped by the weights they share, directly or through others."""
    groups: list[tuple[set[str], tuple[Conditioning, ...]]] = []
    for site in sites:
        names, members = set(Tied((site,)).weights()), (site,)
        apart = []
        for others, theirs in groups:
            if others & names:
                names, members = others | names, theirs + members
            else:
                apart.append((others, theirs))
        groups = [*apart, (names, members)]
    order = {id(site): index for index, site in enumerate(sites)}
    return sorted((Tied(members) for _, members in groups), key=lambda group: order[id(group.sites[0])])
