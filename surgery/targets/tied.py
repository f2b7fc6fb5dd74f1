"""Conditioning sites that share weights are one thing to cut."""

from dataclasses import dataclass

from torch.fx import GraphModule, Node

from surgery.anatomy.dimension import describe
from surgery.anatomy.graphs import aten, attribute, bias_of, is_op, owner, weight_of
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
        return axes | {weight_of(node).target: 1 for node in self.consumers}

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
                where = owner(found.node) or found.node.name
                return f"the width of c is not the class's own: {found.reason} at {where}"
            if any(weight_of(node) is None for node in site.dimension.consumers):
                return f"a modulation layer of {site.name} computes its weight"
        return self._shared_weight(graph_module)

    def _shared_weight(self, graph_module: GraphModule) -> str | None:
        inside = {*self.producers, *self.consumers}
        for name in self.weights():
            for reader in users_of(graph_module, attribute(graph_module, name)):
                for user in reader.users:
                    if user not in inside and reader not in inside:
                        return (
                            f"`{name}` is also read by {describe(user)} at {owner(user) or user.name}, which is not cut"
                        )
        return None


def tied(sites: tuple[Conditioning, ...]) -> list[Tied]:
    """Sites grouped by the weights they share."""
    groups: list[list[Conditioning]] = []
    for site in sites:
        names = set(Tied((site,)).weights())
        joined = [group for group in groups if names & set(Tied(tuple(group)).weights())]
        merged = [member for group in joined for member in group] + [site]
        groups = [group for group in groups if group not in joined] + [merged]
    return [Tied(tuple(group)) for group in groups]
