"""A small diffusion transformer as a graph, and the same with its conditioning cut by hand."""

import copy
from functools import cache

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from surgery.passes.provenance import Provenance, stamp

CLAUSE = Provenance("prune tail 66% of class embeddings", "quickstart.surgery:4:1", "prune")


class Block(nn.Module):
    def __init__(self, width: int = 12, heads: int = 2):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 24), nn.GELU(), nn.Dropout(0.1), nn.Linear(24, width))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x, c):
        shift, scale, gate = self.modulation(c).chunk(3, 1)
        y = self.norm(x) * (1 + scale[:, None]) + shift[:, None]
        q, k, v = self.qkv(y).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + gate[:, None] * self.proj(y)
        return x + self.mlp(x)


class Tiny(nn.Module):
    def __init__(self, depth: int = 3, width: int = 12):
        super().__init__()
        self.embed = nn.Linear(4, width)
        self.time = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))
        self.table = nn.Embedding(6, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.Linear(width, 4)

    def forward(self, x, t, label):
        c = self.time(t[:, None]) + self.table(label)
        x = self.embed(x)
        for block in self.blocks:
            x = block(x, c)
        return self.head(x)


def export(model: nn.Module, *args: torch.Tensor, **kwargs: torch.Tensor) -> GraphModule:
    """A captured graph; the first axis of every input is the batch."""
    batch = torch.export.Dim("batch", min=1, max=4096)
    positional, keyword = [{0: batch} for _ in args], {name: {0: batch} for name in kwargs}
    with torch.no_grad():
        program = torch.export.export(
            model.eval(), args, kwargs, dynamic_shapes=keyword or tuple(positional), strict=False
        )
        return program.module(check_guards=False)


@cache
def captured_once() -> GraphModule:
    torch.manual_seed(0)
    return export(Tiny(), torch.randn(2, 5, 4), torch.rand(2), torch.tensor([1, 2]))


def tiny_graph() -> GraphModule:
    return copy.deepcopy(captured_once())


def cut(graph_module: GraphModule, keep: int = 4) -> GraphModule:
    """Keep the first coordinates of the conditioning vector only, in every block."""
    nodes = {node.name: node for node in graph_module.graph.nodes}
    vector = nodes["add"]
    with graph_module.graph.inserting_after(vector):
        kept = graph_module.graph.call_function(torch.ops.aten.slice.Tensor, (vector, 1, 0, keep))
    vector.replace_all_uses_with(kept, delete_user_cb=lambda user: user is not kept)
    kept.meta.update(val=vector.meta["val"][:, :keep], nn_module_stack=vector.meta["nn_module_stack"])
    stamp(kept, CLAUSE)
    for index in range(len(graph_module.blocks._modules)):
        layer = graph_module.get_submodule(f"blocks.{index}.modulation.1")
        layer.weight = nn.Parameter(layer.weight[:, :keep].clone())
    for node in graph_module.graph.nodes:
        if node.target is torch.ops.aten.silu.default and node.args[0] is kept:
            node.meta["val"] = node.meta["val"][:, :keep]
            stamp(node, CLAUSE)
            stamp(next(iter(node.users)), CLAUSE)
    graph_module.recompile()
    return graph_module


@pytest.fixture
def tiny() -> GraphModule:
    return tiny_graph()


@pytest.fixture
def rewritten() -> GraphModule:
    return cut(tiny_graph())


@pytest.fixture
def clause() -> Provenance:
    return CLAUSE


@pytest.fixture
def exported():
    return export
