"""Sites of transformers of many builds, all by structure: what is told of each is in one table; and heads that are cut
where they are stored, folded, shared or joined in ways of their own."""

from functools import cache

import pytest
import strangers
import torch
from torch import nn
from torch.nn import functional as F

from surgery.anatomy import inspect
from surgery.anatomy.graphs import placeholders, shape
from surgery.anatomy.units import trace_all, trace_units
from surgery.diagnostics import SurgeryError
from surgery.session.prepare import prepare
from surgery.targets.unit_plan import makers

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 8, "intermediate_size": 48}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXT = SIZES | SPECIAL | {"vocab_size": 50, "max_position_embeddings": 32}
GROUPED = TEXT | {"num_key_value_heads": 4}
OLD = SPECIAL | {"n_embd": 32, "n_layer": 2, "n_head": 8, "vocab_size": 50, "n_positions": 32}
FALCON = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 8, "vocab_size": 50}
PAIR = {
    name: number
    for side in ("encoder", "decoder")
    for name, number in ((f"{side}_layers", 1), (f"{side}_attention_heads", 8), (f"{side}_ffn_dim", 48))
}
EAGER = {"attn_implementation": "eager"}
EXPERTS = {"num_experts_per_tok": 2}
PATCHES = SIZES | {"image_size": 16, "patch_size": 8}
IDS = {"input_ids": torch.arange(12).reshape(2, 6) + 3}
PIXELS = {"pixel_values": torch.zeros(2, 3, 16, 16)}


def ids(length: int = 6) -> torch.Tensor:
    return torch.arange(2 * length).reshape(2, length) + 3


CACHELESS = {"input_ids": ids(), "use_cache": False}
BOTH = CACHELESS | {"decoder_input_ids": ids(4)}
CAUSAL, FULL = True, False

# name: model, config, inputs, blocks, attention (count, heads, key heads, width, causal), mlp (count, channels, gated)
TOLD = {
    "qwen2 eager": ("Qwen2Model", GROUPED | EAGER, CACHELESS, 2, (2, 8, 4, 4, CAUSAL), (2, 48, True)),
    "codegen": ("CodeGenModel", OLD | {"rotary_dim": 2}, CACHELESS, 2, (2, 8, 8, 4, CAUSAL), (2, 128, False)),
    "bloom": ("BloomModel", FALCON | {"n_layer": 2, "n_head": 8}, CACHELESS, 2, (2, 8, 8, 4, CAUSAL), (2, 128, False)),
    "falcon": ("FalconForCausalLM", FALCON, CACHELESS, 2, (2, 8, 1, 4, CAUSAL), (2, 128, False)),
    "falcon new": (
        "FalconModel",
        FALCON | {"new_decoder_architecture": True, "num_kv_heads": 4},
        CACHELESS,
        2,
        (2, 8, 4, 4, CAUSAL),
        (2, 128, False),
    ),
    "bigcode": ("GPTBigCodeModel", OLD | EAGER, CACHELESS, 2, (2, 8, 1, 4, CAUSAL), (2, 128, False)),
    "gpt-oss": (
        "GptOssModel",
        GROUPED | EXPERTS | {"num_local_experts": 4, "head_dim": 4, "num_hidden_layers": 1},
        CACHELESS,
        1,
        (1, 8, 4, 4, CAUSAL),
        (0, 0, False),
    ),
    "albert": ("AlbertModel", TEXT | {"embedding_size": 16}, IDS, 2, (1, 8, 8, 4, FULL), (1, 48, False)),
    "modernbert": ("ModernBertModel", TEXT, IDS, 2, (2, 8, 8, 4, FULL), (2, 48, True)),
    "deberta": (
        "DebertaV2Model",
        TEXT | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 4},
        IDS,
        2,
        (2, 8, 8, 4, FULL),
        (2, 48, False),
    ),
    "bart": ("BartModel", PAIR | {"d_model": 32, "vocab_size": 50}, BOTH, 2, (3, 8, 8, 4, None), (2, 48, False)),
    "swin": (
        "SwinModel",
        {"embed_dim": 16, "depths": [1, 2], "num_heads": [4, 8], "image_size": 16, "patch_size": 2, "window_size": 4},
        PIXELS,
        3,
        (3, None, None, 4, FULL),
        (3, None, False),
    ),
    "siglip": ("SiglipVisionModel", PATCHES, PIXELS, 2, (3, 8, 8, 4, FULL), (3, 48, False)),
    "dinov2 gated": (
        "Dinov2Model",
        PATCHES | {"mlp_ratio": 2, "use_swiglu_ffn": True},
        PIXELS,
        2,
        (2, 8, 8, 4, FULL),
        (2, 48, True),
    ),
    "esm": ("EsmModel", TEXT | {"position_embedding_type": "rotary"}, IDS, 2, (2, 8, 8, 4, FULL), (2, 48, False)),
}


class Classic(nn.Module):
    """PyTorch's own encoder and decoder."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 32)
        self.body = nn.Transformer(32, 8, 1, 1, 48, batch_first=True)

    def forward(self, source, target):
        return self.body(self.table(source), self.table(target))


class Spelt(nn.Module):
    """A causal block with grouped keys, einsum, and positions of which the first are added."""

    def __init__(self):
        super().__init__()
        self.table, self.positions = nn.Embedding(50, 32), nn.Parameter(torch.randn(1, 16, 32))
        self.q, self.k, self.v, self.o = (nn.Linear(32, width) for width in (32, 16, 16, 32))
        self.up, self.down = nn.Linear(32, 48), nn.Linear(48, 32)

    def forward(self, tokens):
        x = self.table(tokens) + self.positions[:, : tokens.shape[1]]
        q = self.q(x).unflatten(-1, (4, 2, 4))
        k, v = (layer(x).unflatten(-1, (4, 4)) for layer in (self.k, self.v))
        scores = torch.einsum("b i k g d, b j k d -> b k g i j", q, k) / 2
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        mixed = torch.einsum("bkgij,bjkd->bikgd", scores.masked_fill(later, -1e9).softmax(-1), v)
        x = x + self.o(mixed.flatten(2))
        return x + self.down(F.gelu(self.up(x)))


class Matrices(nn.Module):
    """No layers at all: `x @ W`, softmax(QKᵀ)V, and the feed-forward beside attention, joined by one matrix."""

    def __init__(self):
        super().__init__()
        self.fused, self.joint = nn.Parameter(torch.randn(32, 96 + 48)), nn.Parameter(torch.randn(32 + 48, 32))

    def forward(self, x):
        q, k, v, hidden = (x @ self.fused).split([32, 32, 32, 48], -1)
        q, k, v = (each.unflatten(-1, (8, 4)).transpose(1, 2) for each in (q, k, v))
        mixed = (q @ k.mT / 2).softmax(-1) @ v
        return x + torch.cat([mixed.transpose(1, 2).flatten(2), torch.relu(hidden)], -1) @ self.joint


OWN = {
    "nn.Transformer": (Classic, {"source": ids(), "target": ids(4)}, 2, (3, 8, 8, 4, FULL), (2, 48, False)),
    "einsum": (Spelt, {"tokens": ids()}, 0, (1, 8, 4, 4, CAUSAL), (1, 48, False)),
    "matrices": (Matrices, {"x": torch.randn(2, 6, 32)}, 0, (1, 8, 8, 4, FULL), (1, 48, False)),
}
NAMES = [*TOLD, *OWN]


@cache
def anatomy_of(name: str):
    torch.manual_seed(0)
    if name in OWN:
        make, inputs, *_ = OWN[name]
        return inspect(make().eval(), inputs)
    model, settings, inputs, *_ = TOLD[name]
    made = getattr(transformers, model)
    return inspect(made(made.config_class(**settings)).eval(), inputs)


@pytest.mark.parametrize("name", NAMES)
def test_sites_are_what_they_are(name):
    anatomy = anatomy_of(name)
    blocks, attention, mlp = (TOLD | OWN)[name][-3:]
    sites, feeds = anatomy.of_kind("attention"), anatomy.of_kind("mlp")
    assert (len(anatomy.of_kind("block")), len(sites), len(feeds)) == (blocks, attention[0], mlp[0])
    for site in sites:
        heads, kv_heads, head_dim, causal = attention[1:]
        assert (site.heads, site.kv_heads) == (heads or site.heads, kv_heads or site.heads)
        assert site.head_dim == head_dim and causal in (site.causal, None)
    assert {(site.width, site.gated) for site in feeds} <= {(mlp[1] or site.width, mlp[2]) for site in feeds}
    assert len({site.path for site in sites}) == len(sites) and not anatomy.notes


def test_batch_and_length_stay_free():
    for name in NAMES:
        for sizes in filter(None, map(shape, placeholders(anatomy_of(name).graph_module))):
            free = 1 if len(sizes) == 4 else 2
            assert all(isinstance(size, torch.SymInt) for size in sizes[:free]), name


def test_paths_blocks_and_roles():
    falcon = anatomy_of("falcon").of_kind("attention")
    assert [site.path for site in falcon] == ["transformer.h.0.self_attention", "transformer.h.1.self_attention"]
    swin = anatomy_of("swin")
    inner = ["encoder.layers.0.blocks.0", "encoder.layers.1.blocks.0", "encoder.layers.1.blocks.1"]
    assert [site.path for site in swin.of_kind("block")] == inner
    assert [site.heads for site in swin.of_kind("attention")] == [4, 8, 8]
    bart = anatomy_of("bart").of_kind("attention")
    assert [(site.path.split(".")[-1], site.causal) for site in bart] == [
        ("self_attn", False),
        ("self_attn", True),
        ("encoder_attn", False),
    ]
    roles = {site.path.split(".")[-1]: site.role for site in anatomy_of("albert").of_kind("embedding")}
    assert roles == {"word_embeddings": "token", "token_type_embeddings": "segment", "position_embeddings": "position"}
    assert [site.role for site in anatomy_of("einsum").of_kind("embedding")] == ["token", "position"]
    assert len(anatomy_of("albert").of_kind("attention")[0].nodes) == 2


@pytest.mark.parametrize("name", ["MixtralModel", "Qwen3MoeModel"])
def test_mixtures_of_experts_are_named_and_not_cut(name):
    settings = GROUPED | EXPERTS | {"num_hidden_layers": 1, "moe_intermediate_size": 20, "head_dim": 4}
    made, counted = getattr(transformers, name), "num_local_experts" if "Mixtral" in name else "num_experts"
    config = made.config_class(**settings | {counted: 4})
    anatomy = inspect(made(config).eval(), CACHELESS)
    sites = anatomy.of_kind("moe")
    width = 48 if "Mixtral" in name else 20
    assert [(site.path, site.layer) for site in sites] == [("layers.0.mlp", 0)]
    assert {(site.experts, site.active, site.width, site.gated) for site in sites} == {(4, 2, width, True)}
    assert len(anatomy.of_kind("attention")) == len(anatomy.of_kind("block")) == 1
    for spec, told in (("prune 25% of mlp channels", "in 4 experts"), ("prune 25% of experts", "mixture of 4 experts")):
        with pytest.raises(SurgeryError) as caught:
            strangers.works_of(anatomy, spec)
        (fault,) = caught.value.diagnostics
        assert told in " ".join(fault.notes)


ODD = ["bloom", "falcon", "falcon new", "bigcode", "gpt-oss", "codegen", "deberta", "siglip", *OWN]


@pytest.mark.parametrize("name", ODD)
def test_heads_kept_in_ways_of_their_own_are_cut(name):
    anatomy = anatomy_of(name)
    made = strangers.rewrite(anatomy, "prune 25% of attention heads")
    assert all(work.remove for work in made.works)
    grown = {
        key: held[torch.tensor([0, 1, 0])] if held.dim() != 2 else held[torch.tensor([0, 1, 0]), :3]
        for key, held in anatomy.inputs.items()
        if isinstance(held, torch.Tensor)
    }
    inputs = {key: grown.get(key, held) for key, held in anatomy.inputs.items()}
    with torch.no_grad():
        graphs = (made.compact, made.masked, anatomy.graph_module)
        compact, masked, whole = (first(graph(**inputs)) for graph in graphs)
    torch.testing.assert_close(compact, masked, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(masked, whole, rtol=1e-3, atol=1e-3)


def first(output) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output[0]


def test_channels_joined_with_heads_are_cut():
    made = strangers.rewrite(anatomy_of("matrices"), "prune 25% of mlp channels")
    assert (made.compact.fused.shape, made.compact.joint.shape) == ((32, 132), (68, 32))


@pytest.mark.parametrize("name", ["qwen2 eager", "falcon new", "deberta", "siglip"])
def test_what_is_taken_from_a_copy_is_what_following_it_finds(name):
    anatomy = anatomy_of(name)
    for kind in ("attention", "mlp"):
        seeds = [makers(site) for site in anatomy.of_kind(kind)]
        found = list(trace_all(anatomy.graph_module, seeds))
        assert [coupling.repeated for coupling in found][:2] == [False, True]
        for begun, coupling in zip(seeds, found, strict=True):
            again = trace_units(anatomy.graph_module, begun)
            assert (coupling.units, coupling.consumers) == (again.units, again.consumers)
            assert coupling.labels.keys() == again.labels.keys() and coupling.weights.keys() == again.weights.keys()
            assert all(torch.equal(labels, again.weights[place]) for place, labels in coupling.weights.items())


def test_a_block_that_differs_is_followed_on_its_own():
    torch.manual_seed(0)
    settings = GROUPED | {"num_hidden_layers": 3}
    model = transformers.LlamaModel(transformers.LlamaConfig(**settings)).eval()
    model.layers[1].mlp.act_fn = nn.ReLU()
    anatomy = inspect(model, CACHELESS)
    found = list(trace_all(anatomy.graph_module, map(makers, anatomy.of_kind("mlp"))))
    assert [coupling.repeated for coupling in found] == [False, False, True]


def test_planning_leaves_free_sizes_apart():
    """Encoder and decoder are as long as each other in the example inputs only."""
    config = transformers.T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=64)
    ids = torch.arange(3, 19).reshape(2, 8)
    inputs = {"input_ids": ids, "decoder_input_ids": ids.flip(1), "use_cache": False}
    model = transformers.T5ForConditionalGeneration(config).eval()
    anatomy = inspect(model, inputs)
    prepare("prune 25% of attention heads; prune 25% of mlp channels", model, example_inputs=inputs, anatomy=anatomy)
    lengths = [str(node.meta["val"].shape[1]) for node in placeholders(anatomy.graph_module)[:2]]
    assert len(set(lengths)) == 2
