"""Named places of a captured graph."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.fx import GraphModule, Node

BLOCK = re.compile(r"\.\d+(?=\.|$)")
"""The first number in a dotted path is the block's."""


@dataclass(frozen=True)
class Site:
    """A place operations can name. `kind` is attention, mlp, moe, embedding, conditioning or block; `path` is the dotted
    path of the module it lives in, "" for the whole model; `layer` counts blocks from 0."""

    kind: str
    path: str
    layer: int | None = None
    nodes: tuple[Node, ...] = field(default=(), repr=False, compare=False)

    @property
    def name(self) -> str:
        return self.path or self.kind

    @property
    def linears(self) -> tuple[Node, ...]:
        """The linear layers it is made of, where it is made of some."""
        return ()

    def describe(self) -> str:
        """What a person sees in `surgery sites`, without kind and path."""
        return ""

    @property
    def left_out(self) -> str:
        """What a person writes to leave this site and those like it in other blocks out: `attention except module "…"`."""
        if not self.path:
            return f"{self.kind} except layer {self.layer or 0}"
        return f'{self.kind} except module "{BLOCK.sub(".*", self.path, count=1)}"'

    def document(self) -> dict[str, Any]:
        """The site as JSON-able data: the public fields."""
        hidden = {"nodes"}
        return {
            key: item
            for key, item in vars(self).items()
            if key not in hidden and isinstance(item, str | int | bool | None)
        }


@dataclass(frozen=True)
class Anatomy:
    """A captured graph and the sites found in it.

    `graph_module` is the graph (its nodes carry shapes and owners), `inputs` the example inputs by placeholder
    name, `notes` what capture had to give up.
    """

    graph_module: GraphModule
    sites: tuple[Site, ...]
    inputs: Mapping[str, Any] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()

    def of_kind(self, kind: str) -> tuple[Site, ...]:
        return tuple(site for site in self.sites if site.kind == kind)

    def document(self) -> dict[str, Any]:
        return {
            "format": "surgery.sites/1",
            "sites": [site.document() for site in self.sites],
            "notes": list(self.notes),
        }
