"""Diffusion transformers as strangers write them: one small body, and for each habit a class that differs in it.

`anatomy_of` captures each once; `works_of` plans a spec on an anatomy, and `rewrite` carries it out.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule
from torch.nn import functional as F

from surgery.anatomy import Anatomy, inspect
from surgery.anatomy.selectors import resolve
from surgery.check import check
from surgery.passes.runner import run_passes
from surgery.targets.context import Context

WIDTH, DEPTH, CLASSES, TOKENS, CHANNELS = 16, 2, 5, 4, 3


class Sinusoid(nn.Module):
    """Timestep features [B, 8] from [B] and a two-layer MLP."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(8, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t):
        frequencies = torch.exp(-math.log(10000) * torch.arange(4, device=t.device) / 4)
        angles = t[:, None].float() * frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], -1).to(self.mlp[0].weight.dtype))


class Block(nn.Module):
    """Two modulated halves, a linear layer and an MLP, or attention in place of the former."""

    def __init__(self, width: int, *, bias: bool = True, activation: nn.Module | None = None, attention: bool = False):
        super().__init__()
        self.activation = activation or nn.SiLU()
        self.modulation = nn.Linear(width, 6 * width, bias=bias)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv, self.proj = nn.Linear(width, 3 * width) if attention else None, nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def pieces(self, c):
        return self.modulation(self.activation(c)).unsqueeze(1).chunk(6, -1)

    def attend(self, x):
        if self.qkv is None:
            return self.proj(x)
        q, k, v = self.qkv(x).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def feed(self, x):
        return self.down(F.gelu(self.up(x)))

    def forward(self, x, c):
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.pieces(c)
        x = x + gate_a * self.attend(self.norm(x) * (1 + scale_a) + shift_a)
        return x + gate_m * self.feed(self.norm(x) * (1 + scale_m) + shift_m)


class Plain(nn.Module):
    """x [B, tokens, channels], t [B], y [B] -> as x. The body all strangers share; c is made once, read by every block."""

    def __init__(self, width: int = WIDTH):
        super().__init__()
        self.embed = nn.Linear(CHANNELS, width)
        self.position = nn.Parameter(torch.zeros(1, TOKENS, width))
        self.time, self.table = self.make_time(width), nn.Embedding(CLASSES, width)
        self.blocks = nn.ModuleList(self.make_block(width, index) for index in range(DEPTH))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.last = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, CHANNELS)
        self.build(width)

    def make_time(self, width):
        return Sinusoid(width)

    def make_block(self, width, index):
        return Block(width)

    def build(self, width):
        """What a stranger adds."""

    def condition(self, t, y):
        return self.time(t) + self.table(y)

    def modulate(self, c):
        return F.silu(c)

    def tokens(self, x, c):
        return self.embed(x) + self.position

    def forward(self, x, t, y):
        return self.body(x, self.condition(t, y))

    def body(self, x, c):
        x = self.tokens(x, c)
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.last(self.modulate(c)).unsqueeze(1).chunk(2, -1)
        return self.head(self.norm(x) * (1 + scale) + shift)


class Axis(Plain):
    """c is [B, 1, D] from the beginning, as one token."""

    def make_block(self, width, index):
        block = Block(width)
        block.pieces = lambda c: block.modulation(F.silu(c)).chunk(6, -1)
        return block

    def condition(self, t, y):
        return self.time(t).unsqueeze(1) + self.table(y[:, None])

    def body(self, x, c):
        x = self.tokens(x, c)
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.last(F.silu(c)).chunk(2, -1)
        return self.head(self.norm(x) * (1 + scale) + shift)


class Hoisted(Plain):
    """SiLU is taken once, for all blocks."""

    def make_block(self, width, index):
        return Block(width, activation=nn.Identity())

    def condition(self, t, y):
        return F.silu(super().condition(t, y))

    def modulate(self, c):
        return c


class Gelu(Plain):
    def make_block(self, width, index):
        return Block(width, activation=nn.GELU(approximate="tanh"))

    def modulate(self, c):
        return F.gelu(c, approximate="tanh")


class Sigmoidal(Plain):
    """An activation that is not 0 at 0."""

    def make_block(self, width, index):
        return Block(width, activation=nn.Sigmoid())

    def modulate(self, c):
        return torch.sigmoid(c)


class Swish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


class HandWritten(Plain):
    """x · sigmoid(x) spelt out."""

    def make_block(self, width, index):
        return Block(width, activation=Swish())

    def modulate(self, c):
        return c * torch.sigmoid(c)


class Linear(Plain):
    """No activation between c and the modulation."""

    def make_block(self, width, index):
        return Block(width, activation=nn.Identity())

    def modulate(self, c):
        return c


class Projected(Plain):
    """The label goes through an embedding and a linear of its own."""

    def build(self, width):
        self.table = nn.Embedding(CLASSES, 6)
        self.project = nn.Linear(6, width)

    def condition(self, t, y):
        return self.time(t) + self.project(self.table(y))


class Deep(Plain):
    """The label goes through an MLP of its own."""

    def build(self, width):
        self.table = nn.Embedding(CLASSES, 6)
        self.project = nn.Sequential(nn.Linear(6, 10), nn.SiLU(), nn.Linear(10, width))

    def condition(self, t, y):
        return self.time(t) + self.project(self.table(y))


class Unbiased(Plain):
    """Modulation layers without bias."""

    def make_block(self, width, index):
        return Block(width, bias=False)

    def build(self, width):
        self.last = nn.Linear(width, 2 * width, bias=False)


class Split(Plain):
    def make_block(self, width, index):
        block = Block(width)
        block.pieces = lambda c: block.modulation(F.silu(c)).unsqueeze(1).split(width, dim=-1)
        return block


class Unflatten(Plain):
    def make_block(self, width, index):
        block = Block(width)
        block.pieces = lambda c: block.modulation(F.silu(c)).unflatten(1, (6, 1, width)).unbind(1)
        return block


class View(Plain):
    def make_block(self, width, index):
        block = Block(width)
        block.pieces = lambda c: block.modulation(F.silu(c)).view(c.shape[0], 6, width)[:, :, None].unbind(1)
        return block


class Three(Plain):
    """time + class + a learned constant [D]."""

    def build(self, width):
        self.constant = nn.Parameter(torch.zeros(width))

    def condition(self, t, y):
        return self.time(t) + self.table(y) + self.constant


class ConstantFirst(Three):
    """(time + constant) + class: the constant sits in a branch."""

    def condition(self, t, y):
        return self.time(t) + self.constant + self.table(y)


class Scaled(Plain):
    """c is scaled by a number and by a learned vector."""

    def build(self, width):
        self.scale = nn.Parameter(torch.ones(width))

    def condition(self, t, y):
        return (self.time(t) + self.table(y)) * self.scale / math.sqrt(2)


class TimeTable(Plain):
    """Timesteps are rows of a table; t is an integer."""

    def make_time(self, width):
        return nn.Embedding(1000, width)


class SharedModulation(Plain):
    """One modulation layer for all blocks, and each block's own offset, as in PixArt."""

    def build(self, width):
        for block in self.blocks[1:]:
            block.modulation = self.blocks[0].modulation


class HoistedModulation(Plain):
    """One modulation layer called once; its output goes to all blocks."""

    def make_block(self, width, index):
        block = Block(width)
        del block.modulation
        block.offset = nn.Parameter(torch.zeros(6 * width))
        block.pieces = lambda m: (m + block.offset).unsqueeze(1).chunk(6, -1)
        return block

    def build(self, width):
        self.all = nn.Linear(width, 6 * width)

    def body(self, x, c):
        x, modulation = self.tokens(x, c), self.all(F.silu(c))
        for block in self.blocks:
            x = block(x, modulation)
        shift, scale = self.last(F.silu(c)).unsqueeze(1).chunk(2, -1)
        return self.head(self.norm(x) * (1 + scale) + shift)


class Parallel(Plain):
    """Attention and MLP read the same normed tokens."""

    def make_block(self, width, index):
        block = Block(width, attention=True)

        def forward(x, c):
            shift, scale, gate, *_ = block.pieces(c)
            y = block.norm(x) * (1 + scale) + shift
            return x + gate * (block.attend(y) + block.feed(y))

        block.forward = forward
        return block


class LabelColumn(Plain):
    """y comes as [B, 1]."""

    def condition(self, t, y):
        return self.time(t) + self.table(y).squeeze(1)


class LabelFlat(Plain):
    """y comes as [B, 1] and is flattened before the look-up."""

    def condition(self, t, y):
        return self.time(t) + self.table(y.flatten())


class Guided(Plain):
    """A guidance scale and pooled text are added to c."""

    def build(self, width):
        self.guidance, self.pooled = Sinusoid(width), nn.Linear(7, width)

    def forward(self, x, t, y, scale, text):
        return self.body(x, self.condition(t, y) + self.guidance(scale) + self.pooled(text))


class TwoTables(Plain):
    """Two labels, two tables."""

    def build(self, width):
        self.style = nn.Embedding(3, width)

    def forward(self, x, t, y, style):
        return self.body(x, self.condition(t, y) + self.style(style))


class TiedTable(Plain):
    """The class table is also the classifier's weight."""

    def forward(self, x, t, y):
        output = self.body(x, self.condition(t, y))
        return output, F.linear(self.embed(x).mean(1), self.table.weight)


class Normed(Plain):
    """LayerNorm on c: dropping a coordinate moves all others."""

    def build(self, width):
        self.c_norm = nn.LayerNorm(width)

    def condition(self, t, y):
        return self.c_norm(super().condition(t, y))


class NormedInBlock(Plain):
    """A norm on c inside one block."""

    def build(self, width):
        block = self.blocks[1]
        block.c_norm = nn.LayerNorm(width)
        block.pieces = lambda c: block.modulation(F.silu(block.c_norm(c))).unsqueeze(1).chunk(6, -1)


class Token(Plain):
    """As in U-ViT: time and class are tokens of their own."""

    def make_block(self, width, index):
        return Block(width, attention=True)

    def tokens(self, x, c):
        return torch.cat([c[:, None], self.embed(x) + self.position], 1)

    def forward(self, x, t, y):
        c = self.condition(t, y)
        x = self.tokens(x, c)
        for block in self.blocks:
            x = x + block.attend(block.norm(x))
            x = x + block.feed(block.norm(x))
        return self.head(x[:, 1:])


class Tokens(Token):
    """As in U-ViT: a token for the time and one for the class."""

    def forward(self, x, t, y):
        x = torch.cat([self.time(t)[:, None], self.table(y)[:, None], self.embed(x) + self.position], 1)
        for block in self.blocks:
            x = x + block.attend(block.norm(x))
            x = x + block.feed(block.norm(x))
        return self.head(x[:, 2:])


class Returned(Plain):
    """c is an output too."""

    def forward(self, x, t, y):
        c = self.condition(t, y)
        return self.body(x, c), c


class AddedToTokens(Plain):
    """c is also added to the tokens."""

    def tokens(self, x, c):
        return super().tokens(x, c) + c[:, None]


class Multiplied(Plain):
    """c gates the tokens without a layer between."""

    def tokens(self, x, c):
        return super().tokens(x, c) * c[:, None]


class ReusedTime(Plain):
    """The time embedding is read by a layer of its own besides c."""

    def build(self, width):
        self.extra = nn.Linear(width, width)

    def forward(self, x, t, y):
        time = self.time(t)
        return self.body(x, time + self.table(y)) + self.head(self.extra(F.silu(time)))[:, None]


class TwoBiases(Plain):
    """One modulation weight, each block with a bias of its own."""

    def build(self, width):
        self.first = self.blocks[0].modulation
        for block in self.blocks[1:]:
            block.modulation = nn.Linear(width, 6 * width)
            block.modulation.weight = self.first.weight


class ComputedWeight(Plain):
    """A layer's weight is normalised anew in every call."""

    def build(self, width):
        self.last = nn.utils.parametrizations.weight_norm(nn.Linear(width, 2 * width))


class FixedBatch(Plain):
    """The batch is written into the code."""

    def tokens(self, x, c):
        return self.embed(x).reshape(2, TOKENS, -1) + self.position


class Interleaved(Plain):
    """Each block makes its own untied c, as diffusers does."""

    def build(self, width):
        self.times = nn.ModuleList(Sinusoid(width) for _ in range(DEPTH))
        self.tables = nn.ModuleList(nn.Embedding(CLASSES, width) for _ in range(DEPTH))
        del self.time, self.table

    def forward(self, x, t, y):
        x = self.tokens(x, None)
        for block, time, table in zip(self.blocks, self.times, self.tables, strict=True):
            x = block(x, time(t) + table(y))
        shift, scale = self.last(F.silu(self.times[0](t) + self.tables[0](y))).unsqueeze(1).chunk(2, -1)
        return self.head(self.norm(x) * (1 + scale) + shift)


CUT = {
    cls.__name__: cls
    for cls in (
        Plain,
        Axis,
        Hoisted,
        Gelu,
        Sigmoidal,
        HandWritten,
        Linear,
        Projected,
        Deep,
        Unbiased,
        Split,
        Unflatten,
        View,
        Three,
        ConstantFirst,
        Scaled,
        TimeTable,
        SharedModulation,
        HoistedModulation,
        Parallel,
        LabelColumn,
        LabelFlat,
        Interleaved,
    )
}
"""Those whose c can be cut."""


def make(cls: type[nn.Module], *, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A stranger with random weights, none of them zero, in eval mode."""
    torch.manual_seed(seed)
    model = cls()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval().to(dtype)


def inputs_of(model: nn.Module, batch: int = 2) -> dict[str, torch.Tensor]:
    """Seeded inputs by name."""
    draw = torch.Generator().manual_seed(1)
    integers = isinstance(model, TimeTable)
    y = torch.arange(batch) % CLASSES
    inputs = {
        "x": torch.randn(batch, TOKENS, CHANNELS, generator=draw).to(model.head.weight.dtype),
        "t": torch.randint(0, 1000, (batch,), generator=draw).to(torch.int64 if integers else torch.float32),
        "y": y[:, None] if isinstance(model, LabelColumn | LabelFlat) else y,
    }
    if isinstance(model, Guided):
        inputs |= {"scale": torch.rand(batch, generator=draw), "text": torch.randn(batch, 7, generator=draw)}
    if isinstance(model, TwoTables):
        inputs["style"] = torch.arange(batch) % 3
    return inputs


@dataclass(frozen=True)
class Rewriting:
    """What a spec made of an anatomy: the compact graph and the slow truth it must equal."""

    works: list[Any]
    choices: list[Any]
    compact: GraphModule
    masked: GraphModule


MODELS: list[nn.Module] = []
"""Kept, as the lines of code that messages name are looked up in the model."""


@cache
def anatomy_of(name: str, dtype: torch.dtype = torch.float32) -> Anatomy:
    """The anatomy of a stranger by its class's name."""
    model = make(globals()[name], dtype=dtype)
    MODELS.append(model)
    return inspect(model, inputs_of(model))


def works_of(anatomy: Anatomy, spec: str) -> list[Any]:
    """The cuts a one-sentence spec plans."""
    (operation,) = check(spec).operations
    return operation.plan(anatomy, resolve(operation.target, anatomy))


def rewrite(anatomy: Anatomy, spec: str, schedule: Any = None) -> Rewriting:
    """Plan, choose, rewrite, and build the reference."""
    works, graph_module = works_of(anatomy, spec), anatomy.graph_module
    context = Context(schedule)
    choices = [work.choose(anatomy, context) for work in works]
    pairs = list(zip(works, choices, strict=True))
    compact = [step for work, choice in pairs for step in work.passes(graph_module, choice, context)]
    masked = [step for work, choice in pairs for step in work.reference(graph_module, choice, context)]
    return Rewriting(works, choices, run_passes(graph_module, compact), run_passes(graph_module, masked))
