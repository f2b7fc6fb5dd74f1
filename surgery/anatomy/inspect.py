"""From a model to its Anatomy."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from surgery.anatomy.capture import Inputs, capture, with_batch
from surgery.anatomy.graphs import placeholders, weight_of
from surgery.anatomy.site import Anatomy, Site
from surgery.anatomy.sites.attention import find_attention
from surgery.anatomy.sites.block import find_blocks, layer_of
from surgery.anatomy.sites.conditioning import find_conditioning
from surgery.anatomy.sites.embedding import find_embeddings
from surgery.anatomy.sites.mlp import find_mlps
from surgery.anatomy.sites.moe import find_mixtures


def inspect(model: torch.nn.Module, example_inputs: Inputs) -> Anatomy:
    """Capture a model (see `capture` for the form of `example_inputs` and for errors) and find its sites."""
    return anatomy_of(capture(model, example_inputs), example_inputs)


def anatomy_of(graph_module: GraphModule, example_inputs: Inputs) -> Anatomy:
    """The sites of a graph that is already captured."""
    conditioning = tuple(find_conditioning(graph_module))
    owned = {linear for site in conditioning for linear in site.dimension.producers + site.dimension.consumers}
    mlps = [site for site in find_mlps(graph_module) if not owned.intersection((*site.up, site.down))]
    work = _once([*find_attention(graph_module), *mlps, *find_mixtures(graph_module)])
    blocks = tuple(find_blocks(sorted(work, key=lambda site: site.nodes[0])))
    layers = {block.path: block.layer for block in blocks}
    found = [*find_embeddings(graph_module, conditioning), *conditioning, *work]
    sites = [replace(site, layer=layer_of(site.path, layers)) for site in found]
    notes = tuple(graph_module.meta.get("notes", ()))
    named = named_inputs(graph_module, example_inputs)
    return Anatomy(graph_module, (*blocks, *_without_heads(sites)), named, notes)


def _once(sites: Iterable[Site]) -> list[Site]:
    """Calls of one layer, which blocks may share, are one site with the nodes of all of them."""
    found: dict[Any, Site] = {}
    for place, site in enumerate(sites):
        weights = tuple(weight.target for weight in map(weight_of, site.linears) if weight is not None)
        key = (site.kind, weights) if weights else place
        found[key] = replace(found[key], nodes=found[key].nodes + site.nodes) if key in found else site
    return list(found.values())


def _without_heads(sites: list[Site]) -> list[Site]:
    """Of a model with feed-forward layers in its blocks, those outside that change the width are its heads."""
    inside = any(site.kind == "mlp" and site.layer is not None for site in sites)
    return [site for site in sites if not (inside and site.kind == "mlp" and site.layer is None and site.changes_width)]


def named_inputs(graph_module: GraphModule, example_inputs: Inputs) -> dict[str, Any]:
    """Example inputs by placeholder, at batch 2 or more, in the graph's order."""
    leaves = pytree.tree_leaves(with_batch(example_inputs, at_least=2))
    return {node.name: leaf for node, leaf in zip(placeholders(graph_module), leaves, strict=False)}
