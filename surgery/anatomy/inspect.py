"""From a model to its Anatomy."""

from dataclasses import replace
from typing import Any

import torch
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from surgery.anatomy.capture import Inputs, capture, with_batch
from surgery.anatomy.graphs import placeholders
from surgery.anatomy.site import Anatomy
from surgery.anatomy.sites.attention import find_attention
from surgery.anatomy.sites.block import block_path, find_blocks
from surgery.anatomy.sites.conditioning import find_conditioning
from surgery.anatomy.sites.embedding import find_embeddings
from surgery.anatomy.sites.mlp import find_mlps


def inspect(model: torch.nn.Module, example_inputs: Inputs) -> Anatomy:
    """Capture a model (see `capture` for the form of `example_inputs` and for errors) and find its sites."""
    return anatomy_of(capture(model, example_inputs), example_inputs)


def anatomy_of(graph_module: GraphModule, example_inputs: Inputs) -> Anatomy:
    """The sites of a graph that is already captured."""
    conditioning = tuple(find_conditioning(graph_module))
    owned = {linear for site in conditioning for linear in site.dimension.producers + site.dimension.consumers}
    mlps = [site for site in find_mlps(graph_module) if site.down not in owned and not owned.intersection(site.up)]
    found = [*find_embeddings(graph_module, conditioning), *conditioning, *find_attention(graph_module), *mlps]
    blocks = tuple(find_blocks(tuple(found)))
    layers = {block.path: block.layer for block in blocks}
    sites = tuple(replace(site, layer=layers.get(block_path(site.path) or "")) for site in found)
    notes = tuple(graph_module.meta.get("notes", ()))
    return Anatomy(graph_module, (*blocks, *sites), named_inputs(graph_module, example_inputs), notes)


def named_inputs(graph_module: GraphModule, example_inputs: Inputs) -> dict[str, Any]:
    """Example inputs by placeholder, at batch 2 or more, in the graph's order."""
    leaves = pytree.tree_leaves(with_batch(example_inputs, at_least=2))
    return {node.name: leaf for node, leaf in zip(placeholders(graph_module), leaves, strict=False)}
