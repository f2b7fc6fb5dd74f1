"""Equal blocks are traced once: the graph is the one that tracing every block gives, whatever blocks do."""

import sys
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.fx import GraphModule, map_arg
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import surgery.anatomy  # noqa: F401
from surgery.anatomy.capture import call, capture
from surgery.anatomy.repeats.tracing import Tracing
from surgery.anatomy.repeats.unfolding import Unfolding

WIDTH, DEPTH = 8, 5
SMALL = {"hidden_size": 32, "num_hidden_layers": DEPTH, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = SMALL | {"vocab_size": 60, "max_position_embeddings": 64}
GROUPED = TEXT | {"num_key_value_heads": 2}
GPT2 = {"n_embd": 32, "n_layer": DEPTH, "n_head": 4, "vocab_size": 60, "n_positions": 64}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": DEPTH, "num_heads": 4, "vocab_size": 60}
SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [2, 4], "num_heads": [2, 4], "window_size": 4}
NEO = {"hidden_size": 32, "num_layers": 4, "num_heads": 4, "vocab_size": 60, "max_position_embeddings": 64}
NEO |= {"attention_types": [[["global", "local"], 2]], "window_size": 4}

STRANGERS = {
    # name: class, config, what forward takes, options, blocks that are repeated
    "GPT-2": ("GPT2LMHeadModel", GPT2, "ids", {"use_cache": False}, 4),
    "GPT-2, attention told": (
        "GPT2LMHeadModel",
        GPT2 | {"attn_implementation": "eager", "output_attentions": True, "output_hidden_states": True},
        "ids",
        {"use_cache": False},
        0,
    ),
    "Llama": ("LlamaForCausalLM", GROUPED, "ids", {"use_cache": False}, 4),
    "windows in every other layer": (
        "Gemma2ForCausalLM",
        GROUPED | {"head_dim": 8, "sliding_window": 6},
        "ids",
        {"use_cache": False},
        3,
    ),
    "constants in blocks": ("GPTNeoForCausalLM", NEO, "ids", {"use_cache": False}, 3),
    "writes in blocks": ("MixtralForCausalLM", GROUPED | {"num_local_experts": 4}, "ids", {"use_cache": False}, 4),
    "BERT": ("BertForMaskedLM", TEXT, "ids", {}, 4),
    "one layer, often": ("AlbertForMaskedLM", TEXT | {"embedding_size": 16}, "ids", {}, 0),
    "ViT": ("ViTForImageClassification", SMALL | {"image_size": 16, "patch_size": 4}, "image", {}, 4),
    "a rate in every block": ("SwinForImageClassification", SWIN, "image", {}, 0),
    "the first apart": ("T5ForConditionalGeneration", T5, "both", {"use_cache": False}, 6),
}


class Block(nn.Module):
    """Norm, two layers and a residual; `habit` is what a stranger does in it."""

    def __init__(self, number: int = 0, shelf: dict | None = None):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)
        self.number, self.shelf = number, shelf

    def forward(self, x, **options):
        return x + self.down(self.habit(F.gelu(self.up(self.norm(x))), **options))

    def habit(self, x):
        return x


class Scaled(Block):
    """Reads its number."""

    def habit(self, x):
        return x * (self.number + 1)


class Told(Block):
    """Reads what its caller sets."""

    step = 0

    def habit(self, x):
        return x * (self.step + 1)


class Windowed(Block):
    """Reads what two sorts of blocks have in common."""

    def __init__(self, number: int, shelf: dict | None = None):
        super().__init__(number)
        self.power = 2 + number % 2

    def habit(self, x):
        return x**self.power


class Counting(Block):
    """Counts calls in the instance."""

    calls = 0

    def habit(self, x):
        self.calls = self.calls + 1
        return x * self.calls


class CountingTogether(Block):
    """Counts calls in the class."""

    calls = 0

    def habit(self, x):
        type(self).calls += 1
        return x * (type(self).calls % 7)


CALLS = [0]


class CountingAbroad(Block):
    """Counts calls in a list of the module that defines it."""

    def habit(self, x):
        CALLS[0] += 1
        return x * (CALLS[0] % 7)


class Remembering(Block):
    """Mixes with what the first block left for the others."""

    def habit(self, x):
        self.shelf.setdefault("first", x)
        return x + self.shelf["first"]

    def forward(self, x):
        if self.number == 0:
            self.shelf.clear()
        return super().forward(x)


class RememberingUnnumbered(Block):
    """The same, with nothing that differs among blocks."""

    def habit(self, x):
        before = self.shelf.get("last", x)
        self.shelf["last"] = x
        return x + before


class Writing(Block):
    """Writes into what it was given."""

    def forward(self, x):
        x.add_(self.down(F.gelu(self.up(self.norm(x)))))
        return x


class WritingOwn(Block):
    """Writes into what it made."""

    def habit(self, x):
        y = x.clone()
        y[..., 0] = 0
        return y.mul_(2)


class Viewing(Block):
    """Returns a view of its input beside the result."""

    def forward(self, x):
        return super().forward(x)[:], x[:, :1]


class Splitting(Block):
    """Takes and returns two parts of one tensor."""

    def forward(self, x, y):
        both = super().forward(torch.cat([x, y], 1))
        return both[:, :2], both[:, 2:]


class Passing(Block):
    """Returns its input, an option and nothing beside the result."""

    def forward(self, x, scale=2.0):
        return {"now": super().forward(x) * scale, "was": x, "scale": scale, "none": None}


class Pair(nn.Module):
    """A block of blocks, three of which are equal."""

    def __init__(self, number: int, shelf: dict | None = None):
        super().__init__()
        self.parts = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x):
        for part in self.parts:
            x = part(x)
        return x


class Lifting(Block):
    """Makes a tensor of a number."""

    def habit(self, x):
        return x * torch.tensor(0.5)


class Buffered(Block):
    """Has buffers, one of them not kept, and a tied weight."""

    def __init__(self, number: int, shelf: dict | None = None):
        super().__init__()
        self.register_buffer("kept", torch.full((16,), float(number + 1)))
        self.register_buffer("passing", torch.full((16,), float(number)), persistent=False)
        self.again = self.up.weight

    def habit(self, x):
        return x * self.kept + self.passing + F.linear(x[..., :WIDTH], self.again)


class Casting(Block):
    """Leaves a region of another precision open over its layers."""

    def habit(self, x):
        with torch.autocast("cpu", enabled=False):
            return x.float()


class Sized(Block):
    """Takes a tensor's size for a number."""

    def habit(self, x):
        return x.reshape(x.shape[0] * x.shape[1], -1).view(x.shape) / x.shape[1]


class Stack(nn.Module):
    """Blocks one behind another."""

    def __init__(self, kind: type[nn.Module], forward=None):
        super().__init__()
        shelf: dict = {}
        self.blocks = nn.ModuleList(kind(number, shelf) for number in range(DEPTH))
        self.pass_on = forward or (lambda blocks, x: [x := block(x) for block in blocks][-1])
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x):
        CountingTogether.calls = CALLS[0] = 0
        for block in self.blocks:
            vars(block).pop("calls", None)
            vars(block).pop("step", None)
            if getattr(block, "shelf", None):
                block.shelf.clear()
        return self.head(self.pass_on(self.blocks, x))


def by_number(blocks, x):
    for number, block in enumerate(blocks):
        x = block(x * 2 if number % 2 else x)
    return x


def by_telling(blocks, x):
    for step, block in enumerate(blocks):
        block.step = step
        x = block(x)
    return x


def by_shape(blocks, x):
    for number, block in enumerate(blocks):
        x = block(x.transpose(1, 2).contiguous().transpose(1, 2) if number % 2 else x)
    return x


def twice(blocks, x):
    for block in (*blocks, *blocks):
        x = block(x)
    return x


def backwards(blocks, x):
    for block in reversed(blocks):
        x = block(x)
    return x


def some(blocks, x):
    for block in blocks[:3]:
        x = block(x)
    return x


def with_views(blocks, x):
    for block in blocks:
        x, first = block(x)
        x = x + first
    return x


def with_parts(blocks, x):
    x, y = x[:, :2].clone(), x[:, 2:].clone()
    for block in blocks:
        x, y = block(x, y)
    return torch.cat([y, x], 1)


def with_dicts(blocks, x):
    for number, block in enumerate(blocks):
        out = block(x, scale=1.0 + number // 4)
        x = out["now"] * out["scale"] + out["was"]
    return x


def ungraded(blocks, x):
    for number, block in enumerate(blocks):
        with torch.set_grad_enabled(number % 2 == 0):
            x = block(x)
    return x


HABITS = {
    # name: block, how blocks are called, blocks that are repeated
    "plain": (Block, None, 4),
    "other inputs": (Block, by_number, 4),
    "other strides": (Block, by_shape, 3),
    "called twice": (Block, twice, 0),
    "called backwards": (Block, backwards, 4),
    "not all called": (Block, some, 2),
    "modes of grad": (Block, ungraded, 0),
    "reads its number": (Scaled, None, 0),
    "told by its caller": (Told, by_telling, 0),
    "two sorts": (Windowed, None, 3),
    "counts in the instance": (Counting, None, 0),
    "counts in the class": (CountingTogether, None, 0),
    "counts in a list": (CountingAbroad, None, 0),
    "left for others": (Remembering, None, 0),
    "handed on": (RememberingUnnumbered, None, 0),
    "writes into its input": (Writing, None, 0),
    "writes into its own": (WritingOwn, None, 4),
    "views of its input": (Viewing, with_views, 4),
    "views of its own": (Splitting, with_parts, 3),
    "results in a dictionary": (Passing, with_dicts, 3),
    "blocks in blocks": (Pair, None, 4 + 2),
    "constants": (Lifting, None, 4),
    "buffers and ties": (Buffered, None, 4),
    "precision": (Casting, None, 0),
    "sizes": (Sized, None, 4),
}


def stranger(name):
    transformers = pytest.importorskip("transformers")
    kind, config, takes, options, _ = STRANGERS[name]
    torch.manual_seed(0)
    model_class = getattr(transformers, kind)
    model = model_class._from_config(model_class.config_class(**config)).eval()
    ids = torch.randint(0, 60, (2, 12))
    inputs = {
        "ids": {"input_ids": ids},
        "image": {"pixel_values": torch.randn(2, 3, config.get("image_size", 0), config.get("image_size", 0))},
        "both": {"input_ids": ids, "decoder_input_ids": ids[:, :7]},
    }[takes]
    return model, inputs | options


def habit(name):
    kind, forward, _ = HABITS[name]
    torch.manual_seed(0)
    return Stack(kind, forward).eval(), (torch.randn(2, 6, WIDTH),)


def described(graph_module: GraphModule) -> list[tuple]:
    """Every node: what it calls on what, shapes, and whose it is; constants by what they are."""
    stored = {id(each): name for name, each in (*graph_module.named_parameters(), *graph_module.named_buffers())}
    place = {node: number for number, node in enumerate(graph_module.graph.nodes)}
    told = []
    for node in graph_module.graph.nodes:
        target = str(node.target)
        if node.op == "get_attr":
            tensor = graph_module
            for part in target.split("."):
                tensor = getattr(tensor, part)
            target = stored.get(id(tensor)) or str(tensor)
        elif node.op == "placeholder":
            target = node.name
        arguments = map_arg((node.args, node.kwargs), lambda each: f"%{place[each]}")
        told.append((node.op, target, str(arguments), str(node.meta.get("val")), str(node.meta.get("nn_module_stack"))))
    return told


@pytest.fixture
def repeated(monkeypatch):
    """Names of the blocks that were not traced; none where in the end all were."""
    names: list[str] = []
    done: list[str] = []
    start, repeat, unfold = Tracing.__init__, Tracing._repeated, Unfolding.run

    def started(self, *arguments, **options):
        names.clear()
        start(self, *arguments, **options)

    def noted(self, record, place, given):
        names.append(self.blocks[place].name)
        return repeat(self, record, place, given)

    def unfolded(self):
        graph_module = unfold(self)
        done[:] = names
        return graph_module

    monkeypatch.setattr(Tracing, "__init__", started)
    monkeypatch.setattr(Tracing, "_repeated", noted)
    monkeypatch.setattr(Unfolding, "run", unfolded)
    return done


def in_full(model, inputs, monkeypatch) -> GraphModule:
    """The graph with every block traced."""
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["surgery.anatomy.capture"], "traced_once", lambda *_: None)
        return capture(model, inputs)


def state(model: nn.Module) -> list:
    kinds = dict.fromkeys(type(module) for module in model.modules())
    attributes = [(kind, name, value) for kind in kinds for name, value in vars(kind).items() if name != "calls"]
    tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return [*attributes, *((name, id(tensor)) for name, tensor in tensors)]


@pytest.mark.parametrize(
    ("build", "name", "blocks"),
    [
        *((stranger, name, STRANGERS[name][-1]) for name in STRANGERS),
        *((habit, name, HABITS[name][-1]) for name in HABITS),
    ],
    ids=[*STRANGERS, *HABITS],
)
def test_the_graph_is_that_of_every_block_traced(build, name, blocks, repeated, monkeypatch):
    model, inputs = build(name)
    before = state(model)
    graph_module = capture(model, inputs)
    graph_module.graph.lint()
    assert len(repeated) == blocks, repeated
    assert state(model) == before, "the model and its classes are left as they were"
    full = in_full(model, inputs, monkeypatch)
    assert described(graph_module) == described(full)
    assert {name: id(tensor) for name, tensor in graph_module.named_parameters()} == {
        name: id(tensor) for name, tensor in full.named_parameters()
    }
    assert graph_module.state_dict().keys() == full.state_dict().keys()
    with torch.no_grad():
        wanted, made = (pytree.tree_leaves(call(each, deepcopy(inputs))) for each in (model, graph_module))
    for one, other in zip(wanted, made, strict=True):
        torch.testing.assert_close(other, one)
